"""The one clock. `step` counts finished optimizer steps; everything else about time is a function of it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gradstep.errors import RecipeError

_DURATION = re.compile(r"\s*(\d+)\s*(step|epoch)s?\s*")


@dataclass(frozen=True, slots=True)
class Duration:
    """A length of training with its unit, as in `"3 epochs"` or `"500 steps"`."""

    amount: int
    unit: str  # "step" or "epoch"

    @classmethod
    def parse(cls, text: object, what: str) -> Duration:
        """Reads `"3 epochs"`; `what` names the setting in the error. A bare number has no unit: an error."""
        if isinstance(text, Duration):
            return text
        match = _DURATION.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            hint = f"'{text} steps' or '{text} epochs'" if isinstance(text, int) else "'500 steps' or '1 epoch'"
            raise RecipeError(f"{what}: {text!r} is not a duration. Write a number with its unit, as in {hint}.")
        return cls(int(match[1]), match[2])

    @classmethod
    def positive(cls, text: object, what: str) -> Duration:
        """The same, and longer than nothing."""
        duration = cls.parse(text, what)
        if duration.amount < 1:
            raise RecipeError(f"{what}: '{duration}' is no positive length.")
        return duration

    def __str__(self) -> str:
        return f"{self.amount} {self.unit}{'' if self.amount == 1 else 's'}"


@dataclass(frozen=True, slots=True)
class Clock:
    """How steps and epochs relate in one run. Epochs count from 1, batches in an epoch from 0."""

    steps_per_epoch: int
    total: int  # the step after which the run is done

    def epoch(self, step: int) -> int:
        """The epoch that step number `step` (0 is the first) belongs to, from 1."""
        return step // self.steps_per_epoch + 1

    def batch(self, step: int) -> int:
        """Which batch of its epoch step number `step` is, from 0."""
        return step % self.steps_per_epoch

    def ends_epoch(self, done: int) -> bool:
        """Whether an epoch is complete after `done` steps."""
        return done > 0 and done % self.steps_per_epoch == 0

    def next_due(self, done: int, *every: Duration | None) -> int:
        """The first step after `done` with which an epoch or the run ends, or one of these is due."""
        lengths = [self.steps_per_epoch, *(self.steps(each) for each in every if each is not None)]
        return min(self.total, *(done + length - done % length for length in lengths))

    def steps(self, duration: Duration) -> int:
        """A duration in steps."""
        return duration.amount * (self.steps_per_epoch if duration.unit == "epoch" else 1)

    def due(self, done: int, every: Duration | None) -> bool:
        """Whether something that happens `every` so often happens after `done` steps."""
        return every is not None and done > 0 and done % self.steps(every) == 0
