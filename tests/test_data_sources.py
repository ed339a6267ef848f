from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.utils.data import Dataset, TensorDataset

from gradstep import tree
from gradstep.data import Items, Part, Splits, Tensors, ToFloat, adapt, as_source, targets_in_memory
from gradstep.errors import DataError

Pair = namedtuple("Pair", "left right")
SUPPORTED = ["u1", "i1", "i2", "i4", "i8", "f2", "f4", "f8", "?", "c8"]


class Named(Dataset):
    """Map-style, with class names as torchvision's data sets have them."""

    classes = ["cat", "dog"]

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index):
        return {"x": torch.full((2,), float(index)), "name": f"no {index}"}, index % 2


def indices(length: int):
    return st.lists(st.integers(0, length - 1), max_size=2 * length).map(lambda n: torch.tensor(n, dtype=torch.int64))


def same(one, other) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())


# What is accepted


@given(indices(7), st.integers(0, 9), st.integers())
def test_a_batch_is_the_rows_asked_for_in_that_order_in_any_nest(numbers, epoch, seed):
    content = {"x": torch.randn(7, 2, 3), "more": [torch.arange(7), (torch.rand(7) > 0.5,)]}
    source = Tensors((content, torch.arange(7) * 10))
    inputs, targets = source.batch(numbers, epoch, seed)
    assert same(inputs["x"], content["x"][numbers])
    assert same(inputs["more"][0], numbers)
    assert same(inputs["more"][1][0], content["more"][1][0][numbers])
    assert same(targets, numbers * 10)
    assert len(source) == 7


def test_a_batch_is_a_copy_so_that_what_a_step_does_to_it_stays_in_the_step():
    x = torch.zeros(4, 2)
    source = as_source((x, torch.arange(4)), "train")
    source.batch(torch.arange(4), 0, 0)[0].add_(1)
    assert not x.any()


@given(hnp.arrays(st.sampled_from(SUPPORTED), hnp.array_shapes(max_dims=3, max_side=4)), st.booleans())
def test_an_array_becomes_the_tensor_of_the_same_numbers_writable_or_not(array, writable):
    array.flags.writeable = writable
    source = as_source((array, np.arange(len(array))), "train")
    assert len(source) == len(array)
    inputs, _ = source.batch(torch.arange(len(array)), 0, 0)
    np.testing.assert_array_equal(inputs.numpy(), array)
    assert inputs.numpy().dtype == array.dtype
    source.content[0].fill_(1)  # writes to what it may write to: a read-only array is untouched
    if not writable:
        assert not array.flags.writeable


@pytest.mark.parametrize("dtype", ["u2", "u4", "u8"])
def test_unsigned_integers_wider_than_a_byte_are_the_same_numbers_in_a_batch(dtype):
    """16-bit images are such, and class numbers; torch's `index_select` knows such rows, but no such single numbers."""
    array = np.array([0, 2, np.iinfo("u2").max], dtype)
    inputs, targets = as_source((array[:, None], array), "train").batch(torch.tensor([2, 0]), 0, 0)
    assert inputs.tolist() == [[65535], [0]]
    assert targets.tolist() == [65535, 0]


def test_a_read_only_array_is_never_written_to():
    array = np.zeros((3, 2))
    array.flags.writeable = False
    as_source((array, np.arange(3)), "train").content[0].fill_(1)
    assert not array.any()


@pytest.mark.parametrize(
    "view",
    [
        np.arange(12.0).reshape(6, 2)[::-1],
        np.arange(12.0).reshape(6, 2)[::2],
        np.arange(12.0).reshape(2, 6).T,
        np.broadcast_to(np.arange(2.0), (6, 2)),
        np.arange(12, dtype=">i4").reshape(6, 2),
        np.arange(12, dtype=">f8").reshape(6, 2),
    ],
    ids=["backwards", "strided", "transposed", "broadcast", "big-endian integers", "big-endian floats"],
)
def test_how_an_array_lies_in_memory_changes_nothing(view):
    source = as_source((view, np.arange(len(view))), "train")
    np.testing.assert_array_equal(source.batch(torch.arange(len(view)), 0, 0)[0].numpy(), view)


def test_arrays_deep_in_a_nest_become_tensors_and_named_tuples_stay_what_they_are():
    x, y = np.arange(6.0).reshape(3, 2), np.arange(3)
    for data in [({"a": [x, {"b": y}]}, y), (Pair(x, y), y), Pair(x, y)]:
        inputs, targets = as_source(data, "train").batch(torch.tensor([2, 0]), 0, 0)
        assert all(len(t) == 2 for t in tree.tensors((inputs, targets)))
        assert targets.tolist() == [2, 0]
        assert isinstance(inputs, (dict, Pair, torch.Tensor))


def test_a_tensor_dataset_is_taken_as_its_tensors_and_a_subclass_is_asked_itself():
    class Doubled(TensorDataset):
        def __getitem__(self, index):
            return tuple(2 * t for t in super().__getitem__(index))

    x, y, z = torch.rand(4, 2), torch.arange(4), torch.rand(4)
    plain, doubled = as_source(TensorDataset(x, y, z), "train"), as_source(Doubled(x, y, z), "train")
    assert plain.in_memory
    assert not doubled.in_memory
    numbers = torch.tensor([3, 1])
    for one, other, whole in zip(plain.batch(numbers, 0, 0), doubled.batch(numbers, 0, 0), (x, y, z), strict=True):
        assert same(one, whole[numbers])
        assert same(other, 2 * whole[numbers])


def test_a_map_style_data_set_is_collated_and_its_class_names_kept():
    source = as_source(Named(), "train")
    assert isinstance(source, Items)
    assert source.classes == ("cat", "dog")
    assert not source.in_memory
    inputs, targets = source.batch(torch.tensor([4, 1]), 0, 0)
    assert inputs["x"].tolist() == [[4, 4], [1, 1]]
    assert inputs["name"] == ["no 4", "no 1"]
    assert targets.tolist() == [0, 1]


def test_a_list_of_samples_is_a_data_set():
    source = as_source([(torch.tensor([float(i)]), i) for i in range(5)], "train")
    assert len(source) == 5
    assert source.batch(torch.tensor([3]), 0, 0)[1].tolist() == [3]


def test_a_source_stays_itself():
    source = Part(Tensors((torch.rand(4), torch.rand(4)), ("a",)), torch.tensor([1, 2]))
    assert as_source(source, "train") is source
    given_ = adapt(source, "train")
    assert given_.source is source
    assert (given_.batch_size, given_.shuffle, given_.drop_last, given_.workers) == (None,) * 4


# What is refused


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.rand(3, 2), "one Tensor has no targets. Give a pair"),
        (np.zeros((3, 2)), "one ndarray has no targets. Give a pair"),
        ((np.array([["a"], [1]], dtype=object), np.arange(2)), "an array of object can't become a tensor"),
        ((np.array(["a", "b"]), np.arange(2)), "an array of <U1 can't become a tensor"),
        ((np.zeros(2, "m8[s]"), np.arange(2)), "timedelta"),
        ((np.zeros(2, "M8[s]"), np.arange(2)), "datetime"),
        ((np.zeros(2, np.longdouble), np.arange(2)), "(longdouble|float128)"),
        ((np.zeros(2, [("a", "f4")]), np.arange(2)), "can't become a tensor"),
        ((torch.zeros(0, 2), torch.zeros(0)), "there are no samples"),
        ((np.zeros((0, 2)), np.zeros(0)), "there are no samples"),
        (TensorDataset(torch.zeros(0, 2), torch.zeros(0)), "there are no samples"),
        ([], "there are no samples"),
        (None, "NoneType can't be asked for sample number i"),
        ((n for n in range(3)), "generator can't be asked for sample number i"),
        (3, "int can't be asked for sample number i"),
        ("photos.csv", r"'photos.csv' is where data lies.*gradstep.data.open_data\('photos.csv'\).train"),
        (Path("photos"), r"Open it first: gradstep.data.open_data\('photos'\).train"),
        (Splits(Tensors((torch.zeros(2), torch.zeros(2)))), "all parts of a data set. Give one of them.*splits.train"),
    ],
)
def test_what_holds_no_samples_of_numbers_is_refused_by_name(data, message):
    with pytest.raises(DataError, match=f"^train: .*{message}"):
        as_source(data, "train")


def test_a_data_set_without_a_length_is_told_to_add_it():
    class Endless:
        def __getitem__(self, index):
            return index

    with pytest.raises(DataError, match=r"^valid: Endless has no __len__.*Add it"):
        as_source(Endless(), "valid")


@given(st.integers(0, 4), st.integers(0, 4))
def test_inputs_and_targets_of_different_lengths_are_refused_with_their_shapes(a, b):
    data = (torch.zeros(a, 2), {"y": torch.zeros(b, dtype=torch.int64)})
    if a != b:
        with pytest.raises(DataError, match=rf"same first dimension.*\({a}×2 float32, {{y: {b} int64}}\)"):
            as_source(data, "train")
    else:
        assert len(Tensors(data)) == a


@pytest.mark.parametrize(
    "content",
    [(), {}, ("text",), (torch.tensor(1.0), torch.rand(3)), (torch.tensor(1.0), torch.tensor(2.0)), torch.tensor(1.0)],
)
def test_what_has_no_common_first_dimension_is_no_source(content):
    with pytest.raises(DataError, match="must have the same first dimension"):
        Tensors(content)


@pytest.mark.parametrize(
    "data",
    [
        (torch.arange(5.0), [0, 1, 2, 3, 4]),
        ([0.0, 1.0, 2.0, 3.0, 4.0], [0, 1, 2, 3, 4]),
        (torch.arange(5.0), torch.arange(5), torch.ones(5)),
        (np.arange(5.0), range(5)),
    ],
    ids=["a list of targets", "two lists", "three tensors", "a range"],
)
def test_columns_are_never_taken_for_samples_nor_passed_on_whole(data):
    """Either every sample comes with its own target, or it is an error: anything else trains on the wrong pairs."""
    try:
        source = as_source(data, "train")
    except DataError:
        return
    assert len(source) == 5
    batch = source.batch(torch.tensor([3, 1]), 0, 0)
    assert [float(v) for v in batch[0]] == [3, 1]
    assert [int(v) for v in batch[1]] == [3, 1]


# Parts


@given(indices(9), st.data())
def test_a_part_is_its_samples_of_the_whole_and_a_part_of_a_part_too(numbers, data):
    x = torch.randn(9, 2)
    whole = Tensors((x, torch.arange(9)), ("a", "b"))
    part = Part(whole, numbers)
    assert len(part) == len(numbers)
    assert (part.classes, part.in_memory) == (("a", "b"), True)
    if len(numbers):
        asked = data.draw(indices(len(numbers)))
        assert same(part.batch(asked, 0, 0)[1], numbers[asked])
        assert same(part.batch(asked, 0, 0)[0], x[numbers[asked]])
        inner = Part(part, asked)
        every = torch.arange(len(asked))
        assert same(inner.batch(every, 0, 0)[1], numbers[asked])
        assert same(targets_in_memory(inner), numbers[asked])
    assert same(targets_in_memory(part), numbers)


def test_targets_are_known_only_where_they_lie_in_memory_as_the_second_of_a_pair():
    x, y = torch.rand(3), torch.arange(3)
    assert targets_in_memory(Tensors((x, y))) is y
    assert targets_in_memory(Tensors([x, {"y": y}]))["y"] is y
    assert targets_in_memory(Tensors((x, y, y))) is None
    assert targets_in_memory(Tensors({"x": x, "y": y})) is None
    assert targets_in_memory(Items(Named())) is None
    assert targets_in_memory(Part(Items(Named()), y)) is None


@pytest.mark.parametrize("source", [Tensors((torch.rand(5), torch.arange(5)), ("a",)), Items(Named(), classes=("a",))])
def test_a_source_under_transforms_is_the_same_samples_and_the_one_before_is_untouched(source):
    for one in (source, Part(source, torch.tensor([4, 0]))):
        under = one.transformed((ToFloat(),))
        assert (one.transforms, under.transforms) == ((), (ToFloat(),))
        assert (len(under), under.classes, under.in_memory) == (len(one), one.classes, one.in_memory)
        first = torch.tensor([0])
        assert torch.equal(under.batch(first, 0, 0)[1], one.batch(first, 0, 0)[1])


def test_splits_name_the_parts_that_are_there():
    source = Tensors((torch.rand(3), torch.rand(3)))
    assert Splits(source).items() == [("train", source)]
    assert [name for name, _ in Splits(source, test=source).items()] == ["train", "test"]
    assert [name for name, _ in Splits(source, source, source).items()] == ["train", "valid", "test"]
