"""The number format that a model computes in. It is asked for, never chosen: it changes what a step computes.

`bf16` is torch's autocast around the forward: weights, criterion, gradients and update stay in float32, and so do the
operations that torch knows to need it. The outputs are float32 when the criterion sees them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gradstep import tree
from gradstep.errors import RecipeError, nearest

WORDS = ("fp32", "bf16", "fp16")
Forward = Callable[[nn.Module, Any], Any]


def forward_in(word: str, device: torch.device, forward: Forward | None) -> Forward | None:
    """The forward in this precision: `forward` itself for fp32, where None stands for `model(inputs)`.

    RecipeError for a word that is none, and where the machine would be slower by it or can't do it.
    """
    if word not in WORDS:
        raise RecipeError(f"precision: {word!r} is none of fp32, bf16.{nearest(str(word), WORDS)}")
    if word == "fp32":
        return forward
    if word == "fp16":
        raise RecipeError(
            "precision: fp16 needs its gradients scaled, which this version does not do. Write bf16, which needs none."
        )
    if (why := _why_not(device)) is not None:
        raise RecipeError(f"precision: bf16 {why} Write fp32.")

    def lower(model: nn.Module, inputs: Any) -> Any:
        with torch.autocast(device.type, torch.bfloat16):
            outputs = model(inputs) if forward is None else forward(model, inputs)
        return tree.map_tensors(_wide, outputs)

    return lower


def _why_not(device: torch.device) -> str | None:
    if device.type == "cpu" and not has_bf16():
        return "is tens of times slower than fp32 on a CPU without AVX-512-BF16 or AMX, as this one."
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return f"is not to be had on {torch.cuda.get_device_name(device)}."
    return None


def has_bf16() -> bool:
    """Whether this CPU multiplies in bfloat16."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _wide(output: Tensor) -> Tensor:
    return output.float() if output.dtype == torch.bfloat16 else output
