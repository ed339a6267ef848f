"""`make speed`: how fast gradstep is beside loops by hand and other tools. Writes benchmarks/records/speed.json.

    .venv-peers/bin/python -m benchmarks.speed [--short] [--passive] [--only "lenet plain" ...] [--list]

A run of some cells replaces those of the record. A cell in which the two do not take the same steps is void.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.speed.cells import CELLS, OTHERS
from benchmarks.speed.measuring import FULL, SHORT, Bench, measured
from benchmarks.speed.problems import PROBLEMS
from benchmarks.speed.report import RECORD, figure

PEERS = ("accelerate", "keras", "lightning", "pytorch-ignite", "torch")


def machine() -> dict[str, Any]:
    """What the figures are of."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.machine()
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PEERS},
        "threads": {name: problem.threads for name, problem in PROBLEMS.items()},
    }


def write(cells: dict[str, Any], path: Path = RECORD) -> None:
    """The record; cells that were not measured now stay if they are of the same machine and releases."""
    here = machine()
    old = json.loads(path.read_text()) if path.exists() else {"machine": here, "cells": {}}
    if old["machine"] != here:
        old = {"cells": {}}
    merged = {name: cells.get(name, old["cells"].get(name)) for name in [*CELLS, *OTHERS]}
    record = {"machine": here, "cells": {name: cell for name, cell in merged.items() if cell is not None}}
    path.write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="two processes of each contender and short blocks")
    parser.add_argument("--only", action="append", choices=[*CELLS, *OTHERS], metavar="CELL")
    parser.add_argument("--passive", action="store_true", help="OpenMP's threads sleep where they wait; see the page")
    parser.add_argument("--list", action="store_true", help="the names of the cells")
    asked = parser.parse_args()
    everything = {**CELLS, **OTHERS}
    if asked.list:
        print("\n".join(everything))
        return
    os.environ.setdefault("GRADSTEP_DATA", str(Path(__file__).resolve().parents[3] / "shared" / "data"))
    if asked.passive:
        os.environ["OMP_WAIT_POLICY"] = "passive"  # of every contender's process
    names = asked.only or list(CELLS if asked.short else everything)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), SHORT if asked.short else FULL)
        for name in names:
            cell = measured(bench, everything[name])
            write({name: cell})
            print(f"{name}: {figure(cell)}", "" if cell["goal"] is None else f"goal {cell['goal']}", flush=True)


if __name__ == "__main__":
    main()
