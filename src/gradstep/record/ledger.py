"""Losses as they come from the device, and the numbers made of them once somebody reads.

Adding a step waits for nothing. Which steps a number is about depends on steps alone, never on when it was read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
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


@dataclass(slots=True)
class _Entry:
    step: int
    loss: Tensor
    share: Share
    terms: dict[str, Tensor]
    samples: int


class Ledger:
    """The losses of an epoch, and of the interval since the last record.

    `sharing(loss, outputs, targets, samples)` says how much a batch counts in the epoch's mean. `reads()` yields
    `(step, mean loss of the interval)` whenever an interval ends: after each `every` steps and at an epoch's end.
    """

    def __init__(self, sharing: Callable[[Tensor, Any, Any, int], Share], every: int, steps_per_epoch: int) -> None:
        self._sharing, self._every, self._per_epoch = sharing, every, steps_per_epoch
        self._pending: list[_Entry] = []
        self._interval: list[float] = []
        self._sums: dict[str, float] = {}
        self._units: dict[str, float] = {}

    def add(self, outcome: Outcome) -> None:
        """Notes a step. Nothing is computed from the loss here, and nothing waits for the device."""
        assert outcome.step is not None
        share = self._sharing(outcome.loss, outcome.outputs, outcome.targets, outcome.samples)
        self._pending.append(_Entry(outcome.step, outcome.loss, share, outcome.terms, outcome.samples))

    def ends_interval(self, step: int) -> bool:
        """Whether a record is made after this step; the remainder at an epoch's end makes one too."""
        return step % self._per_epoch == 0 or (step % self._per_epoch) % self._every == 0

    def read(self) -> Iterator[tuple[int, float]]:
        """Reads what is pending and yields `(step, mean loss)` for each interval that ended in it.

        Raises DivergedError at the first loss that is not a number, after yielding what came before it.
        """
        entries, self._pending = self._pending, []
        if not entries:
            return
        losses = _numbers([entry.loss for entry in entries])  # these lines wait for the device, and no others
        shares = _numbers([entry.share[0] for entry in entries])
        units = _numbers([entry.share[1] for entry in entries])
        terms = {name: _numbers([entry.terms[name] for entry in entries]) for name in entries[0].terms}
        for place, entry in enumerate(entries):
            if not math.isfinite(losses[place]):
                raise DivergedError(_diverged(entry.step, losses[place]))
            self._interval.append(losses[place])
            self._count("loss", shares[place], units[place])
            for name, values in terms.items():
                self._count(name, values[place], entry.samples)
            if self.ends_interval(entry.step):
                yield entry.step, math.fsum(self._interval) / len(self._interval)
                self._interval.clear()

    @property
    def running(self) -> float | None:
        """The mean loss since the last record, as far as it was read."""
        return math.fsum(self._interval) / len(self._interval) if self._interval else None

    def close_epoch(self) -> dict[str, float]:
        """The epoch's mean loss and terms, everything having been read; and begins the next."""
        means = {name: total / self._units[name] for name, total in self._sums.items() if self._units[name]}
        self._sums, self._units = {}, {}
        return means

    def _count(self, name: str, value: float, units: float) -> None:
        if units:  # a batch in which every target is ignored has nothing to say
            self._sums[name] = self._sums.get(name, 0.0) + value * units
            self._units[name] = self._units.get(name, 0.0) + units


def _numbers(values: list[Any]) -> list[float]:
    if not isinstance(values[0], Tensor):
        return [float(value) for value in values]
    numbers: list[float] = torch.stack(values).tolist()
    return numbers


def _diverged(step: int, loss: float) -> str:
    return (
        f"the loss of step {step} is {loss}: the training has diverged, and its weights are of no use. Try a smaller "
        "learning rate (optimizer.lr), a warm-up (schedule.warmup), or look at the data of that batch."
    )
