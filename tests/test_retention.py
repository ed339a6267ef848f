"""The newest, the protected and the pinned stay, and nothing that was there for good is lost on the way."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradstep import checkpoint, retention
from gradstep.errors import StorageError
from tests.failing_disk import FailingOs, broken
from tests.test_checkpoint import is_whole, tree, write

FAST = settings(max_examples=15, deadline=None)


def listing(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@FAST
@given(
    st.sets(st.integers(0, 99), max_size=7),
    st.integers(1, 4),
    st.sets(st.integers(0, 99), max_size=3),
    st.sets(st.integers(0, 99), max_size=3),
)
def test_prune_keeps_the_newest_the_protected_and_the_pinned_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, steps: set[int], keep: int, protected: set[int], pinned: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("prune")
    write(folder, *steps)
    for step in pinned:
        (folder / f"step-{step:08d}.pinned").touch()
    retention.prune(folder, retention.kept(folder, keep, protected))
    left = set(sorted(steps)[-keep:]) | (steps & (protected | pinned))
    assert {name for name in listing(folder) if not name.endswith(".pinned")} == {f"step-{step:08d}" for step in left}
    assert all(is_whole(folder, step) for step in left)
    assert retention.pinned(folder) == pinned


def test_whichever_operation_of_pruning_fails_what_is_to_stay_is_whole_and_what_is_there_is_whole(
    tmp_path: Path,
) -> None:
    write(tmp_path, 1, 2, 3)
    with broken(FailingOs()) as counting:
        retention.prune(tmp_path, retention.kept(tmp_path, 1))
    for at in range(len(counting.done)):
        write(tmp_path, 1, 2)
        with broken(FailingOs(at, errno.EIO, for_good=True)), pytest.raises(StorageError, match="Input/output error"):
            retention.prune(tmp_path, retention.kept(tmp_path, 1))
        assert 3 in checkpoint.steps(tmp_path)
        assert all(is_whole(tmp_path, step) for step in checkpoint.steps(tmp_path))
        retention.sweep(tmp_path)
        assert not [name for name in listing(tmp_path) if name.startswith(".")]


def test_no_file_of_a_pruned_checkpoint_goes_before_its_folder_is_out_of_sight_for_good(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3)
    with broken(FailingOs()) as counting:
        retention.prune(tmp_path, retention.kept(tmp_path, 1))
    changes = [name for name in counting.done if name in ("rename", "fsync", "unlink", "rmdir")]
    assert changes[:3] == ["rename", "rename", "fsync"]
    assert set(changes[3:]) == {"unlink", "rmdir"}


@FAST
@given(st.sets(st.integers(0, 20), max_size=6), st.integers(0, 20))
def test_what_is_later_than_where_a_run_goes_on_is_set_aside_and_not_lost(
    tmp_path_factory: pytest.TempPathFactory, steps: set[int], after: int
) -> None:
    folder = tmp_path_factory.mktemp("aside")
    for _ in range(2):  # a second time over what was set aside the first
        write(folder, *steps)
        written = {path.name: tree(path) for path in folder.glob("step-*")}
        retention.set_aside(folder, after)
        assert checkpoint.steps(folder) == sorted(step for step in steps if step <= after)
    for step in steps:
        where = folder / (f"step-{step:08d}" if step <= after else f".abandoned-{step:08d}")
        assert tree(where) == written[f"step-{step:08d}"]


def test_setting_aside_is_on_the_disk_when_it_returns(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3)
    with broken(FailingOs()) as counting:
        retention.set_aside(tmp_path, 1)
        assert counting.done == ["rename", "rename", "open", "fsync", "close"]
        retention.set_aside(tmp_path, 1)
        assert len(counting.done) == 5


def test_what_killed_processes_left_is_swept_away_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, 5)
    for name in (".tmp-00000006-77", ".trash-00000003", ".trash-step-00000004-12", ".abandoned-00000009", "notes"):
        shutil.copytree(checkpoint.at(tmp_path, 5), tmp_path / name)
    (tmp_path / ".tmp-a-link").symlink_to(checkpoint.at(tmp_path, 5))
    (tmp_path / ".tmp-a-file").touch()
    (tmp_path / "step-00000005.pinned").touch()
    retention.sweep(tmp_path)
    assert listing(tmp_path) == {"step-00000005", ".abandoned-00000009", "notes", "step-00000005.pinned"}
    assert is_whole(tmp_path, 5)


def test_one_that_was_to_be_replaced_is_put_back_if_nothing_took_its_place(tmp_path: Path) -> None:
    """Killed between the two renames of a step that is saved a second time."""
    write(tmp_path, 5)
    checkpoint.at(tmp_path, 5).rename(tmp_path / f"{checkpoint.REPLACED}step-00000005")
    retention.sweep(tmp_path)
    assert is_whole(tmp_path, 5)
    shutil.copytree(checkpoint.at(tmp_path, 5), tmp_path / f"{checkpoint.REPLACED}step-00000005")
    before = tree(checkpoint.at(tmp_path, 5))
    retention.sweep(tmp_path)
    assert os.listdir(tmp_path) == ["step-00000005"]
    assert tree(checkpoint.at(tmp_path, 5)) == before


def test_a_folder_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "gone"):
        retention.prune(folder, retention.kept(folder, 1))
        retention.sweep(folder)
        retention.set_aside(folder, 0)
        assert retention.pinned(folder) == set()
