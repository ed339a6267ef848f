"""The schedules of a run, bound to the optimizer that they set: which option of which group has which value when."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from gradstep import schedules
from gradstep.clock import Clock
from gradstep.errors import RecipeError, UserCodeError, listed, nearest, raised_at
from gradstep.optim.values import held, put
from gradstep.schedules import Plateau, Rate
from gradstep.state import TrainState, bases_of

_MAKERS: dict[str, Any] = {**schedules.NAMES, "product": schedules.product, "join": schedules.join}


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
        step, pairs = state.step, zip(self.functions, state.bases, strict=True)
        return [
            {option: _checked(value(step, base[option]), option, step, base[option]) for option, value in own.items()}
            for own, base in pairs
        ]

    def apply(self, state: TrainState) -> None:
        """Sets the options of the coming step. RecipeError for one that was changed by hand since the last."""
        groups = state.optimizer.param_groups
        if len(groups) != len(self.functions):
            raise RecipeError(
                f"the optimizer had {len(self.functions)} groups when its schedule was made, and now {len(groups)}. "
                "Make a new optimizer with all of them: steps(...).replace_optimizer(new)."
            )
        for number, last in enumerate(self._last):
            for option, value in last.items():
                if (now := held(groups[number], option)) is not None and now != value:
                    raise RecipeError(
                        f"the {option} of the optimizer's group {number} was set by hand to {now:g}, and the schedule "
                        "sets it before every step. Leave the schedule out, or let the schedule say it."
                    )
        self._last = self.values(state)
        for group, values in zip(groups, self._last, strict=True):
            for option, value in values.items():
                put(group, option, value)

    def expect(self, state: TrainState) -> None:
        """The options are those that were given: one that is another at the first step was changed by hand."""
        pairs = zip(self.functions, state.bases, strict=True)
        self._last = [{option: base[option] for option in own} for own, base in pairs]

    def forget(self) -> None:
        """The options are those of a checkpoint now: whatever they are, nobody changed them by hand."""
        self._last = []

    def observe(self, value: float, higher: bool, metric: str | None) -> bool:
        """Tells the schedules that go by this metric what it is now; True if any acted."""
        names = {plateau.metric for plateau in self.plateaus}
        if not names or (metric is not None and not {metric, None} & names):
            raise RecipeError(f"observe: no schedule goes by {metric or 'a metric'}, as schedules.on_plateau() does.")
        if metric is None and len(names) > 1:
            raise RecipeError(f"observe: schedules go by {listed(sorted(map(str, names)))}. Say which: metric=...")
        acted = [p.observe(value, higher) for p in self.plateaus if metric is None or p.metric in (metric, None)]
        return any(acted)

    def undo(self, state: TrainState) -> None:
        """The optimizer is the user's again, and its options are those that he gave."""
        # The user may have added a group, which is what the run has just ended by.
        for group, own, base in zip(state.optimizer.param_groups, self.functions, state.bases, strict=False):
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
        where = f"the schedule of {_name(group, number)}"
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
            if not bases[number][option] and not functions[-1][option](clock.total // 2, 0.0):
                notes.append(f"schedule: the {option} of {_name(group, number)} is 0, and stays 0.")
    plateaus = [plateau for _, rate in resolved.values() for plateau in schedules.plateaus(rate)]
    return Scheduled(functions, plateaus, notes)


def rates_at(state: TrainState, scheduled: Scheduled | None = None) -> list[float]:
    """The learning rates, one per group: those of step number `state.step`, or without a schedule those held now."""
    groups = state.optimizer.param_groups
    coming = scheduled.values(state) if scheduled else [{} for _ in groups]
    pairs = zip(groups, coming, strict=True)
    return [values["lr"] if "lr" in values else float(group["lr"]) for group, values in pairs if "lr" in group]


def _name(group: Mapping[str, Any], number: int) -> str:
    return f"group '{group['name']}'" if "name" in group else f"group {number}"


def _by_option(given: Any, where: str) -> Mapping[str, Any]:
    if given is None:
        return {}
    named = given if isinstance(given, Mapping) else {"lr": given}
    for option, each in named.items():
        at = where if option == "lr" else f"{where}.{option}"
        if (made := next((name for name, one in _MAKERS.items() if each is one), None)) is not None:
            raise RecipeError(f"{at}: {made} is what makes a schedule. Call it, as in schedules.{made}(...).")
        if isinstance(each, LRScheduler) or (isinstance(each, type) and issubclass(each, LRScheduler)):
            raise RecipeError(
                f"{at}: a scheduler of torch's has steps of its own. Say how long one is: "
                "schedules.from_torch(scheduler, every='1 epoch'), or every='1 step'."
            )
        if not (isinstance(each, schedules.Schedule) or callable(each)):
            kind = "rate" if option == "lr" else "value"
            raise RecipeError(
                f"{at}: {each!r} is neither a function (step, base) -> {kind} nor one of gradstep.schedules, such as "
                "schedules.cosine(warmup='1 epoch')."
            )
    return named


def _probe(rate: Rate, option: str, base: float, clock: Clock) -> None:
    """A schedule that can't give a value says so now, and not in the middle of the run.

    A short run's steps are all asked; of a long one's a thousand. What is left is held as it is set.
    """
    for at in sorted({*range(0, clock.total, -(-clock.total // 1000)), clock.total - 1}):
        try:
            value = rate(at, base)
        except RecipeError:
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {error}{raised_at(error)}"
            raise UserCodeError(f"schedule: asked for step {at} and base {base:g}, it raised {what}.") from error
        _checked(value, option, at, base)


def _checked(value: Any, option: str, step: int, base: float) -> float:
    """The value. RecipeError for what is no finite number, or is negative where that means nothing."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or (option in ("lr", "momentum", "weight_decay") and value < 0):
        called = "no rate" if option == "lr" else f"no {option}"
        raise RecipeError(f"schedule: asked for step {step} and base {base:g}, it gave {value!r}, {called}.")
    return float(value)
