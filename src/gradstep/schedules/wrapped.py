"""torch's own schedulers as schedules: the values that their stepping gives, at any step, in any order."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import ChainedScheduler, LRScheduler, ReduceLROnPlateau, SequentialLR

from gradstep.clock import Clock, Duration
from gradstep.errors import GradstepError, ModelError, RecipeError, UserCodeError, listed, nearest, raised_at
from gradstep.schedules.base import Composable, Groups, Rate, Schedule, spoken
from gradstep.schedules.lengths import mismatches
from gradstep.schedules.simulation import (
    PLATEAU,
    Simulation,
    Start,
    calls_made,
    moves_momentum,
    simulate,
    simulate_copy,
)

_GROUP = {"lr": 1.0, "momentum": 0.0}  # of no optimizer in particular
_KEPT = 64  # tables; there is one for each base that is asked for


@dataclass(frozen=True, eq=False)
class FromTorch(Composable):
    """What a torch scheduler sets one option of a group to when it is stepped after each `every`.

    The values are those of a simulation in which group `number` begins at `base` and the others as in `start`. Where
    the user built the scheduler, `optimizer` is what he built it on, and the values go on from where it is: they do not
    depend on `base`.
    """

    make: Callable[[Optimizer], Any] | None  # None where the user built it
    shown: str
    every: Duration
    start: Start = field(repr=False)
    number: int | None = None
    option: str = "lr"
    optimizer: Optimizer | None = field(default=None, repr=False)
    begun: int = 0  # how often the user's scheduler was stepped already
    tables: dict[Any, Simulation] = field(default_factory=dict, repr=False)  # shared by all groups

    goes_last = True

    def resolve(self, clock: Clock) -> Rate:
        """The function of (step, base) for a run of this clock.

        RecipeError: the scheduler can't be made, is none, or raises before the run is over. UserCodeError: the function
        that was to make it raised.
        """
        if self.number is None and len(self.start.groups) > 1:
            raise RecipeError(
                f"schedule: {self.shown} is of an optimizer of {len(self.start.groups)} groups, and each has its own "
                "values. Take one of them, as in schedule.for_group(0, optimizer.param_groups)."
            )
        number, every = self.number or 0, clock.steps(self.every)

        def rate(step: int, base: float) -> float:
            table = self._table(base)
            if not table.reach(step // every):
                raise _too_short(table, every, clock) from table.ended
            return table.value(self.option, number, step // every)

        rate(clock.total - 1, self.start.rates[number])  # one that ends too early says so before the run
        return rate

    def notes(self, clock: Clock) -> list[str]:
        """A sentence for each length in the scheduler that does not fit the run."""
        every = clock.steps(self.every)
        calls = self.begun + -(-clock.total // every)
        return [
            f"schedule: {found.name} is {spoken(found.length * every, clock)}, and it runs for "
            f"{spoken(found.calls * every, clock)}: {found.consequence}."
            for found in mismatches(self._own().scheduler, calls)
        ]

    def for_group(self, number: int, groups: Groups) -> FromTorch:
        """The schedule of group `number` of an optimizer's `param_groups`.

        ModelError: the user's scheduler was built on another optimizer. RecipeError: a group has no rate to set.
        """
        if self.optimizer is None:
            return replace(self, number=number, start=Start.of(groups))
        theirs = self.optimizer.param_groups
        if len(theirs) != len(groups) or any(a is not b for a, b in zip(theirs, groups, strict=True)):
            raise ModelError(
                "schedule: the scheduler was built on another optimizer than the one given. Give its class instead, as "
                "in from_torch(torch.optim.lr_scheduler.StepLR, step_size=30, every='1 epoch')."
            )
        return replace(self, number=number)

    def companions(self, groups: Groups) -> dict[str, Schedule]:
        """`{"momentum": ...}` where the scheduler sets that too, or the first of Adam's betas, as OneCycleLR does."""
        placed = self.for_group(self.number or 0, groups)
        if not moves_momentum(placed._own().scheduler):
            return {}
        return {"momentum": replace(placed, number=self.number, option="momentum")}

    def _own(self) -> Simulation:
        """The table of the groups as they begin."""
        return self._table(self.start.rates[self.number or 0])

    def _table(self, base: float) -> Simulation:
        if self.make is None:
            return self.tables["theirs"]
        rates = self.start.with_rate(self.number or 0, base) if self.option == "lr" else self.start.rates
        key = (self.start.said, rates)
        if key not in self.tables:
            if len(self.tables) >= _KEPT:
                del self.tables[next(iter(self.tables))]
            self.tables[key] = _simulated(self.make, self.shown, self.start.at(rates))
        return self.tables[key]


def from_torch(make: Any, every: str | Duration = "1 step", **options: Any) -> FromTorch:
    """Exactly the values that a scheduler of torch's gives when it is stepped after each `every`, bit for bit.

    `make` is a class of `torch.optim.lr_scheduler` or its name, `options` being its arguments; or a function of an
    optimizer that makes a scheduler, chains among them:
    `from_torch(lambda o: SequentialLR(o, [LinearLR(o), ExponentialLR(o, 0.9)], milestones=[5]), every="1 epoch")`;
    or a scheduler that was built on the optimizer already, which goes on from where it is and is left as it is.

    The base is the rate to begin at. Arguments for each group (`LambdaLR` with a list) and what else a scheduler sets
    (OneCycleLR's momentum) are met by `for_group` and `companions`, which `gradstep.fit` calls.

    RecipeError: no scheduler, an argument that it does not take, or ReduceLROnPlateau, which `on_plateau` is for.
    """
    every = Duration.positive(every, "schedule.every")
    made = _class_named(make) if isinstance(make, str) else make
    if isinstance(made, ReduceLROnPlateau) or (inspect.isclass(made) and issubclass(made, ReduceLROnPlateau)):
        raise RecipeError(PLATEAU)
    if inspect.isclass(made) and issubclass(made, LRScheduler):
        return _of_class(made, every, options)
    if options:
        raise RecipeError(
            f"schedule: '{next(iter(options))}' can be given to a class of torch.optim.lr_scheduler only. A function, "
            "or a scheduler that is built already, has its own."
        )
    if isinstance(made, LRScheduler):
        return _of_instance(made, every)
    if not callable(made) or inspect.isclass(made):
        raise RecipeError(
            f"schedule: {made!r} is no scheduler of torch.optim.lr_scheduler, nor a function that makes one of an "
            "optimizer."
        )
    return FromTorch(made, "from_torch's function", every, Start.of([_GROUP]))


def _of_class(made: type[LRScheduler], every: Duration, options: dict[str, Any]) -> FromTorch:
    name = made.__name__
    if issubclass(made, (ChainedScheduler, SequentialLR)):
        raise RecipeError(
            f"schedule: {name} is made of schedulers of one optimizer. Give from_torch the function that makes them, "
            f"as in from_torch(lambda optimizer: {name}(...))."
        )
    parameters = inspect.signature(made).parameters
    taken = [each for each in parameters if each != "optimizer"]
    if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        for option in options:
            if option not in taken:
                hint = nearest(option, taken) or f" It takes {listed(taken, 20)}."
                raise RecipeError(f"schedule: {name} takes no '{option}'.{hint}")
    shown = f"{name}({', '.join(f'{option}={value!r}' for option, value in options.items())})"
    make = partial(made, **options)
    _try(make, shown, options)
    return FromTorch(make, shown, every, Start.of([_GROUP]))


def _try(make: Callable[[Optimizer], Any], shown: str, options: dict[str, Any]) -> None:
    """A wrong argument is an error where it is written, though how many groups there will be is not known yet."""
    counts = sorted({1, *(len(value) for value in options.values() if isinstance(value, (list, tuple)) and value)})
    errors = []
    for count in counts:
        try:
            table = _simulated(make, shown, Start.of([_GROUP] * count).groups)
        except GradstepError as error:
            errors.append(error)
        else:
            table.reach(1)
            if isinstance(table.ended, (TypeError, ZeroDivisionError)):  # numbers that torch can't count with
                errors.append(_raised(shown, table.ended))
    if len(errors) == len(counts):
        raise errors[-1]


def _of_instance(made: LRScheduler, every: Duration) -> FromTorch:
    return FromTorch(
        make=None,
        shown=type(made).__name__,
        every=every,
        start=Start.of(made.optimizer.param_groups),
        optimizer=made.optimizer,
        begun=calls_made(made),
        tables={"theirs": simulate_copy(made)},
    )


def _class_named(name: str) -> Any:
    known = [each for each in lr_scheduler.__all__ if each != "LRScheduler"]
    if name not in known:
        raise RecipeError(f"schedule: torch.optim.lr_scheduler has no '{name}'.{nearest(name, known)}")
    return getattr(lr_scheduler, name)


def _simulated(make: Callable[[Optimizer], Any], shown: str, groups: Groups) -> Simulation:
    try:
        return simulate(make, groups)
    except GradstepError:
        raise
    except Exception as error:
        raise _raised(shown, error) from error


def _raised(shown: str, error: Exception) -> GradstepError:
    at = raised_at(error)  # a line of the user's, unless it is the arguments that torch does not like
    return (UserCodeError if at else RecipeError)(f"schedule: {shown} raised {type(error).__name__}: {error}{at}")


def _too_short(table: Simulation, every: int, clock: Clock) -> RecipeError:
    name, given = type(table.scheduler).__name__, spoken((len(table) - 1) * every, clock)
    return RecipeError(
        f"schedule: {name} can't go on after {given}, and the run has {spoken(clock.total, clock)}. "
        f"It raised {type(table.ended).__name__}: {table.ended}"
    )
