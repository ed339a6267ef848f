"""Micro-batch after micro-batch, forward and backward: for criteria that are sums over samples.

What a criterion divides by belongs to the batch, so it is taken of all targets, never of a part's: 4 + 4 + 1 samples
weigh 4, 4 and 1, and a part in which every target is ignored weighs nothing.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradstep.update.batch import Batch, Leaves, detached, differentiable, hold_shared, narrow
from gradstep.update.criterion import Terms, read_loss, require_graph, units_of
from gradstep.update.denominators import denominator, summed
from gradstep.update.outcome import Outcome


@dataclass(slots=True)
class _Part:
    """One criterion of torch's, as the sum over samples that it is before it is divided."""

    name: str
    sum: Any
    weight: float
    divisor: Tensor | int
    safe: Tensor | int  # the same, and 1 where nothing is to count: no targets have no gradient, as in torch

    def share(self, outputs: Tensor, targets: Tensor) -> Tensor:
        value: Tensor = self.sum(_wide(outputs), _wide(targets))
        return value.sum() if value.dim() else value

    def term(self, share: Tensor) -> Tensor:
        """What a sum is in the batch's loss, in its own dtype."""
        term = share / self.safe
        return term if self.weight == 1.0 else self.weight * term


def by_table(batch: Batch) -> Outcome:
    """For torch's own criteria: each micro-batch's sum, divided by the whole batch's denominator."""
    parts = _parts(batch)
    sums: list[Tensor] = []
    pieces: list[Leaves] = []
    for first, number in batch.spans():
        leaves = batch.forward(first, number)
        targets = _rows(batch.targets, batch.samples, first, number)
        shares = [part.share(leaves[0], targets) for part in parts]
        loss = functools.reduce(torch.add, [part.term(share) for part, share in zip(parts, shares, strict=True)])
        require_graph(loss, {})
        batch.backward([loss if _is_one(batch.scale) else loss * batch.scale], [None])
        own = [_sums(share.detach()) for share in shares]
        sums = [total + share for total, share in zip(sums, own, strict=True)] if sums else own
        pieces.append(detached(leaves))
    values = {part.name: part.weight * total / part.divisor for part, total in zip(parts, sums, strict=True)}
    values = {name: value.to(pieces[0][0].dtype) for name, value in values.items()} if narrow(pieces[0][0]) else values
    whole = functools.reduce(torch.add, values.values())
    terms = values if isinstance(batch.criterion, Terms) else {}
    return Outcome(whole, terms, batch.traits.layout.join(pieces), batch.targets, batch.samples)


def _parts(batch: Batch) -> list[_Part]:
    criterion = batch.criterion
    named = criterion.criteria if isinstance(criterion, Terms) else {"loss": criterion}
    weights = criterion.weights if isinstance(criterion, Terms) else {"loss": 1.0}
    rows = len(batch.targets)  # one for each sample, or several
    return [_part(name, each, weights[name], denominator(each, batch.targets, rows)) for name, each in named.items()]


def _part(name: str, criterion: Any, weight: float, divisor: Tensor | int) -> _Part:
    safe = torch.where(divisor > 0, divisor, 1) if isinstance(divisor, Tensor) else divisor
    return _Part(name, summed(criterion), weight, divisor, safe)


def _wide(tensor: Tensor) -> Tensor:
    """A sum over a batch may be more than float16 holds, where the mean is not."""
    return tensor.float() if tensor.dtype == torch.float16 else tensor


def _sums(tensor: Tensor) -> Tensor:
    """Sums of sums are taken in float32: in bfloat16 they stand still at 256."""
    return tensor.float() if narrow(tensor) else tensor


def _rows(targets: Tensor, samples: int, first: int, number: int) -> Tensor:
    each = len(targets) // samples
    return targets[first * each : (first + number) * each]


def _is_one(scale: float | Tensor) -> bool:
    return not isinstance(scale, Tensor) and scale == 1.0


def among_others(batch: Batch) -> Outcome:
    """For any other criterion that decomposes: it sees the whole batch, of which one micro-batch's rows are alive.

    The other rows hold their values where they are known and those of the first micro-batch where not: a criterion that
    decomposes gives the live rows the same gradient whatever the others are, and divides by what all targets say. Its
    own parameters get their gradient from one more evaluation, on the true outputs, which is the reported loss too.
    """
    done: list[Leaves] = []
    for first, number in batch.spans():
        leaves = batch.forward(first, number)
        live = [leaf.detach().requires_grad_() if differentiable(leaf) else leaf for leaf in leaves]
        full = batch.traits.layout.join([*done, live, *_fillers(batch, (done or [detached(live)])[0], len(done) + 1)])
        loss, terms = read_loss(batch.judged(full), batch.samples)
        require_graph(loss, terms)
        wanted = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
        found = torch.autograd.grad(loss * batch.scale, [live[p] for p in wanted], allow_unused=True) if wanted else ()
        sent = [
            (leaves[place], gradient) for place, gradient in zip(wanted, found, strict=True) if gradient is not None
        ]
        if sent:
            batch.backward([leaf for leaf, _ in sent], [gradient for _, gradient in sent])
        done.append(detached(leaves))
    hold_shared(batch, done)
    outputs = batch.traits.layout.join(done)
    value = batch.judged(outputs)
    loss, terms = read_loss(value, batch.samples)
    if loss.requires_grad:
        torch.autograd.backward(loss * batch.scale)
    kept = {name: term.detach() for name, term in terms.items()}
    return Outcome(loss.detach(), kept, outputs, batch.targets, batch.samples, units=units_of(value))


def _fillers(batch: Batch, one: Leaves, place: int) -> list[Leaves]:
    """Rows for the micro-batches that are still to come: those of one that is there, over and over."""
    return [
        [leaf if at is None else _repeated(leaf, at[0], number * at[1]) for leaf, at in zip(one, layout, strict=True)]
        for layout in [batch.traits.layout.leaves]
        for number in batch.sizes[place:]
    ]


def _repeated(leaf: Tensor, dimension: int, rows: int) -> Tensor:
    there = torch.arange(rows, device=leaf.device) % leaf.shape[dimension]
    return leaf.index_select(dimension, there)
