"""The folder of the caches of decoded images: what is in it, how much it may hold, what goes first. Nothing else in it
is ever touched."""

from __future__ import annotations

import fcntl
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from gradstep import disk

SUFFIX, PART = ".images", ".part"  # of a cache; of one in the making
_OURS = re.compile(r"[0-9a-f]{64}(\.images|\.[0-9a-f]{16}\.part)")
_LIMIT = 20 * 10**9  # bytes that all caches together may take
_MANY = 100_000  # names in the folder, at most


class Kept(NamedTuple):
    """A file of the cache's own naming: bytes, and the time of its last use in ns."""

    path: Path
    size: int
    used: int

    @property
    def whole(self) -> bool:
        return self.path.name.endswith(SUFFIX)


def kept_in(folder: Path) -> list[Kept]:
    """The caches in a folder, whole and in the making, the one that was used last first."""
    found = []
    with suppress(FileNotFoundError):
        for name in disk.names(folder, _MANY):
            with suppress(FileNotFoundError):  # another process may remove it at any moment
                if _OURS.fullmatch(name):
                    stat = os.lstat(folder / name)
                    found.append(Kept(folder / name, stat.st_size, stat.st_mtime_ns))
    return sorted(found, key=lambda kept: -kept.used)


def limit(folder: Path) -> int:
    """Bytes that all caches together may take: 20 GB, or half of what is free on the disk without them."""
    return min(_LIMIT, (disk.free(folder) + sum(kept.size for kept in kept_in(folder))) // 2)


def make_room(folder: Path, needed: int) -> int:
    """Removes what kills left, and what was not used for longest until `needed` bytes may come. Bytes that may."""
    for kept in kept_in(folder):
        if not kept.whole:
            remove_left(kept.path)
    most, there = limit(folder), kept_in(folder)
    if needed > most:
        return most
    total = sum(kept.size for kept in there)
    for kept in reversed(there):
        if total + needed <= most:
            break
        if kept.whole:  # who reads it has it open, and keeps it
            disk.remove(kept.path)
            total -= kept.size
    return most - total


def remove_left(path: Path) -> bool:
    """Removes a cache in the making that nobody is making any more, as its free lock tells."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        disk.remove(path)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
