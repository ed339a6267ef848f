"""A disk that is full, broken, slow or gone, memory that is full, a record that was damaged: all through `fit`.

Whatever happens, the error says what, the last checkpoint is whole, and a resume ends bit for bit where a run ends that
nothing happened to.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradstep
from gradstep import checkpoint, disk, retention
from gradstep.errors import CheckpointError, GradstepError, OutOfMemoryError, OutputError, StorageError
from tests.failing_disk import FailingOs, broken
from tests.killing import in_a_child, what_is_left

LAST = 8


def data() -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    return torch.randn(16, 3, generator=draws), torch.randint(0, 2, (16,), generator=draws)


def train(out: Path, hooks: Any = (), criterion: Any = nn.functional.cross_entropy, **more: Any) -> gradstep.Run:
    """Two epochs of four steps, with a checkpoint every two."""
    torch.manual_seed(0)
    given: dict[str, Any] = {
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        "batch_size": 4,
        "epochs": 2,
        "log_every": "1 step",
        "checkpoint": "2 steps",
        "quiet": True,
        "name": "run",
        "resume": True,
    } | more
    return gradstep.fit(nn.Linear(3, 2), criterion, data(), data(), out=out, hooks=hooks, **given)


@pytest.fixture(scope="module")
def untroubled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("whole")
    train(out)
    return what_is_left(out / "0001-run")


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def newest_is_whole(run: Path) -> int | None:
    """The step of the newest checkpoint, which must be valid; None where there is none yet."""
    if not (run / "checkpoints").is_dir():
        return None
    retention.sweep(run / "checkpoints")  # as a resume does first
    saved, rejected = checkpoint.newest(run / "checkpoints")
    assert rejected == []
    return saved.step if saved else None


def ends_as_untroubled(out: Path, untroubled: dict[str, str], **more: Any) -> None:
    train(out, **more)
    assert what_is_left(sorted(out.glob("0*-run"))[-1]) == untroubled


class At:
    """Does something after a step."""

    def __init__(self, step: int, do: Any) -> None:
        self.step, self.do = step, do

    def on_train_batch_end(self, state: Any, outcome: Any) -> None:
        if state.step == self.step:
            self.do()


# Errors of the disk

KINDS = [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT]


@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize("number", KINDS, ids=[errno.errorcode[number] for number in KINDS])
def test_whichever_operation_of_a_run_fails_a_resume_ends_as_if_none_had(
    number: int, for_good: bool, tmp_path: Path, untroubled: dict[str, str]
) -> None:
    with broken(FailingOs()) as counting:
        train(tmp_path / "counted")
    total = len(counting.done)
    assert total > 200
    kind = KINDS.index(number) * 2 + for_good
    for at in range(kind, total, 61):  # each kind at other operations
        out = tmp_path / str(at)
        said: GradstepError | None = None
        with broken(FailingOs(at, number, for_good)):
            try:
                train(out)
            except GradstepError as error:
                said = error
        assert said is not None or not for_good, f"operation {at} of {total} and all after failed, and nobody noticed"
        assert said is None or os.strerror(number) in str(said)
        # Else nothing was trained yet; or all was written, and the best could not be read.
        assert type(said) in (type(None), StorageError, OutputError, CheckpointError)
        assert not isinstance(said, OutputError) or not list(out.rglob("step-*"))
        assert not isinstance(said, CheckpointError) or "can't be read" in str(said)
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("gradstep")]
        for run in out.glob("0*-run"):
            newest_is_whole(run)
        ends_as_untroubled(out, untroubled)


class FailsInTheBackground(FailingOs):
    """Every fsync of the thread that writes checkpoints fails from some moment on."""

    failing = False

    def fsync(self, descriptor: int) -> None:
        if self.failing and threading.current_thread() is not threading.main_thread():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        os.fsync(descriptor)


def test_what_goes_wrong_in_the_background_is_raised_at_the_next_step(
    tmp_path: Path, untroubled: dict[str, str]
) -> None:
    steps: list[int] = []

    class Watch:
        def on_train_batch_end(self, state: Any, outcome: Any) -> None:
            steps.append(state.step)
            stand_in.failing = state.step >= 4
            while state.step == 5 and list((tmp_path / "0001-run" / "checkpoints").glob(".tmp-*")):
                time.sleep(0.01)
            time.sleep(0.05)  # from clearing up to the answer is no time

    with broken(FailsInTheBackground()) as stand_in, pytest.raises(StorageError, match="checkpoint of step 4"):
        train(tmp_path, [Watch()])
    assert steps == [1, 2, 3, 4, 5]
    assert newest_is_whole(tmp_path / "0001-run") == 2
    ends_as_untroubled(tmp_path, untroubled)


class FullForRows(FailingOs):
    """A disk that takes half of one row, and no more."""

    def write(self, descriptor: int, content: Any) -> int:
        if b'"step": 5,' in bytes(content[:12]):
            os.write(descriptor, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.write(descriptor, content)


def test_a_row_that_the_disk_takes_half_of_ends_the_run_and_is_cut_off(
    tmp_path: Path, untroubled: dict[str, str]
) -> None:
    with broken(FullForRows()), pytest.raises(StorageError, match=r"a row of .*0001-run.*No space left.*resume"):
        train(tmp_path)
    run = tmp_path / "0001-run"
    assert newest_is_whole(run) == 4
    ends_as_untroubled(tmp_path, untroubled)


@pytest.mark.parametrize("which", ["0001-run", "0001-run/checkpoints", "."])
def test_a_folder_that_is_deleted_meanwhile_ends_the_run_and_is_not_made_anew(tmp_path: Path, which: str) -> None:
    out, ended_at = tmp_path / "runs", []

    class Watch:
        def on_train_batch_end(self, state: Any, outcome: Any) -> None:
            ended_at.append(state.step)

    def delete() -> None:
        (out / which).rename(tmp_path / "gone")  # at once, whatever is being written into it
        shutil.rmtree(tmp_path / "gone", ignore_errors=True)

    with pytest.raises(StorageError, match=r"the folder is gone|No such file") as raised:
        train(out, [At(3, delete), Watch()])
    assert raised.value.exit_code == 7
    assert ended_at[-1] <= 6  # the save at step 4, and the one after it at the latest
    assert not (out / which).exists()


def test_a_system_s_limit_for_files_is_as_a_full_disk(tmp_path: Path, untroubled: dict[str, str]) -> None:
    """From within the run the process may write nothing longer: its writes really fail."""

    def limited() -> None:
        with pytest.raises(StorageError, match="File too large"):
            train(tmp_path, [At(3, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600)))])

    assert in_a_child(limited) == 0
    assert newest_is_whole(tmp_path / "0001-run") in (0, 2)  # that of step 2 was being written, or there
    ends_as_untroubled(tmp_path, untroubled)


def test_a_disk_that_is_really_full_ends_the_run_and_room_lets_it_go_on(
    tmp_path: Path, untroubled: dict[str, str]
) -> None:
    out = tmp_path / "disk"
    out.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", out], capture_output=True).returncode:
        pytest.skip("only root may mount a file system; the limit above is tested instead")
    try:

        def fill() -> None:
            descriptor = os.open(out / "other", os.O_WRONLY | os.O_CREAT)
            with suppress(OSError):
                while os.write(descriptor, bytes(512)):
                    pass
            os.close(descriptor)

        with pytest.raises(StorageError, match=r"No space left|MB are free: make room") as raised:
            train(out, [At(3, fill)])
        assert raised.value.exit_code == 7
        assert newest_is_whole(out / "0001-run") in (0, 2)
        with pytest.raises(StorageError):  # still full
            train(out)
        (out / "other").unlink()
        ends_as_untroubled(out, untroubled)
    finally:
        subprocess.run(["umount", out], check=True)


# A disk that is only slow, and a clock that is wrong


class Slow(FailingOs):
    def fsync(self, descriptor: int) -> None:
        time.sleep(0.02)
        os.fsync(descriptor)


def test_a_disk_slower_than_the_training_slows_it_down_and_nothing_piles_up(tmp_path: Path) -> None:
    behind = []

    class Watch:
        def on_train_batch_end(self, state: Any, outcome: Any) -> None:
            folder = tmp_path / "slow" / "0001-run" / "checkpoints"
            behind.append(state.step - max(checkpoint.steps(folder)))
            assert len(list(folder.glob(".tmp-*"))) <= 1
            assert sum(thread.name.startswith("gradstep") for thread in threading.enumerate()) <= 1

    with broken(Slow()):
        train(tmp_path / "slow", [Watch()], checkpoint="1 step")
    train(tmp_path / "quick", checkpoint="1 step")
    assert len(behind) == LAST
    assert max(behind) == 2  # the step before this one is being written, and the one before that is there
    assert what_is_left(tmp_path / "slow" / "0001-run") == what_is_left(tmp_path / "quick" / "0001-run")


def test_neither_the_folder_for_temporary_files_nor_its_file_system_is_used(
    monkeypatch: pytest.MonkeyPatch, untroubled: dict[str, str], tmp_path: Path
) -> None:
    shared = Path("/dev/shm")  # another file system, where there is one
    out = Path(tempfile.mkdtemp(dir=shared if shared.is_dir() else tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "not there"))
    try:
        with pytest.raises(KeyboardInterrupt):
            train(out, [At(5, _interrupt)])
        ends_as_untroubled(out, untroubled)
    finally:
        shutil.rmtree(out)


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_a_clock_that_jumps_back_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, untroubled: dict[str, str]
) -> None:
    now = iter(range(10**9, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, [At(5, _interrupt)])
    for path in (tmp_path / "0001-run").rglob("*"):
        os.utime(path, (0, next(now)), follow_symlinks=False)
    ends_as_untroubled(tmp_path, untroubled)


# Memory


class Hungry:
    """Cross entropy, until something is to be had that is more than there is."""

    wants: Any = None

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.wants is not None and outputs.requires_grad:
            self.wants()
        return nn.functional.cross_entropy(outputs, targets)


def _of_the_device() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


@pytest.mark.parametrize("wants", [_of_the_device, lambda: torch.empty(2**56), lambda: bytes(2**62)])
def test_memory_that_is_full_says_what_takes_less(tmp_path: Path, wants: Any) -> None:
    train(tmp_path / "whole", criterion=Hungry())
    out, criterion = tmp_path / "cut", Hungry()
    with pytest.raises(OutOfMemoryError, match=r"out of memory \(.*micro_batch=2 takes less") as raised:
        train(out, [At(4, lambda: setattr(criterion, "wants", wants))], criterion)
    assert raised.value.exit_code == 6
    assert newest_is_whole(out / "0001-run") == 4
    assert (out / "0001-run" / "failure.json").exists()
    train(out, criterion=Hungry(), micro_batch=2)  # as it says
    assert not (out / "0001-run" / "failure.json").exists()
    shutil.rmtree(out)
    with pytest.raises(OutOfMemoryError):
        train(out, [At(4, lambda: setattr(criterion, "wants", wants))], criterion)
    ends_as_untroubled(out, what_is_left(tmp_path / "whole" / "0001-run"), criterion=Hungry())


# A record that was damaged


@pytest.fixture
def cut(tmp_path: Path) -> Path:
    """A run that ended at step 5, without a word."""
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, [At(5, _interrupt)])
    return tmp_path / "0001-run"


@pytest.mark.parametrize("tail", [b"", b'{"step": 6, "ep', b"\x00" * 50, b'{"step": 6}\n' * 3])
def test_whatever_stands_behind_the_checkpoint_in_the_record_is_cut_off(
    cut: Path, tail: bytes, untroubled: dict[str, str]
) -> None:
    with open(cut / "metrics.jsonl", "ab") as log:
        log.write(tail)
    ends_as_untroubled(cut.parent, untroubled)


def test_a_record_that_was_changed_before_the_checkpoint_is_refused_and_nothing_is_touched(cut: Path) -> None:
    saved, _ = checkpoint.newest(cut / "checkpoints")
    assert saved is not None
    length, whole = saved.values["log"]["offset"], (cut / "metrics.jsonl").read_bytes()
    for damaged in (
        *(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(0, length, 97)),
        whole[: length - 1],
        b"",
    ):
        (cut / "metrics.jsonl").write_bytes(damaged)
        before = files(cut)
        with pytest.raises(CheckpointError, match=r"metrics.jsonl: .* damaged since") as raised:
            train(cut.parent)
        assert raised.value.exit_code == 4
        assert files(cut) == before


def test_a_finished_run_keeps_its_weights_when_its_record_does_not_let_it_go_on(tmp_path: Path) -> None:
    run = train(tmp_path).path
    assert run is not None
    (run / "metrics.jsonl").write_bytes(b"")
    for more in ({"epochs": 3}, {"resume": run / "checkpoints" / "step-00000006"}):
        before = files(run)
        with pytest.raises(CheckpointError, match="damaged since"):
            train(tmp_path, **more)
        assert files(run) == before


def test_where_no_checkpoint_is_valid_nothing_is_begun_anew_and_nothing_is_touched(cut: Path) -> None:
    for path in (cut / "checkpoints").glob("step-*/*.safetensors"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    before = files(cut)
    with pytest.raises(CheckpointError, match="no checkpoint is valid, and none was touched") as raised:
        train(cut.parent)
    assert raised.value.exit_code == 4
    assert files(cut) == before
    assert isinstance(raised.value, GradstepError)
    assert disk.os is os
