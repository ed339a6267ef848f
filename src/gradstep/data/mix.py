"""Mix-up and cut-mix: augmentations of a batch as a whole, after the transforms, inputs and targets together.

What happens to a batch is a function of (seed, step). It happens before the batch is cut into pieces, so a piece's
partner may lie in another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gradstep.data.draws import BatchDraws
from gradstep.errors import DataError, RecipeError


@dataclass(frozen=True, slots=True)
class MixUp:
    """λ·x + (1 − λ)·x', inputs and targets, with x' another sample of the batch; λ ~ Beta(alpha, alpha), one a batch.

    Class numbers become probabilities `[N, classes]`. With probability 1 − p a batch is left as it is. Zhang et al.,
    "mixup: Beyond empirical risk minimization" (2018), section 2.
    """

    alpha: float = 0.2
    p: float = 1.0
    classes: int | None = None

    def __post_init__(self) -> None:
        _check("mixup", self.alpha, self.p, self.classes)

    def __call__(self, inputs: Tensor, targets: Any, draws: BatchDraws, classes: int | None) -> tuple[Tensor, Tensor]:
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            what = inputs.dtype if isinstance(inputs, Tensor) else f"a {type(inputs).__name__}"
            raise DataError(f"mixup needs floats and got {what}. Put 'float' into data.transforms.")
        targets = _soft("mixup", targets, self.classes or classes, inputs.dtype)
        if draws.uniform(1, _SWITCH)[0] >= self.p:
            return inputs, targets
        share, partners = draws.beta(self.alpha), draws.partners(len(inputs)).to(inputs.device)
        return (
            share * inputs + (1 - share) * inputs[partners],
            share * targets + (1 - share) * targets[partners],
        )


@dataclass(frozen=True, slots=True)
class CutMix:
    """A rectangle of each image is another's of the batch, the same rectangle for all; targets by area.

    Its sides are √(1 − λ) of the image's, λ ~ Beta(alpha, alpha), its middle anywhere; what lies outside is cut off,
    and the targets' shares are those of the areas really seen. With probability 1 − p a batch is left as it is. Yun
    et al., "CutMix: Regularization strategy to train strong classifiers" (2019), section 3.1.
    """

    alpha: float = 1.0
    p: float = 1.0
    classes: int | None = None

    def __post_init__(self) -> None:
        _check("cutmix", self.alpha, self.p, self.classes)

    def __call__(self, inputs: Tensor, targets: Any, draws: BatchDraws, classes: int | None) -> tuple[Tensor, Tensor]:
        if not isinstance(inputs, Tensor) or inputs.dim() != 4:
            what = list(inputs.shape) if isinstance(inputs, Tensor) else f"a {type(inputs).__name__}"
            raise DataError(f"cutmix needs a batch of images [N, C, H, W] and got {what}.")
        targets = _soft("cutmix", targets, self.classes or classes, inputs.dtype)
        if draws.uniform(1, _SWITCH)[0] >= self.p:
            return inputs, targets
        partners = draws.partners(len(inputs)).to(inputs.device)
        top, bottom, left, right = self.box(draws, inputs.shape[-2], inputs.shape[-1])
        mixed = inputs.clone()
        mixed[:, :, top:bottom, left:right] = inputs[partners, :, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (inputs.shape[-2] * inputs.shape[-1])
        return mixed, share * targets + (1 - share) * targets[partners]

    def box(self, draws: BatchDraws, height: int, width: int) -> tuple[int, int, int, int]:
        """`(top, bottom, left, right)` of the rectangle in images of this size."""
        side = math.sqrt(1 - draws.beta(self.alpha))
        tall, wide = int(height * side), int(width * side)
        v, u = draws.uniform(2, _PLACE)
        top, left = int(v * height) - tall // 2, int(u * width) - wide // 2
        return max(top, 0), min(top + tall, height), max(left, 0), min(left + wide, width)


_SWITCH, _PLACE = 2**32 - 1, 2**32 - 2  # attempts that drawing λ never comes to


def _soft(name: str, targets: Any, classes: int | None, dtype: torch.dtype) -> Tensor:
    """Targets that can be averaged: class numbers as probabilities."""
    if not isinstance(targets, Tensor):
        raise DataError(f"{name} mixes targets that are one tensor, and these are a {type(targets).__name__}.")
    if targets.is_floating_point():
        return targets
    if targets.dim() != 1 or classes is None:
        raise DataError(
            f"{name} mixes class numbers [N], and must know how many classes there are: these targets are "
            f"{list(targets.shape)} and the data {'name no' if classes is None else f'has {classes}'} classes. Write "
            f"{{{name}: {{alpha: 0.2, classes: 10}}}}."
        )
    if targets.device.type == "cpu":  # on a device, looking would wait for it: the feed looks before
        hold_labels(targets, classes)
    return functional.one_hot(targets.long(), classes).to(dtype if dtype.is_floating_point else torch.float32)


def hold_labels(targets: Tensor, classes: int) -> None:
    """DataError for a class number that is none of so many, and so has no probability."""
    outside = (targets < 0) | (targets >= classes)
    if bool(outside.any()):
        label = int(targets[outside][0])
        raise DataError(f"the label {label} is none of {classes} classes, 0 to {classes - 1}: it can't be mixed.")


def _check(name: str, alpha: Any, p: Any, classes: Any) -> None:
    if type(alpha) not in (int, float) or not _LEAST <= alpha <= _MOST:
        raise RecipeError(f"augment: {name} takes an alpha from {_LEAST} to {_MOST}, not {alpha!r}.")
    if type(p) not in (int, float) or not 0 <= p <= 1:
        raise RecipeError(f"augment: {name} takes a number from 0 to 1 for p, not {p!r}.")
    if classes is not None and (type(classes) is not int or classes < 2):
        raise RecipeError(f"augment: {name} takes a number of classes of 2 or more, not {classes!r}.")


_LEAST, _MOST = 1e-3, 4  # below, λ is 0 or 1; above, drawing it takes ever more attempts; nobody uses either
