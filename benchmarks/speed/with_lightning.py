"""Lightning's Trainer: as shipped, its logger, bar and checkpoints with it, or with `barebones=True`."""

from __future__ import annotations

import os

import lightning
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.speed.batches import batches_of
from benchmarks.speed.clock import Clock, CriterionWitness
from benchmarks.speed.problems import Data, Job


class Module(lightning.LightningModule):
    """The smallest module: a loss and an optimizer."""

    def __init__(self, job: Job, model: nn.Module, criterion: nn.Module) -> None:
        super().__init__()
        self.model, self.criterion, self.job = model, criterion, job

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:  # noqa: ARG002
        loss: Tensor = self.criterion(self.model(batch[0]), batch[1])
        return loss

    def configure_optimizers(self) -> Optimizer:
        return self.job.optimizer(self.model.parameters())


def train(job: Job, data: Data, clock: Clock) -> None:
    """`barebones` is an option of the job."""
    module = Module(job, job.model(), job.what.criterion())
    clock.witness = CriterionWitness(module.criterion)
    barebones = {"barebones": True} if job.options.get("barebones") else {"default_root_dir": os.getcwd()}
    trainer = lightning.Trainer(accelerator="cpu", devices=1, max_epochs=-1, **barebones)
    trainer.fit(module, batches_of(job, data, clock))
