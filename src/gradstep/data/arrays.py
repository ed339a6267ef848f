"""Sources out of NumPy's files, read where they lie: what is not in a batch is not in memory."""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from gradstep.data.fingerprint import of_files
from gradstep.data.sources import Source, Tensors
from gradstep.data.transforms import Transform
from gradstep.errors import DataError, listed

_LOADED = 2**28  # bytes; smaller arrays, as targets mostly are, are loaded
_NAMES = {  # what people call the arrays in an .npz
    "train": (("inputs", "targets"), ("x", "y"), ("X", "y"), ("images", "labels"), ("data", "labels"),
              ("data", "target"), ("x_train", "y_train"), ("X_train", "y_train")),
    "valid": (("x_valid", "y_valid"), ("x_val", "y_val"), ("X_val", "y_val")),
    "test": (("x_test", "y_test"), ("X_test", "y_test")),
}  # fmt: skip
_WIDER = {"uint16": "int32", "uint32": "int64", "uint64": "int64"}  # torch counts in few unsigned types


@dataclass(frozen=True, slots=True)
class StoredArray:
    """An array in a file, C-ordered: `shape` of `dtype` from byte `offset` on."""

    path: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    stamp: tuple[int, int]  # bytes and modification time in ns

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def rows(self, numbers: Sequence[int]) -> Tensor:
        """The rows with these numbers, as a tensor of their own.

        Read from their places in the file and not through a map of it: pages of a map count as memory in use, each
        costs a fault, and reading one of a file that was cut off meanwhile would kill the process.
        """
        found = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        length = found[:1].nbytes
        with self._opened() as file:
            for place, number in enumerate(numbers):
                file.seek(self.offset + number * length)
                self._hold(file.readinto(found[place : place + 1].data.cast("B")), length)
        return _native(found)

    def whole(self) -> Tensor:
        """All of it."""
        found = np.empty(self.shape, self.dtype)
        with self._opened() as file:
            file.seek(self.offset)
            if found.nbytes:
                self._hold(file.readinto(found.reshape(-1).data.cast("B")), found.nbytes)
        return _native(found)

    @contextmanager
    def _opened(self) -> Iterator[io.BufferedReader]:
        try:
            file = open(self.path, "rb")  # noqa: SIM115  # closed below; only opening may fail so
        except OSError as error:
            raise DataError(f"{self.path} was there when it was opened, and now: {error.strerror}.") from None
        with file:
            found = os.fstat(file.fileno())
            self._hold(found.st_size, self.stamp[0])
            self._hold(found.st_mtime_ns, self.stamp[1])
            yield file

    def _hold(self, found: int, expected: int) -> None:
        if found != expected:
            raise DataError(f"{self.path} changed since it was opened. Data must stay as it is while it is trained on.")


def _native(values: np.ndarray[Any, Any]) -> Tensor:
    """In this machine's byte order, and in a type that torch counts in."""
    kind = values.dtype.newbyteorder("=")
    if kind.name == "uint64" and values.size and values.max() > np.iinfo(np.int64).max:
        raise DataError(f"numbers up to {values.max()} don't fit into int64, torch's largest. Save them as floats.")
    return torch.from_numpy(values.astype(_WIDER.get(kind.name, kind), copy=False))


@dataclass(frozen=True, eq=False)
class Stored:
    """Rows of arrays in files: batches `(inputs, targets)`. `targets` are in memory."""

    inputs: StoredArray
    targets: Tensor
    paths: tuple[str, ...]
    transforms: tuple[Transform, ...] = ()
    classes: tuple[str, ...] | None = None
    in_memory = False

    @property
    def fingerprint(self) -> dict[str, Any]:
        return of_files(self.paths)

    def __len__(self) -> int:
        return self.inputs.shape[0]

    def batch(self, indices: Tensor, epoch: int, seed: int) -> Any:  # noqa: ARG002
        return self.inputs.rows(indices.tolist()), self.targets[indices]

    def transformed(self, transforms: tuple[Transform, ...]) -> Stored:
        return replace(self, transforms=transforms)


def arrays(inputs: str | Path, targets: str | Path) -> Source:
    """A source of two `.npy` files with one length. Inputs of up to 256 MB are loaded, larger ones not."""
    return _source(_npy(Path(inputs)), _npy(Path(targets)), (str(inputs), str(targets)))


def npz_parts(path: str | Path) -> dict[str, Source]:
    """The parts of an `.npz`, by its arrays' names: inputs and targets (or x and y, ...), x_train, y_train, x_test, ...

    Arrays that were saved uncompressed (`np.savez`) are left there where they are large; compressed ones are loaded.
    """
    path = Path(path)
    with _archive(path) as archive:
        names = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        parts: dict[str, Source] = {}
        for part, pairs in _NAMES.items():
            pair = next(((a, b) for a, b in pairs if a in names and b in names), None)
            if pair is not None:
                members = [_member(path, archive, names[name]) for name in pair]
                parts[part] = _source(members[0], members[1], (str(path),))
    if "train" not in parts:
        raise DataError(
            f"{path}: its arrays are called {listed(names)}. Call them inputs and targets, as in "
            "np.savez(file, inputs=..., targets=...)."
        )
    return parts


def _source(inputs: StoredArray | Tensor, targets: StoredArray | Tensor, paths: tuple[str, ...]) -> Source:
    lengths = [tuple(array.shape)[:1] for array in (inputs, targets)]
    if lengths[0] != lengths[1] or not lengths[0]:
        shapes = " and ".join("×".join(map(str, array.shape)) or "one number" for array in (inputs, targets))
        raise DataError(f"{paths[0]}: inputs and targets are {shapes}, which are not the same number of samples.")
    held = targets if isinstance(targets, Tensor) else targets.whole()
    held = held if held.is_floating_point() else held.long()
    if isinstance(inputs, StoredArray) and inputs.nbytes > _LOADED:
        return Stored(inputs, held, paths)
    return Tensors((inputs if isinstance(inputs, Tensor) else inputs.whole(), held))


def _npy(path: Path) -> StoredArray:
    try:
        with open(path, "rb") as file:
            return _array(path, file)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file.") from None
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}).") from None


def _array(path: Path, file: BinaryIO) -> StoredArray:
    """What the header says, `file` standing at its start; held against the file's length."""
    found = os.fstat(file.fileno())
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except Exception as error:  # a damaged header fails as Python's own parser does, in many ways
        raise DataError(f"{path}: not a .npy file ({_first_line(error)}).") from None
    if dtype.hasobject or dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise DataError(f"{path}: holds {dtype}, not numbers. Save an array of numbers; pickles are not read.")
    if fortran and len(shape) > 1:
        raise DataError(f"{path}: is in Fortran order. Save np.ascontiguousarray(array).")
    array = StoredArray(str(path), dtype.str, shape, file.tell(), (found.st_size, found.st_mtime_ns))
    if min(shape, default=0) < 0 or array.offset + array.nbytes > found.st_size:
        raise DataError(f"{path}: its header announces {'×'.join(map(str, shape))} of {dtype}, and it is cut off.")
    return array


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file.") from None
    except IsADirectoryError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}).") from None
    except Exception as error:  # a damaged archive fails in as many ways as zip has parts
        raise DataError(f"{path}: not an .npz of numbers ({_first_line(error)}).") from None


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> StoredArray | Tensor:
    """An array of an .npz: where it lies if it is large and stored uncompressed, else unpacked and checked."""
    if info.compress_type == zipfile.ZIP_STORED and info.file_size > _LOADED:
        with open(path, "rb") as file:
            file.seek(info.header_offset)
            header = struct.unpack("<26xHH", file.read(30))  # the lengths of the name and of the extra field
            file.seek(sum(header), os.SEEK_CUR)
            return _array(path, file)
    with archive.open(info) as packed:
        values = np.lib.format.read_array(packed, allow_pickle=False)
        packed.read()  # to its end, where its checksum is held against what was read
    if values.dtype.kind not in "biuf" or values.dtype.itemsize > 8:
        raise DataError(f"{path}: '{info.filename}' holds {values.dtype}, not numbers.")
    return _native(np.ascontiguousarray(values))


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
