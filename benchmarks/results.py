"""`make results`: runs every built-in recipe and example against the result it states, and records what came out.

A recipe says `# result: test accuracy >= 0.985`. MNIST is looked for under GRADSTEP_DATA, by default ../shared/data.
CIFAR-10's recipe runs on a coloured MNIST in the same files; mnist-torch7 runs with three seeds and is held against its
document's table, epoch by epoch. An example asserts its own result. The record is benchmarks/records/results.json.

    python -m benchmarks.results [NAME ...]     # only these; what the record says of the others stays
"""

from __future__ import annotations

import csv
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

ROOT = Path(__file__).resolve().parents[1]
RECORD = Path(__file__).parent / "records" / "results.json"
SEEDS = (0, 1, 2)  # of the recipe that is held against a table
# What an example is run with here, where that is more than a test has time for.
IN_FULL = {
    "five_levels.py": ["--seeds", *map(str, range(10))],
    "three_factors.py": ["--full", "--threads", "2", "--record", str(RECORD.with_name("three_factors.json"))],
}


def stated(recipe: str) -> tuple[str, str, float]:
    """`("test/accuracy", ">=", 0.985)` of a recipe's comment."""
    found = re.search(r"# result: (validation|test|train) (accuracy|loss) (>=|<=) ([\d.e-]+)", builtin_text(recipe))
    assert found, f"{recipe} states no result"
    part = {"validation": "valid"}.get(found[1], found[1])
    return f"{part}/{found[2]}", found[3], float(found[4].rstrip("."))


def trained(recipe: str, *settings: str) -> tuple[list[dict[str, float]], float]:
    """`(rows of metrics.jsonl, seconds)` of a training by the command line, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        where = dict(os.environ)
        if recipe == "cifar10":
            coloured_mnist.write(Path(folder) / "data" / "cifar10")
            where["GRADSTEP_DATA"] = str(Path(folder) / "data")
        began = time.perf_counter()
        command = [sys.executable, "-m", "gradstep", "train", recipe, "quiet=true", *settings]
        subprocess.run(command, cwd=folder, env=where, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - began
        rows = [json.loads(line) for line in (Path(folder) / "runs/latest/metrics.jsonl").read_text().splitlines()]
    return rows, seconds


def run(recipe: str) -> dict[str, object]:
    """Trains a recipe and holds the result against what is stated."""
    if recipe == "mnist-torch7":
        return run_torch7(recipe)
    rows, seconds = trained(recipe)
    return {"recipe": recipe, "command": f"gradstep train {recipe}", **held(recipe, rows), "seconds": round(seconds, 1)}


def held(recipe: str, rows: list[dict[str, float]]) -> dict[str, object]:
    """What was reached, and whether it is what the recipe states."""
    name, sign, limit = stated(recipe)
    values = [row[name] for row in rows if name in row]
    reached = max(values) if sign == ">=" else values[-1]  # of a test there is one, with the weights that were chosen
    best = max((row for row in rows if row["kind"] == "valid"), key=lambda row: row["valid/accuracy"], default=None)
    return {
        "stated": f"{name} {sign} {limit:g}",
        "reached": reached,
        "epochs": max(row["epoch"] for row in rows if row["kind"] == "epoch"),
        **({"chosen_epoch": best["epoch"]} if best else {}),
        "holds": reached >= limit if sign == ">=" else reached <= limit,
    }


def run_torch7(recipe: str) -> dict[str, object]:
    """Three seeds, every epoch of which must lie in the range that the document's correct methods have, widened."""
    with (ROOT / "examples" / "torch7_table.csv").open() as file:
        lines = [line for line in csv.DictReader(file) if line["method"] in ("1", "2", "4", "5")]
    table, whole, began = [], {}, time.perf_counter()
    for seed in SEEDS:
        rows, _ = trained(recipe, f"seed={seed}")
        whole[seed] = held(recipe, rows)
        for epoch in range(1, 11):
            (loss,) = (row["train/loss"] for row in rows if row["kind"] == "epoch" and row["epoch"] == epoch)
            (right,) = (row["valid/accuracy"] for row in rows if row["kind"] == "valid" and row["epoch"] == epoch)
            each = {"seed": seed, "epoch": epoch, "loss": loss, "printed": right * 199 / 200, "accuracy": right}
            for name, column in (("loss", "loss"), ("printed", "accuracy_printed")):
                known = [float(line[column]) for line in lines if int(line["epoch"]) == epoch]
                each[f"{name}_range"] = [min(known) * 0.9, max(known) * 1.1]
                each[f"{name}_holds"] = each[f"{name}_range"][0] <= each[name] <= each[f"{name}_range"][1]
            table.append(each)
    inside = sum(each["loss_holds"] and each["printed_holds"] for each in table)
    return {
        "recipe": recipe,
        "command": f"gradstep train {recipe} seed=0, 1, 2",
        "stated": f"{whole[0]['stated']}; all epochs in the document's range",
        "reached": f"{min(float(each['reached']) for each in whole.values()):.4f}; {inside} of {len(table)} epochs",
        "seconds": round(time.perf_counter() - began, 1),
        "holds": all(each["holds"] for each in whole.values()) and inside == len(table),
        "table": table,
    }


def run_example(path: Path) -> dict[str, object]:
    """Runs a program that asserts the result its docstring states."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        more = IN_FULL.get(path.name, [])
        done = subprocess.run([sys.executable, str(path), *more], cwd=folder, capture_output=True, text=True)
        seconds = time.perf_counter() - began
    stated = re.search(r"^Result:\s+(.*)$", path.read_text(), flags=re.MULTILINE)
    assert stated, f"{path.name} states no result"
    return {
        "example": path.name,
        **({"arguments": [each for each in more if not each.startswith("/")]} if more else {}),
        "stated": stated[1],
        "last_line": done.stdout.splitlines()[-1] if done.stdout else done.stderr,
        "seconds": round(seconds, 1),
        "holds": done.returncode == 0,
    }


def main() -> None:
    data = Path(__file__).resolve().parents[2] / "shared" / "data"
    os.environ.setdefault("GRADSTEP_DATA", str(data))
    wanted = sys.argv[1:]
    kept = json.loads(RECORD.read_text())["results"] if wanted and RECORD.exists() else []
    results = []
    for each in [*builtin(), *sorted((ROOT / "examples").glob("*.py"))]:
        name = each if isinstance(each, str) else each.name
        if wanted and name not in wanted:
            results += [one for one in kept if name in (one.get("recipe"), one.get("example"))]
            continue
        results.append(run_example(each) if isinstance(each, Path) else run(each))
        print(json.dumps({key: value for key, value in results[-1].items() if key != "table"}), flush=True)
    machine = {"processor": platform.machine(), "cores": os.cpu_count(), "torch": str(torch.__version__)}
    RECORD.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")
    if not all(result["holds"] for result in results):
        sys.exit("something does not reach what it states")


if __name__ == "__main__":
    main()
