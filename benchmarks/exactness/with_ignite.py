"""Ignite: the supervised trainer; DeterministicEngine and Checkpoint where a run is resumed."""

from __future__ import annotations

import torch
from ignite.engine import Events, create_supervised_trainer, supervised_training_step
from ignite.engine.deterministic import DeterministicEngine
from ignite.handlers import Checkpoint, DiskSaver
from ignite.handlers.param_scheduler import LRScheduler
from ignite.utils import manual_seed
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.exactness.problem import Job, Task


def accumulate(job: Job) -> None:
    optimizer = job.optimizer(job.model.parameters())
    trainer = create_supervised_trainer(
        job.model, optimizer, job.criterion, device="cpu", gradient_accumulation_steps=job.window
    )
    if job.schedule is not None:
        own = "every=4" in job.way
        scheduler = LRScheduler(LambdaLR(optimizer, job.schedule), use_legacy=own)
        event = Events.ITERATION_COMPLETED(every=job.window) if own else Events.ITERATION_STARTED
        trainer.add_event_handler(event, scheduler)
    trainer.run(DataLoader(TensorDataset(job.inputs, job.targets), batch_size=job.micro), max_epochs=1)


def train(task: Task) -> None:
    manual_seed(1)
    optimizer = task.optimizer(task.model.parameters())
    trainer = DeterministicEngine(supervised_training_step(task.model, optimizer, task.criterion, device="cpu"))
    parts = {"trainer": trainer, "model": task.model, "optimizer": optimizer}
    files = sorted(task.folder.glob("checkpoint_*.pt"), key=lambda path: int(path.stem.split("_")[1]))
    if files:
        Checkpoint.load_objects(parts, torch.load(files[-1], weights_only=False))
    event = Events.ITERATION_COMPLETED if task.every == "step" else Events.EPOCH_COMPLETED
    saver = Checkpoint(parts, DiskSaver(str(task.folder), require_empty=False), n_saved=2)
    trainer.add_event_handler(event, saver)
    loader = DataLoader(TensorDataset(task.inputs, task.targets), batch_size=task.batch, shuffle=task.shuffle)
    trainer.run(loader, max_epochs=task.epochs)
