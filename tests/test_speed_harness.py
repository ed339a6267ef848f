"""The speed benchmark itself: its estimates, its gate, its rules and its processes. Nothing here depends on a time."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from benchmarks.speed import estimates, parity
from benchmarks.speed.batches import Order
from benchmarks.speed.blocks import Pair, calibrated, enough, kept, side_by_side, turns
from benchmarks.speed.cells import CELLS, OTHERS, job
from benchmarks.speed.clock import Clock, peak_kb
from benchmarks.speed.measuring import SHORT, Bench, Form, figures
from benchmarks.speed.problems import Job, prepare
from benchmarks.speed.processes import Block, Void
from benchmarks.speed.report import PAGE, RECORD, page, verdict

from gradstep.data import Feed, Tensors

QUICK = Form("short", restarts=1, rounds=2, seconds=0.02)


def block(us: float, share: float = 1.0, stolen: float = 0.0, steps: int = 100) -> Block:
    """A block of so many µs a step."""
    return Block(steps, round(us * 1e3 * steps), round(us * 1e3 * steps * share), 1000, None, stolen)


def noisy(ratio: float, seed: int, restarts: int = 3, pairs: int = 12) -> list[list[Pair]]:
    """Pairs whose two share the machine's mood; each process is a little off, each block more so."""
    draws, found = random.Random(seed), []
    for _ in range(restarts):
        off, some = draws.gauss(0, 0.003), []
        for _ in range(pairs):
            mood = 100 * draws.uniform(1, 2)
            ours = mood * ratio * (1 + off) * (1 + draws.gauss(0, 0.02))
            some.append(Pair(block(ours), block(mood * (1 + draws.gauss(0, 0.02)))))
        found.append(some)
    return found


@pytest.mark.parametrize("ratio", [0.6, 1.0, 1.1])
def test_the_interval_holds_the_ratio_that_was_planted(ratio: float) -> None:
    found = [estimates.ratio(noisy(ratio, seed)) for seed in range(20)]
    assert sum(each.low <= ratio <= each.high for each in found) >= 16
    assert all(each.low <= each.value <= each.high and each.high / each.low < 1.1 for each in found)


def test_a_slowdown_of_ten_percent_is_seen_and_none_is_not() -> None:
    slow, same = estimates.ratio(noisy(1.1, 3)), estimates.ratio(noisy(1.0, 3))
    assert slow.low > 1.01
    assert same.low < 1 < same.high


def test_what_differs_between_processes_is_in_the_interval() -> None:
    steady = [[0.0] * 10, [0.1] * 10, [0.2] * 10]  # no noise within a process
    found = estimates.median(steady)
    assert (found.low, found.high) == (0.0, 0.2)


def test_the_ratio_of_cpu_time_is_its_own() -> None:
    pairs = [[Pair(block(100, share=2.0), block(100, share=1.0))] * 5]
    assert estimates.ratio(pairs).value == pytest.approx(1.0)
    assert estimates.ratio(pairs, cpu=True).value == pytest.approx(2.0)


def test_a_share_is_of_two_differences_to_the_same_third() -> None:
    ours, theirs = estimates.differences(noisy(1.1, 1)), estimates.differences(noisy(3.0, 2))
    found = estimates.quotient(ours, theirs)
    assert found.low < 0.05 < found.high < 0.1


def swapped(pair: Pair) -> Pair:
    return Pair(pair.theirs, pair.ours)


def test_the_rule_by_which_pairs_are_left_out_is_symmetric() -> None:
    quiet = [Pair(block(100), block(200, share=2.0))] * 6
    disturbed = [
        Pair(block(100, share=0.8), block(200, share=2.0)),
        Pair(block(100), block(200, share=1.6)),
        Pair(block(100, stolen=0.2), block(200, share=2.0)),
        Pair(block(100), block(200, share=2.0, stolen=0.2)),
    ]
    slow = Pair(block(1000), block(200, share=2.0))  # slow by itself: no reason to look away
    pairs = [*quiet, *disturbed, slow]
    assert kept(pairs) == [*quiet, slow]
    assert kept([swapped(pair) for pair in pairs]) == [swapped(pair) for pair in kept(pairs)]


def test_too_few_pairs_are_no_figure() -> None:
    enough([[Pair(block(1), block(1))] * 4])
    with pytest.raises(Void, match="too busy: 3 pairs"):
        enough([[Pair(block(1), block(1))] * 3])
    with pytest.raises(Void, match="too busy"):
        enough([[Pair(block(1), block(1))] * 9, []])


class Clockwork:
    """A contender of a known speed that notes when it was asked."""

    def __init__(self, name: str, us: float, asked: list[str]) -> None:
        self.name, self.us, self.asked = name, us, asked

    def run(self, steps: int, losses: bool = False) -> Block:
        self.asked.append(self.name)
        return block(self.us, steps=steps)


def test_blocks_take_turns_a_b_b_a_and_last_alike() -> None:
    asked: list[str] = []
    ours, theirs = Clockwork("A", 100, asked), Clockwork("B", 400, asked)
    assert calibrated(ours, 0.2) == 2000
    asked.clear()
    pairs = turns(ours, theirs, 20, 0.2, random.Random(0))
    assert len(pairs) == 40
    assert {pair.ours.wall_ns for pair in pairs} == {pair.theirs.wall_ns for pair in pairs}
    order = "".join(asked[-80:])
    rounds = [order[first : first + 4] for first in range(0, 80, 4)]
    assert set(rounds) == {"ABBA", "BAAB"}
    assert estimates.ratio([pairs]).value == pytest.approx(0.25)


def test_what_runs_side_by_side_changes_places_and_a_pair_is_of_both() -> None:
    class Core:
        """A core's contender: on the second core everything takes twice as long."""

        def __init__(self, us: float) -> None:
            self.us, self.core, self.running = us, 0, 0

        def run(self, steps: int) -> Block:
            return block(self.us, steps=steps)

        def stay_on(self, cores: set[int]) -> None:
            (self.core,) = cores

        def begin(self, steps: int) -> None:
            self.running = steps

        def end(self) -> Block:
            return block(self.us * (1 if self.core == sorted(os.sched_getaffinity(0))[0] else 2), steps=self.running)

    pairs = side_by_side(Core(100), Core(400), 5, 0.2)
    assert len(pairs) == 5
    assert estimates.ratio([pairs]).value == pytest.approx(0.25)
    assert pairs[0].ours.wall_us == pytest.approx(150)


def test_the_gate_lets_rounding_through_and_nothing_else() -> None:
    expected = [1.0 / number for number in range(1, 51)]
    assert parity.gate("a", [x * (1 + 5e-7) for x in expected], expected, 1e-6) == pytest.approx(5e-7, rel=1e-3)
    assert parity.gate("behind by a batch", expected[:-1], expected, 1e-6) == 0
    for wrong in ([*expected[:20], 0.9, *expected[21:]], [float("nan"), *expected[1:]], expected[1:]):
        with pytest.raises(Void, match="does not take the same steps"):
            parity.gate("a", wrong, expected, 1e-6)
    with pytest.raises(Void, match="40 losses were seen, and 50"):
        parity.gate("a", expected[:40], expected, 1e-6)


def test_only_another_order_of_sums_is_given_room() -> None:
    for tool, kind, options in [
        ("gradstep", "data", {"plan": "plain"}),
        ("raw_naive", "data", {}),
        ("raw_best", "step", {"fused": False}),
        ("lightning", "step", {"barebones": True}),
    ]:
        assert parity.tolerance(tool, kind, options) == (parity.SAME, "")
    for tool, kind, options in [
        ("keras", "step", {}),
        ("raw_best", "step", {}),
        ("raw_best", "data", {"fused": False}),
        ("gradstep", "step", {"plan": "plain", "optimizer": {"fused": True}}),
        ("gradstep", "step", {"plan": "measured"}),
    ]:
        allowed, why = parity.tolerance(tool, kind, options)
        assert allowed == parity.REARRANGED
        assert why


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("speed"), QUICK)


def small(tool: str, **options: object) -> Job:
    """A contender of the cheapest problem with data of some size."""
    return job(tool, "two_layer_sgd", **options)


def test_a_loop_by_hand_and_gradstep_take_the_same_steps_in_processes_of_their_own(bench: Bench) -> None:
    ours, theirs = job("gradstep", "null", plan="plain"), job("raw_good", "null")
    with bench.servers(ours, theirs) as servers:
        first = [server.run(50, losses=True) for server in servers]
        assert first[0].losses == first[1].losses
        assert len(first[0].losses or []) == 50
        again = [server.run(7) for server in servers]
        for each in again:
            assert (each.steps, each.losses) == (7, None)
            assert min(each.wall_ns, each.cpu_ns, each.peak_kb) > 0


def test_the_peak_of_memory_is_the_process_s_own_and_not_its_starter_s() -> None:
    held = bytearray(400_000_000)
    held[::4096] = b"x" * len(held[::4096])
    ask = "from benchmarks.speed.clock import peak_kb; print(peak_kb())"
    said = subprocess.run([sys.executable, "-c", ask], cwd=PAGE.parents[1], capture_output=True, text=True, check=True)
    assert int(said.stdout) < 400_000 < peak_kb()
    del held


def test_everybody_has_gradstep_s_order_over_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = prepare("two_layer_sgd", tmp_path)
    monkeypatch.setattr(Clock, "__init__", lambda self: None)
    monkeypatch.setattr(Clock, "paced", lambda self, items: items)
    order = Order(data, Clock(), look=True)
    feed = Feed(Tensors((data.read("inputs"), data.read("targets"))), 64, shuffle=True)
    assert [numbers.tolist() for numbers in order] == [feed.indices(0)[1].tolist()]  # looked at, and it comes again
    assert len(order) == feed.steps_per_epoch
    for epoch in range(3):
        expected = [feed.indices(epoch * len(order) + step)[1].tolist() for step in range(len(order))]
        assert [numbers.tolist() for numbers in order] == expected


def test_a_cell_is_measured_from_its_processes_to_its_line(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.speed.blocks.WARM_S", 0.01)
    monkeypatch.setattr("benchmarks.speed.measuring.kept", list)  # the machine may be as busy as it likes
    found = figures(bench, replace(CELLS["two_layer_sgd plain"], theirs=small("raw_good")))
    assert found["pairs"] == 4
    assert found["discarded"] == 0
    assert found["interval"][0] <= found["value"] <= found["interval"][1]
    assert found["losses_apart"] == {"ours": 0.0, "theirs": 0.0}


def test_a_process_that_fails_says_why(bench: Bench) -> None:
    wrong = small("gradstep", plan="fastest")
    with pytest.raises(Void, match="gradstep: RecipeError: plan"), bench.servers(wrong):
        pass


def test_the_clock_gives_every_item_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, said = object.__new__(Clock), []
    clock._commands, clock.witness, clock.about = [json.dumps({"steps": n}) for n in (3, 1, 5)], None, dict
    clock.say = said.append
    ended: Callable[[int], None] = lambda code: said.append({"exit": code})  # noqa: E731
    monkeypatch.setattr("os._exit", ended)
    assert list(clock.paced(iter(count()))) == list(range(9))
    assert [each.get("steps") for each in said] == [None, 3, 1, 5, None]
    assert said[0] == {"ready": True}
    assert said[-1] == {"exit": 0}


def test_every_goal_has_its_cell() -> None:
    goals = {name: (cell.goal, cell.measure) for name, cell in CELLS.items()}
    assert goals == {
        "null": (5.0, "difference"), "null share": (0.1, "share"),
        "torch7 plain": (1.01, "ratio"), "lenet plain": (1.01, "ratio"),
        "two_layer_sgd plain": (1.01, "ratio"), "two_layer_adam plain": (1.01, "ratio"),
        "torch7 measured": (0.60, "ratio"), "lenet measured": (0.90, "ratio"),
        "two_layer_sgd measured": (0.95, "ratio"), "two_layer_adam measured": (0.85, "ratio"),
        "torch7 data raw_naive": (0.55, "ratio"), "lenet data raw_naive": (0.90, "ratio"),
        "torch7 data lightning": (0.50, "ratio"), "torch7 data keras": (0.40, "ratio"),
        "torch7 evaluation": (0.95, "ratio"), "lenet evaluation": (0.95, "ratio"),
        "torch7 memory": (1.02, "memory"),
    }  # fmt: skip
    assert all(cell.goal is None for cell in OTHERS.values())
    for cell in [*CELLS.values(), *OTHERS.values()]:
        assert cell.ours.threads == cell.theirs.threads, "like is compared with like"
    assert SHORT.restarts >= 2


def test_a_goal_is_met_only_by_the_whole_interval() -> None:
    goals = {"goal": 0.9, "value": 0.85}
    assert verdict({**goals, "interval": [0.8, 0.9]}) == "met"
    assert verdict({**goals, "interval": [0.8, 0.91]}) == "not shown"
    assert verdict({**goals, "interval": [0.91, 1.0]}) == "missed"
    assert verdict({"goal": 0.9, "void": "no parity"}) == "open"


def test_the_page_is_what_the_record_says() -> None:
    record = json.loads(Path(RECORD).read_text())
    assert PAGE.read_text() == page(record)
    for name, cell in record["cells"].items():
        if "value" in cell and cell["goal"] is not None:
            assert cell["met"] == (cell["interval"][1] <= cell["goal"]), name
