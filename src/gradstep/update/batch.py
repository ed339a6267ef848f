"""One batch on its way through a model in micro-batches: what is the same for every way to take it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradstep import tree
from gradstep.update.buffers import BatchBuffers
from gradstep.update.criterion import Criterion
from gradstep.update.keyed import KeyedDropout
from gradstep.update.norm import NormGroups
from gradstep.update.pieces import cut
from gradstep.update.replay import Streams
from gradstep.update.traits import Traits, unwarned

Leaves = list[Any]  # the flattened outputs of one micro-batch


@dataclass(slots=True)
class Batch:
    """A batch, how it is cut, and what has to be told where each micro-batch begins."""

    run: Callable[[Any], Any]  # inputs to outputs
    criterion: Criterion
    inputs: Any
    targets: Any
    samples: int
    sizes: Sequence[int]
    traits: Traits
    streams: Streams
    keyed: KeyedDropout | None
    norm: NormGroups | None
    buffers: BatchBuffers | None = None
    scale: float | Tensor = 1.0
    fold: Callable[[], None] = lambda: None  # after each backward

    def spans(self) -> Iterator[tuple[int, int]]:
        """`(first sample, number of samples)` of each micro-batch."""
        first = 0
        for size in self.sizes:
            yield first, size
            first += size

    def forward(self, first: int, number: int) -> Leaves:
        """The outputs of one micro-batch, flattened. Everything that a forward may read is as the batch found it."""
        if self.keyed is not None:
            self.keyed.piece(first, number)
        if self.buffers is not None:
            self.buffers.before()
        inputs = cut(self.inputs, self.samples, first, number)
        if self.traits.edits_inputs:
            inputs = tree.map_tensors(Tensor.clone, inputs)
        with unwarned():
            outputs = self.run(inputs)
        leaves = self.traits.layout.flatten(outputs)
        self.traits.layout.check(leaves, number)
        if self.buffers is not None:
            self.buffers.after()
        return leaves

    def backward(self, tensors: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
        """Sends gradients through the graph of the forward that was last. Accumulates into `.grad`."""
        if self.keyed is not None:
            self.keyed.recomputing = True  # activation checkpointing forwards again in here
        torch.autograd.backward(tensors, gradients)
        self.fold()


def detached(leaves: Leaves) -> Leaves:
    return [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def differentiable(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()
