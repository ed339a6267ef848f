"""Blocks of two contenders, in turns or side by side, and which pairs of them count."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from benchmarks.speed.processes import Block, Void

WARM_S = 0.3
PAUSE_S = 0.01  # between blocks: threads of the last one that still spin come to rest
STOLEN, SHARE = 0.05, 0.93  # see `kept`
FEWEST = 4


class Asked(Protocol):
    """A contender that makes steps when it is asked to."""

    def run(self, steps: int) -> Block: ...


class Placed(Asked, Protocol):
    """One that can be left alone meanwhile, on a core of its own."""

    def begin(self, steps: int) -> None: ...

    def end(self) -> Block: ...

    def stay_on(self, cores: set[int]) -> None: ...


@dataclass(frozen=True)
class Pair:
    """Two blocks that ran one after the other."""

    ours: Block
    theirs: Block


def calibrated(contender: Asked, seconds: float) -> int:
    """How many steps take about so long, found out while it warms up."""
    steps, block = 1, contender.run(1)
    while block.wall_ns < WARM_S * 1e9:
        steps = max(steps * 2, 1)
        block = contender.run(steps)
    return max(1, round(seconds * 1e9 / (block.wall_ns / block.steps)))


def turns(ours: Asked, theirs: Asked, rounds: int, seconds: float, draws: random.Random) -> list[Pair]:
    """Rounds of A B B A, two pairs each; which of the two begins is drawn for each round."""
    both = (ours, theirs)
    steps = [calibrated(each, seconds) for each in both]
    pairs = []
    for _ in range(rounds):
        first = draws.randrange(2)
        for order in ((first, 1 - first), (1 - first, first)):
            blocks = {}
            for which in order:
                time.sleep(PAUSE_S)
                blocks[which] = both[which].run(steps[which])
            pairs.append(Pair(blocks[0], blocks[1]))
    return pairs


def side_by_side(ours: Placed, theirs: Placed, rounds: int, seconds: float) -> list[Pair]:
    """Rounds in which both run at the same time, each of one thread on a core of its own; then they change places.

    What disturbs the machine disturbs both in the same moment, and a core that is slower does so to both: a duet
    (Bulej et al., "Duet Benchmarking", arXiv 2001.05811). A pair is of one round, both places together.
    """
    both, cores = (ours, theirs), sorted(os.sched_getaffinity(0))[:2]
    steps = [calibrated(each, seconds) for each in both]
    pairs = []
    for _ in range(rounds):
        blocks: list[list[Block]] = []
        for places in (cores, cores[::-1]):
            time.sleep(PAUSE_S)
            for each, core, count in zip(both, places, steps, strict=True):
                each.stay_on({core})
                each.begin(count)
            blocks.append([each.end() for each in both])
        first, second = blocks
        pairs.append(Pair(_together(first[0], second[0]), _together(first[1], second[1])))
    return pairs


def _together(one: Block, other: Block) -> Block:
    return Block(
        one.steps + other.steps, one.wall_ns + other.wall_ns, one.cpu_ns + other.cpu_ns,
        max(one.peak_kb, other.peak_kb), stolen=max(one.stolen, other.stolen),
    )  # fmt: skip


def kept(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs of one process each in which nobody else was at work. The rule, fixed before anything was measured:

    a pair goes as a whole if in either of its blocks the host stole more than 5 % of the machine's time, or a process
    had less CPU time for its wall time than 93 % of what that process had in its median block: somebody else was on
    its core. It does not look at how long a block took, nor at which of the two contenders it was.
    """
    if not pairs:
        return []
    usual_ours = statistics.median(_share(pair.ours) for pair in pairs)
    usual_theirs = statistics.median(_share(pair.theirs) for pair in pairs)
    return [pair for pair in pairs if _quiet(pair.ours, usual_ours) and _quiet(pair.theirs, usual_theirs)]


def _share(block: Block) -> float:
    return block.cpu_ns / block.wall_ns


def _quiet(block: Block, usual: float) -> bool:
    return block.stolen <= STOLEN and _share(block) >= SHARE * usual


def enough(restarts: Sequence[Sequence[Pair]]) -> None:
    """Void where too few pairs are left to say anything."""
    left = sum(map(len, restarts))
    if left < FEWEST or not all(restarts):
        raise Void(f"the machine was too busy: {left} pairs were left undisturbed")
