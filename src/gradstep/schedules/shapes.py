"""Schedules in closed form that don't depend on where the run ends. t counts steps from 0."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

from gradstep.clock import Clock, Duration
from gradstep.errors import RecipeError
from gradstep.schedules.base import Composable, Rate, spoken, unchanged
from gradstep.schedules.checks import ascending, number, share


@dataclass(frozen=True, slots=True)
class Constant(Composable):
    """The value stays what the optimizer has."""

    def resolve(self, clock: Clock) -> Rate:  # noqa: ARG002
        """The function of (step, base) for a run of this clock."""
        return unchanged


@dataclass(frozen=True, slots=True)
class Piecewise(Composable):
    """`{"2 epochs": 0.1, "4 epochs": 0.01}`: the base, from epoch 2 on a tenth of it, from epoch 4 on a hundredth.

    Factors are of the base, not of the value before. RecipeError: times out of order, factors negative or not finite.
    """

    factors: Mapping[str | Duration, float]

    def __post_init__(self) -> None:
        if not isinstance(self.factors, Mapping) or not self.factors:
            raise RecipeError(
                f"schedule.factors: {self.factors!r} says no factors by the time they begin, as in {{'2 epochs': 0.1}}."
            )
        for time, factor in self.factors.items():
            number(factor, f"factors['{time}']")
        ascending(self._times(), "factors")

    def resolve(self, clock: Clock) -> Rate:
        """The function of (step, base) for a run of this clock. RecipeError where steps and epochs are out of order."""
        ascending(self._times(), "factors", clock)
        starts, factors = [clock.steps(time) for time in self._times()], [1.0, *self.factors.values()]
        return lambda step, base: base * factors[bisect_right(starts, step)]

    def notes(self, clock: Clock) -> list[str]:
        """One sentence for each factor that the run does not reach."""
        run = f"and the run is over after {spoken(clock.total, clock)}"
        return [
            f"schedule.factors: {factor:g} begins after {spoken(clock.steps(time), clock)}, {run}."
            for time, factor in zip(self._times(), self.factors.values(), strict=True)
            if clock.steps(time) >= clock.total
        ]

    def _times(self) -> list[Duration]:
        return [Duration.positive(time, "schedule.factors") for time in self.factors]


@dataclass(frozen=True, slots=True)
class Exponential(Composable):
    """base · exp(-t/r): after each `r` another e-th. With r of one epoch, t/r counts the training set's passes."""

    r: str | Duration = "1 epoch"

    def __post_init__(self) -> None:
        Duration.positive(self.r, "schedule.r")

    def resolve(self, clock: Clock) -> Rate:
        """The function of (step, base) for a run of this clock."""
        r = clock.steps(Duration.parse(self.r, "schedule.r"))
        return lambda step, base: base * math.exp(-step / r)


@dataclass(frozen=True, slots=True)
class Geometric(Composable):
    """base · gamma^⌊t/every⌋: times `gamma` after each `every`, as torch's ExponentialLR and StepLR do."""

    gamma: float
    every: str | Duration = "1 epoch"

    def __post_init__(self) -> None:
        number(self.gamma, "gamma")
        Duration.positive(self.every, "schedule.every")

    def resolve(self, clock: Clock) -> Rate:
        """The function of (step, base) for a run of this clock. RecipeError where it outgrows a float in that run."""
        gamma, every = float(self.gamma), self._every(clock)
        times = (clock.total - 1) // every
        try:
            gamma**times
        except OverflowError:
            raise RecipeError(
                f"schedule.gamma: {gamma:g} after each {Duration.parse(self.every, 'schedule.every')} is "
                f"{gamma:g}^{times} at the run's last step, more than a float holds (1.8e308). Write a smaller gamma, "
                "or a longer every."
            ) from None
        return lambda step, base: base * gamma ** (step // every)

    def notes(self, clock: Clock) -> list[str]:
        """An `every` that is not shorter than the run."""
        every = self._every(clock)
        if every < clock.total:
            return []
        run = spoken(clock.total, clock)
        return [f"schedule.every: it is {spoken(every, clock)}, and the run has {run}: the value never changes."]

    def _every(self, clock: Clock) -> int:
        return clock.steps(Duration.parse(self.every, "schedule.every"))


@dataclass(frozen=True, slots=True)
class Reciprocal(Composable):
    """base · (1 + t/r)^(-c)."""

    r: str | Duration = "1 epoch"
    c: float = 1.0

    def __post_init__(self) -> None:
        Duration.positive(self.r, "schedule.r")
        number(self.c, "c")

    def resolve(self, clock: Clock) -> Rate:
        """The function of (step, base) for a run of this clock."""
        r = clock.steps(Duration.parse(self.r, "schedule.r"))
        return lambda step, base: base * (1 + step / r) ** -self.c


@dataclass(frozen=True, slots=True)
class InverseTime(Composable):
    """base / (1 + t · decay), t in steps: the `learningRateDecay` of Torch7's optim.sgd."""

    decay: float

    def __post_init__(self) -> None:
        number(self.decay, "decay")

    def resolve(self, clock: Clock) -> Rate:  # noqa: ARG002
        """The function of (step, base) for a run of this clock."""
        return lambda step, base: base / (1 + step * self.decay)


@dataclass(frozen=True, slots=True)
class InverseSqrt(Composable):
    """base · min((t+1)/w, √(w/(t+1))): up in a line for a `warmup` of w steps, then down with 1/√t.

    Vaswani et al. 2017, section 5.3. The peak is the base.
    """

    warmup: str | Duration = "4000 steps"

    def __post_init__(self) -> None:
        Duration.positive(self.warmup, "schedule.warmup")

    def resolve(self, clock: Clock) -> Rate:
        """The function of (step, base) for a run of this clock."""
        w = clock.steps(Duration.parse(self.warmup, "schedule.warmup"))
        return lambda step, base: base * min((step + 1) / w, math.sqrt(w / (step + 1)))

    def notes(self, clock: Clock) -> list[str]:
        """A warm-up that is not shorter than the run."""
        return warmup_notes(self.warmup, "warmup", clock)


@dataclass(frozen=True, slots=True)
class Warmup(Composable):
    """A factor for products, `warmup("1 epoch") * other`: rises in a line from `start` to 1, then stays there.

    Step s of w runs at start + (1 - start) · (s + 1) / w, so the last of them is at 1 already.
    """

    length: str | Duration
    start: float = 0.0

    def __post_init__(self) -> None:
        Duration.positive(self.length, "schedule.length")
        share(self.start, "start")

    def resolve(self, clock: Clock) -> Rate:
        """The function of (step, base) for a run of this clock."""
        w = clock.steps(Duration.parse(self.length, "schedule.length"))

        def rate(step: int, base: float) -> float:
            return base if step + 1 >= w else base * (self.start + (1 - self.start) * (step + 1) / w)

        return rate

    def notes(self, clock: Clock) -> list[str]:
        """A warm-up that is not shorter than the run."""
        return warmup_notes(self.length, "length", clock)


def warmup_notes(length: str | Duration, name: str, clock: Clock) -> list[str]:
    """A sentence where a warm-up is not shorter than the run."""
    steps = clock.steps(Duration.parse(length, f"schedule.{name}"))
    if steps < clock.total:
        return []
    return [f"schedule.{name}: the warm-up takes {spoken(steps, clock)}, and the run has {spoken(clock.total, clock)}."]


# The names that people write.
constant = Constant
piecewise = Piecewise
exponential = Exponential
geometric = Geometric
reciprocal = Reciprocal
inverse_time = InverseTime
inverse_sqrt = InverseSqrt
warmup = Warmup
