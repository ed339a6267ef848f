"""Verdicts remembered: what was measured for a model, its shapes, these versions and this machine is measured once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from gradstep import disk, facts, tree
from gradstep.data import Feed, cache_folder
from gradstep.errors import StorageError
from gradstep.plan.document import Verdict
from gradstep.update.criterion import describe

if TYPE_CHECKING:
    from gradstep.setup import Training

_LIMIT = 100_000  # bytes of a file
_ELSEWHERE = ("platform", "kernel")  # what of a machine changes no time


def key_of(training: Training, switches: Sequence[str]) -> str:
    """What a verdict depends on, as a hash: code, modules, shapes, options, versions, machine, and what is tried."""
    state, update, feed = training.state, training.update, training.feed
    assert isinstance(feed, Feed)
    user_s = [state.model, state.criterion, state.optimizer, update.forward, update.unpack]
    groups = [
        [sum(p.numel() for p in group["params"]), sorted((n, repr(v)) for n, v in group.items() if _is_plain(v))]
        for group in state.optimizer.param_groups
    ]
    content = {
        "environment": {name: value for name, value in facts.environment().items() if name not in _ELSEWHERE},
        "code": facts.code(user_s),
        "model": [(name, repr(part)) for name, part in state.model.named_modules() if not list(part.children())],
        "parameters": [(name, tree.describe(each)) for name, each in state.model.named_parameters()],
        "criterion": [
            describe(state.criterion),
            repr(state.criterion) if isinstance(state.criterion, nn.Module) else "",
        ],
        "precision": training.precision,
        "optimizer": [type(state.optimizer).__name__, groups],
        "batch": tree.describe(feed.sample()),
        "batch_size": feed.batch_size,
        "data": [type(feed.source).__name__, len(feed.source), feed.pipeline.words],
        "evaluated": None if training.evaluated is None else training.evaluated.feed.batch_size,
        "ways": [update.micro_batch, update.stat_group, update.dropout, str(training.device), training.clip is None],
        "asked": [sorted(training.asked.switches.items()), *switches],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=repr).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Remembered:
    """The verdicts that were final, and the seconds that a step took."""

    step: float
    verdicts: list[Verdict]

    def of(self, switch: str, value: Any) -> Verdict | None:
        return next((each for each in self.verdicts if each.switch == switch and each.value == value), None)


def read(key: str) -> Remembered:
    """What was found before: nothing, where nothing was or where it can't be read."""
    path = _path(key)
    with suppress(OSError, ValueError, TypeError, KeyError):
        if path is not None:
            content = json.loads(disk.read(path, _LIMIT))
            return Remembered(float(content["step"]), [Verdict.of(each) for each in content["verdicts"]])
    return Remembered(0.0, [])


def write(key: str, step: float, found: Sequence[Verdict]) -> None:
    """Remembers what was found. A disk that is full or may not be written to costs the next run its measuring."""
    path = _path(key)
    if path is not None:
        content = {"step": step, "verdicts": [asdict(verdict) for verdict in found if verdict.final]}
        with suppress(StorageError, OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            disk.replace(path, json.dumps(content).encode())


def _path(key: str) -> Path | None:
    folder = cache_folder("plans")
    return None if folder is None else folder / f"{key}.json"


def _is_plain(value: Any) -> bool:
    return not isinstance(value, (Tensor, list, dict)) and not callable(value)
