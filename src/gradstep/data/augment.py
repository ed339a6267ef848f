"""Augmentations of training images, batched on tensors: `[N, C, H, W]` as they were read, uint8 or floats in [0, 1].

What happens to a sample is a function of (seed, epoch, sample) and of the augmentation's place in its list; not of
the batch it comes in, nor of who loads it. They run before the transforms. Rotation and colour are kornia's, fed with
our draws.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from gradstep.data.draws import Draws
from gradstep.data.mix import CutMix, MixUp
from gradstep.data.transforms import Resize, ToFloat
from gradstep.errors import DataError, RecipeError, listed, nearest


class Augmentation(Protocol):
    """A batch of images to another, with draws for each of them."""

    def __call__(self, inputs: Tensor, draws: Draws) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Flip:
    """Mirrors an image left to right, or upside down where `vertical`, with probability `p`."""

    p: float = 0.5
    vertical: bool = False

    def __post_init__(self) -> None:
        _within("flip", "p", self.p, 0, 1)
        if not isinstance(self.vertical, bool):
            raise RecipeError(f"augment: flip takes true or false for vertical, not {self.vertical!r}.")

    def __call__(self, inputs: Tensor, draws: Draws) -> Tensor:
        chosen = _for_each(draws.uniform(1)[:, 0] < self.p, inputs)
        return torch.where(chosen, inputs.flip(-2 if self.vertical else -1), inputs)


@dataclass(frozen=True, slots=True)
class Shift:
    """Moves an image by whole pixels, each distance from −pixels to +pixels as likely, down and right apart.

    What comes into view has the value `fill`, from 0 (black) to 1.
    """

    pixels: int
    fill: float = 0.0

    def __post_init__(self) -> None:
        _whole("shift", "pixels", self.pixels, 1)
        _within("shift", "fill", self.fill, 0, 1)

    def __call__(self, inputs: Tensor, draws: Draws) -> Tensor:
        height, width = inputs.shape[-2:]
        return _window(_padded(inputs, self.pixels, self.fill), height, width, draws)


@dataclass(frozen=True, slots=True)
class Crop:
    """A piece of `size` (one number for a square, or `[height, width]`), every place as likely.

    The image is first widened by `pad` pixels of value `fill` (0 to 1) on each side.
    """

    size: int | tuple[int, int]
    pad: int = 0
    fill: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", _size("crop", self.size))
        _whole("crop", "pad", self.pad, 0)
        _within("crop", "fill", self.fill, 0, 1)

    def __call__(self, inputs: Tensor, draws: Draws) -> Tensor:
        padded, (height, width) = _padded(inputs, self.pad, self.fill), _pair(self.size)
        if padded.shape[-2] < height or padded.shape[-1] < width:
            raise DataError(
                f"crop: a piece of {height}×{width} does not fit into images of {inputs.shape[-2]}×{inputs.shape[-1]} "
                f"padded by {self.pad}. Make the size smaller or the pad larger."
            )
        return _window(padded, height, width, draws)


@dataclass(frozen=True, slots=True)
class RandomResizedCrop:
    """A piece of random area and shape, resized to `size` (bilinear, antialiased). Gives floats in [0, 1].

    The area is a share of the image's in `scale`; width over height is in `ratio`, its logarithm uniform. Szegedy
    et al., "Going deeper with convolutions" (2014), section 6. Of ten tries the first that fits is taken; if none
    does, the largest piece in the middle whose shape is in `ratio`.
    """

    size: int | tuple[int, int]
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", _size("random_resized_crop", self.size))
        for name, most in (("scale", 1.0), ("ratio", math.inf)):
            object.__setattr__(self, name, _range("random_resized_crop", name, getattr(self, name), most))

    def __call__(self, inputs: Tensor, draws: Draws) -> Tensor:
        inputs = ToFloat()(inputs)
        boxes = self.boxes(draws, inputs.shape[-2], inputs.shape[-1])
        # One by one: each piece has a size of its own, and so its own filter.
        pieces = [
            Resize(self.size)(image[None, :, top : top + height, left : left + width])
            for image, (top, left, height, width) in zip(inputs, boxes, strict=True)
        ]
        return torch.cat(pieces).clamp(0, 1)  # the filter's weights sum to 1 but for rounding

    def boxes(self, draws: Draws, height: int, width: int) -> list[tuple[int, int, int, int]]:
        """`(top, left, height, width)` of each sample's piece of an image of this size."""
        u = draws.uniform(2 + 2 * _TRIES)
        areas = (self.scale[0] + (self.scale[1] - self.scale[0]) * u[:, 2::2]) * (height * width)
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        shapes = torch.exp(low + (high - low) * u[:, 3::2])
        wide, tall = (areas * shapes).sqrt().round().long(), (areas / shapes).sqrt().round().long()
        fits = (wide > 0) & (tall > 0) & (wide <= width) & (tall <= height)
        boxes = []
        for row in range(len(u)):
            places = fits[row].nonzero()
            if len(places):
                h, w = int(tall[row, places[0, 0]]), int(wide[row, places[0, 0]])
                top, left = int(u[row, 0] * (height - h + 1)), int(u[row, 1] * (width - w + 1))
            else:
                shape = min(max(width / height, self.ratio[0]), self.ratio[1])
                h, w = min(height, max(1, round(width / shape))), min(width, max(1, round(height * shape)))
                top, left = (height - h) // 2, (width - w) // 2
            boxes.append((top, left, h, w))
        return boxes


_TRIES = 10
_HUGE = sys.float_info.max  # what a float holds; an integer may be larger


@dataclass(frozen=True, slots=True)
class CutOut:
    """Covers a square of `size` pixels with `fill` (0 to 1), with probability `p`.

    Its middle is any pixel, so a part of it may lie outside. DeVries and Taylor, "Improved regularization of
    convolutional neural networks with cutout" (2017).
    """

    size: int
    p: float = 1.0
    fill: float = 0.0

    def __post_init__(self) -> None:
        _whole("cutout", "size", self.size, 1)
        _within("cutout", "p", self.p, 0, 1)
        _within("cutout", "fill", self.fill, 0, 1)

    def __call__(self, inputs: Tensor, draws: Draws) -> Tensor:
        u = draws.uniform(3)
        height, width = inputs.shape[-2:]
        covered = (u[:, 2] < self.p)[:, None, None]
        for number, (length, shape) in enumerate(((height, (-1, 1)), (width, (1, -1)))):
            first = (u[:, number] * length).floor().long() - self.size // 2
            places = torch.arange(length)
            inside = (places >= first[:, None]) & (places < first[:, None] + self.size)
            covered = covered & inside.reshape(len(u), *shape)
        return inputs.masked_fill(covered[:, None].to(inputs.device), _value(self.fill, inputs))


@dataclass(frozen=True, slots=True)
class Rotate:
    """Turns an image about its middle by up to `degrees` either way, every angle as likely. Gives floats in [0, 1].

    Bilinear; what comes into view is black. Needs kornia: pip install 'gradstep[augment]'
    """

    degrees: float

    def __post_init__(self) -> None:
        _within("rotate", "degrees", self.degrees, 0, 180)
        _kornia()

    def __call__(self, inputs: Tensor, draws: Draws) -> Tensor:
        inputs = ToFloat()(inputs)
        angles = self.angles(draws).to(inputs)
        turned: Tensor = _kornia().geometry.transform.rotate(inputs, angles)
        return turned

    def angles(self, draws: Draws) -> Tensor:
        """Counter-clockwise, in degrees, `[N]`."""
        return (2 * draws.uniform(1)[:, 0] - 1) * self.degrees


@dataclass(frozen=True, slots=True)
class Color:
    """Changes brightness, contrast, saturation and hue, in this order. Gives floats in [0, 1].

    The first three are multiplied by a factor from 1 − x to 1 + x (not below 0); the hue is moved by up to `hue` of
    a full turn either way. Saturation and hue take three channels. Needs kornia: pip install 'gradstep[augment]'
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            _within("color", name, getattr(self, name), 0, math.inf)
        _within("color", "hue", self.hue, 0, 0.5)
        _kornia()

    def __call__(self, inputs: Tensor, draws: Draws) -> Tensor:
        inputs, enhance = ToFloat()(inputs), _kornia().enhance
        brightness, contrast, saturation, hue = self.factors(draws).to(inputs).unbind(1)
        if (self.saturation or self.hue) and inputs.shape[1] != 3:
            raise DataError(f"color: saturation and hue need 3 channels, and the images have {inputs.shape[1]}.")
        if self.brightness:
            inputs = enhance.adjust_brightness_accumulative(inputs, brightness)
        if self.contrast:
            inputs = enhance.adjust_contrast_with_mean_subtraction(inputs, contrast)
        if self.saturation:
            inputs = enhance.adjust_saturation_with_gray_subtraction(inputs, saturation)
        return enhance.adjust_hue(inputs, hue) if self.hue else inputs

    def factors(self, draws: Draws) -> Tensor:
        """`[N, 4]`: of brightness, contrast and saturation, and the hue's turn in radians."""
        u = 2 * draws.uniform(4) - 1
        spread = torch.tensor([self.brightness, self.contrast, self.saturation], dtype=u.dtype)
        return torch.cat([(1 + u[:, :3] * spread).clamp(min=0), u[:, 3:] * (2 * math.pi * self.hue)], 1)


# Their names in a recipe, and the option that a bare value stands for.
_NAMES: dict[str, tuple[Callable[..., Any], str]] = {
    "flip": (Flip, "p"),
    "shift": (Shift, "pixels"),
    "crop": (Crop, "size"),
    "random_resized_crop": (RandomResizedCrop, "size"),
    "cutout": (CutOut, "size"),
    "rotate": (Rotate, "degrees"),
    "color": (Color, "brightness"),
    "mixup": (MixUp, "alpha"),
    "cutmix": (CutMix, "alpha"),
}


# What others call them: used only to answer.
_SYNONYMS = {
    **dict.fromkeys(("random_crop", "padded_crop", "pad_crop"), "crop"),
    **dict.fromkeys(("hflip", "vflip", "horizontal_flip", "vertical_flip", "random_horizontal_flip", "mirror"), "flip"),
    **dict.fromkeys(("translate", "translation", "random_shift", "affine"), "shift"),
    **dict.fromkeys(("random_erasing", "erase", "cut_out"), "cutout"),
    **dict.fromkeys(("rotation", "random_rotation"), "rotate"),
    **dict.fromkeys(("colour", "color_jitter", "colorjitter", "jitter", "brightness", "contrast", "saturation", "hue"),
                    "color"),
    **dict.fromkeys(("mix_up",), "mixup"),
    **dict.fromkeys(("cut_mix",), "cutmix"),
}  # fmt: skip


def augmentations_of(given: Any) -> tuple[Augmentation | MixUp | CutMix, ...]:
    """One augmentation or several, each made already or as a recipe writes it. RecipeError for what is neither."""
    several = given if isinstance(given, (list, tuple)) else [given]
    return tuple(
        each if callable(each) and not isinstance(each, type) else augmentation_from_document(each) for each in several
    )


def augmentation_from_document(document: Any) -> Augmentation | MixUp | CutMix:
    """An augmentation as a recipe writes it: `flip`, `{shift: 2}`, `{crop: {size: 32, pad: 4}}`, ..."""
    name, value = (
        next(iter(document.items())) if isinstance(document, dict) and len(document) == 1 else (document, None)
    )
    if not isinstance(name, str) or name not in _NAMES:
        called = _SYNONYMS.get(str(name).lower())
        hint = f" It is called '{called}' here." if called else nearest(str(name), _NAMES)
        raise RecipeError(
            f"augment: {document!r} is not one of {', '.join(_NAMES)}, as in flip, {{shift: 2}} or "
            f"{{crop: {{size: 32, pad: 4}}}}.{hint}"
        )
    kind, main = _NAMES[name]
    options = value if isinstance(value, dict) else ({} if value is None else {main: value})
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for option in options:
        if option not in known:
            hint = nearest(str(option), known) or f" It takes {listed(known)}."
            raise RecipeError(f"augment: '{name}' takes no '{option}'.{hint}")
    try:
        made: Augmentation | MixUp | CutMix = kind(**options)
    except TypeError:  # what is missing has no default
        raise RecipeError(f"augment: '{name}' needs its {main}, as in {{{name}: 8}}.") from None
    return made


def document_of(augmentation: Any) -> dict[str, Any]:
    """How a recipe writes it."""
    name = next(name for name, (kind, _) in _NAMES.items() if type(augmentation) is kind)
    return {name: {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(augmentation).items()}}


def _window(padded: Tensor, height: int, width: int, draws: Draws) -> Tensor:
    """A piece of each image, its place drawn."""
    spare = (padded.shape[-2] - height + 1, padded.shape[-1] - width + 1)
    u = draws.uniform(2)
    top, left = ((u[:, i] * spare[i]).long().to(padded.device) for i in (0, 1))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: [N, C, places down, places right, h, w]
    return windows[torch.arange(len(padded), device=padded.device), :, top, left]


def _padded(inputs: Tensor, pad: int, fill: float) -> Tensor:
    return functional.pad(inputs, (pad, pad, pad, pad), value=_value(fill, inputs)) if pad else inputs


def _value(fill: float, inputs: Tensor) -> float:
    return round(255 * fill) if inputs.dtype == torch.uint8 else fill


def _for_each(flags: Tensor, inputs: Tensor) -> Tensor:
    return flags.to(inputs.device).reshape(-1, *[1] * (inputs.dim() - 1))


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _kornia() -> Any:
    try:
        import kornia  # two seconds; only where it is used
    except ImportError:
        raise RecipeError(
            "augment: rotate and color are kornia's, which is not installed. Type: pip install 'gradstep[augment]'"
        ) from None
    return kornia


def _within(name: str, option: str, value: Any, low: float, high: float) -> None:
    if type(value) not in (int, float) or not low <= value <= min(high, _HUGE):
        bounds = f"from {low} to {high}" if math.isfinite(high) else f"of {low} or more"
        raise RecipeError(f"augment: {name} takes a number {bounds} for {option}, not {value!r}.")


def _whole(name: str, option: str, value: Any, least: int) -> None:
    if type(value) is not int or value < least:
        raise RecipeError(f"augment: {name} takes a whole number of {least} or more for {option}, not {value!r}.")


def _size(name: str, value: Any) -> int | tuple[int, int]:
    sides = [value, value] if type(value) is int else value
    if not isinstance(sides, (list, tuple)) or len(sides) != 2 or any(type(s) is not int or s < 1 for s in sides):
        raise RecipeError(f"augment: {name} takes a size such as 32 or [24, 32], not {value!r}.")
    return value if type(value) is int else (sides[0], sides[1])


def _range(name: str, option: str, value: Any, most: float) -> tuple[float, float]:
    numbers = isinstance(value, (list, tuple)) and len(value) == 2 and all(type(v) in (int, float) for v in value)
    if not numbers or not 0 < value[0] <= value[1] <= min(most, _HUGE):
        limit = f" of at most {most:g}" if math.isfinite(most) else ""
        raise RecipeError(f"augment: {name} takes two growing positive numbers{limit} for {option}, not {value!r}.")
    return float(value[0]), float(value[1])
