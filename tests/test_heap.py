"""Memory that a step frees is there for the next one: counted in page faults, by the system."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have thresholds of their own")
FAULTS = """
import resource, sys

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
"""
# Eight blocks of 1 MB at a time, as a forward asks for them and a backward frees them.
ROUNDS = f"""{FAULTS}
import numpy as np
from gradstep import heap

if sys.argv[1] == "kept":
    heap.keep_freed()
counts = []
for _ in range(20):
    blocks = [np.ones(2**20, np.uint8) for _ in range(8)]
    del blocks
    counts.append(faults())
print((counts[-1] - counts[9]) / 10)
"""
TRAINED = f"""{FAULTS}
import torch
import gradstep
from gradstep.models import LeNet

torch.set_num_threads(1)
model, criterion = LeNet(channels=1), torch.nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
data = torch.randn(640, 1, 32, 32), torch.randint(0, 10, (640,))
loop = gradstep.steps(
    model, criterion, data, optimizer=optimizer, epochs=6, batch_size=64, plan="plain", device="cpu"
)
counts = [faults() for _ in loop]
print((counts[-1] - counts[29]) / 30)
"""


def counted(script: str, *arguments: str) -> float:
    done = subprocess.run([sys.executable, "-c", script, *arguments], check=True, capture_output=True, text=True)
    return float(done.stdout)


@GLIBC
def test_what_is_freed_stays_with_the_process() -> None:
    assert counted(ROUNDS, "as it comes") > 1000  # what there is to gain; where this fails, the room can go
    assert counted(ROUNDS, "kept") < 20


@GLIBC
def test_a_step_finds_the_memory_that_the_last_one_freed() -> None:
    assert counted(TRAINED) < 50
