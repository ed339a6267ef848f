"""One process: one case of one tool. `python -m benchmarks.exactness.work TOOL CASE WAY FOLDER [kill]`."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import torch

from benchmarks.exactness import killing
from benchmarks.exactness.cases import CASES


def main(name: str, case: str, way: str, place: str, *more: str) -> None:
    torch.set_num_threads(1)
    tool, folder = importlib.import_module(f"benchmarks.exactness.with_{name}"), Path(place)
    if case == "resume":
        killing.resumable(tool, way, folder, "kill" in more)
        return
    numbers = killing.saves(tool, way, folder) if case == "save" else CASES[case](tool, way, folder)
    (folder / "numbers.json").write_text(json.dumps(numbers))


if __name__ == "__main__":
    main(*sys.argv[1:])
