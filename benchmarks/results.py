"""`make results`: runs every built-in recipe and example against the result it states, and records what came out.

A recipe says `# result: test accuracy >= 0.985`. MNIST is looked for under GRADSTEP_DATA, by default ../shared/data.
CIFAR-10's recipe runs on a coloured MNIST in the same files. An example asserts its own result. The record is
benchmarks/records/results.json.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import coloured_mnist
from gradstep.recipe import builtin, builtin_text

RECORD = Path(__file__).parent / "records" / "results.json"


def stated(recipe: str) -> tuple[str, float]:
    """`("test", 0.985)` of a recipe's comment."""
    found = re.search(r"# result: (validation|test) accuracy >= ([\d.]+)", builtin_text(recipe))
    assert found, f"{recipe} states no result"
    return {"validation": "valid", "test": "test"}[found[1]], float(found[2])


def run(recipe: str) -> dict[str, object]:
    """Trains by the command line in a folder of its own and holds the result against what is stated."""
    part, least = stated(recipe)
    with tempfile.TemporaryDirectory() as folder:
        where = dict(os.environ)
        if recipe == "cifar10":
            coloured_mnist.write(Path(folder) / "data" / "cifar10")
            where["GRADSTEP_DATA"] = str(Path(folder) / "data")
        began = time.perf_counter()
        command = [sys.executable, "-m", "gradstep", "train", recipe, "quiet=true"]
        subprocess.run(command, cwd=folder, env=where, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - began
        rows = [json.loads(line) for line in (Path(folder) / "runs/latest/metrics.jsonl").read_text().splitlines()]
    values = [row[f"{part}/accuracy"] for row in rows if row["kind"] == part]
    epochs = max(row["epoch"] for row in rows if row["kind"] == "epoch")
    reached = max(values)  # of the test there is one value, with the weights that validation chose
    best = max((row for row in rows if row["kind"] == "valid"), key=lambda row: row["valid/accuracy"])
    return {
        "recipe": recipe,
        "command": f"gradstep train {recipe}",
        "stated": f"{part} accuracy >= {least}",
        "reached": reached,
        "epochs": epochs,
        "chosen_epoch": best["epoch"],
        "seconds": round(seconds, 1),
        "holds": reached >= least,
    }


def run_example(path: Path) -> dict[str, object]:
    """Runs a program that asserts the result its docstring states."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        done = subprocess.run([sys.executable, str(path)], cwd=folder, capture_output=True, text=True)
        seconds = time.perf_counter() - began
    stated = re.search(r"^Result:\s+(.*)$", path.read_text(), flags=re.MULTILINE)
    assert stated, f"{path.name} states no result"
    return {
        "example": path.name,
        "stated": stated[1],
        "last_line": done.stdout.splitlines()[-1] if done.stdout else done.stderr,
        "seconds": round(seconds, 1),
        "holds": done.returncode == 0,
    }


def main() -> None:
    data = Path(__file__).resolve().parents[2] / "shared" / "data"
    os.environ.setdefault("GRADSTEP_DATA", str(data))
    results = []
    examples = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.py"))
    for each in [*builtin(), *examples]:
        results.append(run_example(each) if isinstance(each, Path) else run(each))
        print(json.dumps(results[-1]), flush=True)
    machine = {"processor": platform.machine(), "cores": os.cpu_count(), "torch": str(torch.__version__)}
    RECORD.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")
    if not all(result["holds"] for result in results):
        sys.exit("something does not reach what it states")


if __name__ == "__main__":
    main()
