"""`gradstep data get NAME [--from FILE|DIR|URL]`."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.progress import Progress

_PLAIN_EVERY = 30.0  # seconds


def get(
    name: str = typer.Argument(..., help="mnist, fashion_mnist or cifar10."),
    source: str = typer.Option(
        None,
        "--from",
        help="A folder that has the files, an archive, or an http(s) address; the official addresses unless given.",
    ),
) -> None:
    """Put a named data set into the data folder ($GRADSTEP_DATA, else the user's cache), each file checked by SHA-256.

    Type the same again after an interruption: it goes on from where it was.
    """
    from gradstep.data import remote

    if name == "digits":
        print("'digits' needs no download: it comes with scikit-learn.")
    else:
        try:
            with _Shown() as shown:
                paths = remote.get(name, source, progress=shown.progress, say=shown.say)
        except KeyboardInterrupt:
            print("interrupted; type the same again to go on from there", file=sys.stderr)
            raise typer.Exit(130) from None
        print(f"{'files':<10}{paths[0].parent}")
    print(f"{'next':<10}gradstep train {name}")


class _Shown:
    """A bar on a terminal; elsewhere a plain line every half minute. What was done stays, a line each."""

    def __init__(self) -> None:
        self._live: Progress | None = None
        self._plain_at = time.monotonic() + _PLAIN_EVERY

    def __enter__(self) -> _Shown:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def progress(self, file: str, done: int, total: int | None) -> None:
        if sys.stdout.isatty():
            bar = self._bar()
            bar.update(bar.task_ids[0], description=file, completed=done, total=total)
        elif time.monotonic() >= self._plain_at:
            self._plain_at = time.monotonic() + _PLAIN_EVERY
            of = f" of {total:,}" if total is not None else ""
            print(f"{'fetching':<10}{file}  {done:,}{of} bytes", flush=True)

    def say(self, what: str, about: str) -> None:
        self._close()
        print(f"{what:<10}{about}", flush=True)

    def _close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _bar(self) -> Progress:
        if self._live is None:
            from rich import progress as rich

            columns: tuple[Any, ...] = (
                rich.TextColumn("{task.description}"),
                rich.BarColumn(24),
                rich.DownloadColumn(),
                rich.TransferSpeedColumn(),
                rich.TimeRemainingColumn(),
            )
            self._live = rich.Progress(*columns, transient=True, refresh_per_second=8)
            self._live.add_task("", total=None)
            self._live.start()
        return self._live
