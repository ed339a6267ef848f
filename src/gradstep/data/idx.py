"""IDX files, the format of MNIST (http://yann.lecun.com/exdb/mnist): a magic number, the sizes, the values."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gradstep import tree
from gradstep.data.sources import Tensors
from gradstep.errors import DataError

_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: str | Path) -> Tensor:
    """The tensor in an IDX file, gzipped or not: its own sizes, its own type in this machine's byte order."""
    path = Path(path)
    try:
        raw = path.read_bytes()
        content = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file.") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: a damaged gzip file ({error}). Fetch it again.") from None
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}).") from None
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _TYPES:
        raise DataError(f"{path}: not an IDX file; it starts with {content[:4].hex(' ') or 'nothing'}.")
    start = 4 + 4 * content[3]
    sizes = np.frombuffer(content[4:start][: 4 * ((len(content[4:start])) // 4)], dtype=">u4").tolist()
    kind = np.dtype(_TYPES[content[2]])
    expected = start + math.prod(sizes) * kind.itemsize
    if len(sizes) != content[3] or len(content) != expected:
        raise DataError(
            f"{path}: its header announces {'×'.join(map(str, sizes))} values, {expected} bytes in all, "
            f"and there are {len(content)}. The file is {'cut off' if len(content) < expected else 'too long'}."
        )
    values = np.frombuffer(content, dtype=kind, offset=start).reshape(sizes)
    return torch.from_numpy(values.astype(kind.newbyteorder("=")))


def idx(images: str | Path, labels: str | Path, classes: tuple[str, ...] | None = None) -> Tensors:
    """A source from a file of images `[N, H, W]` and one of labels `[N]`: inputs `[N, 1, H, W]`, targets int64."""
    inputs, targets = read_idx(images), read_idx(labels)
    if targets.dim() != 1:
        raise DataError(f"{labels} holds {tree.describe(targets)}, no labels. Are the two files in each other's place?")
    if len(inputs) != len(targets):
        raise DataError(f"{images} holds {len(inputs)} images, and {labels} {len(targets)} labels.")
    return Tensors((inputs[:, None] if inputs.dim() == 3 else inputs, targets.long()), classes)
