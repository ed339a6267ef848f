"""`gradstep resume` as a user meets it: goes on, goes on longer, refuses what is another run, says what has changed."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradstep
from gradstep import checkpoint, cli
from gradstep.errors import ChangedError, CheckpointError
from tests.killing import what_is_left

MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 3))
    def forward(self, x):
        return self.layers(x)

def pair(seed):
    return torch.randn(16, 4, generator=torch.Generator().manual_seed(seed)), torch.arange(16) % 3

train, other = pair(0), pair(1)
fewer = tuple(part[:13] for part in train)
"""
RECIPE = """
data: {train: "mine:train", valid: 0.25}
model: {class: "mine:Net"}
criterion: CrossEntropyLoss
batch_size: 4
epochs: 4
optimizer: {name: SGD, lr: 0.1, momentum: 0.9}
log_every: 1 step
checkpoint: {every: 1 epoch, keep: 9}
"""
PER_EPOCH = 3
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def type_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Types a command in a folder of its own: `(exit code, standard output, standard error)`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MODULE)
    (tmp_path / "net.yaml").write_text(RECIPE)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = list(sys.path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "path", list(before))
        monkeypatch.setattr(sys, "argv", ["gradstep", *arguments])
        sys.modules.pop("mine", None)  # a new process would read it again
        try:
            cli.main()
            code = 0
        except SystemExit as left:
            code = int(left.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def rows(run: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if row["kind"] == kind]


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def whole(type_: Command, *settings: str) -> dict[str, str]:
    """What a run leaves that went through, in a folder of its own."""
    assert type_("train", "net.yaml", *settings, "--out", "whole")[0] == 0
    left = what_is_left(Path("whole/0001-net"))
    shutil.rmtree("whole")
    return left


def cut(type_: Command, *settings: str) -> Path:
    """A run that was interrupted after its second epoch."""
    assert type_("train", "net.yaml", *settings, "--interrupt-at", "2")[0] == 3
    return max(Path("runs").glob("0*-net"))


# Going on


def test_without_a_word_the_newest_run_goes_on(type_: Command) -> None:
    first, second = cut(type_), cut(type_, "seed=1")
    before = files(first)
    code, out, err = type_("resume")
    assert (code, err) == (0, "")
    assert f"run       {second}" in out
    assert "resumed   after step 6, epoch 2" in out
    assert files(first) == before
    assert what_is_left(second) == whole(type_, "seed=1")
    assert type_("resume", "1")[0] == 0
    assert what_is_left(first) == whole(type_)


@pytest.mark.parametrize("ended", [True, False], ids=["at its end", "interrupted"])
def test_more_epochs_make_the_run_that_was_as_long_from_the_start(type_: Command, ended: bool) -> None:
    if ended:
        assert type_("train", "net.yaml")[0] == 0
    else:
        cut(type_)
    run = Path("runs/0001-net")
    code, out, err = type_("resume", "net", "epochs=8")
    assert (code, err) == (0, "")
    assert "changed   the number of steps in all: 12 -> 24 (the run is made longer" in out
    assert what_is_left(run) == whole(type_, "epochs=8")
    assert rows(run, "changed") == []
    assert "epochs: 8" in (run / "recipe.yaml").read_text()
    assert type_("resume")[0] == 0  # the recipe is the run's own now: nothing has changed


def test_a_run_whose_schedule_depends_on_its_length_is_made_longer_only_as_another_run(type_: Command) -> None:
    cut(type_, "schedule=cosine")
    run = Path("runs/0001-net")
    before = files(run)
    code, _, err = type_("resume", "net", "epochs=8")
    assert code == 2
    assert "a schedule depends on the run's length" in err
    assert "--allow-changes" in err
    assert files(run) == before
    code, out, err = type_("resume", "net", "epochs=8", "--allow-changes")
    assert (code, err) == (0, "")
    assert "changed   the number of steps in all: 12 -> 24" in out
    (noted, *more) = [row for row in rows(run, "changed") if row["what"] == "the number of steps in all"]
    assert (noted["step"], noted["then"], noted["now"], more) == (6, 12, 24, [])
    assert rows(run, "train")[-1]["step"] == 24


def test_a_checkpoint_that_is_named_is_where_it_goes_on_and_later_ones_are_set_aside(type_: Command) -> None:
    assert type_("train", "net.yaml")[0] == 0
    run = Path("runs/0001-net")
    expected = what_is_left(run)
    code, out, err = type_("resume", "runs/0001-net/checkpoints/step-00000003")
    assert (code, err) == (0, "")
    assert "resumed   after step 3, epoch 1" in out
    assert what_is_left(run) == expected
    assert checkpoint.steps(run / "checkpoints") == [0, 3, 6, 9, 12]
    aside = [f".abandoned-{step:08d}" for step in (6, 9, 12)]
    assert sorted(path.name for path in (run / "checkpoints").glob(".abandoned-*")) == [
        *aside, ".abandoned-00000012.metrics.jsonl"
    ]  # fmt: skip


def test_a_checkpoint_that_is_named_and_damaged_is_an_error_and_no_other_takes_its_place(type_: Command) -> None:
    run = cut(type_)
    damaged = run / "checkpoints" / "step-00000003" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    before = files(run)
    code, _, err = type_("resume", "runs/0001-net/checkpoints/step-00000003")
    assert code == 4
    assert "step-00000003/model.safetensors" in err
    assert files(run) == before
    code, _, err = type_("resume", "runs/0001-net/checkpoints/step-00000004")
    assert code == 2
    assert "has no checkpoint of step 4. There are those of steps 0, 3, 6" in err
    assert files(run) == before


def test_a_finished_run_says_so_and_nothing_is_changed(type_: Command) -> None:
    assert type_("train", "net.yaml")[0] == 0
    before = files(Path("runs"))
    code, out, err = type_("resume")
    assert (code, err) == (0, "")
    assert "already finished at step 12; nothing to do." in out
    assert files(Path("runs")) == before


@pytest.mark.parametrize("how", [shutil.move, shutil.copytree])
def test_a_run_goes_on_wherever_its_folder_was_taken(type_: Command, how: Any) -> None:
    run, elsewhere = cut(type_), Path("else where/ü")
    elsewhere.mkdir(parents=True)
    how(run, elsewhere / "mine")
    code, out, err = type_("resume", str(elsewhere / "mine"))
    assert (code, err) == (0, "")
    assert "changed" not in out
    assert what_is_left(elsewhere / "mine") == whole(type_)
    if run.exists():  # what was copied is a run of its own
        assert checkpoint.steps(run / "checkpoints")[-1] == 6


# Changes

CHANGES = {
    "optimizer.lr=0.01": "the learning rate: [0.1] -> [0.01] (every step is another)",
    "optimizer.momentum=0.5": "what SGD is given, momentum: 0.9 -> 0.5 (every step is another)",
    "batch_size=3": "batch_size: 4 -> 3 (every batch is another)",
    "seed=5": "seed: 0 -> 5 (every random draw is another",
    "data.train=mine:other": "the content of the data behind the training part: ",
    "data.train=mine:fewer": "the number of training samples: 12 -> ",
    "log_every=2 steps": "log_every: 1 -> 2 (the metrics file is another)",
    "clip=1.0": "clip: none -> ",
}


@pytest.mark.parametrize("setting", CHANGES)
def test_a_change_is_refused_by_what_it_is_and_allowed_it_is_in_force(type_: Command, setting: str) -> None:
    run = cut(type_)
    before = files(run)
    code, _, err = type_("resume", "1", setting)
    assert code == 2
    assert f"\n  {CHANGES[setting]}" in err
    assert "--allow-changes" in err
    assert files(run) == before
    code, out, err = type_("resume", "1", setting, "--allow-changes")
    assert (code, err) == (0, "")
    assert f"changed   {CHANGES[setting]}" in out
    noted = rows(run, "changed")
    assert noted
    assert {row["step"] for row in noted} == {6}
    later = [row for row in rows(run, "train") if row["step"] > 6]
    assert {row["lr"] for row in later} == {0.01 if "lr" in setting else 0.1}
    assert later[-1]["step"] == (16 if "batch_size" in setting else 12)
    assert type_("resume")[0] == 0  # it is what the recipe says now


def test_a_run_made_shorter_than_it_is_is_refused_whatever_is_allowed(type_: Command) -> None:
    run = cut(type_)
    code, _, err = type_("resume", "1", "epochs=1")
    assert code == 2
    assert "the number of steps in all: 12 -> 3 (6 steps are done)" in err
    code, _, err = type_("resume", "1", "epochs=1", "--allow-changes")
    assert code == 2
    assert "6 steps are done, and the run is to have 3. Give it more epochs or steps" in err
    assert not (run / "model.safetensors").exists()


def test_a_recipe_that_was_edited_by_hand_is_a_change(type_: Command) -> None:
    run = cut(type_)
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text.replace("lr: 0.1", "lr: 0.2"))
    code, _, err = type_("resume")
    assert code == 2
    assert "the learning rate: [0.1] -> [0.2]" in err
    (run / "recipe.yaml").write_text(text)
    assert type_("resume")[0] == 0
    assert what_is_left(run) == whole(type_)


def test_a_word_that_is_no_key_is_refused_and_the_recipe_stays(type_: Command) -> None:
    run = cut(type_)
    before = files(run)
    code, _, err = type_("resume", "1", "epoch=8")
    assert code == 2
    assert "Did you mean 'epochs'?" in err
    assert files(run) == before


def test_what_changed_around_the_run_is_said_and_stops_nobody(type_: Command) -> None:
    run = cut(type_)
    with open("mine.py", "a") as source:
        source.write("# and more\n")
    torch.set_num_threads(2)
    code, out, err = type_("resume")
    assert (code, err) == (0, "")
    assert "changed   threads: 1 -> 2 (sums are added in another order: the same to rounding, not bit for bit)" in out
    assert "changed   mine.py: " in out
    assert "(changed since: gradstep can't tell whether a step is another)" in out
    assert rows(run, "changed") == []


# The same from Python


def fit(out: Path, rate: float = 0.1, **more: Any) -> gradstep.Run:
    torch.manual_seed(0)
    draws = torch.Generator().manual_seed(0)
    data: tuple[Tensor, Tensor] = torch.randn(16, 4, generator=draws), torch.arange(16) % 3
    given: dict[str, Any] = {
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=rate), "epochs": 4, "batch_size": 4,
        "log_every": "1 step", "checkpoint": {"every": "2 steps", "keep": 20}, "name": "run", "quiet": True,
    } | more  # fmt: skip
    return gradstep.fit(nn.Linear(4, 3), nn.CrossEntropyLoss(), data, data, out=out, **given)


def test_from_python_a_checkpoint_can_be_named_too(tmp_path: Path) -> None:
    run = fit(tmp_path).path
    assert run is not None
    expected = what_is_left(run)
    for named in (run / "checkpoints" / "step-00000006", str(run / "checkpoints" / "step-00000000")):
        assert fit(tmp_path, resume=named).path == run
        assert what_is_left(run) == expected
    (run / "checkpoints" / "step-00000006" / "state.json").write_text("{}")
    before = files(run)
    with pytest.raises(CheckpointError, match=r"step-00000006/state\.json"):
        fit(tmp_path, resume=run / "checkpoints" / "step-00000006")
    assert files(run) == before


def test_from_python_a_change_is_refused_and_allowed_by_its_keyword(tmp_path: Path) -> None:
    run = fit(tmp_path, epochs=2).path
    assert run is not None
    before = files(run)
    with pytest.raises(ChangedError, match=r"\[0.1\] -> \[0.05\]") as raised:
        fit(tmp_path, 0.05, resume=True)
    assert raised.value.exit_code == 2
    assert files(run) == before
    fit(tmp_path, 0.05, epochs=4, resume=True, allow_changes=True)
    assert {row["step"]: row["lr"] for row in rows(run, "train")} == {
        step: 0.1 if step <= 8 else 0.05 for step in range(1, 17)
    }


# What is kept


def test_what_was_pinned_and_what_is_kept_for_good_outlasts_a_run_that_keeps_one(tmp_path: Path) -> None:
    class Pin:
        """As somebody would by `touch`, once the checkpoint is there."""

        def on_save_checkpoint(self, state: Any, path: Path) -> None:
            if path.name == "step-00000003":
                path.with_name(path.name + ".pinned").touch()
            if state.step >= 9 and self.dies:
                raise KeyboardInterrupt

        def __init__(self, dies: bool) -> None:
            self.dies = dies

    keeping = {"checkpoint": {"every": "1 step", "keep": 1, "keep_every": "5 steps"}, "monitor": "valid/loss"}
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, hooks=[Pin(True)], **keeping)
    resumed_at = checkpoint.steps(tmp_path / "0001-run" / "checkpoints")[-1]
    run = fit(tmp_path, hooks=[Pin(False)], resume=True, **keeping)
    assert run.best is not None
    assert run.path is not None
    folder = run.path / "checkpoints"
    expected = {3, 5, 10, 15, 16, resumed_at}
    bests = {checkpoint.numbers(folder, step)["standing"]["best_step"] for step in expected}  # what each would need
    assert run.best.step in bests
    assert set(checkpoint.steps(folder)) == (expected | bests) - {None}


def test_keeping_one_keeps_an_older_best_beside_it_through_a_resume(tmp_path: Path) -> None:
    rising = iter(range(1, 100))
    metric = {"rising": lambda outputs, targets: torch.tensor(float(next(rising)))}
    given: dict[str, Any] = {
        "metrics": metric, "monitor": {"name": "valid/rising", "mode": "min"},
        "checkpoint": {"every": "1 epoch", "keep": 1},
    }  # fmt: skip
    first = fit(tmp_path, epochs=2, **given)
    assert first.best is not None
    run = fit(tmp_path, epochs=4, resume=True, **given)
    assert run.best == first.best
    assert run.path is not None
    kept = checkpoint.steps(run.path / "checkpoints")
    assert {run.best.step, 16} <= set(kept)
    chosen = checkpoint.read(checkpoint.at(run.path / "checkpoints", run.best.step)).tensors["model"]
    with run.chosen():
        assert all(torch.equal(chosen[name], value) for name, value in run.model.state_dict().items())
