"""Batches made by a thread while the ones before are used: worth it where making one takes long and waits for nobody.

A thread, and not a process: what torch computes in it runs beside Python, and nothing is copied.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Made = TypeVar("Made")
_READY = 2  # batches, made or in the making


def made_ahead(make: Callable[[int], Made], steps: Iterator[int]) -> Iterator[Made]:
    """`make(step)` for each step in turn, by one thread. An error comes when its batch is asked for.

    `make` must be a function of the step alone: nothing else may use what it changes. Where no thread can be started,
    each is made when it is asked for.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="gradstep batches")
    try:
        pool.submit(int)
    except RuntimeError:  # the system's limit is reached
        yield from map(make, steps)
        return
    try:
        waiting: deque[Future[Made]] = deque(pool.submit(make, step) for step in islice(steps, _READY))
        while waiting:
            batch = waiting.popleft().result()
            waiting.extend(pool.submit(make, step) for step in islice(steps, 1))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)  # waits for the one in the making
