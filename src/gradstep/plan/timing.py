"""Whether one thing is faster than another, on a machine where others work too.

Two take turns in short blocks, A B B A: what disturbs one disturbs its neighbour. The median of the pairs' ratios lies
between two of the sorted ratios with a probability that is the binomial's, however times are distributed (Conover,
"Practical Nonparametric Statistics", section 3.2). That is of one look at independent pairs; how often what changes
nothing is adopted in up to seven looks, beside a neighbour, is simulated in tests/test_plan.py.
"""

from __future__ import annotations

import functools
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

ENOUGH = 0.95  # of plain, at the interval's upper end: what is gained by less is not worth another way
_LOOKS = (8, 12, 18, 27, 40, 60, 90)  # pairs after which it is asked whether that is enough
BLOCK = 0.002  # seconds that a block takes at least

Steps = Callable[[int], object]  # makes so many steps, and waits for the device


@dataclass(frozen=True, slots=True)
class Raced:
    """The time of one over that of the other: the median of the pairs' ratios, and its interval."""

    ratio: float
    low: float
    high: float
    pairs: int
    seconds: float  # that a step of the quicker one took, in its median block

    @property
    def faster(self) -> bool:
        return self.high <= ENOUGH

    def words(self) -> str:
        return f"{self.ratio:.2f} of plain ({self.low:.2f} to {self.high:.2f})"


def race(other: Steps, plain: Steps, seconds: float, now: Callable[[], float] = time.perf_counter) -> Raced:
    """Times both until it is clear which is faster, or for about so many seconds: the first look is always taken."""
    began, block = now(), max(1, math.ceil(BLOCK / max(_timed(plain, 1, now), 1e-9)))
    ratios: list[float] = []
    blocks: tuple[list[float], list[float]] = ([], [])
    for look in _LOOKS:
        while len(ratios) < look:
            if len(ratios) % 2:
                mine = _timed(other, block, now)
                theirs = _timed(plain, block, now)
            else:
                theirs = _timed(plain, block, now)
                mine = _timed(other, block, now)
            ratios.append(mine / theirs)
            blocks[0].append(mine)
            blocks[1].append(theirs)
        raced = Raced(_median(ratios), *interval(ratios), len(ratios), min(map(_median, blocks)) / block)
        spent = now() - began
        if raced.faster or raced.low > ENOUGH or spent * 1.5 > seconds:  # the next look takes half as long again
            break
    return raced


@contextmanager
def time_boxed(seconds: float) -> Iterator[None]:
    """Inside, TimeoutError is raised after so many seconds, between two instructions of Python.

    Only in the main thread, and where nobody else has set the process's timer; elsewhere nothing is boxed.
    """
    free = threading.current_thread() is threading.main_thread() and signal.getitimer(signal.ITIMER_REAL)[0] == 0
    if not free:
        yield
        return

    def ring(number: int, frame: object) -> None:  # noqa: ARG001
        raise TimeoutError(f"it was not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)  # first, or it could ring in the next line
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if before is None else before)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Of 95 % at least, for the median of what these are drawn from."""
    ordered = sorted(values)
    rank = _rank(len(ordered))
    return ordered[rank], ordered[-1 - rank]


@functools.cache
def _rank(count: int) -> int:
    """How many values may be left out at each end."""
    tail, rank = 0.5**count, 0
    while tail + math.comb(count, rank + 1) * 0.5**count <= 0.025:
        rank += 1
        tail += math.comb(count, rank) * 0.5**count
    return rank


def _timed(steps: Steps, block: int, now: Callable[[], float]) -> float:
    began = now()
    steps(block)
    return now() - began


def _median(values: Sequence[float]) -> float:
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
