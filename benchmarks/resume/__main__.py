"""`make resumes`: a run stopped in mid-epoch and resumed, by four tools. Writes benchmarks/records/resume.json.

    GRADSTEP_DATA=DATA .venv-peers/bin/python -m benchmarks.resume [--tools gradstep,lightning] [--kills 5]

DATA/mnist holds MNIST's training files. A run of some tools replaces their rows of the record.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.resume.problem import EVERY, PER_EPOCH, SAMPLES, STEPS
from benchmarks.resume.trial import ROOT, Bench, Contender, Failed, killed, stopped_cleanly, uninterrupted
from gradstep.data.named import load_named

RECORD = ROOT / "benchmarks" / "records" / "resume.json"
STOP = 4 * EVERY  # a checkpoint within the second epoch
Row = dict[str, Any]

LIGHTNING = f"ModelCheckpoint(every_n_train_steps={EVERY}, save_last=True), fit(ckpt_path='last')"
ACCELERATE = f"save_state() every {EVERY} steps, load_state()"
CONTENDERS = [
    Contender("gradstep", "gradstep_run", "gradstep", "", f"fit(checkpoint={{'every': '{EVERY} steps'}}, resume=True)"),
    Contender("Lightning", "lightning_run", "lightning", "", LIGHTNING),
    Contender(
        "Lightning, stateful loader", "lightning_run", "lightning", "stateful",
        f"{LIGHTNING}, torchdata's StatefulDataLoader",
    ),
    Contender("Accelerate", "accelerate_run", "accelerate", "", f"{ACCELERATE}, skip_first_batches()"),
    Contender(
        "Accelerate, seedable sampler", "accelerate_run", "accelerate", "seedable",
        f"{ACCELERATE}, skip_first_batches(), use_seedable_sampler=True",
    ),
    Contender(
        "Accelerate, stateful loader", "accelerate_run", "accelerate", "stateful",
        f"{ACCELERATE}, use_stateful_dataloader=True (torchdata)",
    ),
    Contender(
        "HF Trainer", "transformers_run", "transformers", "",
        f"save_strategy='steps', save_steps={EVERY}, train(resume_from_checkpoint=...)",
    ),
]  # fmt: skip


def mnist(path: Path) -> None:
    """The first samples of MNIST's training part, each with its number as a last column, read once for all."""
    images, labels = load_named("mnist").train.batch(torch.arange(SAMPLES), 0, 0)
    numbers = torch.arange(SAMPLES, dtype=torch.float32)[:, None]  # below 2**24, so float32 holds them exactly
    save_file({"inputs": torch.cat([images.flatten(1) / 255, numbers], dim=1), "targets": labels}, path)


def row(contender: Contender, data: Path, kills: int) -> Row:
    """All of one contender's runs."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(contender, data, Path(folder))
        found: Row = {"how": contender.how, "release": importlib.metadata.version(contender.package)}
        try:
            found["uninterrupted"] = whole = uninterrupted(bench)
            found["clean_stop"] = stopped_cleanly(bench, STOP)
            found["kills"] = [killed(bench, seed, whole["seconds_of_training"]) for seed in range(1, kills + 1)]
        except Failed as error:
            found["error"] = str(error).replace(folder, "FOLDER")
        found["load_of_the_machine"] = round(os.getloadavg()[1], 1)  # the last five minutes'; times are read with it
        return found


def amount(value: float) -> str:
    return "bitwise" if value == 0.0 else f"{value:.1e}"


def exact(kills: list[Row]) -> str:
    """How many of some kills ended bit for bit where the uninterrupted run did."""
    return f"{sum(kill['largest_difference'] == 0.0 for kill in kills)} of {len(kills)}" if kills else "none came"


def span(values: Iterable[float]) -> str:
    values = list(values)
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def line(title: str, what: Row) -> list[str]:
    """A contender's row of the table."""
    if "error" in what:
        return [title, "error", *[""] * (len(HEAD) - 2)]
    clean, whole = what["clean_stop"], what["uninterrupted"]
    good = [kill for kill in what["kills"] if "error" not in kill]
    failed = len(what["kills"]) - len(good)
    # A run that starts again at 0, or at an epoch's end, has less to restore: counted for itself.
    within = [kill for kill in good if kill["resumed_at_step"] % PER_EPOCH]
    between = [kill for kill in good if not kill["resumed_at_step"] % PER_EPOCH]
    trials = [each for each in (clean, *good) if "error" not in each]
    times = [each["seconds_to_first_step"] for each in trials if each["seconds_to_first_step"] is not None]
    both = [(each["samples_used_again_within_an_epoch"], each["samples_left_out"]) for each in trials]
    return [
        title,
        "yes" if whole["repeatable"] else "NO",
        "fails" if "error" in clean else amount(clean["largest_difference"]),
        exact(within),
        exact(between) + (f", {failed} fail" if failed else ""),
        amount(max(kill["largest_difference"] for kill in good)) if good else "",
        span(kill["steps_done_again"] for kill in good) if good else "",
        f"{max(used for used, _ in both)} / {max(left for _, left in both)}" if both else "",
        f"{sum(each['same_samples_in_the_same_order'] for each in trials)} of {len(trials)}",
        f"{whole['seconds_to_first_step']:.1f} / " + (f"{sum(times) / len(times):.1f}" if times else ""),
    ]


HEAD = [
    "tool", "repeatable", "clean stop", "killed, resumed within an epoch: bitwise", "at an epoch's start: bitwise",
    "largest difference", "steps again", "samples again / left out", "same order", "s to first step, fresh / resumed",
]  # fmt: skip


def table(rows: dict[str, Row]) -> str:
    """A table for people and for a page in Markdown alike."""
    lines = [HEAD, *(line(title, what) for title, what in rows.items())]
    widths = [max(len(each[column]) for each in lines) for column in range(len(HEAD))]
    text = [" | ".join(cell.ljust(width) for cell, width in zip(each, widths, strict=True)) for each in lines]
    rule = " | ".join("-" * width for width in widths)
    return "\n".join(f"| {each} |" for each in [text[0], rule, *text[1:]])


def write(rows: dict[str, Row], kills: int, seconds: float) -> dict[str, Row]:
    """The record. Rows that were not run stay as they were."""
    old = json.loads(RECORD.read_text())["rows"] if RECORD.exists() else {}
    titles = [contender.title for contender in CONTENDERS]
    all_rows = {title: rows.get(title, old.get(title)) for title in titles if title in rows or title in old}
    packages = ["torch", "torchdata", "gradstep", "lightning", "accelerate", "transformers"]
    record = {
        "what": f"784-256-10 with dropout on {SAMPLES} of MNIST's images, {STEPS} steps in three epochs, a checkpoint "
        f"every {EVERY} steps; stopped after step {STOP} or killed at {kills} random moments, resumed, compared with "
        "the same tool's uninterrupted run",
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "machine": {
            "processor": platform.machine(), "cores": os.cpu_count(), "threads": 1, "python": platform.python_version(),
        },
        "seconds": {"rows": len(rows), "wall_clock": round(seconds)},
        "rows": all_rows,
    }  # fmt: skip
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    return all_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tools", default="gradstep,lightning,accelerate,transformers")
    parser.add_argument("--kills", type=int, default=5)
    asked = parser.parse_args()
    tools, began, rows = asked.tools.split(","), time.monotonic(), dict[str, Row]()
    with tempfile.TemporaryDirectory() as folder:
        mnist(data := Path(folder) / "data.safetensors")
        for contender in CONTENDERS:
            if contender.package in tools:
                rows[contender.title] = row(contender, data, asked.kills)
                print(" | ".join(line(contender.title, rows[contender.title])), flush=True)
    print("\n" + table(write(rows, asked.kills, time.monotonic() - began)))
    if errors := [f"{title}: {what['error']}" for title, what in rows.items() if "error" in what]:
        sys.exit("\n".join(errors))


if __name__ == "__main__":
    main()
