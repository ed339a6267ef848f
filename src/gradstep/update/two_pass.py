"""Two passes: for criteria that look at the batch as a whole, and for all of which nothing is known.

The outputs of all micro-batches without a graph; the criterion once, on the whole; then each micro-batch's forward
again, with the random numbers it had, and backward with its part of the criterion's gradient (Gao et al. 2021, "Scaling
deep contrastive learning batch size under memory limited setup", section 3). The last micro-batch keeps its graph from
the first pass, so one forward less is repeated.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradstep import tree
from gradstep.update.audit import Audit
from gradstep.update.batch import Batch, Leaves, detached, differentiable, hold_shared
from gradstep.update.criterion import read_loss, require_graph, units_of
from gradstep.update.outcome import Outcome
from gradstep.update.replay import Restore


def two_pass(batch: Batch) -> Outcome:
    """The exact gradient of any criterion of the outputs. Peak memory: one micro-batch's graph, and all outputs."""
    last, pieces, restores = _first_pass(batch)
    hold_shared(batch, pieces)
    live = [[leaf.detach().requires_grad_() if differentiable(leaf) else leaf for leaf in leaves] for leaves in pieces]
    full = batch.traits.layout.join(live)  # a criterion may edit this: it is no leaf
    value = batch.judged(full)
    loss, terms = read_loss(value, batch.samples)
    require_graph(loss, terms)
    torch.autograd.backward(loss * batch.scale)  # into `live`, and once into parameters of the criterion's own
    outcome = Outcome(
        loss.detach(),
        {name: term.detach() for name, term in terms.items()},
        tree.detach(full),
        batch.targets,
        batch.samples,
        units=units_of(value),
    )
    del value, loss, terms, full
    drawn = batch.streams.keep()  # where the criterion left the streams: where one pass would have left them
    _send(batch, last, live[-1])
    del last
    _second_pass(batch, pieces, live, restores)
    drawn()
    return outcome


def _first_pass(batch: Batch) -> tuple[Leaves, list[Leaves], list[Restore]]:
    """`(the last micro-batch's outputs with their graph, everyone's outputs without, where the streams were)`."""
    pieces: list[Leaves] = []
    restores: list[Restore] = []
    leaves: Leaves = []
    for first, number in batch.spans():
        restore = batch.streams.keep()
        restores.append(restore)
        last = first + number == batch.samples
        torch.clear_autocast_cache()  # weights cast without a graph must not serve a forward that needs one
        with torch.set_grad_enabled(last):
            leaves = batch.forward(first, number)
        pieces.append(detached(leaves))
    return leaves, pieces, restores


def _second_pass(batch: Batch, pieces: list[Leaves], live: list[Leaves], restores: list[Restore]) -> None:
    if batch.norm is not None:
        batch.norm.counting = False
    audit = Audit(batch)
    for place, (first, number) in enumerate(list(batch.spans())[:-1]):
        restores[place]()
        leaves = batch.forward(first, number)
        audit.compare(place, leaves, pieces[place])
        _send(batch, leaves, live[place])
        live[place] = pieces[place] = []  # so that memory falls as the pass goes on
    audit.conclude()


def _send(batch: Batch, leaves: Leaves, live: Leaves) -> None:
    sent = [(leaf, other.grad) for leaf, other in zip(leaves, live, strict=True) if _wants(leaf, other)]
    if sent:
        batch.backward([leaf for leaf, _ in sent], [gradient for _, gradient in sent])


def _wants(leaf: Any, live: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad and live.grad is not None
