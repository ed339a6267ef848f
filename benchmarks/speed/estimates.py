"""Medians with bootstrap intervals over process restarts and the blocks within them."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.speed.blocks import Pair

DRAWS = 2000
Groups = Sequence[Sequence[float]]  # by restart


@dataclass(frozen=True)
class Estimate:
    """A value and the interval that holds it with 95 %."""

    value: float
    low: float
    high: float

    def through(self, function: Callable[[float], float]) -> Estimate:
        """A rising function of it."""
        return Estimate(function(self.value), function(self.low), function(self.high))

    def rounded(self, digits: int = 4) -> dict[str, Any]:
        return {"value": round(self.value, digits), "interval": [round(self.low, digits), round(self.high, digits)]}


def median(groups: Groups, seed: int = 0) -> Estimate:
    """The median of all numbers; each draw takes restarts anew, and then numbers within each that it took.

    What differs from process to process (where things lie in memory, hash seeds) is so part of the interval.
    """
    draws = draw(groups, seed)
    return Estimate(statistics.median([x for group in groups for x in group]), *_ends(draws))


def draw(groups: Groups, seed: int) -> list[float]:
    """Medians of `DRAWS` resampled sets."""
    random_ = random.Random(seed)
    found = []
    for _ in range(DRAWS):
        taken = random_.choices(groups, k=len(groups))
        found.append(statistics.median([x for group in taken for x in random_.choices(group, k=len(group))]))
    return found


def _ends(draws: list[float]) -> tuple[float, float]:
    ordered, cut = sorted(draws), round(0.025 * len(draws))
    return ordered[cut], ordered[-cut - 1]


def ratio(restarts: Sequence[Sequence[Pair]], cpu: bool = False) -> Estimate:
    """Our time a step over theirs: the median of the pairs' log-ratios."""
    logs = [
        [math.log(p.ours.cpu_us / p.theirs.cpu_us if cpu else p.ours.wall_us / p.theirs.wall_us) for p in pairs]
        for pairs in restarts
    ]
    return median(logs).through(math.exp)


def differences(restarts: Sequence[Sequence[Pair]]) -> list[list[float]]:
    """Microseconds a step that ours takes longer, pair by pair."""
    return [[pair.ours.wall_us - pair.theirs.wall_us for pair in pairs] for pairs in restarts]


def quotient(above: Groups, below: Groups) -> Estimate:
    """One median difference as a share of another, each measured beside the same third."""
    value = median(above).value / median(below).value
    draws = [a / b if b > 0 else math.inf for a, b in zip(draw(above, 1), draw(below, 2), strict=True)]
    return Estimate(value, *_ends(draws))
