"""Evaluations on trial: a few batches of what the training evaluates, as they are and joined to larger ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from gradstep import tree
from gradstep.data import Feed
from gradstep.evaluation import measure, outputs_of
from gradstep.metrics import Mean, MetricSet, Value
from gradstep.plan.layout import laid_out
from gradstep.plan.proposals import threads_of
from gradstep.plan.shadow import SAME, DeclinedError, apart_of, as_double, first_of, shadow_of

if TYPE_CHECKING:
    from gradstep.setup import Training

PASS = 8  # batches of a pass that is timed: what is done once for it should not weigh as in a real one of one batch
_SHOWN = 16  # samples of each batch by which it is verified


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What is evaluated while a training goes on: the part with the largest batches, and the metrics of all parts."""

    feed: Feed
    metrics: MetricSet

    @classmethod
    def of(cls, feeds: Collection[Any], metrics: MetricSet) -> Evaluated | None:
        """None where a look costs more than a gather, or what comes of it depends on how it is asked for."""
        known = [feed for feed in feeds if isinstance(feed, Feed) and feed.source.in_memory]
        if not known or len(known) != len(feeds):
            return None
        return cls(max(known, key=lambda feed: feed.batch_size), metrics)

    @property
    def counts(self) -> bool:
        """Whether the metrics are gradstep's own, which count: a function of a batch may be no mean over samples."""
        own = self.metrics.metrics.values()
        return all(type(each).__module__ == Mean.__module__ and not isinstance(each, Mean) for each in own)


class Few:
    """The first batches of it, read once; with `cut`, some samples of each."""

    def __init__(self, evaluated: Evaluated, cut: Callable[[Any], Any] = lambda batch: batch) -> None:
        feed = evaluated.feed
        self.metrics, self.device, self.size = evaluated.metrics, feed.device, feed.batch_size
        self._joined = {1: [cut(feed[number]) for number in range(min(PASS, feed.steps_per_epoch))]}

    def of(self, size: int | None) -> _Batches:
        """The same samples in batches of about so many; None: as the user has them."""
        times = max(1, (size or self.size) // self.size)
        if times not in self._joined:
            own = self._joined[1]
            self._joined[times] = [tree.concatenate(own[at : at + times]) for at in range(0, len(own), times)]
        return _Batches(self._joined[times], self.device)


@dataclass(frozen=True, slots=True)
class _Batches:
    batches: Sequence[Any]
    device: torch.device

    def once(self) -> Iterator[Any]:
        return iter(self.batches)


def take_passes(training: Training, few: Few, count: int = 1) -> None:
    """So many evaluations of these batches. Waits for the device."""
    for _ in range(count):
        _values(training, few, training.update.unpack)


def passes_apart(training: Training, apply: Callable[[Training], Any]) -> float:
    """How far an evaluation's outputs are from plain in float64, in parts of the largest, for a few samples.

    DeclinedError where they, the loss or a metric are too far.
    """
    assert training.evaluated is not None
    few = Few(training.evaluated, lambda batch: first_of(batch, training, _SHOWN))

    def unpack(batch: Any) -> tuple[Any, Any]:
        return training.update.unpack(tree.map_tensors(as_double, batch))

    plain, other = shadow_of(training, torch.float64), shadow_of(training, torch.float64)
    apply(other)
    given, found = (_outputs(shadow, few, unpack) for shadow in (plain, other))
    apart = max(apart_of(None, a, b) for a, b in zip(tree.tensors(given), tree.tensors(found), strict=True))
    if not apart <= SAME:
        raise DeclinedError(f"it is no longer the same evaluation: its outputs are {apart:.0e} from plain in float64")
    expected = _values(plain, few, unpack)
    for name, value in _values(other, few, unpack).items():
        numbers, others = pytree.tree_leaves(expected[name]), pytree.tree_leaves(value)
        if len(numbers) != len(others) or not all(map(_equal, numbers, others)):
            raise DeclinedError(
                f"it is no longer the same evaluation: {name} is {value}, and {expected[name]} in plain"
            )
    return apart


def _equal(one: Any, other: Any) -> bool:
    close = abs(one - other) <= SAME * max(abs(one), abs(other))
    return bool(close or (one != one and other != other))


def _values(training: Training, few: Few, unpack: Callable[[Any], tuple[Any, Any]]) -> dict[str, Value]:
    state, batches = training.state, few.of(training.evaluation_batch)
    with threads_of(training), laid_out(state.model, training.evaluation_format):
        return measure(
            state.model,
            state.criterion,
            batches,
            few.metrics,
            seed=state.seed,
            unpack=unpack,
            forward=training.update.forward,
        )


def _outputs(training: Training, few: Few, unpack: Callable[[Any], tuple[Any, Any]]) -> Any:
    state, batches = training.state, few.of(training.evaluation_batch)
    with threads_of(training), laid_out(state.model, training.evaluation_format):
        return outputs_of(state.model, batches, seed=state.seed, unpack=unpack, forward=training.update.forward)
