"""skorch's NeuralNet; its FAQ's recipe where gradients are accumulated."""

from __future__ import annotations

import json
from typing import Any

import torch
from skorch import NeuralNet
from skorch.callbacks import Checkpoint, LoadInitState, LRScheduler
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.exactness.problem import Job, Task


class GradAccNet(NeuralNet):
    """The FAQ's recipe."""

    def __init__(self, *args: Any, acc_steps: int = 2, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.acc_steps = acc_steps

    def get_loss(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return super().get_loss(*args, **kwargs) / self.acc_steps

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        batches = len(self.history[-1, "batches"])
        step = self.train_step_single(batch, **fit_params)
        if batches % self.acc_steps == 0:
            self.optimizer_.step()
            self.optimizer_.zero_grad()
        return step


def net(kind: type[NeuralNet], job: Job | Task, batch: int, epochs: int, rate: float, **options: Any) -> NeuralNet:
    return kind(
        job.model, criterion=type(job.criterion), lr=rate, batch_size=batch, max_epochs=epochs, train_split=None,
        optimizer=lambda groups, **_: job.optimizer([p for group in groups for p in group["params"]]),
        callbacks__print_log=None, **options,
    )  # fmt: skip


def accumulate(job: Job) -> None:
    callbacks = []
    if job.schedule is not None:
        callbacks.append(LRScheduler(policy=LambdaLR, lr_lambda=job.schedule, step_every="batch"))
    made = net(GradAccNet, job, job.micro, 1, job.settings["lr"], callbacks=callbacks, acc_steps=job.window)
    made.fit(job.inputs, job.targets)


def train(task: Task) -> None:
    torch.manual_seed(1)
    saver = Checkpoint(dirname=str(task.folder / "checkpoints"), monitor=None)
    history = task.folder / "checkpoints" / "history.json"
    done = len(json.loads(history.read_text())) if history.exists() else 0
    made = net(
        NeuralNet, task, task.batch, task.epochs - done, task.rate, iterator_train__shuffle=task.shuffle,
        callbacks=[saver, LoadInitState(saver)],
    )  # fmt: skip
    made.fit(task.inputs, task.targets)
