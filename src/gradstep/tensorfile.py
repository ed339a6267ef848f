"""Safetensors files, written as a stream and read tensor by tensor.

safetensors' own writer copies the whole model and can neither hash nor fsync what it writes, so the few lines of the
format that writing takes are here; the bytes are the same. Reading is left to safetensors' own reader.

    8 bytes: length of the header    header: JSON, padded with spaces to 8 bytes    tensors, one after the other
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gradstep import disk
from gradstep.errors import CheckpointError, ModelError

_HEADER_LIMIT = 100_000_000  # the format's own

# The format's names, in the order in which its writer lays tensors out: the widest first, so that all are aligned.
_LAYOUT = {
    "uint64": "U64",
    "int64": "I64",
    "float64": "F64",
    "complex64": "C64",
    "float32": "F32",
    "uint32": "U32",
    "int32": "I32",
    "bfloat16": "BF16",
    "float16": "F16",
    "uint16": "U16",
    "int16": "I16",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int8": "I8",
    "uint8": "U8",
    "float4_e2m1fn_x2": "F4",  # two in a byte
    "bool": "BOOL",
}
_PLACE = {getattr(torch, kind): place for place, kind in enumerate(_LAYOUT) if hasattr(torch, kind)}
_NAME = {getattr(torch, kind): name for kind, name in _LAYOUT.items() if hasattr(torch, kind)}


def parts(tensors: Mapping[str, Tensor], header: dict[str, str] | None = None) -> tuple[int, Iterator[memoryview]]:
    """`(bytes in all, the file's content piece by piece)`. ModelError names a tensor that the format can't hold.

    What is wrong is found here, before the first piece is asked for.
    """
    assert sys.byteorder == "little"  # as the format is; torch is not built for others
    for name, tensor in tensors.items():
        _refuse_what_has_no_name(name, tensor)
    names = sorted(tensors, key=lambda name: (_PLACE[tensors[name].dtype], name))
    entries: dict[str, Any] = {} if header is None else {"__metadata__": header}
    end = 0
    for name in names:
        tensor = tensors[name]
        kind, shape = _NAME[tensor.dtype], list(tensor.shape)
        if kind == "F4":
            shape[-1] *= 2
        begin, end = end, end + tensor.numel() * tensor.itemsize
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _HEADER_LIMIT:
        raise ModelError(f"{len(tensors)} tensors are more than one safetensors file can name.")

    def content() -> Iterator[memoryview]:
        yield memoryview(len(text).to_bytes(8, "little") + text)
        for name in names:
            yield _content(tensors[name])  # one at a time: no second model in memory

    return 8 + len(text) + end, content()


def _refuse_what_has_no_name(name: str, tensor: Tensor) -> None:
    if name == "__metadata__":
        raise ModelError("a tensor can't be called '__metadata__' in a safetensors file; give it another name.")
    if tensor.device.type == "meta":
        raise ModelError(f"'{name}' can't be saved: it is on the meta device and has no values yet.")
    if tensor.layout is not torch.strided or tensor.dtype not in _NAME:
        raise ModelError(
            f"'{name}' can't be saved: a safetensors file holds no tensor of {tensor.dtype} and {tensor.layout}. "
            f"Make it a dense one of {', '.join(_LAYOUT)}."
        )


def _content(tensor: Tensor) -> memoryview:
    """Its elements in order. Waits for the device where the tensor is on one."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().data


def opened(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a file by name, each loaded when it is asked for. CheckpointError says what is wrong with it."""
    try:
        object_of(disk.beginning(path, 8 + header_length(path))[0][8:])
        return _Tensors(path, safe_open(path, "pt"))
    except (OSError, ValueError, SafetensorError) as error:
        why = disk.reason(error) if isinstance(error, OSError) else error
        raise CheckpointError(f"{path}: is no safetensors file that can be read ({cut(why)}).") from error


class _Tensors(Mapping[str, Tensor]):
    """A view of an open file. Each tensor handed out is a copy of its own: the file may go, or change, after that."""

    def __init__(self, path: Path, file: Any) -> None:
        self._path, self._file = path, file
        self._names: tuple[str, ...] = tuple(file.keys())
        self._known = frozenset(self._names)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._known:
            raise KeyError(name)
        try:
            copy: Tensor = self._file.get_tensor(name).clone()
        except (SafetensorError, RuntimeError, ValueError, OverflowError, TypeError) as error:
            raise CheckpointError(f"{self._path}: '{cut(name)}' can't be read ({cut(error)}).") from error
        return copy

    def __contains__(self, name: object) -> bool:
        return name in self._known

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def header_length(path: Path) -> int:
    """What the first 8 bytes say; ValueError when it can't be, seen without reading on."""
    content, size = disk.beginning(path, 8)
    length = int.from_bytes(content, "little")
    if len(content) < 8 or not 2 <= length <= min(size - 8, _HEADER_LIMIT):
        raise ValueError(f"its header would have {length} bytes, of {size} in all, and {_HEADER_LIMIT} are the most")
    return length


def from_json(content: bytes) -> Any:
    """Reads JSON as it is meant: ValueError for names given twice, for NaN and infinities, and for endless nesting."""
    try:
        return json.loads(content.decode(), object_pairs_hook=_once, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def object_of(content: bytes) -> dict[str, Any]:
    """The same where it must be an object."""
    found = from_json(content)
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004
    return found


def cut(value: object) -> str:
    """A stranger's words, made fit for a line of an error message."""
    text = str(value)
    return ascii(text[:200])[1:-1] + ("..." if len(text) > 200 else "")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is given twice in one object")
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")
