"""A stand-in for `gradstep.disk.os` that counts the operations that change something, and lets one or more fail."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gradstep import disk

CHANGING = (
    "open", "write", "posix_fallocate", "ftruncate", "fsync", "close",
    "mkdir", "rename", "replace", "unlink", "rmdir",
)  # fmt: skip


class FailingOs:
    """Calls through to `os`. The operation number `at` (and all after it, if `for_good`) raises `number` instead."""

    def __init__(self, at: int | None = None, number: int = errno.EIO, for_good: bool = False) -> None:
        self.at, self.number, self.for_good = at, number, for_good
        self.done: list[str] = []

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in CHANGING:
            return real

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.done.append(name)
            here = len(self.done) - 1
            if self.at is not None and (here == self.at or (self.for_good and here > self.at)):
                if name == "close":
                    real(*args)  # a close that fails has closed all the same
                raise OSError(self.number, os.strerror(self.number))
            return real(*args, **kwargs)

        return counted


@contextmanager
def broken(stand_in: FailingOs) -> Iterator[FailingOs]:
    """`gradstep.disk` with it, for as long as it lasts."""
    disk.os = stand_in  # type: ignore[assignment]
    try:
        yield stand_in
    finally:
        disk.os = os
