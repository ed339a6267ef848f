"""Lightning's Trainer, automatic optimisation."""

from __future__ import annotations

from typing import Any

import lightning
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from benchmarks.exactness.problem import Job, Task


class Module(lightning.LightningModule):
    """The smallest module: a loss and an optimizer."""

    def __init__(self, job: Job | Task, schedule: Any = None) -> None:
        super().__init__()
        self.model, self.criterion, self.job, self.schedule = job.model, job.criterion, job, schedule

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:  # noqa: ARG002
        return self.criterion(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = self.job.optimizer(self.model.parameters())
        if self.schedule is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, self.schedule), "interval": "step"},
        }


def trainer(job: Job | Task, **options: Any) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu", devices=1, precision="64-true", logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=job.folder, **options,
    )  # fmt: skip


def accumulate(job: Job) -> None:
    loader = DataLoader(TensorDataset(job.inputs, job.targets), batch_size=job.micro)
    runner = trainer(job, max_epochs=1, accumulate_grad_batches=job.window, enable_checkpointing=False)
    runner.fit(Module(job, job.schedule), loader)


def train(task: Task) -> None:
    lightning.seed_everything(1, verbose=False)
    steps = {"every_n_train_steps": 1} if task.every == "step" else {}
    saver = ModelCheckpoint(dirpath=task.folder / "checkpoints", save_last=True, **steps)
    kind = StatefulDataLoader if "stateful" in task.way else DataLoader
    loader = kind(TensorDataset(task.inputs, task.targets), batch_size=task.batch, shuffle=task.shuffle)
    trainer(task, max_epochs=task.epochs, callbacks=[saver]).fit(Module(task), loader, ckpt_path="last")
