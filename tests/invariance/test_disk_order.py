"""What a run does to its disk, operation by operation: what a checkpoint counts on is there before it, what it
replaces goes after it, and what counts on rows that are to be cut off goes before they do."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import gradstep
from gradstep import checkpoint, disk
from tests.killing import RECIPE, SCENARIOS, Counting, dying_at, in_a_child, train, what_is_left

SCENARIO = "Adam, average, cosine"
SHORT: dict[str, Any] = {"epochs": 2, "evaluate_every": "2 steps", "checkpoint": {"every": "2 steps", "keep": 1}}
SAVES = 6  # of the steps 0, 2, 4, 6, 8 and 10

Look = Callable[[str, tuple[Any, ...], Any], None]  # (name of the operation, its arguments, what it returned)


class Looking(Counting):
    """Stands in for `disk`'s `os`, and calls `look` after each operation on files."""

    def __init__(self, look: Look) -> None:
        super().__init__()
        self._look = look

    def _counted(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        counted = super()._counted(operation)

        def looked(*arguments: Any, **more: Any) -> Any:
            result = counted(*arguments, **more)
            self._look(operation.__name__, arguments, result)
            return result

        return looked


@contextmanager
def looked_at(looking: Looking) -> Iterator[None]:
    real, disk.os = disk.os, looking  # type: ignore[assignment]
    try:
        yield
    finally:
        disk.os = real


def test_no_checkpoint_goes_before_a_newer_one_is_there_for_good(tmp_path: Path) -> None:
    folder, opened = tmp_path / "0001-run" / "checkpoints", dict[int, Path]()
    there, safe = -1, list[int]()  # the newest; those that were it when the folder was forced to the disk

    def look(name: str, arguments: tuple[Any, ...], result: Any) -> None:
        nonlocal there
        if name == "open":
            opened[result] = Path(arguments[0])
        elif name == "rename":
            steps = checkpoint.steps(folder)
            assert not safe or safe[-1] in steps, f"{safe[-1]} went, and the newest that is there is {steps}"
            there = max(steps)
        elif name == "fsync" and opened[arguments[0]] == folder and there not in safe:
            safe.append(there)

    with looked_at(Looking(look)):
        train(SCENARIO, tmp_path, **SHORT)
    assert safe == [0, 2, 4, 6, 8, 10]


def test_the_rows_that_a_checkpoint_counts_on_are_on_the_disk_before_it_has_its_name(tmp_path: Path) -> None:
    opened, synced, saves = dict[int, Path](), 0, 0

    def look(name: str, arguments: tuple[Any, ...], result: Any) -> None:
        nonlocal synced, saves
        if name == "open":
            opened[result] = Path(arguments[0])
        elif name == "fsync" and opened[arguments[0]].name == "metrics.jsonl":
            synced = os.fstat(arguments[0]).st_size
        elif name == "rename" and Path(arguments[1]).name.startswith("step-"):
            saves += 1
            log = json.loads((Path(arguments[1]) / "state.json").read_text())["log"]
            assert log["offset"] <= synced, f"{Path(arguments[1]).name} counts on rows that may be lost"

    with looked_at(Looking(look)):
        train(SCENARIO, tmp_path, **SHORT)
    assert saves == SAVES


class Enough(Exception):
    """It has gone back: what comes then is not looked at."""


class StopHere:
    def on_train_start(self, state: Any, about: Any) -> None:
        raise Enough


def test_killed_at_any_change_while_going_back_to_an_earlier_checkpoint_a_run_can_be_gone_on_with(
    tmp_path: Path,
) -> None:
    """Later checkpoints count on rows that going back cuts off, so they go out of sight first."""
    keeping = {**SHORT, "checkpoint": {"every": "2 steps", "keep": SAVES}}
    whole = train(SCENARIO, tmp_path / "whole", **keeping)
    expected = what_is_left(whole.path)

    def copied(name: str) -> Path:
        return Path(shutil.copytree(tmp_path / "whole", tmp_path / name, symlinks=True))

    def go_back(out: Path) -> None:
        arguments = gradstep.build(gradstep.Recipe.parse({**RECIPE, **SCENARIOS[SCENARIO], **keeping})).arguments
        step = out / "0001-run" / "checkpoints" / "step-00000006"
        with pytest.raises(Enough):
            gradstep.fit(**{**arguments, "hooks": [StopHere()]}, resume=step)

    changes = list[int]()
    looking = Looking(lambda name, *_: changes.append(looking.count) if name in ("rename", "ftruncate") else None)
    with looked_at(looking):
        go_back(copied("counted"))
    assert len(changes) == 3  # two checkpoints go, and the rows behind step 6
    for number in changes:
        out = copied(f"killed after {number}")
        assert in_a_child(dying_at(number + 1, lambda: go_back(out)))  # noqa: B023
        train(SCENARIO, out, **keeping)
        assert what_is_left(out / "0001-run") == expected, f"killed after operation {number}"
