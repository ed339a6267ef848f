"""Hooks watch a run. One is any object with some of these methods, called in the order of the list:

    on_train_start(state, about)            before the first step; `about` is an About
    on_train_batch_end(state, outcome)      after each optimizer step; gradients are still in .grad
    on_row(row)                             when a row of metrics.jsonl is written
    on_train_epoch_end(state, metrics)      after an epoch's steps, before its validation
    on_validation_end(state, metrics)       after each evaluation on the validation set, the best already updated
    on_epoch_end(state)                     after an epoch and its validation
    on_save_checkpoint(state, path)         when a checkpoint is there for good; the training may have gone on meanwhile
    on_train_end(state)                     after the last step and the test, or after a pause
    on_exception(state, error)              when the run ends by an exception

A hook changes nothing of the state. It may return a Request, which `fit` carries out at the end of the step; not from
`on_row` and `on_save_checkpoint`, because when these are called is a matter of time. A method
that a hook does not have costs nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradstep.clock import Clock
from gradstep.errors import RecipeError, listed, nearest
from gradstep.plan.document import Plan

if TYPE_CHECKING:
    from gradstep.record import Stopwatch
    from gradstep.state import TrainState

EVENTS = (
    "on_train_start",
    "on_train_batch_end",
    "on_row",
    "on_train_epoch_end",
    "on_validation_end",
    "on_epoch_end",
    "on_save_checkpoint",
    "on_train_end",
    "on_exception",
)


class Request(enum.Flag):
    """What a hook may ask for. STOP: the training is over, the test follows. PAUSE: save and leave, to be resumed."""

    NONE = 0
    SAVE = enum.auto()
    STOP = enum.auto()
    PAUSE = enum.auto()


@dataclass(frozen=True, slots=True)
class About:
    """What a hook may want to know of the run it watches."""

    path: Path | None
    clock: Clock
    stopwatch: Stopwatch
    samples: int | None = None  # of an epoch, where the feed is gradstep's own
    plan: Plan | None = None


@dataclass(slots=True)
class Events:
    """The hooks' methods by event, found once."""

    calls: dict[str, list[Callable[..., Any]]]
    requested: list[tuple[Request, str]] = field(default_factory=list)  # since `fit` last looked, with who asked

    @classmethod
    def of(cls, hooks: Iterable[Any]) -> Events:
        """RecipeError for a hook that has none of the methods, or one whose name is not among them."""
        if not isinstance(hooks, (list, tuple)):
            raise RecipeError(
                f"hooks: {type(hooks).__name__} is no list of hooks. Write [{type(hooks).__name__}(...)]."
            )
        for hook in hooks:
            if isinstance(hook, type):
                raise RecipeError(f"hooks: {hook.__name__} is a class. Give an object of it: {hook.__name__}(...).")
            own = [name for name in dir(hook) if name.startswith("on_")]
            wrong = [name for name in own if name not in EVENTS]
            if wrong or not own:
                what = f"the method '{wrong[0]}', which is never called" if wrong else "none of a hook's methods"
                hint = nearest(wrong[0], EVENTS) if wrong else ""
                raise RecipeError(f"hooks: {type(hook).__name__} has {what}. There are {listed(EVENTS)}.{hint}")
        return cls({event: [getattr(hook, event) for hook in hooks if hasattr(hook, event)] for event in EVENTS})

    def tell(self, event: str, *what: Any) -> None:
        """Calls each hook that has this method and keeps what it asks for."""
        for call in self.calls[event]:
            answer = call(*what)
            if isinstance(answer, Request):
                self.requested.append((answer, type(getattr(call, "__self__", call)).__name__))
            elif answer is not None:
                raise RecipeError(f"hooks: {event} returned {answer!r}. A hook returns a gradstep.Request or nothing.")

    def tell_of(self, state: TrainState, error: BaseException) -> None:
        """Tells of an exception, whatever the hooks raise themselves: it is the first one that must be seen."""
        try:
            self.tell("on_exception", state, error)
        except Exception as another:
            error.add_note(f"a hook that was told of it raised {type(another).__name__}: {another}")

    def announce(self, event: str, *what: Any) -> None:
        """The same where nothing can be asked for, since when it happens is a matter of time."""
        before = len(self.requested)
        self.tell(event, *what)
        if len(self.requested) > before:
            raise RecipeError(f"hooks: {event} can't ask for anything, because when it is called is a matter of time.")


class InterruptAt:
    """Pauses the run when `epoch` epochs are done, validated and compared with the best."""

    def __init__(self, epoch: int) -> None:
        if epoch < 1:
            raise RecipeError(f"--interrupt-at: {epoch} is no number of finished epochs; they count from 1.")
        self.epoch = epoch

    def on_train_start(self, state: TrainState, about: About) -> None:  # noqa: ARG002
        self._clock = about.clock

    def on_epoch_end(self, state: TrainState) -> Request | None:
        done = self._clock.ends_epoch(state.step) and self._clock.epoch(state.step - 1) == self.epoch
        return Request.PAUSE if done else None
