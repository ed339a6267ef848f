"""What users bring, made a source: tensors, arrays, map-style data sets, a DataLoader taken apart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from gradstep.data.hub import hub_source, is_dataset, is_dataset_dict
from gradstep.data.sources import PARTS, Items, Source, Splits, Tensors
from gradstep.errors import DataError


@dataclass(frozen=True)
class Given:
    """A source, and what came with it when it was a DataLoader: None where nothing was said."""

    source: Source
    batch_size: int | None = None
    shuffle: bool | None = None
    drop_last: bool | None = None
    workers: int | None = None
    note: str | None = None


def adapt(data: Any, what: str) -> Given:
    """A source out of anything with samples that can be asked for by number; `what` names it in errors."""
    if isinstance(data, DataLoader):
        return _take_apart(data, what)
    return Given(as_source(data, what))


def as_source(data: Any, what: str) -> Source:
    """`(inputs, targets)` of tensors or arrays, a map-style data set, or a source already.

    Errors: DataError for what has no samples, no length or no numbers to ask by.
    """
    if hasattr(data, "batch") and hasattr(data, "transforms"):
        source: Source = data
    elif isinstance(data, Splits) or is_dataset_dict(data):
        each = "splits.train" if isinstance(data, Splits) else 'data["train"]'
        raise DataError(f"{what}: these are all parts of a data set. Give one of them, as in {each}.")
    elif isinstance(data, (str, Path)):
        raise DataError(
            f"{what}: {data!r} is where data lies, and samples are wanted. Open it first: "
            f"gradstep.data.open_data({str(data)!r}).{what if what in PARTS else 'train'}"
        )
    elif isinstance(data, (Tensor, np.ndarray)):
        raise DataError(f"{what}: one {type(data).__name__} has no targets. Give a pair: (inputs, targets).")
    elif type(data) is TensorDataset:
        source = Tensors(tuple(_tensor(t, what) for t in data.tensors))
    elif isinstance(data, tuple) and all(_is_of_arrays(part) for part in data):
        source = Tensors(_arrays_to_tensors(data, what))
    elif isinstance(data, tuple):
        raise DataError(
            f"{what}: a tuple is a pair (inputs, targets) of tensors or arrays, and this one holds "
            f"{', '.join(type(part).__name__ for part in data)}. Make arrays of them; a list is taken for samples."
        )
    elif isinstance(data, DataLoader):
        raise DataError(f"{what}: name the data set, not a DataLoader; batches are made as the recipe says.")
    elif isinstance(data, IterableDataset) or not hasattr(data, "__getitem__"):
        raise DataError(
            f"{what}: {type(data).__name__} can't be asked for sample number i, so batch number n would not be a "
            "function of the seed. Give a pair of tensors, a data set with __getitem__ and __len__, or an iterable "
            "of whole batches that has a len()."
        )
    elif not hasattr(data, "__len__"):
        raise DataError(f"{what}: {type(data).__name__} has no __len__, so an epoch has no length. Add it.")
    elif is_dataset(data):
        source = hub_source(data, what)
    else:
        source = Items(data, classes=_class_names(data))
    if len(source) == 0:
        raise DataError(f"{what}: there are no samples in it.")
    return source


def _take_apart(loader: DataLoader[Any], what: str) -> Given:
    batches = loader.batch_sampler
    source = as_source(loader.dataset, what)  # an iterable data set is refused here, for what it is
    if batches is None:
        raise DataError(f"{what}: this DataLoader makes no batches (batch_size=None). Give the data set itself.")
    sampler = getattr(batches, "sampler", None)  # of a batch_sampler given, the loader's own is not what draws
    shuffled = type(sampler) is RandomSampler
    plain = type(sampler) is SequentialSampler or (
        isinstance(sampler, RandomSampler) and not sampler.replacement and sampler.num_samples == len(source)
    )
    if type(batches) is not BatchSampler or not plain or (shuffled and type(sampler) is not RandomSampler):
        culprit = sampler if type(batches) is BatchSampler else batches
        raise DataError(
            f"{what}: this DataLoader draws by a {type(culprit).__name__}, and gradstep's order is a function of the "
            "seed and the epoch. Use shuffle=True or False without a sampler of your own, or give the data set "
            "itself. (An iterable of whole batches that is no DataLoader keeps its own order.)"
        )
    if isinstance(source, Items) or loader.collate_fn is not default_collate:
        source = Items(loader.dataset, loader.collate_fn, _class_names(loader.dataset), (), loader.worker_init_fn)
    order = "order, a function of the seed and the epoch" if shuffled else "process, in the order of the samples"
    return Given(
        source,
        batches.batch_size,
        shuffled,
        batches.drop_last,
        loader.num_workers,
        f"{what}: the DataLoader was taken apart; batches are drawn in gradstep's own {order}.",
    )


def _class_names(dataset: Any) -> tuple[str, ...] | None:
    names = getattr(dataset, "classes", None)
    return tuple(map(str, names)) if isinstance(names, (list, tuple)) else None


def _is_of_arrays(part: Any) -> bool:
    """Whether it is an array, or a nest of nothing but arrays."""
    if isinstance(part, (dict, tuple, list)) and part:
        return all(_is_of_arrays(each) for each in (part.values() if isinstance(part, dict) else part))
    return isinstance(part, (Tensor, np.ndarray))


def _arrays_to_tensors(data: Any, what: str) -> Any:
    """Arrays inside tuples, lists and dicts to tensors; anything else is left for the caller to judge."""
    if isinstance(data, (Tensor, np.ndarray)):
        return _tensor(data, what)
    if isinstance(data, dict):
        return {name: _arrays_to_tensors(value, what) for name, value in data.items()}
    if isinstance(data, (tuple, list)):
        values = [_arrays_to_tensors(value, what) for value in data]
        return type(data)(*values) if hasattr(data, "_fields") else type(data)(values)
    return data


def _tensor(array: Any, what: str) -> Tensor:
    if isinstance(array, Tensor):
        return array
    try:
        native = array.astype(array.dtype.newbyteorder("="), copy=False)
        # A copy where the array is read-only, because torch has no read-only tensors.
        return torch.from_numpy(np.require(native, requirements=["C", "W"]))
    except TypeError:
        raise DataError(f"{what}: an array of {array.dtype} can't become a tensor. Make it numbers.") from None
