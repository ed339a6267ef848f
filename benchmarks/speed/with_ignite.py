"""Ignite: its supervised trainer, without handlers."""

from __future__ import annotations

from ignite.engine import create_supervised_trainer

from benchmarks.speed.batches import batches_of
from benchmarks.speed.clock import Clock, CriterionWitness
from benchmarks.speed.problems import Data, Job

ENDLESS = 10**6  # epochs


def train(job: Job, data: Data, clock: Clock) -> None:
    model, criterion = job.model(), job.what.criterion()
    clock.witness = CriterionWitness(criterion)
    trainer = create_supervised_trainer(model, job.optimizer(model.parameters()), criterion, device="cpu")
    trainer.run(batches_of(job, data, clock), max_epochs=ENDLESS)
