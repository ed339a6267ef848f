"""A run, a stop, a resume, each a process of its own; and what came of them, read from the weights and the traces."""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from benchmarks.resume.problem import PER_EPOCH, SAMPLES, STEPS, last, traces

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 180.0
Numbers = dict[str, Any]


class Failed(Exception):  # noqa: N818
    """A process that did not end as it should; what it left on its standard error."""


@dataclass(frozen=True)
class Contender:
    """A tool used in one way: the module to run, its variant, and what is done, in words."""

    title: str
    module: str
    package: str
    variant: str
    how: str


@dataclass(frozen=True)
class Step:
    """A line of a trace: when an optimizer step was done, which one, with which samples."""

    time: float
    step: int
    samples: tuple[int, ...]


def trace(path: Path) -> list[Step]:
    """The steps that a process did. A kill may have cut the last line."""
    lines = path.read_text().split("\n")[:-1]
    fields = [line.split(" ") for line in lines]
    return [Step(float(when), int(step), tuple(map(int, samples.split(",")))) for when, step, samples in fields]


@dataclass
class Bench:
    """Starts one contender's processes, in folders of their own."""

    contender: Contender
    data: Path
    folder: Path

    def start(self, name: str, *arguments: str) -> tuple[subprocess.Popen[bytes], float]:
        """`(process, when it was started)`."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        quiet = {
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "HF_HOME": str(self.folder / "hub"),
        }  # fmt: skip
        command = [
            sys.executable, "-m", f"benchmarks.resume.{self.contender.module}", "--folder", str(folder),
            "--data", str(self.data), "--variant", self.contender.variant, *arguments,
        ]  # fmt: skip
        # A file and not a pipe: nobody reads while the process is waited for.
        with (folder / "errors.txt").open("w") as errors:
            began = time.time()
            return subprocess.Popen(
                command, cwd=folder, env={**os.environ, **quiet}, stdout=subprocess.DEVNULL, stderr=errors
            ), began

    def run(self, name: str, *arguments: str) -> float | None:
        """A process that runs to its end; the seconds from its start to its first step."""
        process, began = self.start(name, *arguments)
        try:
            code = process.wait(PATIENCE)
        except subprocess.TimeoutExpired as late:
            process.kill()
            process.wait()
            raise Failed(f"no end within {PATIENCE:.0f} s") from late
        if code != 0:
            raise Failed((self.folder / name / "errors.txt").read_text().strip()[-1500:] or f"exit code {code}")
        steps = trace(traces(self.folder / name)[-1])
        return steps[0].time - began if steps else None  # killed behind its last step

    def kill(self, name: str, wait: float) -> bool:
        """A process that gets SIGKILL `wait` seconds after its first step; False if it was at its end before that."""
        process, began = self.start(name)
        first = self.folder / name / "trace-0.txt"
        while not (first.exists() and first.stat().st_size):
            if process.poll() is not None or time.time() - began > PATIENCE:
                process.kill()
                process.wait()
                raise Failed((self.folder / name / "errors.txt").read_text().strip()[-1500:] or "no first step")
            time.sleep(0.001)
        time.sleep(wait)
        os.kill(process.pid, signal.SIGKILL)  # the process is not waited for yet, so that its id is still its own
        return process.wait() == -signal.SIGKILL


def difference(one: Path, other: Path) -> float:
    """The largest absolute difference of two runs' last weights."""
    ours, theirs = load_file(last(one)), load_file(last(other))
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours if name != "steps")


def judged(folder: Path, whole: Path) -> Numbers:
    """A run that was stopped once and resumed, against the one nothing happened to."""
    before, after = (trace(path) for path in traces(folder))
    stopped = before[-1].step
    resumed = after[0].step - 1 if after else stopped
    # The steps that led to the last weights: what was done and lost is not among them.
    kept = [step for step in before if step.step <= resumed] + after
    uses = Counter((((step.step - 1) // PER_EPOCH), sample) for step in kept for sample in step.samples)
    exact = [(step.step, step.samples) for step in trace(traces(whole)[0])]
    return {
        "largest_difference": difference(folder, whole),
        "stopped_after_step": stopped,
        "resumed_at_step": resumed,
        "steps_done_again": stopped - resumed,
        "steps_done_in_all": len(before) + len(after),
        "steps_of_the_result": int(load_file(last(folder))["steps"]),
        "samples_used_again_within_an_epoch": sum(count - 1 for count in uses.values()),
        "samples_left_out": SAMPLES * STEPS // PER_EPOCH - len(uses),
        "same_samples_in_the_same_order": [(step.step, step.samples) for step in kept] == exact,
    }


def resumed(bench: Bench, name: str, whole: Path) -> Numbers:
    """The resume of what was stopped, to its end; or why there is none."""
    try:
        seconds = bench.run(name, "--resume")
    except Failed as error:
        stopped = trace(traces(bench.folder / name)[0])[-1].step
        said = str(error).replace(str(bench.folder), "FOLDER").strip().splitlines()[-1]
        return {"error": said[:300], "stopped_after_step": stopped}
    return {**judged(bench.folder / name, whole), "seconds_to_first_step": seconds and round(seconds, 2)}


def uninterrupted(bench: Bench) -> Numbers:
    """Two whole runs. Where these differ, nothing else can be said."""
    seconds = [bench.run(name) for name in ("whole", "again")]
    folders = [bench.folder / name for name in ("whole", "again")]
    spans = [steps[-1].time - steps[0].time for steps in (trace(traces(folder)[0]) for folder in folders)]
    weights = load_file(last(folders[0]))
    return {
        "repeatable": difference(*folders) == 0.0,
        "largest_weight": max(float(value.abs().max()) for name, value in weights.items() if name != "steps"),
        "steps": int(weights["steps"]),
        "seconds_to_first_step": round(statistics.fmean(seconds), 2),
        "seconds_of_training": round(statistics.fmean(spans), 2),
    }


def stopped_cleanly(bench: Bench, after: int) -> Numbers:
    """Stopped by the tool's own means right after a checkpoint within an epoch."""
    bench.run("clean", "--stop-after", str(after))
    return resumed(bench, "clean", bench.folder / "whole")


def killed(bench: Bench, seed: int, seconds: float) -> Numbers:
    """SIGKILL at a uniformly random moment of the training. A moment after the run's end is drawn anew."""
    draw, attempt = random.Random(seed), 0
    while not bench.kill(f"kill-{seed}-{attempt}", wait := draw.random() * seconds):
        attempt += 1
    numbers = resumed(bench, f"kill-{seed}-{attempt}", bench.folder / "whole")
    return {"seed": seed, "killed_seconds_after_first_step": round(wait, 3), "drawn_anew": attempt, **numbers}
