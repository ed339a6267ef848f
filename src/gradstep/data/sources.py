"""Sources: samples that can be asked for by number, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import default_collate

from gradstep import tree
from gradstep.data.transforms import Transform, measure
from gradstep.errors import DataError
from gradstep.keys import kept_streams, key, seed_sample


class Source(Protocol):
    """What a feed takes its batches from. A batch is on the CPU and not yet transformed."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names of the classes that integer targets stand for."""

    @property
    def transforms(self) -> tuple[Transform, ...]:
        """What the feed does to the inputs of each batch, on the device."""

    @property
    def in_memory(self) -> bool:
        """Whether a batch is a gather from memory, which worker processes would only slow down."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor, epoch: int, seed: int) -> Any:
        """The samples with these numbers (int64, `[N]`), collated: a function of its arguments alone."""

    def transformed(self, transforms: tuple[Transform, ...]) -> Source:
        """The same samples under these transforms."""


@dataclass(frozen=True, eq=False)
class Tensors:
    """Samples that are rows of tensors: `content` is a nest of tensors, usually `(inputs, targets)`."""

    content: Any
    classes: tuple[str, ...] | None = None
    transforms: tuple[Transform, ...] = ()
    in_memory = True

    def __post_init__(self) -> None:
        lengths = {len(t) if t.dim() else None for t in tree.tensors(self.content)}
        if len(lengths) != 1 or None in lengths:
            raise DataError(
                "the tensors of a data set must have the same first dimension, the samples; "
                f"these are {tree.describe(self.content)}."
            )

    def __len__(self) -> int:
        return len(tree.tensors(self.content)[0])

    def batch(self, indices: Tensor, epoch: int, seed: int) -> Any:  # noqa: ARG002
        return tree.map_tensors(lambda tensor: tensor[indices], self.content)

    def transformed(self, transforms: tuple[Transform, ...]) -> Tensors:
        return replace(self, transforms=transforms)


@dataclass(frozen=True, eq=False)
class Items:
    """Any map-style `Dataset`: asked sample by sample, then collated.

    Before each sample the global streams of Python, NumPy and torch are seeded by (seed, epoch, sample), and torch
    is held to one thread, so that a sample is the same whoever loads it: this process or any worker.
    """

    dataset: Any
    collate: Callable[[list[Any]], Any] = default_collate
    classes: tuple[str, ...] | None = None
    transforms: tuple[Transform, ...] = ()
    worker_init: Callable[[int], None] | None = None  # called in each worker process with its number
    in_memory = False

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, indices: Tensor, epoch: int, seed: int) -> Any:
        samples = []
        with kept_streams(), _one_thread():
            for index in indices.tolist():
                seed_sample(key(seed, "sample", epoch, index))
                try:
                    samples.append(self.dataset[index])
                except Exception as error:
                    error.add_note(f"while reading sample {index} of {type(self.dataset).__name__}")
                    raise
            return self.collate(samples)

    def transformed(self, transforms: tuple[Transform, ...]) -> Items:
        return replace(self, transforms=transforms)


@dataclass(frozen=True, eq=False)
class Part:
    """Some samples of another source: `numbers` (int64, `[N]`) are theirs in it."""

    whole: Source
    numbers: Tensor

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self.whole.classes

    @property
    def transforms(self) -> tuple[Transform, ...]:
        return self.whole.transforms

    @property
    def in_memory(self) -> bool:
        return self.whole.in_memory

    def __len__(self) -> int:
        return len(self.numbers)

    def batch(self, indices: Tensor, epoch: int, seed: int) -> Any:
        return self.whole.batch(self.numbers[indices], epoch, seed)

    def transformed(self, transforms: tuple[Transform, ...]) -> Part:
        return Part(self.whole.transformed(transforms), self.numbers)


@dataclass(frozen=True)
class Splits:
    """The parts of a data set: train, and perhaps valid and test."""

    train: Source
    valid: Source | None = None
    test: Source | None = None

    def items(self) -> list[tuple[str, Source]]:
        named = [("train", self.train), ("valid", self.valid), ("test", self.test)]
        return [(name, source) for name, source in named if source is not None]


def prepare(splits: Splits, transforms: Sequence[Transform]) -> Splits:
    """The splits under `transforms`, whatever is measured being measured on the training part alone."""

    def training_inputs() -> Iterator[Tensor]:
        for numbers in torch.arange(len(splits.train)).split(1024):
            yield splits.train.batch(numbers, 0, 0)[0]

    frozen = measure(transforms, training_inputs)
    return Splits(
        splits.train.transformed(frozen),
        splits.valid and splits.valid.transformed(frozen),
        splits.test and splits.test.transformed(frozen),
    )


def original(source: Source, numbers: Tensor) -> Tensor:
    """The numbers of samples as the user knows them: a part's, in the whole that it was cut from."""
    while isinstance(source, Part):
        numbers, source = source.numbers[numbers], source.whole
    return numbers


def targets_in_memory(source: Source) -> Any:
    """All targets of a source, in its order, where they lie in memory as the second of a pair; else None."""
    if isinstance(source, Part):
        targets = targets_in_memory(source.whole)
        return None if targets is None else tree.map_tensors(lambda t: t[source.numbers], targets)
    if isinstance(source, Tensors) and isinstance(source.content, (tuple, list)) and len(source.content) == 2:
        return source.content[1]
    return None


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    if threads == 1:  # as it always is in a worker
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
