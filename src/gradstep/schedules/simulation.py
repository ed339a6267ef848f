"""A torch scheduler, stepped on an optimizer that has another's options and nothing to train."""

from __future__ import annotations

import copy
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from gradstep.errors import RecipeError
from gradstep.schedules.base import Groups
from gradstep.schedules.lengths import check_length

PLATEAU = (
    "schedule: ReduceLROnPlateau goes by a metric, not by the step. Use gradstep.schedules.on_plateau, "
    "which has the same rule and settings (min_lr is min_value there)."
)


class StandIn(Optimizer):
    """What a scheduler is built on here: groups of the same options, and a number each for parameters.

    It counts as stepped, or schedulers would advise to step it before them: torch keeps that on an optimizer which has
    had a scheduler.
    """

    def __init__(self, groups: Groups) -> None:
        shared = {name: value for name, value in groups[0].items() if all(name in group for group in groups)}
        super().__init__([{**group, "params": [torch.zeros(1)]} for group in groups], shared)
        LambdaLR(self, lambda _: 1.0)
        self.step()
        for own, given in zip(self.param_groups, groups, strict=True):
            del own["initial_lr"]
            own.update(given)

    def step(self, closure: Any = None) -> Any:
        """Does nothing."""


class Simulation:
    """The table of what a scheduler sets: row k is after k calls of its `step()`, computed when it is asked for."""

    def __init__(self, scheduler: LRScheduler, stand_in: StandIn) -> None:
        self.scheduler = scheduler
        self.ended: Exception | None = None  # what the scheduler raised, if it did
        self._groups = stand_in.param_groups
        options = ["lr", "momentum"] if moves_momentum(scheduler) else ["lr"]
        self._columns = [{option: array("d") for option in options} for _ in self._groups]
        self._keep()

    def reach(self, calls: int) -> bool:
        """Computes the rows up to that after `calls` calls. False where the scheduler raises before."""
        while len(self) <= calls and self.ended is None:
            try:
                self.scheduler.step()
            except Exception as error:  # whatever it was is said by who knows the run
                self.ended = error
            else:
                self._keep()
        return len(self) > calls

    def value(self, option: str, number: int, calls: int) -> float:
        """One option of group `number` after so many calls, which must have been reached."""
        return self._columns[number][option][calls]

    def __len__(self) -> int:
        return len(self._columns[0]["lr"])

    def _keep(self) -> None:
        for group, columns in zip(self._groups, self._columns, strict=True):
            columns["lr"].append(float(group["lr"]))
            if "momentum" in columns:
                columns["momentum"].append(float(group["betas"][0] if "betas" in group else group["momentum"]))


@dataclass(frozen=True)
class Start:
    """How the groups of an optimizer begin: their options without the parameters, and their rates."""

    groups: tuple[dict[str, Any], ...]
    rates: tuple[float, ...]
    said: str  # everything but the rates, to know it again

    @classmethod
    def of(cls, groups: Groups) -> Start:
        """Of an optimizer's `param_groups`. What an earlier scheduler left as `initial_lr` is not looked at."""
        for number, group in enumerate(groups):
            if "lr" not in group:
                raise RecipeError(f"schedule: the optimizer's group {number} has no lr that a scheduler could set.")
        options = [options_of(group) for group in groups]
        for group in options:
            group.pop("initial_lr", None)
        rates = tuple(float(group["lr"]) for group in options)
        dtypes = [getattr(group["lr"], "dtype", None) for group in options]
        said = repr([{**group, "lr": dtype} for group, dtype in zip(options, dtypes, strict=True)])
        return cls(tuple(options), rates, said)

    def with_rate(self, number: int, base: float) -> tuple[float, ...]:
        """The rates, that of one group being `base`."""
        return (*self.rates[:number], base, *self.rates[number + 1 :])

    def at(self, rates: tuple[float, ...]) -> list[dict[str, Any]]:
        """The groups with these rates, in tensors of the same dtype where the rate is held in one."""
        return [
            {**group, "lr": torch.tensor(rate, dtype=group["lr"].dtype) if isinstance(group["lr"], Tensor) else rate}
            for group, rate in zip(self.groups, rates, strict=True)
        ]


def options_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group's options without its parameters. Tensors are copied, and are on the CPU."""
    options = {name: value for name, value in group.items() if name != "params"}
    return {n: v.detach().cpu().clone() if isinstance(v, Tensor) else v for n, v in options.items()}


def simulate(make: Callable[[Optimizer], Any], groups: Groups) -> Simulation:
    """The scheduler that `make` makes of an optimizer with these groups. RecipeError for what is no scheduler."""
    stand_in = StandIn(groups)
    scheduler = make(stand_in)
    check(scheduler)
    if scheduler.optimizer is not stand_in:
        raise RecipeError(
            "schedule: from_torch's function made a scheduler of another optimizer than the one that it is given. "
            "Write it as in from_torch(lambda optimizer: StepLR(optimizer, step_size=30))."
        )
    return Simulation(scheduler, stand_in)


def simulate_copy(scheduler: LRScheduler) -> Simulation:
    """A scheduler from where it is, on a copy of it; its optimizer is not touched, and parameters are not copied."""
    theirs = scheduler.optimizer
    stand_in = StandIn([options_of(group) for group in theirs.param_groups])
    check(scheduler)
    instead: dict[int, Any] = {id(each): each for group in theirs.param_groups for each in group["params"]}
    instead[id(theirs)] = stand_in
    try:
        copied = copy.deepcopy(scheduler, instead)
    except Exception as error:
        raise RecipeError(
            f"schedule: the {type(scheduler).__name__} can't be copied ({type(error).__name__}: {error}). "
            "Give from_torch the function that makes it, as in from_torch(lambda optimizer: ...)."
        ) from error
    return Simulation(copied, stand_in)


def check(scheduler: object) -> None:
    """RecipeError for what is no scheduler that is stepped once per step or epoch, or has a length that is none."""
    if isinstance(scheduler, ReduceLROnPlateau):
        raise RecipeError(PLATEAU)
    if not isinstance(scheduler, LRScheduler):
        raise RecipeError(
            f"schedule: from_torch's function made {scheduler!r}, which is no torch.optim.lr_scheduler. "
            "Several schedulers go into a ChainedScheduler or a SequentialLR."
        )
    for each in within(scheduler):
        check_length(each)


def within(scheduler: LRScheduler) -> Iterator[LRScheduler]:
    """A scheduler and all that it is made of."""
    yield scheduler
    for part in getattr(scheduler, "_schedulers", ()):
        yield from within(part)


def calls_made(scheduler: LRScheduler) -> int:
    """How often it was stepped so far. A ChainedScheduler does not count; its parts do."""
    return next((each.last_epoch for each in within(scheduler) if hasattr(each, "last_epoch")), 0)


def moves_momentum(scheduler: LRScheduler) -> bool:
    """Whether it sets the momentum too (the first of Adam's betas), as OneCycleLR and CyclicLR do."""
    return any(getattr(each, "cycle_momentum", False) for each in within(scheduler))
