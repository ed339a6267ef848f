"""Schedules: pure functions `(step, base) -> value` of an option of the optimizer, its learning rate above all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gradstep.schedules.annealing import (
    Annealing,
    Cosine,
    Linear,
    OneCycle,
    Polynomial,
    cosine,
    linear,
    one_cycle,
    polynomial,
)
from gradstep.schedules.base import (
    Join,
    JoinRate,
    Part,
    Product,
    ProductRate,
    Rate,
    Schedule,
    join,
    notes,
    product,
    resolve,
)
from gradstep.schedules.plateau import OnPlateau, Plateau, PlateauNumbers, halve_on_plateau, on_plateau, plateaus
from gradstep.schedules.shapes import (
    Constant,
    Exponential,
    Geometric,
    InverseSqrt,
    InverseTime,
    Piecewise,
    Reciprocal,
    Warmup,
    constant,
    exponential,
    geometric,
    inverse_sqrt,
    inverse_time,
    piecewise,
    reciprocal,
    warmup,
)
from gradstep.schedules.wrapped import FromTorch, from_torch

# What a recipe can name. `product` and `join` are made of schedules, which a recipe's plain values are not.
NAMES: dict[str, Callable[..., Any]] = {
    make.__name__: make
    for make in (
        constant,
        piecewise,
        exponential,
        geometric,
        reciprocal,
        inverse_time,
        inverse_sqrt,
        linear,
        cosine,
        polynomial,
        one_cycle,
        warmup,
        on_plateau,
        halve_on_plateau,
        from_torch,
    )
}

__all__ = [
    "NAMES",
    "Annealing",
    "Constant",
    "Cosine",
    "Exponential",
    "FromTorch",
    "Geometric",
    "InverseSqrt",
    "InverseTime",
    "Join",
    "JoinRate",
    "Linear",
    "OnPlateau",
    "OneCycle",
    "Part",
    "Piecewise",
    "Plateau",
    "PlateauNumbers",
    "Polynomial",
    "Product",
    "ProductRate",
    "Rate",
    "Reciprocal",
    "Schedule",
    "Warmup",
    "constant",
    "cosine",
    "exponential",
    "from_torch",
    "geometric",
    "halve_on_plateau",
    "inverse_sqrt",
    "inverse_time",
    "join",
    "linear",
    "notes",
    "on_plateau",
    "one_cycle",
    "piecewise",
    "plateaus",
    "polynomial",
    "product",
    "reciprocal",
    "resolve",
    "warmup",
]
