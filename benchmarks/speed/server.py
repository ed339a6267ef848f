"""`python -m benchmarks.speed.server JOB FOLDER`: the process of one contender. JOB is a `Job` as JSON."""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.clock import Clock
from benchmarks.speed.problems import Data, Job

TRAIN = {
    "raw_naive": "raw:naive",
    "raw_good": "raw:good",
    "raw_best": "raw:best",
    **{tool: f"with_{tool}:train" for tool in ("gradstep", "lightning", "accelerate", "ignite", "keras")},
}
EVALUATE = {"raw_good": "raw:evaluate", "gradstep": "with_gradstep:evaluate"}


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    torch.set_num_threads(job.threads)
    clock = Clock()
    clock.about = lambda: _about(job)
    module, name = (EVALUATE if job.kind == "evaluate" else TRAIN)[job.tool].split(":")
    try:
        getattr(importlib.import_module(f"benchmarks.speed.{module}"), name)(job, Data(Path(sys.argv[2])), clock)
    except BaseException as error:
        traceback.print_exc()
        clock.say({"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"})
        sys.exit(1)


def _about(job: Job) -> dict[str, Any]:
    if torch.get_num_threads() != job.threads and job.options.get("plan") != "measured":  # which may choose fewer
        raise RuntimeError(f"{job.tool} set the threads to {torch.get_num_threads()}; {job.threads} were asked for")
    return {"torch": torch.__version__, "threads": torch.get_num_threads()}


if __name__ == "__main__":
    main()
