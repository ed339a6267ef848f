"""Checkpoints are there whole or not at all, and one that was damaged is never believed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gradstep
from gradstep import checkpoint, retention
from gradstep.errors import CheckpointError, StorageError
from tests.failing_disk import FailingOs, broken

FAST = settings(max_examples=15, deadline=None)
FILES = ["model.safetensors", "optimizer.safetensors", "criterion.safetensors", "state.json", "MANIFEST.json"]


def content(step: int) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Something to save that can be told from any other step's."""
    draw = torch.Generator().manual_seed(step)
    tensors = {
        "model": {"a.weight": torch.randn(3, 4, generator=draw), "n": torch.tensor(step)},
        "optimizer": {"a.weight/exp_avg": torch.randn(3, 4, generator=draw).double()},
        "criterion": {"scale": torch.randn((), generator=draw)},
    }
    return tensors, {"step": step, "standing": {"best": step / 3, "stopped": None}}


def write(folder: Path, *steps: int) -> None:
    for step in steps:
        assert checkpoint.write(folder, step, *content(step)) == checkpoint.at(folder, step)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return torch.equal(one, other) and one.dtype == other.dtype if isinstance(one, Tensor) else bool(one == other)


def is_whole(folder: Path, step: int) -> bool:
    saved = checkpoint.read(checkpoint.at(folder, step))
    return saved.step == step and same(loaded(saved), content(step)[0]) and saved.values == content(step)[1]


def loaded(saved: checkpoint.Saved) -> dict[str, dict[str, Tensor]]:
    return {stem: dict(tensors) for stem, tensors in saved.tensors.items()}


def found_in(folder: Path) -> tuple[int | None, list[str]]:
    """The step of the newest valid checkpoint, and why newer ones were rejected."""
    saved, why = checkpoint.newest(folder)
    return (None if saved is None else saved.step), why


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


dtypes = st.sampled_from(
    [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
)


@FAST
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8), st.tuples(dtypes, st.lists(st.integers(0, 3), max_size=3)), max_size=4
    ),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    ),
    st.integers(0, 10**9),
)
def test_what_is_read_is_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, Any], number: Any, step: int
) -> None:
    folder = tmp_path_factory.mktemp("round")
    tensors = {
        name: torch.randn(shape).mul(9).to(dtype) for name, (dtype, shape) in shapes.items() if "_" not in name[:2]
    }
    path = checkpoint.write(folder, step, {"model": tensors, "optimizer": {}}, {"any": number})
    saved = checkpoint.read(path)
    assert same(loaded(saved), {"model": tensors, "optimizer": {}})
    assert saved.values == {"any": number}
    assert (saved.path, saved.step) == (path, step)
    assert checkpoint.steps(folder) == [step]


def test_tensors_are_saved_by_value_whatever_their_layout(tmp_path: Path) -> None:
    odd = {
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "every second": torch.arange(8.0)[::2],
        "expanded": torch.ones(1, 3).expand(2, 3),
        "channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }
    path = checkpoint.write(tmp_path, 1, {"model": odd, "optimizer": {}}, {})
    assert same(loaded(checkpoint.read(path))["model"], odd)


def test_a_checkpoint_holds_its_files_and_their_sums_and_nothing_else_is_left(tmp_path: Path) -> None:
    write(tmp_path, 7)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000007"]
    folder = checkpoint.at(tmp_path, 7)
    assert {path.name for path in folder.iterdir()} == set(FILES)
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    assert manifest["step"] == 7
    for name in FILES[:-1]:
        found = (folder / name).read_bytes()
        assert manifest["files"][name] == [len(found), hashlib.sha256(found).hexdigest()]


# Damage.


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_anywhere_is_rejected_by_the_files_name_and_the_one_before_is_used(
    name: str, tmp_path: Path
) -> None:
    write(tmp_path, 5, 10)
    path = checkpoint.at(tmp_path, 10) / name
    whole = path.read_bytes()

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, 8 * len(whole) - 1))
    def rejected(bit: int) -> None:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError) as raised:
            checkpoint.read(checkpoint.at(tmp_path, 10))
        if name != "MANIFEST.json":  # a manifest that is wrong may accuse any file
            assert name in str(raised.value)
        assert found_in(tmp_path) == (5, [str(raised.value)])

    rejected()
    path.write_bytes(whole)
    assert found_in(tmp_path) == (10, [])


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_longer_or_missing_is_rejected_by_name(name: str, tmp_path: Path) -> None:
    write(tmp_path, 5, 10)
    path = checkpoint.at(tmp_path, 10) / name
    whole = path.read_bytes()
    shorter = {0, 1, len(whole) // 2, len(whole) - (2 if name == "MANIFEST.json" else 1)}  # but for its last newline
    for damaged in [*(whole[:length] for length in sorted(shorter)), whole + b"0", None]:
        path.unlink() if damaged is None else path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=name):
            checkpoint.read(checkpoint.at(tmp_path, 10))
        found, (why,) = found_in(tmp_path)
        assert found == 5
        assert name in why
    assert is_whole(tmp_path, 5)


@FAST
@given(st.sets(st.integers(0, 30), min_size=1, max_size=5), st.data())
def test_the_newest_valid_one_is_used_whichever_are_damaged(
    tmp_path_factory: pytest.TempPathFactory, steps: set[int], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("some")
    write(folder, *steps)
    damaged = data.draw(st.sets(st.sampled_from(sorted(steps))))
    for step in damaged:
        (checkpoint.at(folder, step) / "model.safetensors").write_bytes(b"")
    before = tree(folder)
    if damaged == steps:
        with pytest.raises(CheckpointError, match="no checkpoint is valid, and none was touched") as raised:
            checkpoint.newest(folder)
        assert all(f"step-{step:08d}" in str(raised.value) for step in steps)
    else:
        newest = max(steps - damaged)
        found, why = found_in(folder)
        assert found == newest
        assert len(why) == len([step for step in damaged if step > newest])
        assert is_whole(folder, newest)
    assert tree(folder) == before


def edit(folder: Path, change: Any) -> None:
    path = folder / "MANIFEST.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m["files"].pop("model.safetensors"), "it lists "),
        (lambda m: m["files"].pop("state.json"), "it lists "),
        (lambda m: m["files"].update({"../../secret": [0, ""]}), "it lists "),
        (lambda m: m["files"].update({"more.safetensors": [0, ""]}), "it lists "),
        (lambda m: m["files"].update({"model.safetensors": "?"}), "no size and SHA-256 of model.safetensors"),
        (lambda m: m.pop("files"), r"MANIFEST\.json: can't be read \(it lists no files"),
        (lambda m: m.update(files=[]), r"MANIFEST\.json: can't be read \(it lists no files"),
        (
            lambda m: m.update(format=2),
            "format 2, and this gradstep reads 3. Finish this run with the gradstep that wrote",
        ),
        (lambda m: m.update(format=4), "format 4, and this gradstep reads 3. Read it with the gradstep that wrote it"),
        (lambda m: m.update(format=True), "format True, and"),
        (lambda m: m.update(step=11), "MANIFEST"),
    ],
)
def test_a_manifest_that_is_not_a_checkpoints_is_rejected(change: Any, said: str, tmp_path: Path) -> None:
    write(tmp_path, 10)
    edit(checkpoint.at(tmp_path, 10), change)
    with pytest.raises(CheckpointError, match=said):
        checkpoint.read(checkpoint.at(tmp_path, 10))


def test_a_file_that_the_manifest_does_not_list_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path, 10)
    (checkpoint.at(tmp_path, 10) / "notes.txt").touch()
    with pytest.raises(CheckpointError, match=r"holds 'notes\.txt', which its MANIFEST\.json does not list"):
        checkpoint.read(checkpoint.at(tmp_path, 10))


def test_a_folder_renamed_to_another_step_is_not_taken_for_that_step(tmp_path: Path) -> None:
    write(tmp_path, 5)
    checkpoint.at(tmp_path, 5).rename(checkpoint.at(tmp_path, 50))
    with pytest.raises(CheckpointError):
        checkpoint.newest(tmp_path)


# Which there are.


def test_none_at_all_is_none_and_no_error(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) == (None, [])
    assert checkpoint.newest(tmp_path / "not there") == (None, [])
    assert checkpoint.steps(tmp_path / "not there") == []


def test_leftovers_and_other_files_are_not_counted(tmp_path: Path) -> None:
    write(tmp_path, 5)
    for name in (
        ".tmp-00000010-77",
        ".trash-00000003-77",
        ".abandoned-00000009",
        "step-1",
        "step-000000005",
        "step-\N{ARABIC-INDIC DIGIT FIVE}0000000",
        "step-00000010.bak",
        "notes",
    ):
        shutil.copytree(checkpoint.at(tmp_path, 5), tmp_path / name)
    assert checkpoint.steps(tmp_path) == [5]
    assert found_in(tmp_path) == (5, [])
    retention.prune(tmp_path, retention.kept(tmp_path, 1))
    assert is_whole(tmp_path, 5)


def test_a_temporary_folder_of_the_same_name_is_not_mixed_in(tmp_path: Path) -> None:
    left = tmp_path / f".tmp-00000005-{os.getpid()}"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    (left / "odd").write_bytes(b"")
    write(tmp_path, 5)
    assert is_whole(tmp_path, 5)
    assert not (checkpoint.at(tmp_path, 5) / "odd").exists()


def test_one_that_is_there_is_replaced_whole_as_often_as_need_be_and_leaves_nothing_behind(tmp_path: Path) -> None:
    for seed in (1, 2, 3, 4):
        tensors, numbers = content(seed)
        if seed % 2:
            del tensors["criterion"]
        path = checkpoint.write(tmp_path, 5, tensors, numbers)
        saved = checkpoint.read(path)
        assert same(loaded(saved), tensors)
        assert saved.values == numbers
    assert [each.name for each in tmp_path.iterdir()] == ["step-00000005"]


# Where nothing can be written.


def test_a_file_where_the_folder_should_be_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("not a folder")
    with pytest.raises(StorageError, match=r"the checkpoint of step 5 could not be written to .*checkpoints"):
        checkpoint.write(tmp_path / "checkpoints", 5, *content(5))
    assert (tmp_path / "checkpoints").read_text() == "not a folder"


def test_when_the_disk_takes_no_more_the_ones_before_are_intact_and_no_half_one_is_left(tmp_path: Path) -> None:
    write(tmp_path, 5)
    before = tree(tmp_path)
    code = f"""
import resource, torch
from pathlib import Path
from gradstep import checkpoint, disk
from gradstep.errors import StorageError
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
tensors = {{"model": {{"a": torch.zeros(100_000)}}, "optimizer": {{}}}}
for step in (5, 10):
    try:
        checkpoint.write(Path({str(tmp_path)!r}), step, tensors, {{}})
    except StorageError as error:
        print(error)
try:
    disk.replace(Path({str(tmp_path / "model.safetensors")!r}), bytes(9999))
except StorageError as error:
    print(error)
"""
    (tmp_path / "model.safetensors").write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said = done.stdout.splitlines()
    assert [line.split(" could not be written")[0] for line in said] == [
        "the checkpoint of step 5",
        "the checkpoint of step 10",
        f"'{tmp_path / 'model.safetensors'}'",
    ]
    assert "Earlier checkpoints are as they were" in said[0]
    assert tree(tmp_path) == before | {"model.safetensors": b"old"}
    assert is_whole(tmp_path, 5)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def every_way_to_fail() -> list[tuple[int, bool]]:
    """Kinds of error: the disk is full, breaks, or breaks for good."""
    return [(errno.ENOSPC, False), (errno.EIO, False), (errno.EIO, True)]


@pytest.mark.parametrize(("number", "for_good"), every_way_to_fail())
@pytest.mark.parametrize("again", [False, True], ids=["a new step", "the same step again"])
def test_whichever_operation_fails_earlier_checkpoints_are_as_they_were_and_the_next_save_works(
    number: int, for_good: bool, again: bool, tmp_path: Path
) -> None:
    old, new = 5, 5 if again else 10
    with broken(FailingOs()) as counting:
        write(tmp_path, old)
        first = len(counting.done)
        write(tmp_path, new)
    operations = counting.done[first:]
    assert len(operations) > 30
    shutil.rmtree(checkpoint.at(tmp_path, new))
    write(tmp_path, old)
    for at in range(len(operations)):
        said = None
        with broken(FailingOs(at, number, for_good)) as failing:
            try:
                write(tmp_path, new)
            except StorageError as error:
                said = str(error)
        if said is None:  # it was there for good; what failed is clearing up after it
            assert "rename" in failing.done[:at]
        else:
            assert f"the checkpoint of step {new} could not be written to '{tmp_path}'" in said
            assert os.strerror(number) in said
        if for_good:  # nothing could be put back by this process: the next one does
            retention.sweep(tmp_path)
        assert is_whole(tmp_path, old)
        assert not list(tmp_path.glob(".tmp-*"))
        if number == errno.EIO and failing.done[at] == "fsync" and not for_good:
            assert failing.done[at + 1 :].count("fsync") == 0  # a file whose fsync failed is dead
        write(tmp_path, new)
        assert is_whole(tmp_path, new)
        if not again:
            shutil.rmtree(checkpoint.at(tmp_path, new))


def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    write(tmp_path, 5)

    class Full(FailingOs):
        @staticmethod
        def statvfs(path: Path) -> Any:
            return SimpleNamespace(f_bavail=1, f_frsize=512)

    with broken(Full()) as full, pytest.raises(StorageError, match=r"needs 0\.0 MB and 0\.0 MB are free: make room"):
        write(tmp_path, 10)
    assert full.done == []
    assert is_whole(tmp_path, 5)


def test_a_folder_that_has_vanished_is_not_made_anew(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"step 5 could not be written to .*gone' \(the folder is gone"):
        checkpoint.write(tmp_path / "gone", 5, *content(5))
    assert not (tmp_path / "gone").exists()


def test_what_must_be_there_before_the_checkpoint_is_made_durable_after_its_files_and_before_its_name(
    tmp_path: Path,
) -> None:
    seen = []

    def before_commit() -> None:
        (temporary,) = tmp_path.glob(".tmp-*")
        seen.append({path.name for path in temporary.iterdir()})
        assert checkpoint.steps(tmp_path) == []

    checkpoint.write(tmp_path, 5, *content(5), before_commit=before_commit)
    assert seen == [set(FILES)]
    assert is_whole(tmp_path, 5)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "the log"), StorageError("the log"), KeyboardInterrupt()])
def test_what_goes_wrong_with_that_goes_through_and_there_is_no_checkpoint(
    error: BaseException, tmp_path: Path
) -> None:
    write(tmp_path, 5)
    before = tree(tmp_path)

    def before_commit() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        checkpoint.write(tmp_path, 10, *content(10), before_commit=before_commit)
    assert raised.value is error
    assert tree(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


def test_the_numbers_are_bounded_when_they_are_written_as_when_they_are_read(tmp_path: Path) -> None:
    tensors, _ = content(5)
    with pytest.raises(StorageError, match=r"state\.json would have 64\d{6} bytes, and 64000000 are the most"):
        checkpoint.write(tmp_path, 5, tensors, {"a": "x" * 64_000_000})
    with pytest.raises(ValueError, match="not JSON compliant"):
        checkpoint.write(tmp_path, 5, tensors, {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_only_what_is_asked_for_is_loaded(tmp_path: Path) -> None:
    write(tmp_path, 5)
    saved = checkpoint.read(checkpoint.at(tmp_path, 5))
    assert set(saved.tensors["model"]) == {"a.weight", "n"}
    assert saved.tensors["model"]["n"] == 5
    assert checkpoint.numbers(tmp_path, 5) == saved.values


# In a run.


def train(out: Path, **more: Any) -> gradstep.Run:
    """Three epochs of four steps."""
    torch.manual_seed(0)
    data = torch.randn(16, 3), torch.randint(0, 2, (16,))
    return gradstep.fit(
        nn.Linear(3, 2),
        nn.CrossEntropyLoss(),
        data,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        batch_size=4,
        out=out,
        quiet=True,
        **{"epochs": 3} | more,
    )


class Began:
    """Remembers at which step each process began."""

    def __init__(self, kill_at: int | None = None) -> None:
        self.steps, self.kill_at = list[int](), kill_at

    def on_train_start(self, state: Any, about: Any) -> None:
        self.steps.append(state.step)

    def on_train_batch_end(self, state: Any, outcome: Any) -> None:
        if state.step == self.kill_at:
            raise KeyboardInterrupt


def killed(out: Path, at: int, **more: Any) -> Path:
    with pytest.raises(KeyboardInterrupt):
        train(out, hooks=[Began(kill_at=at)], **more)
    return out / "latest" / "checkpoints"


def test_a_resume_passes_over_a_damaged_checkpoint_and_ends_bitwise_the_same(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole")
    folder = killed(tmp_path / "run", 11)
    assert checkpoint.steps(folder) == [4, 8]
    (folder / "step-00000008" / "optimizer.safetensors").write_bytes(b"")
    began = Began()
    run = train(tmp_path / "run", resume=True, hooks=[began])
    assert began.steps == [4]
    assert same(dict(run.model.state_dict()), dict(whole.model.state_dict()))
    assert run.history == whole.history


def test_a_resume_with_no_valid_checkpoint_is_an_error_and_touches_nothing(tmp_path: Path) -> None:
    folder = killed(tmp_path, 11)
    for step in checkpoint.steps(folder):
        (folder / f"step-{step:08d}" / "state.json").write_bytes(b"{}")
    before = tree(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint is valid"):
        train(tmp_path, resume=True)
    assert tree(tmp_path) == before


def test_a_resume_without_any_checkpoint_begins_at_step_0(tmp_path: Path) -> None:
    folder = killed(tmp_path, 1)
    shutil.rmtree(folder / "step-00000000")
    began = Began()
    train(tmp_path, resume=True, hooks=[began])
    assert began.steps == [0]


@pytest.mark.parametrize("at", [1, 3, 4, 5, 8, 12])
def test_killed_at_any_step_and_resumed_a_run_leaves_the_same_weights_and_record(at: int, tmp_path: Path) -> None:
    whole = train(tmp_path / "whole")
    killed(tmp_path / "run", at)
    run = train(tmp_path / "run", resume=True)
    assert same(dict(run.model.state_dict()), dict(whole.model.state_dict()))
    assert run.history == whole.history


@pytest.mark.parametrize("every", ["3 steps", "5 steps", "7 steps"])
def test_checkpoints_that_fall_within_epochs_cost_a_killed_run_no_more_than_they_must(
    every: str, tmp_path: Path
) -> None:
    whole = train(tmp_path / "whole", epochs=6)
    killed(tmp_path / "run", 23, epochs=6, checkpoint=every)
    began = Began()
    run = train(tmp_path / "run", resume=True, hooks=[began], epochs=6, checkpoint=every)
    last = max(range(0, 23, int(every.split()[0])))
    assert began.steps == [last]
    assert same(dict(run.model.state_dict()), dict(whole.model.state_dict()))
    assert run.history == whole.history


def test_the_only_checkpoint_to_go_on_from_being_damaged_is_an_error_and_no_new_beginning(tmp_path: Path) -> None:
    folder = killed(tmp_path, 11, checkpoint={"every": "3 steps", "keep": 1})
    (only,) = checkpoint.steps(folder)
    for step in (only,):
        (folder / f"step-{step:08d}" / "model.safetensors").write_bytes(b"")
    before = tree(tmp_path)
    with pytest.raises(CheckpointError):
        train(tmp_path, resume=True, checkpoint={"every": "3 steps", "keep": 1})
    assert tree(tmp_path) == before
