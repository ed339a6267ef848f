"""What a large file was when it was opened: its size, its time, and a hash of blocks taken all over it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_BLOCKS, _LENGTH = 256, 4096  # one megabyte of a file of any size


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


def _starts(size: int) -> list[int]:
    if size <= _BLOCKS * _LENGTH:
        return list(range(0, size, _LENGTH))
    return [(size - _LENGTH) * block // (_BLOCKS - 1) for block in range(_BLOCKS)]
