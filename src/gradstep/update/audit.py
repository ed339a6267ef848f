"""The replay audit: the second forward of a micro-batch must be its first again, or its gradient is another's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradstep import tree
from gradstep.errors import ModelError
from gradstep.update.batch import Batch, Leaves
from gradstep.update.near import away, near

_MOST = 4096  # values of a leaf that are compared: a stride over more


class Audit:
    """Compares as the pass goes on, on the device; `conclude` waits for it, once for a batch."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._versions = [_version(tensor) for tensor in tree.tensors(batch.inputs)]
        self._differ: list[Tensor] = []

    def compare(self, place: int, second: Leaves, first: Leaves) -> None:
        differs = [_differs(b, a) for a, b in zip(first, second, strict=True) if isinstance(a, Tensor) and a.numel()]
        if not differs:
            return
        one = torch.stack([each.to(differs[0].device) for each in differs]).any()
        self._differ.append(one)
        if one.device.type == "cpu" and bool(one):
            self._stop(place)

    def conclude(self) -> None:
        if self._differ and self._differ[0].device.type != "cpu":
            differ = torch.stack(self._differ).tolist()
            if any(differ):
                self._stop(differ.index(True))

    def _stop(self, place: int) -> None:
        number = len(self._batch.sizes)
        raise ModelError(
            f"the second forward of micro-batch {place + 1} of {number} gave other outputs than its first, so its "
            f"gradient would be wrong. {_cause(self._batch, self._versions)}"
        )


def _differs(second: Tensor, first: Tensor) -> Tensor:
    """Whether two leaves differ, 0-dimensional, on their device."""
    step = max(first.numel() // _MOST, 1)
    a, b = first.reshape(-1)[::step], second.detach().reshape(-1)[::step]
    return away(a, b) > near(a)


def _cause(batch: Batch, versions: list[int | None]) -> str:
    """What is likely behind it, found by trying."""
    if versions != [_version(tensor) for tensor in tree.tensors(batch.inputs)]:
        return "The model edits its inputs in place: let it clone them first."
    number = batch.sizes[0]
    with torch.no_grad(), batch.streams.kept():
        restore = batch.streams.keep()
        outputs: list[Any] = []
        for _ in range(2):
            restore()
            outputs.append(batch.forward(0, number))
    one, other = outputs
    if any(bool(_differs(b, a)) for a, b in zip(one, other, strict=True) if isinstance(a, Tensor) and a.numel()):
        return (
            "Two forwards in a row differ too: the model draws from a random source that can't be put back (the clock, "
            "os.urandom, a generator that is no attribute of a module), or counts its calls in an attribute. Draw from "
            "torch's streams, or from a torch.Generator kept on the module; and count in a buffer."
        )
    return "Something outside of the model and its inputs changed between the two, such as a weight edited by a hook."


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version
