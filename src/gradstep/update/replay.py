"""Every random stream that a forward may draw from, kept and put back, so that a second forward is the first again."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradstep.keys import keep_streams, stream_positions

Restore = Callable[[], None]
_GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)


class Streams:
    """torch's streams on the CPU and on `devices`, Python's, NumPy's, and the generators found on modules."""

    def __init__(self, modules: Iterable[nn.Module], devices: Iterable[torch.device]) -> None:
        self._devices = list(devices)
        self._own = [value for module in modules for value in vars(module).values() if isinstance(value, _GENERATORS)]

    def keep(self) -> Restore:
        """Remembers where the streams are; calling what it returns puts them back there. Waits for no device."""
        restores = [keep_streams(self._devices), *(_kept(generator) for generator in self._own)]

        def restore() -> None:
            for each in restores:
                each()

        return restore

    def positions(self) -> dict[str, Any]:
        """Where each stream is, by name: what two of these differ in was drawn from in between."""
        own = {f"generator {number} on a module": repr(_state(each)) for number, each in enumerate(self._own)}
        return {**stream_positions(self._devices), **own}

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Whatever is drawn inside, the streams are afterwards where they were."""
        restore = self.keep()
        try:
            yield
        finally:
            restore()


def devices_of(*trees: Iterable[Tensor]) -> set[torch.device]:
    """The devices of these tensors, so that a model on a GPU that is fed from the CPU is replayed there too."""
    return {tensor.device for tensors in trees for tensor in tensors}


def _state(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return bytes(generator.get_state().numpy())
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state()


def _kept(generator: Any) -> Restore:
    """Puts one generator back to where it is now."""
    if isinstance(generator, np.random.Generator):
        state = generator.bit_generator.state
        return lambda: setattr(generator.bit_generator, "state", state)
    if isinstance(generator, random.Random):
        python = generator.getstate()
        return lambda: generator.setstate(python)
    own = generator.get_state()  # torch's, and NumPy's of old
    return lambda: generator.set_state(own) and None
