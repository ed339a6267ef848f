"""What of a run is lost or was never saved: it is said, and nothing that is still good is written over."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

import gradstep
from gradstep import Request, checkpoint
from gradstep.errors import CheckpointError, OutOfMemoryError, OutputError
from tests.killing import what_is_left

STEPS, BEST = 12, 2


class PauseAt:
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, state: Any, outcome: Any) -> Request | None:
        return Request.PAUSE if state.step == self.step else None


def fit(out: Path, model: nn.Module | None = None, pause: int | None = None, **more: Any) -> gradstep.Run:
    draws = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(24, 4, generator=draws), torch.randn(24, 4, generator=draws)
    torch.manual_seed(0)
    given: dict[str, Any] = {
        "optimizer": lambda p: torch.optim.SGD(p, lr=5.0), "batch_size": 6, "steps": STEPS, "name": "run",
        "quiet": True, "evaluate_every": "2 steps", "checkpoint": {"every": "3 steps", "keep": 2}, "resume": True,
        "monitor": "valid/loss", "log_every": "1 step", "hooks": [PauseAt(pause)] if pause else [],
    }  # fmt: skip
    model = nn.Linear(4, 4) if model is None else model
    return gradstep.fit(model, nn.MSELoss(), (inputs, targets), (inputs[:8], targets[:8]), out=out, **given | more)


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))


def checkpoint_of(out: Path, step: int) -> Path:
    return checkpoint.at(out / "0001-run" / "checkpoints", step)


def test_the_best_comes_early_here(tmp_path: Path) -> None:
    run = fit(tmp_path)
    assert run.best is not None
    assert run.best.step == BEST
    assert checkpoint.steps(tmp_path / "0001-run" / "checkpoints")[0] == BEST


@pytest.mark.parametrize("pause", [None, 7])
def test_a_run_without_checkpoints_is_not_begun_anew_over_its_record(tmp_path: Path, pause: int | None) -> None:
    fit(tmp_path, pause=pause)
    shutil.rmtree(tmp_path / "0001-run" / "checkpoints")
    before = files(tmp_path)
    with pytest.raises(CheckpointError, match="has made steps and has no checkpoint any more"):
        fit(tmp_path)
    assert files(tmp_path) == before


def test_a_run_that_died_before_its_first_checkpoint_begins(tmp_path: Path) -> None:
    expected = fit(tmp_path / "whole")
    fit(tmp_path / "cut", pause=1)
    run = tmp_path / "cut" / "0001-run"
    shutil.rmtree(run / "checkpoints")
    rows = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(rows[0] + rows[1][:9])  # as it is between the first row and step 0's save
    again = fit(tmp_path / "cut")
    assert torch.equal(again.model.weight, expected.model.weight)
    assert what_is_left(run) == what_is_left(tmp_path / "whole" / "0001-run")


@pytest.mark.parametrize(
    "harm", [shutil.rmtree, lambda path: flip(path / "model.safetensors")], ids=["gone", "flipped"]
)
def test_a_best_that_is_lost_is_said_at_the_start_and_the_run_can_still_come_to_its_end(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    fit(tmp_path, pause=7)
    harm(checkpoint_of(tmp_path, BEST))
    before = files(tmp_path)
    with pytest.raises(CheckpointError, match=r"step-00000002[^\n]*\nIt is the best of .*--allow-changes"):
        fit(tmp_path)
    assert files(tmp_path) == before
    run = fit(tmp_path, allow_changes=True)
    assert run.best is not None
    assert run.best.step > 7
    assert (tmp_path / "0001-run" / "model.safetensors").exists()
    (said,) = [row for row in run.history if row["kind"] == "changed"]
    assert said["what"] == "the best checkpoint"
    assert fit(tmp_path).best == run.best  # and once more nothing is in its way


@pytest.mark.parametrize("step", [BEST, STEPS])
def test_at_its_end_a_run_keeps_its_weights_and_its_record_whatever_checkpoint_is_damaged(
    tmp_path: Path, step: int
) -> None:
    whole = fit(tmp_path)
    flip(checkpoint_of(tmp_path, step) / "model.safetensors")
    before = files(tmp_path)
    if step == BEST:  # the weights lie in model.safetensors too
        again = fit(tmp_path)
        assert again.best == whole.best
        with whole.chosen(), again.chosen():
            assert torch.equal(again.model.weight, whole.model.weight)
    else:
        with pytest.raises(
            CheckpointError, match=r"is at its end, and its last checkpoint is not whole:\n .*step-00000012"
        ):
            fit(tmp_path)
    assert files(tmp_path) == before


def test_what_was_set_aside_can_be_had_back(tmp_path: Path) -> None:
    """By renaming the checkpoint and the record that was laid beside it."""
    fit(tmp_path, pause=8)
    run = tmp_path / "0001-run"
    record = (run / "metrics.jsonl").read_bytes()
    fit(tmp_path, resume=checkpoint_of(tmp_path, 6), pause=7)
    assert (run / "metrics.jsonl").read_bytes() != record
    aside = run / "checkpoints" / ".abandoned-00000008"
    (run / "checkpoints" / ".abandoned-00000008.metrics.jsonl").rename(run / "metrics.jsonl")
    shutil.rmtree(checkpoint_of(tmp_path, 7))
    aside.rename(checkpoint_of(tmp_path, 8))
    assert (run / "metrics.jsonl").read_bytes() == record
    fit(tmp_path)
    fit(tmp_path / "other")
    assert what_is_left(run) == what_is_left(tmp_path / "other" / "0001-run")


class Unsaved(nn.Linear):
    """Changes what is in no state dict."""

    def __init__(self, what: str) -> None:
        super().__init__(4, 4)
        self.what = what
        self.register_buffer("calls", torch.zeros(()), persistent=what == "saved")

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            if self.what in ("buffer", "saved"):
                self.calls += 1
            elif self.what == "python":
                random.random()
            elif self.what == "numpy":
                numpy.random.rand()
            else:
                torch.rand(())
        return super().forward(inputs)


SAID = {
    "buffer": "a step changes 'calls', which is not saved",
    "python": "a step draws from Python's random",
    "numpy": "a step draws from NumPy's random",
}


@pytest.mark.parametrize("what", ["buffer", "python", "numpy", "saved", "torch"])
def test_what_a_step_changes_and_nobody_saves_is_said_once(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path, Unsaved(what), quiet=False)
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note ") and "a step" in line]
    assert len(notes) == (what in SAID)
    assert all(SAID[what] in note for note in notes)


def test_a_model_of_another_type_is_refused_and_nothing_is_rounded(tmp_path: Path) -> None:
    fit(tmp_path, pause=6)
    before = files(tmp_path)
    other = nn.Linear(4, 4).double()
    weight = other.weight.detach().clone()
    with pytest.raises(CheckpointError, match=r"'bias' was torch.float32 .* is torch.float64 in this Linear"):
        fit(tmp_path, other, forward=lambda model, inputs: model(inputs.double()).float())
    assert torch.equal(other.weight, weight)
    assert files(tmp_path) == before


def test_a_name_that_is_a_number_is_a_name(tmp_path: Path) -> None:
    for name in ("0", "1", "7"):
        fit(tmp_path, name=name, pause=4)
    again = fit(tmp_path, name="1")
    assert again.path == tmp_path / "0002-1"
    assert again.history[0]["step"] == 0
    assert fit(tmp_path, name="7").path == tmp_path / "0003-7"
    assert len(list(tmp_path.glob("0*"))) == 3


def test_a_run_is_no_folder_of_runs(tmp_path: Path) -> None:
    fit(tmp_path, pause=4)
    with pytest.raises(OutputError, match=r"is itself a run.*resume='.*0001-run'"):
        fit(tmp_path / "0001-run")
    assert not list((tmp_path / "0001-run").glob("0*"))


class TooLarge(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and len(inputs) > 3:
            raise torch.OutOfMemoryError("not enough memory")
        return super().forward(inputs)


def test_what_is_advised_where_memory_is_full_is_open_after_three_deaths(tmp_path: Path) -> None:
    def net() -> nn.Module:
        torch.manual_seed(0)
        return TooLarge(4, 4)

    for _ in range(3):
        with pytest.raises(OutOfMemoryError, match="micro_batch=3 takes less"):
            fit(tmp_path, net())
    with pytest.raises(OutOfMemoryError, match=r"failed 3 times.*\n.*\n.*\n.*smaller micro_batch"):
        fit(tmp_path, net())
    run = fit(tmp_path, net(), micro_batch=3)
    assert run.state is not None
    assert run.state.step == STEPS
    assert not (tmp_path / "0001-run" / "failure.json").exists()


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b'{"a": 1, "a": 2}'])
def test_a_plan_that_is_none_is_refused_by_its_name(content: bytes, tmp_path: Path) -> None:
    fit(tmp_path, pause=4)
    (tmp_path / "0001-run" / "plan.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"plan\.json: can't be read"):
        fit(tmp_path)


def test_a_plan_that_a_kill_came_before_is_written_by_the_next(tmp_path: Path) -> None:
    fit(tmp_path, pause=4)
    plan = tmp_path / "0001-run" / "plan.json"
    before = plan.read_bytes()
    plan.unlink()
    fit(tmp_path)
    assert json.loads(plan.read_bytes()) == json.loads(before)


def test_a_record_that_is_a_pipe_keeps_nobody_waiting(tmp_path: Path) -> None:
    fit(tmp_path, pause=4)
    metrics = tmp_path / "0001-run" / "metrics.jsonl"
    metrics.unlink()
    os.mkfifo(metrics)
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: can't be read .it is no regular file"):
        fit(tmp_path)
