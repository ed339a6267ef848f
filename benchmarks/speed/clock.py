"""The clock in the feed: a training waits for its next batch until a block of steps is asked for."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

Item = TypeVar("Item")


class Witness(Protocol):
    """Sees the loss of each step between `begin` and `end`, and is gone outside them: no block that counts pays."""

    def begin(self) -> None: ...

    def end(self) -> list[float]: ...


class CriterionWitness:
    """Sees what a criterion of torch returns."""

    def __init__(self, criterion: nn.Module) -> None:
        self._criterion = criterion

    def begin(self) -> None:
        self._losses: list[Tensor] = []
        self._handle = self._criterion.register_forward_hook(lambda _m, _a, loss: self._losses.append(loss.detach()))

    def end(self) -> list[float]:
        self._handle.remove()
        return [float(loss) for loss in self._losses]


class Clock:
    """Reads commands, `{"steps": 200}` a line, and answers each with what the block took, a line too.

    Standard input and output are taken away from everything else in the process: what a tool prints goes nowhere.
    """

    def __init__(self) -> None:
        self._commands, self._answers = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, 0)
        os.dup2(nowhere, 1)
        self.witness: Witness | None = None
        self.about: Callable[[], dict[str, Any]] = dict  # what is said of the process when it is ready

    def say(self, answer: dict[str, Any]) -> None:
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()

    def paced(self, items: Iterator[Item]) -> Iterator[Item]:
        """The items, in blocks that are asked for.

        A block lasts from the moment its first item is asked for, or may be given, to the moment the item after its
        last one is asked for: whatever the training does between two batches is inside. Inside a block an item costs
        a `yield from`, less than 0.2 µs.
        """
        self.say({"ready": True, **self.about()})
        for line in self._commands:
            asked = json.loads(line)
            witness = self.witness if asked.get("losses") else None
            if witness is not None:
                witness.begin()
            wall, cpu = time.perf_counter_ns(), time.process_time_ns()
            yield from islice(items, asked["steps"])
            wall, cpu = time.perf_counter_ns() - wall, time.process_time_ns() - cpu
            losses = witness.end() if witness is not None else None
            self.say({"steps": asked["steps"], "wall_ns": wall, "cpu_ns": cpu, "peak_kb": peak_kb(), "losses": losses})
        os._exit(0)  # nobody asks any more; an endless training has no end that could be waited for


def peak_kb() -> int:
    """The peak of this process's resident set.

    Not `ru_maxrss`: that begins, across fork and exec, at what the process that started this one held.
    """
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
