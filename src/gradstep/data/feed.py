"""Feeds: where batches come from. Batch number `step` is a function of (seed, epoch), whoever fetches it.

The protocol is `start(step) -> iterator`, endless, from that batch on. `Feed` also gives `feed[step]`.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import count
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gradstep import tree
from gradstep.data.ahead import made_ahead
from gradstep.data.order import permutation
from gradstep.data.pipeline import Pipeline
from gradstep.data.sources import Source, Tensors, is_ours, original
from gradstep.data.workers import Question, answers
from gradstep.errors import DataError

Check = Callable[[Any, Tensor | None, str], None]  # (batch, numbers of its samples, which set) -> raises or not

_LOOK = 2**20  # bytes that are looked at at once: what is gathered for it should not show in a run's memory
_AT_ONCE = 256  # batches
_SMALL = 2**28  # bytes; data in memory up to this size are looked through before training, larger ones as they come


class BatchFeed(Protocol):
    """What `fit` needs of a feed."""

    @property
    def steps_per_epoch(self) -> int: ...

    def start(self, step: int) -> Iterator[Any]:
        """Batches from number `step` on, without end, on the device."""


class Feed:
    """Batches of a source: shuffled anew each epoch or in the source's order, ragged at the end unless `drop_last`."""

    def __init__(
        self,
        source: Source,
        batch_size: int,
        *,
        shuffle: bool,
        drop_last: bool = False,
        seed: int = 0,
        workers: int = 0,
        device: torch.device | str = "cpu",
        what: str = "train",
        augment: Sequence[Any] = (),
    ) -> None:
        if batch_size < 1:
            raise DataError(f"{what}: batch_size {batch_size} is no number of samples.")
        self.source, self.batch_size, self.what = source, batch_size, what
        self.seed, self.shuffle = seed, shuffle
        self.workers = 0 if source.in_memory else workers
        self.device = torch.device(device)
        self.pipeline = Pipeline(source, augment, seed)
        self.samples = len(source) - (len(source) % batch_size if drop_last else 0)
        self.steps_per_epoch = math.ceil(self.samples / batch_size)
        if self.steps_per_epoch == 0:
            raise DataError(
                f"{what}: {len(source)} samples make no batch of {batch_size} when the last one is dropped. "
                "Lower batch_size or leave drop_last out."
            )
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))  # the last epoch's, so that it is drawn once
        self._cut: tuple[int, Sequence[Tensor]] = (-1, ())  # so many batches of it, cut in one call
        self._ahead = False  # whether a thread makes them
        self._there: Tensors | None = None  # the whole source on the device
        self._known: weakref.ref[Tensors] | None = None  # the same, as long as a feed has it
        # What each batch is held against while it is on the CPU, where looking costs no wait for a device.
        self.checks: list[Check] = [] if source.in_memory and all_finite(source, what) else [refuse_non_finite]

        if self.pipeline.mixes and self.device.type != "cpu":
            self.checks.append(self.pipeline.hold_labels)

    @property
    def _plain(self) -> bool:
        return not self.checks and self.pipeline.empty

    def indices(self, step: int) -> tuple[int, Tensor]:
        """`(epoch, numbers of the samples)` of batch number `step`; the epoch counts from 0 here."""
        if step < 0:
            raise IndexError(f"{self.what}: batches are counted from 0, and {step} is asked for.")
        epoch, batch = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            length = len(self.source)
            order = permutation(length, self.seed, epoch) if self.shuffle else torch.arange(length)
            self._order, self._cut = (epoch, order[: self.samples]), (-1, ())
        part, place = divmod(batch, _AT_ONCE)
        if self._cut[0] != part:
            size = _AT_ONCE * self.batch_size
            self._cut = (part, self._order[1][part * size : (part + 1) * size].split(self.batch_size))
        return epoch, self._cut[1][place]

    def __getitem__(self, step: int) -> Any:
        epoch, indices = self.indices(step)
        if self._there is not None:  # 8 bytes a sample go to the device, and no sample
            batch = self._there.batch(indices.to(self.device, non_blocking=True), epoch, self.seed)
        else:
            batch = self.source.batch(indices, epoch, self.seed)
            if self._ahead and self.device.type == "cuda":
                batch = tree.map_tensors(Tensor.pin_memory, batch)  # so that the copy to the device waits for nobody
        return self._finish(batch, indices, epoch, step)

    def start(self, step: int, stop: int | None = None) -> Iterator[Any]:
        """Batches from number `step` on, to number `stop` if it is given (which is left out)."""
        steps = count(step) if stop is None else iter(range(step, stop))
        if self._ahead:
            return made_ahead(self._made_by_a_thread(), steps)
        return self._by_workers(steps) if self.workers else (self[number] for number in steps)

    def once(self) -> Iterator[Any]:
        """Every sample once: one epoch."""
        return self.start(0, self.steps_per_epoch)

    def in_batches_of(self, batch_size: int) -> Feed:
        """The same samples in the same order, so many at once; of those that an epoch has."""
        other = copy.copy(self)
        other.batch_size, other.steps_per_epoch = batch_size, math.ceil(self.samples / batch_size)
        other._cut = (-1, ())
        return other

    @property
    def is_pure(self) -> bool:
        """Whether a batch is a function of its number in any thread: data in memory, and no code of the user's."""
        ours = (refuse_non_finite, self.pipeline.hold_labels)
        return self._lies_in_memory and self.pipeline.is_ours and all(check in ours for check in self.checks)

    @property
    def _lies_in_memory(self) -> bool:
        """Whether batches are gathers by sources of gradstep's: one of the user's may say so and do anything."""
        source: Any = self.source
        while is_ours(source) and hasattr(source, "whole"):
            source = source.whole
        return self.source.in_memory and is_ours(source)

    def ahead(self) -> Feed:
        """The same batches, each made by a thread while the ones before are used. DataError where that isn't pure."""
        if not self.is_pure:
            raise DataError(f"{self.what}: only batches of data in memory can be made ahead by a thread.")
        other = copy.copy(self)
        other._ahead = True
        return other

    def resident(self) -> Feed:
        """The same batches, gathered on the device where all samples are put, once for all feeds that are made so.

        They are looked through now, and not batch by batch. DataError where they do not lie in memory.
        """
        if not self._lies_in_memory:
            raise DataError(f"{self.what}: only data in memory can be kept on the device.")
        other = copy.copy(self)
        other._there = self._copy_there()
        if other._there is None:
            numbers = torch.arange(len(self.source)).split(_AT_ONCE * self.batch_size)
            other._there = Tensors(tree.concatenate([self._put_there(each) for each in numbers]))
            self._known = weakref.ref(other._there)
        other.checks = []
        return other

    @property
    def is_there(self) -> bool:
        """Whether a feed has all samples on the device already."""
        return self._copy_there() is not None

    def _copy_there(self) -> Tensors | None:
        return self._known() if self._known is not None else None

    def _put_there(self, numbers: Tensor) -> Any:
        batch = self.source.batch(numbers, 0, self.seed)
        for check in self.checks:
            check(batch, original(self.source, numbers), self.what)
        return tree.to_device(batch, self.device)

    @property
    def nbytes(self) -> int:
        """What all samples take as they lie in memory."""
        one = tree.tensors(self.source.batch(torch.arange(1), 0, self.seed))
        return len(self.source) * sum(tensor.numel() * tensor.element_size() for tensor in one)

    def _made_by_a_thread(self) -> Callable[[int], Any]:
        """Batches by number, for one thread: it draws orders of its own, and works in this one's stream."""
        own = copy.copy(self)
        if self.device.type != "cuda":
            return own.__getitem__
        stream = torch.cuda.current_stream(self.device)

        def make(step: int) -> Any:
            with torch.cuda.stream(stream):  # where the step reads what is made here
                return own[step]

        return make

    def sample(self) -> Any:
        """The first two samples as a batch: what a look before training needs."""
        indices = torch.arange(min(2, len(self.source)))
        return self._finish(self.source.batch(indices, 0, self.seed), indices, 0, 0)

    def _by_workers(self, steps: Iterator[int]) -> Iterator[Any]:
        def questions() -> Iterator[Question]:
            for number in steps:
                epoch, indices = self.indices(number)
                yield Question(indices, epoch, number)

        # Closed at once: an exception's traceback would keep it, and with it the processes, alive.
        with closing(answers(self.source, self.seed, questions(), self.workers, self.what)) as given:
            for question, batch in given:
                yield self._finish(batch, *question)

    def _finish(self, batch: Any, indices: Tensor, epoch: int, step: int) -> Any:
        if self._plain and self.device.type == "cpu":
            return batch
        numbers = original(self.source, indices)
        for check in self.checks:
            check(batch, numbers, self.what)
        batch = tree.to_device(batch, self.device) if self.device.type != "cpu" else batch
        return self.pipeline(batch, numbers, epoch, step)


class OwnOrder:
    """An iterable of whole batches with a length: its order is its own, and `reset()` rewinds it before each epoch."""

    def __init__(self, batches: Iterable[Any], device: torch.device | str, what: str = "train") -> None:
        self.batches, self.what = batches, what
        self.device = torch.device(device)
        self.steps_per_epoch = len(batches)  # type: ignore[arg-type]  # `opens` saw to it
        self._rewind: Callable[[], Any] = getattr(batches, "reset", lambda: None)
        if self.steps_per_epoch == 0:
            raise DataError(f"{what}: there are no batches in it.")

    @staticmethod
    def opens(data: Any) -> bool:
        """Whether `data` is such an iterable."""
        return (
            hasattr(data, "__iter__")
            and hasattr(data, "__len__")
            and not isinstance(data, (DataLoader, Dataset, tuple, Tensor))
            and not hasattr(data, "__getitem__")
        )

    def start(self, step: int) -> Iterator[Any]:
        yield from self._epoch(step % self.steps_per_epoch)
        while True:
            yield from self._epoch(0)

    def once(self) -> Iterator[Any]:
        """One epoch."""
        return self._epoch(0)

    def _epoch(self, skip: int) -> Iterator[Any]:
        self._rewind()
        given = 0
        for batch in self.batches:
            given += 1
            if given > self.steps_per_epoch:
                break
            if given > skip:
                refuse_non_finite(batch, None, self.what)
                yield tree.to_device(batch, self.device)
        if given != self.steps_per_epoch:
            number = f"more than {self.steps_per_epoch}" if given > self.steps_per_epoch else str(given)
            raise DataError(
                f"{self.what}: an epoch gave {number} batches, and len() says {self.steps_per_epoch}. "
                "If it is used up after one pass, give it a reset() or start anew in __iter__."
            )


class OwnFeed:
    """A feed of the user's own, which has `steps_per_epoch` and `start(step)`: its batches brought to the device."""

    def __init__(self, feed: BatchFeed, device: torch.device | str) -> None:
        self.feed, self.device = feed, torch.device(device)
        self.steps_per_epoch = feed.steps_per_epoch

    @staticmethod
    def opens(data: Any) -> bool:
        """Whether `data` is such a feed."""
        return hasattr(data, "start") and hasattr(data, "steps_per_epoch")

    def start(self, step: int) -> Iterator[Any]:
        return (tree.to_device(batch, self.device) for batch in self.feed.start(step))


def all_finite(source: Source, what: str) -> bool:
    """Looks through a small source in memory and raises at the first number that is none; False if it is large."""
    content = tree.tensors(source.batch(torch.arange(1), 0, 0))
    each = sum(t.numel() * t.element_size() for t in content)
    if not any(t.is_floating_point() for t in content):
        return True
    if each * len(source) > _SMALL:
        return False
    for numbers in torch.arange(len(source)).split(max(1, _LOOK // max(each, 1))):
        refuse_non_finite(source.batch(numbers, 0, 0), original(source, numbers), what)
    return True


def _finite(tensor: Tensor) -> bool:
    """Whether all numbers are. Their sum is then finite too, unless it overflows, and takes a fiftieth of the time."""
    return math.isfinite(float(tensor.sum())) or bool(tensor.isfinite().all())


def refuse_non_finite(batch: Any, indices: Tensor | None, what: str) -> None:
    """Raises DataError at the first number that is none, naming its sample."""
    for tensor in tree.tensors(batch):
        if not tensor.is_floating_point() or not tensor.dim() or _finite(tensor):
            continue
        bad = int(
            (~tensor.isfinite()).flatten(1 if tensor.dim() > 1 else 0).reshape(len(tensor), -1).any(1).nonzero()[0]
        )
        where = f"sample {int(indices[bad])}" if indices is not None else f"sample {bad} of a batch"
        value = tensor[bad].flatten()[~tensor[bad].flatten().isfinite()][0].item()
        raise DataError(
            f"{what}: {where} holds {value}, which would spoil every weight in one step. "
            "Clean the data (torch.nan_to_num, or drop the sample)."
        )
