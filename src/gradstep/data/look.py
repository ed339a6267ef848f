"""The one look at every image file before training: what each holds, and its pixels while there is room for them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradstep.data.cache import Building, Found, Place, Rows
from gradstep.data.decoding import in_order
from gradstep.data.images import Pixels, Reading, UnreadableError, native_mode, read_native

_GREY, _COLOUR = {"L", "1"}, {"RGB"}  # Pillow's modes that mean the same to everybody


class MixedError(Exception):
    """No mode was said, and the files have none in common."""


@dataclass(frozen=True, slots=True)
class Looked:
    """What was found: how files are read (its mode known), stamps (int64, `[N, 2]`, −1 where there is no image),
    the SHA-256 of all content, what is wrong with which, the sizes of the others; their pixels in memory or in a cache.
    """

    reading: Reading
    stamps: Tensor
    content: str
    troubles: dict[int, str]
    sizes: tuple[tuple[int, ...], ...]
    kept: Tensor | None = None
    rows: Rows | None = None
    notes: tuple[str, ...] = ()


def look_at_all(paths: Sequence[str], reading: Reading, room: int, place: Place | None, skip: bool) -> Looked:
    """All files read and decoded once, or what the cache has of them. `room` is for pixels in memory, in bytes.

    A cache is made of files that can all be read, or whose bad ones are to be left out (`skip`). MixedError where
    `reading` has no mode and the files are not of one.
    """
    found = place.find() if place is not None else None
    if found is not None and place is not None:
        kept = found.whole() if found.rows.nbytes <= room else None
        if kept is not None or found.rows.nbytes > room:
            return _from_cache(found, place, reading, kept)
    looks, building = [], Building(place, len(paths)) if place is not None else None
    modes: set[str] = set()
    try:
        with closing(in_order(_Looking(reading), paths)) as seen:
            for each in seen:
                if each.mode is not None:
                    modes.add(each.mode)
                if reading.mode is None and not (modes <= _GREY or modes <= _COLOUR):
                    raise MixedError
                if building is not None:
                    building.add(each.image)
                if each.image is not None and each.image.nbytes * len(paths) > room:  # too many to keep: none is
                    each.image = None
                looks.append(each)
        common = "L" if modes <= _GREY else "RGB" if modes == _COLOUR else None
        looked = _summed_up(paths, looks, replace(reading, mode=reading.mode or common))
        if building is None or place is None:
            return looked
        if looked.troubles and (not skip or any(each.passing for each in looks)):
            return replace(looked, notes=place.notes)
        header = {
            "mode": looked.reading.mode,
            "own": looked.reading.mode == common,
            "content": looked.content,
            "troubles": {str(number): told for number, told in looked.troubles.items()},
        }
        rows = building.finish(header, [each.stamp for each in looks])
        return replace(looked, rows=rows if looked.kept is None else None, notes=place.notes)
    finally:
        if building is not None:
            building.drop()


def _from_cache(found: Found, place: Place, reading: Reading, kept: Tensor | None) -> Looked:
    troubles = {int(number): told for number, told in found.header["troubles"].items()}
    stamps = torch.tensor([stamp[:2] for stamp in place.stamps], dtype=torch.int64)
    stamps[list(troubles)] = -1
    return Looked(
        replace(reading, mode=found.header["mode"]),
        stamps,
        found.header["content"],
        troubles,
        (found.rows.shape[1:],),
        kept,
        found.rows if kept is None else None,
        place.notes,
    )


@dataclass(slots=True)
class _Look:
    """What was found at one path: stamp, hash, mode in the file, pixels; or the trouble, which may pass by itself."""

    stamp: tuple[int, int, int] = (-1, -1, -1)  # bytes, time of the last modification and of the last change in ns
    content: bytes = b""
    mode: str | None = None
    image: Pixels | None = None
    size: tuple[int, ...] = ()
    trouble: str | None = None
    passing: bool = False

    def __reduce__(self) -> Any:
        """Sent by another process: as few objects as can be, since there is one of these for each file."""
        image = self.image
        pixels = None if image is None else (image.tobytes(), image.dtype.char)
        return _came, (self.stamp, self.content, self.mode, pixels, self.size, self.trouble, self.passing)


def _came(stamp: Any, content: bytes, mode: str | None, pixels: Any, size: Any, trouble: Any, passing: bool) -> _Look:
    image = None if pixels is None else np.frombuffer(*pixels).reshape(size)
    return _Look(stamp, content, mode, image, size, trouble, passing)


@dataclass(frozen=True, slots=True)
class _Looking:
    reading: Reading

    def __call__(self, path: str) -> _Look:
        try:
            found, raw = _read(path)
        except FileNotFoundError:
            return _Look(trouble="there is no such file")
        except OSError as error:
            return _Look(trouble=error.strerror, passing=True)
        stamp = (found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        try:
            mode, image = read_native(BytesIO(raw), self.reading)
        except UnreadableError as error:
            return _Look(stamp, mode=self._mode(raw), trouble=str(error))
        return _Look(stamp, hashlib.sha256(raw).digest(), mode, image, image.shape)

    def _mode(self, raw: bytes) -> str | None:
        """By the header alone, of a file whose pixels can't be had."""
        try:
            return native_mode(BytesIO(raw))[0]
        except UnreadableError:
            return None


def _read(path: str) -> tuple[os.stat_result, bytes]:
    """A file's numbers and all that is in it: half the time of a file object for a small one."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found, parts = os.fstat(file), []
        while part := os.read(file, max(found.st_size + 1, 2**16)):
            parts.append(part)
        return found, b"".join(parts)
    finally:
        os.close(file)


def _summed_up(paths: Sequence[str], looks: list[_Look], reading: Reading) -> Looked:
    content = hashlib.sha256()
    for path, look in zip(paths, looks, strict=True):
        content.update(os.path.basename(path).encode() + b"\0" + look.content)
    troubles = {number: look.trouble for number, look in enumerate(looks) if look.trouble is not None}
    sizes = {look.size for look in looks if look.trouble is None}
    stamps = [(-1, -1) if look.trouble is not None else look.stamp[:2] for look in looks]
    return Looked(
        reading,
        torch.tensor(stamps, dtype=torch.int64),
        content.hexdigest(),
        troubles,
        tuple(sorted(sizes)),
        _gathered(looks) if len(sizes) == 1 else None,
    )


def _gathered(looks: list[_Look]) -> Tensor | None:
    """The images as one tensor by their numbers, nothing in the place of bad ones; None where there was no room."""
    kept: Pixels | None = None
    for number, look in enumerate(looks):
        if look.trouble is not None:
            continue
        if look.image is None:
            return None
        if kept is None:
            kept = np.zeros((len(looks), *look.size), look.image.dtype)
        kept[number] = look.image
    return None if kept is None else torch.from_numpy(kept)
