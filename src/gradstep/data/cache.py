"""Decoded images on disk, so that what was decoded once is decoded no more: one file for one list of image files.

A file holds the pixels, row after row, a checksum of each row, and a short JSON header; its name is the SHA-256 of all
that decides on the pixels: the files (absolute name, size, times), how they are read, the versions that decode them.
Where anything is another, so is the name, and nothing is ever taken for what it is not. What can't be written, read or
believed is done without: a cache saves time, and never costs a run or a pixel.

Rows are read from their places in a file that stays open, as `arrays.StoredArray` reads and for its reasons. That one
opens its file by name for each batch and holds that a change is an error; this file may be cleared or replaced by
another process at any time, and its damage is no error.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import secrets
import struct
import time
import warnings
import weakref
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
import torch
from PIL import features
from torch import Tensor

from gradstep import disk
from gradstep.data.images import Reading
from gradstep.data.shelf import PART, SUFFIX, make_room

_FORMAT = 1  # raised when the file, or what images.py makes of an image, becomes another
_MAGIC = b"gradstep"
_TRAILER = struct.Struct("<8sQQ32s")  # magic, bytes of the header, number of images, SHA-256 of checksums and header
_MOST = 2**28  # bytes of checksums and header that are believed
_WORTH = 0.5  # seconds of decoding below which nothing is kept
_RECENT = 2 * 10**9  # ns; a file changed so shortly ago may change again within its time stamp
_FLUSH = 2**20  # bytes that are written at once
_AHEAD = 2**26  # bytes of images that wait until it is known whether they are worth keeping
_DECODERS = ("jpg", "libjpeg_turbo", "zlib", "webp", "libtiff")

Stamp = tuple[int, int, int]  # bytes, time of the last modification, of the last change, in ns; -1 where nothing is
Pixels = np.ndarray[Any, Any]


class Place:
    """Where the cache of a list of image files is, or would be. `notes` are what to tell the user of it."""

    def __init__(self, folder: Path, name: str, paths: Sequence[str], reading: Reading) -> None:
        self.folder, self.name, self.reading = folder, name, reading
        self.absolute = [os.path.abspath(path) for path in paths]
        self.stamps = [_stamp(path) for path in paths]
        self.notes: tuple[str, ...] = ()
        self._files = hashlib.sha256(json.dumps(list(zip(self.absolute, self.stamps, strict=True))).encode())

    def key(self, mode: str | None) -> str:
        """What all that decides on the pixels comes to, the images read in this mode."""
        versions = [PIL.__version__, *(str(features.version(each)) for each in _DECODERS)]
        what = [_FORMAT, versions, asdict(replace(self.reading, mode=mode)), self._files.hexdigest()]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()

    def path(self, key: str) -> Path:
        """The file of this name."""
        return self.folder / f"{key}{SUFFIX}"

    @property
    def settled(self) -> bool:
        """Whether no file was changed so shortly ago that a change to come could leave its stamp as it is."""
        now = time.time_ns()
        return all(now - max(stamp[1:]) > _RECENT for stamp in self.stamps)

    def find(self) -> Found | None:
        """What is kept of these files. A damaged file is removed, with a note.

        Where no mode is said, what was read in the files' own mode is it: a run's recipe says the mode that was found.
        """
        for mode in ("L", "RGB") if self.reading.mode is None else (self.reading.mode,):
            key = self.key(mode)
            try:
                rows, header = opened(self.path(key))
            except (FileNotFoundError, NotADirectoryError, PermissionError):
                continue  # making one will say what is wrong, if anything is
            except (OSError, ValueError) as error:
                self.discard(self.path(key), _reason(error))
                continue
            if header.get("key") != key or rows.shape[0] != len(self.stamps):
                self.discard(self.path(key), "it is of other files")
            elif self.reading.mode is not None or header["own"]:
                with suppress(OSError):
                    os.utime(rows.path)  # the last use, by which the oldest go first
                return Found(rows, header, self)
        return None

    def discard(self, path: Path, why: str) -> None:
        """Removes a file that can't be used."""
        with suppress(OSError):
            disk.remove(path)
        self.notes += (f"the cache of {self.name} was damaged ({why}); its images are decoded anew",)

    def unusable(self, why: str) -> None:
        """Says that there is no cache, once."""
        if not self.notes or not self.notes[-1].startswith("no cache"):
            self.notes += (f"no cache is kept of {self.name}: {why}. GRADSTEP_CACHE=off to do without",)


class Found(NamedTuple):
    """A cache that was opened."""

    rows: Rows
    header: dict[str, Any]
    place: Place

    def whole(self) -> Tensor | None:
        """All images, in memory, each held against its checksum; None where one is damaged, the file then removed."""
        try:
            return self.rows.read(range(self.rows.shape[0]))
        except (OSError, ValueError) as error:
            self.place.discard(self.rows.path, _reason(error))
            return None


class Rows:
    """The images in a cache: `[N, C, H, W]`, uint8 or float32. Sent to another process, it is opened there anew."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str, sums: Pixels) -> None:
        self.path, self.shape, self.dtype, self.sums = path, shape, np.dtype(dtype), sums
        self.length = math.prod(shape[1:]) * self.dtype.itemsize
        self._lost = False
        self._file: int | None = None
        with suppress(OSError):  # read() will say so
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._file)

    def __reduce__(self) -> Any:
        return Rows, (self.path, self.shape, self.dtype.str, self.sums)

    @property
    def nbytes(self) -> int:
        return self.shape[0] * self.length

    def read(self, numbers: Sequence[int]) -> Tensor:
        """The images with these numbers. OSError or ValueError where they can't be had, or are not what was written."""
        if self._file is None:
            raise OSError("it is gone")
        found = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        for place, number in enumerate(numbers):
            row = os.pread(self._file, self.length, number * self.length)
            if len(row) != self.length or zlib.crc32(row) != self.sums[number]:
                raise ValueError(f"image {number} is not as it was written")
            found[place] = np.frombuffer(row, self.dtype).reshape(self.shape[1:])
        return torch.from_numpy(found)

    def get(self, numbers: Sequence[int]) -> Tensor | None:
        """The same; None once something was wrong: said, and the file removed, it is asked no more."""
        if self._lost:
            return None
        try:
            return self.read(numbers)
        except (OSError, ValueError) as error:
            self._lost = True
            with suppress(OSError):
                disk.remove(self.path)
            warnings.warn(f"{self.path}: {error}. Images are decoded again instead.", stacklevel=2)
            return None


class Building:
    """A cache in the making: images as they are decoded, given to it in order; nothing on disk before it is worth it.

    It grows under a name of its own, locked, until it is whole: what a kill leaves is known by its free lock.
    """

    def __init__(self, place: Place, count: int) -> None:
        self.place, self.count = place, count
        self.began = time.monotonic()
        self.shape: tuple[int, ...] | None = None
        self.dtype = np.dtype(np.uint8)
        self.sums: list[int] = []
        self._waiting: list[bytes | Pixels] = []
        self._added, self._bytes, self._empty = 0, 0, 0  # images; bytes that wait; bad files before the first good one
        self._file: int | None = None
        self._part: Path | None = None
        self._over = not place.settled

    def add(self, image: Pixels | None) -> None:
        """The next image, or None in the place of a bad file."""
        if self._over:
            return
        if image is None and self.shape is None:
            self._empty += 1
            return
        if self.shape is None and image is not None:
            self.shape, self.dtype = image.shape, image.dtype
            for _ in range(self._empty):
                self._append(np.zeros(self.shape, self.dtype))
        if image is not None and image.shape != self.shape:
            self.drop()  # of several sizes: these are decoded anew each time
            return
        assert self.shape is not None
        self._append(np.zeros(self.shape, self.dtype) if image is None else image)

    def finish(self, header: dict[str, Any], stamps: Sequence[Stamp]) -> Rows | None:
        """The cache, whole and under its name; None where there is none. `stamps` are those of what was decoded.

        `header` has `mode`, and `own`: whether that is what the files have in common.
        """
        changed = any(own != known and own[0] >= 0 for own, known in zip(stamps, self.place.stamps, strict=True))
        if self._over or self._file is None or self._part is None or self._added != self.count or changed:
            return None
        key = self.place.key(header["mode"])
        about = {
            "key": key,
            "name": self.place.name,
            "folder": _common(self.place.absolute),
            "shape": [self.count, *(self.shape or ())],
            "dtype": self.dtype.str,
            **header,
        }
        try:
            self._flush()
            sums = np.array(self.sums, "<u4")
            tail = sums.tobytes() + json.dumps(about).encode()
            disk.write_all(self._file, tail)
            trailer = _TRAILER.pack(_MAGIC, len(tail) - sums.nbytes, len(sums), hashlib.sha256(tail).digest())
            disk.write_all(self._file, trailer)
            disk.sync(self._file)
            disk.rename(self._part, self.place.path(key))
            self._part = None
            disk.sync_folder(self.place.folder)
            return opened(self.place.path(key))[0]
        except (OSError, ValueError) as error:
            self._failed(error)
            return None
        finally:
            self.drop()

    def drop(self) -> None:
        """Ends it; what is not finished is removed."""
        self._over, self._waiting = True, []
        if self._part is not None:
            with suppress(OSError):
                disk.remove(self._part)
        if self._file is not None:
            with suppress(OSError):
                disk.close(self._file)
        self._part = self._file = None

    def _append(self, image: Pixels) -> None:
        self._waiting.append(image)
        self._added += 1
        self._bytes += image.nbytes
        if self._file is None:
            if time.monotonic() - self.began < _WORTH and self._bytes < _AHEAD:
                return
            self._start()
        if not self._over and self._bytes >= _FLUSH:
            try:
                self._flush()
            except OSError as error:
                self._failed(error)

    def _start(self) -> None:
        """Makes the file; where there is no place for it, no cache."""
        folder, needed = self.place.folder, self.count * (math.prod(self.shape or ()) * self.dtype.itemsize + 4)
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)  # others may not be allowed to see the images
            room = make_room(folder, needed)
            if needed > room:
                self.place.unusable(f"it would take {needed / 1e9:,.2f} GB, and {folder} may have {room / 1e9:,.2f} GB")
                self.drop()
                return
            self._part = folder / f"{self.place.key(self.place.reading.mode)}.{secrets.token_hex(8)}{PART}"
            self._file = disk.create(self._part)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._failed(error)

    def _flush(self) -> None:
        assert self._file is not None
        rows = [np.ascontiguousarray(image).tobytes() for image in self._waiting]
        self.sums += map(zlib.crc32, rows)
        self._waiting, self._bytes = [], 0
        disk.write_all(self._file, b"".join(rows))

    def _failed(self, error: Exception) -> None:
        self.place.unusable(f"{self.place.folder} can't be written to ({_reason(error)})")
        self.drop()


def opened(path: Path) -> tuple[Rows, dict[str, Any]]:
    """`(images, header)` of a cache's file. OSError or ValueError where it is not whole."""
    header, sums, shape = about(path)
    return Rows(path, shape, header["dtype"], sums), header


def about(path: Path) -> tuple[dict[str, Any], Pixels, tuple[int, ...]]:
    """`(header, checksums, shape)`, none of the pixels read. ValueError where they don't belong together."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - _TRAILER.size))
        trailer = file.read(_TRAILER.size)
        magic, length, count, digest = _TRAILER.unpack(trailer) if len(trailer) == _TRAILER.size else (b"", 0, 0, b"")
        sums = 4 * count
        if magic != _MAGIC or length + sums > min(_MOST, size - _TRAILER.size):
            raise ValueError("its end is missing")
        file.seek(size - _TRAILER.size - length - sums)
        tail = file.read(length + sums)
    if hashlib.sha256(tail).digest() != digest:
        raise ValueError("its header is not as it was written")
    header = json.loads(tail[sums:])
    shape = tuple(header["shape"])
    pixels = math.prod(shape) * np.dtype(header["dtype"]).itemsize
    if shape[0] != count or pixels + len(tail) + _TRAILER.size != size:
        raise ValueError("its size is another")
    return header, np.frombuffer(tail[:sums], "<u4"), shape


def _stamp(path: str) -> Stamp:
    try:
        found = os.stat(path)
    except OSError:
        return -1, -1, -1
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _reason(error: Exception) -> str:
    return disk.reason(error) if isinstance(error, OSError) else str(error)


def _common(paths: Sequence[str]) -> str:
    folders = {os.path.dirname(path) for path in paths}
    return os.path.commonpath(folders) if folders else ""
