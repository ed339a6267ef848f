"""Keras on its torch backend; the same torch model inside its TorchModuleWrapper."""

from __future__ import annotations

from typing import Any

import keras
from torch import Tensor, nn

from benchmarks.exactness.problem import Job, Task, Witness

keras.config.set_floatx("float64")


class Net(keras.Model):
    """A torch model as a Keras one, classes last."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = keras.layers.TorchModuleWrapper(inner)

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        outputs = self.inner(inputs, training=training)
        return outputs.transpose(1, 2) if outputs.ndim == 3 else outputs


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """A function of the step as Keras wants it."""

    def __init__(self, base: float, schedule: Any) -> None:
        self.base, self.schedule = base, schedule

    def __call__(self, step: Any) -> float:
        return self.base * self.schedule(int(step))


def watched(optimizer: keras.optimizers.Optimizer, witness: Witness) -> keras.optimizers.Optimizer:
    """Lets the witness see every update that is applied."""
    update = optimizer._backend_update_step

    def seen(grads: Any, variables: Any, rate: Any) -> None:
        witness.before(float(rate))
        update(grads, variables, rate)
        witness.after()

    optimizer._backend_update_step = seen
    return optimizer


def loss(job: Job | Task) -> keras.losses.Loss:
    if isinstance(job.criterion, nn.L1Loss):
        return keras.losses.MeanAbsoluteError()
    ignored = -100 if job.targets.ndim == 2 else None
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=ignored)


def accumulate(job: Job) -> None:
    rate = job.settings["lr"]
    rate = Schedule(rate, job.schedule) if job.schedule else rate
    optimizer = keras.optimizers.SGD(rate, gradient_accumulation_steps=job.window if job.window > 1 else None)
    model = Net(job.model)
    model.compile(watched(optimizer, job.witness), loss(job))
    model.fit(job.inputs.numpy(), job.targets.numpy(), batch_size=job.micro, shuffle=False, verbose=0)


def train(task: Task) -> None:
    keras.utils.set_random_seed(1)
    model = Net(task.model)
    optimizer = keras.optimizers.SGD(task.rate, momentum=task.momentum)
    model.compile(watched(optimizer, task.witness), loss(task))
    model.build(task.inputs.shape)
    saver = keras.callbacks.BackupAndRestore(
        str(task.folder / "backup"), save_freq=1 if task.every == "step" else "epoch",
        double_checkpoint="double" in task.way,
    )  # fmt: skip
    model.fit(
        task.inputs.numpy(), task.targets.numpy(), batch_size=task.batch, epochs=task.epochs, shuffle=task.shuffle,
        callbacks=[saver], verbose=0,
    )  # fmt: skip
