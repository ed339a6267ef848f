"""Every random stream that a forward may draw from, kept and put back, so that a second forward is the first again."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Restore = Callable[[], None]


class Streams:
    """torch's streams on the CPU and on `devices`, Python's, NumPy's, and the generators found on modules."""

    def __init__(self, modules: Iterable[nn.Module], devices: Iterable[torch.device]) -> None:
        self._devices = [device for device in devices if device.type != "cpu"]
        self._own = [value for module in modules for value in vars(module).values() if isinstance(value, _GENERATORS)]

    def keep(self) -> Restore:
        """Remembers where the streams are; calling what it returns puts them back there. Waits for no device.

        A generator's state lies on the host, that of CUDA too: reading it is a copy of 16 bytes.
        """
        restores = [_keep_python(), _keep_numpy(), _keep_torch(torch.default_generator)]
        for device in self._devices:
            if device.type == "cuda":
                restores.append(_keep_torch(torch.cuda.default_generators[device.index or 0]))
            elif device.type == "mps":
                restores.append(_keep_mps())
        for generator in self._own:
            restores.append(next(keep for kind, keep in _KEEP.items() if isinstance(generator, kind))(generator))

        def restore() -> None:
            for each in restores:
                each()

        return restore

    def positions(self) -> dict[str, Any]:
        """Where each stream is, by name: what two of these differ in was drawn from in between."""
        found: dict[str, Any] = {
            "Python's random": random.getstate(),
            "NumPy's random": repr(np.random.get_state(legacy=False)),
            "torch": bytes(torch.default_generator.get_state().numpy()),
        }
        for device in self._devices:
            if device.type == "cuda":
                found[str(device)] = bytes(torch.cuda.default_generators[device.index or 0].get_state().numpy())
        for number, generator in enumerate(self._own):
            found[f"generator {number} on a module"] = _position(generator)
        return found

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Whatever is drawn inside, the streams are afterwards where they were."""
        restore = self.keep()
        try:
            yield
        finally:
            restore()


def _position(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return bytes(generator.get_state().numpy())
    if isinstance(generator, random.Random):
        return generator.getstate()
    return repr(generator.bit_generator.state if isinstance(generator, np.random.Generator) else generator.get_state())


def devices_of(*trees: Iterable[Tensor]) -> set[torch.device]:
    """The devices of these tensors, so that a model on a GPU that is fed from the CPU is replayed there too."""
    return {tensor.device for tensors in trees for tensor in tensors}


def _keep_python(generator: Any = random) -> Restore:
    state = generator.getstate()
    return lambda: generator.setstate(state)


def _keep_numpy() -> Restore:
    state = np.random.get_state(legacy=False)
    return lambda: np.random.set_state(state)


def _keep_torch(generator: torch.Generator) -> Restore:
    state = generator.get_state()

    def restore() -> None:
        generator.set_state(state)

    return restore


def _keep_mps() -> Restore:
    state = torch.mps.get_rng_state()
    return lambda: torch.mps.set_rng_state(state)


def _keep_bits(generator: np.random.Generator) -> Restore:
    state = generator.bit_generator.state

    def restore() -> None:
        generator.bit_generator.state = state

    return restore


def _keep_legacy(generator: np.random.RandomState) -> Restore:
    state = generator.get_state(legacy=False)
    return lambda: generator.set_state(state)


_KEEP: dict[type, Callable[[Any], Restore]] = {
    torch.Generator: _keep_torch,
    random.Random: _keep_python,
    np.random.Generator: _keep_bits,
    np.random.RandomState: _keep_legacy,
}
_GENERATORS = tuple(_KEEP)
