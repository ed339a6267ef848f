"""A function of many image files, inline, by threads or by processes: whichever was quickest on the first of them.

What is timed is the work itself, and no result is thrown away: the first files are done inline, the next by threads or
by processes, and the rest in the way that took least; a way that clearly wins just goes on. Results come in the order
of the values and are the same whichever way they came.

Per file, on a machine of 2 cores that others used too; once, with plain pools of threads and of forked processes:

| | inline | 2 threads | 2 processes |
|---|---|---|---|
| PNG of 32×32, 279 bytes | 163 µs | 321 µs | 134 µs |
| JPEG of 128×128 | 0.39 ms | 0.39 ms | 0.34 ms |
| PNG of 128×128 | 1.05 ms | 0.67 ms | 0.70 ms |
| JPEG of 500×500 | 2.8 ms | 1.7 ms | 3.6 ms |
| PNG of 1600×1600 | 127 ms | 65 ms | 88 ms |

Pillow lets go of the interpreter only while it decodes: for small files threads stand in each other's way, and are not
tried. Processes send the pixels back, which costs more than it gains where images are large: there threads are first.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from gradstep.data.transforms import Transform
from gradstep.data.workers import Question, answers
from gradstep.errors import DataError, ProcessLostError

_TRIAL = 0.05  # seconds that each way is tried for
_PIECE = 0.02  # seconds of work that are handed to a thread or a process at once
_MOST = 256  # values in a piece, at most
_FORK = 0.5  # seconds of work left for which processes are tried: starting them takes about a tenth of that
_WORKERS = 16  # threads or processes, at most
_SMALL = 0.00025  # seconds: files that take less are nothing for threads
_WINS = 0.75  # of the time inline: a way that takes no more goes on, and nothing else is tried

Function = Callable[[Any], Any]
Pieces = Iterator[range]  # places in the list of values
Way = Callable[[Function, Sequence[Any], Pieces], Generator[list[Any]]]  # each piece's results, in order


def in_order(function: Function, values: Sequence[Any], processes: bool = True) -> Generator[Any]:
    """The results in the order of the values. Without `processes` in this process alone.

    `function` changes nothing outside of itself; by a process it is called in a fork, which sends its result back.
    """
    cores, pieces = own_cores(), _Pieces(len(values))
    cost: dict[Way, float] = {}
    cost[_inline] = yield from _tried(_inline, function, values, pieces)
    if cores > 1 and pieces.left:
        pieces.length = max(1, min(_MOST, int(_PIECE / max(cost[_inline], 1e-9))))
        for way in (_processes,) if cost[_inline] < _SMALL else (_threads, _processes):
            worth_it = processes and pieces.left * min(cost.values()) > _FORK and _can_fork()
            if pieces.left and (worth_it or way is _threads):
                cost[way] = yield from _tried(way, function, values, pieces, _WINS * cost[_inline])
    if pieces.left:
        quickest = min(cost, key=lambda way: cost[way])
        for results in quickest(function, values, pieces):
            yield from results


class _Pieces(Iterator[range]):
    """What is left of so many values, cut into ranges of `length`; given out by whoever asks next."""

    def __init__(self, count: int) -> None:
        self.at, self.count, self.length = 0, count, 1

    @property
    def left(self) -> int:
        return self.count - self.at

    def __next__(self) -> range:
        if not self.left:
            raise StopIteration
        start, self.at = self.at, min(self.at + self.length, self.count)
        return range(start, self.at)


def _tried(
    way: Way, function: Function, values: Sequence[Any], pieces: _Pieces, wins: float = 0.0
) -> Generator[Any, None, float]:
    """The results of the next values in one way, for as long as a trial lasts: the seconds that each took.

    A way by which they take no more than `wins` goes on to the end. The first piece is not counted: it bears what
    starting costs. Infinite where there was nothing to count.
    """
    began: float | None = None
    count, seconds = 0, math.inf

    def until_the_end() -> Pieces:
        while pieces.left and (count == 0 or began is None or time.perf_counter() - began < _TRIAL or seconds <= wins):
            yield next(pieces)

    with closing(way(function, values, until_the_end())) as answered:
        for results in answered:
            if began is None:
                began = time.perf_counter()
            else:
                count += len(results)
                seconds = (time.perf_counter() - began) / count
            yield from results
    return seconds


def _inline(function: Function, values: Sequence[Any], pieces: Pieces) -> Generator[list[Any]]:
    for piece in pieces:
        yield [function(values[place]) for place in piece]


def _threads(function: Function, values: Sequence[Any], pieces: Pieces) -> Generator[list[Any]]:
    count = min(_WORKERS, own_cores())
    with ThreadPoolExecutor(count) as pool:
        ahead: deque[Future[list[Any]]] = deque()
        try:
            for piece in pieces:
                ahead.append(pool.submit(lambda some: [function(values[place]) for place in some], piece))
                if len(ahead) >= 2 * count:  # no further, so that results don't pile up
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _processes(function: Function, values: Sequence[Any], pieces: Pieces) -> Generator[list[Any]]:
    """By worker processes, as a feed's. What they leave undone, dying or for want of memory, is done in this one."""
    asked: deque[range] = deque()

    def questions() -> Iterator[Question]:
        for number, piece in enumerate(pieces):
            asked.append(piece)
            yield Question(torch.tensor(piece), 0, number)

    chosen = multiprocessing.get_start_method(allow_none=True)
    try:
        team = answers(_Called(function, values), 0, questions(), min(_WORKERS, own_cores()), "the images")
        with closing(team) as answered, suppress(DataError, ProcessLostError):
            for _, results in answered:
                asked.popleft()
                yield results
    finally:
        if chosen is None:  # starting them has chosen it for the whole program, which is the user's to do
            multiprocessing.set_start_method(None, force=True)  # as the library's code has it
    yield from _inline(function, values, chain(asked, pieces))


@dataclass(frozen=True, eq=False)
class _Called:
    """A function of values, as a source: a batch is the list of its results."""

    function: Function
    values: Sequence[Any]
    classes = None
    transforms: tuple[Transform, ...] = ()
    in_memory = False

    def __len__(self) -> int:
        return len(self.values)

    def batch(self, indices: Tensor, epoch: int, seed: int) -> list[Any]:  # noqa: ARG002
        return [self.function(self.values[place]) for place in indices.tolist()]

    def transformed(self, transforms: tuple[Transform, ...]) -> _Called:
        return replace(self, transforms=transforms)


def _can_fork() -> bool:
    """Whether a process is a fork here, which starts at once; a fresh one would import torch first, for seconds."""
    method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    return method == "fork" and not multiprocessing.current_process().daemon


def own_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
