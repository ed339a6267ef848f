"""Transforms of whole batches of inputs, on whatever device they are.

Each is a frozen value. One that needs numbers of the training set starts unmeasured; `measure` returns it with the
numbers in place, and those travel with the run to validation, test and prediction.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from gradstep.errors import DataError, RecipeError, nearest


class Transform(Protocol):
    """A batch of inputs `[N, ...]` to another."""

    def __call__(self, inputs: Tensor) -> Tensor: ...

    def measured(self, passes: Callable[[], Iterator[Tensor]]) -> Transform:
        """Itself with what it needs to know of the training set; each call of `passes` goes once through it."""

    def document(self) -> Any:
        """How a recipe writes it."""


@dataclass(frozen=True, slots=True)
class ToFloat:
    """uint8 to float32 in [0, 1], as images are; other integers to float32 as they are; floats untouched."""

    def __call__(self, inputs: Tensor) -> Tensor:
        if inputs.is_floating_point():
            return inputs
        return inputs.float().div_(255) if inputs.dtype == torch.uint8 else inputs.float()

    def measured(self, passes: Callable[[], Iterator[Tensor]]) -> ToFloat:  # noqa: ARG002
        return self

    def document(self) -> Any:
        return "float"


@dataclass(frozen=True, slots=True)
class Resize:
    """Images `[N, C, H, W]` to `size` (one number for a square), bilinear, antialiased when they shrink."""

    size: int | tuple[int, int]

    def __call__(self, inputs: Tensor) -> Tensor:
        if inputs.dim() != 4 or not inputs.is_floating_point():
            raise DataError(
                f"resize needs a batch of float images [N, C, H, W] and got {list(inputs.shape)} "
                f"{str(inputs.dtype).removeprefix('torch.')}. Put 'float' before 'resize'."
            )
        size = (self.size, self.size) if isinstance(self.size, int) else self.size
        if inputs.shape[-2:] == size:
            return inputs
        if (
            size[1] == 1 and size[0] > 1
        ):  # torch 2.13 gives every row the first one's value when it antialiases to width 1
            return Resize((1, size[0]))(inputs.mT.contiguous()).mT
        smaller = size[0] < inputs.shape[-2] or size[1] < inputs.shape[-1]
        return functional.interpolate(inputs, size, mode="bilinear", align_corners=False, antialias=smaller)

    def measured(self, passes: Callable[[], Iterator[Tensor]]) -> Resize:  # noqa: ARG002
        return self

    def document(self) -> Any:
        return {"resize": self.size if isinstance(self.size, int) else list(self.size)}


@dataclass(frozen=True, slots=True)
class CenterCrop:
    """The middle of images `[N, C, H, W]`, of `size` (one number for a square). An odd pixel more is cut at the end."""

    size: int | tuple[int, int]

    def __call__(self, inputs: Tensor) -> Tensor:
        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
        if inputs.dim() != 4 or inputs.shape[-2] < height or inputs.shape[-1] < width:
            raise DataError(
                f"center_crop needs a batch of images [N, C, H, W] of at least {height}×{width} and got "
                f"{list(inputs.shape)}. Put a 'resize' before it."
            )
        top, left = (inputs.shape[-2] - height) // 2, (inputs.shape[-1] - width) // 2
        return inputs[:, :, top : top + height, left : left + width]

    def measured(self, passes: Callable[[], Iterator[Tensor]]) -> CenterCrop:  # noqa: ARG002
        return self

    def document(self) -> Any:
        return {"center_crop": self.size if isinstance(self.size, int) else list(self.size)}


@dataclass(frozen=True, slots=True)
class Normalize:
    """(x − mean) / std for each channel (dimension 1). Without numbers, measured on the training set.

    A channel that never varies is only centred.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __call__(self, inputs: Tensor) -> Tensor:
        mean, std = self._numbers(inputs)
        return (inputs - mean).div_(std)

    def into(self, inputs: Tensor) -> Tensor:
        """The same, bit for bit, written over the inputs."""
        mean, std = self._numbers(inputs)
        return inputs.sub_(mean).div_(std)

    def _numbers(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        if self.mean is None or self.std is None:
            raise DataError("normalize has no numbers yet: it is measured by `gradstep.data.prepare`.")
        if not inputs.is_floating_point():
            raise DataError(f"normalize needs floats and got {inputs.dtype}. Put 'float' before 'normalize'.")
        mean, std = tuple(map(float, self.mean)), tuple(map(float, self.std))  # what is given may be a list
        return _by_channel(inputs, mean, "mean"), _by_channel(inputs, std, "std")

    def measured(self, passes: Callable[[], Iterator[Tensor]]) -> Normalize:
        if self.mean is not None:
            return self
        mean, variance = _moments_by_channel(passes())
        std = variance.sqrt()
        # What never varies has a std of rounding errors, not of 0.
        std = torch.where(std > 1e-12 * mean.abs(), std, 1.0)
        return Normalize(tuple(mean.tolist()), tuple(std.tolist()))

    def document(self) -> Any:
        if self.mean is None or self.std is None:
            return {"normalize": "measured"}
        return {"normalize": {"mean": list(self.mean), "std": list(self.std)}}


@dataclass(frozen=True, slots=True)
class SubtractMean:
    """x − mean, one number for everything. Without it, the mean of all values of the training set."""

    mean: float | None = None

    def __call__(self, inputs: Tensor) -> Tensor:
        if self.mean is None:
            raise DataError("subtract_mean has no number yet: it is measured by `gradstep.data.prepare`.")
        if not inputs.is_floating_point():
            raise DataError(f"subtract_mean needs floats and got {inputs.dtype}. Put 'float' before it.")
        return inputs - self.mean

    def measured(self, passes: Callable[[], Iterator[Tensor]]) -> SubtractMean:
        if self.mean is not None:
            return self
        total, count = 0.0, 0
        for batch in passes():
            total, count = total + float(batch.double().sum()), count + batch.numel()
        return SubtractMean(total / count)

    def document(self) -> Any:
        return {"subtract_mean": "measured" if self.mean is None else self.mean}


@dataclass(frozen=True, slots=True)
class Ragged:
    """A batch of images `[C, H, W]` of several sizes, which augmentations and transforms must bring to one.

    What comes after the first `count` is no sample, but of another size than they are: where a batch is of one size by
    chance, it shows that something brings all sizes to one.
    """

    images: list[Tensor]
    count: int

    def __reduce__(self) -> tuple[Any, ...]:
        """One tensor for all images: a worker process hands each tensor over as an open file, of which it has few."""
        shapes = [image.shape for image in self.images]
        return Ragged._unpacked, (torch.cat([image.reshape(-1) for image in self.images]), shapes, self.count)

    @staticmethod
    def _unpacked(values: Tensor, shapes: list[torch.Size], count: int) -> Ragged:
        pieces = values.split([shape.numel() for shape in shapes])
        return Ragged([piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)], count)


def apply(transforms: Sequence[Callable[[Any], Any]], inputs: Any) -> Any:
    """The inputs after all transforms, in the order given."""
    if isinstance(inputs, Ragged):
        return one_size([apply(transforms, image[None]) for image in inputs.images])[: inputs.count]
    if not isinstance(inputs, Tensor):
        raise DataError(f"transforms work on one tensor of inputs, and these are a {type(inputs).__name__}.")
    ours = False  # whether the memory of `inputs` was made here
    for transform in transforms:
        before = inputs
        inputs = transform.into(inputs) if ours and type(transform) is Normalize else transform(inputs)
        ours = type(transform) in (ToFloat, Normalize) and (ours or inputs is not before)
    return inputs


def one_size(images: list[Tensor]) -> Tensor:
    """Batches of one image each, as one batch. DataError where they have several sizes."""
    shapes = sorted({tuple(image.shape[1:]) for image in images})
    if len(shapes) > 1:
        shown = ", ".join("×".join(map(str, shape)) for shape in shapes[:3]) + (", ..." if len(shapes) > 3 else "")
        raise DataError(
            f"the images have several sizes ({shown}), and a batch has one. Train with data.images.size=64, to which "
            "each is read, or with {resize: 64} in data.transforms."
        )
    return torch.cat(images)


def measure(transforms: Sequence[Transform], batches: Callable[[], Iterator[Tensor]]) -> tuple[Transform, ...]:
    """The transforms with their numbers, each measured on the training inputs as the ones before it leave them."""
    frozen: tuple[Transform, ...] = ()
    for transform in transforms:
        before = frozen
        frozen = (*frozen, transform.measured(lambda done=before: (apply(done, x) for x in batches())))  # type: ignore[misc]
    return frozen


def transforms_of(given: Any) -> tuple[Transform, ...]:
    """One transform or several, each made already or as a recipe writes it. RecipeError for what is neither."""
    several = given if isinstance(given, (list, tuple)) else [given]
    return tuple(each if _is_made(each) else from_document(each) for each in several)


def _is_made(each: Any) -> bool:
    return callable(each) and hasattr(each, "measured") and not isinstance(each, type)


def from_document(document: Any) -> Transform:
    """A transform as a recipe writes it: `float`, `{resize: 32}`, `{normalize: measured}`, ..."""
    name, value = (
        next(iter(document.items())) if isinstance(document, dict) and len(document) == 1 else (document, None)
    )
    if document == "float":
        return ToFloat()
    sizes: Any = [value, value] if type(value) is int else value
    if name in ("resize", "center_crop") and _numbers(sizes, 2, int):
        if min(sizes) < 1:
            raise RecipeError(f"transforms: {name} takes positive sizes, not {value}.")
        size = value if type(value) is int else (sizes[0], sizes[1])
        return Resize(size) if name == "resize" else CenterCrop(size)
    if name == "normalize" and value == "measured":
        return Normalize()
    if name == "normalize" and isinstance(value, dict) and set(value) == {"mean", "std"}:
        mean, std = (v if isinstance(v, list) else [v] for v in (value["mean"], value["std"]))
        if _numbers(mean) and _numbers(std, len(mean)) and min(std) > 0:
            return Normalize(tuple(map(float, mean)), tuple(map(float, std)))
    if name == "subtract_mean" and value == "measured":
        return SubtractMean()
    if name == "subtract_mean" and _numbers([value]):
        return SubtractMean(float(value))  # type: ignore[arg-type]  # a number, says _numbers
    forms = (
        "float, {resize: 32}, {center_crop: 28}, {normalize: measured}, {normalize: {mean: [0.5], std: [0.5]}}, "
        "{subtract_mean: measured}"
    )
    known = ["float", "resize", "center_crop", "normalize", "subtract_mean"]
    hint = "" if name in known else nearest(str(name), known)
    raise RecipeError(f"transforms: {document!r} is not one of {forms}.{hint}")


def _numbers(values: Any, length: int | None = None, kind: type = float) -> bool:
    """Whether it is a list of finite numbers, of that many, and whole ones where `kind` is int."""
    kinds = (int,) if kind is int else (int, float)
    return (
        isinstance(values, (list, tuple))
        and len(values) > 0
        and length in (None, len(values))
        and all(type(v) in kinds and math.isfinite(v) for v in values)
    )


def _by_channel(inputs: Tensor, numbers: tuple[float, ...], what: str) -> Tensor:
    channels = inputs.shape[1] if inputs.dim() > 1 else 1
    if len(numbers) not in (1, channels):
        raise DataError(f"normalize has {len(numbers)} numbers for {what}, and the inputs {channels} channels.")
    return _constants(numbers, inputs.dim(), inputs.dtype, inputs.device)


@functools.lru_cache(maxsize=64)
def _constants(numbers: tuple[float, ...], dimensions: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Put on the device once, and read only: a copy for each batch would wait for it."""
    values = torch.tensor(numbers, dtype=dtype, device=device)
    return values.reshape(-1, *[1] * (dimensions - 2)) if dimensions > 1 else values


def _moments_by_channel(batches: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel, float64, in one pass: reading the data may be what costs.

    The sums of squares are about each batch's own mean, and joined as in Chan, Golub and LeVeque, "Updating formulae
    and a pairwise algorithm for computing sample variances" (1979), (2.1): nothing cancels where the mean is large.
    """
    zero = torch.zeros(1, dtype=torch.float64)
    first: Tensor | None = None  # the first batch's mean, taken off all, so that means that are near each other differ
    mean, squares, count = zero, zero, 0
    for batch in batches:
        values = batch.double().movedim(1, 0).flatten(1) if batch.dim() > 1 else batch.double()[None]
        first = values.mean(1, keepdim=True) if first is None else first
        values = values - first
        own, size = values.mean(1), values.shape[1]
        shift, together = own - mean, count + size
        squares = squares + (values - own[:, None]).square().sum(1) + shift.square() * (count * size / together)
        mean, count = mean + shift * (size / together), together
    return mean + (zero if first is None else first[:, 0]), squares / count
