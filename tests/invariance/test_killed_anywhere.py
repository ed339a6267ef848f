"""A run killed at any instant and gone on with any number of times: not a bit is another than in a run that was not."""

from __future__ import annotations

import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gradstep import Request, checkpoint, disk
from tests.killing import SCENARIOS, Counting, dying_at, in_a_child, train, what_is_left

KILLS = int(os.environ.get("GRADSTEP_KILLS", "250"))  # in all; `make torture` makes a thousand, of the real command


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a scenario leaves that runs through, and the seconds that it takes."""
    known: dict[str, tuple[dict[str, str], float]] = {}

    def look(scenario: str) -> tuple[dict[str, str], float]:
        if scenario not in known:
            out = tmp_path_factory.mktemp("whole")
            train(scenario, tmp_path_factory.mktemp("warm"))
            began = time.perf_counter()
            train(scenario, out)  # in this process, which is warm from here on
            known[scenario] = what_is_left(out / "0001-run"), time.perf_counter() - began
        return known[scenario]

    return look


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_at_random_and_resumed_is_as_never_killed(tmp_path: Path, never_killed: Any, scenario: str) -> None:
    """Child after child is killed, until one comes to its end; then the next run, until there were enough kills."""
    expected, seconds = never_killed(scenario)
    draw, kills, runs = random.Random(scenario), 0, 0
    while kills < KILLS // len(SCENARIOS):
        out, here = tmp_path / str(runs), 0
        # Soon enough that a run dies several times, and late enough that it comes on: later and later.
        while in_a_child(lambda: train(scenario, out), draw.uniform(0, seconds * (0.5 + 0.05 * here))):  # noqa: B023
            here += 1
        kills, runs = kills + here, runs + 1
        left = what_is_left(out / "0001-run")
        assert {name: value for name, value in left.items() if expected[name] != value} == {}, f"after {here} kills"
        assert left.keys() == expected.keys()


class PauseAt:
    """Ends a process after a step, in good order."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, state: Any, outcome: Any) -> Request | None:
        return Request.PAUSE if state.step == self.step else None


def operations(work: Any) -> int:
    """How many operations on files `work` takes, in a child that tells by a pipe."""
    reader, writer = os.pipe()

    def counted() -> None:
        counting = Counting()
        disk.os = counting  # type: ignore[assignment]
        work()
        os.write(writer, str(counting.count).encode())

    assert in_a_child(counted) == 0
    count = int(os.read(reader, 20))
    os.close(reader)
    os.close(writer)
    return count


SHORT: dict[str, Any] = {
    "epochs": None,
    "steps": 6,
    "checkpoint": {"every": "2 steps", "keep": 1},
    "evaluate_every": "2 steps",
}
SHORT_SCENARIOS = ["momentum, dropout, augmentation", "Adam, average, cosine"]


def pieces(total: int, pieces: int = 4) -> Iterator[range]:
    size = -(-total // pieces)
    yield from (range(start, min(start + size, total + 1)) for start in range(1, total + 1, size))


def on_disk(run: Path) -> frozenset[tuple[str, bytes]]:
    """What a kill has left: every name with its content, whatever the process's number was."""
    return frozenset(
        (
            re.sub(r"(\.tmp-\d{8}|\.[a-z]+|latest)-\d+", r"\1", str(path.relative_to(run))),
            path.read_bytes() if path.is_file() else b"",
        )
        for path in run.rglob("*")
        if path.name != "timing.jsonl"
    )


def killed_at_each(scenario: str, numbers: range, place: Callable[[int], Path], expected: dict[str, str]) -> int:
    """Kills a run in `place(number)` at each of these operations and goes on: how many states of the disk there were.

    Many operations only read: what was left by a kill before is left again, and was gone on from already.
    """
    gone_on_from = set()
    for number in numbers:
        out = place(number)
        assert in_a_child(dying_at(number, lambda: train(scenario, out, (PauseAt(4),), **SHORT)))  # noqa: B023
        if (left := on_disk(out)) not in gone_on_from:
            gone_on_from.add(left)
            train(scenario, out, **SHORT)
            assert what_is_left(out / "0001-run") == expected, f"killed at operation {number}"
    return len(gone_on_from)


@pytest.mark.parametrize("part", range(4))
def test_killed_at_every_operation_of_the_first_three_saves(tmp_path: Path, part: int) -> None:
    """Those of steps 0, 2 and 4: all that is written, pruned and removed until then, each operation once."""
    scenario = SHORT_SCENARIOS[part % 2]
    train(scenario, tmp_path / "whole", **SHORT)
    expected = what_is_left(tmp_path / "whole" / "0001-run")
    total = operations(lambda: train(scenario, tmp_path / "counted", (PauseAt(4),), **SHORT))
    assert total > 100
    assert killed_at_each(scenario, list(pieces(total))[part], lambda number: tmp_path / str(number), expected) > 10


def killed_in_a_save(scenario: str, folder: Path) -> Path:
    """A run with half a checkpoint to sweep, and rows to cut off behind the one before."""
    for number in range(150, 300, 3):
        out = folder / f"cut-{number}"
        assert in_a_child(dying_at(number, lambda: train(scenario, out, **SHORT)))  # noqa: B023
        checkpoints = out / "0001-run" / "checkpoints"
        saved, _ = checkpoint.newest(checkpoints)
        assert saved is not None
        more = (out / "0001-run" / "metrics.jsonl").stat().st_size > saved.values["log"]["offset"]
        if more and list(checkpoints.glob(".tmp-*")):
            return out
    raise AssertionError("no kill came into a save")


@pytest.mark.parametrize("part", range(2))
def test_killed_at_every_operation_of_a_resume(tmp_path: Path, part: int) -> None:
    scenario = SHORT_SCENARIOS[part]
    train(scenario, tmp_path / "whole", **SHORT)
    expected = what_is_left(tmp_path / "whole" / "0001-run")

    cut = killed_in_a_save(scenario, tmp_path)
    shutil.copytree(cut, tmp_path / "counted", symlinks=True)
    total = operations(lambda: train(scenario, tmp_path / "counted", (PauseAt(4),), **SHORT))
    assert total > 50
    copy = lambda number: shutil.copytree(cut, tmp_path / str(number), symlinks=True)  # noqa: E731
    assert killed_at_each(scenario, range(1 + part, total + 1, 2), copy, expected) > 5
