"""One optimizer step: streams, gradient, update. The model's draws belong to (seed, step) and to nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradstep.keys import key, seed_model
from gradstep.schedules import Rate
from gradstep.state import TrainState
from gradstep.update import Outcome, Update


def step(state: TrainState, batch: Any, update: Update, rate: Rate | None, device: torch.device) -> Outcome:
    """Trains on one batch. The order of these lines is the contract's; nothing waits for the device."""
    inputs, targets = update.unpack(batch)
    if rate is not None:
        set_rates(state, rate)
    seed_model(device, key(state.seed, "model", index=state.step))
    state.optimizer.zero_grad()
    outcome = update.backward(inputs, targets, step=state.step + 1)
    state.optimizer.step()
    state.step += 1
    state.samples += outcome.samples
    return outcome


def closure_step(state: TrainState, batch: Any, update: Update, rate: Rate | None, device: torch.device) -> Outcome:
    """The same for an optimizer that asks for the loss several times, as LBFGS does: the same draws each time.

    The outcome is that of the first evaluation, before any update, as it is for other optimizers.
    """
    inputs, targets = update.unpack(batch)
    if rate is not None:
        set_rates(state, rate)
    outcomes: list[Outcome] = []

    def closure() -> Tensor:
        seed_model(device, key(state.seed, "model", index=state.step))
        state.optimizer.zero_grad()
        outcomes.append(update.backward(inputs, targets, step=state.step + 1))
        return outcomes[-1].loss

    state.optimizer.step(closure)  # type: ignore[arg-type]  # torch's stub wants floats, its code takes tensors
    state.step += 1
    state.samples += outcomes[0].samples
    return outcomes[0]


def set_rates(state: TrainState, rate: Rate) -> None:
    """The learning rates of the coming step."""
    put_rates(state, rates_at(state, rate))


def put_rates(state: TrainState, rates: list[float]) -> None:
    """One rate into each of the optimizer's groups."""
    for group, value in zip(state.optimizer.param_groups, rates, strict=True):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(value)  # in place: a captured or compiled step reads this tensor
        else:
            group["lr"] = value


def rates_at(state: TrainState, rate: Rate | None) -> list[float]:
    """The learning rates that step number `state.step` runs at, one per group."""
    if rate is None:
        return [float(group["lr"]) for group in state.optimizer.param_groups if "lr" in group]
    return [rate(state.step, base) for base in state.base_rates]
