"""What happens in a worker process: it begins by giving up its own say about its end, then answers questions.

Answers travel packed. A batch that can't be sent must fail where it is made: in the queue's own thread, where torch
would send it, the error is printed and the batch never comes.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gradstep.data.sources import Source
from gradstep.errors import DataError

_DEAF = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux' prctl
_WHOLE = 2048  # bytes; a pipe takes up to 4096 whole or not at all (PIPE_BUF), the queue's own words included


class Asked(Dataset[Any]):
    """A source as a worker process sees it: a question is a whole batch, the answer is packed."""

    def __init__(self, source: Source, seed: int) -> None:
        self.source, self.seed = source, seed

    def __getitem__(self, question: tuple[int, np.ndarray[Any, Any]]) -> bytes | Tensor:
        epoch, numbers = question
        try:
            batch = self.source.batch(torch.from_numpy(numbers), epoch, self.seed)
        except Exception as error:
            return _pack(Raised(error))
        try:
            return _pack(batch)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            return _pack(Raised(DataError(
                f"a batch can't be sent by a worker process: {error}. "
                "Let the data set return tensors, arrays, numbers or text, or use workers=0."
            )))  # fmt: skip
        except Exception as error:
            return _pack(Raised(error))


class Raised:
    """An exception on its way out of a worker process, of its own type, with its traceback as a note.

    torch's own way would make a RuntimeError of any exception that takes more than a message.
    """

    def __init__(self, error: Exception) -> None:
        text = "".join(traceback.format_exception(error))
        self.notes = [*getattr(error, "__notes__", []), f"raised in a worker process:\n{text}"]
        try:
            self.pickled = pickle.dumps(error)
            pickle.loads(self.pickled)
        except Exception:  # an exception of the user's that can't travel: its type and arguments do
            self.pickled = pickle.dumps((type(error), error.args))

    def error(self) -> Exception:
        """The exception again, to be raised in this process."""
        came = pickle.loads(self.pickled)
        if isinstance(came, tuple):
            kind, arguments = came
            came = kind.__new__(kind)
            came.args = arguments
        came.__notes__ = self.notes
        error: Exception = came
        return error


def _pack(batch: Any) -> bytes | Tensor:
    """A message small enough to be written whole or not at all, wherever the worker is killed; tensors are shared.

    Half a message in the pipe would let its reader wait for ever.
    """
    packed = bytes(ForkingPickler.dumps(batch))
    return packed if len(packed) <= _WHOLE else torch.frombuffer(bytearray(packed), dtype=torch.uint8).share_memory_()


def unpack(packed: bytes | Tensor) -> Any:
    """The batch, or what was raised instead, in the process that asked."""
    return ForkingPickler.loads(packed if isinstance(packed, bytes) else packed.numpy().data)


@dataclass(frozen=True)
class Beginning:
    """What a worker does first, then what the user's `worker_init` does. `child` where the asking process forked it."""

    parent: int
    child: bool
    then: Callable[[int], None] | None

    def __call__(self, number: int) -> None:
        # A function that does nothing, and not SIG_IGN: that would be inherited by the programs that a data set runs.
        for each in _DEAF:
            signal.signal(each, _nothing)
            signal.siginterrupt(each, False)
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _DEAF)  # held back since before the start
        self._die_with_parent()
        if self.then is not None:
            self.then(number)

    def _die_with_parent(self) -> None:
        if self.child and sys.platform == "linux":
            ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
            # This order must not change: a parent that died before the line above is seen by this one.
            if os.getppid() != self.parent:
                os._exit(1)
        elif (parent := multiprocessing.parent_process()) is not None:
            threading.Thread(target=_leave_after, args=(parent,), daemon=True).start()


def _leave_after(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _nothing(number: int, frame: Any) -> None:
    pass


@contextmanager
def held_back() -> Iterator[None]:
    """Inside, this thread holds back the signals that a worker is deaf to; a worker started inside begins like that.

    Otherwise one that comes while it starts would end it, or run this process's handler in it.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _DEAF)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)  # what came meanwhile comes now
