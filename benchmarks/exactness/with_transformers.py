"""Hugging Face's Trainer, with a plain module."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from benchmarks.exactness.problem import Job, Task


class Rows(Dataset):
    """One dict per sample."""

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"inputs": self.inputs[index], "labels": self.targets[index]}


class WithLoss(nn.Module):
    """A model as Trainer wants it: it takes `labels` and returns its loss."""

    def __init__(self, inner: nn.Module, criterion: nn.Module) -> None:
        super().__init__()
        self.inner, self.criterion = inner, criterion

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.inner(inputs)
        return {"logits": logits} if labels is None else {"loss": self.criterion(logits, labels), "logits": logits}


def counted(outputs: dict[str, Tensor], labels: Tensor, num_items_in_batch: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch


def trainer(job: Job | Task, batch: int, schedule: Any = None, loss: Any = None, **options: Any) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(job.folder), per_device_train_batch_size=batch, max_grad_norm=0.0, use_cpu=True,
        report_to="none", disable_tqdm=True, logging_strategy="no", dataloader_pin_memory=False, seed=1, **options,
    )  # fmt: skip
    optimizer = job.optimizer(job.model.parameters())
    scheduler = LambdaLR(optimizer, schedule or (lambda _: 1.0))
    return Trainer(
        WithLoss(job.model, job.criterion), arguments, train_dataset=Rows(job.inputs, job.targets),
        optimizers=(optimizer, scheduler), compute_loss_func=loss,
    )  # fmt: skip


def accumulate(job: Job) -> None:
    loss = counted if job.way == "compute_loss_func" else None
    trainer(
        job, job.micro, job.schedule, loss, num_train_epochs=1, gradient_accumulation_steps=job.window,
        train_sampling_strategy="sequential", save_strategy="no",
    ).train()  # fmt: skip


def train(task: Task) -> None:
    set_seed(1)
    found = get_last_checkpoint(str(task.folder))
    runner = trainer(
        task, task.batch, num_train_epochs=task.epochs, save_strategy=f"{task.every}s".replace("epochs", "epoch"),
        save_steps=1, save_total_limit=2,
    )  # fmt: skip
    runner.train(resume_from_checkpoint=True if found else None)


def survive(task: Task) -> None:
    set_seed(1)
    options = {"num_train_epochs": task.epochs, "save_strategy": "no", "auto_find_batch_size": True}
    trainer(task, task.batch, **options).train()
