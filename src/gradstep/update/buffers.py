"""Buffers that a forward changes: every micro-batch sees them as the batch found them, and must leave the same behind.

Spectral norm's power iteration reads the weights alone, so each micro-batch makes of its vectors what one pass would
make, and they are committed once. A codebook, a queue or an observer takes in the samples: there is no telling what one
pass would have left, so it is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gradstep.errors import ModelError

Place = tuple[nn.Module, str]


def places(model: nn.Module, without: Iterable[str] = ()) -> dict[str, Place]:
    """Where each buffer of a model lies, by name; `without` are names of modules to leave out."""
    left_out = set(without)
    return {
        f"{name}.{buffer}" if name else buffer: (module, buffer)
        for name, module in model.named_modules()
        if name not in left_out
        for buffer, value in module._buffers.items()
        if value is not None and not is_lazy(value)
    }


def value(place: Place) -> Tensor:
    tensor = place[0]._buffers[place[1]]
    assert tensor is not None
    return tensor


class Kept:
    """Buffers as they are now, and which of them have changed since: by their version counters, so nothing is read."""

    def __init__(self, those: dict[str, Place]) -> None:
        self._those = {name: (place, value(place), value(place)._version) for name, place in those.items()}
        self._copies = {name: tensor.clone() for name, (_, tensor, _) in self._those.items()}

    def changed(self) -> list[str]:
        return [
            name
            for name, (place, tensor, version) in self._those.items()
            if value(place) is not tensor or tensor._version != version
        ]

    def put_back(self) -> None:
        with torch.no_grad():
            for place, tensor, _ in self._those.values():
                place[0]._buffers[place[1]] = tensor
            for name in self.changed():
                self._those[name][1].copy_(self._copies[name])


class BatchBuffers:
    """The buffers that a model's forward changes, over the micro-batches of one batch."""

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        found = places(model)
        self._kept = Kept({name: found[name] for name in names})
        self._those = {name: found[name] for name in names}
        self._left: dict[str, Tensor] | None = None
        self._same: Tensor | None = None

    def before(self) -> None:
        """Each micro-batch's forward starts from what the batch found."""
        if self._left is not None:
            self._kept.put_back()

    def after(self) -> None:
        """What a micro-batch left behind, held against what the first one left. Stays on the device."""
        if self._left is None:
            self._left = {name: value(place).clone() for name, place in self._those.items()}
            return
        for name, place in self._those.items():
            near = torch.isclose(value(place), self._left[name], rtol=1e-5, atol=1e-8, equal_nan=True).all()
            self._same = near if self._same is None else self._same & near

    def commit(self) -> None:
        """Leaves what the first micro-batch left. ModelError where another left something else: waits for the
        device."""
        if self._same is not None and not bool(self._same):
            self._kept.put_back()
            raise ModelError(
                f"the model's forward changes {_named(self._those)} by what is in a micro-batch, so one pass over the "
                "batch would leave something else. Leave micro_batch out, or keep that state out of the forward."
            )
        with torch.no_grad():
            for name, place in self._those.items():
                if self._left is not None:
                    value(place).copy_(self._left[name])

    def roll_back(self) -> None:
        self._kept.put_back()


def _named(those: Iterable[str]) -> str:
    return "the buffer " + ", ".join(f"'{name}'" for name in those)
