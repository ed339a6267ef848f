"""What is measured of a tool in one process; each function gives numbers, and a control that must be exact.

A control puts the same question to the same adapter without what is asked about (one micro-batch, no error), where
every tool must give torch's own answer: so that an error found is the tool's and not this benchmark's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.exactness.problem import (
    RATE,
    Job,
    OutOfMemory,
    Step,
    Tagger,
    Task,
    Witness,
    classifier,
    distance,
    flat,
    gradient,
    samples,
    sentences,
)

Numbers = dict[str, Any]


def error(job: Job, step: Step, rows: slice) -> float:
    """How far a step's own gradient, read off the weights it changed, is from the gradient of its batch."""
    exact = gradient(job.model, step.before, job.criterion, job.inputs[rows], job.targets[rows])
    return distance((step.before - step.after) / step.rate, exact)


def _accumulated(tool: Any, job: Job) -> float:
    tool.accumulate(job)
    steps = job.witness.steps
    assert len(steps) == 1, f"{len(steps)} steps instead of one"
    return error(job, steps[0], slice(None))


def _against_one_batch(tool: Any, make: Any, data: tuple[Tensor, Tensor], way: str, folder: Path) -> Numbers:
    count = len(data[0])
    micro, window = (4, 3) if count == 9 else (2, 4)
    control = _accumulated(tool, Job(make(), *data, count, 1, way, folder / "control"))
    return {"error": _accumulated(tool, Job(make(), *data, micro, window, way, folder)), "control": control}


def ragged(tool: Any, way: str, folder: Path) -> Numbers:
    """Nine samples as 4 + 4 + 1."""
    return _against_one_batch(tool, classifier, samples(9), way, folder)


def tokens(tool: Any, way: str, folder: Path) -> Numbers:
    """Eight sentences of uneven lengths as 2 + 2 + 2 + 2; the mean is over the tokens of all."""
    return _against_one_batch(tool, Tagger, sentences([9, 1, 3, 2, 8, 1, 5, 2]), way, folder)


def short_window(tool: Any, way: str, folder: Path) -> Numbers:
    """Ten micro-batches of 4, four to a step: the third step's batch is the last eight samples."""
    job = Job(classifier(), *samples(40), 4, 4, way, folder)
    tool.accumulate(job)
    windows = [slice(0, 16), slice(16, 32), slice(32, 40)]
    errors = [error(job, step, rows) for step, rows in zip(job.witness.steps, windows, strict=False)]
    taken = len(errors) == 3
    return {"error": errors[2] if taken else 1.0, "control": max(errors[:2]), "steps_of_3": len(errors)}


def lbfgs(tool: Any, way: str, folder: Path) -> Numbers:
    """One step of LBFGS, four evaluations, on 16 samples as 4 + 4 + 4 + 4."""
    data = samples(16)
    settings = {"lr": RATE, "max_iter": 4, "history_size": 10}

    def change(micro: int, window: int) -> Tensor:
        job = Job(classifier(), *data, micro, window, way, folder, torch.optim.LBFGS, settings)
        start = flat(job.model.parameters())
        tool.accumulate(job)
        return flat(job.model.parameters()) - start

    model = classifier()
    start, optimizer = flat(model.parameters()), torch.optim.LBFGS(model.parameters(), **settings)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(data[0]), data[1])
        loss.backward()
        return loss

    optimizer.step(closure)
    exact = flat(model.parameters()) - start
    return {"error": distance(change(4, 4), exact), "control": distance(change(16, 1), exact)}


def schedule(tool: Any, way: str, folder: Path) -> Numbers:
    """The rates of six steps, four micro-batches each, against a schedule of the step."""

    def rates(micro: int, window: int) -> list[float]:
        job = Job(classifier(), *samples(96), micro, window, way, folder, schedule=lambda step: 1 / (1 + step))
        tool.accumulate(job)
        return [step.rate for step in job.witness.steps]

    expected = [RATE / (1 + step) for step in range(6)]

    def worst(seen: list[float]) -> float:
        assert len(seen) == 6, f"{len(seen)} steps instead of six"
        return max(abs(rate - value) / value for rate, value in zip(seen, expected, strict=True))

    seen = rates(4, 4)
    return {"error": worst(seen), "control": worst(rates(16, 1)), "rates": [round(rate, 4) for rate in seen]}


def memory(tool: Any, way: str, folder: Path) -> Numbers:
    """Dropout and BatchNorm, batches of 16, an error of memory at the third one."""

    def trained(at: int) -> tuple[Tensor, int]:
        model = OutOfMemory(classifier(dropout=0.5, norm=True), at, limit=12)
        task = Task(
            model, *samples(64), nn.CrossEntropyLoss(), 16, 2, 0.1, 0.9, False, way, folder / str(at), Witness(model)
        )
        tool.survive(task)
        return flat([*model.parameters(), *model.buffers()]), model.raised

    start = classifier(dropout=0.5, norm=True)
    begun, exact = flat([*start.parameters(), *start.buffers()]), trained(0)[0]
    survived, raised = trained(3)
    assert raised == 1, "the error of memory was not raised"
    change = (exact - begun).norm()
    return {
        "error": float((survived - exact).norm() / change),
        "control": float((trained(0)[0] - exact).norm() / change),
    }


CASES = {
    "ragged": ragged,
    "short window": short_window,
    "tokens": tokens,
    "lbfgs": lbfgs,
    "schedule": schedule,
    "memory": memory,
}
