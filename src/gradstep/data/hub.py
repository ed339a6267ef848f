"""Hugging Face `datasets` objects: a column of images or numbers, a column of labels. The package is not imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradstep.data.images import Reading, UnreadableError, as_tensor
from gradstep.data.sources import PART_OF, Items, Splits
from gradstep.errors import DataError, listed

_NUMBERS = ("int", "uint", "float", "bool")


def is_dataset(data: Any) -> bool:
    """Whether it is a map-style `datasets.Dataset`, by what it can do."""
    return all(hasattr(data, name) for name in ("features", "column_names", "with_format", "__getitem__"))


def is_dataset_dict(data: Any) -> bool:
    """Whether it is a `datasets.DatasetDict`."""
    return isinstance(data, Mapping) and bool(data) and all(is_dataset(each) for each in data.values())


def hub_source(data: Any, what: str, reading: Reading | None = None) -> Items:
    """Samples `(input, target)` of a data set with one column of labels and one of images, or several of numbers.

    Images are read as `reading` says; targets are int64 for labels, float32 for other numbers. A data set with a
    format of its own (`with_format("torch")`), or with columns that fit neither, gives its rows as they are.
    """
    if (data.format or {}).get("type") is not None:
        return Items(data)
    kinds = {name: type(feature).__name__ for name, feature in data.features.items()}
    images = [name for name, kind in kinds.items() if kind == "Image"]
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    numbers = [name for name, feature in data.features.items() if name not in labels and _is_numeric(feature)]
    target = labels[0] if len(labels) == 1 else next((n for n in numbers if n in ("label", "labels", "target")), None)
    inputs = images if len(images) == 1 else [name for name in numbers if name != target]
    if target is None or not inputs or (images and len(images) != 1):
        return Items(data)
    classes = tuple(data.features[target].names) if labels else None
    return Items(_Rows(data, tuple(inputs), target, bool(images), reading or Reading(), what), classes=classes)


def hub_splits(data: Mapping[str, Any], what: str, reading: Reading | None = None) -> Splits:
    """The parts of a `DatasetDict`, by their names: train, validation or test. Others are left alone."""
    known = [name for name in data if name.lower() in PART_OF]
    parts: dict[str, Any] = {PART_OF[name.lower()]: hub_source(data[name], what, reading) for name in known}
    if "train" not in parts:
        raise DataError(f"{what}: the data set has the parts {listed(data)}, and none is train. Name one of them.")
    return Splits(**parts)


@dataclass(frozen=True, eq=False)
class _Rows:
    data: Any
    inputs: tuple[str, ...]
    target: str
    image: bool
    reading: Reading
    what: str

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, number: int) -> tuple[Tensor, Any]:
        row = self.data[number]
        target = row[self.target]
        if not self.image:
            values = [np.asarray(row[name], dtype=np.float32).reshape(-1) for name in self.inputs]
            return torch.from_numpy(np.concatenate(values)), _target(target)
        try:
            return as_tensor(row[self.inputs[0]], self.reading), _target(target)
        except (UnreadableError, OSError, AttributeError) as error:
            raise DataError(f"{self.what}: the image of sample {number} can't be read: {error}.") from error


def _is_numeric(feature: Any) -> bool:
    """A column of numbers, or of lists of one length of them."""
    inner = getattr(feature, "feature", feature)
    return str(getattr(inner, "dtype", "")).startswith(_NUMBERS)


def _target(value: Any) -> Any:
    return value if isinstance(value, int) else torch.tensor(value, dtype=torch.float32)
