"""MNIST in colour, in CIFAR-10's binary files: real images in a format whose own data is not always at hand.

Digits of 28×28 in the middle of 32×32, in a colour of their own on a ground of its own, drawn by a seeded generator;
the colours say nothing of the digit. The files are those of the archive, with fewer records where asked.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gradstep.data import Tensors, load_named


def write(folder: Path, train: int = 50_000, test: int = 10_000) -> None:
    """`data_batch_1.bin` to `data_batch_5.bin`, `test_batch.bin` and `batches.meta.txt` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = load_named("mnist")
    whole = [
        _records(source, count, seed)
        for seed, (source, count) in enumerate([(splits.train, train), (splits.test, test)])
    ]
    for number, part in enumerate(np.array_split(whole[0], 5), 1):
        part.tofile(folder / f"data_batch_{number}.bin")
    whole[1].tofile(folder / "test_batch.bin")
    (folder / "batches.meta.txt").write_text("\n".join("0123456789") + "\n")


def _records(source: Tensors, count: int, seed: int) -> np.ndarray:
    grey, labels = (part[:count].numpy() for part in source.content)
    ink = np.zeros((count, 1, 32, 32))
    ink[:, :, 2:30, 2:30] = grey / 255.0
    draws = np.random.Generator(np.random.PCG64(seed))
    colour = draws.uniform(128, 255, (count, 3, 1, 1))
    ground = draws.uniform(0, 127, (count, 3, 1, 1))
    images = np.rint(ink * colour + (1 - ink) * ground).astype(np.uint8)
    return np.concatenate([labels.astype(np.uint8)[:, None], images.reshape(count, -1)], axis=1)
