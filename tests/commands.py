"""Commands of gradstep in processes of their own: real signals, real exit codes, and whether anything is left of them.

A command starts as any program does, or `warm`: forked from this process, which has imported everything already, and
then it is the command from its first line on. That saves seconds, and nothing of it is another.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import torch

import gradstep.building
import gradstep.cli
import gradstep.loop  # all that a command imports only when it needs it

ROOT = Path(__file__).resolve().parents[1]


class Command:
    """One command; what it prints goes to `log`. It leads a session of its own, as one typed in a terminal does.

    It begins in `folder`, by default where `tests.module:object` is found.
    """

    def __init__(
        self,
        words: list[str],
        log: Path,
        warm: bool = True,
        environment: Mapping[str, str] | None = None,
        folder: Path = ROOT,
    ) -> None:
        self.log, self.code = log, None
        if warm:
            _warmed_up()
        self.began = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            _become(words, log, warm, environment or {}, folder)

    def send(self, number: int, group: bool = False) -> float:
        """Sends a signal, to the process alone or to its whole group: when, by the monotonic clock."""
        sent = time.monotonic()
        (os.killpg if group else os.kill)(self.pid, number)
        return sent

    def ended(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None

    def until(self, there: Callable[[], object], seconds: float = 120.0) -> bool:
        """Waits until something is there, or the command has ended; True for the first."""
        end = time.monotonic() + seconds
        while not (found := there()) and not self.ended():
            assert time.monotonic() < end, f"nothing for {seconds} s:\n{self.said()}"
            time.sleep(0.002)
        return bool(found)

    def wait(self, seconds: float = 120.0) -> int:
        """Its exit code, or minus the signal it died by."""
        self.until(lambda: False, seconds)
        assert self.code is not None
        return self.code

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def left(self, within: float = 5.0) -> list[int]:
        """Processes of its session that are still alive, having been given some time to go."""
        end = time.monotonic() + within
        while (alive := _session(self.pid)) and time.monotonic() < end:
            time.sleep(0.01)
        return alive

    def end(self) -> None:
        """Makes sure that nothing of it goes on."""
        for pid in _session(self.pid):
            os.kill(pid, signal.SIGKILL)
        self.wait()


def said_by(words: list[str], folder: Path, environment: Mapping[str, str] | None = None) -> tuple[int, str]:
    """`(exit code, what it printed)` of a warm command that ends by itself, typed in `folder`."""
    log = folder / ".said"
    log.unlink(missing_ok=True)
    command = Command(words, log, environment=environment, folder=folder)
    try:
        return command.wait(300), command.said()
    finally:
        command.end()
        log.unlink()


def _become(words: list[str], log: Path, warm: bool, environment: Mapping[str, str], folder: Path) -> None:
    """In the child: the command. Never returns."""
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        os.environ.update(environment)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.__stderr__ = sys.stderr
        if not warm:
            os.execv(sys.executable, [sys.executable, "-m", "gradstep", *words])
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)
        sys.argv = ["gradstep", *words]
        gradstep.cli.main()
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


@cache
def _warmed_up() -> None:
    """The first optimizer of a process takes seconds: torch imports its compiler for it."""
    torch.optim.SGD([torch.zeros(1, requires_grad=True)])


def _session(leader: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = stat.read_text().rsplit(")", 1)[1].split()[:4]
        except (OSError, ValueError):  # gone meanwhile
            continue
        if int(session) == leader and state not in "ZX":
            found.append(int(stat.parent.name))
    return found
