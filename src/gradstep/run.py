"""A run as it is handed back: the trained model, what was recorded, and the weights that were chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from gradstep.data import Feed, Transform, adapt, as_source
from gradstep.evaluation import choose_device, outputs_of
from gradstep.record.journal import Row
from gradstep.state import Tensors, TrainState, load_module, module_tensors


@dataclass(frozen=True, slots=True)
class Best:
    """The best evaluation: `metric` is its full name, such as `valid/accuracy`."""

    metric: str
    value: float
    step: int


@dataclass(slots=True)
class Run:
    """What `fit` returns.

    `model` is the user's own and holds the weights of the last step; `chosen()` puts the best ones into it for as
    long as a `with` lasts, and `predict` uses those. `stopped` says why the run ended before its last step, if so.
    """

    model: nn.Module
    history: list[Row]
    best: Best | None
    state: TrainState | None
    path: Path | None
    stopped: str | None = None
    classes: tuple[str, ...] | None = None
    transforms: tuple[Transform, ...] = ()
    paused: str | None = None
    unpack: Callable[[Any], tuple[Any, Any]] | None = None
    forward: Callable[[nn.Module, Any], Any] | None = None
    chosen_weights: Tensors = field(default_factory=dict, repr=False)

    @contextmanager
    def chosen(self) -> Iterator[nn.Module]:
        """The model with the weights to use: the best by the monitored metric, else the last."""
        if not self.chosen_weights:
            yield self.model
            return
        last = {name: value.clone() for name, value in module_tensors(self.model).items()}
        load_module(self.model, self.chosen_weights)
        try:
            yield self.model
        finally:
            load_module(self.model, last)


def predict(run: Run, data: Any, *, batch_size: int = 256, device: str = "auto", workers: int = 0) -> Any:
    """The outputs of a run's chosen weights for each sample of `data`, in order, on the CPU.

    `data` is one tensor of inputs, or samples by number as `fit` trains on them, targets included. The
    transforms that the run was trained with, as they were measured then, are applied to data that has none of its own.
    """
    bare = not isinstance(data, tuple) and hasattr(data, "shape")
    source = as_source((data, data), "data") if bare else adapt(data, "data").source
    if run.transforms and not source.transforms:
        source = source.transformed(run.transforms)
    place = choose_device(device, run.model)
    run.model.to(place)
    feed = Feed(source, batch_size, shuffle=False, workers=workers, device=place, what="data")
    with run.chosen() as model:
        return outputs_of(model, feed, unpack=None if bare else run.unpack, forward=run.forward)
