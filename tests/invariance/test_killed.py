"""A run killed after any step, in a child process that dies by SIGKILL, and resumed: the same as never killed."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import gradstep
from gradstep import Request
from tests.invariance.test_resume import PauseAfter, fit
from tests.invariance.test_textbook import net, samples


class DieAfter:
    """Kills its own process without a word, where it is told to."""

    def __init__(self, step: int | None = None, at_the_end: bool = False) -> None:
        self.step, self.at_the_end = step, at_the_end

    def on_train_batch_end(self, state: Any, outcome: Any) -> None:
        if state.step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_row(self, row: dict[str, Any]) -> None:
        if self.at_the_end and row["kind"] == "test":
            os.kill(os.getpid(), signal.SIGKILL)


def dies(out: Path, hooks: list[Any], **changes: Any) -> None:
    """`fit` in a child that must be killed."""
    child = os.fork()
    if child == 0:
        try:
            fit(out, hooks=hooks, resume=True, **changes)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the child came to its end"


CADENCES = [
    {"evaluate_every": "2 steps"},  # the best may be within an epoch
    {"evaluate_every": "1 epoch", "checkpoint": {"every": "7 steps", "keep": 1}},
    {"evaluate_every": "3 steps", "checkpoint": {"every": "2 epochs", "keep": 1}, "patience": "2 epochs"},
    {"epochs": None, "steps": 23, "log_every": "4 steps"},  # the end is within an epoch
]


@pytest.mark.parametrize("changes", CADENCES)
@pytest.mark.parametrize("deaths", [(3,), (8, 13), (5, 6, 17), (22,)])
def test_killed_and_resumed_is_as_never_killed(
    tmp_path: Path, changes: dict[str, Any], deaths: tuple[int, ...]
) -> None:
    whole = fit(tmp_path / "whole", **changes)
    for step in deaths:
        if step <= whole.state.step:
            dies(tmp_path / "cut", [DieAfter(step)], **changes)
    resumed = fit(tmp_path / "cut", resume=True, **changes)
    for name in ("metrics.jsonl", "model.safetensors"):
        assert (resumed.path / name).read_bytes() == (whole.path / name).read_bytes(), name
    assert (resumed.best, resumed.stopped) == (whole.best, whole.stopped)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_paused_then_killed_between_the_last_checkpoint_and_the_end(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole")
    fit(tmp_path / "cut", hooks=[PauseAfter(2)])
    dies(tmp_path / "cut", [DieAfter(at_the_end=True)])
    resumed = fit(tmp_path / "cut", resume=True)
    for name in ("metrics.jsonl", "model.safetensors"):
        assert (resumed.path / name).read_bytes() == (whole.path / name).read_bytes(), name


def test_a_pause_in_the_step_that_stops_early_or_is_the_last_does_not_cost_the_test(tmp_path: Path) -> None:
    stopping = {"patience": {"falls": 0}, "evaluate_every": "1 epoch", "epochs": 30,
                "optimizer": lambda p: torch.optim.SGD(p, lr=3.0)}  # fmt: skip
    stopped = fit(tmp_path / "one", hooks=[PauseAfter(*range(3, 30))], **stopping)
    while not stopped.stopped:
        stopped = fit(tmp_path / "one", hooks=[PauseAfter(*range(3, 30))], resume=True, **stopping)
    assert [row["kind"] for row in stopped.history].count("test") == 1
    last = fit(tmp_path / "two", hooks=[PauseAfter(6)])
    assert last.paused is None
    assert last.history[-1]["kind"] == "test"


def test_one_run_has_one_process(tmp_path: Path) -> None:
    class Intrude:
        def on_epoch_end(self, state: Any) -> None:
            with pytest.raises(gradstep.errors.OutputError, match="being trained by another process"):
                fit(tmp_path, resume=True)
            self.tried = True

    hook = Intrude()
    run = fit(tmp_path, hooks=[hook], epochs=1)
    assert hook.tried
    assert fit(tmp_path, resume=True, epochs=1).path == run.path  # it is free again


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 10}, "batch_size: 16 -> 10"),
        ({"seed": 9}, "seed: 0 -> 9"),
        ({"optimizer": lambda p: torch.optim.Adam(p, lr=0.02)}, r"learning rate: \[0.01\] -> \[0.02\]"),
        ({"schedule": None}, "the schedule at step 0"),
        ({"optimizer": lambda p: torch.optim.SGD(p, lr=0.01)}, "of Adam"),
    ],
)
def test_another_run_is_not_gone_on_with_and_the_model_is_left_alone(tmp_path: Path, changes: dict, said: str) -> None:
    fit(tmp_path, hooks=[PauseAfter(2)])
    model, before = net(), net()
    with pytest.raises(gradstep.errors.GradstepError, match=said):
        fit(tmp_path, model=model, resume=True, **changes)
    for name, value in before.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_to_resume_by_name_is_not_to_take_another_s_run(tmp_path: Path) -> None:
    first = fit(tmp_path, name="a", hooks=[PauseAfter(1)])
    second = fit(tmp_path, name="b", resume=True, epochs=1)
    assert first.path != second.path
    assert second.path.name == "0002-b"
    assert fit(tmp_path, name="a", resume=True).path == first.path


def test_a_longer_run_may_go_on_with_a_shorter_one(tmp_path: Path) -> None:
    """Where nothing depends on where the end is, more epochs are more of the same."""
    changes: dict[str, Any] = {"schedule": None, "evaluate_every": "1 epoch"}
    longer = fit(tmp_path / "whole", epochs=4, **changes)
    fit(tmp_path / "cut", epochs=2, **changes)
    dies(tmp_path / "cut", [DieAfter(at_the_end=True)], epochs=4, **changes)
    resumed = fit(tmp_path / "cut", epochs=4, resume=True, **changes)
    assert resumed.best == longer.best
    for name in ("metrics.jsonl", "model.safetensors"):
        assert (resumed.path / name).read_bytes() == (longer.path / name).read_bytes(), name


def test_the_optimizer_comes_back_with_the_rates_it_was_given(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    fit(tmp_path, model=model, optimizer=optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.01


def test_a_source_of_whole_batches_is_not_read_for_an_evaluation_while_it_trains() -> None:
    class Batches:
        def __len__(self) -> int:
            return 1

        def __iter__(self):
            yield samples()

    with pytest.raises(gradstep.errors.RecipeError, match="can't be read for an evaluation"):
        gradstep.fit(
            net(), torch.nn.CrossEntropyLoss(), Batches(), evaluate_train=True, epochs=1, quiet=True,
            optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        )  # fmt: skip


def test_a_stop_within_an_epoch_is_followed_by_a_last_evaluation() -> None:
    class StopAt:
        def on_train_batch_end(self, state: Any, outcome: Any) -> Request | None:
            return Request.STOP if state.step == 7 else None

    run = fit(None, hooks=[StopAt()], evaluate_every="1 epoch")
    assert [(row["kind"], row["step"]) for row in run.history][-3:] == [("valid", 7), ("epoch", 7), ("test", 7)]
