"""The whole batch in one forward and one backward: what `loss.backward()` does, and the measure of every other way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradstep import tree
from gradstep.errors import DataError
from gradstep.update.criterion import Criterion, read_loss, require_graph


@dataclass(slots=True)
class Outcome:
    """What came of one batch. Everything is detached and still on the device: reading a number waits for it."""

    loss: Tensor  # 0-dimensional
    terms: dict[str, Tensor]  # the named terms of the loss, if the criterion has them
    outputs: Any
    targets: Any
    samples: int
    step: int | None = None  # the number of steps done when this one was


class Update:
    """Fills `.grad` with the gradient of one batch.

    `unpack(batch)` gives `(inputs, targets)` where a batch is no such pair; `forward(model, inputs)` gives the
    outputs where that is not `model(inputs)`. The criterion always sees `(outputs, targets)`.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion,
        *,
        unpack: Callable[[Any], tuple[Any, Any]] | None = None,
        forward: Callable[[nn.Module, Any], Any] | None = None,
    ) -> None:
        self.model, self.criterion, self.forward = model, criterion, forward
        self.unpack = unpack or pair

    def backward(self, inputs: Any, targets: Any, *, step: int | None = None, scale: float = 1.0) -> Outcome:
        """Adds `scale` times the batch's gradient to `.grad` and returns the outcome, with the loss unscaled.

        Raises ModelError when the criterion returns something that is no loss, or that has no graph.
        """
        outputs = self.model(inputs) if self.forward is None else self.forward(self.model, inputs)
        samples = tree.samples(inputs) or 1
        loss, terms = read_loss(self.criterion(outputs, targets), samples)
        require_graph(loss, terms)
        torch.autograd.backward(loss if scale == 1.0 else loss * scale)
        detached = {name: term.detach() for name, term in terms.items()}
        return Outcome(loss.detach(), detached, tree.detach(outputs), targets, samples, step)


def pair(batch: Any) -> tuple[Any, Any]:
    """A batch that is a pair `(inputs, targets)`, as it is. DataError says what to give for any other."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    raise DataError(
        f"A batch is {tree.describe(batch)}, not a pair (inputs, targets). "
        "Say how to take it apart: unpack=lambda batch: (inputs, targets)."
    )
