"""Times of training. Evaluations and saves are kept apart, and the first epoch's warm-up out of the estimate."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stopwatch:
    """Seconds of training since it was made, read from `now`, which any clock can be.

    The estimate of the time left rests on the steps after this process's first epoch; until there are any, on those
    after its first record.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.now = now
        self._began = now()
        self._away = 0.0  # seconds spent in evaluations and saves
        self.waited = 0.0  # seconds of the epoch spent in waiting for batches; who waits adds to it
        self._evaluations: list[float] = []
        self._tick = self._epoch = 0.0  # training time at the last record and at the last epoch's end
        self.last_epoch: float | None = None  # seconds that the last epoch took in training
        self._since: tuple[int, float] | None = None  # (step, training time) that the estimate counts from
        self._settled = False  # whether that is the end of the first epoch
        self._latest: tuple[int, float] = (0, 0.0)

    def training(self) -> float:
        """Seconds of training so far, evaluations and saves left out."""
        return self.now() - self._began - self._away

    def record(self, step: int, samples: int) -> float:
        """Samples per second since the last record, `samples` having been trained in between."""
        at = self.training()
        speed = samples / (at - self._tick) if at > self._tick else 0.0
        self._tick, self._latest = at, (step, at)
        if self._since is None:
            self._since = (step, at)
        return speed

    def end_epoch(self, step: int) -> tuple[float, float]:
        """Seconds that the epoch took in training, and how many of them in waiting for batches."""
        at = self.training()
        waited, self.waited = self.waited, 0.0
        seconds, self._epoch, self._latest = at - self._epoch, at, (step, at)
        self.last_epoch = seconds
        if not self._settled:
            self._since, self._settled = (step, at), True
        return seconds, waited

    @contextmanager
    def away(self, evaluation: bool = False) -> Iterator[None]:
        """Time inside is not training; an evaluation's counts in the estimate of what is left."""
        before = self.now()
        yield
        spent = self.now() - before
        self._away += spent
        if evaluation:
            self._evaluations.append(spent)

    def left(self, steps: int, evaluations: int = 0) -> float | None:
        """Seconds until `steps` more steps and `evaluations` more evaluations are done; None when unknown yet."""
        if self._since is None or self._latest[0] <= self._since[0]:
            return None
        per_step = (self._latest[1] - self._since[1]) / (self._latest[0] - self._since[0])
        mean = sum(self._evaluations) / len(self._evaluations) if self._evaluations else 0.0
        return steps * per_step + evaluations * mean


def duration(seconds: float) -> str:
    """`40ms`, `4.2s`, `42s`, `3:07`, `2:03:07`."""
    if seconds < 0.1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 10:
        return f"{seconds:.1f}s"
    if round(seconds) < 60:
        return f"{seconds:.0f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
