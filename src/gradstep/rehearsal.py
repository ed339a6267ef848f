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
from gradstep.errors import StorageError
from gradstep.evaluation import measure
from gradstep.keys import kept_streams, key, seed_model
from gradstep.meaning import meaning
from gradstep.record.stopwatch import duration
from gradstep.session import Session, shown


def rehearse(session: Session) -> Iterator[str]:
    """Does it and yields a line for each thing that worked, with its time. Raises what would go wrong."""
    training = session.training
    state, update, device = training.state, training.update, training.device
    feeds = {what: feed for what, feed in session.feeds.items() if what != "train"}
    for label, text in session.facts():
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
        numbers = state.numbers() | {"meaning": meaning(training, {}, None)}
        path = checkpoint.write(Path(folder), 0, state.tensors(), numbers)
        tensors, numbers = checkpoint.read(path)
        for name, group in state.tensors().items():
            for tensor, value in group.items():
                if not torch.equal(tensors[name][tensor], value.cpu()):
                    raise StorageError(f"'{tensor}' came back from a checkpoint as something else than it went in.")
        state.load(tensors, numbers)
        yield f"{'save':<10}a checkpoint written, read back and equal, {duration(time.perf_counter() - began)}"
    for what, feed in feeds.items():
        began = time.perf_counter()
        values = measure(
            state.model,
            state.criterion,
            _First(feed),
            session.metrics,
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
