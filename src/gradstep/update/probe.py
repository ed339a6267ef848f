"""Does a criterion decompose over samples? Tried on the real targets at the real batch size, in float64, on a copy.

L(o) = Σ fᵢ(oᵢ) holds for fixed targets exactly if the gradient of one sample's outputs does not move when other
samples' outputs are drawn anew: no weights have to be known. Comparing the loss of the batch with a weighted mean of
its parts' is the weaker test: √(mean square) passes it. What can't be decided counts as coupled, because two passes
are always right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gradstep import tree
from gradstep.update.criterion import Criterion, read_loss
from gradstep.update.pieces import Layout
from gradstep.update.replay import Streams
from gradstep.update.twin import UnseenError, doubled, modules_of, remembered, twin

_MOVES = 1e-10  # relative; float64 leaves 1e-15, and a coupling of 1e-9 moves it by 1e-8
_MOST = 0.5  # of the samples must have a gradient at all, or the trial says nothing about them


@dataclass(frozen=True, slots=True)
class Verdict:
    decomposes: bool
    why: str


class _UndecidedError(Exception):
    """Carries what stands in the way of an answer."""


def decomposes(criterion: Criterion, outputs: Any, targets: Any, layout: Layout, samples: int) -> Verdict:
    """`outputs` are the model's for the whole batch, without a graph. Nothing of the criterion or the streams
    changes."""
    modules = modules_of(criterion)
    streams = Streams((m for root in modules for m in root.modules()), {t.device for t in tree.tensors(outputs)})
    with streams.kept(), torch.enable_grad():
        try:
            return _Trial(criterion, outputs, targets, layout, samples, streams).verdict()
        except (_UndecidedError, UnseenError) as reason:
            return Verdict(False, f"undecided: {reason}")
        except Exception as error:
            line = next(iter(str(error).splitlines()), "")
            return Verdict(False, f"undecided: its copy in float64 raised {type(error).__name__}: {line}")


class _Trial:
    def __init__(
        self, criterion: Criterion, outputs: Any, targets: Any, layout: Layout, samples: int, streams: Streams
    ) -> None:
        self.criterion = twin(criterion)
        self.targets = tree.map_tensors(doubled, targets)
        self.layout, self.samples = layout, samples
        self.leaves = [doubled(leaf) if isinstance(leaf, Tensor) else leaf for leaf in layout.flatten(outputs)]
        self._restore = streams.keep()
        self._streams = streams

    def verdict(self) -> Verdict:
        state, drawn = remembered(self.criterion), self._streams.positions()
        versions = [tensor._version for tensor in tree.tensors(self.targets)]
        own = self.gradient(self.leaves)
        if self._streams.positions() != drawn:
            return Verdict(False, "the criterion draws random numbers")
        if remembered(self.criterion) != state:
            return Verdict(False, "the criterion changes its own state, which must happen once for a batch")
        if [tensor._version for tensor in tree.tensors(self.targets)] != versions:
            return Verdict(False, "the criterion edits its targets, which must happen once for a batch")
        if any(place is None and gradient is not None for place, gradient in zip(self.layout.leaves, own, strict=True)):
            return Verdict(False, "the loss depends on an output that all samples share")
        alive = self._alive(own)
        if not bool(torch.isfinite(torch.cat([g.flatten() for g in own if g is not None] or [torch.zeros(1)])).all()):
            raise _UndecidedError("its gradient is not finite")
        if alive < _MOST:
            raise _UndecidedError(f"only {alive:.0%} of the samples have a gradient")
        moved = self._moved(own)
        if moved > _MOVES:
            return Verdict(
                False, f"a sample's gradient moves by {moved:.0e} of itself when other samples' outputs change"
            )
        return Verdict(True, f"no sample's gradient moves when other samples' outputs change (by {moved:.0e} at most)")

    def gradient(self, leaves: list[Any]) -> list[Tensor | None]:
        """∂loss/∂outputs for each leaf, None for what the loss does not depend on."""
        self._restore()
        live = [leaf.detach().clone().requires_grad_() if _differentiable(leaf) else leaf for leaf in leaves]
        # The criterion may edit what it gets: a leaf must not be edited, a view of it may.
        given = [leaf * 1 if _differentiable(leaf) else leaf for leaf in live]
        loss, _ = read_loss(self.criterion(pytree.tree_unflatten(given, self.layout.spec), self.targets), self.samples)
        places = [place for place, leaf in enumerate(live) if _differentiable(leaf)]
        found = torch.autograd.grad(loss, [live[place] for place in places], allow_unused=True)
        gradients: list[Tensor | None] = [None] * len(live)
        for place, gradient in zip(places, found, strict=True):
            gradients[place] = gradient
        return gradients

    def _alive(self, gradients: list[Tensor | None]) -> float:
        """The part of the samples whose outputs have any gradient."""
        alive = torch.zeros(self.samples, dtype=torch.bool)
        for place, gradient in zip(self.layout.leaves, gradients, strict=True):
            if place is not None and gradient is not None:
                alive |= _by_sample(gradient, place, self.samples).ne(0).any(1).cpu()
        return float(alive.double().mean())

    def _moved(self, own: list[Tensor | None]) -> float:
        """The largest move of a sample's gradient, relative to the largest gradient, over several redraws of others."""
        generator = torch.Generator().manual_seed(0)
        most, done = 0.0, 0
        for redraw in (_wide, _near, _shuffled, _mixed):
            half = torch.randperm(self.samples, generator=generator) < self.samples // 2
            for fixed in (half, ~half):
                others = (~fixed).nonzero().flatten()
                leaves = [self._redrawn(leaf, place, others, redraw, generator) for leaf, place in self._placed()]
                try:
                    gradients = self.gradient(leaves)
                except Exception:  # values that this criterion does not take, as a log of what is negative
                    continue
                moved = self._distance(own, gradients, fixed.nonzero().flatten())
                if moved != moved:  # NaN: out of the criterion's range
                    continue
                done, most = done + 1, max(most, moved)
                if most > _MOVES:
                    return most
        if done < 2:
            raise _UndecidedError("it takes no other outputs than the model's own")
        return most

    def _placed(self) -> Iterator[tuple[Any, tuple[int, int] | None]]:
        return zip(self.leaves, self.layout.leaves, strict=True)

    def _redrawn(
        self,
        leaf: Any,
        place: tuple[int, int] | None,
        others: Tensor,
        redraw: Callable[[Tensor, Tensor, torch.Generator], Tensor],
        generator: torch.Generator,
    ) -> Any:
        if place is None or not _differentiable(leaf):
            return leaf
        rows = _by_sample(leaf, place, self.samples).clone()
        there = others.to(rows.device)
        rows[there] = redraw(rows, there, generator)
        return _from_samples(rows, leaf, place)

    def _distance(self, one: list[Tensor | None], other: list[Tensor | None], fixed: Tensor) -> float:
        away, size = 0.0, 0.0
        for a, b, place in zip(one, other, self.layout.leaves, strict=True):
            if place is None or (a is None and b is None):
                continue
            a, b = (torch.zeros_like(self._any(a, b)) if g is None else g for g in (a, b))
            mine, theirs = (_by_sample(g, place, self.samples)[fixed.to(g.device)] for g in (a, b))
            away = max(away, float((mine - theirs).abs().max()))
            size = max(size, float(mine.abs().max()))
            if away != away or not bool(torch.isfinite(theirs).all()):
                return float("nan")
        return away / size if size else (0.0 if away == 0 else 1.0)

    @staticmethod
    def _any(a: Tensor | None, b: Tensor | None) -> Tensor:
        found = a if a is not None else b
        assert found is not None
        return found


# Redraws: `rows` are all samples' outputs [samples, ...], `there` the numbers of those to be drawn anew.


def _wide(rows: Tensor, there: Tensor, generator: torch.Generator) -> Tensor:
    """Ten times as large, so that what is active or among the largest changes."""
    return 10 * _spread(rows) * _normal(rows[there], generator)


def _near(rows: Tensor, there: Tensor, generator: torch.Generator) -> Tensor:
    return rows[there] + _spread(rows) * _normal(rows[there], generator)


def _shuffled(rows: Tensor, there: Tensor, generator: torch.Generator) -> Tensor:
    """Other samples' own outputs: in range whatever the range is."""
    return rows[torch.randperm(len(rows), generator=generator)[: len(there)].to(rows.device)]


def _mixed(rows: Tensor, there: Tensor, generator: torch.Generator) -> Tensor:
    """Halfway to another sample's outputs."""
    return (rows[there] + _shuffled(rows, there, generator)) / 2


def _spread(rows: Tensor) -> Tensor:
    """The outputs' size, and at least 1: margins and thresholds are of that order when outputs are still small."""
    size = rows.square().mean().sqrt()
    return torch.where(torch.isfinite(size), size, torch.ones_like(size)).clamp(min=1.0)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, dtype=torch.float64, generator=generator).to(like.device)


def _by_sample(leaf: Tensor, place: tuple[int, int], samples: int) -> Tensor:
    """`[samples, everything else]`."""
    return leaf.movedim(place[0], 0).reshape(samples, -1)


def _from_samples(rows: Tensor, leaf: Tensor, place: tuple[int, int]) -> Tensor:
    moved = leaf.movedim(place[0], 0)
    return rows.reshape(moved.shape).movedim(0, place[0])


def _differentiable(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())
