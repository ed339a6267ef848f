"""Which way batches of one size are taken, and what proves that it is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from gradstep.errors import ModelError
from gradstep.update.accumulate import among_others, by_table
from gradstep.update.batch import Batch, detached
from gradstep.update.criterion import Terms, describe
from gradstep.update.denominators import tabled
from gradstep.update.norm import NormGroups, coupled
from gradstep.update.outcome import Outcome
from gradstep.update.probe import Verdict, decomposes
from gradstep.update.two_pass import two_pass

METHODS = ("auto", "one_pass", "accumulate", "two_pass")


@dataclass(frozen=True, slots=True)
class Way:
    """How batches of one size are taken, and what proves that it is right."""

    method: str
    proof: str
    sizes: tuple[int, ...]  # of the micro-batches
    take: Callable[[Batch], Outcome] | None = field(default=None, repr=False)  # None: in one pass

    def __str__(self) -> str:
        if len(self.sizes) == 1:
            return self.method
        least, most = min(self.sizes), max(self.sizes)
        return f"{self.method} in {len(self.sizes)} micro-batches of {most if least == most else f'{least} to {most}'}"


def choose(batch: Batch, method: str, dropout: str) -> Way:
    """The way for a batch of several micro-batches. `auto` takes what is proved, and two passes where nothing is.

    ModelError for a model that can't be taken apart, or `accumulate` asked for a criterion that does not decompose.
    """
    _refuse_dropout(batch, dropout)
    sizes = tuple(batch.sizes)
    if method == "two_pass":
        return Way("two_pass", "asked for", sizes, two_pass)
    if _by_table(batch):
        return Way("accumulate", f"{describe(batch.criterion)} is a sum over samples, by the table", sizes, by_table)
    with torch.no_grad():
        pieces = [detached(batch.forward(first, number)) for first, number in batch.spans()]
    layout, keyed = batch.traits.layout, batch.keyed
    if keyed is not None:
        keyed.piece(0, batch.samples)
    verdict = decomposes(batch.criterion, layout.join(pieces), batch.targets, layout, batch.samples)
    if keyed is not None and keyed.calls:
        verdict = Verdict(False, "there is dropout in the criterion")
    if verdict.decomposes:
        return Way("accumulate", f"tried in float64: {verdict.why}", sizes, among_others)
    if method == "accumulate":
        raise ModelError(
            f"method: {describe(batch.criterion)} can't be accumulated over micro-batches ({verdict.why}). Take "
            "method='two_pass', which is right for any criterion, or 'auto'; and micro_batch where plan.micro_batch is "
            "asked for."
        )
    return Way("two_pass", verdict.why, sizes, two_pass)


def _by_table(batch: Batch) -> bool:
    traits, criterion = batch.traits, batch.criterion
    if len(traits.layout.leaves) != 1 or not traits.layout.spec.is_leaf():
        return False
    place = traits.layout.leaves[0]
    if place is None or place[0] != 0:
        return False
    shape = (place[1] * batch.samples, *traits.row_shapes[0])
    parts = list(criterion.criteria.values()) if isinstance(criterion, Terms) else [criterion]
    return all(tabled(each, shape, batch.targets, batch.samples) for each in parts)


def refuse_coupled(model: nn.Module, norm: NormGroups | None) -> None:
    """ModelError for BatchNorm without a declared group."""
    norms = coupled(model) if norm is None else []
    if norms:
        more = f" and {len(norms) - 1} more" if len(norms) > 1 else ""
        raise ModelError(
            f"'{norms[0]}'{more} normalises over the batch (BatchNorm), so micro-batches would compute something "
            "else. Say what its statistics are of: stat_group=32 takes those of each 32 consecutive samples, whatever "
            "the micro-batch; or put it in evaluation mode (.eval()) to freeze them; or take GroupNorm; or leave "
            "micro_batch out."
        )


def _refuse_dropout(batch: Batch, dropout: str) -> None:
    if batch.traits.dropouts:
        way_out = (
            "Take dropout='keyed', whose masks are the same for all micro-batches."
            if dropout == "stream"
            else "It can't be keyed there: use nn.Dropout, or call it as torch.nn.functional.dropout."
        )
        raise ModelError(
            f"dropout: {', '.join(batch.traits.dropouts[:3])} draws from torch's stream, so other micro-batches would "
            f"have other masks. {way_out}"
        )
