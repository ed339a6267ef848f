"""The two cases with SIGKILL: a run killed at a step and resumed, and kills at random instants while saving."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import shutil
import signal
import struct
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.exactness.problem import Killer, Task, Uniform, Witness, classifier, flat, samples

KILLED_AT, STEPS = 8, 15  # in the middle of the second of three epochs
KILLS, STOP = 20, 5
SIZE = 2_000_000  # 16 MB of weights and as much of momentum: a save takes long enough to be hit
PATIENCE = 60.0
WHOLE, CUT = "resumes at the last step", "resumes at the step before, the save of the last being cut"


def resumable(tool: Any, way: str, folder: Path, kill: bool) -> None:
    """Trains in `folder`, from what is there; dies at a step, or leaves the last weights and the number of steps."""
    model = classifier(dropout=0.5)
    witness = Killer(model, KILLED_AT) if kill else Witness(model)
    folder.mkdir(parents=True, exist_ok=True)
    task = Task(model, *samples(40), nn.CrossEntropyLoss(), 8, 3, 0.1, 0.9, True, way, folder, witness)
    tool.train(task)
    torch.save({"weights": flat(model.parameters()), "steps": len(witness.steps)}, folder / "last.weights")


def compared(whole: Path, resumed: Path) -> dict[str, Any]:
    """The resumed run against the one nothing happened to."""
    exact, other = torch.load(whole / "last.weights"), torch.load(resumed / "last.weights")
    assert exact["steps"] == STEPS, f"{exact['steps']} steps instead of {STEPS}"
    return {
        "bitwise": bool(torch.equal(exact["weights"], other["weights"])),
        "largest_difference": float((exact["weights"] - other["weights"]).abs().max()),
        "largest_weight": float(exact["weights"].abs().max()),
        "killed_after_step": KILLED_AT,
        "steps_after_resume": other["steps"],
    }


class Counter(Witness):
    """Writes the number of steps done where another process reads it."""

    def __init__(self, model: nn.Module, shared: mmap.mmap) -> None:
        super().__init__(model)
        self.shared, self.done = shared, 0

    def before(self, rate: float) -> None:
        pass

    def after(self) -> None:
        self.done += 1
        self.shared[:8] = struct.pack("q", self.done)


class Leaver(Counter):
    """Kills its own process before the `STOP + 1`-th step, when the save of the last one is surely done.

    Some tools save beside the training, so it is given time.
    """

    def before(self, rate: float) -> None:  # noqa: ARG002
        if self.done == STOP:
            time.sleep(5.0)
            os.kill(os.getpid(), signal.SIGKILL)


class Finder(Witness):
    """Says what the first step after a resume began with and what it made of it, and leaves."""

    def __init__(self, model: nn.Module, where: Path) -> None:
        super().__init__(model)
        self.where = where

    def _range(self) -> list[float]:
        weights = flat(self.model.parameters())
        return [float(weights.min()), float(weights.max())]

    def before(self, rate: float) -> None:  # noqa: ARG002
        self.began = self._range()

    def after(self) -> None:
        self.where.write_text(json.dumps({"began": self.began, "became": self._range()}))
        os._exit(0)


def large(way: str, folder: Path, make: Callable[[nn.Module], Witness]) -> Task:
    """A training whose saves are nearly all of its time; an epoch is one step where only epochs are saved."""
    rows = 2 if way.startswith("epoch") else 2000
    model = Uniform(SIZE)
    inputs, targets = torch.ones(rows, 1, dtype=torch.float64), torch.full((rows, 1), 1e12, dtype=torch.float64)
    return Task(model, inputs, targets, nn.L1Loss(), 2, 1000, 1.0, 0.5, False, way, folder, make(model))


def values() -> list[float]:
    """The weight after each step: SGD with momentum 0.5 on a gradient of -1."""
    weights, speed, value = [0.0], 0.0, 0.0
    for _ in range(60):
        speed = 0.5 * speed + 1.0
        value += speed
        weights.append(value)
    return weights


def forked(work: Callable[[], None], where: Path) -> int:
    """A process that does `work`, quietly, and leaves its error in `where`."""
    pid = os.fork()
    if pid:
        return pid
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    try:
        work()
        where.write_text(json.dumps({"error": "the training ended without a step"}))
    except BaseException:
        where.write_text(json.dumps({"error": traceback.format_exc()[-1500:]}))
    finally:
        os._exit(1)


def ended(pid: int) -> bool:
    return os.waitpid(pid, os.WNOHANG)[0] == pid


def killed_while_saving(tool: Any, way: str, folder: Path, draw: random.Random) -> int:
    """Starts a training, kills it at a random instant between two steps; how many steps it had done."""
    shared = mmap.mmap(-1, 8)
    pid = forked(lambda: tool.train(large(way, folder, lambda m: Counter(m, shared))), folder / "error.json")
    enough, began, seen = draw.randint(3, 7), time.monotonic(), [0.0]
    while len(seen) <= enough:
        done = struct.unpack("q", shared[:8])[0]
        if done >= len(seen):
            seen.append(time.monotonic())
        if ended(pid) or time.monotonic() - began > PATIENCE:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            said = folder / "error.json"
            raise RuntimeError(said.read_text() if said.exists() else "the training came to no step")
        time.sleep(0.0002)
    time.sleep(draw.random() * (seen[-1] - seen[-2]))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return int(struct.unpack("q", shared[:8])[0])


def found(tool: Any, way: str, folder: Path) -> dict[str, Any]:
    """What a resume in a new process finds by itself."""
    where = folder / "found.json"
    pid = forked(lambda: tool.train(large(way, folder, lambda m: Finder(m, where))), where)
    began = time.monotonic()
    while not ended(pid):
        if time.monotonic() - began > PATIENCE:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return {"error": "the resume came to no step"}
        time.sleep(0.005)
    return json.loads(where.read_text())


def judged(steps: int, what: dict[str, Any]) -> tuple[str, str]:
    """`(outcome, detail)`: the steps before the last one that was done are surely saved."""
    if "error" in what:
        return "resume fails", what["error"].strip().splitlines()[-1][:300]
    table, began, became = values(), what["began"], what["became"]
    if began[0] != began[1] or began[0] not in table:
        return "wrong weights", f"{began} after {steps} steps"
    step = table.index(began[0])
    if became != [table[step + 1]] * 2:
        return "wrong momentum", f"{became} instead of {table[step + 1]}"
    if step == 0:
        return "starts at 0", f"{steps} steps were done"
    if step < steps - 1:
        return "resumes further back", f"at {step} after {steps} steps"
    return (WHOLE if step == steps else CUT), ""


def killed_between_saves(tool: Any, way: str, folder: Path) -> dict[str, Any]:
    """The control: the same training and resume, killed when nothing is being saved."""
    folder.mkdir(parents=True)
    shared = mmap.mmap(-1, 8)
    pid = forked(lambda: tool.train(large(way, folder, lambda m: Leaver(m, shared))), folder / "error.json")
    os.waitpid(pid, 0)
    outcome, detail = judged(STOP, found(tool, way, folder))
    shutil.rmtree(folder)
    return {"outcome": outcome, "detail": detail}


def saves(tool: Any, way: str, folder: Path) -> dict[str, Any]:
    """Kills and resumes, again and again, each in a folder of its own."""
    control = killed_between_saves(tool, way, folder / "control")
    draw, outcomes, details = random.Random(17), dict[str, int](), list[str]()
    for trial in range(KILLS):
        place = folder / str(trial)
        place.mkdir(parents=True)
        steps = killed_while_saving(tool, way, place, draw)
        outcome, detail = judged(steps, found(tool, way, place))
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        detail = detail.replace(str(place), "FOLDER")
        if detail and detail not in details:
            details.append(detail)
        shutil.rmtree(place)
    good = sum(outcomes.get(outcome, 0) for outcome in (WHOLE, CUT, "resumes further back"))
    return {"kills": KILLS, "bad": KILLS - good, "outcomes": outcomes, "details": details[:5], "control": control}
