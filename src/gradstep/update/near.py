"""How far apart two outputs may be that should be the same, and how far they are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Relative to the largest value. Kernels for another number of rows, or with a graph where there was none, move float32
# by 1e-6; a coupling such as BatchNorm's moves outputs by tenths.
_NEAR = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2, torch.complex128: 1e-9}


def near(leaf: Any) -> float:
    """The largest relative difference that is rounding; 0 for what is not made of floats."""
    return _NEAR.get(leaf.dtype, 1e-4 if leaf.is_complex() else 0.0) if isinstance(leaf, Tensor) else 0.0


def away(one: Tensor, other: Tensor) -> Tensor:
    """The largest difference, relative to the largest value of `one`: 0-dimensional, on the device."""
    real = torch.float32 if one.device.type == "mps" else torch.float64  # which MPS does not have
    wide = torch.complex128 if one.is_complex() else real
    a, b = one.to(wide).nan_to_num(), other.to(wide).nan_to_num()
    return (a - b).abs().max() / a.abs().max().clamp(min=1e-30)
