"""Copies of a training on which a proposal may be tried, and what tells whether it changes what a step computes.

Three float32 steps can't tell another memory format (6e-6 apart) from a weight decay that was forgotten (2e-6). One
step in float64 can: 2e-14 against 8e-4.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gradstep import tree
from gradstep.data import Feed
from gradstep.finite import Guard
from gradstep.plan.proposals import threads_of
from gradstep.state import TrainState
from gradstep.update import Update
from gradstep.update.pieces import count, cut

if TYPE_CHECKING:
    from gradstep.setup import Training

SAME = 1e-9  # of the largest change of a tensor in the steps; beyond it a proposal computes something else
_ROUNDED = 1e-14  # of its largest value, which no arithmetic in float64 holds closer
_RATES = (1.0, 0.5)  # what the rates are multiplied by in the steps that are compared: a rate may have been baked in


class DeclinedError(Exception):
    """Why a proposal is not taken up. It reaches nobody but the plan."""


def shadow_of(training: Training, dtype: torch.dtype | None = None) -> Training:
    """A copy of a training that shares nothing with it that a step changes; all floats of `dtype` if it is given.

    DeclinedError where the user's objects can't be copied.
    """
    state = training.state
    criterion = state.criterion if isinstance(state.criterion, nn.Module) else None
    try:  # together: the optimizer's parameters are then the copy's
        memo: dict[int, Any] = {}
        model, copied = copy.deepcopy((state.model, criterion), memo)
        optimizer = copy.copy(state.optimizer)
        # Optimizer's own __getstate__ leaves out what a class has besides, as LBFGS its list of parameters.
        vars(optimizer).update(copy.deepcopy(vars(state.optimizer), memo))
    except Exception as error:
        raise DeclinedError(f"the model or optimizer can't be copied ({type(error).__name__}: {error})") from error
    optimizer.zero_grad()
    if dtype is not None:
        for root in (model, copied):
            if root is not None:
                root.to(dtype)
        for slots in optimizer.state.values():
            for name, slot in slots.items() if isinstance(slots, dict) else ():
                if isinstance(slot, Tensor) and slot.is_floating_point() and slot.dim():
                    slots[name] = slot.to(dtype)
    its = state.criterion if copied is None else copied
    own = TrainState(model, optimizer, its, state.seed, state.step, scale=copy.copy(state.scale))
    update = _update_of(training.update, model, its, state.seed)
    return replace(training, state=own, update=update, guard=Guard(training.guard.rule), trial=True)


def _update_of(update: Update, model: nn.Module, criterion: Any, seed: int) -> Update:
    own = Update(
        model,
        criterion,
        micro_batch=update.micro_batch,
        stat_group=update.stat_group,
        dropout=update.dropout,
        seed=seed,
        unpack=update.unpack,
        forward=update.forward,
    )
    own.method, own.refuses_non_finite = update.method, False
    return own


def take_steps(training: Training, batches: Sequence[Any], count: int = 1) -> None:
    """So many steps on these batches in turn. Waits for the device."""
    with threads_of(training):
        for number in range(count):
            batch = batches[number % len(batches)]
            training.take_step(training.state, batch, training.update, training.clip, training.guard, training.device)
    synchronise(training.device)


def take_fed_steps(training: Training, count: int) -> None:
    """So many steps on the feed's batches, each made for its step. Waits for the device."""
    feed = training.feed
    assert isinstance(feed, Feed)
    with threads_of(training):
        for batch in feed.start(0, count):
            training.take_step(training.state, batch, training.update, training.clip, training.guard, training.device)
    synchronise(training.device)


def batches_apart(plain: Any, other: Any) -> float:
    """0. DeclinedError unless every number of some batches of two feeds is the same: of the epoch's first ones, its
    last, and the next one's first."""
    for first in (0, plain.steps_per_epoch - 1):
        pairs = zip(plain.start(first, first + 2), other.start(first, first + 2), strict=True)
        for ours, theirs in ((tree.tensors(a), tree.tensors(b)) for a, b in pairs):
            if len(ours) != len(theirs) or not all(map(torch.equal, ours, theirs)):
                raise DeclinedError("its batches are no longer the same")
    return 0.0


def synchronise(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class Trace:
    """What the plain steps make of a training in float64: what a proposal's steps must make of it too.

    The steps are of the first `samples` of each batch, or of all of it, at rates that differ; each is taken so many
    `times`, in turn.
    """

    def __init__(self, training: Training, batches: Sequence[Any], samples: int | None = None, times: int = 1) -> None:
        self._training = training
        few = batches if samples is None else [first_of(batch, training, samples) for batch in batches]
        self._batches = [tree.map_tensors(as_double, batch) for batch in few] * times
        self._before = _tensors(shadow_of(training, torch.float64))
        self._after, self._losses = self._steps(_nothing)

    def deviation(self, apply: Callable[[Training], Any]) -> float:
        """How far a proposal is from plain, in parts of a tensor's change. DeclinedError where that is too far."""
        after, losses = self._steps(apply)
        if after.keys() != self._after.keys():
            raise DeclinedError("the optimizer or the model keeps other tensors with it")
        worst = 0.0
        for name, plain in self._after.items():
            apart = apart_of(self._before.get(name), plain, after[name])
            if not apart <= SAME:
                raise DeclinedError(f"it is no longer the same step: '{name}' is {apart:.0e} from plain in float64")
            worst = max(worst, apart)
        for plain_loss, loss in zip(self._losses, losses, strict=True):
            if not abs(loss - plain_loss) <= SAME * abs(plain_loss) + _ROUNDED:
                raise DeclinedError(
                    f"it is no longer the same loss: {loss:.12g}, and {plain_loss:.12g} in the plain step"
                )
        return worst

    def _steps(self, apply: Callable[[Training], Any]) -> tuple[dict[str, Tensor], list[float]]:
        shadow, losses = shadow_of(self._training, torch.float64), []
        apply(shadow)
        with threads_of(shadow):
            for number, batch in enumerate(self._batches):
                for group in shadow.state.optimizer.param_groups:
                    if "lr" in group:  # as float32 has it, which is what a device's kernels read from memory
                        rate = torch.as_tensor(group["lr"] * _RATES[number % len(_RATES)], dtype=torch.float32)
                        group["lr"] = rate if isinstance(group["lr"], Tensor) else rate.item()
                outcome = shadow.take_step(shadow.state, batch, shadow.update, shadow.clip, shadow.guard, shadow.device)
                losses.append(float(outcome.loss))
        return _tensors(shadow), losses


def still(training: Training) -> Training:
    """The same with rates of 0, so that it may take any number of steps on one batch and still compute with numbers."""
    for group in training.state.optimizer.param_groups:
        if "lr" in group:
            group["lr"] = group["lr"] * 0.0
    return training


def first_of(batch: Any, training: Training, samples: int) -> Any:
    """The first samples of a batch, as a batch."""
    count_of = count(*training.update.unpack(batch))
    return cut(batch, count_of, 0, min(samples, count_of))


def _nothing(shadow: Training) -> None:
    """Plain."""


def as_double(value: Tensor) -> Tensor:
    """Floats in float64, anything else as it is."""
    return value.double() if value.is_floating_point() else value


def _tensors(training: Training) -> dict[str, Tensor]:
    """All tensors of a state, by file and name, as they are now."""
    files = training.state.tensors()
    return {f"{file}/{name}": value.detach().clone() for file, own in files.items() for name, value in own.items()}


def apart_of(before: Tensor | None, plain: Tensor, other: Tensor) -> float:
    """The largest difference in parts of the largest change, what float64 can't hold left out."""
    if plain.shape != other.shape or plain.dtype != other.dtype:
        return float("inf")
    if not plain.numel() or torch.equal(plain, other):
        return 0.0
    if not (plain.is_floating_point() or plain.is_complex()):
        return float("inf")
    change = float((plain - before).abs().max()) if before is not None else float(plain.abs().max())
    scale = change + float(plain.abs().max()) * (_ROUNDED / SAME)
    return float((plain - other).abs().max()) / scale if scale else float("inf")
