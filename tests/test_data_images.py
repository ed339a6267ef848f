"""Image files of every kind against references made of the known pixels, by numpy, and not by the code under test."""

import io
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from gradstep.data import Options, Reading, UnreadableError, native_mode, open_data, read_image
from gradstep.errors import DataError, RecipeError

H, W = 6, 9  # not square, so that sides that are swapped are seen
_DRAWS = np.random.default_rng(5)
GREY = _DRAWS.integers(0, 256, (H, W), dtype=np.uint8)
COLOUR = _DRAWS.integers(0, 256, (H, W, 3), dtype=np.uint8)
ALPHA = _DRAWS.integers(0, 256, (H, W), dtype=np.uint8)
ALPHA[0, :3] = (0, 255, 128)
DEEP = _DRAWS.integers(0, 65536, (H, W), dtype=np.uint16)
DEEP[0, :6] = (0, 65535, 128, 129, 255, 256)  # 128 is the last that rounds to 0
BITS = _DRAWS.integers(0, 2, (H, W)).astype(bool)
INDICES = _DRAWS.integers(0, 6, (H, W), dtype=np.uint8)
PALETTE = _DRAWS.integers(0, 256, (6, 3), dtype=np.uint8)
FLOATS = _DRAWS.standard_normal((H, W)).astype(np.float32) * 1000
SMOOTH = np.stack([np.add.outer(np.arange(H) * 20, np.arange(W) * 12 + 30 * c) % 256 for c in range(3)], -1).astype(
    "u1"
)
WHITE = 255

# What an EXIF orientation means, in numpy: from the stored pixels to the ones that are shown.
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),  # a quarter clockwise
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@dataclass(frozen=True)
class Kind:
    """One kind of file: what writes it, and what must be read: `[H, W]` or `[H, W, 3]`, with a tolerance.

    `alpha` goes with `pixels`; `wide` are the pixels that mode F must give, in full.
    """

    name: str
    write: Callable[[Path], None]
    pixels: np.ndarray | None = None  # None: as Pillow decodes it, for what is lossy
    alpha: np.ndarray | None = None
    wide: np.ndarray | None = None
    mode: str = "RGB"  # Pillow's, of the file
    only_float: bool = False
    extra: dict = field(default_factory=dict)


def save(array: np.ndarray | Image.Image, **options) -> Callable[[Path], None]:
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    return lambda path: image.save(path, **options)


def with_alpha(array: np.ndarray) -> np.ndarray:
    return np.dstack([array, ALPHA])


def palette_image() -> Image.Image:
    image = Image.frombytes("P", (W, H), INDICES.tobytes())
    image.putpalette(PALETTE.tobytes())
    return image


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, between: bytes = b"") -> bytes:
    """A PNG by its specification: for what Pillow doesn't write."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + between + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def deep_colour_png(path: Path) -> None:
    """16 bits for each of red, green, blue; both bytes alike, so that every way to 8 bits is the same."""
    rows = b"".join(b"\0" + np.repeat(row.reshape(-1), 2).tobytes() for row in COLOUR)
    path.write_bytes(png(W, H, 16, 2, rows))


def grey_with_key(path: Path) -> None:
    """8-bit grey whose value KEY is transparent."""
    rows = b"".join(b"\0" + row.tobytes() for row in GREY)
    path.write_bytes(png(W, H, 8, 0, rows, chunk(b"tRNS", struct.pack(">H", KEY))))


KEY = int(GREY[2, 3])
COLOUR_KEY = tuple(int(v) for v in COLOUR[1, 1])
OTHER = np.zeros((H, W, 3), np.uint8)  # what later frames show


def animated(**options) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(COLOUR).save(
        path, save_all=True, append_images=[Image.fromarray(OTHER), Image.fromarray(OTHER + 99)], **options
    )


def animated_gif(path: Path) -> None:
    frames = [palette_image(), Image.fromarray(OTHER).convert("P")]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=50)


def animated_png(path: Path) -> None:
    animated(default_image=False)(path)


def grey16_ppm(path: Path) -> None:
    path.write_bytes(f"P5\n{W} {H}\n65535\n".encode() + DEEP.astype(">u2").tobytes())


def cmyk() -> Image.Image:
    return Image.frombytes("CMYK", (W, H), np.dstack([SMOOTH, SMOOTH[..., 0] // 3]).tobytes())


def from_cmyk() -> np.ndarray:
    """Red, green, blue of those inks, without a profile: (255 - ink) * (255 - black) / 255."""
    black = SMOOTH[..., :1].astype(int) // 3
    return np.rint((255 - SMOOTH.astype(int)) * (255 - black) / 255)


def to8(deep: np.ndarray) -> np.ndarray:
    return np.rint(deep / 257).astype(np.uint8)


def key_alpha(mask: np.ndarray) -> np.ndarray:
    return np.where(mask, 0, 255).astype(np.uint8)


KINDS = [
    Kind("one-bit.png", save(Image.fromarray(BITS)), BITS * np.uint8(255), wide=BITS * np.float32(1), mode="1"),
    Kind("one-bit.tif", save(Image.fromarray(BITS), compression="group4"), BITS * np.uint8(255), mode="1",
         wide=BITS * np.float32(1)),
    Kind("grey.png", save(GREY), GREY, wide=GREY / np.float32(255), mode="L"),
    Kind("grey-alpha.png", save(with_alpha(GREY)), GREY, ALPHA, mode="LA"),
    Kind("grey-key.png", grey_with_key, GREY, key_alpha(KEY == GREY), mode="L with transparency"),
    Kind("palette.png", save(palette_image()), PALETTE[INDICES], mode="P"),
    Kind("palette-clear.png", save(palette_image(), transparency=2), PALETTE[INDICES], key_alpha(INDICES == 2),
         mode="P with transparency"),
    Kind("palette-alphas.png", save(palette_image(), transparency=bytes([0, 60, 120, 180, 240, 255])),
         PALETTE[INDICES], np.array([0, 60, 120, 180, 240, 255], np.uint8)[INDICES], mode="P with transparency"),
    Kind("colour.png", save(COLOUR), COLOUR),
    Kind("colour-alpha.png", save(with_alpha(COLOUR)), COLOUR, ALPHA, mode="RGBA"),
    Kind("colour-key.png", save(COLOUR, transparency=COLOUR_KEY), COLOUR, key_alpha((COLOUR_KEY == COLOUR).all(-1)),
         mode="RGB with transparency"),
    Kind("deep-grey.png", save(DEEP), to8(DEEP), wide=DEEP / np.float32(65535), mode="I;16"),
    Kind("deep-grey.tif", save(DEEP), to8(DEEP), wide=DEEP / np.float32(65535), mode="I;16"),
    Kind("deep-grey.pgm", grey16_ppm, to8(DEEP), wide=DEEP / np.float32(65535), mode="I"),
    Kind("deep-colour.png", deep_colour_png, COLOUR),
    Kind("floats.tif", save(FLOATS), FLOATS, wide=FLOATS, mode="F", only_float=True),
    Kind("inks.tif", save(cmyk()), from_cmyk(), mode="CMYK"),
    Kind("inks.jpg", save(cmyk(), quality=95), mode="CMYK"),
    Kind("colour.jpg", save(SMOOTH, quality=90)),
    Kind("colour-rgb.jpg", save(SMOOTH, quality=90, keep_rgb=True)),
    Kind("progressive.jpg", save(SMOOTH, quality=60, progressive=True)),
    Kind("grey.jpeg", save(SMOOTH[..., 0]), mode="L"),
    Kind("lossless.webp", save(COLOUR, lossless=True), COLOUR),
    Kind("lossless-alpha.webp", save(with_alpha(COLOUR), lossless=True, exact=True), COLOUR, ALPHA, mode="RGBA"),
    Kind("lossy.webp", save(SMOOTH, quality=70)),
    Kind("animated.webp", animated(lossless=True, duration=40), COLOUR),
    Kind("animated.gif", animated_gif, PALETTE[INDICES], mode="P"),
    Kind("animated.png", animated_png, COLOUR),
    Kind("still.gif", save(palette_image()), PALETTE[INDICES], mode="P"),
    Kind("clear.gif", save(palette_image(), transparency=1), PALETTE[INDICES], key_alpha(INDICES == 1),
         mode="P with transparency"),
    Kind("colour.bmp", save(COLOUR), COLOUR),
    Kind("pages.tiff", animated(compression="tiff_lzw"), COLOUR),
    Kind("colour.ppm", save(COLOUR), COLOUR),
]  # fmt: skip


def turned(orientation: int, name: str, **options) -> Kind:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return Kind(name, save(COLOUR, exif=exif.tobytes(), **options), UPRIGHT[orientation](COLOUR))


KINDS += [turned(n, f"turned-{n}.png") for n in UPRIGHT] + [turned(6, "turned-6.webp", lossless=True)]
BY_NAME = {kind.name: kind for kind in KINDS}


def in_colour(pixels: np.ndarray) -> np.ndarray:
    return np.dstack([pixels] * 3) if pixels.ndim == 2 else pixels


def in_grey(pixels: np.ndarray) -> np.ndarray:
    """ITU-R 601-2, as Pillow says that it turns colours into grey."""
    return pixels if pixels.ndim == 2 else pixels.astype(float) @ np.array([0.299, 0.587, 0.114])


def over(pixels: np.ndarray, alpha: np.ndarray | None, ground: np.ndarray) -> np.ndarray:
    """What is seen of `pixels` before a ground: (c*a + g*(255-a)) / 255."""
    if alpha is None:
        return pixels
    opaque = alpha[..., None].astype(float)
    return (in_colour(pixels) * opaque + ground * (255 - opaque)) / 255


def plain(path: Path, mode: str) -> np.ndarray:
    """Pillow's own decode, for what is lossy."""
    with Image.open(path) as image:
        return np.asarray(image.convert(mode))


def as_written(kind: Kind, folder: Path) -> Path:
    path = folder / kind.name
    kind.write(path)
    return path


def as_shown(tensor: torch.Tensor) -> np.ndarray:
    """`[C, H, W]` to `[H, W]` or `[H, W, C]`."""
    array = tensor.numpy()
    return array[0] if len(array) == 1 else array.transpose(1, 2, 0)


def expected_rgb(kind: Kind, path: Path, ground: int | tuple = WHITE) -> tuple[np.ndarray, float]:
    """`(what mode RGB must give, how near)`."""
    if kind.pixels is None:
        return plain(path, "RGB"), 0
    near = 0 if kind.alpha is None and "inks" not in kind.name else 1
    return in_colour(over(kind.pixels, kind.alpha, np.asarray(ground))), near


def assert_near(found: np.ndarray, expected: np.ndarray, near: float) -> None:
    assert found.shape == expected.shape
    assert np.abs(found.astype(float) - expected.astype(float)).max() <= near


# Every kind, alone


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_pillow_sees_the_kind_that_is_meant_and_the_header_alone_says_it(kind, tmp_path):
    path = as_written(kind, tmp_path)
    shown = (H, W) if kind.pixels is None else kind.pixels.shape[:2]
    assert native_mode(path) == (kind.mode, shown)


@pytest.mark.parametrize("kind", [k for k in KINDS if not k.only_float], ids=lambda kind: kind.name)
@pytest.mark.parametrize(("ground", "rgb"), [("white", 255), ("black", 0), ("#ff8000", (255, 128, 0))])
def test_in_rgb_every_kind_is_its_pixels_before_the_ground(kind, ground, rgb, tmp_path):
    path = as_written(kind, tmp_path)
    tensor = read_image(path, Reading("RGB", ground))
    assert tensor.dtype == torch.uint8
    assert tensor.is_contiguous()
    assert_near(as_shown(tensor), *expected_rgb(kind, path, rgb))


@pytest.mark.parametrize("kind", [k for k in KINDS if not k.only_float], ids=lambda kind: kind.name)
def test_in_l_every_kind_is_the_grey_of_its_pixels(kind, tmp_path):
    path = as_written(kind, tmp_path)
    found = as_shown(read_image(path, Reading("L", "white")))
    assert found.ndim == 2
    if kind.pixels is not None and kind.pixels.ndim == 2 and kind.alpha is None:
        np.testing.assert_array_equal(found, kind.pixels)  # a grey stays what it is, to the bit
    else:
        assert_near(found, in_grey(expected_rgb(kind, path)[0]), 1 if kind.alpha is None else 1.6)


@pytest.mark.parametrize("kind", [k for k in KINDS if not k.only_float], ids=lambda kind: kind.name)
def test_in_rgba_every_kind_keeps_its_alpha_and_needs_no_ground(kind, tmp_path):
    path = as_written(kind, tmp_path)
    found = as_shown(read_image(path, Reading("RGBA")))
    alpha = np.full(found.shape[:2], 255) if kind.alpha is None else kind.alpha
    np.testing.assert_array_equal(found[..., 3], alpha)
    expected = plain(path, "RGB") if kind.pixels is None else in_colour(kind.pixels)
    seen = found[..., 3] > 0  # colours of what is wholly transparent mean nothing
    assert_near(found[seen][..., :3], expected[seen], 1 if "inks" in kind.name else 0)


@pytest.mark.parametrize("kind", [k for k in KINDS if k.wide is not None], ids=lambda kind: kind.name)
def test_in_f_greys_are_in_full_and_floats_as_they_are(kind, tmp_path):
    tensor = read_image(as_written(kind, tmp_path), Reading("F"))
    assert tensor.dtype == torch.float32
    np.testing.assert_allclose(tensor[0].numpy(), kind.wide, rtol=2e-7, atol=0)


def test_in_f_all_65536_greys_are_kept_apart(tmp_path):
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(every).save(tmp_path / "all.png")
    back = read_image(tmp_path / "all.png", Reading("F"))[0].numpy()
    np.testing.assert_array_equal(np.rint(back.astype(np.float64) * 65535), every)
    assert (back.min(), back.max()) == (0, 1)
    in_8_bits = read_image(tmp_path / "all.png", Reading("L"))[0].numpy()
    np.testing.assert_array_equal(in_8_bits, np.rint(every / 257))


@pytest.mark.parametrize("name", ["colour.png", "palette.png", "colour-alpha.png", "grey-alpha.png", "inks.tif"])
def test_mode_f_on_what_is_no_grey_says_so(name, tmp_path):
    with pytest.raises(UnreadableError, match="mode F takes greys and floats"):
        read_image(as_written(BY_NAME[name], tmp_path), Reading("F"))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", None])
def test_floats_in_eight_bits_are_refused_with_what_to_type(mode, tmp_path):
    with pytest.raises(UnreadableError, match="read it with mode F"):
        read_image(as_written(BY_NAME["floats.tif"], tmp_path), Reading(mode))


def test_32_bit_integers_have_no_range_that_is_known(tmp_path):
    Image.fromarray(np.array([[0, 70000], [1, 2]], np.int32)).save(tmp_path / "x.tif")
    for mode in ("L", "F"):
        with pytest.raises(UnreadableError, match="32-bit integers, whose range is not known"):
            read_image(tmp_path / "x.tif", Reading(mode))


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_photo_is_upright_whatever_its_exif_says_in_jpeg_too(orientation, tmp_path):
    """Blocks of one colour come through JPEG unmixed, so that corners can be told apart."""
    corners = np.zeros((16, 32, 3), np.uint8)
    corners[:8, :16], corners[:8, 16:], corners[8:, :16] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(corners).save(tmp_path / "x.jpg", exif=exif.tobytes(), quality=95, subsampling=0)
    expected = UPRIGHT[orientation](corners)
    assert_near(as_shown(read_image(tmp_path / "x.jpg", Reading("RGB"))), expected, 6)
    assert native_mode(tmp_path / "x.jpg") == ("RGB", expected.shape[:2])


def test_turning_comes_before_resizing(tmp_path):
    path = as_written(BY_NAME["turned-6.png"], tmp_path)
    found = as_shown(read_image(path, Reading("RGB", size=(W, H))))  # its size as it is shown: nothing to resize
    np.testing.assert_array_equal(found, UPRIGHT[6](COLOUR))


# Every kind, in one folder


def test_a_folder_with_one_image_of_each_kind_loads_each_equal_to_its_reference(tmp_path):
    """33 kinds and nine turned ones, half of them in either class; what is turned has its own size without `size`."""
    kinds = sorted((k for k in KINDS if not k.only_float), key=lambda k: k.name)
    assert len(kinds) >= 40
    for number, kind in enumerate(kinds):
        folder = tmp_path / "data" / ("even" if number % 2 == 0 else "odd")
        folder.mkdir(parents=True, exist_ok=True)
        kind.write(folder / kind.name)
    source = open_data(str(tmp_path / "data"), Options(images=Reading("RGB", "white"))).train
    in_order = kinds[::2] + kinds[1::2]
    assert source.classes == ("even", "odd")
    assert source.targets.tolist() == [0] * len(kinds[::2]) + [1] * len(kinds[1::2])
    assert [Path(path).name for path in source.files.paths] == [kind.name for kind in in_order]
    inputs, targets = source.batch(torch.arange(len(kinds)), 0, 0)
    assert targets.equal(source.targets)
    for kind, path, image in zip(in_order, source.files.paths, inputs.images, strict=True):
        assert_near(as_shown(image), *expected_rgb(kind, Path(path)))


def test_with_a_size_they_are_one_tensor_each_resized_as_pillow_resizes_its_reference(tmp_path):
    (tmp_path / "all").mkdir()
    kinds = sorted((k for k in KINDS if not k.only_float), key=lambda k: k.name)
    for kind in kinds:
        kind.write(tmp_path / "all" / kind.name)
    source = open_data(str(tmp_path), Options(images=Reading("RGB", "white", (5, 7)))).train
    inputs, _ = source.batch(torch.arange(len(kinds)), 0, 0)
    assert inputs.shape == (len(kinds), 3, 5, 7)
    assert inputs.dtype == torch.uint8
    for kind, path, image in zip(kinds, source.files.paths, inputs, strict=True):
        pixels, near = expected_rgb(kind, Path(path))
        reference = Image.fromarray(np.rint(pixels).astype(np.uint8)).resize((7, 5), Image.Resampling.BILINEAR)
        assert_near(as_shown(image), np.asarray(reference), near)


def test_floats_and_deep_greys_in_one_folder_are_floats(tmp_path):
    (tmp_path / "all").mkdir()
    for name in ("deep-grey.png", "floats.tif", "grey.png"):
        BY_NAME[name].write(tmp_path / "all" / name)
    inputs, _ = open_data(str(tmp_path), Options(images=Reading("F"))).train.batch(torch.arange(3), 0, 0)
    assert inputs.dtype == torch.float32
    for image, name in zip(inputs, ("deep-grey.png", "floats.tif", "grey.png"), strict=True):
        np.testing.assert_allclose(image[0].numpy(), BY_NAME[name].wide, rtol=2e-7)


def test_resizing_keeps_a_float_float(tmp_path):
    found = read_image(as_written(BY_NAME["floats.tif"], tmp_path), Reading("F", size=(3, 4)))
    reference = Image.fromarray(FLOATS).resize((4, 3), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(found[0].numpy(), np.asarray(reference))


@pytest.mark.parametrize(
    ("names", "mode", "shape"),
    [(["grey.png", "one-bit.png", "grey.jpeg"], "L", (1, H, W)), (["colour.png", "colour.jpg"], "RGB", (3, H, W))],
)
def test_where_all_files_are_of_one_mode_nothing_has_to_be_said(names, mode, shape, tmp_path):
    (tmp_path / "all").mkdir()
    for name in names:
        BY_NAME[name].write(tmp_path / "all" / name)
    splits = open_data(str(tmp_path))
    assert splits.reading.mode == mode
    assert splits.train.batch(torch.arange(1), 0, 0)[0].shape[1:] == shape


@pytest.mark.parametrize(
    ("names", "counts"),
    [
        (["grey.png", "colour.png", "colour.jpg"], "2 RGB, 1 L"),
        (["palette.png"], "1 P"),
        (["deep-grey.png"], "1 I;16"),
        (["grey-key.png"], "1 L with transparency"),
        (["colour-alpha.png", "colour.png"], "1 RGB"),
    ],
)
def test_where_they_are_not_the_error_counts_them_and_says_what_to_type(names, counts, tmp_path):
    (tmp_path / "all").mkdir()
    for name in names:
        BY_NAME[name].write(tmp_path / "all" / name)
    with pytest.raises(DataError) as caught:
        open_data(str(tmp_path))
    for part in (counts, "data.images.mode=RGB", "data.images.ground=white"):
        assert part in str(caught.value)


# Transparency


@pytest.mark.parametrize("kind", [k for k in KINDS if k.alpha is not None], ids=lambda kind: kind.name)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_transparency_without_a_ground_says_what_to_type(kind, mode, tmp_path):
    with pytest.raises(UnreadableError, match=r"transparency: .* data\.images\.ground=white"):
        read_image(as_written(kind, tmp_path), Reading(mode))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_an_alpha_that_is_opaque_everywhere_needs_no_ground(mode, tmp_path):
    opaque = np.full((H, W), 255, np.uint8)
    Image.fromarray(np.dstack([GREY, opaque])).save(tmp_path / "grey.png")
    Image.fromarray(np.dstack([COLOUR, opaque])).save(tmp_path / "colour.png")
    grey = as_shown(read_image(tmp_path / "grey.png", Reading(mode)))
    np.testing.assert_array_equal(grey if mode == "L" else grey[..., 1], GREY)
    colour = as_shown(read_image(tmp_path / "colour.png", Reading(mode)))
    if mode == "L":
        assert_near(colour, in_grey(COLOUR), 1)
    else:
        np.testing.assert_array_equal(colour[..., :3], COLOUR)


def test_one_pixel_that_is_not_quite_opaque_does_need_one(tmp_path):
    alpha = np.full((H, W), 255, np.uint8)
    alpha[-1, -1] = 254
    Image.fromarray(np.dstack([COLOUR, alpha])).save(tmp_path / "x.png")
    with pytest.raises(UnreadableError, match="transparency"):
        read_image(tmp_path / "x.png", Reading("RGB"))


@pytest.mark.parametrize("reading", [Reading("L", "white"), Reading("RGB", "white"), Reading("RGBA")], ids=str)
def test_a_16_bit_grey_with_a_transparent_value_is_composed_like_any_other(reading, tmp_path):
    rows = b"\0" + np.array([0, 65535, 1000], ">u2").tobytes()
    (tmp_path / "x.png").write_bytes(png(3, 1, 16, 0, rows, chunk(b"tRNS", struct.pack(">H", 0))))
    with Image.open(tmp_path / "x.png") as image:
        assert image.has_transparency_data
    found = read_image(tmp_path / "x.png", reading)
    if reading.mode == "RGBA":
        assert found[3].flatten().tolist() == [0, 255, 255]
    else:
        assert found[0].flatten().tolist() == [255, 255, 4]


@pytest.mark.parametrize("depth", [8, 16])
def test_mode_f_refuses_a_grey_with_a_transparent_value(depth, tmp_path):
    rows = b"\0" + np.array([0, 9, 200], "u1" if depth == 8 else ">u2").tobytes()
    (tmp_path / "x.png").write_bytes(png(3, 1, depth, 0, rows, chunk(b"tRNS", struct.pack(">H", 0))))
    with pytest.raises(UnreadableError, match="transparen"):
        read_image(tmp_path / "x.png", Reading("F"))


@pytest.mark.parametrize("ground", ["#ffffff80", "#ffffff00", "rgba(255, 255, 255, 0)"])
def test_a_ground_that_is_itself_transparent_is_refused_or_taken_as_opaque(ground, tmp_path):
    path = as_written(BY_NAME["colour-alpha.png"], tmp_path)
    try:
        reading = Reading("RGB", ground)
    except RecipeError as error:
        told_so = str(error)
        assert "data.images.ground" in told_so
        return
    assert_near(as_shown(read_image(path, reading)), over(COLOUR, ALPHA, np.asarray(WHITE)), 1)


# What is no image


def cut(path: Path, share: float = 0.5) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def noise(path: Path, **options) -> None:
    """An image large enough to be cut in its middle."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path, **options)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.webp", "x.bmp", "x.ppm"])
def test_a_file_that_is_cut_off_is_unreadable_and_never_half_grey(name, share, tmp_path):
    noise(tmp_path / name)
    cut(tmp_path / name, share)
    with pytest.raises(UnreadableError) as caught:
        read_image(tmp_path / name, Reading("RGB"))
    assert str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_png_with_a_byte_damaged_anywhere_is_unreadable_or_the_same(tmp_path):
    """The checksums see to that; what comes after the last pixel may be damaged without harm."""
    Image.fromarray(COLOUR).save(tmp_path / "x.png")
    content = (tmp_path / "x.png").read_bytes()
    harmless = 0
    for place in range(len(content)):
        (tmp_path / "x.png").write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        try:
            found = read_image(tmp_path / "x.png", Reading("RGB"))
        except UnreadableError:
            continue
        np.testing.assert_array_equal(as_shown(found), COLOUR)
        harmless += 1
    assert harmless <= 24


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: None, "there is no such file"),
        (lambda path: path.touch(), "not an image that can be read"),
        (lambda path: path.write_text("a,b\n1,2\n"), "not an image that can be read"),
        (lambda path: path.write_bytes(bytes(range(256)) * 4), "not an image that can be read"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: path.symlink_to("nowhere"), "there is no such file"),
        (lambda path: path.symlink_to(path), "symbolic links"),
        (lambda path: path.write_bytes(png(20000, 20000, 8, 0, b"")), "decompression bomb.* 178,956,970 pixels"),
    ],
    ids=["missing", "empty", "text", "binary", "directory", "broken link", "loop", "bomb"],
)
def test_what_is_no_image_is_told_in_a_few_words(make, text, tmp_path):
    make(tmp_path / "x.png")
    with pytest.raises(UnreadableError, match=text):
        read_image(tmp_path / "x.png", Reading("RGB"))
    with pytest.raises(UnreadableError, match=text):
        native_mode(tmp_path / "x.png")


def test_a_bomb_among_images_is_counted_and_named_and_the_others_can_be_had_without_it(tmp_path):
    (tmp_path / "a").mkdir()
    BY_NAME["colour.png"].write(tmp_path / "a" / "good.png")
    (tmp_path / "a" / "bomb.png").write_bytes(png(20000, 20000, 8, 2, b""))
    with pytest.raises(DataError) as caught:
        open_data(str(tmp_path))
    assert "1 of 2 images are missing or can't be read" in str(caught.value)
    assert f"{tmp_path / 'a' / 'bomb.png'}: a decompression bomb?" in str(caught.value)
    assert str(caught.value).endswith("data.on_bad=skip")
    splits = open_data(str(tmp_path), Options(on_bad="skip"))
    assert len(splits.train) == 1
    assert "bomb.png" in splits.notes[0]


def test_a_suffix_that_lies_about_the_format_is_no_harm(tmp_path):
    content = io.BytesIO()
    Image.fromarray(COLOUR).save(content, "PNG")
    (tmp_path / "x.jpg").write_bytes(content.getvalue())
    np.testing.assert_array_equal(as_shown(read_image(tmp_path / "x.jpg", Reading("RGB"))), COLOUR)


def test_text_and_time_inside_a_png_change_nothing(tmp_path):
    notes = PngInfo()
    notes.add_text("Comment", "x" * 1000)
    Image.fromarray(COLOUR).save(tmp_path / "x.png", pnginfo=notes)
    np.testing.assert_array_equal(as_shown(read_image(tmp_path / "x.png", Reading("RGB"))), COLOUR)


# What is no way of reading


@pytest.mark.parametrize(("mode", "meant"), [("RGBB", "RGB"), ("rgb", "RGB"), ("CMYK", None), ("", None), ("1", None)])
def test_an_unknown_mode_is_answered_with_those_there_are(mode, meant):
    with pytest.raises(RecipeError, match=re.escape(f"data.images.mode: there is no '{mode}'")) as caught:
        Reading(mode)
    assert "There are L, RGB, RGBA, F." in str(caught.value)
    if meant:
        assert f"Did you mean '{meant}'?" in str(caught.value)


@pytest.mark.parametrize("ground", ["wite", "", "#12345", "255"])
def test_an_unknown_ground_is_answered_with_what_to_write(ground):
    with pytest.raises(RecipeError, match=re.escape(f"data.images.ground: '{ground}' is no colour. Write white")):
        Reading("RGB", ground)


@pytest.mark.parametrize("size", [(0, 5), (5, -1), (5,), (5, 5, 3), ()])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(RecipeError, match=re.escape(f"data.images.size: {size!r} is no size. Write 64, or")):
        Reading("RGB", size=size)


def test_a_size_that_is_none_is_answered_with_what_to_write():
    with pytest.raises(RecipeError, match=r"data.images.size=64|\[height, width\]|Write"):
        Reading("RGB", size=(0, 5))


@pytest.mark.parametrize("size", [64, (3.5, 2), "64"], ids=repr)
def test_a_size_of_another_type_is_understood_or_refused_but_never_a_traceback(size, tmp_path):
    try:
        reading = Reading("RGB", size=size)
    except RecipeError as error:
        told_so = str(error)
        assert "data.images.size" in told_so
        return
    assert size == 64, "a number alone may mean a square, as in a recipe; nothing else of these means a size"
    assert read_image(as_written(BY_NAME["colour.png"], tmp_path), reading).shape == (3, 64, 64)
