"""The batches of the contenders that have no feed of their own: one order, drawn once, in each tool's usual form."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.speed.clock import Clock
from benchmarks.speed.problems import BATCH, Data, Job, normalized


class Order:
    """Numbers of samples, a batch at a time; each `iter` is the next epoch. The clock is in here.

    `look`: the first `iter` gives the first batch alone, unpaced, and it comes again. Keras looks at one to build by.
    """

    def __init__(self, data: Data, clock: Clock, look: bool = False) -> None:
        self._orders, self._look = data.read("order"), look
        self.length = self._orders.shape[1]
        self._endless = clock.paced(self._numbers())

    def __len__(self) -> int:
        return -(-self.length // BATCH)

    def __iter__(self) -> Iterator[Tensor]:
        if self._look:
            self._look = False
            return iter([self._orders[0, :BATCH]])
        return islice(self._endless, len(self))

    def _numbers(self) -> Iterator[Tensor]:
        for epoch in count():
            torch.randperm(self.length)  # the order is known, but a loop has to draw one, and pays for it
            yield from self._orders[epoch % len(self._orders)].split(BATCH)


class Resident:
    """Whole batches of floats in memory: one gather each. The length is that of an epoch."""

    def __init__(self, data: Data, clock: Clock, look: bool = False) -> None:
        self._inputs, self._targets = data.read("inputs"), data.read("targets")
        self._order = Order(data, clock, look)

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        inputs, targets = self._inputs, self._targets
        return ((inputs[numbers], targets[numbers]) for numbers in self._order)


class Images(Dataset[tuple[Tensor, int]]):
    """Images as bytes, each made a normalised float when it is asked for: what tutorials do by torchvision."""

    def __init__(self, data: Data) -> None:
        self._bytes, self._targets = data.read("bytes"), data.read("targets").tolist()
        self._moments = data.moments

    def __len__(self) -> int:
        return len(self._bytes)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return normalized(self._bytes[index], *self._moments), self._targets[index]


class _Lists:
    """An order as a DataLoader's batch sampler."""

    def __init__(self, order: Order) -> None:
        self._order = order

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[list[int]]:
        return (numbers.tolist() for numbers in self._order)


def loader(data: Data, clock: Clock, look: bool = False) -> DataLoader[tuple[Tensor, int]]:
    """The usual data path: sample by sample through a transform, then collated."""
    return DataLoader(Images(data), batch_sampler=_Lists(Order(data, clock, look)))  # type: ignore[arg-type]


def batches_of(job: Job, data: Data, clock: Clock) -> Resident | DataLoader[tuple[Tensor, int]]:
    """What a tool is given by kind of measurement. An iterable of whole batches is the least that a tool can load."""
    return loader(data, clock) if job.kind == "data" else Resident(data, clock)
