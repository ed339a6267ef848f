"""What every tool is given: data, net, optimizer and seed; and the trace that every run leaves, step by step.

A tool's script is a process of its own:

    python -m benchmarks.resume.lightning_run --folder F --data D [--variant V] [--stop-after N] [--resume]

It trains for three epochs, or is stopped by the tool's own means after step N; or goes on from what lies in F.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

SAMPLES, BATCH, EPOCHS = 6400, 64, 3
PER_EPOCH = SAMPLES // BATCH
STEPS = PER_EPOCH * EPOCHS
EVERY = 40  # steps from checkpoint to checkpoint: all of them lie within an epoch but the one after step 200
SEED = 1
PIXELS = 784


class Net(nn.Module):
    """784-256-10 with dropout; the same weights at every call.

    An input has a 785th column, the sample's number, which is cut off here, so that any tool's batch says which samples
    it is made of. `steps` counts the optimizer steps that the weights have had: it is a buffer, and so each tool saves
    it and loads it together with the weights, and it tells which step a resume really went on from.
    """

    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.layers = nn.Sequential(nn.Linear(PIXELS, 256), nn.ReLU(), nn.Dropout(0.2), nn.Linear(256, 10))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.seen = torch.empty(0)

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen = inputs[:, PIXELS]
        return self.layers(inputs[:, :PIXELS])


@dataclass
class Task:
    """One process's work. `stop_after` is the step after which the run is stopped on purpose, or None."""

    folder: Path
    inputs: Tensor
    targets: Tensor
    variant: str
    stop_after: int | None
    resume: bool
    net: Net

    def optimizer(self) -> torch.optim.SGD:
        """SGD with momentum; after each step one line of the trace: the time, the step, its samples."""
        optimizer = torch.optim.SGD(self.net.parameters(), lr=0.05, momentum=0.9)
        # A file for each process. Line buffered: what a killed process has written is there.
        trace = (self.folder / f"trace-{len(traces(self.folder))}.txt").open("w", buffering=1)

        def after_step(*_: object) -> None:
            self.net.steps += 1
            samples = ",".join(str(int(number)) for number in self.net.seen.tolist())
            trace.write(f"{time.time():.6f} {int(self.net.steps)} {samples}\n")

        optimizer.register_step_post_hook(after_step)
        return optimizer

    def finish(self) -> None:
        """The last weights, for the comparison."""
        save_file({name: value.clone() for name, value in self.net.state_dict().items()}, last(self.folder))


def traces(folder: Path) -> list[Path]:
    """A run's traces, one for each process, in their order."""
    return sorted(folder.glob("trace-*.txt"))


def last(folder: Path) -> Path:
    return folder / "last.safetensors"


def asked() -> Task:
    """The task that the command line describes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--variant", default="")
    parser.add_argument("--stop-after", type=lambda text: None if text == "none" else int(text))
    parser.add_argument("--resume", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.folder.mkdir(parents=True, exist_ok=True)
    data = load_file(given.data)
    return Task(given.folder, data["inputs"], data["targets"], given.variant, given.stop_after, given.resume, Net())
