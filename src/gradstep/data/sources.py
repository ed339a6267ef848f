"""Sources: samples that can be asked for by number, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import default_collate

from gradstep import tree
from gradstep.data.augment import augmentations_of
from gradstep.data.fingerprint import of_part, of_tensors
from gradstep.data.transforms import Transform, measure, transforms_of
from gradstep.errors import DataError
from gradstep.keys import kept_streams, key, seed_sample

if TYPE_CHECKING:
    from gradstep.data.images import Reading


_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
_CLASSES = 100_000  # whole numbers above that are no classes
PARTS = ("train", "valid", "test")
PART_OF = {"train": "train", "training": "train", "valid": "valid", "val": "valid", "validation": "valid",
           "dev": "valid", "test": "test", "testing": "test"}  # what people call them  # fmt: skip


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


# What a source may have besides, each read by the function of its name below: `targets`, all of them in its order;
# `augment`, what is done to a batch in training alone; `original(numbers)`, its samples' numbers as the user knows
# them; `paths(numbers)`, their files; `fingerprint`, what it held when it was opened.


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
        content = self.content
        if type(content) is tuple and len(content) == 2:  # as most are: the walk takes as long as the gather
            first, second = content
            if type(first) is Tensor and type(second) is Tensor:
                return rows(first, indices), rows(second, indices)
        return tree.map_tensors(lambda tensor: rows(tensor, indices), content)

    @property
    def targets(self) -> Any:
        pair = isinstance(self.content, (tuple, list)) and len(self.content) == 2
        return self.content[1] if pair else None

    @property
    def fingerprint(self) -> dict[str, Any]:
        return of_tensors(tree.tensors(self.content))

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
class _Over:
    """A source over another one, of which it says what it does not say itself."""

    whole: Source

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self.whole.classes

    @property
    def transforms(self) -> tuple[Transform, ...]:
        return self.whole.transforms

    @property
    def in_memory(self) -> bool:
        return self.whole.in_memory

    @property
    def fingerprint(self) -> dict[str, Any] | None:
        return fingerprint(self.whole)

    @property
    def worker_init(self) -> Callable[[int], None] | None:
        return getattr(self.whole, "worker_init", None)


@dataclass(frozen=True, eq=False)
class Part(_Over):
    """Some samples of another source: `numbers` (int64, `[N]`) are theirs in it."""

    numbers: Tensor

    @property
    def targets(self) -> Any:
        targets = targets_in_memory(self.whole)
        return None if targets is None else tree.map_tensors(lambda t: t[self.numbers], targets)

    @property
    def augment(self) -> tuple[Any, ...]:
        return augmentations(self.whole)

    @property
    def fingerprint(self) -> dict[str, Any] | None:
        return of_part(fingerprint(self.whole), self.numbers)

    def original(self, numbers: Tensor) -> Tensor:
        return original(self.whole, self.numbers[numbers])

    def paths(self, numbers: Tensor) -> list[str] | None:
        return paths(self.whole, self.numbers[numbers])

    def __len__(self) -> int:
        return len(self.numbers)

    def batch(self, indices: Tensor, epoch: int, seed: int) -> Any:
        return self.whole.batch(self.numbers[indices], epoch, seed)

    def transformed(self, transforms: tuple[Transform, ...]) -> Part:
        return Part(self.whole.transformed(transforms), self.numbers)


@dataclass(frozen=True, eq=False)
class Augmented(_Over):
    """A source whose batches are augmented when they are trained on. An evaluation sees them as they are."""

    augment: tuple[Any, ...]

    @property
    def targets(self) -> Any:
        return targets_in_memory(self.whole)

    def original(self, numbers: Tensor) -> Tensor:
        return original(self.whole, numbers)

    def paths(self, numbers: Tensor) -> list[str] | None:
        return paths(self.whole, numbers)

    def __len__(self) -> int:
        return len(self.whole)

    def batch(self, indices: Tensor, epoch: int, seed: int) -> Any:
        return self.whole.batch(indices, epoch, seed)

    def transformed(self, transforms: tuple[Transform, ...]) -> Augmented:
        return Augmented(self.whole.transformed(transforms), self.augment)


@dataclass(frozen=True)
class Splits:
    """The parts of a data set: train, and perhaps valid and test."""

    train: Source
    valid: Source | None = None
    test: Source | None = None
    notes: tuple[str, ...] = ()  # what was read otherwise than the user may think
    reading: Reading | None = None  # how image files became tensors
    columns: Mapping[str, Any] = field(default_factory=dict)  # how a CSV's columns were understood

    def items(self) -> list[tuple[str, Source]]:
        named = [(name, getattr(self, name)) for name in PARTS]
        return [(name, source) for name, source in named if source is not None]


def rows(tensor: Tensor, numbers: Tensor) -> Tensor:
    """The rows with these numbers (int64, `[N]`), as a tensor of their own.

    index_select takes half as long as `tensor[numbers]`, for rows of bytes an eighth, but knows fewer dtypes, and no
    other memory format.
    """
    quick = tensor.is_contiguous() and tensor.dtype not in _UNSIGNED
    return tensor.index_select(0, numbers) if quick else tensor[numbers]


def prepare(splits: Splits, transforms: Any, augment: Any = ()) -> Splits:
    """The splits under `transforms`, whatever is measured being measured on the training part alone.

    `augment` is done to the training part, and in training only. Both are lists, of objects or as a recipe writes
    them: `prepare(splits, ["float", {"normalize": "measured"}], ["flip", Shift(2)])`.
    """
    made = augmentations_of(augment)

    def training_inputs() -> Iterator[Tensor]:
        for numbers in torch.arange(len(splits.train)).split(1024):
            yield splits.train.batch(numbers, 0, 0)[0]

    frozen = measure(transforms_of(transforms), training_inputs)
    parts: dict[str, Any] = {name: source.transformed(frozen) for name, source in splits.items()}
    if made:
        parts["train"] = Augmented(parts["train"], made)
    return replace(splits, **parts)


def original(source: Source, numbers: Tensor) -> Tensor:
    """The numbers of samples as the user knows them: a part's, in the whole that it was cut from."""
    ask: Callable[[Tensor], Tensor] | None = getattr(source, "original", None)
    return numbers if ask is None else ask(numbers)


def paths(source: Source, numbers: Tensor) -> list[str] | None:
    """The files that samples are, where each is one."""
    ask: Callable[[Tensor], list[str] | None] | None = getattr(source, "paths", None)
    return None if ask is None else ask(numbers)


def is_ours(each: object) -> bool:
    """Whether its class is gradstep's: what it does is known, and nobody's code is called."""
    return type(each).__module__.startswith("gradstep.")


def class_names(source: object) -> tuple[str, ...] | None:
    """The names of a source's classes; of targets that are whole numbers without names, those numbers: 0, 1, ..."""
    known: tuple[str, ...] | None = getattr(source, "classes", None)
    targets = targets_in_memory(source)
    if known is not None or not isinstance(targets, Tensor) or targets.dim() != 1 or targets.is_floating_point():
        return known
    most = int(targets.max()) if len(targets) else -1
    return tuple(map(str, range(most + 1))) if 0 <= most < _CLASSES else None


def targets_in_memory(source: object) -> Any:
    """All targets of a source, in its order, where they lie in memory as the second of a pair; else None."""
    return getattr(source, "targets", None)


def augmentations(source: Source) -> tuple[Any, ...]:
    """What is done to a source's batches in training alone."""
    return getattr(source, "augment", ())


def fingerprint(source: Source) -> dict[str, Any] | None:
    """What a source held when it was opened: `{bytes, modified, content}`; None where nobody can know."""
    found: dict[str, Any] | None = getattr(source, "fingerprint", None)
    return found


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
