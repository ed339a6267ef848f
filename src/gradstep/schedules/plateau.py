"""Schedules by performance: the value is reduced when a metric no longer improves.

The only schedules that remember anything. What they remember are four numbers, `Plateau.numbers`; under given numbers
the value is a pure function of (step, base) like any other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from gradstep.clock import Clock
from gradstep.errors import RecipeError
from gradstep.schedules.base import Composable, Rate
from gradstep.schedules.checks import number, one_of, whole


@dataclass(slots=True)
class PlateauNumbers:
    """All that a plateau remembers: `best` metric so far (None before the first), and three counts."""

    best: float | None = None
    bad: int = 0  # evaluations in a row without a better one
    cooldown: int = 0  # evaluations during which bad ones don't count yet
    reductions: int = 0  # how often the value was reduced


@dataclass(frozen=True, slots=True)
class OnPlateau(Composable):
    """Times `factor` after more than `patience` evaluations in a row without a better metric: ReduceLROnPlateau's rule.

    Better is by more than `threshold`, relative to the best (`"rel"`) or as it is (`"abs"`). After a reduction,
    `cooldown` evaluations don't count. The value does not go below `min_value`, nor in steps of `eps` or less.
    `metric` is a name such as `"valid/loss"`, and `mode` `"min"` or `"max"`; unless given, those of the monitor.
    """

    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    threshold_mode: str = "rel"
    cooldown: int = 0
    min_value: float = 0.0
    eps: float = 1e-8
    metric: str | None = None
    mode: str | None = None

    def __post_init__(self) -> None:
        for name in ("factor", "threshold", "min_value", "eps"):
            number(getattr(self, name), name)
        if self.factor >= 1:
            raise RecipeError(f"schedule.factor: {self.factor!r} does not reduce anything. Write a number below 1.")
        whole(self.patience, "patience", 0)
        whole(self.cooldown, "cooldown", 0)
        one_of(self.threshold_mode, "threshold_mode", ("rel", "abs"))
        if self.metric is not None and not isinstance(self.metric, str):
            raise RecipeError(f"schedule.metric: {self.metric!r} is no name of a metric, as in 'valid/loss'.")
        if self.mode is not None:
            one_of(self.mode, "mode", ("min", "max"))

    def resolve(self, clock: Clock) -> Plateau:  # noqa: ARG002
        """The function of (step, base), with nothing seen yet."""
        return Plateau(self)

    def is_better(self, value: float, best: float | None, higher: bool) -> bool:
        """Whether `value` beats `best` by more than the threshold. Never for nan."""
        if best is None:
            best = -math.inf if higher else math.inf
        if self.threshold_mode == "rel":
            return value > best * (self.threshold + 1.0) if higher else value < best * (1.0 - self.threshold)
        return value > best + self.threshold if higher else value < best - self.threshold


@dataclass(slots=True)
class Plateau:
    """A function (step, base) -> value that falls by `observe`. To resume it, set `numbers`, or its fields."""

    rule: OnPlateau
    numbers: PlateauNumbers = field(default_factory=PlateauNumbers)

    @property
    def metric(self) -> str | None:
        """The metric that it goes by; None is the one that chooses the best."""
        return self.rule.metric

    @property
    def mode(self) -> str | None:
        """Whether less ("min") or more ("max") of the metric is better; None is what the metric says itself."""
        return self.rule.mode

    def __call__(self, step: int, base: float) -> float:  # noqa: ARG002
        value = float(base)
        for _ in range(self.numbers.reductions):
            reduced = max(value * self.rule.factor, self.rule.min_value)
            if not value - reduced > self.rule.eps:
                break  # so would be every later one
            value = reduced
        return value

    def observe(self, value: float, higher: bool) -> bool:
        """Takes in one evaluation; True when it reduces the value.

        `higher` says whether more of the metric is better, where the mode does not.
        """
        numbers, value = self.numbers, float(value)
        higher = higher if self.mode is None else self.mode == "max"
        if self.rule.is_better(value, numbers.best, higher):
            numbers.best, numbers.bad = value, 0
        else:
            numbers.bad += 1
        if numbers.cooldown > 0:
            numbers.cooldown -= 1
            numbers.bad = 0
        if numbers.bad <= self.rule.patience:
            return False
        numbers.reductions += 1
        numbers.cooldown, numbers.bad = self.rule.cooldown, 0
        return True


def plateaus(rate: Rate) -> list[Plateau]:
    """The plateaus inside a resolved schedule, through products and joins, each once."""
    if isinstance(rate, Plateau):
        return [rate]
    found = [each for part in getattr(rate, "parts", ()) for each in plateaus(part)]
    return list({id(each): each for each in found}.values())


on_plateau = OnPlateau  # the name that people write


def halve_on_plateau(metric: str | None = None, mode: str | None = None, patience: int = 0) -> OnPlateau:
    """Half of it at each evaluation that is not better than the best before; with `patience`, after so many more."""
    return OnPlateau(0.5, patience, 0.0, "abs", metric=metric, mode=mode)
