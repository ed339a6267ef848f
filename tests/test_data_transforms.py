import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn import functional
from torch.utils.data import Dataset

from gradstep.data import (
    Feed,
    Items,
    Normalize,
    Resize,
    Splits,
    SubtractMean,
    Tensors,
    ToFloat,
    from_document,
    load_named,
    prepare,
)
from gradstep.data.transforms import CenterCrop, apply
from gradstep.errors import DataError, RecipeError

finite = st.floats(-1e6, 1e6)
positive = st.floats(1e-3, 1e3)
measured = st.one_of(
    st.just(ToFloat()),
    st.integers(1, 64).map(Resize),
    st.tuples(st.integers(1, 64), st.integers(1, 64)).map(Resize),
    st.integers(1, 3).flatmap(
        lambda n: st.builds(
            Normalize,
            st.lists(finite, min_size=n, max_size=n).map(tuple),
            st.lists(positive, min_size=n, max_size=n).map(tuple),
        )
    ),
    st.builds(SubtractMean, finite),
)


def images(number: int, *shape: int, dtype=torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.rand(number, *shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def splits(train, valid=None, test=None) -> Splits:
    def source(inputs):
        return None if inputs is None else Tensors((inputs, torch.arange(len(inputs))))

    return Splits(source(train), source(valid), source(test))


def transformed(parts: Splits, name: str = "train"):
    """All inputs of one part, as its feed gives them."""
    source = dict(parts.items())[name]
    return Feed(source, len(source), shuffle=False)[0][0]


def bilinear(image: np.ndarray, size: int, axis: int) -> np.ndarray:
    """One axis at a time: a triangle around each new pixel's centre, as wide as it takes when the image shrinks."""
    old = image.shape[axis]
    scale = old / size
    width = max(scale, 1.0)
    centres = (np.arange(size) + 0.5) * scale
    weights = np.maximum(0, 1 - np.abs(np.arange(old)[None] + 0.5 - centres[:, None]) / width)
    weights /= weights.sum(1, keepdims=True)
    return np.moveaxis(np.tensordot(weights, image, (1, axis)), 0, axis)


# float


def test_every_grey_value_is_its_255th_in_float32():
    values = torch.arange(256, dtype=torch.uint8).reshape(64, 4)
    assert torch.equal(ToFloat()(values), torch.from_numpy(np.arange(256, dtype=np.float32).reshape(64, 4) / 255))
    assert values.dtype == torch.uint8


@given(st.lists(st.integers(-(2**23), 2**23), min_size=1, max_size=9), st.sampled_from([torch.int32, torch.int64]))
def test_other_integers_keep_their_values(values, dtype):
    floats = ToFloat()(torch.tensor(values, dtype=dtype))
    assert floats.dtype == torch.float32
    assert floats.tolist() == values


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_are_left_as_they_are(dtype):
    values = torch.tensor([300.0, -1.0], dtype=dtype)
    assert ToFloat()(values) is values


def test_booleans_become_zero_and_one():
    assert ToFloat()(torch.tensor([True, False])).tolist() == [1.0, 0.0]


# resize


@given(st.tuples(*[st.integers(1, 12)] * 2), st.tuples(*[st.integers(1, 12)] * 2), st.integers(1, 3))
def test_resizing_is_bilinear_and_antialiased_where_it_shrinks(old, new, channels):
    assume(new[1] > 1)  # one column has its own test, below
    batch = images(2, channels, *old, dtype=torch.float64)
    resized = Resize(new)(batch)
    expected = bilinear(bilinear(batch.numpy(), new[0], 2), new[1], 3)
    np.testing.assert_allclose(resized.numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("old", "new"), [((3, 1), (2, 1)), ((4, 4), (4, 1)), ((2, 3), (5, 1)), ((4, 4), (1, 1))])
def test_resizing_to_one_column_is_right_too(old, new):
    """torch 2.13 on the CPU gets this wrong under antialias: every row of the column comes out as the first."""
    batch = images(2, 2, *old, dtype=torch.float64)
    expected = bilinear(bilinear(batch.numpy(), new[0], 2), new[1], 3)
    np.testing.assert_allclose(Resize(new)(batch).numpy(), expected, rtol=0, atol=1e-12)


@given(st.integers(1, 12), st.integers(1, 12), finite)
def test_an_even_image_stays_even_at_any_size(old, new, value):
    resized = Resize(new)(torch.full((1, 1, old, 5), value, dtype=torch.float64))
    assert resized.shape == (1, 1, new, new)
    torch.testing.assert_close(resized, torch.full_like(resized, value), rtol=1e-12, atol=1e-12)


def test_resizing_to_the_same_size_changes_no_bit():
    batch = images(2, 1, 7, 5)
    assert Resize((7, 5))(batch) is batch


def test_an_image_is_resized_by_itself():
    batch = images(5, 2, 9, 9)
    assert torch.equal(Resize(4)(batch)[2:3], Resize(4)(batch[2:3].clone()))


def test_growing_is_torchs_plain_bilinear():
    batch = images(2, 3, 5, 6)
    assert torch.equal(Resize((9, 8))(batch), functional.interpolate(batch, (9, 8), mode="bilinear"))


@pytest.mark.parametrize("batch", [torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, 4, 4), torch.zeros(2, 4)])
def test_resizing_wants_float_images_and_says_what_it_got(batch):
    dtype = str(batch.dtype).removeprefix("torch.")
    with pytest.raises(DataError) as caught:
        Resize(3)(batch)
    assert f"got {list(batch.shape)} {dtype}. Put 'float' before 'resize'." in str(caught.value)


# normalize, subtract_mean


@given(
    st.integers(1, 4), st.sampled_from([(), (3,), (2, 3)]), st.sampled_from([torch.float32, torch.float64]), st.data()
)
def test_each_channel_is_shifted_and_scaled_by_its_own_numbers(channels, rest, dtype, data):
    mean = data.draw(st.lists(st.floats(-9, 9), min_size=channels, max_size=channels))
    std = data.draw(st.lists(positive, min_size=channels, max_size=channels))
    batch = images(3, channels, *rest, dtype=dtype)
    result = Normalize(tuple(mean), tuple(std))(batch)
    assert result.dtype == dtype
    shape = (1, channels, *[1] * len(rest))
    kind = batch.numpy().dtype
    expected = (batch.numpy() - np.array(mean, kind).reshape(shape)) / np.array(std, kind).reshape(shape)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-6 if dtype == torch.float32 else 1e-14, atol=0)


def test_one_number_serves_all_channels():
    batch = images(3, 2, 4)
    assert torch.equal(Normalize((0.5,), (0.25,))(batch), (batch - 0.5) / 0.25)
    assert torch.equal(Normalize((0.5,), (0.25,))(batch[:, 0, 0]), (batch[:, 0, 0] - 0.5) / 0.25)


def test_a_wrong_number_of_channels_is_an_error_with_both_counts():
    with pytest.raises(DataError, match="normalize has 3 numbers for mean, and the inputs 2 channels"):
        Normalize((0.0,) * 3, (1.0,) * 3)(images(4, 2, 3))


@given(finite)
def test_subtract_mean_takes_one_number_from_everything(mean):
    batch = images(3, 2, 4, dtype=torch.float64)
    np.testing.assert_array_equal(SubtractMean(mean)(batch).numpy(), batch.numpy() - mean)


@pytest.mark.parametrize("transform", [Normalize((0.0,), (1.0,)), SubtractMean(0.5)])
def test_integers_are_refused_with_the_remedy(transform):
    with pytest.raises(DataError, match=r"needs floats and got torch\.uint8\. Put 'float' before"):
        transform(torch.zeros(2, 1, 3, dtype=torch.uint8))


@pytest.mark.parametrize("transform", [Normalize(), SubtractMean()])
def test_what_was_not_measured_yet_refuses_to_work(transform):
    with pytest.raises(DataError, match=r"measured by `gradstep\.data\.prepare`"):
        transform(images(2, 1, 3))


@pytest.mark.parametrize("transform", [ToFloat(), Resize(5), Normalize((0.5,), (0.5,)), SubtractMean(0.5)])
def test_no_transform_writes_to_its_inputs(transform):
    batch = images(2, 1, 4, 4)
    before = batch.clone()
    transform(batch)
    assert torch.equal(batch, before)


# Measuring


@given(st.integers(1, 3), st.sampled_from([(), (2,), (2, 2)]), st.integers(1, 40))
def test_measured_numbers_are_the_means_and_deviations_of_all_values_of_a_channel(channels, rest, number):
    x = images(number, channels, *rest)
    (normalize, subtract) = (prepare(splits(x), [t]).train.transforms[0] for t in (Normalize(), SubtractMean()))
    axes = (0, *range(2, x.dim()))
    double = x.numpy().astype(np.float64)
    np.testing.assert_allclose(normalize.mean, double.mean(axes), rtol=1e-12)
    std = double.std(axes)
    np.testing.assert_allclose(normalize.std, np.where(std > 0, std, 1.0), rtol=1e-9)
    assert subtract.mean == pytest.approx(double.mean(), rel=1e-12)


def test_every_sample_counts_the_same_however_measuring_cuts_the_data():
    """The last piece is smaller than the others: a mean of means would be off."""
    x = torch.cat([torch.zeros(2048, 1), torch.full((52, 1), 100.0)])
    normalize, subtract = (prepare(splits(x), [t]).train.transforms[0] for t in (Normalize(), SubtractMean()))
    assert normalize.mean[0] == subtract.mean == pytest.approx(5200 / 2100, rel=1e-14)
    assert normalize.std[0] == pytest.approx(x.double().std(correction=0).item(), rel=1e-12)


@pytest.mark.parametrize("offset", [1e6, -1e9])
def test_a_large_offset_costs_neither_mean_nor_deviation_their_precision(offset):
    x = images(1500, 2, dtype=torch.float64) + offset
    normalize, subtract = (prepare(splits(x), [t]).train.transforms[0] for t in (Normalize(), SubtractMean()))
    exact = [math.fsum(column) / len(x) for column in x.T.tolist()]
    np.testing.assert_allclose(normalize.mean, exact, rtol=1e-14)
    assert subtract.mean == pytest.approx(math.fsum(exact) / 2, rel=1e-14)
    spread = [math.sqrt(math.fsum((v - m) ** 2 for v in column) / len(x)) for column, m in zip(x.T.tolist(), exact, strict=True)]  # fmt: skip  # noqa: E501
    np.testing.assert_allclose(normalize.std, spread, rtol=1e-9)


def test_many_float32_values_are_summed_in_float64():
    x = images(3000, 40) + 1000
    normalize, subtract = (prepare(splits(x), [t]).train.transforms[0] for t in (Normalize(), SubtractMean()))
    exact = x.numpy().astype(np.float64)
    np.testing.assert_allclose(normalize.mean, exact.mean(0), rtol=1e-13)
    np.testing.assert_allclose(normalize.std, exact.std(0), rtol=1e-9)
    assert subtract.mean == pytest.approx(exact.mean(), rel=1e-13)


@given(st.floats(-1e9, 1e9), st.sampled_from([torch.float32, torch.float64]), st.integers(1, 7))
def test_a_channel_that_never_varies_is_only_centred(value, dtype, number):
    x = torch.stack([torch.full((number,), value, dtype=dtype), torch.arange(number).to(dtype)], 1)
    parts = prepare(splits(x), [Normalize()])
    assert parts.train.transforms[0].std[0] == 1.0
    assert transformed(parts)[:, 0].abs().max() <= 1e-9 * max(1.0, abs(value))


@given(st.sampled_from([Normalize(), SubtractMean()]), st.integers(0, 5))
def test_only_the_training_part_is_measured_and_all_parts_get_its_numbers(transform, seed):
    train = images(6, 2, seed=seed)
    alone = prepare(splits(train), [transform]).train.transforms
    parts = prepare(splits(train, 50 + images(4, 2, seed=seed + 1), images(3, 2) * 1e6), [transform])
    assert [source.transforms for _, source in parts.items()] == [alone] * 3
    assert prepare(splits(train + 1, train), [transform]).valid.transforms != alone
    only = prepare(splits(train), [transform])
    assert (only.valid, only.test) == (None, None)


def test_each_transform_is_measured_on_what_the_ones_before_it_leave():
    x = (images(20, 1, 6, 6) * 255).to(torch.uint8)
    floats = x.float() / 255
    parts = prepare(splits(x), [ToFloat(), Resize(3), SubtractMean(), Normalize(), SubtractMean()])
    _, _, first, normalize, last = parts.train.transforms
    small = functional.interpolate(floats, (3, 3), mode="bilinear", antialias=True).double()
    assert first.mean == pytest.approx(small.mean().item(), rel=1e-6)
    assert first.mean != pytest.approx(floats.mean().item(), rel=1e-6)
    assert abs(normalize.mean[0]) < 1e-6
    assert normalize.std[0] == pytest.approx(small.std(correction=0).item(), rel=1e-5)
    assert abs(last.mean) < 1e-6
    result = transformed(parts).double()
    assert abs(result.mean()) < 1e-6
    assert result.std(correction=0) == pytest.approx(1, rel=1e-5)
    swapped = prepare(splits(floats), [Normalize(), Resize(3)]).train.transforms[0]
    assert swapped.std[0] == pytest.approx(floats.double().std(correction=0).item(), rel=1e-6)


def test_numbers_that_are_given_are_not_measured_again():
    given_ = [Normalize((3.0,), (2.0,)), SubtractMean(7.0)]
    assert list(prepare(splits(images(5, 1)), given_).train.transforms) == given_


def test_integers_can_be_measured_as_they_are():
    x = torch.tensor([[1, 10], [3, 30]])
    assert prepare(splits(x), [Normalize()]).train.transforms == (Normalize((2.0, 20.0), (1.0, 10.0)),)


def test_a_data_set_read_sample_by_sample_is_measured_too():
    class Squares(Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return torch.tensor([float(index**2)]), index

    parts = prepare(Splits(Items(Squares())), [SubtractMean()])
    assert parts.train.transforms == (SubtractMean(3.5),)


@pytest.mark.parametrize("transforms", [[ToFloat()], [Normalize()], [SubtractMean()], [Normalize((0.0,), (1.0,))]])
def test_inputs_that_are_no_single_tensor_are_refused(transforms):
    nested = Splits(Tensors(({"x": images(3, 1)}, torch.arange(3))))
    with pytest.raises(DataError, match="transforms work on one tensor of inputs, and these are a dict"):
        transformed(prepare(nested, transforms))


def test_the_numbers_of_mnist_are_the_ones_everybody_knows(mnist):
    parts = prepare(load_named("mnist"), [ToFloat(), Normalize()])
    normalize = parts.test.transforms[1]
    assert round(normalize.mean[0], 4) == 0.1307
    assert round(normalize.std[0], 4) == 0.3081


# Documents


@given(measured)
def test_a_document_reads_back_as_the_transform_that_wrote_it(transform):
    assert from_document(transform.document()) == transform


@pytest.mark.parametrize("transform", [Normalize(), SubtractMean()])
def test_what_is_still_to_be_measured_is_written_so(transform):
    assert from_document(transform.document()) == transform


@pytest.mark.parametrize(
    ("document", "transform"),
    [
        ("float", ToFloat()),
        ({"resize": 32}, Resize(32)),
        ({"resize": [28, 32]}, Resize((28, 32))),
        ({"normalize": "measured"}, Normalize()),
        ({"normalize": {"mean": [0.5, 1], "std": [0.5, 2]}}, Normalize((0.5, 1.0), (0.5, 2.0))),
        ({"normalize": {"mean": 0, "std": 0.5}}, Normalize((0.0,), (0.5,))),
        ({"subtract_mean": "measured"}, SubtractMean()),
        ({"subtract_mean": 0}, SubtractMean(0.0)),
        ({"subtract_mean": -1.5}, SubtractMean(-1.5)),
    ],
)
def test_a_recipe_writes_a_transform_like_this(document, transform):
    assert from_document(document) == transform


nan, inf = float("nan"), float("inf")


@pytest.mark.parametrize(
    "document",
    [
        None,
        3,
        True,
        "",
        "resize",
        "normalize",
        "subtract_mean",
        "blur",
        [],
        ["float"],
        {},
        {3: 4},
        {"float": 3},
        {"resize": None},
        {"resize": "32"},
        {"resize": 0},
        {"resize": -1},
        {"resize": True},
        {"resize": 32.5},
        {"resize": []},
        {"resize": [32]},
        {"resize": [32, 0]},
        {"resize": [32, 32, 3]},
        {"resize": [32, True]},
        {"resize": [32.7, 32]},
        {"resize": [nan, 32]},
        {"resize": [inf, 32]},
        {"resize": {"height": 3}},
        {"normalize": None},
        {"normalize": "yes"},
        {"normalize": 0.5},
        {"normalize": [0.5, 0.5]},
        {"normalize": {}},
        {"normalize": {"mean": [0.5]}},
        {"normalize": {"mean": [0.5], "std": [0.5], "eps": 1}},
        {"normalize": {"mean": [], "std": []}},
        {"normalize": {"mean": [0.5, 0.5], "std": [0.5]}},
        {"normalize": {"mean": [0.5], "std": [0]}},
        {"normalize": {"mean": [0.5], "std": [-1]}},
        {"normalize": {"mean": [0.5, 0.5], "std": [1, nan]}},
        {"normalize": {"mean": [nan], "std": [1]}},
        {"normalize": {"mean": [0.5], "std": [inf]}},
        {"normalize": {"mean": None, "std": None}},
        {"normalize": {"mean": "0.5", "std": "0.5"}},
        {"normalize": {"mean": ["0.5"], "std": [1]}},
        {"normalize": {"mean": True, "std": True}},
        {"subtract_mean": None},
        {"subtract_mean": "0.5"},
        {"subtract_mean": [0.5]},
        {"subtract_mean": True},
        {"subtract_mean": nan},
        {"subtract_mean": inf},
        {"resize": 32, "normalize": "measured"},
    ],
    ids=str,
)
def test_every_other_form_is_an_error_that_shows_what_was_written_or_what_is_allowed(document):
    with pytest.raises(RecipeError) as caught:
        from_document(document)
    message = str(caught.value)
    assert message.startswith("transforms: ")
    assert repr(document) in message or "resize takes positive sizes" in message


@pytest.mark.parametrize(
    ("document", "meant"),
    [
        ("Float", "float"),
        ("flaot", "float"),
        ({"rezise": 32}, "resize"),
        ({"normalise": "measured"}, "normalize"),
        ({"substract_mean": "measured"}, "subtract_mean"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest_one_and_all_forms(document, meant):
    with pytest.raises(RecipeError, match=f"float, {{resize: 32}}, .* Did you mean '{meant}'\\?$"):
        from_document(document)


class Keeps:
    """A transform of the user's, which keeps what it is given."""

    def __init__(self):
        self.kept = []

    def __call__(self, inputs):
        self.kept.append((inputs, inputs.clone()))
        return inputs


NAMES = st.lists(st.sampled_from(["float", "normalize", "resize", "crop", "keeps"]), max_size=5)


@given(NAMES, st.booleans())
def test_transforms_in_a_row_are_each_by_itself_and_write_over_nothing_but_their_own(names, floats):
    keeps = Keeps()
    made = {"float": ToFloat(), "normalize": Normalize([0.1, 0.2, 0.3], (0.5, 0.25, 2.0)), "resize": Resize(6),
            "crop": CenterCrop(4), "keeps": keeps}  # fmt: skip
    pixels = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    inputs = pixels.float() if floats else pixels
    before, chain, expected = inputs.clone(), [made[name] for name in names], inputs
    for transform in chain:
        try:
            expected = transform(expected.clone())
        except DataError:  # integers can't be normalised
            with pytest.raises(DataError):
                apply(chain, inputs)
            return
    assert torch.equal(apply(chain, inputs), expected)
    assert torch.equal(inputs, before)
    assert all(torch.equal(given, then) for given, then in keeps.kept)
