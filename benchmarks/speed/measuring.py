"""One cell, from its contenders' start to its figures."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.speed import estimates, parity
from benchmarks.speed.blocks import Pair, enough, kept, side_by_side, turns
from benchmarks.speed.cells import Cell, job
from benchmarks.speed.estimates import Estimate
from benchmarks.speed.problems import Data, Job, prepare
from benchmarks.speed.processes import Server, Void

MEMORY_STEPS = 150


@dataclass(frozen=True)
class Form:
    """How long it is looked at: processes started anew, rounds of A B B A in each, seconds a block."""

    name: str
    restarts: int
    rounds: int
    seconds: float


SHORT, FULL = Form("short", 2, 5, 0.25), Form("full", 5, 10, 0.4)


@dataclass
class Bench:
    """The folder with the problems' data, and what the reference's losses are."""

    folder: Path
    form: Form
    draws: random.Random = field(default_factory=lambda: random.Random(0))
    _data: dict[str, Data] = field(default_factory=dict)
    _expected: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    _started: int = 0

    def data(self, problem: str) -> Data:
        if problem not in self._data:
            self._data[problem] = prepare(problem, self.folder / problem)
        return self._data[problem]

    @contextmanager
    def servers(self, *jobs: Job) -> Iterator[list[Server]]:
        """Their processes, each with its training at its first batch; ended afterwards whatever happens."""
        started: list[Server] = []
        try:
            for each in jobs:
                self._started += 1
                started.append(Server(each, self.data(each.problem), self.folder / f"process-{self._started}"))
            for server in started:
                server.ready()
            yield started
        finally:
            for server in started:
                server.close()

    def expected(self, of: Job) -> list[float]:
        """The losses that a good loop by hand sees."""
        kind = "evaluate" if of.kind == "evaluate" else "step"
        if (of.problem, kind) not in self._expected:
            with self.servers(job("raw_good", of.problem, kind)) as (reference,):
                self._expected[of.problem, kind] = parity.losses(reference, kind)
        return self._expected[of.problem, kind]

    def same_steps(self, server: Server) -> float:
        """Holds a contender's first losses against the reference's. Void where they are not the same."""
        of = server.job
        allowed, _ = parity.tolerance(of.tool, of.kind, of.options)
        return parity.gate(of.tool, parity.losses(server, of.kind), self.expected(of), allowed)


def duel(bench: Bench, ours: Job, theirs: Job) -> dict[str, Any]:
    """Two contenders in turns, over restarts: the pairs that count, by restart, and what is said of them."""
    restarts: list[list[Pair]] = []
    apart, made = {"ours": 0.0, "theirs": 0.0}, 0
    bench.expected(ours)  # its process is gone before the two begin
    for _ in range(bench.form.restarts):
        with bench.servers(ours, theirs) as (one, other):
            for name, server in (("ours", one), ("theirs", other)):
                apart[name] = max(apart[name], bench.same_steps(server))
            pairs = _pairs(bench, one, other)
        made += len(pairs)
        restarts.append(kept(pairs))
    enough(restarts)
    return {"restarts": restarts, "pairs": sum(map(len, restarts)), "made": made, "apart": apart}


def _pairs(bench: Bench, one: Server, other: Server) -> list[Pair]:
    """Side by side where each needs one core and there are two, else in turns."""
    form, alone = bench.form, one.job.threads == other.job.threads == 1
    if alone and hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) > 1:
        return side_by_side(one, other, 2 * form.rounds, form.seconds)
    return turns(one, other, form.rounds, form.seconds, bench.draws)


def figures(bench: Bench, cell: Cell) -> dict[str, Any]:
    """The cell as the record has it. Void where it can't be measured."""
    if cell.measure == "memory":
        return memory(bench, cell)
    found = duel(bench, cell.ours, cell.theirs)
    restarts: list[list[Pair]] = found["restarts"]
    ratio, cpu = estimates.ratio(restarts), estimates.ratio(restarts, cpu=True)
    apart = estimates.differences(restarts)
    estimate, pairs, made = ratio, found["pairs"], found["made"]
    more: dict[str, Any] = {}
    if cell.measure == "difference":
        estimate, more = estimates.median(apart), {"ratio": ratio.rounded()}
    if cell.measure == "share":
        assert cell.third is not None
        beside = duel(bench, cell.third, cell.theirs)
        theirs = estimates.differences(beside["restarts"])
        estimate = estimates.quotient(apart, theirs)
        more = {"us_more": {"ours": estimates.median(apart).rounded(), "third": estimates.median(theirs).rounded()}}
        pairs, made = pairs + beside["pairs"], made + beside["made"]
    return {
        **judged(cell, estimate), "cpu": cpu.rounded(), "us_per_step": _usual(restarts), **more,
        "pairs": pairs, "discarded": made - pairs, "losses_apart": found["apart"],
    }  # fmt: skip


def memory(bench: Bench, cell: Cell) -> dict[str, Any]:
    """Peaks of processes that made the same steps."""
    ratios, peaks = [], {"ours": 0.0, "theirs": 0.0}
    for _ in range(bench.form.restarts):
        found = {}
        for name, each in (("ours", cell.ours), ("theirs", cell.theirs)):
            with bench.servers(each) as (server,):
                bench.same_steps(server)
                found[name] = server.run(MEMORY_STEPS).peak_kb
            peaks[name] = round(max(peaks[name], found[name] / 1024), 1)
        ratios.append([found["ours"] / found["theirs"]])
    return {**judged(cell, estimates.median(ratios)), "peak_mb": peaks, "pairs": len(ratios), "discarded": 0}


def judged(cell: Cell, estimate: Estimate) -> dict[str, Any]:
    return {**estimate.rounded(), "met": None if cell.goal is None else estimate.high <= cell.goal}


def _usual(restarts: list[list[Pair]]) -> dict[str, float]:
    flat = [pair for pairs in restarts for pair in pairs]
    return {
        "ours": round(statistics.median(pair.ours.wall_us for pair in flat), 2),
        "theirs": round(statistics.median(pair.theirs.wall_us for pair in flat), 2),
    }


def measured(bench: Bench, cell: Cell) -> dict[str, Any]:
    """The cell's line of the record, whatever comes of it."""
    notes = []
    for each in (cell.ours, cell.theirs):
        allowed, why = parity.tolerance(each.tool, each.kind, each.options)
        notes += [f"losses of {each.tool} may be {allowed:.0e} apart: {why}"] if why else []
    began = time.monotonic()
    try:
        found = figures(bench, cell)
    except Void as void:
        found = {"void": str(void)}
    form = bench.form.name + (", passive" if os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive" else "")
    return {**_what(cell), **found, "notes": notes, "form": form, "seconds": round(time.monotonic() - began)}


def _what(cell: Cell) -> dict[str, Any]:
    jobs = {"ours": asdict(cell.ours), "theirs": asdict(cell.theirs)}
    third = {"third": asdict(cell.third)} if cell.third else {}
    return {
        "title": cell.title, "against": cell.against, "measure": cell.measure, "goal": cell.goal, **jobs, **third,
    }  # fmt: skip
