"""How the weights of convolutions lie in memory: with their channels last, and as they were again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from gradstep.setup import Training


@contextmanager
def laid_out(model: nn.Module, word: str | None) -> Iterator[None]:
    """Inside, the weights of the model's convolutions lie as `word` says, where it says anything; then as before."""
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        if word is not None:
            put_channels_last([model], kept)
        yield
    finally:
        put_back(kept)


@torch.no_grad()
def put_channels_last(roots: Iterable[nn.Module], kept: list[tuple[Tensor, Tensor]]) -> None:
    """Gives each 4-D tensor memory with its channels last, and notes in `kept` what it had."""
    for root in roots:
        for tensor in images_of(root):
            own = tensor.data
            # Not contiguous(): of one channel both formats are the same to torch, but not to its kernels.
            last = torch.empty_like(own, memory_format=torch.channels_last).copy_(own)
            kept.append((tensor, own))
            tensor.data = last


@torch.no_grad()
def put_back(kept: list[tuple[Tensor, Tensor]]) -> None:
    """The same numbers in the memory that was theirs: a view that somebody has of it sees them."""
    while kept:
        tensor, own = kept[-1]
        if tensor.data_ptr() != own.data_ptr() and tensor.shape == own.shape:  # a model may have grown meanwhile
            tensor.data = own.copy_(tensor.data)
        kept.pop()


def images_of(model: nn.Module) -> list[Tensor]:
    """What may have channels: tensors of four dimensions."""
    return [tensor for tensor in dict.fromkeys((*model.parameters(), *model.buffers())) if tensor.dim() == 4]


class Given:
    """How the user's objects were when they were given: a checkpoint may lay them out as another process had them."""

    def __init__(self, model: nn.Module, groups: list[dict[str, Any]]) -> None:
        self._images = [(tensor, tensor.data) for tensor in images_of(model)]
        self._options = [
            (group, name, group[name]) for group in groups for name in ("fused", "foreach") if name in group
        ]

    def give_back(self, training: Training) -> None:
        """They are so again, with the numbers that they have now."""
        put_back(list(self._images))
        lay_out_slots(training)
        for group, name, was in self._options:
            group[name] = was


@torch.no_grad()
def lay_out_slots(training: Training) -> None:
    """What the optimizer keeps for a parameter lies as it does: a fused kernel goes through both in a row."""
    for parameter, slots in training.state.optimizer.state.items():
        for name, slot in slots.items() if isinstance(parameter, Tensor) and isinstance(slots, dict) else ():
            if isinstance(slot, Tensor) and slot.shape == parameter.shape and slot.stride() != parameter.stride():
                slots[name] = torch.empty_like(parameter, dtype=slot.dtype).copy_(slot)
