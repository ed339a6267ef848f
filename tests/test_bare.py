"""A step without torch's wrappers is the optimizer's own, and whoever listens is still told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradstep.data import order
from gradstep.data.feed import refuse_non_finite
from gradstep.data.sources import rows
from gradstep.errors import DataError
from gradstep.optim import bare
from gradstep.update.engine import run_backward

KINDS = [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad]


def net(kind: Any) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    return model, kind(model.parameters(), lr=0.1)


def train(model: nn.Module, optimizer: Any, step: Any, zero: Any, backward: Any) -> list[Tensor]:
    for number in range(4):
        zero(optimizer)
        backward(model(torch.full((2, 3), float(number))).square().sum())
        step(optimizer)
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_are_those_of_the_optimizers_own_step(kind: Any) -> None:
    ours = train(*net(kind), bare.step, bare.zero_grad, run_backward)
    theirs = train(*net(kind), lambda o: o.step(), lambda o: o.zero_grad(), Tensor.backward)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_torchs_wrappers_are_taken_off(kind: Any) -> None:
    own, _ = bare._unwrapped(type(net(kind)[1]).step)
    assert own is not None
    assert "torch/optim/optimizer.py" not in own.__code__.co_filename


@pytest.mark.parametrize("register", ["register_step_pre_hook", "register_step_post_hook"])
def test_hooks_are_called(register: str) -> None:
    told: list[str] = []
    _, optimizer = net(torch.optim.SGD)
    getattr(optimizer, register)(lambda *_: told.append("step"))
    bare.step(optimizer)
    assert told == ["step"]


def test_a_step_on_the_object_and_a_zero_grad_of_a_class_are_called() -> None:
    told: list[str] = []

    class Own(torch.optim.SGD):
        def zero_grad(self, set_to_none: bool = True) -> None:
            told.append("zero_grad")

    _, optimizer = net(Own)
    optimizer.step = lambda: told.append("step")
    bare.zero_grad(optimizer)
    bare.step(optimizer)
    assert told == ["zero_grad", "step"]


def test_a_scheduler_of_torchs_counts_the_steps() -> None:
    _, optimizer = net(torch.optim.SGD)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    bare.step(optimizer)
    scheduler.step()  # warns where no step of the optimizer was seen, and warnings are errors here


def test_a_profiler_finds_its_label() -> None:
    _, optimizer = net(torch.optim.SGD)
    with torch.profiler.profile() as profile:
        bare.step(optimizer)
    assert "Optimizer.step#SGD.step" in {event.key for event in profile.key_averages()}


def test_equal_draws_are_ordered_as_a_stable_sort_orders_them(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = np.array([5, 1, 5, 0, 1, 5] * 40, dtype=np.uint64)
    monkeypatch.setattr(np.random, "Philox", lambda key: type("Few", (), {"random_raw": lambda _, n: draws[:n]})())
    assert order.permutation(len(draws), 0, 0).tolist() == np.argsort(draws, kind="stable").tolist()


def test_numbers_whose_sum_overflows_are_numbers_and_one_that_is_none_is_found() -> None:
    large = torch.full((4, 3), 3e38)
    refuse_non_finite((large, torch.zeros(4)), None, "train")
    large[2, 1] = torch.inf
    with pytest.raises(DataError, match="sample 2 of a batch holds inf"):
        refuse_non_finite((large, torch.zeros(4)), None, "train")


@pytest.mark.parametrize("make", [
    lambda: torch.randn(6, 2, 3, 3).to(memory_format=torch.channels_last), lambda: torch.randn(6, 4),
    lambda: torch.randn(4, 6).t(), lambda: torch.arange(6, dtype=torch.int32).to(torch.uint16),
])  # fmt: skip
def test_rows_are_those_of_indexing_in_its_memory_format_too(make: Any) -> None:
    tensor, numbers = make(), torch.tensor([4, 0, 5])
    expected = tensor[numbers]
    found = rows(tensor, numbers)
    assert torch.equal(found.to(torch.float64), expected.to(torch.float64))
    assert found.stride() == expected.stride()
