"""Ctrl-C in `fit`, as in a notebook: the run comes back, whole, whatever the signal came into."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gradstep
from gradstep import checkpoint
from gradstep.interrupt import Interruption
from gradstep.optim.averaging import Average
from gradstep.state import module_tensors
from tests.killing import Net, what_is_left

STEPS = 24


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def fit(out: Path | None, model: nn.Module | None = None, **more: Any) -> gradstep.Run:
    draws = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(128, 64, generator=draws), torch.randint(10, (128,), generator=draws)
    torch.manual_seed(0)
    given: dict[str, Any] = {
        "optimizer": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), "batch_size": 16, "steps": STEPS, "ema": 0.9,
        "metrics": ["accuracy"], "evaluate_every": "3 steps", "log_every": "2 steps", "checkpoint": "5 steps",
        "quiet": True, "name": "run", "resume": out is not None,
    }  # fmt: skip
    valid = (inputs[:40], targets[:40])
    return gradstep.fit(
        Net() if model is None else model, nn.CrossEntropyLoss(), (inputs, targets), valid, out=out, **given | more
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("whole")
    fit(out)
    return what_is_left(out / "0001-run")


class AtEachStep:
    """A hook that keeps the model's tensors after each step."""

    def __init__(self) -> None:
        self.seen: dict[int, dict[str, torch.Tensor]] = {}

    def on_train_start(self, state: Any, about: Any) -> None:
        self.on_train_batch_end(state)

    def on_train_batch_end(self, state: Any, outcome: Any = None) -> None:
        self.seen[state.step] = {name: value.clone() for name, value in module_tensors(state.model).items()}


def equal(one: Any, other: Any) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


@contextmanager
def pressed(seconds: float) -> Iterator[None]:
    timer = threading.Timer(seconds, press)
    timer.start()
    try:
        yield
    finally:
        timer.join()


@pytest.mark.parametrize("in_a_folder", [True, False])
def test_whenever_it_comes_the_run_comes_back_and_its_model_is_of_one_step(tmp_path: Path, in_a_folder: bool) -> None:
    """At random moments. Where the run has a place, the model is what was saved there."""
    draw, paused = random.Random(in_a_folder), 0
    fit(tmp_path / "warm")
    began = time.perf_counter()
    fit(tmp_path / "warm again" if in_a_folder else None)
    seconds = time.perf_counter() - began
    for number in range(8):
        watch, out = AtEachStep(), tmp_path / str(number) if in_a_folder else None
        before = signal.signal(signal.SIGINT, lambda *_: None)  # should it come before or after `fit`
        try:
            with pressed(draw.uniform(0, seconds)):
                run = fit(out, hooks=[watch])
        finally:
            signal.signal(signal.SIGINT, before)
        assert run.paused in ("SIGINT", None)
        paused += run.paused is not None
        assert equal(module_tensors(run.model), watch.seen[run.state.step])
        assert all(module.training for module in run.model.modules())  # the mode it was given in
        if out is not None:
            saved, _ = checkpoint.newest(out / "0001-run" / "checkpoints")
            assert saved.step == run.state.step
            assert equal(module_tensors(run.model), saved.tensors["model"])
    assert paused >= 2


def once(number: int) -> Callable[[], None]:
    """Presses at the n-th call."""
    calls = iter(range(1, 10_000))
    return lambda: press() if next(calls) == number else None


@pytest.mark.parametrize("number", [1, 6])
def test_in_the_last_line_of_a_step_it_leaves_no_half_step(
    tmp_path: Path, whole: Any, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The step is counted already, its average is not made. It begins where a checkpoint lies, and so may be cut."""
    update, at = Average.update, once(number)
    monkeypatch.setattr(Average, "update", lambda *given: (at(), update(*given)))
    run = fit(tmp_path)
    assert run.paused == "SIGINT"
    # Where the checkpoint before it is still being written, the step is not cut but finished.
    assert run.state.step in ((number - 1,) if number == 1 else (number - 1, number))
    assert fit(tmp_path).paused is None
    assert what_is_left(tmp_path / "0001-run") == whole


class Counts(Net):
    """Its forward counts, also in an evaluation, which puts the count back. Leaving that is where the signal comes."""

    def __init__(self, at: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.at = at

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return super().forward(inputs)

    def __setattr__(self, name: str, value: Any) -> None:
        heard = isinstance(getattr(signal.getsignal(signal.SIGINT), "__self__", None), Interruption)
        if heard and name == "training" and value and not self.__dict__.get("training", True):
            self.at()
        super().__setattr__(name, value)


def test_where_an_evaluation_puts_back_what_it_changed_nothing_stays_changed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    fit(tmp_path / "whole", Counts(), ema=None)
    expected = what_is_left(tmp_path / "whole" / "0001-run")
    paused = 0
    for number in range(1, 5):
        torch.manual_seed(0)
        run = fit(tmp_path / str(number), Counts(once(number)), ema=None)
        paused += run.paused is not None
        assert all(module.training for module in run.model.modules())
        fit(tmp_path / str(number), Counts(), ema=None)
        assert what_is_left(tmp_path / str(number) / "0001-run") == expected
    assert paused == 4
