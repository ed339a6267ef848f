"""Accelerate: one's own loop, written as its guides on accumulation, checkpoints and memory write it."""

from __future__ import annotations

import math
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DataLoaderConfiguration,
    ProjectConfiguration,
    find_executable_batch_size,
    set_seed,
)
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.exactness.problem import Job, Task


def accumulate(job: Job) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=job.window)
    loader = DataLoader(TensorDataset(job.inputs, job.targets), batch_size=job.micro)
    plain = job.optimizer(job.model.parameters())
    scheduler = LambdaLR(plain, job.schedule or (lambda _: 1.0))
    model, optimizer, loader, scheduler = accelerator.prepare(job.model, plain, loader, scheduler)
    if job.way == "token skeleton":
        _skeleton(accelerator, job, model, optimizer, loader)
    elif isinstance(plain, torch.optim.LBFGS):
        _closures(accelerator, job, model, optimizer, loader)
    else:
        for inputs, targets in loader:
            with accelerator.accumulate(model):
                accelerator.backward(job.criterion(model(inputs), targets))
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()


def _closures(accelerator: Accelerator, job: Job, model: nn.Module, optimizer: Any, loader: Any) -> None:
    for inputs, targets in loader:
        with accelerator.accumulate(model):

            def closure(inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
                optimizer.zero_grad()
                loss = job.criterion(model(inputs), targets)
                accelerator.backward(loss)
                return loss

            optimizer.step(closure)


def _skeleton(accelerator: Accelerator, job: Job, model: nn.Module, optimizer: Any, loader: Any) -> None:
    """The guide's own loop for samples of variable size, for one process."""
    summed = nn.CrossEntropyLoss(reduction="sum")
    batches, remainder = iter(loader), len(loader) % job.window or job.window
    updates = math.ceil(len(loader) / job.window)
    for update in range(updates):
        window = [next(batches) for _ in range(job.window if update < updates - 1 else remainder)]
        items = sum(targets.ne(-100).sum() for _, targets in window)
        items = accelerator.gather(items).sum().item()
        for inputs, targets in window:
            loss = summed(model(inputs), targets) * job.window * accelerator.num_processes / items
            accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()


class Progress:
    """How many steps are done; registered for checkpointing, as the guide does with one's own objects."""

    def __init__(self) -> None:
        self.steps = 0

    def state_dict(self) -> dict[str, int]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.steps = state["steps"]


def train(task: Task) -> None:
    set_seed(1)
    stateful = "stateful" in task.way
    accelerator = Accelerator(
        cpu=True,
        project_config=ProjectConfiguration(str(task.folder), automatic_checkpoint_naming=True, total_limit=2),
        dataloader_config=DataLoaderConfiguration(
            use_seedable_sampler="seedable" in task.way, use_stateful_dataloader=stateful
        ),
    )
    loader = DataLoader(TensorDataset(task.inputs, task.targets), batch_size=task.batch, shuffle=task.shuffle)
    model, optimizer, loader = accelerator.prepare(task.model, task.optimizer(task.model.parameters()), loader)
    progress, per_epoch = Progress(), math.ceil(len(task.inputs) / task.batch)
    accelerator.register_for_checkpointing(progress)
    if (task.folder / "checkpoints").exists():
        accelerator.load_state()
        # The guide: name the next folder oneself, or save_state refuses.
        accelerator.project_configuration.iteration = progress.steps // (1 if task.every == "step" else per_epoch)
    for epoch in range(progress.steps // per_epoch, task.epochs):
        done = progress.steps - epoch * per_epoch
        loader.set_epoch(epoch)
        part = accelerator.skip_first_batches(loader, done) if done and not stateful else loader
        for inputs, targets in part:
            optimizer.zero_grad()
            accelerator.backward(task.criterion(model(inputs), targets))
            optimizer.step()
            progress.steps += 1
            if task.every == "step":
                accelerator.save_state()
        if task.every == "epoch":
            accelerator.save_state()


def survive(task: Task) -> None:
    """The guide: the inner function makes everything anew and is called again with a smaller batch."""
    fresh = {name: value.clone() for name, value in task.model.state_dict().items()}

    @find_executable_batch_size(starting_batch_size=task.batch)
    def inner(batch_size: int) -> None:
        accelerator = Accelerator(cpu=True)
        accelerator.free_memory()
        set_seed(1)
        task.model.load_state_dict(fresh)
        loader = DataLoader(TensorDataset(task.inputs, task.targets), batch_size=batch_size, shuffle=task.shuffle)
        model, optimizer, loader = accelerator.prepare(task.model, task.optimizer(task.model.parameters()), loader)
        for _ in range(task.epochs):
            for inputs, targets in loader:
                optimizer.zero_grad()
                accelerator.backward(task.criterion(model(inputs), targets))
                optimizer.step()

    inner()
