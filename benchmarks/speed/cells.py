"""What is measured against what, and what is wanted of it. A goal is met when the interval's upper end is within it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.speed.problems import PROBLEMS, Job

NETS = ("torch7", "lenet", "two_layer_sgd", "two_layer_adam")
NAMES = {
    "null": "nothing to compute: `Linear(1, 1)`",
    "torch7": "Torch7's net, MNIST",
    "lenet": "LeNet, MNIST",
    "two_layer_sgd": "two linear layers, SGD",
    "two_layer_adam": "two linear layers, Adam",
}
TOOLS = {
    "raw_naive": "the tutorial's loop",
    "raw_good": "a good loop by hand",
    "raw_best": "the best loop by hand",
    "lightning": "Lightning",
    "keras": "Keras on torch",
    "ignite": "Ignite",
    "accelerate": "Accelerate",
}


@dataclass(frozen=True)
class Cell:
    """One comparison.

    `measure`: `ratio` of times a step; `difference` of them in microseconds; `share`, our difference to `theirs` by
    that of `third`; `memory`, the ratio of peaks.
    """

    title: str
    against: str
    ours: Job
    theirs: Job
    goal: float | None
    measure: str = "ratio"
    third: Job | None = None


def job(tool: str, problem: str, kind: str = "step", **options: Any) -> Job:
    return Job(tool, problem, kind, PROBLEMS[problem].threads, options)


def _null() -> dict[str, Cell]:
    ours, good = job("gradstep", "null", plan="plain"), job("raw_good", "null")
    barebones = job("lightning", "null", barebones=True)
    title = f"{NAMES['null']}, µs a step more"
    return {
        "null": Cell(title, TOOLS["raw_good"], ours, good, 5.0, "difference"),
        "null share": Cell(
            f"{NAMES['null']}, our overhead by theirs",
            "Lightning, `barebones=True`", ours, good, 0.1, "share", barebones,
        ),
    }  # fmt: skip


def _steps() -> dict[str, Cell]:
    cells = {}
    for net in NETS:
        cells[f"{net} plain"] = Cell(
            f"{NAMES[net]}, a step, `plan=plain`", f"{TOOLS['raw_best']}, same kernels",
            job("gradstep", net, plan="plain"), job("raw_best", net, fused=False), 1.01,
        )  # fmt: skip
    for net, goal in zip(NETS, (0.60, 0.90, 0.95, 0.85), strict=True):
        cells[f"{net} measured"] = Cell(
            f"{NAMES[net]}, a step, `plan=measured`", TOOLS["raw_good"],
            job("gradstep", net, plan="measured"), job("raw_good", net), goal,
        )  # fmt: skip
    return cells


def _data() -> dict[str, Cell]:
    goals = {
        ("torch7", "raw_naive"): 0.55,
        ("lenet", "raw_naive"): 0.90,
        ("torch7", "lightning"): 0.50,
        ("torch7", "keras"): 0.40,
    }
    return {
        f"{net} data {tool}": Cell(
            f"{NAMES[net]}, epochs with their data, `plan=measured`", TOOLS[tool],
            job("gradstep", net, "data", plan="measured"), job(tool, net, "data"), goal,
        )
        for (net, tool), goal in goals.items()
    }  # fmt: skip


def _rest() -> dict[str, Cell]:
    cells = {
        f"{net} evaluation": Cell(
            f"{NAMES[net]}, evaluation in `fit`, `plan=measured`", "a `no_grad` loop in batches of 256",
            job("gradstep", net, "evaluate", plan="measured"), job("raw_good", net, "evaluate"), 0.95,
        )
        for net in ("torch7", "lenet")
    }  # fmt: skip
    cells["torch7 memory"] = Cell(
        f"{NAMES['torch7']}, peak memory, `plan=plain`", TOOLS["raw_best"],
        job("gradstep", "torch7", plan="plain"), job("raw_best", "torch7", fused=False), 1.02, "memory",
    )  # fmt: skip
    return cells


def _others() -> dict[str, Cell]:
    """In the full form alone, without goals: no difference at all, and what other tools take for the same steps."""
    good = job("raw_good", "two_layer_sgd")
    control = Cell(
        f"{NAMES['two_layer_sgd']}, a step of a good loop by hand", "itself, another process", good, good, None
    )
    return {"control": control} | {
        f"{net} plain {tool}": Cell(
            f"{NAMES[net]}, a step, `plan=plain`", TOOLS[tool] + (", `barebones=True`" if bare else ""),
            job("gradstep", net, plan="plain"), job(tool, net, **bare), None,
        )
        for net in ("null", "lenet")
        for tool, bare in (
            ("lightning", {"barebones": True}), ("ignite", {}), ("accelerate", {}), ("keras", {}),
        )
    }  # fmt: skip


CELLS: dict[str, Cell] = {**_null(), **_steps(), **_data(), **_rest()}
OTHERS: dict[str, Cell] = _others()
