"""Runs that are killed: what is trained, in a child of this warm process, and what must be equal afterwards.

A child is forked, so that it need not import anything again: it is killed by a real SIGKILL all the same, by its parent
at a random moment, or by its own hand at its n-th operation on files.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import gradstep
from gradstep import checkpoint, disk
from gradstep.building import build
from gradstep.recipe import Recipe


class Net(nn.Module):
    """Small, and with all that a run may lose: dropout, BatchNorm's buffers, tied weights, a frozen layer."""

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(64, 12)
        self.norm = nn.BatchNorm1d(12) if norm else nn.Identity()
        self.drop = nn.Dropout(0.3)
        self.twin = nn.Linear(12, 12, bias=False)
        self.again = nn.Linear(12, 12, bias=False)
        self.again.weight = self.twin.weight
        self.out = nn.Linear(12, 10)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.drop(self.norm(self.first(inputs.flatten(1))).relu())
        out: torch.Tensor = self.out(self.again(self.twin(hidden)).relu())
        return out


RECIPE: dict[str, Any] = {
    "data": {"train": "digits", "valid": 0.2, "limit": 100, "transforms": ["float"]},
    "model": {"class": "tests.killing:Net"},
    "criterion": "CrossEntropyLoss",
    "batch_size": 24,
    "epochs": 4,
    "metrics": ["accuracy"],
    "evaluate_every": "3 steps",
    "log_every": "2 steps",
    "quiet": True,
}

# Every choice is in several of them, beside others; together they hold all that the state is made of.
SCENARIOS: dict[str, dict[str, Any]] = {
    "momentum, dropout, augmentation": {
        "optimizer": {"name": "SGD", "lr": 0.05, "momentum": 0.9, "nesterov": True},
        "data": {**RECIPE["data"], "augment": ["flip", {"shift": 1}]},
        "checkpoint": {"every": "3 steps", "keep": 2},
    },
    "Adam, average, cosine": {
        "optimizer": {"name": "AdamW", "lr": 0.01},
        "ema": {"decay": 0.9, "start": "2 steps"},
        "schedule": {"name": "cosine", "warmup": "1 epoch"},
        "checkpoint": {"every": "1 epoch", "keep": 1},
    },
    "plateau, best, early stop": {
        "optimizer": {"name": "SGD", "lr": 0.3, "momentum": 0.9},
        "schedule": {"name": "halve_on_plateau"},
        "monitor": "valid/loss",
        "patience": {"falls": 3},
        "epochs": 8,
        "checkpoint": {"every": "5 steps", "keep": 1},
    },
    "micro-batches, Adam, mixing, clip": {
        "model": {"class": "tests.killing:Net", "norm": False},
        "optimizer": {"name": "Adam", "lr": 0.02, "amsgrad": True},
        "micro_batch": 7,
        "clip": 1.0,
        "data": {**RECIPE["data"], "augment": [{"mixup": 0.2}]},
        "metrics": [],
        "checkpoint": {"every": "2 steps", "keep": 3, "keep_every": "2 epochs"},
    },
    "the end within an epoch, groups that thaw": {
        "optimizer": {"name": "SGD", "lr": 0.05},
        "groups": {"first": {"lr_scale": 0.1, "freeze": "1 epoch"}},
        "epochs": None,
        "steps": 18,
        "evaluate_every": "1 epoch",
        "evaluate_train": True,
        "checkpoint": {"every": "4 steps", "keep": 2},
    },
    "steps left out": {
        "optimizer": {"name": "SGD", "lr": 0.05, "momentum": 0.9},
        "criterion": "tests.killing:sometimes_nan",
        "on_nonfinite": {"rewind": 8},
        "ema": 0.9,
        "checkpoint": {"every": "3 steps", "keep": 2},
    },
}


def sometimes_nan(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy, and no number where a batch has an odd kind of sum: the same batches in every run."""
    spoil = float("nan") if int(targets.sum()) % 5 == 0 else 1.0
    return nn.functional.cross_entropy(outputs, targets) * spoil


def train(scenario: str, out: Path, hooks: tuple[Any, ...] = (), **changes: Any) -> gradstep.Run:
    """The run of a scenario in `out`, begun or gone on with."""
    document = {**RECIPE, **SCENARIOS[scenario], **changes}
    arguments = build(Recipe.parse(document)).arguments
    return gradstep.fit(**{**arguments, "hooks": list(hooks)}, out=out, name="run", resume=True)


def what_is_left(run: Path) -> dict[str, str]:
    """All of a run that must not depend on how often it was killed: hashes of it, by name."""
    saved, _ = checkpoint.newest(run / "checkpoints")
    assert saved is not None
    left = {name: (run / name).read_bytes() for name in ("metrics.jsonl", "model.safetensors")}
    found = {name: hashlib.sha256(content).hexdigest() for name, content in left.items()}
    for file, tensors in saved.tensors.items():
        for name, value in tensors.items():
            bits = value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
            found[f"{file}/{name}"] = hashlib.sha256(bits).hexdigest()
    elsewhere = ("environment", "left_out")  # a step that is still to come may be known as one to leave out
    found |= {name: repr(value) for name, value in saved.values.items() if name not in elsewhere}
    return found


def in_a_child(work: Callable[[], Any], after: float | None = None) -> int:
    """The signal that a forked child died by, 0 if it came to its end; it is killed `after` so many seconds."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the child failed by itself"
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


_OPERATIONS = (
    "open", "close", "write", "read", "fsync", "rename", "replace", "unlink", "mkdir", "rmdir", "ftruncate",
    "posix_fallocate", "scandir", "listdir", "lstat", "fstat", "statvfs",
)  # fmt: skip


class Counting:
    """Stands in for `disk`'s `os`: counts its operations, and kills the process right before one of them."""

    def __init__(self, die_at: int | None = None) -> None:
        self.count, self.die_at = 0, die_at

    def __getattr__(self, name: str) -> Any:
        found = getattr(os, name)
        return self._counted(found) if name in _OPERATIONS else found

    def _counted(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **more: Any) -> Any:
            self.count += 1
            if self.count == self.die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*arguments, **more)

        return counted


def dying_at(operation: int, work: Callable[[], Any]) -> Callable[[], Any]:
    """`work`, in a process that is killed before its n-th operation on files, counted from 1."""

    def doomed() -> None:
        disk.os = Counting(operation)  # type: ignore[assignment]
        work()

    return doomed
