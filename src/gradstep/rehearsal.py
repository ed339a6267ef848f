"""Everything but training: one batch forward and backward, a checkpoint written and read back, one batch evaluated.

In a temporary folder, which is gone afterwards. Nothing is stepped.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from gradstep import checkpoint
from gradstep.closing import shown
from gradstep.evaluation import measure
from gradstep.keeper import held_against
from gradstep.keys import kept_streams, key, seed_model
from gradstep.record.stopwatch import duration
from gradstep.setup import Training
from gradstep.watching import Watching


def rehearse(training: Training, watching: Watching) -> Iterator[str]:
    """Does it and yields a line for each thing that worked, with its time. Raises what would go wrong."""
    state, update, device = training.state, training.update, training.device
    for label, text in watching.facts(training):
        yield f"{label:<10}{text}"
    began = time.perf_counter()
    with training.training_mode(), kept_streams(device):
        batch = next(iter(training.feed.start(0)))
        seed_model(device, key(state.seed, "model"))
        outcome = update.backward(*update.unpack(batch))
    norm = torch.nn.utils.get_total_norm([p.grad for p in state.model.parameters() if p.grad is not None])
    loss, size = outcome.loss.item(), norm.item()  # waits for the device, so that the time below is real
    taken = time.perf_counter() - began
    yield f"{'step':<10}one batch forward and backward: loss {loss:.4f}, gradient norm {size:.4f}, {duration(taken)}"
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        tensors, numbers = state.snapshot()
        saved = checkpoint.read(checkpoint.write(Path(folder), 0, tensors, numbers))
        held_against(state, saved)
        state.load(saved.tensors, saved.values)
        yield f"{'save':<10}a checkpoint written, read back and equal, {duration(time.perf_counter() - began)}"
    for what, feed in watching.others.items():
        began = time.perf_counter()
        values = measure(
            state.model,
            state.criterion,
            _First(feed),
            watching.metrics,
            seed=state.seed,
            unpack=update.unpack,
            forward=update.forward,
        )
        yield f"{what:<10}one batch evaluated: {'  '.join(shown(values))}, {duration(time.perf_counter() - began)}"


class _First:
    """The first batch of a feed, as a pass over data."""

    def __init__(self, feed: Any) -> None:
        self.feed, self.device = feed, feed.device

    def once(self) -> Iterator[Any]:
        return itertools.islice(self.feed.once(), 1)
