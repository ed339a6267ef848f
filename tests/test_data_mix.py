"""Mix-up and cut-mix against ones written pixel by pixel, and their shares against Beta's."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gradstep.data import (
    BatchDraws,
    CutMix,
    Feed,
    Flip,
    MixUp,
    Normalize,
    Tensors,
    ToFloat,
    load_named,
    prepare,
)
from gradstep.errors import DataError

shapes = st.tuples(st.integers(1, 6), st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9))
seeds = st.integers(0, 2**40)
alphas = st.sampled_from([0.1, 0.2, 1, 2.0])
SWITCH, PLACE = 2**32 - 1, 2**32 - 2  # the attempts that say whether a batch is mixed, and where its rectangle is


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def labels(number, classes=10, seed=0):
    return torch.randint(classes, (number,), generator=torch.Generator().manual_seed(seed))


def one_hot(targets, classes=10):
    return np.eye(classes)[targets.numpy()]


def is_mixed_by(share, partners, values, mixed):
    expected = share * values + (1 - share) * values[partners]
    np.testing.assert_allclose(mixed, expected, rtol=0, atol=1e-6)


# mixup


@settings(max_examples=30)
@given(shapes, alphas, seeds, st.integers(0, 10_000), st.integers(0, 3))
def test_mixup_is_a_weighted_mean_of_two_samples(shape, alpha, seed, step, place):
    inputs, targets, draws = images(*shape), labels(shape[0]), BatchDraws(seed, step, place)
    before = inputs.clone(), targets.clone()
    mixed, soft = MixUp(alpha)(inputs, targets, draws, 10)
    share, partners = draws.beta(alpha), draws.partners(shape[0]).numpy()
    is_mixed_by(share, partners, inputs.numpy(), mixed.numpy())
    is_mixed_by(share, partners, one_hot(targets), soft.numpy())
    torch.testing.assert_close(soft.sum(1), torch.ones(shape[0]))
    assert soft.dtype == inputs.dtype
    assert torch.equal(inputs, before[0])
    assert torch.equal(targets, before[1])


@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 2, 7), (5, 1, 2, 3, 4)])
def test_mixup_takes_inputs_of_any_shape(shape):
    inputs, draws = images(*shape), BatchDraws(0, 0)
    mixed, _ = MixUp(1)(inputs, labels(5), draws, 10)
    is_mixed_by(draws.beta(1), draws.partners(5).numpy(), inputs.numpy(), mixed.numpy())


@pytest.mark.parametrize("mix", [MixUp(), CutMix()])
def test_a_sample_of_its_own_stays_as_it_is(mix):
    inputs = images(1, 3, 8, 8)
    mixed, soft = mix(inputs, labels(1), BatchDraws(0, 0), 10)
    torch.testing.assert_close(mixed, inputs)
    torch.testing.assert_close(soft.double(), torch.from_numpy(one_hot(labels(1))))


# cutmix


def rectangle(mixed, inputs, partners):
    """`[H, W]`: where the batch is its partners'. Every pixel of every image is another, so it is read off."""
    same = (mixed == inputs).all(1)
    other = (mixed == inputs[partners]).all(1)
    assert bool((same | other).all())
    moved = partners != torch.arange(len(inputs))
    where = other[moved][0] & ~same[moved][0]
    assert bool((other[moved] == where).all())  # one rectangle for the whole batch
    assert bool((same[moved] == ~where).all())
    return where


@settings(max_examples=40)
@given(
    st.tuples(st.integers(2, 6), st.sampled_from([1, 3]), st.integers(1, 13), st.integers(1, 13)),
    alphas,
    seeds,
    st.integers(0, 10_000),
)
def test_cutmix_is_a_rectangle_of_the_partner_and_targets_by_what_is_seen(shape, alpha, seed, step):
    inputs, targets, draws = images(*shape), labels(shape[0]), BatchDraws(seed, step)
    before = inputs.clone()
    mixed, soft = CutMix(alpha)(inputs, targets, draws, 10)
    partners = draws.partners(shape[0])
    side = math.sqrt(1 - draws.beta(alpha))
    tall, wide = int(shape[2] * side), int(shape[3] * side)
    v, u = draws.uniform(2, PLACE)
    middle = int(v * shape[2]), int(u * shape[3])
    inside = np.zeros(shape[2:], bool)
    for y in range(shape[2]):
        for x in range(shape[3]):
            inside[y, x] = (
                middle[0] - tall // 2 <= y < middle[0] - tall // 2 + tall
                and middle[1] - wide // 2 <= x < middle[1] - wide // 2 + wide
            )
    expected = np.where(inside, inputs[partners].numpy(), inputs.numpy())
    assert np.array_equal(mixed.numpy(), expected)
    share = 1 - inside.sum() / inside.size
    is_mixed_by(share, partners.numpy(), one_hot(targets), soft.numpy())
    torch.testing.assert_close(soft.sum(1), torch.ones(shape[0]))
    assert torch.equal(inputs, before)


def test_the_share_of_a_target_is_the_share_of_pixels_seen():
    """Read off the images alone, without asking for the draws."""
    inputs, targets = images(6, 1, 17, 23), torch.arange(6)
    cut = 0
    for step in range(200):
        draws = BatchDraws(5, step)
        mixed, soft = CutMix()(inputs, targets, draws, 6)
        partners = draws.partners(6)
        if bool((partners == torch.arange(6)).all()):
            continue
        where = rectangle(mixed, inputs, partners)
        rows, columns = where.any(1), where.any(0)
        assert torch.equal(where, rows[:, None] & columns[None])
        own = torch.where(partners == torch.arange(6), 1.0, 1 - float(where.double().mean()))
        torch.testing.assert_close(soft[torch.arange(6), targets], own.float())
        cut += bool(where[0].any() or where[-1].any() or where[:, 0].any() or where[:, -1].any())
    assert 20 < cut < 200  # rectangles that an edge cuts were among them, and others


def test_the_middle_of_the_rectangle_is_anywhere():
    middles = np.zeros((8, 8))
    for step in range(2_000):
        draws = BatchDraws(1, step)
        v, u = draws.uniform(2, PLACE)
        middles[int(8 * v), int(8 * u)] += 1
    mean = 2_000 / 64
    assert (np.abs(middles - mean) < 5 * math.sqrt(mean)).all()


# both


@pytest.mark.parametrize("mix", [MixUp(p=0), CutMix(p=0)])
def test_with_p_zero_inputs_are_left_alone_and_targets_are_still_probabilities(mix):
    inputs, targets = images(7, 1, 5, 5), labels(7)
    for step in range(50):
        mixed, soft = mix(inputs, targets, BatchDraws(0, step), 10)
        assert torch.equal(mixed, inputs)
        assert np.array_equal(soft.numpy(), one_hot(targets))


@pytest.mark.parametrize("kind", [MixUp, CutMix])
@pytest.mark.parametrize("p", [0.3, 1.0])
def test_p_is_the_share_of_batches_that_are_mixed(kind, p):
    inputs, targets, steps = images(12, 1, 30, 30), labels(12), 400
    mixed = [not torch.equal(kind(1, p)(inputs, targets, BatchDraws(0, step), 10)[0], inputs) for step in range(steps)]
    missed = 0.02 if kind is CutMix else 0.0  # a rectangle of no pixel is no mix
    assert abs(np.mean(mixed) - p) <= 5 * math.sqrt(p * (1 - p) / steps) + missed


@pytest.mark.parametrize("alpha", [0.2, 1])
def test_over_2000_steps_the_shares_of_mixup_are_betas(alpha):
    """Read off the targets, as they come out."""
    inputs, targets, found = images(3, 2), torch.tensor([0, 1, 2]), []
    for step in range(2_000):
        draws = BatchDraws(11, step)
        _, soft = MixUp(alpha)(inputs.double(), targets, draws, 3)
        moved = (draws.partners(3) != torch.arange(3)).nonzero()
        if len(moved):
            found.append(float(soft[moved[0, 0], targets[moved[0, 0]]]))
    theirs, n = stats.beta(alpha, alpha), len(found)
    assert n > 1_500
    assert abs(np.mean(found) - 0.5) < 5 * theirs.std() / math.sqrt(n)
    for share in (0.1, 0.25, 0.5, 0.75, 0.9):
        below = np.mean(np.array(found) <= theirs.ppf(share))
        assert abs(below - share) < 5 * math.sqrt(share * (1 - share) / n)


def test_over_2000_steps_the_sides_of_cutmix_are_the_roots_of_betas():
    """Rectangles that no edge cuts would be too small, so the sides are asked of `box` where they lie inside."""
    areas = []
    for step in range(2_000):
        top, bottom, left, right = CutMix(1).box(BatchDraws(4, step), 1_000, 1_000)
        side = math.sqrt(1 - BatchDraws(4, step).beta(1))
        assert bottom - top <= int(1_000 * side)
        assert right - left <= int(1_000 * side)
        assert 0 <= top <= bottom <= 1_000
        assert 0 <= left <= right <= 1_000
        if top > 0 and bottom < 1_000 and left > 0 and right < 1_000:
            assert bottom - top == right - left == int(1_000 * side)
        areas.append(side**2)
    assert abs(np.mean(areas) - 0.5) < 5 * math.sqrt(1 / 12 / 2_000)
    assert np.abs(np.sort(areas) - (np.arange(2_000) + 0.5) / 2_000).max() < 0.05


@pytest.mark.parametrize("mix", [MixUp(1), CutMix(1)])
def test_partners_come_from_the_whole_batch(mix):
    """Every sample is mixed with every other one sooner or later, the first with the last too."""
    number = 8
    met = torch.zeros(number, number)
    for step in range(150):
        met += (mix(images(number, 1, 16, 16), torch.arange(number), BatchDraws(2, step), number)[1] > 0).float()
    assert bool((met > 3).all())


@pytest.mark.parametrize("mix", [MixUp(), CutMix()])
@pytest.mark.parametrize("shape", [(6,), (6, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float_targets_are_mixed_as_they_are(mix, shape, dtype):
    inputs, targets = images(6, 1, 8, 8), images(*shape, seed=1).to(dtype)
    for step in range(20):
        draws = BatchDraws(0, step)
        _, soft = mix(inputs, targets, draws, None)
        assert soft.dtype == dtype
        assert soft.shape == shape
        partners = draws.partners(6)
        if isinstance(mix, MixUp):
            share = draws.beta(mix.alpha)
        else:
            top, bottom, left, right = mix.box(draws, 8, 8)
            share = 1 - (bottom - top) * (right - left) / 64
        is_mixed_by(share, partners.numpy(), targets.numpy(), soft.numpy())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("mix", [MixUp(), CutMix()])
def test_the_inputs_keep_their_type_and_the_targets_take_it(mix, dtype):
    mixed, soft = mix(images(4, 1, 6, 6).to(dtype), labels(4), BatchDraws(0, 0), 10)
    assert mixed.dtype == soft.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_class_numbers_may_be_integers_of_any_kind(dtype):
    _, soft = MixUp(p=0)(images(4, 2), torch.tensor([0, 2, 1, 2]).to(dtype), BatchDraws(0, 0), 3)
    assert soft.argmax(1).tolist() == [0, 2, 1, 2]


@settings(max_examples=20)
@given(st.sampled_from([MixUp(1), CutMix(1)]), st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 3))
def test_a_batch_is_a_function_of_seed_step_and_place(mix, seed, step, place):
    inputs, targets = images(16, 1, 12, 12), labels(16)
    here = mix(inputs, targets, BatchDraws(seed, step, place), 10)[1]
    torch.rand(3)
    assert torch.equal(mix(inputs, targets, BatchDraws(seed, step, place), 10)[1], here)
    others = [(seed + 1, step, place), (seed, step + 1, place), (seed, step, place + 1)]
    assert all(not torch.equal(mix(inputs, targets, BatchDraws(*other), 10)[1], here) for other in others)


# in a feed


def a_feed(mixes, classes=("a", "b", "c"), targets=None, **more):
    targets = labels(40, 3) if targets is None else targets
    source = Tensors((images(40, 1, 6, 6), targets), classes)
    return Feed(source, 8, shuffle=True, augment=mixes, **more)


def test_the_number_of_classes_is_the_sources_or_the_options():
    assert a_feed([MixUp()])[0][1].shape == (8, 3)
    assert a_feed([MixUp(classes=5)])[0][1].shape == (8, 5)
    assert a_feed([CutMix(classes=5)], None)[0][1].shape == (8, 5)


@pytest.mark.parametrize("kind", [MixUp, CutMix])
def test_unknown_classes_are_an_error_that_says_what_to_write(kind):
    name = kind.__name__.lower()
    with pytest.raises(DataError) as caught:
        a_feed([kind()], None)[0]
    assert f"Write {{{name}: {{alpha: 0.2, classes: 10}}}}." in str(caught.value)
    with pytest.raises(DataError, match=r"these targets are \[8, 2\] and the data has 3 classes"):
        a_feed([kind()], targets=labels(80, 3).reshape(40, 2))[0]


@pytest.mark.parametrize("kind", [MixUp, CutMix])
def test_targets_that_are_no_tensor_are_an_error(kind):
    with pytest.raises(DataError, match=f"{kind.__name__.lower()} mixes targets that are one tensor, .* a dict"):
        a_feed([kind()], targets={"a": labels(40)})[0]


def test_mixup_wants_floats_and_cutmix_images():
    whole = torch.zeros(4, 1, 3, 3, dtype=torch.uint8)
    with pytest.raises(DataError, match=r"mixup needs floats and got torch.uint8. Put 'float' into data.transforms"):
        MixUp()(whole, labels(4), BatchDraws(0, 0), 10)
    with pytest.raises(DataError, match=r"cutmix needs a batch of images \[N, C, H, W\] and got \[4, 3\]"):
        CutMix()(images(4, 3), labels(4), BatchDraws(0, 0), 10)
    mixed, soft = CutMix()(whole, labels(4), BatchDraws(0, 0), 10)  # bytes can be cut, and are not averaged
    assert (mixed.dtype, soft.dtype) == (torch.uint8, torch.float32)


@pytest.mark.parametrize("mix", [MixUp(p=0), MixUp(p=1), CutMix(p=0)])
def test_errors_do_not_wait_for_the_batch_that_is_mixed(mix):
    """Otherwise a training with a small p would end in the middle."""
    with pytest.raises(DataError):
        mix(images(4, 1, 3, 3), labels(4), BatchDraws(0, 0), None)


@pytest.mark.parametrize("mix", [MixUp(), CutMix()])
@pytest.mark.parametrize("label", [10, -1, -100])
def test_a_label_that_is_no_class_is_an_error_that_names_it(mix, label):
    with pytest.raises(DataError, match=str(label)):
        mix(images(3, 1, 4, 4), torch.tensor([0, 1, label]), BatchDraws(0, 0), 10)


@pytest.mark.parametrize("mix", [MixUp(), CutMix()])
def test_inputs_that_are_no_tensor_are_an_error(mix):
    source = Tensors(({"image": images(6, 1, 4, 4)}, labels(6)), tuple("abcdefghij"))
    with pytest.raises(DataError, match="dict"):
        Feed(source, 3, shuffle=True, augment=[mix])[0]


@pytest.mark.parametrize("mix", [MixUp(), CutMix(), Flip()])
@pytest.mark.parametrize("content", [images(6, 1, 4, 4), {"x": images(6, 1, 4, 4), "y": labels(6)}], ids=type)
def test_a_batch_that_is_no_pair_is_an_error(mix, content):
    with pytest.raises(DataError, match=r"pair|\(inputs, targets\)"):
        Feed(Tensors(content), 3, shuffle=True, augment=[mix])[0]


def test_a_feed_mixes_after_the_transforms_and_by_its_step(mnist):
    splits = prepare(load_named("mnist"), [ToFloat(), Normalize()], [Flip(), MixUp(1.0)])
    source = splits.train
    feed = Feed(source, 64, shuffle=True, seed=3, augment=source.augment)
    plain = Feed(source, 64, shuffle=True, seed=3, augment=source.augment[:1])
    for step in (0, 5, feed.steps_per_epoch, 2 * feed.steps_per_epoch + 1):
        (mixed, soft), (inputs, targets) = feed[step], plain[step]
        draws = BatchDraws(3, step, 1)
        is_mixed_by(draws.beta(1.0), draws.partners(64).numpy(), inputs.numpy(), mixed.numpy())
        is_mixed_by(draws.beta(1.0), draws.partners(64).numpy(), one_hot(targets), soft.numpy())


def test_what_lies_in_memory_is_not_written_to():
    content = (images(40, 1, 6, 6), labels(40, 3))
    before = [part.clone() for part in content]
    feed = Feed(Tensors(content, ("a", "b", "c")), 40, shuffle=False, augment=[Flip(), MixUp(), CutMix()])
    for step in range(5):
        _ = feed[step]
    assert all(torch.equal(a, b) for a, b in zip(content, before, strict=True))


def test_two_mixes_draw_apart():
    twice = a_feed([CutMix(), CutMix()])
    shares = [(BatchDraws(0, step, 0).beta(1), BatchDraws(0, step, 1).beta(1)) for step in range(400)]
    assert abs(np.corrcoef(np.array(shares).T)[0, 1]) < 5 / 20
    assert torch.allclose(twice[0][1].sum(1), torch.ones(8))


@pytest.mark.parametrize("mix", [MixUp(1), CutMix(1)])
def test_the_loss_of_mixed_targets_is_the_mix_of_the_losses(mix):
    """What makes soft targets right for torch's cross entropy: it is linear in them."""
    inputs, targets, draws = images(12, 1, 9, 9), labels(12), BatchDraws(9, 4)
    _, soft = mix(inputs, targets, draws, 10)
    outputs = images(12, 10, seed=3)
    share = float((1 - (soft[torch.arange(12), targets] < 1).float()).min())
    partners = draws.partners(12)
    if isinstance(mix, MixUp):
        share = draws.beta(1)
    else:
        top, bottom, left, right = mix.box(draws, 9, 9)
        share = 1 - (bottom - top) * (right - left) / 81
    entropy = torch.nn.functional.cross_entropy
    expected = share * entropy(outputs, targets) + (1 - share) * entropy(outputs, targets[partners])
    torch.testing.assert_close(entropy(outputs, soft), expected)
