"""A run that stops at an epoch's end and is resumed ends where the run that did not stop ends: bit for bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gradstep
from gradstep import Request
from tests.invariance.test_textbook import net, samples


class PauseAfter:
    def __init__(self, *epochs: int) -> None:
        self.epochs = epochs

    def on_train_start(self, state: Any, about: Any) -> None:
        self.clock = about.clock

    def on_epoch_end(self, state: Any) -> Request | None:
        return Request.PAUSE if self.clock.epoch(state.step - 1) in self.epochs else None


def fit(out: Path, model: nn.Module | None = None, **changes: Any) -> gradstep.Run:
    arguments: dict[str, Any] = {
        "optimizer": lambda p: torch.optim.Adam(p, lr=0.01),
        "schedule": gradstep.schedules.cosine(warmup="1 epoch"),
        "epochs": 6,
        "batch_size": 16,
        "metrics": ["accuracy"],
        "evaluate_every": "4 steps",
        "log_every": "2 steps",
        "name": "run",
        "quiet": True,
    } | changes
    return gradstep.fit(model or net(), nn.CrossEntropyLoss(), samples(), samples(), samples(), out=out, **arguments)


@pytest.mark.parametrize("checkpoint", [{"every": "1 epoch"}, {"every": "3 steps", "keep": 4}])
@pytest.mark.parametrize("pauses", [(1,), (3,), (1, 2, 4)])
def test_paused_and_resumed_is_as_never_paused(tmp_path: Path, pauses: tuple[int, ...], checkpoint: dict) -> None:
    whole = fit(tmp_path / "whole", checkpoint=checkpoint)
    for _ in pauses:
        paused = fit(tmp_path / "cut", checkpoint=checkpoint, hooks=[PauseAfter(*pauses)], resume=True)
        assert paused.paused == "PauseAfter"
        assert paused.state.step < whole.state.step
    resumed = fit(tmp_path / "cut", checkpoint=checkpoint, resume=True)
    assert resumed.path == paused.path
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    assert (resumed.path / "metrics.jsonl").read_bytes() == (whole.path / "metrics.jsonl").read_bytes()
    assert (resumed.path / "model.safetensors").read_bytes() == (whole.path / "model.safetensors").read_bytes()
    assert resumed.best == whole.best
    assert resumed.history == [json.loads(line) for line in (whole.path / "metrics.jsonl").read_text().splitlines()]


def test_early_stopping_counts_across_a_resume(tmp_path: Path) -> None:
    changes = {"patience": {"falls": 0}, "epochs": 30, "optimizer": lambda p: torch.optim.SGD(p, lr=3.0)}
    whole = fit(tmp_path / "whole", evaluate_every="1 epoch", **changes)
    assert whole.stopped
    fit(tmp_path / "cut", evaluate_every="1 epoch", hooks=[PauseAfter(1)], **changes)
    resumed = fit(tmp_path / "cut", evaluate_every="1 epoch", resume=True, **changes)
    assert (resumed.state.step, resumed.stopped) == (whole.state.step, whole.stopped)
    assert (resumed.path / "metrics.jsonl").read_bytes() == (whole.path / "metrics.jsonl").read_bytes()


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    run = fit(tmp_path)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    again = fit(tmp_path, resume=True)
    assert again.path == run.path
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
    for name, value in run.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name


def test_other_data_is_refused(tmp_path: Path) -> None:
    fit(tmp_path, hooks=[PauseAfter(2)])
    inputs, targets = samples()
    with pytest.raises(gradstep.errors.ChangedError, match="training samples: 70 -> 60"):
        gradstep.fit(
            net(), nn.CrossEntropyLoss(), (inputs[:60], targets[:60]), optimizer=lambda p: torch.optim.Adam(p, lr=0.01),
            epochs=6, batch_size=16, out=tmp_path, resume=True, quiet=True,
        )  # fmt: skip
