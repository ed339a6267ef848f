"""One optimizer step: streams, gradient, update. The model's draws belong to (seed, step) and to nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradstep.finite import Guard
from gradstep.keys import key, seed_model
from gradstep.optim import bare
from gradstep.optim.clipping import Clip
from gradstep.state import TrainState
from gradstep.update import Outcome, Update


def step(
    state: TrainState, batch: Any, update: Update, clip: Clip | None, guard: Guard, device: torch.device
) -> Outcome:
    """Trains on one batch. The order of these lines is the contract's; only the guard may wait for the device."""
    inputs, targets = update.unpack(batch)
    seed_model(device, key(state.seed, "model", index=state.step))
    scale = begin(state, guard)
    outcome = update.backward(inputs, targets, step=state.step + 1, scale=scale)
    finish(state, outcome, clip, guard)
    done(state, outcome)
    return outcome


def begin(state: TrainState, guard: Guard) -> float:
    """No gradient of the step before is left. What the loss is to be multiplied by."""
    bare.zero_grad(state.optimizer)
    guard.before(state)
    return 1.0 if state.scale is None else state.scale.value


def finish(state: TrainState, outcome: Outcome, clip: Clip | None, guard: Guard) -> None:
    """Updates the weights, unless the gradient is no number."""
    if guard.lets(state, outcome):
        if clip is not None:
            clip(state.trained())
        bare.step(state.optimizer)


def closure_step(
    state: TrainState, batch: Any, update: Update, clip: Clip | None, guard: Guard, device: torch.device
) -> Outcome:
    """The same for an optimizer that asks for the loss several times, as LBFGS does: the same draws each time.

    The outcome is that of the first evaluation, before any update, as it is for other optimizers; it is the one that
    must be finite, since a line search may well look where the loss is not.
    """
    inputs, targets = update.unpack(batch)
    outcomes: list[Outcome] = []

    def closure() -> Tensor:
        seed_model(device, key(state.seed, "model", index=state.step))
        state.optimizer.zero_grad()
        if not outcomes:
            guard.before(state)
        outcomes.append(update.backward(inputs, targets, step=state.step + 1))
        if len(outcomes) == 1:
            guard.lets(state, outcomes[0])
        if clip is not None:
            clip(state.trained())
        return outcomes[-1].loss

    state.optimizer.step(closure)  # type: ignore[arg-type]  # torch's stub wants floats, its code takes tensors
    done(state, outcomes[0])
    return outcomes[0]


def done(state: TrainState, outcome: Outcome) -> None:
    """Counts the step that was made, and averages the weights it left."""
    rates = [group["lr"] for group in state.optimizer.param_groups if "lr" in group]
    # A rate in a tensor is changed in place, and reading it would wait for the device.
    outcome.rates = tuple([rate.detach().clone() if isinstance(rate, Tensor) else rate for rate in rates])
    state.step += 1
    state.samples += outcome.samples
    if state.ema is not None:
        state.ema.update(state.model, state.step)
