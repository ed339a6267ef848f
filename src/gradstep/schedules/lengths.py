"""Which lengths torch's schedulers hold, and what it means when the run has another."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from numbers import Real
from typing import NamedTuple

from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from gradstep.errors import RecipeError


class Length(NamedTuple):
    """An attribute that counts calls of `step()`, and what happens in a run of more or fewer."""

    attribute: str
    longer: str  # what happens when it is longer than the run
    shorter: str | None = None  # or shorter, where that is a mistake
    or_equal: bool = False  # whether a run of just this length is too short as well
    least: int = 1  # what is shorter makes no sense, though torch may take it


class Mismatch(NamedTuple):
    """One length, in calls of `step()`, that does not fit."""

    name: str
    length: int
    calls: int  # how many the scheduler has of the run
    consequence: str


_LENGTHS = {
    lr_scheduler.StepLR: Length("step_size", "it never falls", or_equal=True),
    lr_scheduler.ConstantLR: Length("total_iters", "it does not end", or_equal=True, least=0),
    lr_scheduler.LinearLR: Length("total_iters", "it does not end", or_equal=True, least=0),
    lr_scheduler.PolynomialLR: Length("total_iters", "it does not come to its end", "the rest is at 0", least=0),
    lr_scheduler.CosineAnnealingLR: Length("T_max", "it does not come to its end", "it rises again"),
    lr_scheduler.CosineAnnealingWarmRestarts: Length("T_0", "it never restarts"),
    lr_scheduler.OneCycleLR: Length("total_steps", "it does not come to its end", "it can't go on"),
    lr_scheduler.CyclicLR: Length("total_size", "the first cycle does not end"),
}


def check_length(scheduler: LRScheduler) -> None:
    """RecipeError for a length that is none, such as a negative step_size. torch goes on with it."""
    name, held = type(scheduler).__name__, _LENGTHS.get(type(scheduler))
    if held is not None:
        length = getattr(scheduler, held.attribute)
        if not isinstance(length, Real) or length < held.least:
            raise RecipeError(
                f"schedule: {name}'s {held.attribute} is {length!r}, and no number of {held.least} or more."
            )
    for milestone in getattr(scheduler, "milestones", ()):
        if not isinstance(milestone, Real):
            raise RecipeError(f"schedule: {name}'s milestone {milestone!r} is no number.")


def mismatches(scheduler: LRScheduler, calls: int, followed: bool = False) -> Iterator[Mismatch]:
    """The lengths in a scheduler that don't fit a run in which row `calls - 1` is the last.

    `followed`: whether another scheduler follows in a SequentialLR, which is meant to begin where this one ends.
    """
    name = type(scheduler).__name__
    if isinstance(scheduler, lr_scheduler.SequentialLR):
        yield from _in_sequence(scheduler, calls, followed)
    elif isinstance(scheduler, lr_scheduler.ChainedScheduler):
        for part in scheduler._schedulers:
            yield from mismatches(part, calls, followed)
    elif isinstance(scheduler, lr_scheduler.MultiStepLR):
        for milestone in sorted(scheduler.milestones):
            if milestone >= calls:
                yield Mismatch(f"{name}'s milestone", milestone, calls, "it is not reached")
    elif type(scheduler) in _LENGTHS:
        held = _LENGTHS[type(scheduler)]
        length = int(getattr(scheduler, held.attribute))
        if length > calls or (length == calls and held.or_equal and not followed):
            yield Mismatch(f"{name}'s {held.attribute}", length, calls, held.longer)
        elif held.shorter and length < calls - 1:
            yield Mismatch(f"{name}'s {held.attribute}", length, calls, held.shorter)
        elif isinstance(scheduler, lr_scheduler.CosineAnnealingWarmRestarts):
            yield from _cut_period(scheduler, calls)


def _cut_period(scheduler: lr_scheduler.CosineAnnealingWarmRestarts, calls: int) -> Iterator[Mismatch]:
    """The last period, where the run ends within it."""
    rows, period, growth = calls, int(scheduler.T_0), int(scheduler.T_mult)
    while rows > period:
        rows, period = rows - period, period * growth
    if rows < period:
        yield Mismatch("CosineAnnealingWarmRestarts's last period", period, rows, "it does not come to its end")


def _in_sequence(scheduler: lr_scheduler.SequentialLR, calls: int, followed: bool) -> Iterator[Mismatch]:
    ends = [0, *scheduler._milestones, calls]
    for number, (part, (begin, end)) in enumerate(zip(scheduler._schedulers, pairwise(ends), strict=True)):
        if begin >= calls and number > 0:
            yield Mismatch("SequentialLR's milestone", begin, calls, "it is not reached")
        else:
            yield from mismatches(part, min(end, calls) - begin, followed or number + 1 < len(ends) - 1)
