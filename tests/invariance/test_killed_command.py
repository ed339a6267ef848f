"""The real command, killed by SIGKILL with its workers or beside them: `python -m tests.torture`, in short."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests import torture

KILLS = 20
COLD = 0.1  # of the commands start from nothing; the others have imported torch already


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torture")
    torture.write_recipes(folder, epochs=5)
    return folder


def test_killed_twenty_times_and_gone_on_with_is_as_never_killed_and_nothing_is_left_running(folder: Path) -> None:
    """Two recipes with workers in turn, until there were enough kills, several of them in one epoch."""
    scenarios = ["momentum, dropout, augmentation", "Adam, average, cosine"]
    for scenario in scenarios:
        torture.never_killed(folder, scenario, cold=False)
    runs: list[torture.Killed] = []
    while (kills := sum(run.kills for run in runs)) < KILLS:
        scenario = scenarios[len(runs) % 2]
        runs.append(torture.one_run(folder, len(runs), scenario, seed=1, cold=COLD, most=KILLS - kills))
        assert runs[-1].differences == []
        assert runs[-1].leftovers == 0
    assert sum(run.again_in_the_epoch for run in runs) >= 3
    assert sum(run.alone for run in runs) >= 5


def test_a_torture_sees_a_run_that_ends_elsewhere(folder: Path) -> None:
    """Held against another recipe's run, which it must not be like."""
    plain = "the end within an epoch, groups that thaw"
    torture.never_killed(folder, plain, cold=False)
    path = folder / f"{torture._short(plain)}.json"
    path.write_text(path.read_text().replace("model/first.weight", "model/another.weight"))
    found = torture.one_run(folder, 99, plain, seed=1, cold=0.0, until=time.time())
    assert found.differences == ["model/another.weight", "model/first.weight"]
