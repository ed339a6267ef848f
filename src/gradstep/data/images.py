"""One image file to one tensor, whatever kind of image it is. Pillow decodes; every conversion is a stated one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError
from torch import Tensor

from gradstep.errors import RecipeError, listed, nearest

MODES = ("L", "RGB", "RGBA", "F")
SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_WIDE = ("I;16", "I;16B", "I;16L", "I;16N", "I")  # Pillow's modes for 16 bits a pixel
_TOLD_EARLY = ("JPEG", "MPO")  # formats whose EXIF tag is known before the pixels are decoded
_CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4, "F": 1}
Pixels = np.ndarray[Any, Any]


def is_image(path: str | Path) -> bool:
    """Whether a name ends as image files do."""
    return str(path).lower().endswith(SUFFIXES)


class UnreadableError(Exception):
    """What is wrong with one image file, in a few words. The one who asked for it names the file."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How image files become tensors `[C, H, W]`.

    `mode`: L (grey), RGB or RGBA, uint8; or F (one channel, float32 in [0, 1], for 16-bit greys in full). None takes
    what the files are, if all of them are L or all are RGB.
    `ground`: the colour that shows through where there is transparency, such as white, black or "#ff8000". None
    refuses images with transparency, unless `mode` keeps it.
    `size`: (height, width) that every image is resized to (bilinear, antialiased, stretched where it must be). None
    leaves it. A JPEG is decoded at the smallest scale (1/8, 1/4, 1/2) that is still twice that or more.
    """

    mode: str | None = None
    ground: str | None = None
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.mode is not None and self.mode not in MODES:
            raise RecipeError(
                f"data.images.mode: there is no '{self.mode}'. There are {listed(MODES)}.{nearest(self.mode, MODES)}"
            )
        if self.size is not None:
            object.__setattr__(self, "size", _pair(self.size))
        if self.ground is not None:
            try:
                opaque = ImageColor.getrgb(self.ground)[3:] in ((), (255,))
            except ValueError:
                opaque = False
            if not opaque:
                raise RecipeError(f"data.images.ground: '{self.ground}' is no colour. Write white, black or #rrggbb.")

    @property
    def channels(self) -> int | None:
        return None if self.mode is None else _CHANNELS[self.mode]


def _pair(size: Any) -> tuple[int, int]:
    sides = (size, size) if type(size) is int else size
    if not isinstance(sides, (list, tuple)) or len(sides) != 2 or any(type(s) is not int or s < 1 for s in sides):
        raise RecipeError(f"data.images.size: {size!r} is no size. Write 64, or [48, 64] (height, width).")
    return sides[0], sides[1]


def read_image(path: str | Path | BinaryIO, reading: Reading) -> Tensor:
    """The first frame of an image file, upright as its EXIF tag says: `[C, H, W]`, uint8, or float32 for mode F.

    UnreadableError says what is wrong with the file.
    """
    try:
        with Image.open(path) as image:
            return as_tensor(image, reading)
    except UnreadableError:
        raise
    except Exception as error:
        raise UnreadableError(trouble(error)) from error


def read_native(path: str | Path | BinaryIO, reading: Reading) -> tuple[str, Pixels]:
    """`(mode as native_mode tells it, image as read_image gives it)`, the file opened once, the image as an array."""
    try:
        with Image.open(path) as image:
            return _mode(image), _pixels(image, reading)
    except UnreadableError:
        raise
    except Exception as error:
        raise UnreadableError(trouble(error)) from error


def as_tensor(image: Image.Image, reading: Reading) -> Tensor:
    """A Pillow image as `read_image` gives it."""
    return torch.from_numpy(_pixels(image, reading))


def _pixels(image: Image.Image, reading: Reading) -> Pixels:
    orientation = _orientation(image) if image.format in _TOLD_EARLY else None
    if reading.size is not None:
        _draft(image, reading.size, swapped=orientation is not None and orientation >= 5)
    image.load()  # the whole of it: a file that is cut off says so here
    if orientation is None:  # of formats that tell it behind the pixels
        orientation = _orientation(image)
    if orientation != 1:
        upright = ImageOps.exif_transpose(image)
        image = image if upright is None else upright
    pixels = _float(image) if reading.mode == "F" else _converted(image, reading)
    if reading.size is not None and pixels.size != (reading.size[1], reading.size[0]):
        pixels = pixels.resize((reading.size[1], reading.size[0]), Image.Resampling.BILINEAR)
    # Quicker than np.array(pixels), which asks by Pillow's interface; a bytearray, as torch has no read-only tensors.
    values = np.frombuffer(bytearray(pixels.tobytes()), np.float32 if pixels.mode == "F" else np.uint8)
    values = values.reshape(pixels.height, pixels.width, -1)
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def _draft(image: Image.Image, size: tuple[int, int], swapped: bool) -> None:
    """Has a JPEG decoded at the smallest of 1/8, 1/4, 1/2 that leaves twice the size it will be resized to, or more.

    As `Image.thumbnail` does with its reducing_gap of 2. The mode stays; other formats have no such scales.
    """
    height, width = size[::-1] if swapped else size
    image.draft(None, (2 * width, 2 * height))


def _orientation(image: Image.Image) -> int:
    orientation: int = image.getexif().get(0x0112, 1)
    return orientation


def _mode(image: Image.Image) -> str:
    return f"{image.mode} with transparency" if _transparent(image) and "A" not in image.mode else image.mode


def native_mode(path: str | Path | BinaryIO) -> tuple[str, tuple[int, int]]:
    """`(Pillow's mode, (height, width) as it is shown)` from a file's header alone. UnreadableError as above."""
    try:
        with Image.open(path) as image:
            turned = _orientation(image) >= 5  # an orientation that swaps the sides
            size = image.size if turned else (image.size[1], image.size[0])
            return _mode(image), size
    except Exception as error:
        raise UnreadableError(trouble(error)) from error


def trouble(error: Exception) -> str:
    """What an exception of Pillow's says to a person, without the file's name."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, UnidentifiedImageError):
        return "not an image that can be read"
    if isinstance(error, Image.DecompressionBombError):
        return f"a decompression bomb? It claims more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{str(error) or type(error).__name__}".splitlines()[0]


def _converted(image: Image.Image, reading: Reading) -> Image.Image:
    """In 8 bits, in the reading's mode, or the file's own where that is L or RGB."""
    if image.mode in _WIDE:
        grey = np.asarray(image).astype(np.int64)
        _hold_sixteen_bits(grey)
        clear = image.info.get("transparency")  # one of the greys
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))  # Pillow's own conversion would clip at 255
        if clear is not None:
            image.putalpha(Image.fromarray(np.where(grey == clear, 0, 255).astype(np.uint8)))
    if image.mode.startswith("F"):
        raise UnreadableError("its pixels are floats, whose range is not known: read it with mode F")
    if _transparent(image):
        colours = image.convert("RGBA")
        if reading.mode == "RGBA":
            return colours
        if colours.getchannel("A").getextrema()[0] == 255:  # opaque everywhere: nothing to compose
            image = colours.convert("RGB") if reading.mode == "RGB" or image.mode != "LA" else image.convert("L")
        elif reading.ground is None:
            raise UnreadableError("it has transparency: say what shows through, as in data.images.ground=white")
        else:
            image = Image.alpha_composite(Image.new("RGBA", image.size, reading.ground), colours).convert("RGB")
    if image.mode == "1":
        image = image.convert("L")
    if reading.mode is None:
        if image.mode not in ("L", "RGB"):
            raise UnreadableError(f"its mode is {image.mode}: say which is meant, as in data.images.mode=RGB")
        return image
    if image.mode not in ("L", "RGB", "RGBA") and reading.mode != "RGB":
        image = image.convert("RGB")  # palettes, CMYK, YCbCr: through the colours they stand for
    return image if image.mode == reading.mode else image.convert(reading.mode)


def _float(image: Image.Image) -> Image.Image:
    """One channel of float32 in [0, 1]; floats as they are."""
    if "transparency" in image.info and image.mode in (*_WIDE, "L", "1", "F"):
        raise UnreadableError("mode F keeps no transparency, and it has some: read it with mode L, RGB or RGBA")
    if image.mode == "F":
        return image
    if image.mode in _WIDE:
        grey = np.asarray(image)
        _hold_sixteen_bits(grey)
        return Image.fromarray((grey / np.float32(65535)).astype(np.float32))
    if image.mode not in ("L", "1"):
        raise UnreadableError(f"mode F takes greys and floats, and this one's mode is {image.mode}")
    return Image.fromarray(np.asarray(image.convert("L"), dtype=np.float32) / np.float32(255))


def _hold_sixteen_bits(grey: Any) -> None:
    if grey.size and (grey.min() < 0 or grey.max() > 65535):
        raise UnreadableError("its pixels are 32-bit integers, whose range is not known")


def _transparent(image: Image.Image) -> bool:
    return bool(image.has_transparency_data)
