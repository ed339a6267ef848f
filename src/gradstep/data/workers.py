"""Worker processes, as the process sees them that asks: awaited, missed when they die or hang, and never left behind.

torch's DataLoader starts and feeds them. It leaves three things open, which are closed here: it raises in the middle of
anything when a worker dies; it ends one politely that doesn't listen, and waits for it; it waits for ever for one that
hangs.
"""

from __future__ import annotations

import atexit
import multiprocessing
import multiprocessing.util  # its own function for the exit must be registered before ours, which then runs first
import os
import pickle
import re
import shutil
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import _remove_worker_pids
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from gradstep import tree
from gradstep.data.answering import Asked, Beginning, Raised, held_back, unpack
from gradstep.data.sources import Source, original
from gradstep.errors import DataError, GradstepError, ProcessLostError, listed

_STALLED = 1800.0  # seconds without any answer after which a worker hangs
_LOOK = 1.0  # seconds of waiting after which we look whether all are alive
_SHARED = "/dev/shm"  # where Linux keeps the memory that processes share
_AHEAD = 2  # batches that each worker may have ready, torch's own number
_WHY = {
    "SIGKILL": "often the kernel's out-of-memory killer (`dmesg` tells)",
    "SIGSEGV": "a crash in a C library that the data set uses",
    "SIGBUS": "often shared memory that is full",
}


class Question(NamedTuple):
    """One batch: the numbers of its samples, its epoch, its own number."""

    indices: Tensor
    epoch: int
    step: int


def answers(
    source: Source, seed: int, questions: Iterator[Question], workers: int, what: str
) -> Generator[tuple[Question, Any]]:
    """Each question with its batch, in the order asked. Closing this, or an error in it, kills the workers at once."""
    asked: deque[Question] = deque()  # what has not come yet

    def told() -> Iterator[tuple[int, Any]]:
        for question in questions:
            asked.append(question)
            yield question.epoch, question.indices.numpy()  # not a tensor: a worker that is killed would keep its file

    team = _Team(source, what)
    try:
        team.start(_loader(source, seed, told(), workers))
        while (packed := team.answer(asked)) is not None:
            try:
                batch = unpack(packed)
            except Exception as error:  # its memory is fetched from the worker, which may have died meanwhile
                team.missed(asked, error)
                raise
            if isinstance(batch, Raised):
                raise _of_memory(batch.error(), what)
            yield asked.popleft(), batch
    finally:
        team.end()


def _loader(source: Source, seed: int, questions: Iterator[Any], workers: int) -> DataLoader[Any]:
    child = multiprocessing.get_start_method() != "forkserver" and (
        # Linux means the thread that forked, not its process: where that is another, it may end while all goes on.
        threading.current_thread() is threading.main_thread()
    )
    return DataLoader(
        Asked(source, seed),
        batch_size=None,
        sampler=questions,  # any iterable will do when batch_size is None
        num_workers=workers,
        prefetch_factor=_AHEAD,
        collate_fn=_as_it_is,
        worker_init_fn=Beginning(os.getpid(), child, getattr(source, "worker_init", None)),
        generator=torch.Generator(),  # a private one, or its first draw would be from the global stream
        timeout=_LOOK,
    )


class _Team:
    """The processes of one iteration."""

    def __init__(self, source: Source, what: str) -> None:
        self.source, self.what, self.owner = source, what, os.getpid()
        self.answered = False
        self.processes: list[Any] = []
        # Made in two steps, so that it can be ended even when starting it fails.
        self.loader: Any = _MultiProcessingDataLoaderIter.__new__(_MultiProcessingDataLoaderIter)

    def start(self, loader: DataLoader[Any]) -> None:
        """Starts them, and asks the first questions."""
        if multiprocessing.get_start_method() != "fork":  # what Python starts once and for all must not begin deaf
            resource_tracker.ensure_running()
            if multiprocessing.get_start_method() == "forkserver":
                forkserver.ensure_running()
        before = set(multiprocessing.active_children())
        _at_work.add(self)
        try:
            with held_back(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Got pickle error")  # it is told below
                self.loader.__init__(loader)
                self.processes = self.loader._workers
                self._unwatch()
        except Exception as error:
            self.processes = list(set(multiprocessing.active_children()) - before)
            self.missed(deque(), error, wait=0.0)
            told = self._not_started(error)
            if told is None:
                raise
            raise told from error
        except BaseException:
            self.processes = list(set(multiprocessing.active_children()) - before)
            raise

    def answer(self, asked: deque[Question]) -> Any:
        """The next answer, still packed, or None after the last. Waits for it."""
        looks = 0
        while True:
            try:
                packed = next(self.loader, None)
            except Exception as error:
                waited = str(error).startswith("DataLoader timed out")
                self.missed(asked, error, wait=0.0 if waited else 1.0)
                if not waited:
                    raise
            else:
                self.answered = True
                return packed
            # Looks are counted, not time: a process that was itself stopped or asleep has not been kept waiting.
            looks += 1
            if looks * _LOOK >= _STALLED:
                raise ProcessLostError(
                    f"{self.what}: none of {len(self.processes)} worker processes has answered for {_STALLED:g} s, "
                    f"and {self._awaited(asked)} is awaited. Read these samples with workers=0 to see what hangs."
                )

    def missed(self, asked: deque[Question], error: Exception, wait: float = 1.0) -> None:
        """Raises ProcessLostError if a worker has died, or dies within `wait` seconds, which is why `error` came."""
        until = time.monotonic() + wait
        while all(process.is_alive() for process in self.processes):
            if time.monotonic() >= until:
                return
            time.sleep(0.01)
        number, process = next((n, each) for n, each in enumerate(self.processes) if not each.is_alive())
        raise ProcessLostError(
            f"{self.what}: worker {number + 1} of {len(self.processes)} (process {process.pid}) {_end_of(process)} "
            f"while {self._awaited(asked)} was awaited. {self._advice()}"
        ) from error

    def end(self) -> None:
        """Kills what is left: at once, for a worker may be busy with a sample for a long time."""
        if self.loader is None:
            return  # ended before: by `_end_all`, if this is the interpreter's end
        if os.getpid() != self.owner:
            return  # a copy of this in a process forked meanwhile: these are not its children
        self._unwatch()  # first, or their deaths would be an error
        left = [process for process in self.processes if process.is_alive()]
        for process in left:
            process.kill()
        for process in left:
            process.join(1.0)
        # torch must not end them once more: a lock that a killed process held is never given back.
        self.loader._shutdown = True
        for queue in self.loader.__dict__.get("_index_queues", ()):
            queue.close()
        self.loader = None
        _at_work.discard(self)

    def _unwatch(self) -> None:
        """torch would raise in the middle of a step when a worker dies. It is missed when it is waited for, by us."""
        with suppress(ValueError):  # not on its watch
            _remove_worker_pids(id(self.loader))
        self.loader._worker_pids_set = False

    def _awaited(self, asked: deque[Question]) -> str:
        if not asked:
            return "the first batch"
        indices, epoch, step = asked[0]
        numbers = listed((str(int(number)) for number in original(self.source, indices)), limit=8)
        return f"batch {step + 1} (epoch {epoch + 1}, samples {numbers})"

    def _advice(self) -> str:
        if multiprocessing.get_start_method() != "fork" and not self.answered:
            return (
                "A script that starts processes needs `if __name__ == '__main__':` around what it runs; or workers=0."
            )
        return "Use fewer workers, or workers=0 to see in this process what happens."

    def _not_started(self, error: Exception) -> GradstepError | None:
        method = multiprocessing.get_start_method()
        if isinstance(error, (pickle.PicklingError, TypeError, AttributeError)) and method != "fork":
            return DataError(
                f"{self.what}: worker processes are sent the data set here (start method {method}), and it can't be "
                f"pickled: {error}. Define its classes and functions at a module's top level, or use workers=0."
            )
        if isinstance(error, OSError):
            return ProcessLostError(f"{self.what}: the worker processes don't start: {error}. Use fewer, or workers=0.")
        return None


_at_work: set[_Team] = set()  # iterations that nobody has closed yet


@atexit.register
def _end_all() -> None:
    """Before multiprocessing asks its processes to end, and waits for those that are deaf to it."""
    for team in list(_at_work):
        team.end()


def lost(error: BaseException) -> ProcessLostError | None:
    """What torch's RuntimeError about a dead worker means, wherever it was raised; None for any other error.

    A feed's own workers are not on torch's watch. This is for data loaders that the user's code makes.
    """
    if isinstance(error, ProcessLostError):
        return error
    if not isinstance(error, RuntimeError) or not re.match(r"DataLoader worker \(pid\b", str(error)):
        return None
    text = f"{error} {error.__cause__ or ''}"  # how it ended is told by either
    name = next((name for name in _WHY if f"signal: {signal.strsignal(signal.Signals[name])}" in text), None)
    why = f" ({name}, {_why(name)})" if name else ""
    return ProcessLostError(
        f"a worker process of a data loader was lost{why}: {str(error).rstrip(' .')}. "
        "Give the loader fewer workers, or num_workers=0 to see in this process what happens."
    )


def shared_memory_note(source: Source, batch_size: int, workers: int) -> str | None:
    """What to tell before training if the batches that workers have ready may not fit into shared memory."""
    if not workers or not os.path.isdir(_SHARED):
        return None
    few = min(2, len(source))
    tensors = tree.tensors(source.batch(torch.arange(few), 0, 0))
    needed = sum(t.numel() * t.element_size() for t in tensors) * batch_size // few * workers * _AHEAD
    if needed <= shutil.disk_usage(_SHARED).free:
        return None
    return (
        f"{workers} workers with {_AHEAD} batches each may need {needed / 1e6:,.0f} MB of shared memory: {_room()}. "
        "If that is not enough, use fewer workers, or docker's --shm-size."
    )


def _of_memory(error: Exception, what: str) -> Exception:
    """An exception from a worker, told better if it is about shared memory that is full."""
    if not isinstance(error, (RuntimeError, OSError)) or not re.search(r"shared memory|/torch_", str(error)):
        return error
    told = DataError(
        f"{what}: a worker process found no shared memory for a batch ({error}): {_room()}. "
        "Use fewer workers, workers=0, or docker's --shm-size."
    )
    told.__cause__ = error
    return told


def _end_of(process: Any) -> str:
    """How it ended, for people."""
    if process.exitcode >= 0:
        return f"ended with exit code {process.exitcode}"
    name = signal.Signals(-process.exitcode).name
    return f"was ended by {name}{f', {_why(name)},' if name in _WHY else ''}"


def _why(name: str) -> str:
    return f"{_WHY[name]}: {_room()}" if name == "SIGBUS" else _WHY[name]


def _room() -> str:
    try:
        usage = shutil.disk_usage(_SHARED)
    except OSError:
        return f"there is no {_SHARED}"
    return f"{_SHARED} has {usage.free / 1e6:,.0f} MB free of {usage.total / 1e6:,.0f} MB"


def _as_it_is(batch: Any) -> Any:
    return batch
