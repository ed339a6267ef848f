"""A batch cut into micro-batches, and their outputs joined again as the whole batch's."""

from __future__ import annotations

import copy
from collections import UserDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gradstep import tree
from gradstep.errors import ModelError, RecipeError

Follows = tuple[int, int]  # (the dimension that follows the samples, how many rows each sample has there)


def sizes(samples: int, micro_batch: int | None, group: int | None = None) -> list[int]:
    """The sizes of the micro-batches: as few as can be, as equal as can be, each whole groups but for the last.

    Sizes that differ by one at most mean two shapes at most, for whatever is compiled or tuned for a shape.
    """
    if micro_batch is None or micro_batch >= samples:
        return [samples]
    unit = group or 1
    if micro_batch % unit:
        raise RecipeError(
            f"micro_batch: {micro_batch} is not a multiple of stat_group {unit}, and a group's statistics need all of "
            f"its samples at once. Take {max(micro_batch // unit, 1) * unit} or {(micro_batch // unit + 1) * unit}."
        )
    units = -(-samples // unit)
    pieces = -(-units // (micro_batch // unit))
    few, more = divmod(units, pieces)
    cut = [(few + (place < more)) * unit for place in range(pieces)]
    cut[-1] -= units * unit - samples  # the last group may be ragged
    return cut


def count(inputs: Any, targets: Any) -> int:
    """The samples of a batch: the first dimension of its first tensor, or the length of its first list of other
    things."""
    if type(inputs) is Tensor and inputs.dim() and inputs.shape[0]:
        return inputs.shape[0]
    inputs, targets = (each.data if isinstance(each, UserDict) else each for each in (inputs, targets))
    return tree.samples(inputs) or _length(inputs) or tree.samples(targets) or _length(targets) or 1


def _length(node: Any) -> int | None:
    if isinstance(node, dict):
        return next((length for value in node.values() if (length := _length(value))), None)
    return len(node) if isinstance(node, list) and not tree.tensors(node) else None


def cut(node: Any, samples: int, first: int, number: int) -> Any:
    """Samples `first` to `first + number` of a nested batch.

    What is cut are tensors whose first dimension is the number of samples, and lists of so many things that are no
    tensors; anything else belongs to the batch as a whole and stays.
    """
    if isinstance(node, Tensor) and node.dim() and len(node) == samples:
        return node[first : first + number]
    return _taken(node, samples, lambda each: each[first : first + number])


def pick(node: Any, samples: int, numbers: Sequence[int]) -> Any:
    """A copy of the samples with these numbers, in this order; what belongs to the whole batch is copied too."""
    part = _taken(
        node,
        samples,
        lambda each: (
            torch.stack([each[number] for number in numbers])
            if isinstance(each, Tensor)
            else [each[number] for number in numbers]
        ),
    )
    return tree.map_tensors(Tensor.clone, part)


def _taken(node: Any, samples: int, take: Callable[[Any], Any]) -> Any:
    if isinstance(node, Tensor):
        return take(node) if node.dim() and len(node) == samples else node
    if isinstance(node, list) and len(node) == samples and not tree.tensors(node):
        return take(node)
    if isinstance(node, UserDict):  # as tokenizers give it
        part = copy.copy(node)
        part.data = _taken(node.data, samples, take)
        return part
    children, spec = pytree.tree_flatten(node, is_leaf=lambda each: each is not node)
    if spec.is_leaf():
        return node
    return pytree.tree_unflatten([_taken(child, samples, take) for child in children], spec)


def pattern(node: Any, samples: int) -> tuple[bool, ...]:
    """Which leaves of a nested batch are cut, in their order."""
    if isinstance(node, UserDict):
        return pattern(node.data, samples)
    if isinstance(node, list) and not tree.tensors(node):
        return (len(node) == samples,)
    children, spec = pytree.tree_flatten(node, is_leaf=lambda each: each is not node)
    if spec.is_leaf():
        return (isinstance(node, Tensor) and node.dim() > 0 and len(node) == samples,)
    return tuple(each for child in children for each in pattern(child, samples))


def follows(one: Sequence[int], samples: int, other: Sequence[int], others: int) -> Follows | None:
    """Which dimension of a shape is the samples', by how it changed with their number; None if no dimension did.

    ValueError if that can't be told: two dimensions changed, or one did and not in proportion.
    """
    if len(one) != len(other):
        raise ValueError
    changed = [place for place, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]
    if not changed:
        return None
    place = changed[0]
    rows = one[place] // samples
    if len(changed) > 1 or rows == 0 or one[place] != rows * samples or other[place] != rows * others:
        raise ValueError
    return place, rows


@dataclass(frozen=True, slots=True)
class Layout:
    """How a model's outputs lie: for each leaf, the dimension that is the samples'; None for one without samples."""

    leaves: tuple[Follows | None, ...]
    spec: Any

    @classmethod
    def simple_for(cls, outputs: Any, samples: int) -> Layout:
        """Where there is but one number of samples to look at: a first dimension that is theirs."""
        leaves, spec = pytree.tree_flatten(outputs)
        first = [leaf.shape[0] if isinstance(leaf, Tensor) and leaf.dim() else 0 for leaf in leaves]
        return cls(tuple((0, size // samples) if size and size % samples == 0 else None for size in first), spec)

    @classmethod
    def learn(cls, one: Any, samples: int, other: Any, others: int) -> Layout:
        """From the outputs for two numbers of samples. ModelError shows the shapes of what can't be told."""
        (mine, spec), (yours, same) = pytree.tree_flatten(one), pytree.tree_flatten(other)
        if spec != same:
            raise ModelError(
                f"the model's outputs are nested otherwise for {samples} samples than for {others}: "
                f"{tree.describe(one)} and {tree.describe(other)}."
            )
        for leaf in mine:
            if not isinstance(leaf, (Tensor, str, bytes, int, float, complex, type(None))):
                raise ModelError(
                    f"the model's outputs hold a {type(leaf).__name__}, which can't be put together from "
                    "micro-batches. Give tensors in dicts, lists or tuples: by forward=lambda model, inputs: ..."
                )
        found: list[Follows | None] = []
        for a, b in zip(mine, yours, strict=True):
            try:
                found.append(follows(a.shape, samples, b.shape, others) if isinstance(a, Tensor) else None)
            except ValueError:
                raise ModelError(
                    f"which dimension of the model's outputs is the samples' can't be told: {tree.describe(one)} for "
                    f"{samples} samples, {tree.describe(other)} for {others}. Micro-batches need outputs with a row, "
                    "or equally many, for each sample: bring them into that shape by forward=."
                ) from None
        return cls(tuple(found), spec)

    def flatten(self, outputs: Any) -> list[Any]:
        """The leaves of outputs that are nested as they were. ModelError for others."""
        if isinstance(outputs, Tensor) and self.spec.is_leaf():
            return [outputs]
        leaves, spec = pytree.tree_flatten(outputs)
        if spec != self.spec:
            raise ModelError(f"the model's outputs are nested otherwise than at first: now {tree.describe(outputs)}.")
        return leaves

    def join(self, pieces: Sequence[Sequence[Any]]) -> Any:
        """The outputs of the batch from the leaves of its pieces. A leaf without samples must be the same in all."""
        joined = []
        for place, column in zip(self.leaves, zip(*pieces, strict=True), strict=True):
            if place is None:
                joined.append(column[-1])
                continue
            try:
                joined.append(torch.cat(column, place[0]))
            except RuntimeError:
                raise ModelError(
                    "the model's outputs have other shapes in each micro-batch, such as "
                    f"{', '.join(dict.fromkeys(tree.describe(each) for each in column))}: inputs that are padded to "
                    "the longest of a micro-batch, perhaps. Pad the whole batch before."
                ) from None
        return pytree.tree_unflatten(joined, self.spec)

    def check(self, leaves: Sequence[Any], samples: int) -> None:
        """ModelError where a piece's outputs have not the rows that its samples ask for."""
        for place, leaf in zip(self.leaves, leaves, strict=True):
            if place is not None and (leaf.dim() <= place[0] or leaf.shape[place[0]] != place[1] * samples):
                raise ModelError(
                    f"the model's outputs do not have their rows in dimension {place[0]} for {samples} samples, where "
                    f"they had {place[1]} for each: their shape is {list(leaf.shape)}."
                )

    def rows(self, leaf: Tensor, place: Follows, first: int, number: int) -> Tensor:
        """The rows of a joined leaf that belong to `number` samples from `first` on."""
        dimension, rows = place
        return leaf.narrow(dimension, first * rows, number * rows)


def same_value(one: Any, other: Any) -> bool:
    """Whether two leaves without samples are the same. Waits for the device."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return bool(one == other)
