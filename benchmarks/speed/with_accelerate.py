"""Accelerate: the loop of its own quick tour."""

from __future__ import annotations

from accelerate import Accelerator

from benchmarks.speed.batches import batches_of
from benchmarks.speed.clock import Clock, CriterionWitness
from benchmarks.speed.problems import Data, Job


def train(job: Job, data: Data, clock: Clock) -> None:
    accelerator = Accelerator(cpu=True)
    model, criterion = job.model(), job.what.criterion()
    clock.witness = CriterionWitness(criterion)
    model, optimizer = accelerator.prepare(model, job.optimizer(model.parameters()))
    batches = batches_of(job, data, clock)
    if job.kind == "data":  # `prepare` takes DataLoaders; batches that are tensors already need none
        batches = accelerator.prepare(batches)
    while True:
        for inputs, targets in batches:
            optimizer.zero_grad()
            accelerator.backward(criterion(model(inputs), targets))
            optimizer.step()
