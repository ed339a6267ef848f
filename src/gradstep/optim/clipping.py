"""Clipping gradients, once per batch and just before the optimizer: torch's functions, from one word."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from gradstep.errors import RecipeError, nearest

_KEYS = ("norm", "value", "type")


@dataclass(frozen=True, slots=True)
class Clip:
    """Scales all gradients so that their common norm is at most `norm`, or cuts each element to ±`value`.

    `type` is the norm's p: 2 unless given (Pascanu et al. 2013, algorithm 1), `math.inf` for the largest element.
    """

    norm: float | None = None
    value: float | None = None
    type: float = 2.0

    @classmethod
    def parse(cls, given: Any) -> Clip | None:
        """`1.0` (the norm), `{"norm": 1.0, "type": 2.0}`, `{"value": 0.5}`, or None. RecipeError for anything else."""
        if given is None or isinstance(given, Clip):
            return given
        options = given if isinstance(given, Mapping) else {"norm": given}
        for key in options:
            if key not in _KEYS:
                raise RecipeError(f"clip: there is no '{key}'; there are norm, value, type.{nearest(str(key), _KEYS)}")
        if "value" in options and "type" in options:
            raise RecipeError("clip: type is a norm's, as in {'norm': 1.0, 'type': 2.0}; a value has none.")
        return cls(**options)

    def __post_init__(self) -> None:
        if (self.norm is None) == (self.value is None):
            raise RecipeError("clip: give a norm, as in clip=1.0, or a value, as in clip={'value': 0.5}; one of them.")
        for key in _KEYS:
            number: object = getattr(self, key)
            if number is None:
                continue
            if isinstance(number, bool) or not isinstance(number, (int, float)) or not number > 0:
                raise RecipeError(f"clip.{key}: {number!r} is no positive number.")
            if math.isinf(number) and key != "type":
                raise RecipeError(f"clip.{key}: {number!r} clips nothing; leave clip out.")

    def __call__(self, parameters: Iterable[nn.Parameter]) -> Tensor | None:
        """Clips `.grad` in place; the norm before clipping, on the device. Nothing waits for it."""
        own = [parameter for parameter in parameters if parameter.grad is not None]
        if self.norm is not None:
            return clip_grad_norm_(own, self.norm, norm_type=self.type)
        if self.value is not None:
            clip_grad_value_(own, self.value)
        return None
