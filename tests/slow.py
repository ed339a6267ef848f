"""A small training that falls asleep where it is told to: in a forward, a sample, a metric, a save.

$SLOW says where, $SLOW_AT is a folder: `asleep` in it tells that it does sleep, and `armed` that it may. Without them
nobody sleeps, and it is the same training.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from gradstep import disk
from gradstep.data import load_named

_SECONDS = {"step": 0.2, "save": 0.5}  # what can't be cut is short; 30 s elsewhere


def pause(what: str) -> None:
    """Sleeps here, if it is told to and the time has come."""
    folder = Path(os.environ.get("SLOW_AT", ""))
    if os.environ.get("SLOW") == what and (folder / "armed").exists():
        (folder / "asleep").touch()
        time.sleep(_SECONDS.get(what, 30.0))


class Net(nn.Module):
    """Dropout, and BatchNorm's buffers: a step that is half done would be seen in them."""

    evaluating = False  # the latest forward was

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(64, 12), nn.BatchNorm1d(12), nn.Dropout(0.3)
        self.out = nn.Linear(12, 10)
        if os.environ.get("SLOW") == "start-up":
            arm()
            pause("start-up")

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.drop(self.norm(self.first(inputs.flatten(1))).relu())
        Net.evaluating = not self.training
        if self.training:
            pause("first step")
            pause("step")
        out: torch.Tensor = self.out(hidden)
        return out


class Digits(Dataset[Any]):
    """Some of the digits, one by one: a source that is not in memory, which workers may read."""

    def __init__(self, part: str, first: int, length: int) -> None:
        self.part = part
        images, labels = load_named("digits").train.batch(torch.arange(first, first + length), 0, 0)  # type: ignore
        self.images, self.labels = images.float() / 255, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        pause(f"{self.part} sample")
        return self.images[number], self.labels[number]


def train() -> Digits:
    return Digits("train", 0, 96)


def valid() -> Digits:
    return Digits("valid", 96, 32)


def test() -> Digits:
    return Digits("test", 128, 32)


def share_right(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    if Net.evaluating:
        pause("metric")
    return (outputs.argmax(1) == targets).float().mean()


def arm() -> None:
    (Path(os.environ["SLOW_AT"]) / "armed").touch()


class Arm:
    """A hook that lets the sleeping begin, after step $SLOW_FROM or before the first; and makes the disk slow."""

    def on_train_start(self, state: Any, about: Any) -> None:
        if "SLOW_AT" in os.environ and os.environ.get("SLOW_FROM") == "0":
            arm()
        if os.environ.get("SLOW") == "save":
            disk.os = _SlowDisk()  # type: ignore[assignment]

    def on_train_batch_end(self, state: Any, outcome: Any) -> None:
        if str(state.step) == os.environ.get("SLOW_FROM"):
            arm()


class _SlowDisk:
    """Stands in for `disk`'s `os`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fsync(self, descriptor: int) -> None:
        pause("save")
        os.fsync(descriptor)


RECIPE: dict[str, Any] = {
    "data": {"train": "tests.slow:train", "valid": "tests.slow:valid", "test": "tests.slow:test"},
    "model": {"class": "tests.slow:Net"},
    "criterion": "CrossEntropyLoss",
    "optimizer": {"name": "SGD", "lr": 0.1, "momentum": 0.9},
    "batch_size": 16,
    "epochs": 4,
    "ema": 0.9,
    "metrics": ["accuracy", "tests.slow:share_right"],
    "evaluate_every": "4 steps",
    "log_every": "2 steps",
    "checkpoint": {"every": "5 steps", "keep": 2},
    "hooks": ["tests.slow:Arm"],
}
