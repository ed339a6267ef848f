"""`make bench`: how long until something happens. The record is benchmarks/records/startup.json.

Four processes, started in turn, round after round, each timed from its start: `import torch`; a hand-written loop on
the digits up to its first step's end; `gradstep train digits` up to its first step's end; `gradstep --help`. Medians
over the rounds, after one round that warms the file cache and is not counted. The first three leave by os._exit, so
that nobody's tidying up is timed.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROUNDS = 9
RECORD = Path(__file__).parent / "records" / "startup.json"

HAND_WRITTEN = """
import gzip, importlib.util, os, pathlib
import numpy, torch
from torch import nn
folder = pathlib.Path(importlib.util.find_spec("sklearn").origin).parent
table = numpy.loadtxt(gzip.open(folder / "datasets/data/digits.csv.gz", "rt"), delimiter=",", dtype=numpy.uint8)
images = torch.from_numpy(table[:, :64] * 15).reshape(-1, 1, 8, 8).float() / 255
labels = torch.from_numpy(table[:, 64].astype(numpy.int64))
images = nn.functional.interpolate(images, (32, 32), mode="bilinear")
images = (images - images.mean()) / images.std()
net = nn.Sequential(
    nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
    nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10))
optimizer = torch.optim.SGD(net.parameters(), lr=0.03, momentum=0.9)
batch = torch.randperm(len(images))[:16]
optimizer.zero_grad()
loss = nn.functional.cross_entropy(net(images[batch]), labels[batch])
loss.backward()
optimizer.step()
loss.item()
os._exit(0)
"""


class LeaveAfterFirstStep:
    """A hook that ends the process where the clock is stopped."""

    def on_train_batch_end(self, state: Any, outcome: Any) -> None:  # noqa: ARG002
        outcome.loss.item()
        os._exit(0)


CONTENDERS = {
    "import torch": [sys.executable, "-c", "import os, torch; os._exit(0)"],
    "hand-written, first step": [sys.executable, "-c", HAND_WRITTEN],
    "gradstep train digits, first step": [
        sys.executable, "-m", "gradstep", "train", "digits", "hooks=['benchmarks.startup:LeaveAfterFirstStep']",
    ],
    "gradstep --help": [str(Path(sys.executable).parent / "gradstep"), "--help"],
}  # fmt: skip


def seconds(command: list[str]) -> float:
    """One process, from its start to its end."""
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        subprocess.run(command, cwd=folder, env=here, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began


def main() -> None:
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for round_ in range(ROUNDS + 1):
        for name, command in CONTENDERS.items():
            taken = seconds(command)
            if round_:
                times[name].append(taken)
    medians = {name: round(statistics.median(each), 3) for name, each in times.items()}
    first, hand, torch = (medians[n] for n in (list(medians)[2], list(medians)[1], "import torch"))
    import torch as module

    record = {
        "what": "seconds from the process's start, median of rounds",
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "torch": str(module.__version__)},
        "rounds": ROUNDS,
        "median_s": medians,
        "first_step_minus_import_torch_s": round(first - torch, 3),
        "hand_written_minus_import_torch_s": round(hand - torch, 3),
        "first_step_minus_hand_written_s": round(first - hand, 3),
        "all_s": {name: [round(value, 3) for value in each] for name, each in times.items()},
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({name: value for name, value in record.items() if name != "all_s"}, indent=1))


if __name__ == "__main__":
    main()
