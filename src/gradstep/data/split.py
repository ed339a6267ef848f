"""Cutting one source into parts: a fixed, stratified draw that does not depend on the run's seed."""

from __future__ import annotations

import torch
from torch import Tensor

from gradstep.data.order import permutation
from gradstep.data.sources import Part, Source, targets_in_memory
from gradstep.errors import RecipeError


def split(source: Source, fraction: float, name: str = "valid", seed: int = 0) -> tuple[Source, Source]:
    """`(the rest, the part)`, the part holding `fraction` of the samples, and of each class where there are classes.

    The draw belongs to (seed, name), so that runs of different training seeds are measured on the same samples.
    """
    if not 0 < fraction < 1:
        raise RecipeError(f"data.{name}: {fraction} is not a fraction between 0 and 1.")
    order = permutation(len(source), seed, 0, f"split {name}")
    targets = targets_in_memory(source)
    if isinstance(targets, Tensor) and targets.dim() == 1 and not targets.is_floating_point():
        ordered = targets[order]
        members = [order[ordered == label] for label in targets.unique()]
    else:
        members = [order]
    chosen = torch.zeros(len(source), dtype=torch.bool)
    for samples, size in zip(members, _sizes([len(m) for m in members], fraction), strict=True):
        chosen[samples[:size]] = True
    if not chosen.any() or chosen.all():
        raise RecipeError(f"data.{name}: {fraction} of {len(source)} samples leaves one of the parts empty.")
    return Part(source, (~chosen).nonzero()[:, 0]), Part(source, chosen.nonzero()[:, 0])


def _sizes(lengths: list[int], fraction: float) -> list[int]:
    """How many of each class: whole numbers that sum to the fraction of all, by the largest remainders."""
    shares = [fraction * length for length in lengths]
    sizes = [int(share) for share in shares]
    missing = round(fraction * sum(lengths)) - sum(sizes)
    for place in sorted(range(len(sizes)), key=lambda place: sizes[place] - shares[place])[:missing]:
        sizes[place] += 1
    return sizes
