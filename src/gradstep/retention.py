"""Which checkpoints stay: the newest, the protected, the pinned; and what killed processes left is cleared away.

    touch checkpoints/step-00001234.pinned     keeps that checkpoint for as long as the file is there

Each function is only for who has the run to himself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gradstep import checkpoint, disk
from gradstep.errors import StorageError

_PINNED = re.compile(r"step-([0-9]{8,})\.pinned")


def kept(folder: Path, keep: int, protected: Collection[int] = ()) -> set[int]:
    """The steps, of those that have a checkpoint, that stay: the newest `keep`, the protected and the pinned."""
    steps = checkpoint.steps(folder)
    return {*steps[-keep:], *protected, *pinned(folder)} & set(steps)


def prune(folder: Path, spared: Collection[int]) -> None:
    """Removes all but these. Called only after a newer one is there for good.

    They go out of sight first, so that a kill leaves no half checkpoint; and before the first file goes, that is on
    the disk, else a folder could come back without its files.
    """
    superfluous = [step for step in checkpoint.steps(folder) if step not in spared]
    with _storage_errors(folder):
        for step in superfluous:
            _out_of_sight(folder, step)
        if superfluous:
            disk.sync_folder(folder)
        for step in superfluous:
            disk.remove_tree(folder / f".trash-{step:08d}")


def pinned(folder: Path) -> set[int]:
    """The steps whose checkpoint somebody wants kept."""
    return {int(match[1]) for path in folder.glob("step-*.pinned") if (match := _PINNED.fullmatch(path.name))}


def sweep(folder: Path) -> None:
    """Removes what killed processes left half done, and puts back what one had moved away to replace and had not."""
    if not folder.is_dir():
        return
    with _storage_errors(folder):
        disk.sync_folder(folder)  # what replaced another may not be there for good yet, and then the other is needed
    for replaced in folder.glob(checkpoint.REPLACED + "*"):
        place = folder / replaced.name.removeprefix(checkpoint.REPLACED)
        if not os.path.lexists(place):
            with _storage_errors(folder):
                disk.rename(replaced, place)
                disk.sync_folder(folder)
    for left in (".tmp-*", ".trash-*", checkpoint.REPLACED + "*"):
        for path in folder.glob(left):
            with suppress(OSError):  # it takes room and does no harm
                disk.remove_tree(path)


def set_aside(folder: Path, after: int, log: Path | None = None) -> list[str]:
    """Takes checkpoints later than `after` out of the count, because the run goes on from there. Their new names.

    A copy of the log is laid beside them, `.abandoned-00000012.metrics.jsonl`: whoever wants a checkpoint back renames
    both. The log is to be cut back only after this: until then it may still be needed up to the latest of them.
    """
    names = []
    later = [step for step in checkpoint.steps(folder) if step > after]
    with _storage_errors(folder):
        if later and log is not None and log.exists():
            name = _free_name(folder, f".abandoned-{later[-1]:08d}.metrics.jsonl")
            disk.write_new(folder / name, disk.pieces(log))
        for step in reversed(later):
            names.append(_free_name(folder, f".abandoned-{step:08d}"))
            disk.rename(checkpoint.at(folder, step), folder / names[-1])
            if step in pinned(folder):  # the pin was on this one, and not on whatever comes to this step now
                disk.rename(folder / f"step-{step:08d}.pinned", folder / f"{names[-1]}.pinned")
        if names:
            disk.sync_folder(folder)
    return names


def _free_name(folder: Path, name: str) -> str:
    """The name, or with a number behind it where that was given out: nothing that was set aside is written over."""
    taken = {path.name for path in folder.glob(f"{name}*")}
    return next(
        each for each in (name, *(f"{name}-{number}" for number in range(2, len(taken) + 3))) if each not in taken
    )


def _out_of_sight(folder: Path, step: int) -> None:
    beside = folder / f".trash-{step:08d}"
    disk.remove_tree(beside)
    disk.rename(checkpoint.at(folder, step), beside)


@contextmanager
def _storage_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"earlier checkpoints in '{folder}' could not be moved or removed ({disk.reason(error)})."
        ) from error
