"""Numbers of standard deviation one, on the CPU in float64, from a generator of their own.

float64, so that a model of any dtype gets the rounding of the same numbers. The draws are torch.nn.init's own, but
for the truncated normal.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gradstep.keys import key

# What is left of a normal's standard deviation when it is cut at two of them: the variance of a doubly truncated
# normal is 1 − 2·2·φ(2)/(Φ(2) − Φ(−2)) (Johnson, Kotz & Balakrishnan 1994, section 10.1), 0.7737 here; its root 0.8796.
TRUNCATED = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2)))


def _uniform(values: Tensor, _blocks: int, generator: torch.Generator) -> Tensor:
    return nn.init.uniform_(values, -math.sqrt(3), math.sqrt(3), generator=generator)


def _normal(values: Tensor, _blocks: int, generator: torch.Generator) -> Tensor:
    return nn.init.normal_(values, generator=generator)


def _truncated_normal(values: Tensor, _blocks: int, generator: torch.Generator) -> Tensor:
    """By the inverse of its distribution function: √2·erfinv(u) for u uniform on ±erf(√2), which is cut at ±2.

    torch's own trunc_normal_ draws again and again what falls outside, which takes several times as long.
    """
    cut = math.erf(math.sqrt(2))
    values.uniform_(-cut, cut, generator=generator).erfinv_().mul_(math.sqrt(2))
    return values.clamp_(-2.0, 2.0).div_(TRUNCATED)  # the clamp is for the last bit of rounding


def _orthogonal(values: Tensor, blocks: int, generator: torch.Generator) -> Tensor:
    """Each block, as a matrix, has orthonormal rows or columns, whichever are fewer, times the root of the larger."""
    for block in values.chunk(blocks):
        larger = max(len(block), block[0].numel())
        nn.init.orthogonal_(block, gain=math.sqrt(larger), generator=generator)
    return values


DISTRIBUTIONS: dict[str, Callable[[Tensor, int, torch.Generator], Tensor]] = {
    "uniform": _uniform,
    "normal": _normal,
    "truncated normal": _truncated_normal,
    "orthogonal": _orthogonal,
}


def draw(seed: int, name: str, shape: tuple[int, ...], blocks: int, distribution: str) -> Tensor:
    """The numbers for the parameter of this name: float64 on the CPU, `shape`, mean zero, standard deviation one.

    They are a function of these arguments alone, so other parameters change nothing, and no global stream moves.
    """
    generator = torch.Generator(device="cpu").manual_seed(key(seed, f"initialize/{name}"))
    values = torch.empty(shape, dtype=torch.float64, device="cpu")
    return DISTRIBUTIONS[distribution](values, blocks, generator)
