"""Contenders as processes that stay warm: started once, asked for blocks of steps."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.speed.problems import Data, Job

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 180.0


class Void(Exception):  # noqa: N818
    """A cell that can't be measured, and why."""


@dataclass(frozen=True)
class Block:
    """What a process says of a block, and the share of the machine's time that others stole meanwhile."""

    steps: int
    wall_ns: int
    cpu_ns: int
    peak_kb: int
    losses: list[float] | None = None
    stolen: float = 0.0

    @property
    def wall_us(self) -> float:
        """Microseconds a step."""
        return self.wall_ns / self.steps / 1e3

    @property
    def cpu_us(self) -> float:
        return self.cpu_ns / self.steps / 1e3


class Server:
    """One contender's process, in a folder of its own. Raises Void where it can't do what it is asked."""

    def __init__(self, job: Job, data: Data, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.job, self._errors = job, folder / "stderr.txt"
        own = [str(ROOT), str(ROOT / "src")]
        quiet = {
            "PYTHONPATH": os.pathsep.join([*own, *filter(None, [os.environ.get("PYTHONPATH")])]),
            "OMP_NUM_THREADS": str(job.threads), "CUDA_VISIBLE_DEVICES": "", "KERAS_BACKEND": "torch",
            "KERAS_HOME": str(folder / "keras"), "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore",
        }  # fmt: skip
        command = [sys.executable, "-m", "benchmarks.speed.server", json.dumps(asdict(job)), str(data.folder.resolve())]
        with open(self._errors, "w") as errors:
            self._process = subprocess.Popen(
                command, cwd=folder, env={**os.environ, **quiet}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=errors, bufsize=0,
            )  # fmt: skip
        self._buffer = b""
        self.about: dict[str, Any] = {}

    def ready(self) -> None:
        """Waits until its training asks for the first batch."""
        if not self.about:
            self.about = self._answer()

    def run(self, steps: int, losses: bool = False) -> Block:
        """Lets it make that many steps."""
        self.begin(steps, losses)
        return self.end()

    def begin(self, steps: int, losses: bool = False) -> None:
        """Lets it begin a block, and does not wait."""
        self.ready()
        assert self._process.stdin is not None
        self._before, self._began = stolen_s(), time.perf_counter()
        try:
            self._process.stdin.write(json.dumps({"steps": steps, "losses": losses}).encode() + b"\n")
        except BrokenPipeError:
            raise Void(self._why("it has ended")) from None

    def end(self) -> Block:
        """Waits for the block that was begun."""
        answer = self._answer()
        share = (stolen_s() - self._before) / (time.perf_counter() - self._began) / (os.cpu_count() or 1)
        return Block(**answer, stolen=share)

    def stay_on(self, cores: set[int]) -> None:
        """All its threads run on these cores alone from here on."""
        for task in Path(f"/proc/{self._process.pid}/task").iterdir():
            with suppress(ProcessLookupError):  # one that has just ended
                os.sched_setaffinity(int(task.name), cores)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()  # it takes the end of its commands for its own
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        until = time.monotonic() + LIMIT_S
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, until - time.monotonic())):
                    raise Void(f"{self.job.tool}: no answer within {LIMIT_S:.0f} s")
                read = os.read(self._process.stdout.fileno(), 65536)
                if not read:
                    raise Void(self._why(f"it ended with exit code {self._process.wait()}"))
                self._buffer += read
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Void(f"{self.job.tool}: {answer['error']}")
        return answer

    def _why(self, what: str) -> str:
        lines = self._errors.read_text(errors="replace").strip().splitlines()
        return f"{self.job.tool}: {what}" + (f": {lines[-1][:300]}" if lines else "")


def stolen_s() -> float:
    """Seconds, over all cores, in which the machine wanted to run and its host did not let it; 0 where nobody says."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        return int(fields[8]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError):
        return 0.0
