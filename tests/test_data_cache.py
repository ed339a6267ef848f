"""The cache of decoded images: it changes no bit, survives kills and damage, stays in its bounds, and can be seen."""

from __future__ import annotations

import errno
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gradstep import data
from gradstep.data import Feed, Options, Reading, cache, open_data, shelf
from gradstep.data.places import cache_folder
from gradstep.errors import DataError
from tests.failing_disk import FailingOs, broken
from tests.test_cli import gradstep

__all__ = ["gradstep"]  # the fixture

COUNT = 24


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the cache; whatever takes any time is worth keeping, however lately it was changed."""
    folder = tmp_path / "kept" / "images"
    monkeypatch.setenv("GRADSTEP_CACHE", str(folder.parent))
    monkeypatch.setattr(cache, "_WORTH", 0.0)
    monkeypatch.setattr(cache, "_RECENT", -(10**18))
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A CSV of noise: 24 grey images of 6×5, two classes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    draws = np.random.default_rng(0)
    for number in range(COUNT):
        Image.fromarray(draws.integers(0, 256, (6, 5), dtype=np.uint8)).save(folder / f"{number}.png")
    (folder / "x.csv").write_text("file,label\n" + "".join(f"{n}.png,{'ab'[n % 2]}\n" for n in range(COUNT)))
    return folder / "x.csv"


@pytest.fixture
def from_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept in memory."""
    monkeypatch.setattr("gradstep.data.files._KEPT", 0)


@pytest.fixture
def nothing_decoded(monkeypatch: pytest.MonkeyPatch):
    """Called, it makes every decode from then on an error."""

    def refuse(*args, **kwargs):
        raise AssertionError("an image was decoded")

    def from_now_on() -> None:
        monkeypatch.setattr("gradstep.data.look.read_native", refuse)
        monkeypatch.setattr("gradstep.data.files.read_image", refuse)
        monkeypatch.setattr("gradstep.data.files.native_mode", refuse)

    return from_now_on


def batches(source, workers: int = 0) -> list[torch.Tensor]:
    """Two epochs of shuffled batches, inputs and targets one after the other."""
    feed = Feed(source, 5, shuffle=True, seed=3, workers=workers)
    return [tensor for batch in feed.start(0, 2 * feed.steps_per_epoch) for tensor in batch]


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return all(a.dtype == b.dtype and a.equal(b) for a, b in zip(ours, theirs, strict=True))


def without(monkeypatch: pytest.MonkeyPatch, csv: Path, options: Options | None = None):
    with monkeypatch.context() as patch:
        patch.setenv("GRADSTEP_CACHE", "off")
        return open_data(str(csv), options)


def files(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.exists() else []


@pytest.mark.parametrize("room", [0, 2**28], ids=["from disk", "in memory"])
@pytest.mark.parametrize(
    "reading", [Reading(), Reading("RGB"), Reading("F"), Reading("L", size=(3, 4))], ids=["own", "RGB", "F", "resized"]
)
def test_batches_and_fingerprint_are_the_same_without_a_cache_with_a_new_one_and_with_an_old_one(
    kept, photos, monkeypatch, nothing_decoded, reading, room
):
    monkeypatch.setattr("gradstep.data.files._KEPT", room)
    options = Options(images=reading)
    plain = without(monkeypatch, photos, options)
    expected = batches(plain.train)
    cold = open_data(str(photos), options)
    assert len(files(kept)) == 1
    nothing_decoded()
    assert same(batches(cold.train), expected)
    warm = open_data(str(photos), options)
    assert same(batches(warm.train), expected)
    assert same(batches(warm.train, workers=1), expected)
    for splits in (cold, warm):
        assert splits.train.fingerprint == plain.train.fingerprint
        assert splits.train.in_memory == plain.train.in_memory == (room > 0)
        assert splits.train.stamps.equal(plain.train.stamps)
        assert splits.train.sizes == plain.train.sizes
        assert (splits.notes, splits.reading) == (plain.notes, plain.reading)


def test_bad_files_are_told_and_left_out_as_without_a_cache(kept, photos, monkeypatch, from_disk, nothing_decoded):
    (photos.parent / "0.png").unlink()
    (photos.parent / "7.png").write_bytes(b"no image")
    with pytest.raises(DataError) as refused:
        open_data(str(photos))
    assert files(kept) == []  # nothing is kept of what was refused
    skip = Options(on_bad="skip")
    plain, cold = without(monkeypatch, photos, skip), open_data(str(photos), skip)
    assert len(files(kept)) == 1
    nothing_decoded()
    warm = open_data(str(photos), skip)
    assert plain.notes == cold.notes == warm.notes
    assert plain.train.numbers.equal(warm.train.numbers)
    assert plain.train.fingerprint == cold.train.fingerprint == warm.train.fingerprint
    assert same(batches(cold.train), batches(warm.train))
    with pytest.raises(DataError) as again:
        open_data(str(photos))
    assert str(again.value) == str(refused.value)


def test_what_is_bad_for_now_is_not_kept(kept, photos, monkeypatch):
    """A file that can't be opened today may be readable tomorrow, with the same stamp."""
    (photos.parent / "3.png").unlink()
    (photos.parent / "3.png").mkdir()
    open_data(str(photos), Options(on_bad="skip"))
    assert files(kept) == []


def test_another_file_time_or_reading_is_another_cache(kept, photos):
    open_data(str(photos))
    changed = photos.parent / "5.png"
    steps = [
        lambda: os.utime(changed, ns=(0, 10**18)),
        lambda: Image.new("L", (5, 6), 9).save(changed),
        lambda: os.chmod(changed, 0o600),  # its change time tells of contents put back under the old size and time
    ]
    for number, step in enumerate(steps, start=2):
        step()
        source = open_data(str(photos)).train
        assert len(files(kept)) == number
    assert (source.kept[5] == 9).all()
    for number, reading in enumerate(
        [Reading("RGB"), Reading("L", size=(2, 2)), Reading("L", ground="white")], start=5
    ):
        open_data(str(photos), Options(images=reading))
        assert len(files(kept)) == number


def test_the_mode_that_was_found_may_be_said_later_and_only_the_files_own_is_found(kept, photos, nothing_decoded):
    open_data(str(photos), Options(images=Reading("RGB")))
    found = open_data(str(photos))  # these are grey: in RGB they are not what is asked for
    assert (found.reading, len(files(kept))) == (Reading("L"), 2)
    nothing_decoded()
    for reading in (Reading("L"), Reading()):
        again = open_data(str(photos), Options(images=reading))
        assert again.reading == Reading("L")
        assert same(batches(again.train), batches(found.train))


def test_a_file_that_changes_while_it_is_trained_on_is_named_as_ever(kept, photos, from_disk):
    source = open_data(str(photos)).train
    Image.new("L", (5, 6), 9).save(photos.parent / "5.png")
    with pytest.raises(DataError, match=r"5\.png \(line 7\): it is another file than the one that was read"):
        batches(source)


def test_what_was_changed_just_now_what_is_quick_and_what_has_several_sizes_is_not_kept(kept, photos, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(cache, "_RECENT", 2 * 10**9)
        os.utime(photos.parent / "5.png")
        assert open_data(str(photos)).notes == ()
    with monkeypatch.context() as patch:
        patch.setattr(cache, "_WORTH", 60.0)
        assert open_data(str(photos)).notes == ()
    Image.new("L", (9, 9)).save(photos.parent / "20.png")
    assert open_data(str(photos)).notes == ()
    assert files(kept) == []


def test_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("GRADSTEP_DATA", "/elsewhere")
    for value, folder in [("", tmp_path / "gradstep/images"), ("/x", Path("/x/images")), ("OFF", None), ("0", None)]:
        monkeypatch.setenv("GRADSTEP_CACHE", value)
        assert cache_folder() == folder


# Damage


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, bytes, torch.Tensor, data.cache.Place]:
    """One cache, its bytes, its pixels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "_WORTH", 0.0)
        patch.setattr(cache, "_RECENT", -(10**18))
        folder = tmp_path_factory.mktemp("whole")
        draws = np.random.default_rng(1)
        for number in range(5):
            Image.fromarray(draws.integers(0, 256, (3, 4), dtype=np.uint8)).save(folder / f"{number}.png")
        paths = [str(folder / f"{number}.png") for number in range(5)]
        place = cache.Place(folder / "kept", "photos", paths, Reading("L"))
        looked = data.look.look_at_all(paths, Reading("L"), 2**20, place, skip=False)
        (path,) = (folder / "kept").iterdir()
        return path, path.read_bytes(), looked.kept, place


def read_through(path: Path, place: cache.Place) -> list[torch.Tensor]:
    """What is had of a cache, whole and row by row; nothing where it is not believed."""
    found = place.find()
    if found is None:
        return []
    rows = [found.rows.get([number]) for number in range(5)]
    whole = found.whole()
    return [row[0] for row in rows if row is not None] + ([] if whole is None else list(whole))


@settings(max_examples=250)
@given(st.data())
def test_any_byte_that_is_another_is_found(whole, data):
    path, content, pixels, place = whole
    at = data.draw(st.integers(0, len(content) - 1))
    flip = data.draw(st.integers(1, 255))
    path.write_bytes(content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *args, **kwargs: None)
        had = read_through(path, place)
    assert all(any(row.equal(own) for own in pixels) for row in had)
    assert len(had) < 2 * len(pixels)
    assert not path.exists()
    path.write_bytes(content)
    assert len(read_through(path, place)) == 2 * len(pixels)


@settings(max_examples=60)
@given(st.integers(0, 400), st.binary(max_size=80))
def test_a_file_cut_off_or_of_anything_is_not_believed(whole, length, more):
    path, content, _, place = whole
    for bad in (content[: min(length, len(content) - 1)], more, more + content[len(more) :] + b"x"):
        path.write_bytes(bad)
        assert place.find() is None
        assert not path.exists()
    path.write_bytes(content)


@pytest.mark.parametrize("room", [0, 2**28], ids=["from disk", "in memory"])
def test_a_damaged_cache_is_made_anew_with_a_note_and_no_batch_is_another(kept, photos, monkeypatch, room):
    monkeypatch.setattr("gradstep.data.files._KEPT", room)
    expected = batches(open_data(str(photos)).train)
    (path,) = kept.iterdir()
    content = path.read_bytes()
    for bad in (content[:-1], bytes(len(content)), b""):
        path.write_bytes(bad)
        splits = open_data(str(photos))
        assert re.match(rf"the cache of {photos} was damaged \(.*\); its images are decoded anew", splits.notes[0])
        assert same(batches(splits.train), expected)
        assert path.read_bytes() == content


@pytest.mark.parametrize("deed", ["damaged", "cut off"])
def test_damage_in_the_middle_of_a_run_is_said_and_images_are_decoded_again(kept, photos, from_disk, deed):
    source = open_data(str(photos)).train
    expected = batches(source)
    (path,) = kept.iterdir()
    with open(path, "r+b") as file:
        if deed == "damaged":
            file.seek(11 * 30 + 4)
            file.write(b"\0\0\0\0\0\0\0")
        else:
            file.truncate(9 * 30)
    with pytest.warns(UserWarning, match="not as it was written"):
        assert same(batches(source), expected)
    assert not path.exists()
    assert same(batches(source), expected)  # and is not said again


def test_a_reader_keeps_its_file_when_it_is_cleared_or_replaced(kept, photos, from_disk, nothing_decoded):
    source = open_data(str(photos)).train
    expected = batches(source)
    (path,) = kept.iterdir()
    path.unlink()
    nothing_decoded()
    assert same(batches(source), expected)
    path.write_bytes(b"another's")
    assert same(batches(source), expected)


def test_sent_to_a_process_it_is_opened_there_anew_or_done_without(kept, photos, from_disk, monkeypatch):
    source = open_data(str(photos)).train
    expected = batches(source)
    assert same(batches(pickle.loads(pickle.dumps(source))), expected)
    (path,) = kept.iterdir()
    path.unlink()
    with pytest.warns(UserWarning, match="it is gone"):
        assert same(batches(pickle.loads(pickle.dumps(source))), expected)


# Disks, kills, others


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("at", range(8))
def test_whichever_operation_fails_the_run_goes_on_as_without_a_cache(kept, photos, monkeypatch, at, number):
    monkeypatch.setattr(cache, "_FLUSH", 200)
    expected = batches(without(monkeypatch, photos).train)
    with broken(FailingOs(at, number, for_good=True)) as disk:
        splits = open_data(str(photos))
    assert same(batches(splits.train), expected)
    if len(disk.done) > at:  # else there are no more operations than that
        assert len(splits.notes) == 1
        assert f"no cache is kept of {photos}: {kept} can't be written to ({os.strerror(number)})" in splits.notes[0]
    assert same(batches(open_data(str(photos)).train), expected)
    assert len([name for name in files(kept) if name.endswith(".images")]) == 1


def test_a_folder_that_can_t_be_made_is_a_note(photos, tmp_path, kept, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("GRADSTEP_CACHE", str(tmp_path / "file" / "kept"))
    splits = open_data(str(photos))
    assert len(splits.notes) == 1
    assert splits.notes[0].endswith("(Not a directory). GRADSTEP_CACHE=off to do without")


BUILD = """
import os, sys, time
from gradstep.data import cache, open_data
cache._WORTH, cache._RECENT, cache._FLUSH = 0.0, -10**18, 1
wait, add = float(sys.argv[2]), cache.Building.add
def slowly(self, image):
    add(self, image)
    if len(self.sums) == 10 and wait:
        print("at work", flush=True)
        time.sleep(wait)
cache.Building.add = slowly
open_data(sys.argv[1])
print("done", flush=True)
"""


def building(csv: Path, folder: Path, wait: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, str(csv), str(wait)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "GRADSTEP_CACHE": str(folder.parent)},
    )


def test_killed_while_it_is_made_it_is_made_by_the_next_run_and_what_was_left_goes(kept, photos, monkeypatch):
    expected = batches(without(monkeypatch, photos).train)
    process = building(photos, kept, 600)
    assert process.stdout.readline() == "at work\n"
    (part,) = kept.iterdir()
    assert part.name.endswith(".part")
    assert part.stat().st_size == 10 * 30
    assert not shelf.remove_left(part)  # its maker lives
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert same(batches(open_data(str(photos)).train), expected)
    assert [name.endswith(".images") for name in files(kept)] == [True]
    assert same(batches(open_data(str(photos)).train), expected)


def test_two_make_it_at_once_and_both_are_right(kept, photos, monkeypatch, nothing_decoded):
    expected = batches(without(monkeypatch, photos).train)
    first, second = (building(photos, kept, 1.5) for _ in range(2))
    for process in (first, second):
        assert process.stdout.readline() == "at work\n"
    assert len(files(kept)) >= 1
    for process in (first, second):
        assert process.stdout.readline() == "done\n"
        assert process.wait() == 0
        process.stdout.close()
    assert [name.endswith(".images") for name in files(kept)] == [True]
    nothing_decoded()
    assert same(batches(open_data(str(photos)).train), expected)


def test_what_was_not_used_for_longest_goes_first_and_nothing_else(kept, photos, monkeypatch):
    readings = [Reading("L", size=(side, 5)) for side in (4, 5, 6)]
    paths = []
    for reading in readings:
        open_data(str(photos), Options(images=reading))
        paths += [kept / name for name in files(kept) if kept / name not in paths]
    (kept / "own.images").write_text("of the user")
    (kept / f"{'0' * 64}.txt").write_text("too")
    for age, path in zip((300, 200, 100), paths, strict=True):
        os.utime(path, (time.time() - age,) * 2)
    open_data(str(photos), Options(images=readings[0]))  # used again
    monkeypatch.setattr(shelf, "_LIMIT", sum(path.stat().st_size for path in paths) + 100)
    open_data(str(photos), Options(images=Reading("L", size=(1, 5))))
    assert [path.exists() for path in paths] == [True, False, True]
    assert {"own.images", f"{'0' * 64}.txt"} <= set(files(kept))
    assert sum(entry.size for entry in shelf.kept_in(kept)) <= shelf.limit(kept)


def test_half_of_what_is_free_is_the_bound_and_what_is_larger_is_not_kept(kept, photos, monkeypatch):
    monkeypatch.setattr("gradstep.disk.free", lambda folder: 1000)
    splits = open_data(str(photos))
    assert files(kept) == []
    assert len(splits.notes) == 1
    assert "it would take 0.00 GB, and" in splits.notes[0]


# The command


def test_the_command_lists_and_clears(gradstep, kept, photos):
    assert gradstep("data", "cache") == (0, f"folder    {kept}\ntotal     0 kept, 0.0 MB\n", "")
    open_data(str(photos))
    open_data(str(photos), Options(images=Reading("RGB")))
    (kept / "own.txt").touch()
    code, out, err = gradstep("data", "cache")
    assert (code, err) == (0, "")
    first, second, folder, total = out.splitlines()
    assert re.fullmatch(
        rf"[0-9a-f]{{12}}  24 images of 3×6×5, 0\.0 MB, last used [\d-]+ [\d:]+, from {photos.parent}", first
    )
    assert "24 images of 1×6×5" in second
    assert folder == f"folder    {kept}"
    assert re.fullmatch(r"total     2 kept, 0\.0 MB of at most [\d.,]+ [GM]B", total)
    code, out, err = gradstep("data", "cache", "--clear", "no")
    assert code == 2
    assert "--clear: 'no' is not the name of one cache. There are: " in err
    assert gradstep("data", "cache", second[:12])[0] == 2
    assert gradstep("data", "cache", "--clear", second[:12])[0] == 0
    assert len(files(kept)) == 2
    assert gradstep("data", "cache", "--clear") == (0, "freed     0.0 MB\n", "")
    assert files(kept) == ["own.txt"]


def test_the_command_says_that_it_is_off_and_what_is_damaged(gradstep, kept, photos, monkeypatch):
    open_data(str(photos))
    (path,) = kept.iterdir()
    path.write_bytes(b"")
    assert "damaged: the next use makes it anew" in gradstep("data", "cache")[1]
    monkeypatch.setenv("GRADSTEP_CACHE", "off")
    assert gradstep("data", "cache") == (0, "cache     off (GRADSTEP_CACHE)\n", "")
