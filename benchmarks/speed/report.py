"""`python -m benchmarks.speed.report`: writes docs/BENCHMARKS.md from benchmarks/records/speed.json."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from benchmarks.speed.blocks import FEWEST, SHARE, STOLEN
from benchmarks.speed.measuring import FULL, SHORT
from benchmarks.speed.parity import REARRANGED, SAME, STEPS

ROOT = Path(__file__).resolve().parents[2]
RECORD, PAGE = ROOT / "benchmarks" / "records" / "speed.json", ROOT / "docs" / "BENCHMARKS.md"
GROUPS = {
    "The loop's own time": ("difference", "share"),
    "Times": ("ratio",),
    "Memory": ("memory",),
}

METHOD = f"""
Every contender is a process of its own, warm, in which one endless training runs by its tool's own loop. The clock is
in the feed: between two blocks the training waits for its next batch, and a block lasts from the moment its first
batch is asked for to the moment the batch after its last one is. So data, forward, backward, update and all that a
tool does for a step are inside. All start from the same weights and take the same batches of 64 in the same order.
Before anything is timed the first {STEPS} losses must be those of the loop by hand, to {SAME:.0e} relative
({REARRANGED:.0e} where the same sums are added in another order: Keras, fused optimizers, other memory formats), or
the cell is void. Then those on two threads take turns, A B B A; which begins is drawn. Those on one thread run side by
side, each on a core of its own, and change places: what disturbs the machine disturbs both in the same moment. The
figure is the median of the pairs' ratios of time a step, with a bootstrap interval of 95 % over process restarts and
pairs ({SHORT.restarts} restarts in the short form, {FULL.restarts} in the full one). A pair is left out, as a whole,
if in either block the host stole more than {100 * STOLEN:.0f} % of the machine's time, or a process got less than {
    100 * SHARE:.0f} % of its usual CPU time for its wall time; fewer than {
    FEWEST
} pairs are no figure. A goal is met when the
interval's upper end is within it, and missed when its lower end is not. Memory is the peak of the resident set.

The loops by hand look for a loss or gradient that is no number before each update, as gradstep does. The tutorial's
loads sample by sample through a DataLoader and reads the loss of each step; the good one has whole batches of floats
in memory; the best one gathers once a tensor, keeps bytes as bytes until then, has the optimizer's fused kernel unless
"same kernels" says that it has gradstep's; and keeps what a step frees, as gradstep does. Each draws an order at each
epoch, as a loop must, and then takes gradstep's. Where epochs with their data are timed, the other tools have torch's
DataLoader without workers, sample by sample, and gradstep its own feed over the bytes. Evaluations are asked for in
batches of 256, which the plan may join. What is not equal: gradstep's process imports more than a loop's, which its
peak of memory shows; and the other tools show their progress to nobody.

Where "passive" stands beside a form, `--passive` was given: OpenMP's threads slept where they waited for each other, in
every contender. By default they spin, and where somebody else took a core away a step on two threads was four times
as slow, for whichever of the two it happened to.
"""

AGAIN = """
```sh
make speed                                                       # the full form, an hour and a half
.venv-peers/bin/python -m benchmarks.speed --short               # a quarter of an hour; part of make bench
.venv-peers/bin/python -m benchmarks.speed --only "lenet plain"  # one cell; --list names them
.venv-peers/bin/python -m benchmarks.speed.report                # this page, from the record
```
"""


def figure(cell: dict[str, Any]) -> str:
    """A ratio with its interval, or why there is none."""
    if "void" in cell:
        return "void: " + cell["void"].replace("|", "/")  # no column of its own
    digits = 1 if cell["measure"] == "difference" else 3
    low, high = cell["interval"]
    return f"{cell['value']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def verdict(cell: dict[str, Any]) -> str:
    """Whether the goal is met: the whole interval within it; missed: none of it; not shown: it lies across."""
    if cell["goal"] is None:
        return "no goal"
    if "interval" not in cell:
        return "open"
    low, high = cell["interval"]
    return "met" if high <= cell["goal"] else "missed" if low > cell["goal"] else "not shown"


def row(cell: dict[str, Any]) -> str:
    """A line of the table."""
    goal = "" if cell["goal"] is None else f"≤ {cell['goal']:g}"
    cpu = f"{cell['cpu']['value']:.3f}" if "cpu" in cell else ""
    pairs = f"{cell['pairs']} + {cell['discarded']}, {cell['form']}" if "pairs" in cell else ""
    return f"| {cell['title']} | {cell['against']} | {figure(cell)} | {goal} | {verdict(cell)} | {cpu} | {pairs} |"


def table(cells: list[dict[str, Any]]) -> str:
    head = "| what | against | ours by theirs | goal | | CPU time | pairs + left out |\n|---|---|---|---|---|---|---|"
    return "\n".join([head, *map(row, cells)])


def page(record: dict[str, Any]) -> str:
    """The whole of docs/BENCHMARKS.md."""
    here, cells = record["machine"], list(record["cells"].values())
    with_goals = [cell for cell in cells if cell["goal"] is not None]
    counts = {
        word: sum(verdict(cell) == word for cell in with_goals) for word in ("met", "missed", "not shown", "open")
    }
    versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
    threads = ", ".join(f"{name} {number}" for name, number in here["threads"].items())
    machine = (
        f"Measured on {here['processor']}, {here['cores']} cores, Python {here['python']}; {versions}. "
        f"Threads: {threads}. "
        f"Of {len(with_goals)} goals {counts['met']} are met, {counts['missed']} missed, {counts['not shown']} not "
        f"shown (the interval lies across the goal), {counts['open']} open (void)."
    )
    parts = [
        "# How fast it is",
        "<!-- Written by `python -m benchmarks.speed.report` from benchmarks/records/speed.json; do not edit. -->",
        textwrap.fill(machine, 120),
    ]
    for heading, measures in GROUPS.items():
        some = [cell for cell in cells if cell["measure"] in measures]
        if some:
            parts += [f"## {heading}", *([_MICROSECONDS] if "difference" in measures else []), table(some)]
    method = [textwrap.fill(" ".join(paragraph.split()), 120) for paragraph in METHOD.split("\n\n")]
    return "\n\n".join([*parts, "## How it is measured", *method, "## Again", AGAIN.strip()]) + "\n"


_MICROSECONDS = (
    "Of a net with nothing to compute: µs a step above the loop by hand, and those as a share of Lightning's."
)


def main() -> None:
    PAGE.write_text(page(json.loads(RECORD.read_text())))


if __name__ == "__main__":
    main()
