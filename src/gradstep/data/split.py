"""Cutting data into parts: a fixed, stratified draw that does not depend on the run's seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradstep import tree
from gradstep.data.files import FileList
from gradstep.data.order import permutation
from gradstep.data.sources import Part, Source, targets_in_memory
from gradstep.errors import RecipeError


@dataclass(frozen=True, eq=False)
class Cut:
    """A part of a data set before any image file is opened: what it is cut from, its samples' numbers there.

    `numbers` (int64, `[N]`) ascend.
    """

    whole: FileList | Source
    numbers: Tensor

    @classmethod
    def all_of(cls, whole: FileList | Source) -> Cut:
        """The whole as one part."""
        return cls(whole, torch.arange(len(whole)))

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def targets(self) -> Any:
        """As the source's, of this part."""
        targets = targets_in_memory(self.whole)
        return None if targets is None else tree.map_tensors(lambda t: t[self.numbers], targets)

    def divided(self, fraction: float, name: str, seed: int) -> tuple[Cut, Cut]:
        """`(the rest, the part)`, as `split` gives them."""
        chosen = _drawn(len(self), self.targets, fraction, name, seed)
        return Cut(self.whole, self.numbers[~chosen]), Cut(self.whole, self.numbers[chosen])


def split(source: Source, fraction: float, name: str = "valid", seed: int = 0) -> tuple[Source, Source]:
    """`(the rest, the part)`, the part holding `fraction` of the samples, and of each class where there are classes.

    The draw belongs to (seed, name), so that runs of different training seeds are measured on the same samples.
    """
    chosen = _drawn(len(source), targets_in_memory(source), fraction, name, seed)
    return Part(source, (~chosen).nonzero()[:, 0]), Part(source, chosen.nonzero()[:, 0])


def _drawn(length: int, targets: Any, fraction: float, name: str, seed: int) -> Tensor:
    """Which of so many samples are drawn: bool, `[length]`, some of each."""
    if not 0 < fraction < 1:
        raise RecipeError(f"data.{name}: {fraction} is not a fraction between 0 and 1.")
    order = permutation(length, seed, 0, f"split {name}")
    if isinstance(targets, Tensor) and targets.dim() == 1 and not targets.is_floating_point():
        ordered = targets[order]
        members = [order[ordered == label] for label in targets.unique()]
    else:
        members = [order]
    chosen = torch.zeros(length, dtype=torch.bool)
    for samples, size in zip(members, _sizes([len(m) for m in members], fraction), strict=True):
        chosen[samples[:size]] = True
    if not chosen.any() or chosen.all():
        raise RecipeError(f"data.{name}: {fraction} of {length} samples leaves one of the parts empty.")
    return chosen


def _sizes(lengths: list[int], fraction: float) -> list[int]:
    """How many of each class: whole numbers that sum to the fraction of all, by the largest remainders."""
    shares = [fraction * length for length in lengths]
    sizes = [int(share) for share in shares]
    missing = round(fraction * sum(lengths)) - sum(sizes)
    for place in sorted(range(len(sizes)), key=lambda place: sizes[place] - shares[place])[:missing]:
        sizes[place] += 1
    return sizes
