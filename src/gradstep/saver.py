"""Writes beside the training: one thing at a time, and what went wrong is raised where the training can hear it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path


class Saver:
    """One thread, one checkpoint in flight. The interpreter does not end before it is written."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._written: Future[Path] | None = None

    def start(self, write: Callable[[], Path]) -> Path | None:
        """Begins to write, after what was begun before: a disk that is slower than the training slows it down.

        Returns what that was, if nobody has asked for it. Raises what it raised.
        """
        before = self.wait()
        self._thread = self._thread or ThreadPoolExecutor(1, "gradstep-save")
        self._written = self._thread.submit(write)
        return before

    def finished(self) -> Path | None:
        """What has been written since somebody asked, without waiting. Raises what that raised."""
        return self.wait() if self._written is not None and self._written.done() else None

    def wait(self) -> Path | None:
        """The same, once it is written."""
        written, self._written = self._written, None
        return written.result() if written is not None else None

    def close(self) -> None:
        """Waits, and lets what went wrong be: for the end of a run that has an error of its own."""
        if self._thread is not None:
            self._thread.shutdown()
