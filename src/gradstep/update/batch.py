"""One batch on its way through a model in micro-batches: what is the same for every way to take it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradstep import tree
from gradstep.errors import ModelError
from gradstep.update.buffers import BatchBuffers
from gradstep.update.criterion import Criterion
from gradstep.update.keyed import KeyedDropout
from gradstep.update.looks import unwarned
from gradstep.update.norm import NormGroups
from gradstep.update.pieces import cut, same_value
from gradstep.update.replay import Streams
from gradstep.update.traits import Traits

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
        if self.norm is not None:
            self.norm.piece(number)
        if self.buffers is not None:
            self.buffers.before()
        inputs = cut(self.inputs, self.samples, first, number)
        if self.traits.edits_inputs:
            inputs = tree.map_tensors(Tensor.clone, inputs)
        if torch.is_grad_enabled():
            outputs = self.run(inputs)
        else:
            with unwarned():
                outputs = self.run(inputs)
        leaves = self.traits.layout.flatten(outputs)
        self.traits.layout.check(leaves, number)
        if self.buffers is not None:
            self.buffers.after()
        return leaves

    def judged(self, outputs: Any) -> Any:
        """What the criterion says of the whole batch. Dropout in it is the batch's, as it is in one pass."""
        if self.keyed is None:
            return self.criterion(outputs, self.targets)
        first, count = self.keyed.place
        self.keyed.at(0, self.samples)
        value = self.criterion(outputs, self.targets)
        self.keyed.at(first, count)
        return value

    def backward(self, tensors: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
        """Sends gradients through the graph of the forward that was last. Accumulates into `.grad`."""
        if self.keyed is not None:
            self.keyed.recomputing = True  # activation checkpointing forwards again in here
        torch.autograd.backward(tensors, gradients)
        self.fold()


def detached(leaves: Leaves) -> Leaves:
    return [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def differentiable(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())


def narrow(tensor: Tensor) -> bool:
    """Whether it is of 16 bits."""
    return tensor.dtype in (torch.bfloat16, torch.float16)


def hold_shared(batch: Batch, pieces: list[Leaves]) -> None:
    """An output without samples, such as a learned temperature, must be the same in every micro-batch: waits for it."""
    for place, at in enumerate(batch.traits.layout.leaves):
        if at is None and any(not same_value(each[place], pieces[0][place]) for each in pieces[1:]):
            raise ModelError(
                "an output of the model has no rows for the samples, and another value in each micro-batch: a mean "
                "over its samples, perhaps. Give one value per sample, and take the mean in the criterion."
            )
