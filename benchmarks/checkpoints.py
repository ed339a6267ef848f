"""`python -m benchmarks.checkpoints`: what checkpoints cost. The record is benchmarks/records/checkpoints.json.

- The pause: what one checkpoint of the recipe `mnist` takes from its training, the steps that are slower while it is
  written included. The recipe's one per epoch would drown in the noise of an epoch, so a run with a checkpoint every 20
  steps takes turns with the same run without, A B B A; the difference of a pair over its 9 checkpoints is one
  checkpoint's. On a busy machine even that is noise: within a run with checkpoints, the ten steps after each are also
  compared with the ten that follow those. Both are held against the recipe's epoch. `save()` alone, which the training
  waits for, is timed inside.
- A large state: a net of 50 million parameters with Adam's moments, 600 MB. The training waits for a copy; the named
  contender is `torch.save` of both state dicts and an fsync, while it waits. Peak memory of either, above the state.
- Restarts: `benchmarks/restarts.py`.

`python -m benchmarks.checkpoints large` measures that alone, and leaves the rest of the record as it is.

Everything is written below `runs`, as runs are, since a temporary folder in memory would make an fsync free.
"""

from __future__ import annotations

import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import gradstep
from benchmarks.restarts import ROOT, restarts, scratch
from gradstep import checkpoint
from gradstep.building import build
from gradstep.clock import Clock
from gradstep.keeper import Keeper, Policy, Progress
from gradstep.recipe import Recipe, find, override
from gradstep.record import Journal, Mark
from gradstep.rundir import RunDir
from gradstep.session import Session
from gradstep.state import TrainState

RECORD = Path(__file__).parent / "records" / "checkpoints.json"
STEPS, EVERY, PAIRS = 200, 20, 8  # the last checkpoint comes after the clock is stopped
LARGE, LAYERS, ROUNDS = 2_500, 8, 4  # eight layers of 2,500 by 2,500


def middle(values: Sequence[float]) -> dict[str, Any]:
    """The median with a bootstrap interval of 95 %."""
    draws = random.Random(0)
    medians = sorted(statistics.median(draws.choices(values, k=len(values))) for _ in range(2000))
    return {"median": round(statistics.median(values), 3), "interval": [round(medians[50], 3), round(medians[-50], 3)]}


class Watch:
    """A hook that notes when each step ended, by the clock and by the CPU's time."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def on_train_batch_end(self, state: Any, outcome: Any) -> None:  # noqa: ARG002
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())


def train_mnist(every: str, out: str) -> Watch:
    """An epoch of 200 steps of the recipe, with little behind its end, where the clock is stopped already."""
    shorter = [f"data.limit={64 * STEPS}", "data.valid=0.01", "data.test=null", "epochs=1"]
    settings = [*shorter, f"checkpoint.every={every}", "quiet=true"]
    arguments = build(Recipe.parse(override(find("mnist")[1], settings))).arguments
    watch = Watch()
    gradstep.fit(**{**arguments, "hooks": [watch]}, out=out, name="pause")
    return watch


def pause() -> dict[str, Any]:
    """Milliseconds of one checkpoint, and what part of the recipe's epoch that is."""
    waits: list[float] = []
    save = Session.save

    def timed(session: Session) -> None:
        began = time.perf_counter()
        save(session)
        waits.append(1e3 * (time.perf_counter() - began))

    Session.save = timed  # type: ignore[method-assign]
    differences: dict[str, list[float]] = {"wall": [], "cpu": []}
    neighbours: list[float] = []
    step_ms, count = [], (STEPS - 1) // EVERY
    with scratch() as out:
        train_mnist(f"{EVERY} steps", out)  # a warm-up
        waits.clear()
        for number in range(PAIRS):
            cadences = (f"{EVERY} steps", "1000 epochs")
            runs = {every: train_mnist(every, out) for every in cadences[:: 1 if number % 2 == 0 else -1]}
            saving, not_saving = (runs[every] for every in cadences)
            for clock, found in differences.items():
                lasted = [getattr(watch, clock)[-1] - getattr(watch, clock)[0] for watch in (saving, not_saving)]
                found.append(1e3 * (lasted[0] - lasted[1]) / count)
            neighbours += [1e3 * each for each in after_each(saving.wall)]
            step_ms += [1e3 * (b - a) for a, b in zip(not_saving.wall, not_saving.wall[1:], strict=False)]
    Session.save = save  # type: ignore[method-assign]
    epoch_ms = statistics.mean(step_ms) * -(-54_000 // 64)
    return {
        "pairs": PAIRS,
        "checkpoints_per_pair": count,
        "by_pairs_of_runs": held_against(epoch_ms, differences["wall"]),
        "by_pairs_of_runs_cpu": held_against(epoch_ms, differences["cpu"]),
        "by_the_steps_after": held_against(epoch_ms, neighbours),
        "waited_for_ms": {"median": round(statistics.median(waits), 2), "max": round(max(waits), 2), "of": len(waits)},
        "step_ms": round(statistics.median(step_ms), 2),
        "epoch_s": round(epoch_ms / 1e3, 1),
    }


def held_against(epoch_ms: float, values: Sequence[float]) -> dict[str, Any]:
    return {"ms": middle(values), "percent_of_an_epoch": middle([100 * each / epoch_ms for each in values])}


def after_each(ended: Sequence[float]) -> list[float]:
    """How much longer the ten steps after each checkpoint took than the next ten; `ended` is when each step did."""
    half = EVERY // 2
    return [
        (ended[at + half] - ended[at]) - (ended[at + 2 * half] - ended[at + half])
        for at in range(EVERY - 1, len(ended) - 2 * half, EVERY)  # the save comes after the step's end is noted
    ]


def large_state() -> TrainState:
    """A net with Adam's moments, made without a step, so that the state is the most memory there was so far."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(LARGE, LARGE) for _ in range(LAYERS)))
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        slots = {name: torch.rand(parameter.shape) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": torch.tensor(1.0), **slots}
    return TrainState(model, optimizer, nn.CrossEntropyLoss(), seed=0)


class Gradstep:
    """What `fit` does at a checkpoint: it waits for `save`, and for the one before to be written."""

    def __init__(self, state: TrainState, folder: Path) -> None:
        place = RunDir.create(folder, "large")
        place.checkpoints.mkdir(exist_ok=True)
        self.state = state
        self.keeper = Keeper(place, Policy.parse({"keep": 1}), Clock(100, 1000), {}, {}, {})

    def save(self) -> None:
        self.state.step += 1
        self.keeper.save(self.state, Journal(), Progress({}, {}, Mark()))

    def wait(self) -> None:
        self.keeper.saver.wait()


class TorchSave:
    """What is written by hand, made safe against a loss of power, but neither verified nor atomic."""

    def __init__(self, state: TrainState, folder: Path) -> None:
        self.state, self.folder = state, folder

    def save(self) -> None:
        for name in ("model", "optimizer"):
            with open(self.folder / f"{name}.pt", "wb") as file:
                torch.save(getattr(self.state, name).state_dict(), file)
                file.flush()
                os.fsync(file.fileno())

    def wait(self) -> None:
        pass


CONTENDERS: dict[str, Callable[[TrainState, Path], Gradstep | TorchSave]] = {
    "gradstep": Gradstep,
    "torch.save and fsync": TorchSave,
}


def times() -> dict[str, Any]:
    """Seconds that the training waits, that the writing takes, and that a resume reads; the two in turn."""
    state = large_state()
    found: dict[str, dict[str, list[float]]] = {name: {"waited_for": [], "written_after": []} for name in CONTENDERS}
    with scratch() as name:
        folder = Path(name)
        savers = {name: make(state, folder) for name, make in CONTENDERS.items()}
        for number in range(ROUNDS + 1):
            for name in list(savers)[:: 1 if number % 2 == 0 else -1]:
                began = time.perf_counter()
                savers[name].save()
                waited = time.perf_counter() - began
                savers[name].wait()
                if number:
                    found[name]["waited_for"].append(waited)
                    found[name]["written_after"].append(time.perf_counter() - began)
        began = time.perf_counter()
        saved, _ = checkpoint.newest(next(folder.glob("*-large")) / "checkpoints")
        verified = time.perf_counter() - began
        assert saved is not None
        state.load(saved.tensors, saved.values)
        loaded = time.perf_counter() - began
    ours, theirs = (found[name]["waited_for"] for name in CONTENDERS)
    return {
        "median_s": {
            name: {what: round(statistics.median(each), 3) for what, each in parts.items()}
            for name, parts in found.items()
        },
        "waited_for_ratio": middle([a / b for a, b in zip(ours, theirs, strict=True)]),
        "resumed_s": {"verified": round(verified, 3), "in_the_state": round(loaded, 3)},
    }


def memory(name: str) -> float:
    """Megabytes that a process took at most while saving, above what it had taken before."""
    state = large_state()
    with scratch() as folder:
        contender = CONTENDERS[name](state, Path(folder))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        contender.save()
        contender.wait()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e6


def large() -> dict[str, Any]:
    """The times here, the memory of each in a process of its own."""
    state_mb = 3 * LAYERS * (LARGE * LARGE + LARGE) * 4 / 1e6
    paths = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    peaks = {}
    for name in CONTENDERS:
        code = f"from benchmarks.checkpoints import memory; print(memory({name!r}))"
        command, env = [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": paths}
        said = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
        peaks[name] = round(float(said))
    return {"state_mb": round(state_mb), "rounds": ROUNDS, **times(), "peak_mb_above_the_state": peaks}


MEASURES: dict[str, Callable[[], dict[str, Any]]] = {"pause": pause, "large": large, "restarts": restarts}


def main() -> None:
    torch.set_num_threads(1)
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    record["machine"] = {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "torch": str(torch.__version__),
        "threads": 1,
    }
    for name in sys.argv[1:] or MEASURES:
        began = time.perf_counter()
        record[name] = MEASURES[name]()
        print(name, json.dumps(record[name], indent=1), f"({time.perf_counter() - began:.0f} s)", flush=True)
        RECORD.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
