"""Schedules that come down until the run ends, or until they start again. t counts steps from 0."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from gradstep.clock import Clock, Duration
from gradstep.errors import RecipeError
from gradstep.schedules.base import Composable, Rate, spoken
from gradstep.schedules.checks import number, one_of, share, whole, yes_or_no
from gradstep.schedules.shapes import warmup_notes


@dataclass(frozen=True, slots=True)
class Annealing(Composable, ABC):
    """From `base` down to `floor`·base along a curve, after a linear warm-up, once or with restarts.

    During the first `warmup` the rate rises in a line: step s of w runs at (s + 1) / w of the base. The curve begins
    at the step after and would reach the floor one step after the run's last. In a run shorter than the warm-up the
    rate only rises, as it does in a --test-run; the rates of a run are printed before it.

    `restart` is the length of the first period, after which the curve begins again at the base; each next period is
    `growth` times as long (Loshchilov & Hutter 2017, section 3).
    """

    warmup: str | Duration = "0 steps"
    floor: float = 0.0
    restart: str | Duration | None = None
    growth: int = 1

    def __post_init__(self) -> None:
        Duration.parse(self.warmup, "schedule.warmup")
        share(self.floor, "floor")
        if self.restart is not None:
            Duration.positive(self.restart, "schedule.restart")
        whole(self.growth, "growth", 1)
        if self.growth != 1 and self.restart is None:
            raise RecipeError(
                f"schedule.growth: without a restart there is one period, and none that could be {self.growth} "
                "times as long. Write restart='10 epochs' too, or leave growth out."
            )

    @abstractmethod
    def left(self, progress: float) -> float:
        """How much of the way from the floor to the base is left, from 1 to 0, at a progress from 0 to 1."""

    def resolve(self, clock: Clock) -> Rate:
        """The function of (step, base) for a run of this clock."""
        warmup = clock.steps(Duration.parse(self.warmup, "schedule.warmup"))
        period = max(clock.total - warmup, 1) if self.restart is None else self._first_period(clock)

        def rate(step: int, base: float) -> float:
            if step < warmup:
                return base * (step + 1) / warmup
            at, length = self._place(step - warmup, period)
            return base * (self.floor + (1 - self.floor) * self.left(min(at / length, 1.0)))

        return rate

    def notes(self, clock: Clock) -> list[str]:
        """A warm-up that does not end within the run, or a period that the run's end cuts."""
        warmup = clock.steps(Duration.parse(self.warmup, "schedule.warmup"))
        found = warmup_notes(self.warmup, "warmup", clock)
        if self.restart is not None and not found:
            after = clock.total - warmup
            last, length = self._place(after - 1, self._first_period(clock))
            if last + 1 < length:
                which = "first" if last + 1 == after else "last"
                period, left = spoken(length, clock), spoken(last + 1, clock)
                found.append(f"schedule.restart: the {which} period takes {period}, and the run has {left} for it.")
        return found

    def _place(self, at: int, period: int) -> tuple[int, int]:
        """How far into its period a step is, `at` steps after the warm-up, and how long that period is."""
        if self.restart is None:
            return at, period
        if self.growth == 1:
            return at % period, period
        while at >= period:
            at, period = at - period, period * self.growth
        return at, period

    def _first_period(self, clock: Clock) -> int:
        return clock.steps(Duration.parse(self.restart, "schedule.restart"))


@dataclass(frozen=True, slots=True)
class Cosine(Annealing):
    """Down along half a cosine over the whole run, after a linear warm-up such as `"1 epoch"`.

    Loshchilov & Hutter 2017, eq. 5. `restart="10 epochs"` begins it again after that long; with `growth=2` each period
    is twice as long as the one before.
    """

    def left(self, progress: float) -> float:
        """(1 + cos π·progress) / 2."""
        return 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True, slots=True)
class Linear(Annealing):
    """The same as a cosine, in a line."""

    def left(self, progress: float) -> float:
        """1 - progress."""
        return 1 - progress


@dataclass(frozen=True, slots=True)
class Polynomial(Annealing):
    """Down along (1 - progress)^power."""

    power: float = 1.0

    def __post_init__(self) -> None:
        Annealing.__post_init__(self)  # `super()` does not find its way in a dataclass with slots
        number(self.power, "power")

    def left(self, progress: float) -> float:
        """(1 - progress)^power."""
        return float((1 - progress) ** self.power)


@dataclass(frozen=True, slots=True)
class OneCycle(Composable):
    """The 1cycle policy (Smith & Topin 2018) over the whole run, as torch's OneCycleLR does with max_lr = base.

    `warmup_share` of the run goes up, from `start`·base; the rest goes down to `end`·base, along a `"cosine"` or a
    `"linear"` curve. With `three_phase` it comes down to `start`·base in the time that it went up, then to `end`·base.
    """

    warmup_share: float = 0.3
    start: float = 1 / 25
    end: float = 1 / 25e4
    curve: str = "cosine"
    three_phase: bool = False

    def __post_init__(self) -> None:
        for name in ("warmup_share", "start", "end"):
            share(getattr(self, name), name)
        one_of(self.curve, "curve", ("cosine", "linear"))
        yes_or_no(self.three_phase, "three_phase")

    def resolve(self, clock: Clock) -> Rate:
        """The function of (step, base) for a run of this clock."""
        phases = self._phases(clock.total)

        def rate(step: int, base: float) -> float:
            number = next((n for n, (end, _, _) in enumerate(phases) if step <= end), len(phases) - 1)
            begin = phases[number - 1][0] if number else 0.0
            end, before, after = phases[number]
            done = min((step - begin) / (end - begin), 1.0) if end > begin else 1.0
            return base * self._between(before, after, done)

        return rate

    def _phases(self, total: int) -> list[tuple[float, float, float]]:
        """Of each phase its last step, which need not be whole, and the factors at its two ends: torch's phases."""
        up = (float(self.warmup_share * total) - 1, self.start, 1.0)
        if not self.three_phase:
            return [up, (total - 1, 1.0, self.end)]
        down = (float(2 * self.warmup_share * total) - 2, 1.0, self.start)
        return [up, down, (total - 1, self.start, self.end)]

    def _between(self, before: float, after: float, done: float) -> float:
        if self.curve == "linear":
            return (after - before) * done + before
        return after + (before - after) / 2.0 * (math.cos(math.pi * done) + 1)


# The names that people write. A polynomial's power comes first.
linear = Linear
cosine = Cosine
one_cycle = OneCycle


def polynomial(
    power: float,
    warmup: str | Duration = "0 steps",
    floor: float = 0.0,
    restart: str | Duration | None = None,
    growth: int = 1,
) -> Polynomial:
    """Down along (1 - progress)^power over the whole run, after a linear warm-up, once or with restarts."""
    return Polynomial(warmup, floor, restart, growth, power)
