"""Signals heard as wishes: waiting is cut short, a step is not, and nothing is heard before or afterwards."""

import os
import queue
import random
import select
import signal
import subprocess
import sys
import threading
import time
import timeit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import pytest
import torch
from torch.utils.data import Dataset

from gradstep.data.feed import Feed
from gradstep.data.sources import Items
from gradstep.interrupt import Cuts, Interrupted, Interruption

ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@contextmanager
def soon(number: int, seconds: float = 0.1) -> Iterator[None]:
    timer = threading.Timer(seconds, os.kill, (os.getpid(), number))
    timer.start()
    yield
    timer.join()


class Asleep(Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(60)
        return torch.tensor(index)


WAITS: dict[str, Callable[[], object]] = {
    "sleep": lambda: time.sleep(60),
    "event": lambda: threading.Event().wait(60),
    "lock": lambda: threading.Semaphore(0).acquire(timeout=60),
    "select": lambda: select.select([], [], [], 60),
    "queue": lambda: queue.Queue().get(timeout=60),
    "process": lambda: subprocess.run(["sleep", "60"]),
    "worker": lambda: next(Feed(Items(Asleep()), 2, shuffle=False, workers=1).start(0)),
    "no worker": lambda: next(Feed(Items(Asleep()), 2, shuffle=False).start(0)),
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_a_wait_is_cut_short_within_a_second(wait) -> None:
    begun = time.monotonic()
    with soon(signal.SIGTERM, 0.3), Interruption() as interruption:
        with pytest.raises(Interrupted, match="SIGTERM") as caught, interruption.cuts():
            wait()
        assert time.monotonic() - begun < 1.3
        assert caught.value.number == interruption.heard == signal.SIGTERM


@pytest.mark.parametrize("number", ENDING)
def test_outside_of_a_wait_it_is_noted_and_said_at_once(number, capfd) -> None:
    with Interruption() as interruption:
        os.kill(os.getpid(), number)
        assert interruption.heard == number
        name = signal.Signals(number).name
        assert capfd.readouterr().err == f"{name} heard: the step is finished first; once more ends at once\n"
        for _ in range(2):  # and the next wait does not begin, nor any after it
            with pytest.raises(Interrupted), interruption.cuts():
                pytest.fail("waits")


def test_quiet_says_nothing_and_a_wait_says_nothing_either(capfd) -> None:
    with Interruption(quiet=True) as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.heard == signal.SIGINT
    with Interruption() as interruption, pytest.raises(Interrupted), interruption.cuts():
        os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_whenever_it_comes_it_is_raised_inside_and_only_there(depth) -> None:
    """The signal hits any instruction of entering, waiting, leaving, working: it is never lost, and cuts no work."""
    draws, came = random.Random(depth), []
    for _ in range(100):
        working = False
        sender = threading.Thread(target=lambda pause: (time.sleep(pause), os.kill(os.getpid(), signal.SIGINT)),
                                  args=(draws.random() * 2e-3,))  # fmt: skip
        with Interruption(quiet=True) as interruption:
            sender.start()
            try:
                while True:
                    for _ in range(depth):
                        interruption.cuts().__enter__()
                    for _ in range(depth):
                        interruption.cuts().__exit__()
                    working = True
                    came.append(interruption.heard)  # work, which may not be cut
                    working = False
            except Interrupted:
                assert not working
                assert interruption.heard == signal.SIGINT
            sender.join()
    assert signal.SIGINT in came  # some came while working ...
    assert came.count(signal.SIGINT) < 100  # ... and some while waiting


@pytest.mark.parametrize("line", [1, 2, 3, 4])
def test_no_wait_begins_after_a_signal_at_whichever_line_it_comes(line) -> None:
    lines = 0

    def trace(frame: FrameType, event: str, argument: object):
        nonlocal lines
        if frame.f_code not in (Cuts.__enter__.__code__, Cuts.__exit__.__code__):
            return None
        if event == "line":
            lines += 1
            if lines == line:
                os.kill(os.getpid(), signal.SIGINT)
        return trace

    with Interruption(quiet=True) as interruption:
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            for _ in range(2):
                with interruption.cuts():
                    assert interruption.heard is None
        except Interrupted:
            assert interruption.heard == signal.SIGINT
        finally:
            sys.settrace(before)
        assert lines >= line


def test_leaving_while_raising_leaves() -> None:
    with Interruption(quiet=True) as interruption:
        for error in (ValueError, KeyboardInterrupt):
            with pytest.raises(error), interruption.cuts(), interruption.cuts():
                raise error
        os.kill(os.getpid(), signal.SIGINT)  # noted: nothing waits any more
        assert interruption.heard == signal.SIGINT


def test_entering_and_leaving_takes_less_than_a_microsecond() -> None:
    with Interruption() as interruption:
        taken = timeit.repeat(
            "with cuts(): pass", globals={"cuts": interruption.cuts}, timer=time.thread_time, number=1000, repeat=200
        )
    assert min(taken) / 1000 < 1e-6


def test_a_wish_to_save_is_a_flag_that_its_reader_takes_back() -> None:
    with Interruption() as interruption, interruption.cuts():
        assert not interruption.save_asked
        os.kill(os.getpid(), signal.SIGUSR1)
        assert interruption.save_asked
        assert interruption.heard is None
        interruption.save_asked = False
        os.kill(os.getpid(), signal.SIGUSR1)
        assert interruption.save_asked


@pytest.mark.parametrize("leaves", [ValueError, None])
def test_the_handlers_of_before_are_in_force_again(leaves) -> None:
    mine = lambda number, frame: None  # noqa: E731
    numbers = [*ENDING, signal.SIGUSR1]
    before = {number: signal.signal(number, mine) for number in numbers}
    try:
        interruption = Interruption()
        for _ in range(2):  # it may be entered again, and is as new
            try:
                with interruption:
                    assert all(signal.getsignal(number) is not mine for number in numbers)
                    assert interruption.heard is None
                    os.kill(os.getpid(), signal.SIGINT)
                    if leaves:
                        raise leaves
            except ValueError:
                pass
            assert all(signal.getsignal(number) is mine for number in numbers)
            assert interruption.heard == signal.SIGINT
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_outside_the_main_thread_none_is_heard() -> None:
    found = []

    def elsewhere() -> None:
        with Interruption() as interruption, interruption.cuts():
            found.append((signal.getsignal(signal.SIGINT), interruption.heard))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [(before, None)]


def test_a_process_forked_inside_ends_by_the_signal_as_it_would_have() -> None:
    with Interruption() as interruption, interruption.cuts():
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        time.sleep(0.2)  # Python forgets what comes while it forks
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        assert interruption.heard is None


SCRIPT = """
import sys, time
from gradstep.interrupt import Interruption
with Interruption() as interruption:
    print("ready", flush=True)
    while interruption.heard is None:
        time.sleep(0.01)
    time.sleep(float(sys.argv[1]))
print("finished", flush=True)
"""


@contextmanager
def script(seconds: float, *before: str) -> Iterator[subprocess.Popen]:
    """A process that works on for some seconds after it heard a signal."""
    command = [*before, sys.executable, "-c", SCRIPT, str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(("first", "second"), [("SIGINT", "SIGINT"), ("SIGTERM", "SIGTERM"), ("SIGINT", "SIGTERM")])
def test_a_second_signal_ends_at_once(first, second) -> None:
    with script(60) as process:
        process.send_signal(signal.Signals[first])
        assert f"{first} heard" in process.stderr.readline()  # straight away, while it works on
        time.sleep(0.3)
        process.send_signal(signal.Signals[second])
        assert process.wait(timeout=5) == 128 + signal.Signals[second]
        assert process.communicate()[0] == ""


def test_the_same_ctrl_c_heard_twice_is_one_wish() -> None:
    with script(0.5) as process:
        for _ in range(3):  # from the terminal to the whole group, and passed on by a wrapper
            process.send_signal(signal.SIGINT)
            time.sleep(0.03)
        assert process.communicate(timeout=10)[0] == "finished\n"
        assert process.returncode == 0


def test_under_nohup_a_hang_up_is_not_heard() -> None:
    with script(0, "nohup") as process:
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.3)
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=10)[0] == "finished\n"


def test_a_closed_standard_error_changes_nothing() -> None:
    with script(0, "sh", "-c", 'exec "$0" "$@" 2>&-') as process:
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=10)[0] == "finished\n"
        assert process.returncode == 0
