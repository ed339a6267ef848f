"""Signals heard as wishes: the step is finished first, and only waiting is cut short.

A handler of Python's runs between two instructions of the main thread. So a signal that comes during a long call into C
(a kernel, a wait for the device, a decoder) is heard when that call returns.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Any

_HANG_UP, _SAVE = getattr(signal, "SIGHUP", None), getattr(signal, "SIGUSR1", None)  # not on every system
_HEARD = [number for number in (signal.SIGINT, signal.SIGTERM, _HANG_UP, _SAVE) if number is not None]
_ONE_WISH = 0.2  # seconds within which several signals are one wish: a wrapper passes on what its group got as well


class Interrupted(BaseException):
    """Raised where waiting may be cut short. No Exception, or user code that catches those would swallow it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Interruption:
    """Inside `with`, SIGINT, SIGTERM, SIGHUP and SIGUSR1 are heard; outside the main thread none is.

    SIGHUP is left alone where it is ignored, as under nohup. A second signal that ends the run ends the process
    at once. Afterwards the handlers of before are in force again.

    Attributes:
        heard: the number of the signal that asks the run to end, or None. It stays until `with` is entered again.
        save_asked: SIGUSR1 came. Who reads it puts it back to False, before saving, or a later wish would be lost.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.heard: int | None = None
        self.save_asked = False
        self._heard_at = 0.0
        self._cuts = Cuts(self)
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    @property
    def name(self) -> str | None:
        """What was heard, as `SIGTERM`; None if nothing was."""
        return None if self.heard is None else signal.Signals(self.heard).name

    def cuts(self) -> Cuts:
        """A context in which a signal that ends the run raises `Interrupted` at once, and one heard before on entering.

        Anything may be inside that can be thrown away and done again: a wait for a batch, not a step. It may be nested.
        Where user code swallows even a BaseException, the next entering raises again.
        """
        return self._cuts

    def __enter__(self) -> Interruption:
        self.heard, self.save_asked, self._cuts.depth, self._process = None, False, 0, os.getpid()
        if threading.current_thread() is threading.main_thread():
            for number in _HEARD:
                before = signal.getsignal(number)
                if before is None or (before is signal.SIG_IGN and number == _HANG_UP):
                    continue  # None was not set from Python, and could not be put back
                self._before[number] = before
                signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def _hear(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if os.getpid() != self._process:  # a process forked inside: a signal means to it what it meant before
            signal.signal(number, self._before[number])
            os.kill(os.getpid(), number)
        elif number == _SAVE:
            self.save_asked = True
        elif self.heard is None:
            self.heard, self._heard_at = number, time.monotonic()
            if self._cuts.depth:
                raise Interrupted(number)
            if not self.quiet:
                _say(f"{signal.Signals(number).name} heard: the step is finished first; once more ends at once")
        elif time.monotonic() - self._heard_at > _ONE_WISH:
            os._exit(128 + number)


class Cuts:
    """What `Interruption.cuts` gives: one object per Interruption, so that a wait costs half a microsecond."""

    __slots__ = ("_of", "depth")

    def __init__(self, of: Interruption) -> None:
        self._of, self.depth = of, 0

    def __enter__(self) -> None:
        # This order must not change: a signal before the first line is found by the second, one after it raises by
        # itself. Raising may leave `depth` too high, which nobody reads any more: `heard` is set, and only the first
        # signal asks for it.
        self.depth += 1
        if self._of.heard is not None:
            raise Interrupted(self._of.heard)

    def __exit__(self, *_: object) -> None:
        self.depth -= 1


def _say(text: str) -> None:
    """Straight to the file: `print` may be what the signal came into, and can't be entered twice."""
    with suppress(OSError, AttributeError, ValueError):  # standard error was never there, or is closed
        number = sys.__stderr__.fileno()  # type: ignore[union-attr]
        line = "\n" if os.isatty(number) else ""  # after the terminal's own ^C, or its bar
        os.write(number, f"{line}{text}\n".encode())
