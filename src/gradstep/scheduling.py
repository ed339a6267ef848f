"""The schedules of a run, bound to the optimizer that they set: which option of which group has which value when."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from gradstep import schedules
from gradstep.clock import Clock
from gradstep.errors import RecipeError, UserCodeError, listed, nearest, raised_at
from gradstep.schedules import Plateau, Rate
from gradstep.state import TrainState, bases_of

Group = dict[str, Any]


@dataclass(slots=True)
class Scheduled:
    """For each of the optimizer's groups, the functions of (step, base) by the option that they set."""

    functions: list[dict[str, Rate]]
    plateaus: list[Plateau]
    notes: list[str]
    _last: list[dict[str, float]] = field(default_factory=list)  # what was put: to see what was changed by hand since

    def __bool__(self) -> bool:
        return any(self.functions)

    def values(self, state: TrainState) -> list[dict[str, float]]:
        """What each group's options are at step number `state.step`."""
        pairs = zip(self.functions, state.bases, strict=True)
        return [{option: value(state.step, base[option]) for option, value in own.items()} for own, base in pairs]

    def apply(self, state: TrainState) -> None:
        """Sets the options of the coming step. RecipeError for one that was changed by hand since the last."""
        groups = state.optimizer.param_groups
        for number, last in enumerate(self._last):
            for option, value in last.items():
                if (held := _held(groups[number], option)) is not None and held != value:
                    raise RecipeError(
                        f"the {option} of the optimizer's group {number} was set by hand to {held:g}, and the schedule "
                        "sets it before every step. Leave the schedule out, or let the schedule say it."
                    )
        self._last = self.values(state)
        for group, values in zip(groups, self._last, strict=True):
            for option, value in values.items():
                put(group, option, value)

    def undo(self, state: TrainState) -> None:
        """The optimizer is the user's again, and its options are those that he gave."""
        for group, own, base in zip(state.optimizer.param_groups, self.functions, state.bases, strict=True):
            for option in own:
                put(group, option, base[option])
        self._last = []


def bind(schedule: Any, optimizer: Optimizer, clock: Clock) -> Scheduled:
    """A schedule for all groups, or a mapping of options to such, and the groups' own under their key `schedule`.

    RecipeError: it is none, names an option that the optimizer does not have, or gives what is no value for it.
    """
    groups, bases = optimizer.param_groups, bases_of(optimizer)
    shared = _by_option(schedule, "schedule")
    # A schedule that several groups share is one function, and so is what it remembers.
    resolved: dict[int, tuple[Any, Rate]] = {}
    notes: list[str] = []
    functions: list[dict[str, Rate]] = []
    for number, group in enumerate(groups):
        where = f"the schedule of group {group.get('name', number)}"
        own = {**shared, **_by_option(group.get("schedule"), where)}
        for each in list(own.values()):
            if hasattr(each, "companions"):
                own = {**each.companions(groups), **own}
        functions.append({})
        for option, each in own.items():
            if option not in bases[number]:
                hint = nearest(option, bases[number]) or f" It has {listed(bases[number])}."
                raise RecipeError(f"schedule: {type(optimizer).__name__} has no number called '{option}'.{hint}")
            placed = each.for_group(number, groups) if hasattr(each, "for_group") else each
            if id(placed) not in resolved:
                resolved[id(placed)] = placed, schedules.resolve(placed, clock)
                notes += [note for note in schedules.notes(placed, clock) if note not in notes]
            functions[-1][option] = resolved[id(placed)][1]
            _probe(functions[-1][option], option, bases[number][option], clock)
    plateaus = [plateau for _, rate in resolved.values() for plateau in schedules.plateaus(rate)]
    return Scheduled(functions, plateaus, notes)


def rates_at(state: TrainState, scheduled: Scheduled | None = None) -> list[float]:
    """The learning rates, one per group: those of step number `state.step`, or without a schedule those held now."""
    groups = state.optimizer.param_groups
    coming = scheduled.values(state) if scheduled else [{} for _ in groups]
    pairs = zip(groups, coming, strict=True)
    return [values["lr"] if "lr" in values else float(group["lr"]) for group, values in pairs if "lr" in group]


def put(group: Group, option: str, value: float) -> None:
    """Sets one option of a group; `momentum` is the first of `betas` where the optimizer calls it so."""
    if option == "momentum" and "momentum" not in group:
        group["betas"] = (value, *group["betas"][1:])
    elif isinstance(group[option], Tensor):
        group[option].fill_(value)  # in place: a captured or compiled step reads this tensor
    else:
        group[option] = value


def _held(group: Group, option: str) -> float | None:
    """The option's value, or None where reading it would wait for the device."""
    value = group["betas"][0] if option == "momentum" and "momentum" not in group else group[option]
    return None if isinstance(value, Tensor) else float(value)


def _by_option(given: Any, where: str) -> Mapping[str, Any]:
    if given is None:
        return {}
    named = given if isinstance(given, Mapping) else {"lr": given}
    for option, each in named.items():
        if not (isinstance(each, schedules.Schedule) or callable(each)):
            raise RecipeError(
                f"{where}: {each!r} is neither a function (step, base) -> rate nor one of gradstep.schedules."
                if option == "lr"
                else f"{where}.{option}: {each!r} is neither a function (step, base) -> value nor a schedule."
            )
    return named


def _probe(rate: Rate, option: str, base: float, clock: Clock) -> None:
    """A schedule that can't give a value says so now, and not in the middle of the run."""
    for at in sorted({0, clock.total // 2, clock.total - 1}):
        try:
            value: Any = rate(at, base)
        except RecipeError:
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {error}{raised_at(error)}"
            raise UserCodeError(f"schedule: asked for step {at} and base {base:g}, it raised {what}.") from error
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or (option == "lr" and value < 0):
            called = "no rate" if option == "lr" else f"no {option}"
            raise RecipeError(f"schedule: asked for step {at} and base {base:g}, it gave {value!r}, {called}.")


def described(functions: Sequence[Mapping[str, Rate]]) -> list[str]:
    """The options that are scheduled in any group, the rate first."""
    return sorted({option for own in functions for option in own}, key=lambda option: (option != "lr", option))
