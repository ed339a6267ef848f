"""Losses as they come from the device, and the numbers made of them once somebody reads.

Adding a step waits for nothing. Which steps a number is about depends on steps alone, never on when it was read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from gradstep.errors import DivergedError

Share = tuple[Tensor, Tensor | int]


class Outcome(Protocol):
    """What the ledger reads of a step's outcome."""

    loss: Tensor
    terms: dict[str, Tensor]
    outputs: Any
    targets: Any
    samples: int
    step: int | None
    units: dict[str, Tensor]


class Sharing(Protocol):
    """What a batch's loss and terms weigh in the means of an epoch."""

    def shares(
        self, loss: Tensor, terms: Mapping[str, Tensor], targets: Any, samples: int, units: Mapping[str, Tensor]
    ) -> dict[str, Share]: ...

    def means(self, means: Mapping[str, float]) -> dict[str, float]: ...


@dataclass(slots=True)
class _Entry:
    step: int
    loss: Tensor
    shares: dict[str, Share]


class Ledger:
    """The losses of an epoch, and of the interval since the last record.

    `read()` yields `(step, mean loss of the interval)` whenever an interval ends: after each `every` steps and at an
    epoch's end.
    """

    def __init__(self, sharing: Sharing, every: int, steps_per_epoch: int) -> None:
        self._sharing, self._every, self._per_epoch = sharing, every, steps_per_epoch
        self._pending: list[_Entry] = []
        self._interval: list[float] = []
        self._sums: dict[str, float] = {}
        self._units: dict[str, float] = {}

    def add(self, outcome: Outcome) -> None:
        """Notes a step. Nothing here waits for the device."""
        assert outcome.step is not None
        shares = self._sharing.shares(outcome.loss, outcome.terms, outcome.targets, outcome.samples, outcome.units)
        self._pending.append(_Entry(outcome.step, outcome.loss, shares))

    def ends_interval(self, step: int) -> bool:
        """Whether a record is made after this step; the remainder at an epoch's end makes one too."""
        return step % self._per_epoch == 0 or (step % self._per_epoch) % self._every == 0

    def read(self) -> Iterator[tuple[int, float]]:
        """Reads what is pending and yields `(step, mean loss)` for each interval that ended in it.

        Raises DivergedError at the first loss that is not a number, after yielding what came before it.
        """
        entries, self._pending = self._pending, []
        losses = _numbers([entry.loss for entry in entries])  # these three lines wait for the device, and no others
        values = iter(_numbers([value for entry in entries for value, _ in entry.shares.values()]))
        units = iter(_numbers([units for entry in entries for _, units in entry.shares.values()]))
        for entry, loss in zip(entries, losses, strict=True):
            shares = {name: (next(values), next(units)) for name in entry.shares}
            if all(weight for _, weight in shares.values()):
                if not math.isfinite(loss):
                    raise DivergedError(_diverged(entry.step, loss))
                self._interval.append(loss)
            for name, (value, weight) in shares.items():
                if weight:  # a batch in which every target is ignored has 0/0 for its loss, and nothing to say
                    self._sums[name] = self._sums.get(name, 0.0) + value * weight
                    self._units[name] = self._units.get(name, 0.0) + weight
            if self.ends_interval(entry.step):
                yield entry.step, math.nan if self.running is None else self.running
                self._interval.clear()

    @property
    def running(self) -> float | None:
        """The mean loss since the last record, as far as it was read."""
        return math.fsum(self._interval) / len(self._interval) if self._interval else None

    def close_epoch(self) -> dict[str, float]:
        """The epoch's mean loss and terms, everything having been read; and begins the next."""
        means = self._sharing.means({name: total / self._units[name] for name, total in self._sums.items()})
        self._sums, self._units = {}, {}
        return means


def _numbers(values: list[Tensor | int]) -> list[float]:
    """Numbers of this process: one wait for all of them, not one for each."""
    on_device = [value for value in values if isinstance(value, Tensor)]
    read = iter(torch.stack(on_device).tolist() if on_device else [])
    return [float(next(read) if isinstance(value, Tensor) else value) for value in values]


def _diverged(step: int, loss: float) -> str:
    return (
        f"the loss of step {step} is {loss}: the training has diverged, and its weights are of no use. Try a smaller "
        "learning rate (optimizer.lr), a warm-up (schedule.warmup), or look at the data of that batch."
    )
