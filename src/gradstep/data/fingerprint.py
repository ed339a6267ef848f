"""What data was when it was opened: its size, its time if it is a file, and a hash of it or of pieces all over it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_BLOCKS, _LENGTH = 256, 4096  # one megabyte of a file of any size
_WHOLE, _ROWS = 2**28, 4096  # bytes of a tensor that is hashed whole, in 0.4 s at most; rows of a larger one


def of_files(paths: Sequence[str | Path]) -> dict[str, Any]:
    """`{bytes, modified, content}` of the files together: `modified` in ns, the latest; `content` a SHA-256.

    A file of up to a megabyte is hashed whole; of a larger one 256 blocks are, spread evenly, first and last among
    them. What changes between them is told by its time alone.
    """
    content, total, modified = hashlib.sha256(), 0, 0
    for path in paths:
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
            total, modified = total + found.st_size, max(modified, found.st_mtime_ns)
            content.update(f"{found.st_size} ".encode())
            for start in _starts(found.st_size):
                file.seek(start)
                content.update(file.read(_LENGTH))
    return {"bytes": total, "modified": modified, "content": content.hexdigest()}


def of_tensors(tensors: Sequence[Tensor]) -> dict[str, Any]:
    """The same of tensors: `modified` is 0. Of one above 256 MB 4,096 rows are hashed, spread evenly."""
    content, total = hashlib.blake2b(digest_size=32), 0
    for tensor in tensors:
        total += tensor.nbytes
        content.update(f"{tensor.dtype} {list(tensor.shape)} ".encode())
        if tensor.nbytes > _WHOLE:
            tensor = tensor[torch.linspace(0, len(tensor) - 1, _ROWS, dtype=torch.float64).long()]
        if tensor.numel():
            # Waits for the device where data lies on one, before the first step.
            content.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return {"bytes": total, "modified": 0, "content": content.hexdigest()}


def of_part(whole: dict[str, Any] | None, numbers: Tensor) -> dict[str, Any] | None:
    """Of some samples of what has this fingerprint."""
    if whole is None:
        return None
    content = hashlib.blake2b(whole["content"].encode() + numbers.numpy().tobytes(), digest_size=32)
    return {**whole, "content": content.hexdigest()}


def _starts(size: int) -> list[int]:
    if size <= _BLOCKS * _LENGTH:
        return list(range(0, size, _LENGTH))
    return [(size - _LENGTH) * block // (_BLOCKS - 1) for block in range(_BLOCKS)]
