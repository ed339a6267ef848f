"""Each augmentation against one written sample by sample, its statistics against its docstring, and its documents."""

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gradstep.data import (
    Color,
    Crop,
    CutMix,
    CutOut,
    Draws,
    Feed,
    Flip,
    MixUp,
    Normalize,
    Part,
    RandomResizedCrop,
    Rotate,
    Shift,
    Splits,
    Tensors,
    ToFloat,
    augmentation_from_document,
    document_of,
    load_named,
    prepare,
    split,
)
from gradstep.errors import DataError, RecipeError

DTYPES = [torch.uint8, torch.float32, torch.float64]
shapes = st.tuples(st.integers(1, 5), st.sampled_from([1, 3]), st.integers(1, 11), st.integers(1, 11))
dtypes = st.sampled_from(DTYPES)
seeds = st.integers(0, 2**40)
shares = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0, 0.5, 1 / 255]))
N = 10_000


def images(shape, dtype=torch.float32, seed=0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return whole if dtype == torch.uint8 else whole.to(dtype) / 255


def draws(samples=1, seed=0, epoch=0, place=0) -> Draws:
    return Draws(seed, epoch, torch.arange(samples) + 100, place)


def filled(fill, dtype):
    """A colour from 0 to 1 as an image's own type has it."""
    return round(255 * fill) if dtype == torch.uint8 else np.array(fill, str(dtype).removeprefix("torch."))


def in_floats(image: Tensor) -> np.ndarray:
    return image.numpy() / 255 if image.dtype == torch.uint8 else image.double().numpy()


def is_uniform(values, low, high):
    """Kolmogorov and Smirnov's distance, below what one in 100,000 draws exceeds."""
    ordered = (np.sort(np.asarray(values, float)) - low) / (high - low)
    n = len(ordered)
    distance = max((np.arange(1, n + 1) / n - ordered).max(), (ordered - np.arange(n) / n).max())
    return distance < math.sqrt(-math.log(1e-5 / 2) / 2 / n)


def all_equally_likely(counts):
    """Whether counts of equally likely things are within five deviations of each other's, and none is missing."""
    counts = np.asarray(counts, float).ravel()
    total, share = counts.sum(), 1 / len(counts)
    return bool((np.abs(counts - total * share) < 5 * math.sqrt(total * share * (1 - share))).all())


def unchanged_after(augmentation, batch, drawn):
    before = batch.clone()
    after = augmentation(batch, drawn)
    assert torch.equal(batch, before), "the inputs were written to"
    return after


# flip


@given(shapes, dtypes, shares, st.booleans(), seeds)
def test_flip_is_a_mirror_pixel_by_pixel(shape, dtype, p, vertical, seed):
    batch, drawn = images(shape, dtype), draws(shape[0], seed)
    expected = batch.clone()
    for n, u in enumerate(drawn.uniform(1)[:, 0].tolist()):
        if u < p:
            for y in range(shape[2]):
                for x in range(shape[3]):
                    expected[n, :, y, x] = (
                        batch[n, :, shape[2] - 1 - y, x] if vertical else batch[n, :, y, shape[3] - 1 - x]
                    )
    after = unchanged_after(Flip(p, vertical), batch, drawn)
    assert after.dtype == dtype
    assert torch.equal(after, expected)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("vertical", [False, True])
def test_flip_flips_its_share(p, vertical):
    ramp = torch.arange(4.0).reshape(1, 1, 2, 2).expand(N, 1, 2, 2)
    flipped = float((Flip(p, vertical)(ramp, draws(N))[:, 0, 0, 0] != 0).double().mean())
    assert abs(flipped - p) <= 5 * math.sqrt(p * (1 - p) / N)


# shift


@given(shapes, dtypes, st.integers(1, 6), shares, seeds)
def test_shift_moves_pixel_by_pixel(shape, dtype, pixels, fill, seed):
    batch, drawn = images(shape, dtype), draws(shape[0], seed)
    expected = np.full(shape, filled(fill, dtype))
    for n, (u, v) in enumerate(drawn.uniform(2).tolist()):
        down, right = pixels - int(u * (2 * pixels + 1)), pixels - int(v * (2 * pixels + 1))
        for y in range(shape[2]):
            for x in range(shape[3]):
                if 0 <= y - down < shape[2] and 0 <= x - right < shape[3]:
                    expected[n, :, y, x] = batch[n, :, y - down, x - right]
    after = unchanged_after(Shift(pixels, fill), batch, drawn)
    assert after.dtype == dtype
    np.testing.assert_array_equal(after.numpy(), expected.astype(after.numpy().dtype))


@pytest.mark.parametrize("pixels", [1, 3])
def test_shift_goes_every_way_as_often(pixels):
    dot = torch.zeros(N, 1, 9, 9, dtype=torch.uint8)
    dot[:, 0, 4, 4] = 255
    moved = Shift(pixels)(dot, draws(N)).reshape(N, 81).argmax(1)
    counts = torch.bincount(moved, minlength=81).reshape(9, 9)
    inner = counts[4 - pixels : 5 + pixels, 4 - pixels : 5 + pixels]
    assert int(inner.sum()) == N
    assert all_equally_likely(inner)


# crop


@st.composite
def crops(draw):
    shape, pad = draw(shapes), draw(st.integers(0, 4))
    size = (draw(st.integers(1, shape[2] + 2 * pad)), draw(st.integers(1, shape[3] + 2 * pad)))
    return shape, pad, size


@given(crops(), dtypes, shares, seeds)
def test_crop_is_a_window_on_the_padded_image(asked, dtype, fill, seed):
    shape, pad, size = asked
    batch, drawn = images(shape, dtype), draws(shape[0], seed)
    expected = np.full((*shape[:2], *size), filled(fill, dtype))
    for n, (u, v) in enumerate(drawn.uniform(2).tolist()):
        top, left = int(u * (shape[2] + 2 * pad - size[0] + 1)), int(v * (shape[3] + 2 * pad - size[1] + 1))
        for y in range(size[0]):
            for x in range(size[1]):
                i, j = y + top - pad, x + left - pad
                if 0 <= i < shape[2] and 0 <= j < shape[3]:
                    expected[n, :, y, x] = batch[n, :, i, j]
    after = unchanged_after(Crop(size, pad, fill), batch, drawn)
    assert after.dtype == dtype
    np.testing.assert_array_equal(after.numpy(), expected.astype(after.numpy().dtype))


@pytest.mark.parametrize(("size", "pad", "places"), [(5, 0, (3, 5)), ((4, 8), 1, (6, 4)), (7, 0, (1, 3))])
def test_crop_takes_every_place_as_often(size, pad, places):
    numbered = torch.arange(1.0, 64).reshape(1, 1, 7, 9).expand(N, 1, 7, 9)
    pieces = Crop(size, pad)(numbered, draws(N)).reshape(N, -1)
    counts = torch.unique(pieces, dim=0, return_counts=True)[1]
    assert len(counts) == places[0] * places[1]
    assert all_equally_likely(counts)


def test_a_crop_larger_than_the_padded_image_says_so():
    with pytest.raises(DataError, match=r"9×4 does not fit into images of 5×6 padded by 1. Make the size smaller"):
        Crop((9, 4), 1)(images((2, 1, 5, 6)), draws(2))


# random_resized_crop


def box_of(augmentation, u, height, width):
    """Ten tries, the first that fits; else the middle. Written from the docstring, a sample at a time."""
    (small, large), (narrow, broad) = augmentation.scale, augmentation.ratio
    for number in range(10):
        area = (small + (large - small) * u[2 + 2 * number]) * height * width
        shape = math.exp(math.log(narrow) + (math.log(broad) - math.log(narrow)) * u[3 + 2 * number])
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            return int(u[0] * (height - h + 1)), int(u[1] * (width - w + 1)), h, w
    return None


def resized(image: np.ndarray, size: int, axis: int) -> np.ndarray:
    """A triangle around each new pixel's centre, as wide as it takes when the image shrinks."""
    old = image.shape[axis]
    scale = old / size
    centres = (np.arange(size) + 0.5) * scale
    weights = np.maximum(0, 1 - np.abs(np.arange(old)[None] + 0.5 - centres[:, None]) / max(scale, 1.0))
    weights /= weights.sum(1, keepdims=True)
    return np.moveaxis(np.tensordot(weights, image, (1, axis)), 0, axis)


scales = st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(lambda pair: tuple(sorted(pair)))
ratios = st.tuples(st.floats(0.1, 8), st.floats(0.1, 8)).map(lambda pair: tuple(sorted(pair)))


def same_piece(shape, dtype, augmentation, seed):
    batch, drawn = images(shape, dtype), draws(shape[0], seed)
    after = unchanged_after(augmentation, batch, drawn)
    height, width = (augmentation.size,) * 2 if isinstance(augmentation.size, int) else augmentation.size
    assert after.shape == (shape[0], shape[1], height, width)
    for n, (top, left, h, w) in enumerate(augmentation.boxes(drawn, *shape[2:])):
        piece = in_floats(batch[n])[:, top : top + h, left : left + w]
        expected = resized(resized(piece, height, 1), width, 2)
        np.testing.assert_allclose(after[n].numpy(), expected, rtol=0, atol=1e-6)
    assert after.dtype == (torch.float32 if dtype == torch.uint8 else dtype)


@given(shapes, dtypes, st.tuples(st.integers(1, 9), st.integers(2, 9)), scales, ratios, seeds)
def test_random_resized_crop_is_its_piece_resized(shape, dtype, size, scale, ratio, seed):
    same_piece(shape, dtype, RandomResizedCrop(size, scale, ratio), seed)


@pytest.mark.parametrize("size", [(4, 1), (2, 1)])
def test_random_resized_crop_to_one_column_is_right_too(size):
    same_piece((3, 2, 6, 6), torch.float64, RandomResizedCrop(size), 0)


@given(st.integers(1, 40), st.integers(1, 40), scales, ratios, seeds)
def test_the_boxes_are_those_of_the_docstring_and_lie_inside(height, width, scale, ratio, seed):
    augmentation, drawn = RandomResizedCrop(8, scale, ratio), draws(6, seed)
    boxes = augmentation.boxes(drawn, height, width)
    for (top, left, h, w), u in zip(boxes, drawn.uniform(22).tolist(), strict=True):
        assert 1 <= h <= height
        assert 1 <= w <= width
        assert 0 <= top <= height - h
        assert 0 <= left <= width - w
        expected = box_of(augmentation, u, height, width)
        if expected is not None:
            assert (top, left, h, w) == expected
        else:
            assert abs(2 * top + h - height) <= 1  # in the middle
            assert abs(2 * left + w - width) <= 1
            assert h == height or w == width  # and as large as it can be
            least, most = ratio[0], ratio[1]  # its shape in `ratio`, as far as whole pixels go
            assert (w + 1) / max(h - 1, 1e-9) >= least
            assert max(w - 1, 1e-9) / (h + 1) <= most


def test_the_area_is_uniform_and_so_is_the_logarithm_of_the_shape_where_all_fit():
    boxes = np.array(RandomResizedCrop(8, (0.1, 0.5)).boxes(draws(N), 997, 1009), float)
    h, w = boxes[:, 2], boxes[:, 3]
    assert is_uniform(h * w / (997 * 1009), 0.1, 0.5)
    assert is_uniform(np.log(w / h), math.log(3 / 4), math.log(4 / 3))
    assert abs(np.corrcoef(h * w, np.log(w / h))[0, 1]) < 0.05
    assert is_uniform((boxes[:, 0] + 0.5) / (997 - h + 1), 0, 1)
    assert is_uniform((boxes[:, 1] + 0.5) / (1009 - w + 1), 0, 1)


def test_where_some_do_not_fit_the_area_is_that_of_the_tries_which_do():
    """Against pairs drawn by another generator until one fits."""
    boxes = np.array(RandomResizedCrop(8, (0.3, 1.0)).boxes(draws(N), 500, 500), float)
    rng = np.random.default_rng(0)
    areas, logs = rng.uniform(0.3, 1, 200_000), rng.uniform(math.log(3 / 4), math.log(4 / 3), 200_000)
    fits = np.sqrt(areas * np.exp(np.abs(logs))) <= 1
    theirs = areas[fits]
    ours = boxes[:, 2] * boxes[:, 3] / 500**2
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        assert abs((ours <= np.quantile(theirs, share)).mean() - share) < 5 * math.sqrt(share * (1 - share) / N) + 0.002


@pytest.mark.parametrize(
    ("size", "ratio", "expected"),
    [
        ((40, 12), (4.0, 4.0), (18, 0, 3, 12)),  # tall: full width, a quarter of it high
        ((12, 40), (0.25, 0.25), (0, 18, 12, 3)),  # wide: full height, a quarter of it wide
        ((10, 40), (1.0, 2.0), (0, 10, 10, 20)),
        ((40, 10), (0.5, 1.0), (10, 0, 20, 10)),
    ],
)
def test_where_no_try_fits_it_is_the_largest_piece_in_the_middle(size, ratio, expected):
    boxes = RandomResizedCrop(8, (1.0, 1.0), ratio).boxes(draws(20), *size)
    assert set(boxes) == {expected}


def test_the_whole_of_a_square_resized_to_its_own_size_is_itself():
    batch = images((5, 3, 9, 9))
    assert torch.equal(RandomResizedCrop(9, (1.0, 1.0), (1.0, 1.0))(batch, draws(5)), batch)


# cutout


@given(shapes, dtypes, st.integers(1, 14), shares, shares, seeds)
def test_cutout_covers_a_square_clipped_at_the_edges(shape, dtype, size, p, fill, seed):
    batch, drawn = images(shape, dtype), draws(shape[0], seed)
    expected = batch.clone()
    for n, (u, v, w) in enumerate(drawn.uniform(3).tolist()):
        top, left = int(u * shape[2]) - size // 2, int(v * shape[3]) - size // 2
        for y in range(top, top + size):
            for x in range(left, left + size):
                if w < p and 0 <= y < shape[2] and 0 <= x < shape[3]:
                    expected[n, :, y, x] = torch.tensor(filled(fill, dtype)).to(dtype)
    after = unchanged_after(CutOut(size, p, fill), batch, drawn)
    assert after.dtype == dtype
    assert torch.equal(after, expected)


def test_the_middle_of_a_cutout_is_any_pixel():
    covered = CutOut(1)(torch.ones(N, 1, 6, 8), draws(N)).reshape(N, 48)
    assert bool((covered.sum(1) == 47).all())
    assert all_equally_likely((covered == 0).sum(0))


@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_square_is_whole_unless_an_edge_cuts_it(size):
    covered = (CutOut(size)(torch.ones(N, 1, 9, 9), draws(N)) == 0)[:, 0]
    rows, columns = covered.any(2), covered.any(1)
    assert torch.equal(covered, rows[:, :, None] & columns[:, None, :])  # a rectangle
    inside = ~(rows[:, 0] | rows[:, -1] | columns[:, 0] | columns[:, -1])
    assert bool((covered.sum((1, 2))[inside] == size * size).all())
    assert int(inside.sum()) > 1_000
    assert int(covered.sum((1, 2)).min()) >= (size // 2) ** 2 > 0  # its middle is inside, so some of it is


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_cutout_covers_its_share_of_the_images(p):
    covered = float((CutOut(1, p)(torch.ones(N, 1, 3, 3), draws(N)).amin((1, 2, 3)) == 0).double().mean())
    assert abs(covered - p) <= 5 * math.sqrt(p * (1 - p) / N)


# rotate


def turned(image: np.ndarray, degrees: float) -> np.ndarray:
    """Counter-clockwise about the middle of the pixels: each new pixel is looked up where it came from."""
    height, width = image.shape[-2:]
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    result = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            right, up = x - (width - 1) / 2, (height - 1) / 2 - y
            from_x, from_y = cosine * right + sine * up, -sine * right + cosine * up  # turned back
            i, j = (height - 1) / 2 - from_y, from_x + (width - 1) / 2
            for a in (math.floor(i), math.floor(i) + 1):
                for b in (math.floor(j), math.floor(j) + 1):
                    if 0 <= a < height and 0 <= b < width:
                        result[:, y, x] += image[:, a, b] * (1 - abs(i - a)) * (1 - abs(j - b))
    return result


@settings(max_examples=40)
@given(shapes, dtypes, st.floats(0, 180), seeds)
def test_rotate_is_bilinear_about_the_middle_counter_clockwise(shape, dtype, degrees, seed):
    if 1 in shape[2:]:
        shape = (*shape[:2], shape[2] + 1, shape[3] + 1)
    batch, drawn, augmentation = images(shape, dtype), draws(shape[0], seed), Rotate(degrees)
    after = unchanged_after(augmentation, batch, drawn)
    assert after.shape == batch.shape
    assert after.dtype == (torch.float32 if dtype == torch.uint8 else dtype)
    for n, angle in enumerate(augmentation.angles(drawn).tolist()):
        np.testing.assert_allclose(after[n].numpy(), turned(in_floats(batch[n]), angle), rtol=0, atol=2e-5)


class Turned(Rotate):
    """By all of its degrees, whatever is drawn."""

    def angles(self, drawn):
        return torch.full((len(drawn.samples),), float(self.degrees), dtype=torch.float64)


@pytest.mark.parametrize("size", [2, 5, 8, 28])
def test_ninety_degrees_are_a_quarter_turn_counter_clockwise(size):
    batch = images((3, 3, size, size))
    torch.testing.assert_close(Turned(90)(batch, draws(3)), torch.rot90(batch, 1, (2, 3)), rtol=0, atol=1e-5)
    torch.testing.assert_close(Turned(180)(batch, draws(3)), torch.rot90(batch, 2, (2, 3)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (3, 3, 7, 12), (2, 1, 1, 5), (2, 1, 5, 1)])
def test_zero_degrees_leave_an_image_as_it_is(shape):
    torch.testing.assert_close(Rotate(0)(images(shape), draws(shape[0])), images(shape), rtol=0, atol=1e-6)


def test_every_angle_is_as_likely():
    angles = Rotate(30).angles(draws(N))
    assert angles.shape == (N,)
    assert is_uniform(angles, -30, 30)


def test_the_corners_of_a_turned_image_are_black():
    after = Turned(45)(torch.ones(1, 1, 9, 9), draws(1))
    assert after[0, 0, [0, 0, 8, 8], [0, 8, 0, 8]].tolist() == [0, 0, 0, 0]
    assert float(after[0, 0, 4, 4]) == pytest.approx(1)


# color

GREY = np.array([0.299, 0.587, 0.114])


def grey_of(image: np.ndarray) -> np.ndarray:
    """`[1, H, W]`: luma of ITU-R BT.601, as Pillow and kornia have it."""
    return np.tensordot(GREY, image, (0, 0))[None] if len(image) == 3 else image.mean(0, keepdims=True)


def coloured(image, brightness, contrast, saturation, turn):
    """In the order of the docstring, each clamped."""
    import colorsys

    image = np.clip(image * brightness, 0, 1)
    image = np.clip(image * contrast + grey_of(image).mean() * (1 - contrast), 0, 1)
    if len(image) == 3:
        image = np.clip(image * saturation + grey_of(image) * (1 - saturation), 0, 1)
        for y in range(image.shape[1]):
            for x in range(image.shape[2]):
                h, s, v = colorsys.rgb_to_hsv(*image[:, y, x])
                image[:, y, x] = colorsys.hsv_to_rgb((h + turn / (2 * math.pi)) % 1, s, v)
    return image


strengths = st.one_of(st.just(0.0), st.floats(0.01, 3))


@given(shapes, dtypes, strengths, strengths, strengths, st.one_of(st.just(0.0), st.floats(0.01, 0.5)), seeds)
def test_color_is_brightness_contrast_saturation_hue_in_this_order(shape, dtype, b, c, s, h, seed):
    if shape[1] == 1:
        s = h = 0.0
    batch, drawn, augmentation = images(shape, dtype), draws(shape[0], seed), Color(b, c, s, h)
    after = unchanged_after(augmentation, batch, drawn)
    assert after.dtype == (torch.float32 if dtype == torch.uint8 else dtype)
    assert float(after.min()) >= 0
    assert float(after.max()) <= 1
    for n, factors in enumerate(augmentation.factors(drawn).tolist()):
        expected = coloured(in_floats(batch[n]), *factors)
        # A hue is a quotient by how far the channels lie apart, so where they almost agree it is not sharp.
        np.testing.assert_allclose(after[n].numpy(), expected, rtol=0, atol=1e-3 if h else 2e-6)


def test_factors_are_uniform_and_apart():
    factors = Color(0.4, 0.2, 0.7, 0.1).factors(draws(N)).numpy()
    assert is_uniform(factors[:, 0], 0.6, 1.4)
    assert is_uniform(factors[:, 1], 0.8, 1.2)
    assert is_uniform(factors[:, 2], 0.3, 1.7)
    assert is_uniform(factors[:, 3], -0.2 * math.pi, 0.2 * math.pi)
    together = np.corrcoef(factors.T) - np.eye(4)
    assert np.abs(together).max() < 5 / math.sqrt(N)


def test_a_factor_is_never_below_zero():
    factors = Color(3, 3, 3).factors(draws(N))[:, :3]
    assert float(factors.min()) == 0
    assert abs(float((factors == 0).double().mean()) - 2 / 6) < 0.02  # what would be below is at 0
    assert float(factors.max()) <= 4


class Coloured(Color):
    """By these factors, whatever is drawn."""

    chosen = (1.0, 1.0, 1.0, 0.0)

    def factors(self, drawn):
        return torch.tensor([self.chosen] * len(drawn.samples), dtype=torch.float64)


def by(*factors):
    made = Coloured(0.5, 0.5, 0.5, 0.5)
    type(made).chosen = factors
    return made


def test_color_with_factor_one_is_the_identity():
    batch = images((4, 3, 7, 5))
    torch.testing.assert_close(by(1.0, 1.0, 1.0, 0.0)(batch, draws(4)), batch, rtol=0, atol=2e-6)
    assert torch.equal(Color()(batch, draws(4)), batch)


def test_brightness_multiplies_and_stops_at_white():
    batch = images((4, 3, 7, 5))
    torch.testing.assert_close(by(0.5, 1.0, 1.0, 0.0)(batch, draws(4)), batch / 2, rtol=0, atol=2e-6)
    torch.testing.assert_close(by(3.0, 1.0, 1.0, 0.0)(batch, draws(4)), (3 * batch).clamp(max=1), rtol=0, atol=2e-6)


def test_no_contrast_is_the_mean_grey_and_no_saturation_each_pixels():
    batch = images((4, 3, 7, 5))
    grey = (batch * torch.tensor(GREY, dtype=torch.float32)[:, None, None]).sum(1, keepdim=True)
    flat = by(1.0, 0.0, 1.0, 0.0)(batch, draws(4))
    torch.testing.assert_close(flat, grey.mean((2, 3), True).expand_as(batch), rtol=0, atol=2e-6)
    pale = by(1.0, 1.0, 0.0, 0.0)(batch, draws(4))
    torch.testing.assert_close(pale, grey.expand_as(batch), rtol=0, atol=2e-6)


@pytest.mark.parametrize(("thirds", "expected"), [(1, [0, 1, 0]), (2, [0, 0, 1]), (3, [1, 0, 0]), (-1, [0, 0, 1])])
def test_a_third_of_a_turn_makes_red_green_and_green_blue(thirds, expected):
    red = torch.tensor([1.0, 0, 0]).reshape(1, 3, 1, 1)
    after = by(1.0, 1.0, 1.0, thirds * 2 * math.pi / 3)(red, draws(1))
    assert after.flatten().tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("augmentation", [Color(saturation=0.1), Color(hue=0.1)])
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_saturation_and_hue_say_that_they_need_three_channels(augmentation, channels):
    with pytest.raises(DataError, match=f"color: saturation and hue need 3 channels, and the images have {channels}"):
        augmentation(images((2, channels, 4, 4)), draws(2))


# what holds for all of them

ALL = [
    Flip(),
    Flip(1.0, vertical=True),
    Shift(2, 0.3),
    Crop(6, 1, 1.0),
    Crop((4, 7)),
    RandomResizedCrop((5, 6)),
    CutOut(3, 0.7, 0.5),
    Rotate(40),
    Color(0.4, 0.4),
    Color(0.4, 0.4, 0.4, 0.2),
]
IDS = [f"{number} {type(each).__name__}" for number, each in enumerate(ALL)]


def fitting(augmentation):
    return 3 if isinstance(augmentation, Color) else 1


@pytest.mark.parametrize("augmentation", ALL, ids=IDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_stay_between_black_and_white_and_streams_where_they_were(augmentation, dtype):
    batch = images((64, fitting(augmentation), 8, 9), dtype)
    batch[:32] = (batch[:32] > batch.max() // 2 if dtype == torch.uint8 else batch[:32] > 0.5).to(dtype)[:32] * (
        255 if dtype == torch.uint8 else 1
    )  # black and white: where a sum could go over
    before = torch.get_rng_state()
    after = unchanged_after(augmentation, batch, draws(64))
    assert torch.equal(torch.get_rng_state(), before)
    assert after.dtype in (dtype, torch.float32)
    assert float(after.min()) >= 0
    assert float(after.max()) <= (255 if after.dtype == torch.uint8 else 1)


@pytest.mark.parametrize("augmentation", ALL, ids=IDS)
def test_uint8_and_the_same_image_in_floats_come_out_the_same(augmentation):
    batch = images((16, fitting(augmentation), 8, 9), torch.uint8)
    whole, floats = augmentation(batch, draws(16)), augmentation(ToFloat()(batch), draws(16))
    torch.testing.assert_close(ToFloat()(whole), floats, rtol=0, atol=0.002)  # a fill of 0.3 is no 255th


@pytest.mark.parametrize("augmentation", ALL, ids=IDS)
def test_seeds_epochs_samples_and_places_differ(augmentation):
    batch = images((1, fitting(augmentation), 8, 9)).expand(32, -1, -1, -1)
    if augmentation == ALL[1]:
        augmentation = Flip(0.5, vertical=True)
    here = augmentation(batch, draws(32))
    assert len(torch.unique(here, dim=0)) > 1
    for change in ({"seed": 1}, {"epoch": 1}, {"place": 1}):
        assert not torch.equal(augmentation(batch, draws(32, **change)), here), change
    assert torch.equal(augmentation(batch, draws(32)), here)


@pytest.mark.parametrize("augmentation", ALL, ids=IDS)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_sample_is_bitwise_the_same_in_any_batch(augmentation, threads):
    """Images large enough that torch's kernels would cut them into pieces."""
    torch.set_num_threads(threads)
    batch, drawn = images((24, fitting(augmentation), 61, 67), torch.uint8), draws(24)
    whole = augmentation(batch, drawn)
    for size in (1, 5):
        for start in range(0, 24, size):
            some = Draws(0, 0, drawn.samples[start : start + size])
            assert torch.equal(augmentation(batch[start : start + size], some), whole[start : start + size])
    torch.set_num_threads(3 - threads)
    assert torch.equal(augmentation(batch, drawn), whole)


def test_the_augmentations_of_a_list_draw_apart(mnist):
    """Two flips in one list are not the same flip, and an evaluation's feed has none."""
    source = load_named("mnist").train
    flips = Feed(source, 1000, shuffle=True, augment=[Flip(), Flip()])
    raw = Feed(source, 1000, shuffle=True)
    same = (flips[0][0] == raw[0][0]).flatten(1).all(1).double().mean()
    assert 0.4 < float(same) < 0.6


def test_mnist_augmented_is_made_of_mnists_own_pixels(mnist):
    source = load_named("mnist").train
    feed, raw = (Feed(source, 256, shuffle=True, augment=augment) for augment in ([Shift(3)], []))
    moved, still = feed[0][0], raw[0][0]
    assert torch.equal(feed[0][1], raw[0][1])
    assert moved.shape == still.shape
    u = Draws(0, 0, feed.indices(0)[1]).uniform(2)
    padded = np.pad(still.numpy(), ((0, 0), (0, 0), (3, 3), (3, 3)))
    for n in range(256):
        top, left = int(u[n, 0] * 7), int(u[n, 1] * 7)
        assert np.array_equal(moved[n].numpy(), padded[n, :, top : top + 28, left : left + 28])


def test_from_python_they_may_be_written_as_in_a_recipe():
    splits = Splits(Tensors((images((40, 1, 6, 6), torch.uint8), torch.arange(40))))
    objects = prepare(splits, [ToFloat(), Normalize()], [Flip(), Shift(2)]).train
    for transforms, augment in [
        (["float", {"normalize": "measured"}], ["flip", {"shift": 2}]),
        (("float", Normalize()), (Flip(), {"shift": 2})),
    ]:
        written = prepare(splits, transforms, augment).train
        assert (written.transforms, written.augment) == (objects.transforms, objects.augment)
    for one in ("flip", Flip(), ["flip"]):
        assert prepare(splits, "float", one).train.augment == (Flip(),)
    with pytest.raises(RecipeError, match=r"^augment: <class '.*Flip'> is not one of flip, shift"):
        prepare(splits, [], [Flip])
    with pytest.raises(RecipeError, match=r"^transforms: <class '.*ToFloat'> is not one of float"):
        prepare(splits, [ToFloat], [])


def test_a_part_of_an_augmented_source_is_augmented(mnist):
    from gradstep.setup import _feed

    ready = prepare(load_named("mnist"), [ToFloat()], [Shift(3)]).train
    for part in (Part(ready, torch.arange(200)), split(ready, 0.01)[1]):
        feed, _ = _feed(part, 64, False, 0, 0, torch.device("cpu"))
        assert not torch.equal(feed[0][0], Feed(part, 64, shuffle=True)[0][0])


def test_augmentations_come_before_the_transforms_and_are_not_measured():
    source = Tensors((images((40, 1, 6, 6), torch.uint8), torch.arange(40)))
    ready = prepare(Splits(source), [ToFloat(), Normalize()], [Shift(2, fill=1.0)])
    assert ready.train.transforms == prepare(Splits(source), [ToFloat(), Normalize()]).train.transforms
    feed = Feed(ready.train, 40, shuffle=True, augment=ready.train.augment)
    expected = Shift(2, fill=1.0)(source.content[0][feed.indices(0)[1]], Draws(0, 0, feed.indices(0)[1]))
    for transform in ready.train.transforms:
        expected = transform(expected)
    assert torch.equal(feed[0][0], expected)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ((torch.zeros(4, 3), torch.arange(4)), r"a tensor of \[2, 3\]"),
        ((torch.zeros(4, 3, 3), torch.arange(4)), r"a tensor of \[2, 3, 3\]"),
        (({"image": torch.zeros(4, 1, 3, 3)}, torch.arange(4)), "a dict"),
    ],
)
def test_what_is_no_batch_of_images_is_an_error_that_says_what_it_is(content, what):
    with pytest.raises(
        DataError, match=rf"augment works on batches of images \[N, C, H, W\], and the inputs are {what}"
    ):
        Feed(Tensors(content), 2, shuffle=True, augment=[Flip()])[0]


# documents

sizes = st.one_of(st.integers(1, 99), st.tuples(st.integers(1, 99), st.integers(1, 99)))
unit = st.floats(0, 1)
factor = st.one_of(st.integers(0, 9), st.floats(0, 9))
classes = st.one_of(st.none(), st.integers(2, 1000))
some = st.one_of(
    st.builds(Flip, unit, st.booleans()),
    st.builds(Shift, st.integers(1, 99), unit),
    st.builds(Crop, sizes, st.integers(0, 9), unit),
    st.builds(RandomResizedCrop, sizes, scales, ratios),
    st.builds(CutOut, st.integers(1, 99), unit, unit),
    st.builds(Rotate, st.floats(0, 180)),
    st.builds(Color, factor, factor, factor, st.floats(0, 0.5)),
    st.builds(MixUp, st.floats(1e-3, 4), unit, classes),
    st.builds(CutMix, st.floats(1e-3, 4), unit, classes),
)


@given(some)
def test_a_document_round_trips_through_yaml_too(augmentation):
    from gradstep import yaml12

    document = document_of(augmentation)
    assert augmentation_from_document(document) == augmentation
    assert augmentation_from_document(yaml12.read_yaml(yaml12.write_yaml(document), "it")) == augmentation


@pytest.mark.parametrize(
    ("document", "augmentation"),
    [
        ("flip", Flip()),
        ({"flip": None}, Flip()),
        ({"flip": {}}, Flip()),
        ({"flip": 0.3}, Flip(0.3)),
        ({"flip": {"vertical": True}}, Flip(vertical=True)),
        ({"shift": 2}, Shift(2)),
        ({"crop": {"size": 32, "pad": 4}}, Crop(32, 4)),
        ({"crop": [24, 32]}, Crop((24, 32))),
        ({"random_resized_crop": {"size": 8, "scale": [0.5, 1]}}, RandomResizedCrop(8, (0.5, 1.0))),
        ({"cutout": 8}, CutOut(8)),
        ({"rotate": 15}, Rotate(15)),
        ({"color": 0.4}, Color(0.4)),
        ("mixup", MixUp()),
        ({"mixup": 0.4}, MixUp(0.4)),
        ({"cutmix": {"classes": 10}}, CutMix(classes=10)),
    ],
)
def test_short_forms(document, augmentation):
    assert augmentation_from_document(document) == augmentation


BAD = [
    # a name that is none
    ("flipp", "flip, shift, crop, random_resized_crop, cutout, rotate, color, mixup, cutmix, as in flip, {shift: 2}"),
    ("flipp", "Did you mean 'flip'?"),
    ({"mix_up": 0.2}, "It is called 'mixup' here."),
    ({"colour": 0.2}, "It is called 'color' here."),
    ("random_crop", "It is called 'crop' here."),
    ({"random_crop": {"size": 32, "padding": 4}}, "It is called 'crop' here."),
    ("HFlip", "It is called 'flip' here."),
    ("flipp", "Did you mean 'flip'?"),
    (None, "None is not one of flip"),
    (3, "3 is not one of flip"),
    # an option that is none
    ({"flip": {"probability": 1}}, "'flip' takes no 'probability'. It takes p, vertical."),
    ({"crop": {"sizes": 3}}, "'crop' takes no 'sizes'. Did you mean 'size'?"),
    ({"flip": {1: 2}}, "'flip' takes no '1'. It takes p, vertical."),
    ({"color": {"hues": 0.1}}, "Did you mean 'hue'?"),
    # what is missing
    ("crop", "'crop' needs its size, as in {crop: 8}."),
    ({"crop": {"pad": 4}}, "'crop' needs its size, as in {crop: 8}."),
    ("shift", "'shift' needs its pixels, as in {shift: 8}."),
    ("random_resized_crop", "'random_resized_crop' needs its size"),
    ("cutout", "'cutout' needs its size, as in {cutout: 8}."),
    ("rotate", "'rotate' needs its degrees, as in {rotate: 8}."),
    # wrong types
    ({"flip": True}, "flip takes a number from 0 to 1 for p, not True."),
    ({"flip": "0.5"}, "flip takes a number from 0 to 1 for p, not '0.5'."),
    ({"flip": [0.5]}, "flip takes a number from 0 to 1 for p, not [0.5]."),
    ({"shift": 2.0}, "shift takes a whole number of 1 or more for pixels, not 2.0."),
    ({"shift": True}, "shift takes a whole number of 1 or more for pixels, not True."),
    ({"shift": {"pixels": 1, "fill": "black"}}, "shift takes a number from 0 to 1 for fill, not 'black'."),
    ({"crop": 3.5}, "crop takes a size such as 32 or [24, 32], not 3.5."),
    ({"crop": True}, "crop takes a size such as 32 or [24, 32], not True."),
    ({"crop": [1, 2, 3]}, "crop takes a size such as 32 or [24, 32], not [1, 2, 3]."),
    ({"crop": [True, 2]}, "crop takes a size such as 32 or [24, 32], not [True, 2]."),
    ({"crop": "32"}, "crop takes a size such as 32 or [24, 32], not '32'."),
    ({"crop": {"size": 3, "pad": True}}, "crop takes a whole number of 0 or more for pad, not True."),
    ({"random_resized_crop": {"size": 8, "scale": 0.5}}, "two growing positive numbers of at most 1 for scale, not"),
    ({"random_resized_crop": {"size": 8, "ratio": "4/3"}}, "two growing positive numbers for ratio, not '4/3'."),
    ({"random_resized_crop": {"size": 8, "ratio": [True, 2]}}, "two growing positive numbers for ratio, not [True, 2]"),
    ({"rotate": True}, "rotate takes a number from 0 to 180 for degrees, not True."),
    ({"color": "bright"}, "color takes a number of 0 or more for brightness, not 'bright'."),
    ({"color": {"contrast": True}}, "color takes a number of 0 or more for contrast, not True."),
    ({"mixup": "much"}, "mixup takes an alpha from 0.001 to 4, not 'much'."),
    ({"mixup": True}, "mixup takes an alpha from 0.001 to 4, not True."),
    ({"cutmix": {"p": True}}, "cutmix takes a number from 0 to 1 for p, not True."),
    ({"mixup": {"classes": 10.0}}, "mixup takes a number of classes of 2 or more, not 10.0."),
    ({"mixup": {"classes": True}}, "mixup takes a number of classes of 2 or more, not True."),
    # out of range
    ({"flip": 1.5}, "flip takes a number from 0 to 1 for p, not 1.5."),
    ({"flip": -0.1}, "flip takes a number from 0 to 1 for p, not -0.1."),
    ({"shift": 0}, "shift takes a whole number of 1 or more for pixels, not 0."),
    ({"shift": {"pixels": 1, "fill": 128}}, "shift takes a number from 0 to 1 for fill, not 128."),
    ({"crop": 0}, "crop takes a size such as 32 or [24, 32], not 0."),
    ({"crop": [3, -1]}, "crop takes a size such as 32 or [24, 32], not [3, -1]."),
    ({"crop": {"size": 3, "pad": -1}}, "crop takes a whole number of 0 or more for pad, not -1."),
    ({"random_resized_crop": {"size": 8, "scale": [0, 1]}}, "two growing positive numbers of at most 1 for scale"),
    ({"random_resized_crop": {"size": 8, "scale": [0.5, 1.5]}}, "two growing positive numbers of at most 1 for scale"),
    ({"random_resized_crop": {"size": 8, "scale": [1, 0.5]}}, "two growing positive numbers of at most 1 for scale"),
    ({"random_resized_crop": {"size": 8, "ratio": [2, 1]}}, "two growing positive numbers for ratio, not [2, 1]."),
    ({"cutout": 0}, "cutout takes a whole number of 1 or more for size, not 0."),
    ({"cutout": {"size": 3, "p": 2}}, "cutout takes a number from 0 to 1 for p, not 2."),
    ({"rotate": 181}, "rotate takes a number from 0 to 180 for degrees, not 181."),
    ({"rotate": -1}, "rotate takes a number from 0 to 180 for degrees, not -1."),
    ({"color": -1}, "color takes a number of 0 or more for brightness, not -1."),
    ({"color": {"hue": 0.6}}, "color takes a number from 0 to 0.5 for hue, not 0.6."),
    ({"mixup": 0}, "mixup takes an alpha from 0.001 to 4, not 0."),
    ({"cutmix": 5}, "cutmix takes an alpha from 0.001 to 4, not 5."),
    ({"mixup": {"p": 1.5}}, "mixup takes a number from 0 to 1 for p, not 1.5."),
    ({"mixup": {"classes": 1}}, "mixup takes a number of classes of 2 or more, not 1."),
    # numbers that are none
    ({"flip": math.nan}, "flip takes a number from 0 to 1 for p, not nan."),
    ({"color": math.inf}, "color takes a number of 0 or more for brightness, not inf."),
    ({"color": {"hue": math.nan}}, "color takes a number from 0 to 0.5 for hue, not nan."),
    ({"cutout": {"size": 3, "fill": math.nan}}, "cutout takes a number from 0 to 1 for fill, not nan."),
    ({"random_resized_crop": {"size": 8, "scale": [math.nan, 1]}}, "two growing positive numbers of at most 1 for"),
    ({"random_resized_crop": {"size": 8, "ratio": [1, math.inf]}}, "two growing positive numbers for ratio, not"),
    ({"mixup": math.nan}, "mixup takes an alpha from 0.001 to 4, not nan."),
    ({"cutmix": {"p": math.nan}}, "cutmix takes a number from 0 to 1 for p, not nan."),
]


@pytest.mark.parametrize(("document", "text"), BAD, ids=[str(document) for document, _ in BAD])
def test_a_bad_document_is_an_error_that_says_what_to_type(document, text):
    with pytest.raises(RecipeError) as caught:
        augmentation_from_document(document)
    assert str(caught.value).startswith("augment: ")
    assert text in str(caught.value)


@pytest.mark.parametrize("document", [{"flip": 0.5, "shift": 2}, {}, ["flip"], [{"flip": 0.5}]], ids=str)
def test_a_document_of_several_names_or_none_is_an_error_too(document):
    with pytest.raises(RecipeError, match="is not one of flip"):
        augmentation_from_document(document)


@pytest.mark.parametrize("value", ["no", "false", 0, 1, None, [False], 0.0], ids=str)
def test_vertical_is_true_or_false(value):
    with pytest.raises(RecipeError, match="vertical"):
        augmentation_from_document({"flip": {"vertical": value}})


@pytest.mark.parametrize("document", [{"color": 10**400}, {"random_resized_crop": {"size": 8, "ratio": [1, 10**400]}}])
def test_a_whole_number_that_no_float_holds_is_an_error_too(document):
    with pytest.raises(RecipeError):
        augmentation_from_document(document)


junk = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-300, 300), st.floats(), st.text(max_size=4)),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
OPTIONS = {
    "flip": ["p"],
    "shift": ["pixels", "fill"],
    "crop": ["size", "pad", "fill"],
    "random_resized_crop": ["size", "scale", "ratio"],
    "cutout": ["size", "p", "fill"],
    "rotate": ["degrees"],
    "color": ["brightness", "contrast", "saturation", "hue"],
    "mixup": ["alpha", "p", "classes"],
    "cutmix": ["alpha", "p", "classes"],
}


@settings(max_examples=200)
@given(
    st.sampled_from(sorted(OPTIONS)).flatmap(
        lambda name: st.one_of(
            junk.map(lambda value: {name: value}),
            st.dictionaries(st.sampled_from(OPTIONS[name]), junk).map(lambda options: {name: options}),
        )
    )
)
def test_any_document_is_made_or_refused_and_what_is_made_round_trips(document):
    try:
        made = augmentation_from_document(document)
    except RecipeError:
        return
    assert augmentation_from_document(document_of(made)) == made


@pytest.mark.parametrize("document", [{"rotate": 10}, "color"])
def test_without_kornia_it_says_what_to_install(document, monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia", None)
    with pytest.raises(RecipeError, match=r"Type: pip install 'gradstep\[augment\]'"):
        augmentation_from_document(document)
