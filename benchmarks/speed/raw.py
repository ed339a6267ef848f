"""Loops written by hand: as tutorials write them, well, and as well as can be.

All of them look for a loss or gradient that is no number before each update, as gradstep does on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.speed.batches import Order, Resident, batches_of
from benchmarks.speed.clock import Clock, CriterionWitness
from benchmarks.speed.problems import Data, Job

PASS = 256  # samples at once in an evaluation; gradstep's own default


def checker(model: nn.Module) -> Callable[[Tensor], None]:
    """One kernel over all gradients and two numbers read: the cheapest look there is."""
    parameters = list(model.parameters())
    found, one = torch.zeros(()), torch.ones(())

    def check(loss: Tensor) -> None:
        gradients = [parameter.grad for parameter in parameters]
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, found, one)
        if not math.isfinite(loss.item()) or found.item():
            raise FloatingPointError("a loss or a gradient is no number")

    return check


def naive(job: Job, data: Data, clock: Clock) -> None:
    """The tutorial's: a DataLoader over a Dataset, the loss read for the running mean."""
    model, criterion = job.model(), job.what.criterion()
    optimizer = job.optimizer(model.parameters())
    clock.witness, check = CriterionWitness(criterion), checker(model)
    batches = batches_of(job, data, clock)
    while True:
        running = 0.0
        for inputs, targets in batches:
            optimizer.zero_grad()
            loss = criterion(model(inputs), targets)
            loss.backward()
            check(loss)
            optimizer.step()
            running += loss.item()


def good(job: Job, data: Data, clock: Clock) -> None:
    """Whole batches of floats that were normalised beforehand, nothing read for a log, the optimizer as it comes."""
    model, criterion = job.channels_last(job.model()), job.what.criterion()
    optimizer = job.optimizer(model.parameters(), **_fused(job, default=False))
    clock.witness, check = CriterionWitness(criterion), checker(model)
    batches = Resident(data, clock)
    while True:
        for inputs, targets in batches:
            optimizer.zero_grad()
            loss = criterion(model(inputs), targets)
            loss.backward()
            check(loss)
            optimizer.step()


def best(job: Job, data: Data, clock: Clock) -> None:
    """Resident data, one gather for each tensor, bytes normalised after it in one expression, the fused optimizer.

    And what a step frees stays with the process, as in gradstep (heap.py).
    """
    np.empty(2**25 - 2**16, np.uint8)
    model, criterion = job.channels_last(job.model()), job.what.criterion()
    optimizer = job.optimizer(model.parameters(), **_fused(job, default=True))
    clock.witness, check = CriterionWitness(criterion), checker(model)
    batches = _gathered(job, data, Order(data, clock))
    while True:
        for inputs, targets in batches():
            optimizer.zero_grad(set_to_none=True)
            loss = criterion(model(inputs), targets)
            loss.backward()
            check(loss)
            optimizer.step()


def _gathered(job: Job, data: Data, order: Order) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
    targets = data.read("targets")
    if job.kind != "data":
        inputs = data.read("inputs")
        return lambda: ((inputs.index_select(0, numbers), targets.index_select(0, numbers)) for numbers in order)
    images, (mean, std) = data.read("bytes"), data.moments
    factor, shift = 1 / (255 * std), -mean / std
    return lambda: (
        (images.index_select(0, numbers).float().mul_(factor).add_(shift), targets.index_select(0, numbers))
        for numbers in order
    )


def _fused(job: Job, default: bool) -> dict[str, bool]:
    """The option of the optimizer; without it torch chooses, which on a CPU is a loop over the parameters."""
    return {"fused": True} if job.options.get("fused", default) else {}


def evaluate(job: Job, data: Data, clock: Clock) -> None:
    """A pass over the test set a time: the loss, read once at its end."""
    model, criterion = job.model().eval(), job.what.criterion()
    inputs, targets = data.read("test_inputs"), data.read("test_targets")
    clock.witness = witness = Passes()
    for _ in clock.paced(count()):
        total = torch.zeros((), dtype=torch.float64)
        with torch.no_grad():
            for first in range(0, len(inputs), PASS):
                rows = slice(first, first + PASS)
                outputs, wanted = model(inputs[rows]), targets[rows]
                total += criterion(outputs, wanted) * len(wanted)
        witness.losses.append(total.item() / len(inputs))


class Passes:
    """The losses of whole passes; there are few enough to keep all of them."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def begin(self) -> None:
        self.losses.clear()

    def end(self) -> list[float]:
        return list(self.losses)
