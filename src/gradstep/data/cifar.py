"""CIFAR-10's binary files (https://www.cs.toronto.edu/~kriz/cifar.html): records of a label and three 32×32 planes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from gradstep.data.sources import Tensors
from gradstep.errors import DataError

_RECORD = 1 + 3 * 32 * 32
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def cifar(paths: Sequence[str | Path], classes: tuple[str, ...] = CLASSES) -> Tensors:
    """A source from binary files: inputs uint8 `[N, 3, 32, 32]` (red, green, blue), targets int64 `[N]`."""
    records = np.concatenate([_records(Path(path), len(classes)) for path in paths])
    images = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).copy())
    return Tensors((images, torch.from_numpy(records[:, 0].astype(np.int64))), classes)


def cifar_parts(folder: str | Path) -> dict[str, Tensors]:
    """The training and test parts in a folder of data_batch_*.bin, test_batch.bin and batches.meta.txt."""
    folder = Path(folder)
    names, batches = folder / "batches.meta.txt", sorted(folder.glob("data_batch_*.bin"))
    if not batches:
        raise DataError(f"{folder}: there is no data_batch_1.bin in it.")
    classes = tuple(names.read_text().split()) if names.exists() else CLASSES
    parts = {"train": cifar(batches, classes)}
    if (folder / "test_batch.bin").exists():
        parts["test"] = cifar([folder / "test_batch.bin"], classes)
    return parts


def _records(path: Path, classes: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    try:
        content = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}).") from None
    if len(content) == 0 or len(content) % _RECORD:
        raise DataError(
            f"{path}: {len(content):,} bytes are no whole number of records of {_RECORD:,}. Fetch it again."
        )
    records = content.reshape(-1, _RECORD)
    if (wrong := records[:, 0] >= classes).any():
        number = int(wrong.nonzero()[0][0])
        raise DataError(f"{path}: record {number} has the label {records[number, 0]}, and there are {classes} classes.")
    return records
