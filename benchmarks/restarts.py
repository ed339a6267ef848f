"""How long after a kill the training goes on, and whether that depends on how far it was. Called by checkpoints.py.

One long run on MNIST is killed by SIGKILL when its checkpoint of step 200 is there, again at 2,000 and at 20,000; a
copy of its folder is kept each time. Then, in turn, round after round, each a process of its own that leaves after its
first step: `gradstep train` of that recipe, and `gradstep resume` of each copy. The parts are timed inside:

    start-up   from the process's start until the recipe is built: imports and data
    load       the checkpoint read, verified and put into the state, and the record read, verified and cut back
    total      from the process's start to the end of its first step
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STEPS = (200, 2_000, 20_000)
ROUNDS = 3
ROWS = 20_000
SETTINGS = [
    *("data.limit=800", "data.transforms=[float]", "batch_size=8", "epochs=201", "quiet=true"),
    *("model={class: gradstep.models:MLP, inputs: 784, hidden: 16}", "schedule.warmup=200 steps"),
    *("evaluate_every=20 epochs", "checkpoint.every=200 steps"),
]


class KilledAt:
    """A hook that kills its process once the checkpoint of a step is there."""

    def __init__(self, step: int) -> None:
        self.name = f"step-{step:08d}"

    def on_save_checkpoint(self, state: Any, path: Path) -> None:  # noqa: ARG002
        if path.name == self.name:
            os.kill(os.getpid(), signal.SIGKILL)


class LeavesAfterFirstStep:
    """A hook that tells when what was done and ends the process. It is made when the recipe is built."""

    def __init__(self) -> None:
        from gradstep import session
        from gradstep.keeper import Keeper

        self.times = {"built": time.time(), "state": 0.0, "record": 0.0}
        Keeper.restore = self._timed("state", Keeper.restore)  # type: ignore[method-assign]
        session.open_records = self._timed("record", session.open_records)  # type: ignore[attr-defined]

    def _timed(self, what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                self.times[what] += time.perf_counter() - began

        return timed

    def on_train_batch_end(self, state: Any, outcome: Any) -> None:
        outcome.loss.item()
        self.times |= {"first step": time.time(), "step": state.step}
        print(json.dumps(self.times), flush=True)
        os._exit(0)


def gradstep(command: list[str], hook: str, folder: Path) -> tuple[float, str, float, int]:
    """`(when it began, what it printed, seconds of CPU, exit status)` of a process of the command line's."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    began = time.time()
    process = subprocess.Popen(
        [sys.executable, "-m", "gradstep", *command, f"hooks=[{hook}]"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    printed = process.stdout.read()
    process.stdout.close()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    return began, printed, usage.ru_utime + usage.ru_stime, status


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder where runs lie by default."""
    Path("runs").mkdir(exist_ok=True)
    return tempfile.TemporaryDirectory(dir="runs")


def killed_runs(folder: Path) -> list[str]:
    """The folders of one run as it lay there after each kill."""
    copies, command = [], ["train", "mnist", *SETTINGS, "--name", "long"]
    for step in STEPS:
        hook = f"{{name: 'benchmarks.restarts:KilledAt', step: {step}}}"
        _, printed, _, status = gradstep(command, hook, folder)
        assert os.WIFSIGNALED(status), printed
        copies.append(f"runs/killed-at-{step}")
        shutil.copytree(folder / "runs" / "0001-long", folder / copies[-1])
        command = ["resume", "runs/0001-long"]
    return copies


def first_step(command: list[str], folder: Path) -> dict[str, float]:
    """Seconds until the first step of a process is done, and of its parts."""
    began, printed, cpu, status = gradstep(command, "'benchmarks.restarts:LeavesAfterFirstStep'", folder)
    assert status == 0, command
    times = json.loads(printed.splitlines()[-1])
    return {
        "start-up": times["built"] - began,
        "load": times["state"] + times["record"],
        "of it the record": times["record"],
        "total": times["first step"] - began,
        "CPU": cpu,
    }


def record_ms(folder: Path) -> float:
    """Milliseconds that a resume takes for 1,000 rows of the record: read, hashed and parsed."""
    from gradstep.record import Journal

    journal = Journal(folder / "metrics.jsonl", folder / "timing.jsonl")
    for step in range(ROWS):
        journal.write({"step": step, "epoch": 1, "kind": "train", "train/running_loss": 1 / (step + 1), "lr": 0.05})
    mark = journal.mark()
    journal.close()
    seconds = []
    for _ in range(7):
        began = time.perf_counter()
        Journal(folder / "metrics.jsonl", folder / "timing.jsonl", mark).close()
        seconds.append(time.perf_counter() - began)
    return 1e6 * statistics.median(seconds) / ROWS


def restarts() -> dict[str, Any]:
    """Medians over the rounds, the first of which warms the file cache and is not counted."""
    with scratch() as name:
        folder = Path(name).resolve()
        copies = killed_runs(folder)
        rows = (folder / copies[-1] / "metrics.jsonl").read_bytes().count(b"\n")
        commands = {"a fresh run": ["train", "mnist", *SETTINGS]}
        commands |= {f"resumed at {step}": ["resume", copy] for step, copy in zip(STEPS, copies, strict=True)}
        found: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
        for round_ in range(ROUNDS + 1):
            for name, command in commands.items():
                times = first_step(command, folder)
                if round_:
                    found[name].append(times)
        seconds = {
            name: {what: round(statistics.median(each[what] for each in rounds), 4) for what in rounds[0]}
            for name, rounds in found.items()
        }
        ends = (found[f"resumed at {step}"] for step in (STEPS[-1], STEPS[0]))
        longer = [late["total"] - early["total"] for late, early in zip(*ends, strict=True)]
        least = {name: round(min(each["total"] for each in rounds), 3) for name, rounds in found.items()}
        return {
            "rounds": ROUNDS,
            "median_s": seconds,
            "least_total_s": least,
            f"longer_at_{STEPS[-1]}_than_at_{STEPS[0]}_s": round(statistics.median(longer), 3),
            f"rows_after_{STEPS[-1]}_steps": rows,
            "record_ms_per_1000_rows": round(record_ms(folder), 2),
        }
