"""Keras on its torch backend: `compile` and `fit`, its own losses and optimizers, the net in a TorchModuleWrapper."""

from __future__ import annotations

from typing import Any

import keras
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.speed.batches import Resident, loader
from benchmarks.speed.clock import Clock
from benchmarks.speed.problems import Data, Job

ENDLESS = 10**6  # epochs


class Net(keras.Model):
    """A torch model as a Keras one; `seen` gathers the losses while there is somebody to see them."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = keras.layers.TorchModuleWrapper(inner)
        self.seen: Any = None

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        return self.inner(inputs, training=training)

    def compute_loss(self, *given: Any, **named: Any) -> Tensor:
        loss = super().compute_loss(*given, **named)
        if self.seen is not None:
            self.seen.losses.append(float(loss.detach()))
        return loss


class _Losses:
    def __init__(self, model: Net) -> None:
        self._model = model

    def begin(self) -> None:
        self.losses: list[float] = []
        self._model.seen = self

    def end(self) -> list[float]:
        self._model.seen = None
        return self.losses


class _Whole(IterableDataset[tuple[Tensor, Tensor]]):
    """Whole batches for a DataLoader that makes none of its own."""

    def __init__(self, batches: Resident) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Any:
        return iter(self._batches)


def train(job: Job, data: Data, clock: Clock) -> None:
    inner, settings = job.model(), job.what.settings
    if job.what.criterion is nn.NLLLoss:
        inner.classifier = inner.classifier[:-1]  # type: ignore[index]  # its loss takes logits: no softmax twice
    model = Net(inner)
    kind = keras.optimizers.Adam if job.what.optimizer is torch.optim.Adam else keras.optimizers.SGD
    rate = {"learning_rate": job.options.get("rate", settings["lr"])}
    more = {"epsilon": 1e-8} if kind is keras.optimizers.Adam else {"momentum": settings.get("momentum", 0.0)}
    squares = job.what.criterion is nn.MSELoss
    loss = keras.losses.MeanSquaredError() if squares else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(kind(**rate, **more), loss)
    clock.witness = _Losses(model)
    if job.kind == "data":
        batches = loader(data, clock, look=True)
    else:
        batches = DataLoader(_Whole(Resident(data, clock, look=True)), batch_size=None)
    model.fit(batches, epochs=ENDLESS, verbose=0)
