"""What is written is on the disk whole, what is read is bounded, and an error is never papered over."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradstep import disk
from gradstep.errors import StorageError
from tests.failing_disk import FailingOs, broken

FAST = settings(max_examples=30, deadline=None)


@FAST
@given(st.lists(st.binary(max_size=40), max_size=6), st.integers(1, 17), st.integers(1, 9), st.booleans())
def test_a_new_file_holds_its_parts_whatever_their_cut_and_however_short_the_writes(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], piece: int, most: int, sized: bool
) -> None:
    path = tmp_path_factory.mktemp("new") / "file"
    whole = b"".join(parts)

    class Short(FailingOs):
        """Takes at most `most` bytes at once, as a disk or a signal may make it do."""

        @staticmethod
        def write(descriptor: int, data: memoryview) -> int:
            assert len(data) <= piece
            return os.write(descriptor, data[:most])

    with pytest.MonkeyPatch.context() as patch, broken(Short()):
        patch.setattr(disk, "_PIECE", piece)
        size, digest = disk.write_new(path, iter(parts), len(whole) if sized else None)
        assert disk.hashed(path) == digest
        assert disk.read(path, len(whole)) == whole
    assert path.read_bytes() == whole
    assert (size, digest) == (len(whole), hashlib.sha256(whole).hexdigest())


def test_a_new_file_is_never_written_over_one_that_is_there_nor_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("there", "link"):
        with pytest.raises(FileExistsError):
            disk.write_new(tmp_path / name, [b"new"])
    assert (tmp_path / "there").read_text() == "old"
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("announced", [2, 4])
def test_parts_that_are_not_as_long_as_announced_are_an_error(announced: int, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=f"3 bytes came and {announced} were announced"):
        disk.write_new(tmp_path / "file", [b"ab", b"c"], announced)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_whichever_operation_of_a_replacement_fails_the_file_is_whole_and_nothing_is_left_beside_it(
    number: int, tmp_path: Path
) -> None:
    path = tmp_path / "weights"
    with broken(FailingOs()) as counting:
        disk.replace(path, b"old")
    assert counting.done.count("fsync") == 2  # the file and its folder
    for at in range(len(counting.done)):
        path.write_bytes(b"old")
        with broken(FailingOs(at, number)) as failing, pytest.raises(StorageError) as raised:
            disk.replace(path, b"new")
        assert str(path) in str(raised.value)
        assert os.strerror(number) in str(raised.value)
        assert path.read_bytes() == (b"new" if "replace" in failing.done[:at] else b"old")
        assert os.listdir(tmp_path) == ["weights"]
        if failing.done[at] == "fsync":  # never tried again: the kernel may have dropped the pages
            assert "fsync" not in failing.done[at + 1 :]
        assert failing.done.count("open") - (failing.done[at] == "open") == failing.done.count("close")


def test_what_can_t_fallocate_is_written_all_the_same_and_a_full_disk_is_found_out_first(tmp_path: Path) -> None:
    with broken(FailingOs()) as counting:
        disk.write_new(tmp_path / "counted", [b"abc"], 3)
    at = counting.done.index("posix_fallocate")
    assert at < counting.done.index("write")
    for number in (errno.EOPNOTSUPP, errno.EINVAL):
        with broken(FailingOs(at, number)):
            disk.write_new(tmp_path / str(number), [b"abc"], 3)
        assert (tmp_path / str(number)).read_bytes() == b"abc"
    with broken(FailingOs(at, errno.ENOSPC)) as failing, pytest.raises(OSError, match="No space left"):
        disk.write_new(tmp_path / "full", [b"abc"], 3)
    assert "write" not in failing.done


def test_a_file_system_that_is_really_full_is_found_out_before_a_byte_is_written(tmp_path: Path) -> None:
    code = f"""
import resource
from pathlib import Path
from gradstep import disk
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    disk.write_new(Path({str(tmp_path / "big")!r}), [bytes(5000)], 5000)
except OSError as error:
    print(error.strerror)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "File too large\n"
    assert (tmp_path / "big").stat().st_size == 0


# Logs.


@FAST
@given(st.binary(max_size=50), st.binary(max_size=20), st.data())
def test_a_log_goes_on_behind_what_is_kept_of_it(
    tmp_path_factory: pytest.TempPathFactory, before: bytes, more: bytes, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("log") / "metrics.jsonl"
    if before:
        path.write_bytes(before)
    keep = data.draw(st.integers(0, len(before)))
    with broken(FailingOs()) as counting:
        log = disk.log_open(path, keep)
        disk.write_all(log, more)
        disk.sync(log)
        disk.close(log)
    assert path.read_bytes() == before[:keep] + more
    cut = keep < len(before)
    assert counting.done.count("ftruncate") == cut
    assert counting.done.count("fsync") == 2 + cut  # the folder, what was appended, and the cut if there was one


def test_a_log_that_is_shorter_than_what_is_to_be_kept_is_an_error_and_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"four")
    open_before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="it has 4 bytes and must have 5 or more"):
        disk.log_open(tmp_path / "log", 5)
    assert (tmp_path / "log").read_bytes() == b"four"
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_a_log_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        disk.log_open(tmp_path / "log", 0)
    assert not (tmp_path / "elsewhere").exists()


# Folders.


def test_one_level_is_made_and_no_vanished_parent(tmp_path: Path) -> None:
    disk.make_folder(tmp_path / "one")
    with pytest.raises(FileExistsError):
        disk.make_folder(tmp_path / "one")
    with pytest.raises(FileNotFoundError):
        disk.make_folder(tmp_path / "gone" / "two")


def test_a_tree_is_removed_with_its_links_and_nothing_that_they_point_at(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("!")
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "file").write_text("x")
    (tree / "folder").symlink_to(outside)
    (tree / "a" / "link").symlink_to(outside / "precious")
    os.mkfifo(tree / "fifo")
    (tmp_path / "link to the tree").symlink_to(outside)
    for path in (tree, tmp_path / "link to the tree", tmp_path / "never there"):
        disk.remove_tree(path)
    disk.remove(tmp_path / "never there")
    assert os.listdir(tmp_path) == ["outside"]
    assert (outside / "precious").read_text() == "!"


# Reading what anybody may have put there.


def odd_files(folder: Path) -> list[str]:
    """Everything that has a name and is no regular file."""
    (folder / "real").write_text("secret")
    (folder / "link").symlink_to(folder / "real")
    (folder / "dangling").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "fifo")
    (folder / "folder").mkdir()
    before = os.getcwd()
    os.chdir(folder)  # a socket's name must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
    os.chdir(before)
    return ["link", "dangling", "fifo", "folder", "socket"]


def test_only_regular_files_are_read_and_none_is_waited_for(tmp_path: Path) -> None:
    open_before = len(os.listdir("/proc/self/fd"))
    for name in odd_files(tmp_path):
        for reading in (
            lambda path: disk.read(path, 100),
            disk.hashed,
            disk.size,
            lambda path: disk.beginning(path, 8),
        ):
            with pytest.raises(OSError, match="it is no regular file"):
                reading(tmp_path / name)
    with pytest.raises(OSError, match="it is no regular file"):
        disk.read(Path("/dev/zero"), 100)
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_a_file_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(10 * 2**30)

    class NoReading(FailingOs):
        @staticmethod
        def read(descriptor: int, size: int) -> bytes:
            raise AssertionError

    with broken(NoReading()), pytest.raises(OSError, match="it has 10737418240 bytes and may have 1000 at most"):
        disk.read(tmp_path / "sparse", 1000)
    assert disk.size(tmp_path / "sparse") == 10 * 2**30
    assert disk.beginning(tmp_path / "sparse", 8) == (bytes(8), 10 * 2**30)


def test_a_file_that_becomes_shorter_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100))

    class Truncating(FailingOs):
        @staticmethod
        def read(descriptor: int, size: int) -> bytes:
            os.truncate(path, 10)
            return os.read(descriptor, size)

    with broken(Truncating()), pytest.raises(OSError, match="shorter while it was read"):
        disk.hashed(path)


def test_a_folder_is_listed_up_to_a_bound_and_never_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in "cab":
        (tmp_path / "folder" / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    assert disk.names(tmp_path / "folder", 3) == ["a", "b", "c"]
    with pytest.raises(OSError, match="more than 2 files"):
        disk.names(tmp_path / "folder", 2)
    with pytest.raises(OSError, match=r"Not a directory|symbolic"):
        disk.names(tmp_path / "link", 3)


def test_the_free_room_is_what_the_system_says(tmp_path: Path) -> None:
    found = os.statvfs(tmp_path)
    assert abs(disk.free(tmp_path) - found.f_bavail * found.f_frsize) < 2**30
