"""`python -m benchmarks.adoption`: how often a plan adopts what changes nothing, alone and beside a busy neighbour.

Record: records/adoption.json. Each trial is the plan's own race between two equal copies of one training (two layers,
a step of about a millisecond, one thread): whatever it adopts, it adopts by chance. The neighbour is a process that
multiplies matrices on every core and sleeps, each for a time that is drawn, a hundredth of a second to two seconds.
The copies are made anew every 25 trials, since where they lie in memory is part of chance. That the neighbour was there
is seen from the slowest tenth of the races.
"""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
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


def neighbour() -> None:
    """Busy and idle by turns, until it is killed."""
    import torch

    draws, matrix = random.Random(1), torch.randn(400, 400)
    while True:
        until = time.monotonic() + draws.choice((0.01, 0.1, 0.5, 2.0))
        while time.monotonic() < until:
            matrix @ matrix
        time.sleep(draws.choice((0.01, 0.1, 0.5, 2.0)))


@contextmanager
def busy() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.adoption", "neighbour"])
    try:
        time.sleep(3)  # it imports torch first
        yield
    finally:
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
    won, pairs, steps = 0, 0, []
    for trial in range(trials):
        if trial % 25 == 0:
            both = [partial(take_steps, still(shadow_of(training)), batches) for _ in range(2)]
        raced = race(*both, 1e9)
        won, pairs = won + raced.faster, pairs + raced.pairs
        steps.append(raced.seconds)
    return {
        "trials": trials,
        "adopted": won,
        "pairs": pairs,
        "ms a step": round(1e3 * statistics.median(steps), 3),
        "ms a step, nine in ten": round(1e3 * statistics.quantiles(steps, n=10)[-1], 3),
    }


def main() -> None:
    if sys.argv[1:] == ["neighbour"]:
        neighbour()
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
