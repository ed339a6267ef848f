"""Real signals to the real command, wherever it is: heard at once, saved, and gone on with as if nothing had been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gradstep import checkpoint
from tests.commands import ROOT, Command
from tests.killing import what_is_left
from tests.slow import RECIPE

AT_ONCE = 3.0  # seconds: it is heard within one, and the machine may be busy
STEPS = 24
INT, TERM, HUP, USR1 = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1

Start = Callable[..., Command]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "slow.yaml"
    path.write_text(json.dumps(RECIPE))
    return path


@pytest.fixture(scope="module")
def never_interrupted(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("whole")
    assert Command(["train", str(recipe), "--out", str(out)], out / "log").wait() == 0
    return what_is_left(out / "0001-slow")


@pytest.fixture
def start(recipe: Path, tmp_path: Path) -> Iterator[Start]:
    """`gradstep train`, falling asleep in `slow` after step `after`; all that is left of it is ended afterwards."""
    started: list[Command] = []

    def begin(slow: str = "", after: int = 7, workers: int = 0, warm: bool = True, words: tuple[str, ...] = ()) -> Any:
        environment = {"SLOW": slow, "SLOW_AT": str(tmp_path), "SLOW_FROM": str(after)}
        train = ["train", str(recipe), f"workers={workers}", "--out", str(tmp_path), *words]
        started.append(Command(train, tmp_path / "log", warm, environment))
        return started[-1]

    yield begin
    for command in started:
        command.end()


def asleep(out: Path) -> Callable[[], bool]:
    return (out / "asleep").exists


def saved_steps(out: Path) -> list[int]:
    return checkpoint.steps(out / "0001-slow" / "checkpoints")


def resumed(out: Path) -> dict[str, str]:
    """What is left after the run was gone on with, by a command that does not sleep."""
    command = Command(["resume", "--out", str(out)], out / "log-of-resume")
    assert command.wait() == 0, command.said()
    assert command.left() == []
    return what_is_left(out / "0001-slow")


# where it sleeps, from which step on, workers, signal, to the whole group, the steps that may be the newest saved
CASES: dict[str, tuple[str, int, int, int, bool, set[int]]] = {
    "first step, as while it compiles": ("first step", 0, 0, INT, False, {0}),
    "a step": ("step", 7, 0, TERM, False, {8, 9}),
    "a step with workers": ("step", 7, 2, TERM, True, {8, 9}),
    "validation, slow data": ("valid sample", 7, 0, HUP, False, {8}),
    "validation, slow data, workers": ("valid sample", 7, 2, INT, True, {8}),
    "validation, slow metric": ("metric", 11, 0, TERM, False, {12}),
    "validation of the last step": ("metric", 21, 0, INT, False, {24}),
    "waiting for a sample": ("train sample", 7, 0, TERM, False, {7}),
    "waiting for a worker": ("train sample", 7, 2, TERM, True, set(range(7, 12))),
    "the test at the end": ("test sample", 7, 0, TERM, False, {24}),
    "the test at the end, workers": ("test sample", 7, 2, INT, True, {24}),
}


@pytest.mark.parametrize(("slow", "after", "workers", "number", "group", "newest"), CASES.values(), ids=CASES)
def test_heard_at_once_saved_and_gone_on_with(
    start: Start, tmp_path: Path, never_interrupted: dict[str, str],
    slow: str, after: int, workers: int, number: int, group: bool, newest: set[int],
) -> None:  # fmt: skip
    command = start(slow, after, workers)
    assert command.until(asleep(tmp_path)), command.said()
    sent = command.send(number, group)
    assert command.wait() == 128 + number, command.said()
    assert time.monotonic() - sent < AT_ONCE
    assert command.left() == []
    assert saved_steps(tmp_path)[-1] in newest
    assert f"paused    after step {saved_steps(tmp_path)[-1]} of {STEPS}" in command.said()
    assert not (tmp_path / "0001-slow" / "model.safetensors").exists()
    assert resumed(tmp_path) == never_interrupted


@pytest.mark.parametrize(("number", "warm"), [(INT, True), (TERM, False), (HUP, True)])
def test_in_start_up_it_leaves_at_once_and_there_is_nothing_to_save(
    start: Start, tmp_path: Path, number: int, warm: bool
) -> None:
    command = start("start-up", warm=warm)
    assert command.until(asleep(tmp_path)), command.said()
    sent = command.send(number)
    assert command.wait() == 128 + number
    assert time.monotonic() - sent < AT_ONCE
    assert "nothing was being trained" in command.said()
    assert not (tmp_path / "0001-slow").exists()


def test_a_wish_to_save_in_start_up_ends_nothing(start: Start, tmp_path: Path) -> None:
    command = start("start-up")
    assert command.until(asleep(tmp_path))
    command.send(USR1)
    time.sleep(0.2)
    assert not command.ended()


def test_twice_ends_at_once_whatever_it_does(start: Start, tmp_path: Path, never_interrupted: dict[str, str]) -> None:
    """While it saves on a slow disk, which the first signal waits for: a second ends it all the same."""
    command = start("save", workers=2)
    assert command.until(asleep(tmp_path))
    command.send(INT, group=True)
    time.sleep(0.3)  # two within a fifth of a second are one wish
    sent = command.send(INT, group=True)
    assert command.wait() == 130
    assert time.monotonic() - sent < 1.5
    assert command.left() == []
    assert resumed(tmp_path) == never_interrupted


def test_a_save_in_flight_is_finished(start: Start, tmp_path: Path, never_interrupted: dict[str, str]) -> None:
    command = start("save")
    assert command.until(asleep(tmp_path))
    command.send(TERM)
    assert command.wait() == 143
    folder = tmp_path / "0001-slow" / "checkpoints"
    assert all(path.name.startswith("step-") for path in folder.iterdir())
    saved, rejected = checkpoint.newest(folder)
    assert saved is not None
    assert rejected == []
    assert resumed(tmp_path) == never_interrupted


def test_a_wish_to_save_is_a_checkpoint_and_nothing_else(
    start: Start, tmp_path: Path, never_interrupted: dict[str, str]
) -> None:
    command = start("step", words=("checkpoint.every=100 steps", "checkpoint.keep=100"))
    assert command.until(asleep(tmp_path))
    command.send(USR1)
    seen = saved_steps(tmp_path)
    assert command.until(lambda: set(saved_steps(tmp_path)) - {*seen, 8, 12}), "no checkpoint of its own came"
    assert command.wait() == 0
    assert what_is_left(tmp_path / "0001-slow") == never_interrupted


def test_stopped_for_two_seconds_and_let_go_on(start: Start, tmp_path: Path, never_interrupted: dict[str, str]) -> None:
    command = start("step", workers=2)
    assert command.until(asleep(tmp_path))
    command.send(signal.SIGSTOP, group=True)
    time.sleep(2)
    assert not command.ended()
    command.send(signal.SIGCONT, group=True)
    assert command.wait() == 0
    assert command.left() == []
    assert what_is_left(tmp_path / "0001-slow") == never_interrupted


def test_under_nohup_a_hang_up_is_ignored(recipe: Path, tmp_path: Path, never_interrupted: dict[str, str]) -> None:
    environment = {**os.environ, "SLOW": "step", "SLOW_AT": str(tmp_path), "SLOW_FROM": "7"}
    line = ["nohup", sys.executable, "-m", "gradstep", "train", str(recipe), "--out", str(tmp_path)]
    with subprocess.Popen(line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while not asleep(tmp_path)() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(HUP)
        said = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 0, said
    assert what_is_left(tmp_path / "0001-slow") == never_interrupted


def test_nobody_has_to_read_what_it_prints(recipe: Path, tmp_path: Path, never_interrupted: dict[str, str]) -> None:
    """`| head -1`, whose reader goes at any time: here before the first line, and with no buffer in between."""
    reader, writer = os.pipe()
    os.close(reader)
    line = [sys.executable, "-u", "-m", "gradstep", "train", str(recipe), "--out", str(tmp_path)]
    done = subprocess.run(line, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, timeout=120, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
    assert what_is_left(tmp_path / "0001-slow") == never_interrupted
