"""Nested Python values with tensors among them, as a JSON document and tensors by name: typed, and never a pickle.

    {"step": tensor(3.), "old": [tensor, None], "loss": inf}
    {"dict": [["step", {"tensor": "w/step", "host": true}], ["old", {"list": [...]}], ["loss", {"float": "inf"}]]}

What JSON can hold by itself stands for itself; everything else is an object that says what it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradstep.errors import CheckpointError, ModelError

_SEQUENCES: dict[str, type] = {"list": list, "tuple": tuple, "size": torch.Size}
_SMALL = 1 << 63  # JSON readers of other languages lose digits of larger ones, and Python's refuses very long ones


def put(path: str, value: Any, tensors: dict[str, Tensor], keeper: str = "the optimizer") -> Any:
    """The document of `value`; its tensors are added to `tensors`, named after `path`, not copied.

    ModelError for what is neither tensor, array, number, text, list, tuple nor dict: it says that `keeper` keeps it.
    """
    kind = type(value)  # not isinstance: what comes back must be of the very type, and a subclass may hold more
    if value is None or kind in (bool, str):
        return value
    if kind is int:
        return value if abs(value) < _SMALL else {"int": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, Tensor):
        return _put_tensor(path, value, tensors, keeper)
    if isinstance(value, (np.ndarray, np.generic)):
        return _put_array(path, value, tensors, keeper)
    for word, sequence in _SEQUENCES.items():
        if kind is sequence:
            return {word: [put(f"{path}/{place}", each, tensors, keeper) for place, each in enumerate(value)]}
    if kind is dict:
        for key in value:
            if type(key) not in (str, int):
                raise _not_saved(f"{path}/{key}", keeper, f"a dict key that is a {type(key).__name__}")
        return {
            "dict": [[put(path, key, {}), put(f"{path}/{key}", each, tensors, keeper)] for key, each in value.items()]
        }
    raise _not_saved(path, keeper, f"a {kind.__name__}")


def get(document: Any, tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    """The value of a document, sharing no memory with `tensors`: a tensor goes back to the host, or to `device`.

    CheckpointError for a document that `put` never wrote.
    """
    try:
        return _get(document, tensors, device)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"the checkpoint's numbers can't be read ({type(error).__name__}: {error}): they were not written by "
            "this version of gradstep. Resume from another checkpoint."
        ) from error


def _get(document: Any, tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    if document is None or isinstance(document, (bool, int, float, str)):
        return document
    match document:
        case {"tensor": str(name), "host": bool(host), **rest}:
            return _get_tensor(tensors[name], rest.get("strides"), torch.device("cpu") if host else device)
        case {"array": str(name)}:
            return tensors[name].clone().numpy()
        case {"scalar": str(name)}:
            return tensors[name].numpy()[()]
        case {"int": str(digits)}:
            return int(digits, 16)
        case {"float": str(word)}:
            return float(word)
        case {"dict": list(items)}:
            return {_get(key, {}, device): _get(each, tensors, device) for key, each in items}
        case {"list": list(items)} | {"tuple": list(items)} | {"size": list(items)}:
            (word,) = document
            return _SEQUENCES[word](_get(each, tensors, device) for each in items)
    raise ValueError(f"no value is written as {str(document)[:80]}")


def _put_tensor(path: str, value: Tensor, tensors: dict[str, Tensor], keeper: str) -> dict[str, Any]:
    if value.layout is not torch.strided or value.is_quantized or value.is_nested:
        raise _not_saved(path, keeper, "a sparse, quantized or nested tensor")
    name = _free(path, tensors)
    tensors[name] = value = value.detach().resolve_conj().resolve_neg()
    # Adam keeps its step count on the CPU beside moments on the device; a tensor goes back to where it was.
    document = {"tensor": name, "host": value.device.type == "cpu"}
    # A file holds no strides, and by them torch chooses kernels and the order of sums: they are a part of the value.
    if value.stride() != _contiguous(value.shape) and _dense(value.shape, value.stride()):
        document["strides"] = list(value.stride())
    return document


def _get_tensor(saved: Tensor, strides: Any, device: torch.device) -> Tensor:
    if strides is None:
        return saved.to(device, copy=True, memory_format=torch.contiguous_format)
    if len(strides) != saved.dim() or not _dense(saved.shape, strides):  # or a few bytes could ask for any memory
        raise ValueError(f"strides {strides} for a tensor of shape {list(saved.shape)}")
    return torch.empty_strided(saved.shape, strides, dtype=saved.dtype, device=device).copy_(saved)


def _put_array(path: str, value: Any, tensors: dict[str, Tensor], keeper: str) -> dict[str, Any]:
    name = _free(path, tensors)
    try:
        tensors[name] = torch.from_numpy(np.array(value, order="C"))
    except (TypeError, ValueError):
        raise _not_saved(path, keeper, f"an array of {value.dtype}") from None
    return {"array" if isinstance(value, np.ndarray) else "scalar": name}


def _free(path: str, tensors: Mapping[str, Tensor]) -> str:
    """The keys 1 and "1", or "a/b" and "b" within "a", make one path; the later tensor gets a prime."""
    while path in tensors:
        path += "'"
    return path


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    return torch.empty(shape, device="meta").stride()


def _dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether a tensor's elements fill its memory without gaps, in whatever order its dimensions lie there."""
    if any(type(stride) is not int or stride < 1 for stride in strides):
        return False
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    return last + 1 == math.prod(shape)


def _not_saved(path: str, keeper: str, what: str) -> ModelError:
    return ModelError(f"{keeper} keeps '{path}', {what}. gradstep saves tensors and numbers only.")
