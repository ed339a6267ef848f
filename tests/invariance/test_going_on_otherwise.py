"""What a resume was allowed to change stays changed: through a rewind, a kill, a pause; the same bits by any way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gradstep
from gradstep import Request, checkpoint
from gradstep.errors import ChangedError, DivergedError
from gradstep.finite import Guard
from tests.invariance.test_killed import DieAfter

STEPS = 4  # in an epoch


class Net(nn.Module):
    def __init__(self, drop: float = 0.2, act: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), act(), nn.Dropout(drop), nn.Linear(8, 2))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layers(inputs)
        return out


class PauseAt:
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, state: Any, outcome: Any) -> Request | None:
        return Request.PAUSE if state.step == self.step else None


def train(out: Path, lr: float = 0.01, model: nn.Module | None = None, **more: Any) -> gradstep.Run:
    """Three epochs of four steps."""
    torch.manual_seed(0)
    made = Net() if model is None else model
    torch.manual_seed(1)
    data = torch.randn(40, 6), torch.randint(0, 2, (40,))
    given = {"epochs": 3, "log_every": "1 step", "metrics": ["accuracy"], "monitor": "valid/loss"} | more
    criterion = given.pop("criterion", nn.CrossEntropyLoss())
    optimizer = given.pop("optimizer", lambda p: torch.optim.SGD(p, lr=lr, momentum=0.9))
    return gradstep.fit(made, criterion, data, data, optimizer=optimizer, batch_size=10, out=out, name="run",
                        quiet=True, **given)  # fmt: skip


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the loss of one step nan, in every process of the run."""

    def make(at: int) -> None:
        real = Guard.lets

        def lets(self: Guard, state: Any, outcome: Any) -> bool:
            if state.step == at:
                outcome.loss = outcome.loss * float("nan")
            return real(self, state, outcome)

        monkeypatch.setattr(Guard, "lets", lets)

    return make


def same(one: gradstep.Run, other: gradstep.Run) -> None:
    assert one.path is not None
    assert other.path is not None
    assert (one.path / "metrics.jsonl").read_bytes() == (other.path / "metrics.jsonl").read_bytes()
    for name, value in one.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], value), name


def test_a_rewind_does_not_undo_what_was_allowed_to_change(tmp_path: Path, poison: Any) -> None:
    runs = {}
    for policy in ("skip", "rewind"):
        train(tmp_path / policy, hooks=[PauseAt(5)])
        poison(6)
        changed = {"allow_changes": True, "lr": 0.5, "on_nonfinite": policy, "checkpoint": "3 epochs"}
        runs[policy] = train(tmp_path / policy, resume=True, **changed)
    same(runs["skip"], runs["rewind"])
    assert [row["what"] for row in runs["rewind"].history if row["kind"] == "changed"] == ["the learning rate"]
    assert runs["rewind"].history[-1]["step"] == 3 * STEPS


def test_a_rewind_keeps_the_start_of_the_epoch_by_which_a_run_was_made_longer(tmp_path: Path, poison: Any) -> None:
    runs = {}
    for policy in ("skip", "rewind"):
        train(tmp_path / policy, epochs=2)
        poison(9)
        runs[policy] = train(tmp_path / policy, resume=True, on_nonfinite=policy)
    same(runs["skip"], runs["rewind"])
    assert [row["step"] for row in runs["rewind"].history if row["kind"] == "start"] == [0, STEPS, 2 * STEPS]


def test_killed_right_after_a_change_was_allowed_the_run_goes_on_as_what_it_became(tmp_path: Path) -> None:
    train(tmp_path / "cut", hooks=[PauseAt(5)])
    dies_at = DieAfter(6)
    with pytest.raises(ChangedError, match="learning rate"):
        train(tmp_path / "cut", resume=True, lr=0.5)
    child_dies(tmp_path / "cut", dies_at)
    run = train(tmp_path / "cut", resume=True, lr=0.5)
    train(tmp_path / "whole", hooks=[PauseAt(5)])
    same(run, train(tmp_path / "whole", resume=True, lr=0.5, allow_changes=True))


def child_dies(out: Path, hook: Any) -> None:
    import os

    child = os.fork()
    if child == 0:
        try:
            train(out, resume=True, lr=0.5, allow_changes=True, hooks=[hook])
        finally:
            os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_a_rewind_from_the_last_step_goes_on_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device, where the answer is read after the step was counted."""
    real = Guard.lets

    def late(self: Guard, state: Any, outcome: Any) -> bool:
        if state.step in state.left_out:
            return real(self, state, outcome)
        outcome.spoiled = torch.tensor(float(state.step == 3 * STEPS - 1))
        return True

    monkeypatch.setattr(Guard, "lets", late)
    run = train(tmp_path, on_nonfinite="rewind", checkpoint="2 steps")
    assert (run.state.step, run.state.left_out) == (3 * STEPS, [3 * STEPS - 1])
    assert [row["step"] for row in run.history if row["kind"] == "left_out"] == [3 * STEPS]


def test_a_metric_may_begin_at_infinity(tmp_path: Path) -> None:
    class Worst:
        def __init__(self) -> None:
            self.reset()

        def reset(self) -> None:
            self.worst = torch.tensor(-torch.inf)

        def update(self, outputs: Any, targets: Any) -> None:
            self.worst = torch.maximum(self.worst, outputs.max())

        def compute(self) -> torch.Tensor:
            return self.worst

    whole = train(tmp_path / "whole", metrics=[Worst()])
    train(tmp_path / "cut", metrics=[Worst()], hooks=[PauseAt(6)])
    same(whole, train(tmp_path / "cut", metrics=[Worst()], resume=True))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": Net(drop=0.9)}, r"Dropout\(p=0.2, inplace=False\) -> Dropout\(p=0.9"),
        ({"model": Net(act=nn.Tanh)}, r"ReLU\(\) -> Tanh\(\)"),
        ({"criterion": nn.CrossEntropyLoss(label_smoothing=0.1)}, "label_smoothing: 0.0 -> 0.1"),
        (
            {"model": Net().requires_grad_(False), "optimizer": lambda p: torch.optim.SGD(p, lr=0.01)},
            "nothing to train",
        ),
    ],
)
def test_another_model_or_criterion_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    train(tmp_path, hooks=[PauseAt(5)])
    with pytest.raises(gradstep.errors.UsageError, match=said):
        train(tmp_path, resume=True, **changes)


def test_the_best_of_another_metric_is_not_compared(tmp_path: Path) -> None:
    train(tmp_path, hooks=[PauseAt(5)])
    run = train(tmp_path, resume=True, monitor="valid/accuracy", allow_changes=True)
    accuracies = [row["valid/accuracy"] for row in run.history if row["kind"] == "valid" and row["step"] > 5]
    assert run.best is not None
    assert run.best.value == max(accuracies)


def test_a_run_that_patience_ended_goes_on_where_another_patience_is_allowed(tmp_path: Path) -> None:
    given: dict[str, Any] = {"lr": 3.0, "epochs": 20, "patience": {"falls": 0}}
    assert train(tmp_path, **given).stopped
    run = train(tmp_path, resume=True, allow_changes=True, **given | {"patience": None})
    assert (run.stopped, run.state.step) == (None, 20 * STEPS)


def test_fewer_steps_than_are_done_are_refused_whatever_is_allowed(tmp_path: Path) -> None:
    train(tmp_path, hooks=[PauseAt(6)])
    with pytest.raises(ChangedError, match="6 steps are done, and the run is to have 4"):
        train(tmp_path, resume=True, epochs=1, allow_changes=True)


def test_a_pause_reads_no_best(tmp_path: Path) -> None:
    """Which may be large, or damaged: this step is saved all the same."""

    class Damage:
        def on_train_batch_end(self, state: Any, outcome: Any) -> None:
            if state.step == 6:
                folder = tmp_path / "0001-run" / "checkpoints"
                for file in checkpoint.at(folder, STEPS).glob("optimizer*"):
                    file.write_bytes(b"")

    run = train(tmp_path, hooks=[Damage(), PauseAt(7)], checkpoint={"every": "1 epoch", "keep": 1})
    assert run.paused == "PauseAt"
    assert checkpoint.steps(run.path / "checkpoints")[-1] == 7


def test_what_an_evaluation_dies_of_is_noted_at_the_step_that_was_made(tmp_path: Path) -> None:
    class Boom:
        def on_epoch_end(self, state: Any) -> None:
            raise ValueError("boom")

    with pytest.raises(ValueError, match="boom") as raised:
        train(tmp_path, hooks=[Boom()])
    assert f"gradstep: step {STEPS} (epoch 1, batch {STEPS - 1}) failed; its details" in raised.value.__notes__[0]


def test_after_three_deaths_of_nan_the_way_that_is_advised_is_open(tmp_path: Path, poison: Any) -> None:
    poison(5)
    for _ in range(3):
        with pytest.raises(DivergedError, match="loss of step 6"):
            train(tmp_path, resume=True)
    with pytest.raises(DivergedError, match="3 times"):
        train(tmp_path, resume=True)
    run = train(tmp_path, resume=True, on_nonfinite="skip")
    assert run.state.left_out == [5]
    assert not (run.path / "failure.json").exists()
