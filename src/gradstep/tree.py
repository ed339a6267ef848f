"""Nested batches: tensors inside dicts, lists and tuples, through torch's own pytree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree  # the private name is the only one torch gives it


def tensors(tree: Any) -> list[Tensor]:
    """The tensors of a nested batch, in order."""
    if isinstance(tree, Tensor):  # as most batches' inputs are: the walk takes ten times as long
        return [tree]
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """The same nest with `function` applied to every tensor; other leaves stay as they are."""
    if isinstance(tree, Tensor):
        return function(tree)
    if type(tree) is tuple:  # as most batches are
        return tuple([map_tensors(function, part) for part in tree])
    return pytree.tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, tree)


def to_device(tree: Any, device: torch.device) -> Any:
    """The same nest on `device`. Copies from pinned memory do not wait."""
    return map_tensors(lambda tensor: tensor.to(device, non_blocking=True), tree)


def detach(tree: Any) -> Any:
    """The same nest cut off from the graph."""
    if type(tree) is Tensor:  # as most are: a walk takes twice as long
        return tree.detach()
    return map_tensors(Tensor.detach, tree)


def samples(tree: Any) -> int | None:
    """How many samples a nested batch holds: the first dimension of its first tensor that has one."""
    return next((len(tensor) for tensor in tensors(tree) if tensor.dim() > 0), None)


def concatenate(trees: Sequence[Any]) -> Any:
    """Joins batches of one structure along their first dimension."""
    flat = [pytree.tree_flatten(tree) for tree in trees]
    leaves = [torch.cat(column) for column in zip(*(leaves for leaves, _ in flat), strict=True)]
    return pytree.tree_unflatten(leaves, flat[0][1])


def describe(tree: Any) -> str:
    """Shapes and dtypes for people: `64×1×32×32 float32`, nested as the batch is."""
    if isinstance(tree, Tensor):
        shape = "×".join(str(size) for size in tree.shape) or "scalar"
        return f"{shape} {str(tree.dtype).removeprefix('torch.')}"
    if isinstance(tree, dict):
        return "{" + ", ".join(f"{name}: {describe(value)}" for name, value in tree.items()) + "}"
    if isinstance(tree, (list, tuple)):
        return "(" + ", ".join(describe(value) for value in tree) + ")"
    return type(tree).__name__
