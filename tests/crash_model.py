"""What a disk may hold after a power loss, pessimistically; built from what `gradstep.disk` really did.

`Recording` stands in for `gradstep.disk.os`: every operation goes through to the real disk and into a model of one
beside it. The model knows which of the operations have been forced to the disk:

- an entry of a folder (made, renamed, removed) is there for good after an fsync of that folder, not before; of those
  that are not, any subset may be there after a crash, each whole: a rename is one operation;
- a file's content is there for good after an fsync of the file; of what was written since, any prefix may be there,
  and any part of that may be zeros.

`Disk.after_a_crash` draws one such outcome, as a tree of names and contents.
"""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Tree = dict[str, Any]  # name -> bytes of a file, or the tree of a folder


@dataclass
class File:
    """`safe` is what the last fsync forced to the disk. `cut_to` is the least length that it has had since."""

    content: bytes = b""
    safe: bytes = b""
    cut_to: int = 0

    def write(self, data: bytes) -> None:  # logs append and new files are written once, so all writes go to the end
        self.content += data

    def cut(self, length: int) -> None:
        self.content = self.content[:length]
        self.cut_to = min(self.cut_to, length)

    def sync(self) -> None:
        self.safe, self.cut_to = self.content, len(self.content)

    def after_a_crash(self, draw: random.Random) -> bytes:
        if self.content == self.safe:
            return self.safe
        if draw.random() < 0.3 and self.cut_to < len(self.safe):
            return self.safe  # not even the cut has arrived
        length = draw.choice([self.cut_to, len(self.content), draw.randint(self.cut_to, len(self.content))])
        found = bytearray(self.content[:length])
        if draw.random() < 0.5 and length > self.cut_to:  # the length has arrived before the content
            begin = draw.randint(self.cut_to, length)
            found[begin:] = bytes(length - begin)
        return bytes(found)


# One operation on a folder's entries: which names go, which come. None is applied in part.
Change = dict[str, "File | Folder | None"]


@dataclass
class Folder:
    """`entries` as a process sees them; `safe` as they are on the disk for good; `pending` what lies between."""

    entries: dict[str, File | Folder] = field(default_factory=dict)
    safe: dict[str, File | Folder] = field(default_factory=dict)
    pending: list[Change] = field(default_factory=list)

    def change(self, change: Change) -> None:
        _apply(self.entries, change)
        self.pending.append(change)

    def sync(self) -> None:
        self.safe, self.pending = dict(self.entries), []

    def after_a_crash(self, draw: random.Random) -> Tree:
        entries = dict(self.safe)
        share = draw.choice([0.0, 0.2, 0.5, 0.8, 1.0])
        for change in self.pending:
            if draw.random() < share:
                _apply(entries, change)
        return {name: each.after_a_crash(draw) for name, each in entries.items()}

    def seen(self) -> Tree:
        """What is left when the process is killed and the system lives on: all of it."""
        return {name: each.seen() if isinstance(each, Folder) else each.content for name, each in self.entries.items()}


def _apply(entries: dict[str, File | Folder], change: Change) -> None:
    for name, each in change.items():
        if each is None:
            entries.pop(name, None)
        else:
            entries[name] = each


class Disk:
    """The folder `root`, as the model has it."""

    def __init__(self, root: Path) -> None:
        self.root, self.top, self.open = root, Folder(), dict[int, File | Folder]()

    def at(self, path: Path) -> File | Folder | None:
        here: File | Folder | None = self.top
        for name in Path(path).relative_to(self.root).parts:
            here = here.entries.get(name) if isinstance(here, Folder) else None
        return here

    def parent(self, path: Path) -> Folder:
        found = self.at(Path(path).parent)
        assert isinstance(found, Folder)
        return found

    def after_a_crash(self, draw: random.Random) -> Tree:
        return self.top.after_a_crash(draw)

    def copy(self) -> Disk:
        return copy.deepcopy(self)


class Recording:
    """Stands in for `os`. `watch(disk)` is called after each operation that changes what a crash may leave.

    `lose` are names of operations that silently do nothing in the model: "fsync of files", "fsync of folders".
    """

    def __init__(self, disk: Disk, watch: Callable[[Disk], None], lose: frozenset[str] = frozenset()) -> None:
        self._disk, self._watch, self._lose = disk, watch, lose

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        descriptor = os.open(path, flags, mode)
        found = self._disk.at(path)
        if found is None and flags & os.O_CREAT:
            found = File()
            self._disk.parent(path).change({Path(path).name: found})
            self._watch(self._disk)
        assert found is not None
        self._disk.open[descriptor] = found
        return descriptor

    def close(self, descriptor: int) -> None:
        os.close(descriptor)
        del self._disk.open[descriptor]

    def write(self, descriptor: int, data: memoryview) -> int:
        size = min(len(data), 200)  # small writes, so that there are crashes between them
        self._file(descriptor).write(bytes(data[:size]))
        os.write(descriptor, data[:size])
        self._watch(self._disk)
        return size

    def posix_fallocate(self, descriptor: int, offset: int, size: int) -> None:
        """Changes what a crash may leave no more than writing does: zeros."""

    def ftruncate(self, descriptor: int, length: int) -> None:
        os.ftruncate(descriptor, length)
        self._file(descriptor).cut(length)
        self._watch(self._disk)

    def fsync(self, descriptor: int) -> None:
        each = self._disk.open[descriptor]
        if ("fsync of files" if isinstance(each, File) else "fsync of folders") not in self._lose:
            each.sync()
        self._watch(self._disk)

    def mkdir(self, path: Path) -> None:
        os.mkdir(path)
        self._disk.parent(path).change({path.name: Folder()})
        self._watch(self._disk)

    def rename(self, old: Path, new: Path) -> None:
        os.rename(old, new)
        moved = self._disk.at(old)
        assert moved is not None
        assert old.parent == new.parent  # else it would be two operations on a disk
        self._disk.parent(old).change({old.name: None, new.name: moved})
        self._watch(self._disk)

    replace = rename

    def unlink(self, path: Path) -> None:
        os.unlink(path)
        self._gone(path)

    def rmdir(self, path: Path) -> None:
        os.rmdir(path)
        self._gone(path)

    def _gone(self, path: Path) -> None:
        self._disk.parent(path).change({path.name: None})
        self._watch(self._disk)

    def _file(self, descriptor: int) -> File:
        found = self._disk.open[descriptor]
        assert isinstance(found, File)
        return found


def build(tree: Tree, folder: Path) -> None:
    """Makes `folder` hold the tree, as real files."""
    os.mkdir(folder)
    for name, each in tree.items():
        if isinstance(each, dict):
            build(each, folder / name)
        else:
            descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT)
            os.write(descriptor, each)
            os.close(descriptor)
