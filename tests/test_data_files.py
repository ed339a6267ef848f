import gzip
import hashlib
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gradstep.data import NAMED, data_folder, idx, load_named, read_idx
from gradstep.errors import DataError, RecipeError

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}
MNIST = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]
SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def packed(array: np.ndarray) -> bytes:
    """The array as an IDX file holds it."""
    code = CODES[array.dtype.newbyteorder("=").str[1:]]
    header = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def written(path: Path, array: np.ndarray) -> Path:
    path.write_bytes(packed(array))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One for all examples of a test: each overwrites what the one before it wrote."""
    return tmp_path_factory.mktemp("idx")


arrays = st.sampled_from(list(CODES)).flatmap(
    lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)


# IDX


@given(array=arrays, compress=st.booleans())
def test_what_was_written_is_read_whatever_its_type_and_sizes_gzipped_or_not(folder, array, compress):
    content = packed(array)
    path = folder / "any"
    path.write_bytes(gzip.compress(content) if compress else content)
    tensor = read_idx(path)
    assert tuple(tensor.shape) == array.shape
    assert tensor.numpy().dtype == array.dtype
    np.testing.assert_array_equal(tensor.numpy(), array)
    tensor.fill_(1)  # the tensor is writable, and its own
    assert read_idx(str(path)).shape == tensor.shape


@pytest.mark.parametrize("kind", CODES)
def test_a_file_cut_off_anywhere_is_an_error_that_names_it(folder, kind):
    content = packed(np.arange(12).reshape(2, 2, 3).astype(kind))
    path = folder / "cut"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(DataError) as caught:
            read_idx(path)
        assert str(caught.value).startswith(f"{path}: ")
        if length >= 4:
            assert f"there are {length}. The file is cut off." in str(caught.value)
        else:
            assert "not an IDX file" in str(caught.value)


def test_what_the_header_announces_is_told(folder):
    path = folder / "cut"
    path.write_bytes(packed(np.zeros((2, 3), "i2"))[:-1])
    with pytest.raises(DataError, match="announces 2×3 values, 24 bytes in all, and there are 23"):
        read_idx(path)


@given(array=arrays, more=st.binary(min_size=1, max_size=9))
def test_a_file_with_something_after_its_end_is_an_error(folder, array, more):
    path = folder / "long"
    path.write_bytes(packed(array) + more)
    with pytest.raises(DataError, match=r"The file is too long\.$"):
        read_idx(path)


@given(start=st.binary(min_size=4, max_size=4), rest=st.binary(max_size=30))
def test_bytes_that_are_no_idx_file_are_an_error_whatever_they_are(folder, start, rest):
    if start[:2] == b"\x1f\x8b" or (start[:2] == b"\0\0" and start[2] in CODES.values()):
        return
    path = folder / "wrong"
    path.write_bytes(start + rest)
    with pytest.raises(DataError, match=re.escape(f"{path}: not an IDX file; it starts with {start.hex(' ')}.")):
        read_idx(path)


@given(code=st.integers(0, 255), dimensions=st.integers(0, 255), rest=st.binary(max_size=40))
def test_any_header_is_either_read_or_refused(folder, code, dimensions, rest):
    path = folder / "header"
    path.write_bytes(bytes([0, 0, code, dimensions]) + rest)
    try:
        tensor = read_idx(path)
    except DataError:
        return
    assert code in CODES.values()
    assert tensor.dim() == dimensions
    assert tensor.numel() * tensor.element_size() == len(rest) - 4 * dimensions


def test_an_empty_file_and_a_missing_one_and_a_folder_are_errors_that_say_which(tmp_path):
    (tmp_path / "empty").touch()
    for name, message in [
        ("empty", "it starts with nothing"),
        ("none", "there is no such file"),
        (".", "can't be read"),
    ]:
        with pytest.raises(DataError, match=f"^{re.escape(str(tmp_path / name))}: .*{message}"):
            read_idx(tmp_path / name)


def test_a_gzip_file_cut_off_anywhere_is_an_error(folder):
    content = gzip.compress(packed(np.arange(40, dtype="i2").reshape(4, 10)))
    path = folder / "cut.gz"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=re.escape(str(path))):
            read_idx(path)


def test_a_gzip_file_with_any_byte_damaged_is_an_error_or_still_the_same(folder):
    """Only the time and the system in its header may change without harm."""
    array = np.random.default_rng(0).integers(0, 9, (4, 10)).astype("i2")
    content = gzip.compress(packed(array), mtime=0)
    path = folder / "damaged.gz"
    harmless = 0
    for place in range(len(content)):
        for damage in (0x01, 0x80, 0xFF):
            path.write_bytes(content[:place] + bytes([content[place] ^ damage]) + content[place + 1 :])
            try:
                tensor = read_idx(path)
            except DataError:
                continue
            np.testing.assert_array_equal(tensor.numpy(), array)
            harmless += 1
    assert harmless < 3 * 10


def test_a_damaged_gzip_file_says_to_fetch_it_again(folder):
    path = folder / "damaged.gz"
    path.write_bytes(gzip.compress(packed(np.zeros(1000, "u1")))[:-3])
    with pytest.raises(DataError, match=r"a damaged gzip file \(.*\)\. Fetch it again\."):
        read_idx(path)


def test_images_get_a_channel_and_labels_become_classes(folder):
    pictures, labels = np.arange(24, dtype="u1").reshape(3, 4, 2), np.array([2, 0, 1], "u1")
    source = idx(written(folder / "i", pictures), written(folder / "l", labels), ("a", "b", "c"))
    inputs, targets = source.batch(torch.tensor([2, 0]), 0, 0)
    assert inputs.dtype == torch.uint8
    np.testing.assert_array_equal(inputs.numpy(), pictures[[2, 0], None])
    assert targets.dtype == torch.int64
    assert targets.tolist() == [1, 2]
    assert source.classes == ("a", "b", "c")


@pytest.mark.parametrize("shape", [(3, 5), (3, 2, 4, 4)])
def test_what_is_no_grey_image_keeps_its_sizes(folder, shape):
    source = idx(written(folder / "i", np.zeros(shape, "f4")), written(folder / "l", np.zeros(3, "u1")))
    assert source.batch(torch.arange(3), 0, 0)[0].shape == shape


def test_counts_that_differ_are_an_error_with_both(folder):
    images, labels = written(folder / "i", np.zeros((3, 2, 2), "u1")), written(folder / "l", np.zeros(4, "u1"))
    with pytest.raises(DataError, match=re.escape(f"{images} holds 3 images, and {labels} 4 labels.")):
        idx(images, labels)


def test_images_and_labels_the_wrong_way_round_are_an_error(folder):
    images, labels = written(folder / "i", np.zeros((3, 2, 2), "u1")), written(folder / "l", np.zeros(3, "u1"))
    with pytest.raises(DataError):
        idx(labels, images)


# Data sets known by name


def test_the_files_of_mnist_are_the_real_ones(mnist):
    for name, digest in SHA256.items():
        plain = mnist / name
        content = plain.read_bytes() if plain.exists() else gzip.decompress((mnist / f"{name}.gz").read_bytes())
        assert hashlib.sha256(content).hexdigest() == digest


def test_mnist_is_60000_and_10000_images_of_ten_classes(mnist):
    splits = load_named("mnist")
    assert [name for name, _ in splits.items()] == ["train", "test"]
    counts = {
        "train": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        "test": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    }
    for name, source in splits.items():
        inputs, targets = source.content
        assert inputs.shape == (sum(counts[name]), 1, 28, 28)
        assert (inputs.dtype, targets.dtype) == (torch.uint8, torch.int64)
        assert targets.bincount().tolist() == counts[name]
        assert source.classes == tuple("0123456789")
    assert splits.train.content[1][:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert splits.test.content[1][:5].tolist() == [7, 2, 1, 0, 4]


def listed_in(message: str) -> list[str]:
    return [line.strip() for line in message.splitlines() if line.startswith("  ")]


def test_where_mnist_is_missing_the_error_names_its_four_files_and_their_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADSTEP_DATA", str(tmp_path))
    with pytest.raises(DataError) as caught:
        load_named("mnist")
    message = str(caught.value)
    assert listed_in(message) == MNIST
    assert f"into {tmp_path / 'mnist'}:" in message
    assert "GRADSTEP_DATA" in message
    assert not (tmp_path / "mnist").exists()  # nothing is made, nothing is fetched


def test_only_the_files_that_are_missing_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADSTEP_DATA", str(tmp_path))
    (tmp_path / "mnist").mkdir()
    for here, name in enumerate([MNIST[0], f"{MNIST[1]}.gz", MNIST[3]], start=1):
        (tmp_path / "mnist" / name).touch()
        with pytest.raises(DataError) as caught:
            load_named("mnist")
        assert len(listed_in(str(caught.value))) == 4 - here
    assert listed_in(str(caught.value)) == [MNIST[2]]


@pytest.mark.parametrize("gzipped", [False, True])
def test_mnists_files_serve_as_they_are_and_gzipped(tmp_path, monkeypatch, gzipped):
    monkeypatch.setenv("GRADSTEP_DATA", str(tmp_path))
    (tmp_path / "mnist").mkdir()
    for number, name in enumerate(MNIST):
        array = np.full((2 + number // 2, *([3, 3] if "images" in name else [])), number, "u1")
        path = tmp_path / "mnist" / (f"{name}.gz" if gzipped else name)
        path.write_bytes(gzip.compress(packed(array)) if gzipped else packed(array))
    splits = load_named("mnist")
    assert [(len(s), s.content[0].unique().tolist(), s.content[1].unique().tolist()) for _, s in splits.items()] == [
        (2, [0], [1]),
        (3, [2], [3]),
    ]


def test_digits_are_scikit_learns_times_15():
    from sklearn.datasets import load_digits

    theirs = load_digits()
    splits = load_named("digits")
    assert [name for name, _ in splits.items()] == ["train"]
    inputs, targets = splits.train.content
    assert len(splits.train) == 1797
    assert inputs.shape == (1797, 1, 8, 8)
    assert (inputs.dtype, targets.dtype) == (torch.uint8, torch.int64)
    np.testing.assert_array_equal(inputs.numpy()[:, 0], theirs.images * 15)
    np.testing.assert_array_equal(targets.numpy(), theirs.target)
    assert splits.train.classes == tuple("0123456789")


@pytest.mark.parametrize(("name", "meant"), [("minst", "mnist"), ("MNIST", "mnist"), ("digit", "digits")])
def test_a_misspelt_name_is_answered_with_the_nearest_one_and_the_list(name, meant):
    with pytest.raises(RecipeError) as caught:
        load_named(name)
    assert str(caught.value).startswith(f"there is no data set named '{name}'. Known: {', '.join(NAMED)}.")
    assert str(caught.value).endswith(f"Did you mean '{meant}'?")


def test_a_name_near_to_nothing_gets_the_list_alone():
    with pytest.raises(
        RecipeError, match=r"no data set named 'imagenet-21k'\. Known: digits, mnist, fashion_mnist, cifar10\.$"
    ):
        load_named("imagenet-21k")


def test_data_lie_where_gradstep_data_says_else_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("GRADSTEP_DATA", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert data_folder() == tmp_path / ".cache" / "gradstep"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data_folder() == tmp_path / "cache" / "gradstep"
    monkeypatch.setenv("GRADSTEP_DATA", str(tmp_path / "data"))
    assert data_folder() == tmp_path / "data"
