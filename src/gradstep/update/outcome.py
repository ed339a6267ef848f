"""What comes of one batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(slots=True)
class Outcome:
    """What came of one batch. Everything is detached and still on the device: reading a number waits for it."""

    loss: Tensor  # 0-dimensional
    terms: dict[str, Tensor]  # the named terms of the loss, if the criterion has them
    outputs: Any
    targets: Any
    samples: int
    step: int | None = None  # the number of steps done when this one was
    units: dict[str, Tensor] = field(default_factory=dict)  # what the terms that are ratios were divided by
    rates: tuple[Any, ...] = ()  # the learning rates that the optimizer made the step with, one per group
    spoiled: Tensor | None = None  # above 0 where a gradient is not finite; read when the loss is
    left_out: bool = False  # its loss or gradient was no number: the step changed nothing
