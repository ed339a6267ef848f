"""Sources out of NumPy's files, read where they lie: what is not in a batch is not in memory."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
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
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

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
        with open(self.path, "rb") as file:
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
    members = _members(path)
    parts: dict[str, Source] = {}
    for part, pairs in _NAMES.items():
        for inputs, targets in pairs:
            if inputs in members and targets in members:
                parts.setdefault(part, _source(members[inputs], members[targets], (str(path),)))
    if "train" not in parts:
        raise DataError(
            f"{path}: its arrays are called {listed(members)}. Call them inputs and targets, as in "
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
    except ValueError as error:
        raise DataError(f"{path}: not a .npy file ({str(error).splitlines()[0]}).") from None
    if dtype.hasobject or dtype.kind not in "biuf":
        raise DataError(f"{path}: holds {dtype}, not numbers. Save an array of numbers; pickles are not read.")
    if fortran and len(shape) > 1:
        raise DataError(f"{path}: is in Fortran order. Save np.ascontiguousarray(array).")
    array = StoredArray(str(path), dtype.str, shape, file.tell(), (found.st_size, found.st_mtime_ns))
    if array.offset + array.nbytes > found.st_size:
        raise DataError(f"{path}: its header announces {'×'.join(map(str, shape))} of {dtype}, and it is cut off.")
    return array


def _members(path: Path) -> Mapping[str, StoredArray | Tensor]:
    """The arrays of an .npz by name: stored ones where they lie, compressed ones unpacked."""
    members: dict[str, StoredArray | Tensor] = {}
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                if info.compress_type == zipfile.ZIP_STORED:
                    file.seek(info.header_offset)
                    header = struct.unpack("<26xHH", file.read(30))  # the lengths of the name and of the extra field
                    file.seek(sum(header), os.SEEK_CUR)
                    members[name] = _array(path, file)
                else:
                    with archive.open(info) as packed:
                        values = np.lib.format.read_array(packed, allow_pickle=False)
                    members[name] = _native(np.ascontiguousarray(values))
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file.") from None
    except (zipfile.BadZipFile, ValueError, TypeError, EOFError, struct.error) as error:
        raise DataError(f"{path}: not an .npz of numbers ({str(error).splitlines()[0]}).") from None
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}).") from None
    return members
