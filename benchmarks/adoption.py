"""`python -m benchmarks.adoption`: how often a plan adopts what changes nothing, alone and beside a busy neighbour.

Record: records/adoption.json. Each trial is the plan's own race between two equal copies of one training (two layers,
a step of about a millisecond, one thread): whatever it adopts, it adopts by chance. The neighbour is a process for each
core that multiplies matrices and sleeps, each for a time that is drawn, a hundredth of a second to two seconds.
The copies are made anew every 25 trials, since where they lie in memory is part of chance. That the neighbour was there
is seen from the time that a step took, all steps together.
"""

from __future__ import annotations

import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parent / "records" / "adoption.json"
TRIALS, GOAL = 1000, 0.01


def neighbour(seed: str) -> None:
    """Busy and idle by turns, until it is killed."""
    import torch

    torch.set_num_threads(1)
    draws, matrix = random.Random(seed), torch.randn(400, 400)
    while True:
        until = time.monotonic() + draws.choice((0.01, 0.1, 0.5, 2.0))
        while time.monotonic() < until:
            matrix @ matrix
        time.sleep(draws.choice((0.01, 0.1, 0.5, 2.0)))


@contextmanager
def busy() -> Iterator[None]:
    command = [sys.executable, "-m", "benchmarks.adoption", "neighbour"]
    processes = [subprocess.Popen([*command, str(core)]) for core in range(os.cpu_count() or 1)]
    try:
        time.sleep(5)  # they import torch first
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def races(trials: int) -> dict[str, Any]:
    """How many of so many races between equals were won, and what a block took."""
    import torch
    from torch import nn

    from gradstep.models import TwoLayerNet
    from gradstep.plan.shadow import shadow_of, still, take_steps
    from gradstep.plan.timing import race
    from gradstep.setup import Training, assemble

    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = torch.randn(640, 1000), torch.randn(640, 10)
    training: Training = assemble(
        TwoLayerNet(1000, 100, 10), nn.MSELoss(), data, optimizer=lambda p: torch.optim.SGD(p, lr=1e-4),
        epochs=None, steps=5000, batch_size=64, drop_last=False, schedule=None, seed=0, dropout="keyed", device="cpu",
        precision="fp32", workers=0, plan="measured", micro_batch=None, stat_group=None, clip=None, ema=None,
        on_nonfinite="stop", unpack=None, forward=None,
    )  # fmt: skip
    batches = [training.feed[0]]  # type: ignore[index]  # gradstep's own feed
    won, pairs, taken, began = 0, 0, [0], time.monotonic()

    def steps_of(shadow: Training, count: int) -> None:
        taken[0] += count
        take_steps(shadow, batches, count)

    for trial in range(trials):
        if trial % 25 == 0:
            both = [partial(steps_of, still(shadow_of(training))) for _ in range(2)]
        raced = race(*both, 1e9)
        won, pairs = won + raced.faster, pairs + raced.pairs
    return {
        "trials": trials,
        "adopted": won,
        "pairs": pairs,
        "ms a step": round(1e3 * (time.monotonic() - began) / taken[0], 3),
    }


def main() -> None:
    if sys.argv[1:2] == ["neighbour"]:
        neighbour(sys.argv[2])
        return
    trials = int(sys.argv[1]) if len(sys.argv) == 2 else TRIALS
    found = {}
    for name, beside in (("alone", nullcontext), ("beside a busy neighbour", busy)):
        with beside():
            found[name] = races(trials)
    import torch

    record = {
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "torch": str(torch.__version__),
        "goal": GOAL,
        **found,
    }
    print(json.dumps(record, indent=1))
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
