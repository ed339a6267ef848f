"""A graph of kernels for the CPU, which keeps none: what a device's graph does, with torch's dispatcher for a driver.

Like a device's: capturing runs nothing, reading a number of a tensor is refused, every kernel keeps the addresses it
was given, and numbers that Python gave it; draws go on from where the device's stream is when it is replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

_WAITS = (
    torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default, torch.ops.aten.equal.default,
    torch.ops.aten.nonzero.default,
)  # fmt: skip


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []
        self.own: dict[int, torch.UntypedStorage] = {}  # the memory that was made inside
        self.before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _WAITS:
            raise RuntimeError(f"{func} waits for the device, which is not permitted while a graph is captured")
        for tensor in _tensors((args, kwargs)):  # all of them: batch_norm does not say that it writes into two
            self._keep(tensor)
        given = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs))}
        outputs = func(*args, **kwargs)
        made = _tensors(outputs)
        for memory in (each.untyped_storage() for each in made):
            if memory.data_ptr() not in given and memory.data_ptr() not in self.before:
                self.own[memory.data_ptr()] = memory
        self.kernels.append((func, args, kwargs, made))
        return outputs

    def _keep(self, tensor: Tensor) -> None:
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in self.own and memory.data_ptr() not in self.before:
            self.before[memory.data_ptr()] = memory, memory.clone()


class Recorder:
    """What `gradstep.graphs` asks of a device, for the CPU."""

    made = 0

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @contextmanager
    def aside(self) -> Iterator[list[str]]:
        yield []

    def capture(self, body: Callable[[], Any]) -> Any:
        Recorder.made += 1
        stream, recording = torch.default_generator.get_state(), _Recording()
        try:
            with recording:
                outcome = body()
        finally:  # as if nothing had been run: what was made inside holds nothing before a replay fills it
            for memory, copy in recording.before.values():
                memory.copy_(copy)
            torch.default_generator.set_state(stream)
            for memory in recording.own.values():
                memory.fill_(255)  # no number, where it is read as one

        def replay() -> None:
            with torch.no_grad():
                for func, args, kwargs, made in recording.kernels:
                    for own, new in zip(made, _tensors(func(*args, **kwargs)), strict=True):
                        if own.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                            own.copy_(new)

        return outcome, replay
