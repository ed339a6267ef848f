"""Whichever way files are decoded, the results are the same and in their order; JPEGs at the scale they need."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gradstep.data import Reading, decoding, read_image
from gradstep.data.decoding import in_order

WAYS = ("_inline", "_threads", "_processes")


def squared(value: int) -> int:
    return value * value


def slow(value: int) -> int:
    time.sleep(0.002)  # lets go of the interpreter, as a decoder does
    return -value


@settings(max_examples=25)
@given(count=st.integers(0, 700), length=st.integers(1, 64), way=st.sampled_from(WAYS[:2]))
def test_each_way_gives_every_result_once_in_order(count, length, way):
    pieces = decoding._Pieces(count)
    pieces.length = length
    given = getattr(decoding, way)(squared, range(count), pieces)
    assert [result for results in given for result in results] == [n * n for n in range(count)]


@pytest.mark.parametrize("count", [0, 1, 2, 7, 300, 3000])
@pytest.mark.parametrize("function", [squared, slow])
def test_the_chosen_way_gives_every_result_once_in_order(count, function, monkeypatch):
    monkeypatch.setattr(decoding, "own_cores", lambda: 2)
    count = min(count, 200) if function is slow else count
    assert list(in_order(function, list(range(count)))) == [function(n) for n in range(count)]


@pytest.fixture
def tried(monkeypatch) -> list[str]:
    """The ways that were tried, in their order, each made as quick as the test says."""
    monkeypatch.setattr(decoding, "own_cores", lambda: 2)
    names: list[str] = []
    real = decoding._tried

    def trial(way, *rest):
        names.append(way.__name__)
        return (yield from real(way, *rest))

    monkeypatch.setattr(decoding, "_tried", trial)
    return names


def test_processes_are_tried_where_threads_don_t_win_and_enough_is_left(tried, monkeypatch):
    monkeypatch.setattr(decoding, "_TRIAL", 0.01)
    monkeypatch.setattr(decoding, "_WINS", 0.0)
    monkeypatch.setattr(decoding, "_FORK", 0.0)
    before = multiprocessing.get_start_method(allow_none=True)
    values = list(range(3000))
    assert list(in_order(slow, values)) == [-n for n in values]
    assert tried == list(WAYS)
    assert multiprocessing.get_start_method(allow_none=True) == before
    tried.clear()
    assert list(in_order(slow, values[:300], processes=False)) == [-n for n in values[:300]]
    assert tried == list(WAYS[:2])


def test_small_files_are_nothing_for_threads_and_what_wins_goes_on(tried, monkeypatch):
    monkeypatch.setattr(decoding, "_TRIAL", 0.01)
    monkeypatch.setattr(decoding, "_FORK", 0.0)
    monkeypatch.setattr(decoding, "_SMALL", 1.0)
    monkeypatch.setattr(decoding, "_WINS", 10.0)
    started = []
    real = decoding._processes
    monkeypatch.setattr(decoding, "_processes", lambda *given: started.append(given) or real(*given))
    monkeypatch.setattr(decoding._processes, "__name__", "_processes")
    values = list(range(3000))
    assert list(in_order(slow, values)) == [-n for n in values]
    assert tried == ["_inline", "_processes"]
    assert len(started) == 1  # and not once for the trial and once for the rest


@pytest.mark.parametrize("wins", [0.0, 10.0])
def test_threads_that_win_are_all_that_is_tried_for_larger_files(tried, monkeypatch, wins):
    monkeypatch.setattr(decoding, "_TRIAL", 0.01)
    monkeypatch.setattr(decoding, "_FORK", 1e9)
    monkeypatch.setattr(decoding, "_WINS", wins)
    values = list(range(200))
    assert list(in_order(slow, values)) == [-n for n in values]
    assert tried == ["_inline", "_threads"]


def test_one_core_is_for_one_way(tried, monkeypatch):
    monkeypatch.setattr(decoding, "own_cores", lambda: 1)
    assert list(in_order(slow, list(range(50)))) == [-n for n in range(50)]
    assert tried == ["_inline"]


def test_a_process_that_dies_leaves_its_work_to_this_one():
    here = os.getpid()

    def dies_elsewhere(value: int) -> int:
        if value == 333 and os.getpid() != here:
            os._exit(1)
        return value

    pieces = decoding._Pieces(1000)
    pieces.length = 10
    given = decoding._processes(dies_elsewhere, range(1000), pieces)
    assert [result for results in given for result in results] == list(range(1000))


def test_left_early_no_process_stays():
    pieces = decoding._Pieces(1000)
    given = decoding._processes(squared, range(1000), pieces)
    assert next(given) == [0]
    given.close()
    assert multiprocessing.active_children() == []


# The scale of JPEGs


def photograph(height: int, width: int) -> Image.Image:
    """Smooth, in colours, with an end that can be told from the other."""
    rows, columns = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [np.sin(7 * rows + 3 * columns), np.cos(5 * columns), rows - columns]
    return Image.fromarray(np.stack([127 + 100 * wave for wave in waves], 2).clip(0, 255).astype(np.uint8))


def whole(path: Path, reading: Reading, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Read without any scale."""
    with monkeypatch.context() as patch:
        patch.setattr("gradstep.data.images._draft", lambda *args, **kwargs: None)
        return read_image(path, reading)


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize(("kind", "mode"), [("RGB", "RGB"), ("L", "L"), ("CMYK", "RGB"), ("RGB", "L"), ("L", "F")])
def test_a_jpeg_at_its_scale_is_near_to_the_whole_of_it(tmp_path, monkeypatch, kind, mode, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photograph(400, 640).convert(kind).save(tmp_path / "x.jpg", quality=95, exif=exif)
    reading = Reading(mode, size=(48, 32))
    found, expected = read_image(tmp_path / "x.jpg", reading), whole(tmp_path / "x.jpg", reading, monkeypatch)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    scale = 255 if mode == "F" else 1
    assert (found.double() - expected.double()).abs().mean() * scale < 1
    assert not found.equal(expected)  # so a scale was taken


@pytest.mark.parametrize(
    ("target", "decoded"),
    [((400, 640), 1), ((201, 10), 1), ((200, 320), 1), ((100, 160), 2), ((99, 159), 2), ((50, 80), 4), ((2, 3), 8)],
)
@pytest.mark.parametrize("turned", [False, True])
def test_the_scale_is_the_smallest_that_leaves_twice_the_size(tmp_path, monkeypatch, target, decoded, turned):
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1  # the sides are swapped
    photograph(400, 640).save(tmp_path / "x.jpg", exif=exif)
    sizes = []
    real = Image.Image.resize

    def resize(image, *args, **kwargs):
        sizes.append(image.size)
        return real(image, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", resize)
    target = target[::-1] if turned else target
    found = read_image(tmp_path / "x.jpg", Reading("RGB", size=target))
    assert found.shape[1:] == target
    shown = (640 // decoded, 400 // decoded)
    assert sizes == ([] if target in ((400, 640), (640, 400)) else [shown[::-1] if turned else shown])


@pytest.mark.parametrize("suffix", ["png", "webp", "tiff", "bmp"])
def test_other_formats_and_jpegs_without_a_size_are_as_they_were(tmp_path, monkeypatch, suffix):
    photograph(200, 320).save(tmp_path / f"x.{suffix}")
    photograph(200, 320).save(tmp_path / "x.jpg")
    small = Reading("RGB", size=(16, 16))
    assert read_image(tmp_path / f"x.{suffix}", small).equal(whole(tmp_path / f"x.{suffix}", small, monkeypatch))
    expected = np.asarray(Image.open(tmp_path / "x.jpg")).transpose(2, 0, 1)
    np.testing.assert_array_equal(read_image(tmp_path / "x.jpg", Reading("RGB")).numpy(), expected)
