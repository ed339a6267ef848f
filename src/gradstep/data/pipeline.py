"""What happens to a batch between its source and the model: augmentations, transforms, mixing, on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gradstep import tree
from gradstep.data.draws import BatchDraws, Draws
from gradstep.data.mix import CutMix, MixUp, hold_labels
from gradstep.data.sources import Source, is_ours
from gradstep.data.transforms import Ragged, apply, one_size
from gradstep.errors import DataError


class Pipeline:
    """The steps of one source, in the order in which they are done.

    First the augmentations of single images, as they were read; then the transforms; then what mixes a whole batch.
    """

    def __init__(self, source: Source, augment: Sequence[Any], seed: int) -> None:
        placed = list(enumerate(augment))  # a place is part of a draw's key
        self._single = [(place, each) for place, each in placed if not is_mix(each)]
        self._mixes = [(place, each) for place, each in placed if is_mix(each)]
        self._transforms, self._seed = source.transforms, seed
        self._classes = len(source.classes) if source.classes else None

    def __call__(self, batch: Any, numbers: Tensor, epoch: int, step: int) -> Any:
        """The batch `(inputs, targets)` as the model gets it; `numbers` are its samples' (int64, `[N]`, on the CPU)."""
        pair = isinstance(batch, (tuple, list)) and len(batch) >= 2
        if (self._single or self._mixes) and not pair:
            raise DataError(f"augment works on batches of (inputs, targets), and these are {tree.describe(batch)}.")
        if pair and isinstance(batch[0], Ragged):
            device = next((part.device for part in batch[1:] if isinstance(part, Tensor)), torch.device("cpu"))
            images = [image.to(device, non_blocking=True) for image in batch[0].images]
            owners = [*numbers.split(1), *[numbers[-1:]] * (len(images) - batch[0].count)]
            single = [self._one(image[None], owner, epoch) for image, owner in zip(images, owners, strict=True)]
            batch = (one_size(single)[: batch[0].count], *batch[1:])
        elif self._single or self._transforms:
            batch = (self._one(batch[0], numbers, epoch), *batch[1:])
        for place, mix in self._mixes:
            batch = (*mix(batch[0], batch[1], BatchDraws(self._seed, step, place), self._classes), *batch[2:])
        return batch

    @property
    def empty(self) -> bool:
        """Whether it leaves every batch as it is."""
        return not (self._single or self._transforms or self._mixes)

    @property
    def is_ours(self) -> bool:
        """Whether all of it is gradstep's, whose draws are functions of what they are for."""
        steps = [*(each for _, each in (*self._single, *self._mixes)), *self._transforms]
        return all(map(is_ours, steps))

    @property
    def words(self) -> list[str]:
        """What is done, in order, the same in every process."""
        steps = [*self._single, *enumerate(self._transforms), *self._mixes]
        return [f"{place} {repr(each) if is_ours(each) else type(each).__qualname__}" for place, each in steps]

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed."""
        return bool(self._mixes)

    def hold_labels(self, batch: Any, numbers: Tensor | None, what: str) -> None:  # noqa: ARG002
        """A check for a feed whose batches go to a device: there, a label that is none would be found too late."""
        for _, mix in self._mixes:
            classes = mix.classes or self._classes
            if classes and isinstance(batch[1], Tensor) and not batch[1].is_floating_point():
                hold_labels(batch[1], classes)

    def _one(self, inputs: Any, numbers: Tensor, epoch: int) -> Any:
        """What is done to each image by itself, so that it is the same in a batch of any size."""
        return apply(self._transforms, augmented(inputs, self._single, Draws(self._seed, epoch, numbers)))


def augmented(inputs: Any, placed: Sequence[tuple[int, Any]], draws: Draws) -> Any:
    """The images after the augmentations, each with its place in the whole list. What mixes a batch is left out."""
    if placed and not (isinstance(inputs, Tensor) and inputs.dim() == 4):
        what = f"a tensor of {list(inputs.shape)}" if isinstance(inputs, Tensor) else f"a {type(inputs).__name__}"
        raise DataError(f"augment works on batches of images [N, C, H, W], and the inputs are {what}.")
    for place, augmentation in placed:
        inputs = augmentation(inputs, replace(draws, place=place))
    return inputs


def is_mix(augmentation: Any) -> bool:
    """Whether it is done to a batch as a whole, inputs and targets together."""
    return isinstance(augmentation, (MixUp, CutMix))
