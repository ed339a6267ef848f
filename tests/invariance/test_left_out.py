"""A step that is left out changes nothing at all: weights, what the optimizer keeps, and buffers are as before it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import gradstep
from tests.killing import Net


def tensors(state: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield from state.model.state_dict().items()
    for number, slots in enumerate(state.optimizer.state.values()):
        yield from ((f"{name} {number}", each) for name, each in slots.items())


class Watch:
    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, state: Any, outcome: Any) -> None:
        self.seen.append({name: each.clone() for name, each in tensors(state)})


def criterion(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """No number for a batch of two, which is each epoch's last."""
    return nn.functional.cross_entropy(outputs, targets) * (float("nan") if len(targets) == 2 else 1.0)


def test_a_step_left_out_changes_no_weight_no_slot_and_no_buffer() -> None:
    inputs, targets = torch.randn(12, 64, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 10
    watch = Watch()
    run = gradstep.fit(
        Net(), criterion, (inputs, targets), optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        batch_size=5, epochs=3, on_nonfinite="skip", hooks=[watch], quiet=True,
    )  # fmt: skip
    assert run.state.left_out == [2, 5, 8]
    for step in run.state.left_out:
        for name, value in watch.seen[step].items():
            assert torch.equal(value, watch.seen[step - 1][name]), f"step {step + 1}: {name}"
