"""`make exactness`: eight cases, seven tools. Prints the table and writes benchmarks/records/exactness.json.

    python3 -m venv PEERS && PEERS/bin/python -m pip install -c constraints.txt -r benchmarks/peers.txt -e .
    PEERS/bin/python -m benchmarks.exactness [--tools lightning,gradstep] [--cases ragged,save]

Every tool, case and way of doing it has a process of its own with a time limit. A run of some tools and cases
replaces those cells of the record.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.exactness import killing
from benchmarks.exactness.offers import OFFERS

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "benchmarks" / "records" / "exactness.json"
CASES = {
    "ragged": "9 samples as micro-batches 4+4+1 against one batch: relative error of the gradient",
    "short window": "10 micro-batches, 4 to a step: relative error of the gradient of the epoch's last, short step",
    "tokens": "sentences of uneven lengths in micro-batches against one batch: relative error of the gradient",
    "resume": "killed with SIGKILL in mid-epoch and resumed, against the uninterrupted run: the last weights",
    "lbfgs": "one LBFGS step over 4 micro-batches against one batch: relative error of the change of the weights",
    "schedule": "a schedule by step with 4 micro-batches to a step: largest relative error of a step's rate",
    "save": "SIGKILL at random instants while saving: how often a resume fails, starts again or loads what is wrong",
    "memory": "an error of memory at a step, dropout and BatchNorm: relative distance to the run without it",
}
LIMIT_S = {"save": 900.0}
EXACT = 1e-12
CONTROL = 1e-6  # an adapter that asks something else is wrong by far more; Keras divides by counts in float32
Way = dict[str, Any]


class Failed(Exception):  # noqa: N818
    """What a process left on its standard error."""


def process(folder: Path, *arguments: str, limit: float = 180.0, killed: bool = False) -> None:
    """Runs work.py in `folder`; raises Failed unless it ends as it should."""
    folder.mkdir(parents=True, exist_ok=True)
    quiet = {
        "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "KERAS_BACKEND": "torch",
        "KERAS_HOME": str(folder / "keras"), "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub"),
        "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.exactness.work", *arguments]
    try:
        done = subprocess.run(
            command, cwd=folder, env={**os.environ, **quiet}, capture_output=True, text=True, timeout=limit
        )
    except subprocess.TimeoutExpired as late:
        raise Failed(f"no answer within {limit:.0f} s") from late
    if done.returncode != (-9 if killed else 0):
        raise Failed(done.stderr.strip()[-2000:] or f"exit code {done.returncode}")


def resumed(tool: str, way: str, folder: Path) -> Way:
    """A whole run, a killed one, its resume; where they differ, a second whole run says that nothing else does."""
    whole, other, again = folder / "whole", folder / "other", folder / "again"
    process(folder, tool, "resume", way, str(whole))
    process(folder, tool, "resume", way, str(other), "kill", killed=True)
    process(folder, tool, "resume", way, str(other))
    numbers = killing.compared(whole, other)
    if not numbers["bitwise"]:
        process(folder, tool, "resume", way, str(again))
        numbers["control_bitwise"] = killing.compared(whole, again)["bitwise"]
    figure = "bitwise" if numbers["bitwise"] else f"differs ({numbers['largest_difference']:.1e})"
    return {"figure": figure, "numbers": numbers}


def measured(tool: str, case: str, way: str, folder: Path) -> Way:
    """One case by one way."""
    if case == "resume":
        return resumed(tool, way, folder)
    process(folder, tool, case, way, str(folder), limit=LIMIT_S.get(case, 180.0))
    numbers = json.loads((folder / "numbers.json").read_text())
    if case == "save":
        if numbers["control"]["outcome"] != killing.WHOLE:
            raise Failed(f"killed between saves, it does not resume: {numbers['control']}")
        return {"figure": f"{numbers['bad']} of {numbers['kills']} bad", "numbers": numbers}
    if numbers["control"] > CONTROL:
        raise Failed(f"the control is not exact: {numbers}")
    if case == "memory":
        figure = "bitwise" if numbers["error"] == 0 else f"differs ({numbers['error']:.1e})"
    else:
        figure = f"exact ({numbers['error']:.0e})" if numbers["error"] <= EXACT else f"{numbers['error']:.1e}"
    return {"figure": figure + (" no step" if numbers.get("steps_of_3", 3) < 3 else ""), "numbers": numbers}


def cell(name: str, case: str) -> Way:
    """A tool's answer to a case: by each of its ways, or why there is none."""
    offer, ways = OFFERS[name], dict[str, Way]()
    if case in offer.not_offered:
        return {"figure": "not offered", "why": offer.not_offered[case]}
    for way, how in offer.how[case].items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                ways[way] = {**measured(name, case, way, Path(folder)), "how": how}
            except Failed as error:
                ways[way] = {"figure": "error", "error": str(error).replace(folder, "FOLDER"), "how": how}
    return {"figure": headline(case, ways, case in offer.undocumented), "ways": ways}


def headline(case: str, ways: dict[str, Way], undocumented: bool) -> str:
    """The table's figure: the first way's; of resumes also the finest that is bitwise."""
    finest, figure = next((way, what["figure"]) for way, what in ways.items())
    if case == "resume":
        bitwise = [way for way, what in ways.items() if what["figure"] == "bitwise"]
        figure = f"bitwise by {bitwise[0]}" if bitwise else f"{figure} by {finest}"
        return figure if not bitwise or bitwise[0] == finest else f"{figure}, differs by {finest}"
    return f"not offered ({figure})" if undocumented else figure


def versions() -> dict[str, str]:
    names = ["accelerate", "gradstep", "keras", "lightning", "pytorch-ignite", "skorch", "torch", "torchdata"]
    return {name: importlib.metadata.version(name) for name in [*names, "transformers"]}


def table(cells: dict[str, dict[str, Way]]) -> str:
    """Rows are tools, columns cases; other ways below."""
    cases = list(next(iter(cells.values())))
    rows = [["", *cases]]
    below = []
    for name, row in cells.items():
        rows.append([OFFERS[name].title, *(row[case]["figure"] for case in cases)])
        for case in cases:
            for way, what in list(row[case].get("ways", {}).items())[1:]:
                below.append(f"{OFFERS[name].title}, {case}, {way}: {what['figure']}")
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", *below])


def write(cells: dict[str, dict[str, Way]], seconds: int) -> None:
    """The record. Cells that were not run stay, if they were measured with the same releases."""
    old = json.loads(RECORD.read_text()) if RECORD.exists() else {"versions": versions(), "cells": {}}
    parts = sum(len(row) for row in cells.values()) < len(OFFERS) * len(CASES)
    if parts and old["versions"] != versions():
        sys.exit(f"not recorded: the other cells are of {old['versions']}")
    rows = {offer.title: {**old["cells"].get(offer.title, {}), **cells.get(name, {})} for name, offer in OFFERS.items()}
    record = {
        "what": CASES,
        "versions": versions(),
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        "seconds": old.get("seconds") if parts else seconds,
        "cells": {title: {case: row[case] for case in CASES if case in row} for title, row in rows.items()},
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tools", default=",".join(OFFERS))
    parser.add_argument("--cases", default=",".join(CASES))
    asked = parser.parse_args()
    tools, cases = asked.tools.split(","), asked.cases.split(",")
    began, cells = time.monotonic(), dict[str, dict[str, Way]]()
    for name in tools:
        cells[name] = {}
        for case in cases:
            cells[name][case] = cell(name, case)
            print(f"{OFFERS[name].title}, {case}: {cells[name][case]['figure']}", flush=True)
    print("\n" + table(cells))
    write(cells, round(time.monotonic() - began))
    errors = [way for row in cells.values() for each in row.values() for way in each.get("ways", {}).values()]
    for way in errors:
        if "error" in way:
            print(f"\n{way['how']}\n{way['error']}")
    if any("error" in way for way in errors):
        sys.exit("some cases could not be measured")


if __name__ == "__main__":
    main()
