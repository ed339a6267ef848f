"""NumPy's files, loaded and left where they lie; fingerprints of large files; CIFAR-10's binary files."""

import importlib
import io
import os
import pickle
import re
import struct
import subprocess
import sys
import time
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import gradstep
from gradstep import data
from gradstep.data import Options, Stored, arrays, cifar, npz_parts, open_data
from gradstep.data.fingerprint import of_files
from gradstep.data.sources import Tensors
from gradstep.errors import DataError, RecipeError

KINDS = ["u1", "i1", "<u2", ">u2", "<i2", "<u4", "<i4", ">i4", "<i8", ">i8", "<f2", "<f4", ">f4", "<f8", ">f8", "?"]
LARGE = 40 * 10**9
MODULE = importlib.import_module("gradstep.data.arrays")  # the package has a function of that name


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One for all examples of a test: each overwrites what the one before it wrote."""
    return tmp_path_factory.mktemp("arrays")


@pytest.fixture
def stored(monkeypatch) -> None:
    """Every array stays in its file, however small."""
    monkeypatch.setattr(MODULE, "_LOADED", 0)


def saved(path: Path, array) -> Path:
    np.save(path, array)
    return path


def pair(folder: Path, inputs, targets=None) -> tuple[Path, Path]:
    targets = np.arange(len(inputs)) % 3 if targets is None else targets
    return saved(folder / "inputs.npy", inputs), saved(folder / "targets.npy", targets)


def some(kind: str, shape: tuple[int, ...] = (10, 3, 2)) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 120, shape)
    return (values % 2 == 0) if kind == "?" else values.astype(kind)


def batches(source, size: int = 4) -> list:
    feed = data.Feed(source, size, shuffle=True, seed=3)
    return [feed[step] for step in range(2 * feed.steps_per_epoch)]


def assert_same(one: list, other: list) -> None:
    for a, b in zip(one, other, strict=True):
        assert a[0].dtype == b[0].dtype
        assert a[1].dtype == b[1].dtype
        assert a[0].equal(b[0])
        assert a[1].equal(b[1])


# .npy


@pytest.mark.parametrize("kind", KINDS)
def test_stored_and_loaded_are_the_same_batches_whatever_the_type(tmp_path, monkeypatch, kind):
    array = some(kind)
    paths = pair(tmp_path, array)
    loaded = arrays(*paths)
    monkeypatch.setattr(MODULE, "_LOADED", 0)
    stored = arrays(*paths)
    assert isinstance(loaded, Tensors)
    assert isinstance(stored, Stored)
    assert (loaded.in_memory, stored.in_memory) == (True, False)
    assert_same(batches(loaded), batches(stored))
    inputs, targets = stored.batch(torch.tensor([7, 0, 7]), 0, 0)
    np.testing.assert_array_equal(inputs.numpy(), array[[7, 0, 7]].astype(inputs.numpy().dtype))
    assert targets.tolist() == [1, 0, 1]
    assert targets.dtype == torch.int64


@given(
    array=hnp.arrays(
        st.sampled_from(KINDS), hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4), elements={}
    ),
    version=st.sampled_from([(1, 0), (2, 0), (3, 0)]),
)
def test_what_was_saved_is_read_whatever_its_type_shape_and_version(folder, array, version):
    with open(folder / "any.npy", "wb") as file:
        np.lib.format.write_array(file, np.ascontiguousarray(array), version)
    saved(folder / "count.npy", np.zeros(len(array), np.int64))
    inputs = arrays(folder / "any.npy", folder / "count.npy").content[0]
    np.testing.assert_array_equal(inputs.numpy(), array)
    inputs.zero_()  # the tensor is writable, and its own


@pytest.mark.parametrize("kind", ["<u2", ">u2"])
def test_unsigned_numbers_that_torch_cannot_count_with_get_room_for_all_values(tmp_path, stored, kind):
    every = np.arange(65536).astype(kind).reshape(256, 256)
    inputs, _ = arrays(*pair(tmp_path, every)).batch(torch.arange(256), 0, 0)
    assert inputs.dtype == torch.int32
    np.testing.assert_array_equal(inputs.numpy(), every.astype(np.int64))


def test_numbers_that_do_not_fit_are_refused(tmp_path):
    paths = pair(tmp_path, np.array([1, 2**63 + 1], np.uint64))
    with pytest.raises(DataError):
        arrays(*paths).batch(torch.arange(2), 0, 0)


@pytest.mark.parametrize("targets", [np.array([0.5, 2]), np.array([[1.0, 2], [3, 4]]), np.array([1, 2], "u1")], ids=str)
def test_targets_keep_their_shape_and_whole_numbers_become_int64(tmp_path, targets):
    source = arrays(*pair(tmp_path, np.zeros((2, 3), "f4"), targets))
    np.testing.assert_array_equal(source.targets.numpy(), targets)
    assert source.targets.dtype == (torch.float64 if targets.dtype.kind == "f" else torch.int64)


def test_lengths_that_differ_are_an_error_with_both(tmp_path):
    paths = pair(tmp_path, np.zeros((3, 2)), np.zeros((4, 1)))
    with pytest.raises(DataError) as caught:
        arrays(*paths)
    assert "inputs and targets are 3×2 and 4×1, which are not the same number of samples." in str(caught.value)


@pytest.mark.parametrize(("inputs", "targets"), [(np.float64(3), np.zeros(1)), (np.zeros(1), np.int64(3)),
                                                 (np.float64(3), np.int64(3))])  # fmt: skip
def test_one_number_is_no_samples(tmp_path, inputs, targets):
    with pytest.raises(DataError, match="one number"):
        arrays(saved(tmp_path / "a.npy", inputs), saved(tmp_path / "b.npy", targets))


def test_fortran_order_says_what_to_save(tmp_path):
    inputs, targets = pair(tmp_path, np.asfortranarray(some("<f4")))
    with pytest.raises(DataError) as caught:
        arrays(inputs, targets)
    assert str(caught.value) == f"{inputs}: is in Fortran order. Save np.ascontiguousarray(array)."


class Payload:
    """What pickle runs when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("where", ["inputs", "targets", "npz", "npz packed"])
def test_object_arrays_are_refused_and_never_unpickled(tmp_path, where):
    evil = np.array([Payload(tmp_path / "ran")], dtype=object)
    good = np.zeros(1)
    pickle.loads(pickle.dumps(Payload(tmp_path / "can run")))
    assert (tmp_path / "can run").exists()  # the payload does what it is for, where it is read
    if "npz" in where:
        save = np.savez if where == "npz" else np.savez_compressed
        save(tmp_path / "x.npz", inputs=evil, targets=good)
        opening = partial(npz_parts, tmp_path / "x.npz")
    else:
        opening = partial(arrays, *pair(tmp_path, *((evil, good) if where == "inputs" else (good, evil))))
    with pytest.raises(DataError, match=r"pickle|Object arrays"):
        opening()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "array",
    [np.array(["cat", "dog"]), np.array([1 + 2j, 3]), np.zeros(2, [("a", "i4"), ("b", "f4")]),
     np.array(["2020-01-01", "2021-01-01"], "M8[D]"), np.array([b"x", b"y"])],
    ids=lambda array: str(array.dtype),
)  # fmt: skip
def test_what_is_no_array_of_numbers_is_refused_by_its_type(tmp_path, array):
    with pytest.raises(DataError, match=re.escape(f"holds {array.dtype}, not numbers")):
        arrays(*pair(tmp_path, array))


def test_long_doubles_are_refused_where_they_are_longer_than_doubles(tmp_path):
    given = np.ones((2, 2), np.longdouble)
    if given.dtype.itemsize > 8:
        with pytest.raises(DataError, match=f"holds {given.dtype}, not numbers"):
            arrays(*pair(tmp_path, given))
    else:
        assert arrays(*pair(tmp_path, given)).content[0].sum() == 4


def test_a_file_cut_off_anywhere_is_an_error_that_names_it(tmp_path):
    inputs, targets = pair(tmp_path, some("<f4", (3, 2)))
    content = inputs.read_bytes()
    for length in range(len(content)):
        inputs.write_bytes(content[:length])
        with pytest.raises(DataError, match=f"^{re.escape(str(inputs))}: ") as caught:
            arrays(inputs, targets)
        if length >= 128:
            assert str(caught.value).endswith("its header announces 3×2 of float32, and it is cut off.")


@pytest.mark.parametrize(
    ("content", "text"),
    [(b"", "not a .npy file"), (b"PK\3\4 and more", "not a .npy file"), (b"\x93NUMPX\1\0", "not a .npy file"),
     (b"\x93NUMPY\1\0\xff\xff{", "not a .npy file"), (b"1,2,3\n", "not a .npy file")],
    ids=repr,
)  # fmt: skip
def test_what_is_no_npy_file_is_an_error_that_says_so(tmp_path, content, text):
    _, targets = pair(tmp_path, np.zeros(3))
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(DataError, match=text):
        arrays(tmp_path / "x.npy", targets)


def test_a_missing_file_and_a_folder_are_errors_that_say_which(tmp_path):
    _, targets = pair(tmp_path, np.zeros(3))
    for name, text in [("none.npy", "there is no such file"), (".", r"can't be read \(Is a directory\)")]:
        with pytest.raises(DataError, match=f"^{re.escape(str(tmp_path / name))}: {text}"):
            arrays(tmp_path / name, targets)


def test_a_header_with_any_byte_damaged_is_an_error_or_is_read(tmp_path):
    inputs, targets = pair(tmp_path, some("<f8", (3, 2)))
    content = inputs.read_bytes()
    for place in range(len(content.rstrip(b"\0")[:128])):
        for damage in (0x01, 0x80, 0x20):
            inputs.write_bytes(content[:place] + bytes([content[place] ^ damage]) + content[place + 1 :])
            try:
                source = arrays(inputs, targets)
            except (DataError, UserWarning):  # numpy's warning of a header out of Python 2, an error in these tests
                continue
            assert np.array_equal(np.asarray(source.content[0]), np.load(inputs), equal_nan=True)


def with_header(path: Path, shape: tuple, kind: str = "<f8", more: bytes = b"\0" * 24) -> Path:
    header = io.BytesIO()
    np.lib.format.write_array_header_2_0(header, {"descr": kind, "fortran_order": False, "shape": shape})
    path.write_bytes(header.getvalue() + more)
    return path


@pytest.mark.parametrize("shape", [(10**30,), (2**32, 2**32), (2**62, 4), (3, 2**61)], ids=str)
def test_a_header_that_announces_more_than_can_be_is_cut_off(tmp_path, shape):
    path = with_header(tmp_path / "x.npy", shape)
    with pytest.raises(DataError, match="cut off"):
        arrays(path, path)


@pytest.mark.parametrize("shape", [(-3,), (3, -1), (-3, -1)], ids=str)
def test_a_header_with_negative_sides_is_refused(tmp_path, shape):
    path = with_header(tmp_path / "x.npy", shape)
    _, targets = pair(tmp_path, np.zeros(3))
    with pytest.raises(DataError):
        arrays(path, targets)


def test_a_pair_is_opened_by_its_two_names_and_one_alone_says_so(tmp_path):
    inputs, targets = pair(tmp_path, some("<f4"))
    source = open_data({"inputs": str(inputs), "targets": str(targets)}).train
    assert_same(batches(source), batches(arrays(inputs, targets)))
    with pytest.raises(DataError, match=r"is one array.*\{inputs: .*inputs\.npy, targets: OTHER\.npy\}"):
        open_data(str(inputs))
    with pytest.raises(RecipeError, match=r"\{inputs: FILE, targets: FILE\} \(\.npy\), not as inputs, labels"):
        open_data({"inputs": str(inputs), "labels": str(targets)})


# .npz


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("kind", KINDS)
def test_an_npz_gives_what_two_npy_files_give_packed_or_not(tmp_path, save, kind):
    array = some(kind)
    save(tmp_path / "x.npz", inputs=array, targets=np.arange(10) % 3)
    assert_same(batches(open_data(str(tmp_path / "x.npz")).train), batches(arrays(*pair(tmp_path, array))))


def test_a_stored_one_stays_there_where_it_is_large_and_a_packed_one_is_not(tmp_path, stored):
    for save, kind in ((np.savez, Stored), (np.savez_compressed, Tensors)):
        save(tmp_path / "x.npz", other=np.ones(7), x=some("<f4"), y=np.arange(10), another=np.ones((3, 3)))
        source = npz_parts(tmp_path / "x.npz")["train"]
        assert isinstance(source, kind)
        np.testing.assert_array_equal(source.batch(torch.tensor([9, 1]), 0, 0)[0].numpy(), some("<f4")[[9, 1]])


PAIRS = [("inputs", "targets"), ("x", "y"), ("X", "y"), ("images", "labels"), ("data", "labels"), ("data", "target")]


@pytest.mark.parametrize("names", PAIRS, ids=str)
def test_arrays_have_the_names_that_people_give_them(tmp_path, names):
    np.savez(tmp_path / "x.npz", **dict(zip(names, (some("<f4"), np.arange(10)), strict=True)))
    assert list(npz_parts(tmp_path / "x.npz")) == ["train"]


def test_the_parts_by_their_names(tmp_path):
    parts = {f"{axis}_{part}": np.full(n, n) for n, part in ((3, "train"), (2, "val"), (4, "test")) for axis in "xy"}
    np.savez(tmp_path / "x.npz", **parts)
    splits = open_data(str(tmp_path / "x.npz"))
    assert {name: part.targets.tolist() for name, part in splits.items()} == {
        "train": [3] * 3,
        "valid": [2] * 2,
        "test": [4] * 4,
    }


def test_names_that_mean_nothing_are_listed_with_what_to_save(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros(3), b=np.zeros(3))
    with pytest.raises(DataError) as caught:
        npz_parts(tmp_path / "x.npz")
    assert "its arrays are called a, b. Call them inputs and targets" in str(caught.value)
    assert "np.savez(file, inputs=..., targets=...)" in str(caught.value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_array_that_is_not_asked_for_is_no_harm(tmp_path, save):
    save(tmp_path / "x.npz", inputs=some("<f4"), targets=np.arange(10), classes=np.array(["cat", "dog"]))
    assert len(npz_parts(tmp_path / "x.npz")["train"]) == 10


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_cut_off_anywhere_is_an_error(tmp_path, save):
    path = tmp_path / "x.npz"
    save(path, inputs=some("<f4", (4, 2)), targets=np.arange(4))
    content = path.read_bytes()
    for length in range(0, len(content), 3):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=re.escape(str(path))):
            npz_parts(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_npz_is_an_error_or_is_read_but_never_a_traceback(tmp_path, save):
    path = tmp_path / "x.npz"
    save(path, inputs=some("<f4", (4, 2)), targets=np.arange(4))
    content = path.read_bytes()
    others: dict[str, int] = {}
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x81]) + content[place + 1 :])
        try:
            npz_parts(path)
        except (DataError, UserWarning):
            continue
        except Exception as error:
            others.setdefault(type(error).__name__, place)
    assert others == {}


def test_a_stored_array_with_a_damaged_number_is_found(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, inputs=np.full((4, 2), 7.0), targets=np.arange(4))
    content = path.read_bytes()
    at = content.index(np.float64(7).tobytes())
    path.write_bytes(content[:at] + np.float64(9).tobytes() + content[at + 8 :])
    with pytest.raises(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        archive.read("inputs.npy")
    with pytest.raises(DataError):
        npz_parts(path)


def test_what_is_no_npz_says_so(tmp_path):
    (tmp_path / "x.npz").write_text("1,2,3")
    (tmp_path / "folder.npz").mkdir()
    for name, text in [("x.npz", "not an .npz of numbers"), ("none.npz", "no such file"), ("folder.npz", "can't be")]:
        with pytest.raises(DataError, match=text):
            npz_parts(tmp_path / name)


# Files that change under a run


def trained(source, *hooks, workers: int = 0, epochs: int = 2) -> torch.Tensor:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 3))
    run = gradstep.fit(
        model,
        torch.nn.CrossEntropyLoss(),
        source,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01),
        epochs=epochs,
        batch_size=4,
        hooks=list(hooks),
        workers=workers,
        device="cpu",
        quiet=True,
    )
    return torch.cat([p.detach().flatten() for p in run.model.parameters()])


class After:
    """Does something once, when an epoch is over; counts the epochs."""

    def __init__(self, deed) -> None:
        self.deed, self.epochs = deed, 0

    def on_epoch_end(self, state) -> None:
        self.epochs += 1
        if self.epochs == 1:
            self.deed()


def later(path: Path) -> None:
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 10**9))


CHANGES = {
    "touched": later,
    "truncated": lambda path: os.truncate(path, 100),
    "emptied": lambda path: os.truncate(path, 0),
    "longer": lambda path: os.truncate(path, 10**6),
    "another": lambda path: (saved(path, np.zeros((10, 3, 2), "f4")), later(path)),
}


@pytest.mark.parametrize("kind", ["npy", "npz"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_stored_file_that_changes_during_a_run_is_an_error_that_names_it(tmp_path, stored, change, kind):
    inputs, targets = pair(tmp_path, some("<f4"))
    source = arrays(inputs, targets)
    if kind == "npz":
        inputs = tmp_path / "x.npz"
        np.savez(inputs, inputs=some("<f4"), targets=np.arange(10) % 3)
        source = npz_parts(inputs)["train"]
    hook = After(lambda: change(inputs))
    with pytest.raises(DataError) as caught:
        trained(source, hook, epochs=3)
    assert hook.epochs == 1
    assert str(caught.value).startswith(f"{inputs} changed since it was opened.")


def test_a_stored_file_that_is_deleted_during_a_run_is_an_error_too(tmp_path, stored):
    inputs, targets = pair(tmp_path, some("<f4"))
    with pytest.raises(DataError, match=re.escape(str(inputs))):
        trained(arrays(inputs, targets), After(inputs.unlink))


def test_a_file_that_is_truncated_does_not_kill_the_process(tmp_path):
    """In a process of its own, because a SIGBUS would take this one with it. Sixteen pages, of which one is left."""
    inputs, targets = pair(tmp_path, np.ones((16, 1024), "f4"), np.zeros(16))
    program = (
        "import importlib, os, torch\n"
        "a = importlib.import_module('gradstep.data.arrays'); a._LOADED = 0\n"
        f"source = a.arrays({str(inputs)!r}, {str(targets)!r})\n"
        "assert source.batch(torch.arange(16), 0, 0)[0].sum() == 16384\n"
        f"os.truncate({str(inputs)!r}, 4096)\n"
        "try:\n    source.batch(torch.arange(16), 0, 0)\n"
        "except Exception as error:\n    print(type(error).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "DataError"), done.stderr


def test_stored_loaded_and_with_worker_processes_it_is_the_same_run(tmp_path, monkeypatch):
    paths = pair(tmp_path, some(">f4"))
    loaded = trained(arrays(*paths))
    monkeypatch.setattr(MODULE, "_LOADED", 0)
    assert trained(arrays(*paths)).equal(loaded)
    assert trained(arrays(*paths), workers=2).equal(loaded)


def test_worker_processes_find_a_change_too(tmp_path, stored):
    inputs, targets = pair(tmp_path, some("<f4"))
    with pytest.raises(DataError, match=r"inputs\.npy changed since it was opened"):
        trained(arrays(inputs, targets), After(lambda: later(inputs)), workers=2, epochs=9)


# Larger than memory


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> tuple[Path, Path, dict[int, np.ndarray]]:
    """`(inputs, targets, known rows)`: 40 GB of float32 of which the file system holds a few pages."""
    where = tmp_path_factory.mktemp("large")
    shape = (200_000, 50_000)
    assert 4 * shape[0] * shape[1] == LARGE
    known = {}
    with open(where / "inputs.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        start = file.tell()
        file.truncate(start + LARGE)
        for row in (0, 1, 77_777, 131_072, 199_999):
            known[row] = np.random.default_rng(row).standard_normal(shape[1]).astype("f4")
            file.seek(start + row * 4 * shape[1])
            file.write(known[row].tobytes())
    return where / "inputs.npy", saved(where / "targets.npy", np.arange(shape[0]) % 10), known


class Peak:
    """The most memory that this process came to have beyond what it had at the start, in bytes."""

    def __enter__(self) -> "Peak":
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        self.before = self._most()
        return self

    def __exit__(self, *error) -> None:
        self.more = self._most() - self.before

    @staticmethod
    def _most() -> int:
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def test_the_peak_is_seen():
    with Peak() as peak:
        np.ones(2**25)
    assert 250 * 2**20 < peak.more < 300 * 2**20


def test_40_gb_open_in_under_a_second_and_with_little_memory(large):
    times = []
    for _ in range(3):  # of which one may be disturbed by whatever else the machine does
        start = time.perf_counter()
        with Peak() as peak:
            source = arrays(*large[:2])
            found = source.fingerprint
            source.batch(torch.tensor([5]), 0, 0)
        times.append(time.perf_counter() - start)
        assert peak.more < 40 * 2**20
    assert min(times) < 1
    assert isinstance(source, Stored)
    assert len(source) == 200_000
    assert found["bytes"] > LARGE


def test_its_batches_are_right_to_the_last_row(large):
    inputs, targets, known = large
    source = arrays(inputs, targets)
    rows = [199_999, 3, 77_777, 0, 131_072, 1, 199_998, 77_777]
    found, labels = source.batch(torch.tensor(rows), 0, 0)
    for row, values in zip(rows, found, strict=True):
        np.testing.assert_array_equal(values.numpy(), known.get(row, np.zeros(50_000, "f4")))
    assert labels.tolist() == [row % 10 for row in rows]


def test_reading_all_over_it_holds_one_batch_at_a_time(large):
    feed = data.Feed(arrays(*large[:2]), 16, shuffle=True)
    feed[0]
    with Peak() as peak:
        for step in range(60):  # of 3.2 MB each
            feed[step]
    assert peak.more < 30 * 2**20


def test_it_pickles_small_but_for_its_targets(large):
    source = arrays(*large[:2])
    size = len(pickle.dumps(source))
    assert size < source.targets.numel() * 8 + 5000
    again = pickle.loads(pickle.dumps(source))
    numbers = torch.tensor([131_072])
    assert again.batch(numbers, 0, 0)[0].equal(source.batch(numbers, 0, 0)[0])


def test_its_fingerprint_is_cheap_and_tells_what_it_looked_at(large):
    inputs = large[0]
    start = time.perf_counter()
    before = of_files([inputs])
    assert time.perf_counter() - start < 0.5
    assert of_files([inputs]) == before
    size = inputs.stat().st_size
    with open(inputs, "r+b") as file:
        for place in (0, (size - 4096) // 255 + 100, size - 1):  # the first, the second and the last block
            file.seek(place)
            byte = file.read(1)
            file.seek(place)
            file.write(bytes([byte[0] ^ 1]))
            file.flush()
            assert of_files([inputs])["content"] != before["content"]
            file.seek(place)
            file.write(byte)
            file.flush()
            assert of_files([inputs])["content"] == before["content"]


# Fingerprints


@pytest.mark.parametrize("size", [0, 1, 4096, 4097, 2**20, 2**20 + 1, 2**20 + 4097, 3 * 2**20])
def test_a_fingerprint_sees_the_size_the_time_and_the_ends(tmp_path, size):
    path = tmp_path / "x"
    content = np.random.default_rng(size).bytes(size)
    path.write_bytes(content)
    before = of_files([path])
    assert before["bytes"] == size
    assert before["modified"] == path.stat().st_mtime_ns
    assert re.fullmatch("[0-9a-f]{64}", before["content"])
    later(path)
    touched = of_files([path])
    assert touched["modified"] == before["modified"] + 10**9
    assert touched["content"] == before["content"]
    for place in {0, size - 1} if size else ():
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert of_files([path])["content"] != before["content"]
    path.write_bytes(content + b"\0")
    assert of_files([path])["bytes"] == size + 1
    assert of_files([path])["content"] != before["content"]


def test_up_to_a_megabyte_every_byte_is_looked_at(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(bytes(2**20))
    seen = {of_files([path])["content"]}
    with open(path, "r+b") as file:
        for place in range(0, 2**20, 4096 * 7 + 1):
            file.seek(place)
            file.write(b"\1")
            file.flush()
            seen.add(of_files([path])["content"])
    assert len(seen) == 1 + len(range(0, 2**20, 4096 * 7 + 1))


def test_of_several_files_the_order_and_the_borders_count(tmp_path):
    for name, content in (("a", b"12"), ("b", b"3"), ("c", b"1"), ("d", b"23")):
        (tmp_path / name).write_bytes(content)
    found = {of_files([tmp_path / one, tmp_path / two])["content"] for one, two in ("ab", "ba", "cd", "dc")}
    assert len(found) == 4
    os.utime(tmp_path / "a", ns=(0, 10))
    os.utime(tmp_path / "b", ns=(0, 30))
    assert of_files([tmp_path / "a", tmp_path / "b"]) | {"content": ""} == {"bytes": 3, "modified": 30, "content": ""}


def test_of_a_stored_source_it_is_that_of_both_files(tmp_path, stored):
    inputs, targets = pair(tmp_path, some("<f4"))
    source = arrays(inputs, targets)
    before = source.fingerprint
    assert before == of_files([inputs, targets])
    later(targets)
    assert source.fingerprint != before


# CIFAR-10's binary files


def records(labels, images: np.ndarray) -> bytes:
    return b"".join(bytes([label]) + image.tobytes() for label, image in zip(labels, images, strict=True))


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)


def test_cifar_gives_back_the_images_and_labels_that_were_written(tmp_path):
    (tmp_path / "x.bin").write_bytes(records([3, 0, 9], pictures(3)))
    for source in (cifar([tmp_path / "x.bin"]), open_data(str(tmp_path / "x.bin")).train):
        inputs, targets = source.content
        np.testing.assert_array_equal(inputs.numpy(), pictures(3))
        assert (inputs.dtype, targets.dtype) == (torch.uint8, torch.int64)
        assert targets.tolist() == [3, 0, 9]
        assert [source.classes[t] for t in targets] == ["cat", "airplane", "truck"]


def test_its_planes_are_red_green_and_blue(tmp_path):
    image = np.stack([np.full((32, 32), value, np.uint8) for value in (200, 100, 50)])
    image[0, 0, 1] = 7  # the second byte of the first row of red: to the right of the first
    (tmp_path / "x.bin").write_bytes(records([1], image[None]))
    found = cifar([tmp_path / "x.bin"]).content[0][0]
    assert found[:, 31, 31].tolist() == [200, 100, 50]
    assert found[0, 0, 1] == 7


@pytest.mark.parametrize("length", [0, 1, 3072, 3074, 3 * 3073 - 1])
def test_a_length_that_is_no_whole_number_of_records_is_an_error(tmp_path, length):
    (tmp_path / "x.bin").write_bytes(records([3, 0, 9], pictures(3))[:length])
    with pytest.raises(DataError) as caught:
        cifar([tmp_path / "x.bin"])
    assert str(caught.value) == (
        f"{tmp_path / 'x.bin'}: {length:,} bytes are no whole number of records of 3,073. Fetch it again."
    )


def test_a_label_out_of_range_is_named_with_its_record(tmp_path):
    (tmp_path / "x.bin").write_bytes(records([3, 0, 10], pictures(3)))
    with pytest.raises(DataError, match=r"x\.bin: record 2 has the label 10, and there are 10 classes\."):
        cifar([tmp_path / "x.bin"])
    with pytest.raises(DataError, match="record 0 has the label 3, and there are 2 classes"):
        cifar([tmp_path / "x.bin"], ("a", "b"))


def test_a_missing_file_and_a_folder_are_errors(tmp_path):
    for name in ("none.bin", "."):
        with pytest.raises(DataError, match="can't be read"):
            cifar([tmp_path / name])


@pytest.mark.parametrize("names", [None, "ape\nbee\ncow\ndoe\nelk\nfox\ngnu\nhen\nibex\njay\n\n"], ids=["own", "meta"])
def test_a_folder_of_them_is_train_and_test_in_the_order_of_the_files(tmp_path, names):
    for number in (3, 1, 2):
        (tmp_path / f"data_batch_{number}.bin").write_bytes(records([number] * 2, pictures(2, number)))
    (tmp_path / "test_batch.bin").write_bytes(records([9], pictures(1, 9)))
    if names:
        (tmp_path / "batches.meta.txt").write_text(names)
    splits = open_data(str(tmp_path), Options())
    assert {name: part.targets.tolist() for name, part in splits.items()} == {"train": [1, 1, 2, 2, 3, 3], "test": [9]}
    np.testing.assert_array_equal(splits.train.content[0][2:4].numpy(), pictures(2, 2))
    assert splits.train.classes == splits.test.classes
    assert splits.train.classes[1] == ("bee" if names else "automobile")
    assert len(splits.train.classes) == 10


def test_without_a_test_batch_there_is_none_and_names_that_are_too_few_are_found(tmp_path):
    (tmp_path / "data_batch_1.bin").write_bytes(records([0, 2], pictures(2)))
    assert open_data(str(tmp_path)).test is None
    (tmp_path / "batches.meta.txt").write_text("ape\nbee\n")
    with pytest.raises(DataError, match="record 1 has the label 2, and there are 2 classes"):
        open_data(str(tmp_path))


def test_records_are_what_the_specification_says(tmp_path):
    """One label and 3,072 bytes: written here by struct alone."""
    (tmp_path / "x.bin").write_bytes(struct.pack("<B3072B", 5, *(n % 251 for n in range(3072))))
    inputs, targets = cifar([tmp_path / "x.bin"]).content
    assert targets.tolist() == [5]
    assert inputs[0, 2, 31, 31] == 3071 % 251
    assert inputs[0, 1, 0, 0] == 1024 % 251
