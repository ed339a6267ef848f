"""Schedules: pure functions `(step, base) -> value` of the learning rate, where `base` is a group's own rate.

Any such function will do. The classes here hold lengths that are only known once the data is ("1 epoch");
`resolve` turns them into functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from gradstep.clock import Clock, Duration
from gradstep.errors import RecipeError

Rate = Callable[[int, float], float]


@runtime_checkable
class Schedule(Protocol):
    """A schedule that must know the clock before it is a function."""

    def resolve(self, clock: Clock) -> Rate:
        """The function of (step, base) for a run of this clock."""


@dataclass(frozen=True, slots=True)
class Constant:
    """Always the base rate."""

    def resolve(self, clock: Clock) -> Rate:  # noqa: ARG002
        return lambda _step, base: base


@dataclass(frozen=True, slots=True)
class Cosine:
    """From `base` down to `floor`·base along half a cosine (Loshchilov & Hutter 2017, eq. 5, without restarts).

    During the first `warmup` the rate rises in a line: step s of w runs at (s + 1) / w of the base. The cosine begins
    at the step after and would reach the floor one step after the run's last. In a run shorter than the warm-up the
    rate only rises, as it does in a --test-run; the rates of a run are printed before it.
    """

    warmup: str | Duration = "0 steps"
    floor: float = 0.0

    def __post_init__(self) -> None:
        Duration.parse(self.warmup, "schedule.warmup")
        if not 0 <= self.floor <= 1:
            raise RecipeError(f"schedule.floor: {self.floor} is not a share of the rate, between 0 and 1.")

    def resolve(self, clock: Clock) -> Rate:
        warmup = clock.steps(Duration.parse(self.warmup, "schedule.warmup"))

        def rate(step: int, base: float) -> float:
            if step < warmup:
                return base * (step + 1) / warmup
            progress = (step - warmup) / max(clock.total - warmup, 1)
            return base * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))

        return rate


def constant() -> Constant:
    """The rate stays what the optimizer has."""
    return Constant()


def cosine(warmup: str = "0 steps", floor: float = 0.0) -> Cosine:
    """A cosine over the whole run, after a linear warm-up such as `"1 epoch"`."""
    return Cosine(warmup, floor)


def resolve(schedule: Schedule | Rate, clock: Clock) -> Rate:
    """The function of a schedule, whichever of the two it is given as."""
    if isinstance(schedule, Schedule):
        return schedule.resolve(clock)
    if callable(schedule):
        return schedule
    raise RecipeError(
        f"schedule: {schedule!r} is neither a function (step, base) -> rate nor one of gradstep.schedules."
    )
