"""The number format that a model computes in. It is asked for, never chosen: it changes what a step computes.

`bf16` and `fp16` are torch's autocast around the forward: weights, criterion, gradients and update stay in float32, and
so do the operations that torch knows to need it. The outputs are float32 when the criterion sees them. In fp16 small
gradients would be 0, so the loss is multiplied before the backward, and the gradients are divided after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradstep import tree
from gradstep.errors import RecipeError, listed, nearest

WORDS = ("fp32", "bf16", "fp16")
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_PATIENCE = 2000  # steps without an overflow after which a larger scale is tried, as torch's GradScaler does
Forward = Callable[[nn.Module, Any], Any]


@dataclass(slots=True)
class LossScale:
    """What the loss of fp16 is multiplied by: halved where a gradient overflows, doubled when none has for long.

    Always a power of 2, so that multiplying and dividing round nothing (Micikevicius et al., "Mixed Precision
    Training", ICLR 2018, section 3.2).
    """

    value: float = 2.0**16
    steps: int = 0  # without an overflow, since it was last another

    @property
    def at_its_end(self) -> bool:
        """Whether no smaller scale would help: it is not the scale that makes a gradient infinite."""
        return self.value <= 1.0

    def halve(self) -> None:
        """A gradient has overflowed: its step changes nothing."""
        self.value, self.steps = self.value / 2, 0

    def keep(self) -> None:
        """A step was made."""
        self.steps += 1
        if self.steps >= _PATIENCE:
            self.value, self.steps = min(self.value * 2, 2.0**24), 0


def forward_in(word: str, device: torch.device, forward: Forward | None) -> Forward | None:
    """The forward in this precision: `forward` itself for fp32, where None stands for `model(inputs)`.

    RecipeError for a word that is none, and where the machine would be slower by it or can't do it.
    """
    if word not in WORDS:
        raise RecipeError(f"precision: {word!r} is none of {listed(WORDS)}.{nearest(str(word), WORDS)}")
    if word == "fp32":
        return forward
    if (why := _why_not(word, device)) is not None:
        raise RecipeError(f"precision: {word} {why} Write fp32.")

    def lower(model: nn.Module, inputs: Any) -> Any:
        with torch.autocast(device.type, _DTYPES[word]):
            outputs = model(inputs) if forward is None else forward(model, inputs)
        return tree.map_tensors(_wide, outputs)

    return lower


def scale_of(word: str, model: nn.Module) -> LossScale | None:
    """The scale that a training in this precision begins with, if it needs one. RecipeError for a model in float16."""
    if word != "fp16":
        return None
    if (half := next((n for n, p in model.named_parameters() if p.dtype == torch.float16), None)) is not None:
        raise RecipeError(
            f"precision: fp16 keeps weights and gradients in float32, and '{half}' is float16. Write model.float()."
        )
    return LossScale()


def _why_not(word: str, device: torch.device) -> str | None:
    if word == "fp16":
        slow = device.type == "cpu" and not has_fp16()
        return "is many times slower than fp32 on a CPU without AMX-FP16, as this one." if slow else None
    if device.type == "cpu" and not has_bf16():
        return "is tens of times slower than fp32 on a CPU without AVX-512-BF16 or AMX, as this one."
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return f"is not to be had on {torch.cuda.get_device_name(device)}."
    return None


def has_bf16() -> bool:
    """Whether this CPU multiplies in bfloat16."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def has_fp16() -> bool:
    """Whether this CPU multiplies in float16."""
    return bool(torch.cpu._is_amx_fp16_supported())


def _wide(output: Tensor) -> Tensor:
    return output.float() if output.dtype in _DTYPES.values() else output
