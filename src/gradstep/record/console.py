"""What a person sees: facts before training, one line per epoch, a live bar on a terminal, what to do at the end.

Off a terminal there is no bar but a plain line every half minute, so that a log stays a log. Nobody has to read it:
where the other end is gone (`| head -1`, a closed terminal), the console goes quiet and the training goes on.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO, cast

from gradstep.record.journal import Row
from gradstep.record.stopwatch import duration

if TYPE_CHECKING:
    from rich.progress import Progress

_PLAIN_EVERY = 30.0  # seconds


class Console:
    """Prints to `file`, standard output unless told otherwise; nothing at all when `quiet`."""

    def __init__(self, quiet: bool = False, file: TextIO | None = None) -> None:
        file = file or sys.stdout  # which is None where the process was given none
        self.quiet, self.file = quiet or file is None, cast(TextIO, _Unheard(file))
        self._columns: list[tuple[str, int]] = []
        self._live: Progress | None = None
        self._plain_at = time.monotonic() + _PLAIN_EVERY

    def line(self, text: str = "") -> None:
        """One permanent line, above the bar if there is one."""
        if self.quiet:
            return
        if self._live is not None:
            self._live.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            print(text, file=self.file, flush=True)

    def facts(self, facts: Iterable[tuple[str, str]]) -> None:
        """`label  text` lines, labels aligned; a label given empty goes on with the line before."""
        for label, text in facts:
            self.line(f"{label:<10}{text}".rstrip())

    def progress(self, step: int, total: int, epoch: int, loss: float | None, speed: float, left: float | None) -> None:
        """Where training is: `loss` is the running one, `speed` in samples/s, `left` in seconds."""
        if self.quiet:
            return
        parts = [f"epoch {epoch}", f"step {step}/{total}"]
        parts += [f"running loss {loss:.4f}"] if loss is not None else []
        parts += [f"{speed:,.0f} samples/s"] if speed else []
        parts += [f"{duration(left)} left"] if left is not None else []
        if self.file.isatty():
            self._bar(total).update(self._bar(total).task_ids[0], completed=step, what="  ".join(parts))
        elif time.monotonic() >= self._plain_at:
            self._plain_at = time.monotonic() + _PLAIN_EVERY
            self.line("  ".join(parts))

    def epoch(self, values: Row, mark: str) -> None:
        """One permanent line of a table; its header is said again when a column is new."""
        if set(values) - {name for name, _ in self._columns}:
            self._columns = [(name, max(len(name), 8)) for name in values]
            self.line("  ".join(f"{name:>{width}}" for name, width in self._columns))
        cells = [f"{_cell(name, values.get(name)):>{width}}" for name, width in self._columns]
        self.line(("  ".join(cells) + f"  {mark}").rstrip())

    def close(self) -> None:
        """Takes the bar away; the lines stay."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _bar(self, total: int) -> Progress:
        if self._live is None:
            from rich.console import Console as RichConsole
            from rich.progress import BarColumn, Progress, TextColumn

            columns: Sequence[Any] = (BarColumn(24), TextColumn("{task.fields[what]}"))
            self._live = Progress(*columns, console=RichConsole(file=self.file), transient=True, refresh_per_second=8)
            self._live.add_task("", total=total, what="")
            self._live.start()
        return self._live


class _Unheard:
    """A text file whose reader may be gone: what can't be written is dropped. All else is the file's own."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        try:
            return self._file.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """Nobody will ever read it: what is still in its buffer must not fail at the process's end either."""
        if error.errno not in (errno.EPIPE, errno.EIO):
            return  # a full disk may have room again
        with suppress(OSError):  # no real file
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._file.fileno())
            os.close(nowhere)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name == "lr":
        return f"{value:.2e}"
    if name == "samples/s":
        return f"{value:,.0f}"
    if name == "time":
        return duration(value)
    return f"{value:.4f}" if isinstance(value, float) else str(value)
