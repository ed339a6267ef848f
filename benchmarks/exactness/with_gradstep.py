"""gradstep itself."""

from __future__ import annotations

from torch.utils.data import DataLoader, TensorDataset

import gradstep
from benchmarks.exactness.problem import Job, Task


def accumulate(job: Job) -> None:
    loader = DataLoader(TensorDataset(job.inputs, job.targets), batch_size=job.micro * job.window)
    schedule = None if job.schedule is None else lambda step, base: base * job.schedule(step)
    gradstep.fit(
        job.model, job.criterion, loader, optimizer=job.optimizer(job.model.parameters()), epochs=1,
        micro_batch=job.micro, schedule=schedule, plan="plain", device="cpu", quiet=True,
    )  # fmt: skip


def train(task: Task) -> None:
    data = (task.inputs, task.targets)
    source = data if task.shuffle else DataLoader(TensorDataset(*data), batch_size=task.batch)
    gradstep.fit(
        task.model, task.criterion, source, optimizer=task.optimizer(task.model.parameters()), epochs=task.epochs,
        batch_size=task.batch, seed=1, out=task.folder, name="run", resume=True,
        checkpoint={"every": f"1 {task.every}"}, plan="plain", device="cpu", quiet=True,
    )  # fmt: skip
