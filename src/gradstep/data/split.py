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
    chosen = torch.zeros(len(source), dtype=torch.bool)
    targets = targets_in_memory(source)
    if isinstance(targets, Tensor) and targets.dim() == 1 and not targets.is_floating_point():
        for label in targets.unique():
            members = order[targets[order] == label]
            chosen[members[: round(fraction * len(members))]] = True
    else:
        chosen[order[: round(fraction * len(order))]] = True
    if not chosen.any() or chosen.all():
        raise RecipeError(f"data.{name}: {fraction} of {len(source)} samples leaves one of the parts empty.")
    return Part(source, (~chosen).nonzero()[:, 0]), Part(source, chosen.nonzero()[:, 0])
