"""What a person sees: a table that grows by a line per epoch, a bar on a terminal only, and nothing when quiet."""

import errno
import io
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TextIO

import pytest
import torch
from torch import nn

import gradstep
from gradstep.record import Console
from gradstep.record import console as console_room
from gradstep.record.stopwatch import duration


def on_a_terminal(what) -> str:
    """What `what(console)` writes to a real pseudo-terminal."""
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as file:
        console = Console(file=file)
        what(console)
        console.close()
        os.set_blocking(reader, False)
        said = b""
        while True:
            try:
                said += os.read(reader, 65536)
            except BlockingIOError:
                break
    os.close(reader)
    return said.decode()


def off_a_terminal(what) -> str:
    file = io.StringIO()
    console = Console(file=file)
    what(console)
    console.close()
    return file.getvalue()


def a_run(console: Console) -> None:
    console.facts([("data", "digits"), ("", "more of it")])
    console.progress(5, 20, 1, 0.5, 1234.5, 61.0)
    console.epoch({"epoch": 1, "train/loss": 0.25, "lr": 0.1, "samples/s": 1234.5, "time": 2.0}, "* best")
    console.progress(15, 20, 2, 0.25, 1234.5, 5.0)
    console.epoch({"epoch": 2, "train/loss": 0.125, "valid/loss": 0.5, "lr": 0.1, "samples/s": 99.0, "time": 200.0}, "")


def test_the_bar_is_on_a_terminal_only_and_the_lines_stay_on_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    live, plain = on_a_terminal(a_run), off_a_terminal(a_run)
    assert "epoch 2  step 15/20  running loss 0.2500  1,234 samples/s  5.0s left" in live
    assert "\x1b[" in live
    assert "\x1b" not in plain
    assert "running loss" not in plain
    for line in plain.splitlines():
        assert line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", live)


def test_the_table_s_lines_and_a_new_header_where_a_column_is_new() -> None:
    assert off_a_terminal(a_run).splitlines() == [
        "data      digits",
        "          more of it",
        "   epoch  train/loss        lr  samples/s      time",
        "       1      0.2500  1.00e-01      1,234      2.0s  * best",
        "   epoch  train/loss  valid/loss        lr  samples/s      time",
        "       2      0.1250      0.5000  1.00e-01         99      3:20",
    ]


def test_off_a_terminal_there_is_a_plain_line_every_half_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    at = [0.0]
    monkeypatch.setattr(console_room.time, "monotonic", lambda: at[0])
    file: TextIO = io.StringIO()
    console = Console(file=file)
    for second in range(0, 95, 5):
        at[0] = second
        console.progress(second, 100, 1, 0.5, 10.0, None)
    assert file.getvalue().splitlines() == [
        f"epoch 1  step {second}/100  running loss 0.5000  10 samples/s" for second in (30, 60, 90)
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0ms"), (0.0423, "42ms"), (4.21, "4.2s"), (42.4, "42s"), (59.6, "1:00"), (61, "1:01"), (187.2, "3:07"),
     (7387, "2:03:07")],
)  # fmt: skip
def test_durations_as_people_read_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_fit_prints_what_the_issue_asks_for_and_nothing_when_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    data = (torch.rand(20, 3), torch.arange(20) % 2)

    def fit(quiet: bool) -> str:
        gradstep.fit(
            nn.Sequential(nn.Linear(3, 2)), nn.CrossEntropyLoss(), data, data, data, epochs=2, batch_size=8,
            quiet=quiet, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), metrics=["accuracy"],
        )  # fmt: skip
        return capsys.readouterr().out

    assert fit(quiet=True) == ""
    said = fit(quiet=False).splitlines()
    facts = [line.split()[0] for line in said[: said.index("")] if not line.startswith(" ")]
    assert facts == ["train", "valid", "test", "model", "training", "plan", "monitor", "note"]
    assert "20 samples of 3 float32, 3 batches of 8, 2 classes of 10" in said[0]
    header = next(line for line in said if "train/loss" in line).split()
    assert header == [
        "epoch",
        "train/loss",
        "train/accuracy",
        "valid/loss",
        "valid/accuracy",
        "lr",
        "samples/s",
        "time",
    ]
    assert [line.split()[0] for line in said if re.match(r" +\d ", line)] == ["1", "2"]
    assert any(line.startswith("test ") and "accuracy" in line for line in said)
    assert any(line.startswith("best ") for line in said)


# Nobody has to read it


TALKS = """
import sys
from gradstep.record import Console
console = Console()
for number in range(20_000):
    console.line(f"line {number}")
    console.progress(number, 20_000, 1, 0.5, 10.0, None)
print("more of it")
console.close()
open(sys.argv[1], "w").write("done")
"""


@pytest.mark.parametrize("reads", ["head -1", "true"])
def test_a_reader_that_leaves_ends_nothing_and_nothing_is_said_of_it(tmp_path: Path, reads: str) -> None:
    command = f'("$0" -c "$1" "$2"; echo $? >"$2.code") | {reads}'
    place = str(tmp_path / "done")
    ran = subprocess.run(["sh", "-c", command, sys.executable, TALKS, place], capture_output=True, text=True)
    assert (tmp_path / "done").read_text() == "done"
    assert (tmp_path / "done.code").read_text() == "0\n"
    assert ran.stderr == ""
    assert ran.stdout == ("line 0\n" if reads == "head -1" else "")


def test_a_process_without_standard_output_trains(tmp_path: Path) -> None:
    place = str(tmp_path / "done")
    ran = subprocess.run(["sh", "-c", '"$0" -c "$1" "$2" >&-', sys.executable, TALKS, place], capture_output=True)
    assert (tmp_path / "done").read_text() == "done"
    assert (ran.returncode, ran.stderr) == (0, b"")


def test_a_terminal_that_is_closed_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as file:
        console = Console(file=file)
        a_run(console)  # its bar is live
        os.close(reader)
        a_run(console)
        time.sleep(0.3)  # the bar is drawn by a thread of its own
        a_run(console)
        console.close()


def test_a_full_disk_ends_nothing_and_is_written_to_again_when_there_is_room() -> None:
    class Full(io.StringIO):
        full = True

        def write(self, text: str) -> int:
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(text)

    file = Full()
    console = Console(file=file)
    console.line("lost")
    file.full = False
    console.line("there")
    assert file.getvalue() == "there\n"


def test_much_waiting_for_batches_is_said_once_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    class Slow:
        def __len__(self) -> int:
            return 40

        def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
            time.sleep(0.02)
            return torch.full((2,), float(number) / 40), torch.zeros(1)

    gradstep.fit(
        torch.nn.Linear(2, 1), torch.nn.MSELoss(), Slow(), epochs=2, batch_size=20, device="cpu",
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01),
    )  # fmt: skip
    told = [line for line in capsys.readouterr().out.splitlines() if "waiting for batches" in line]
    assert len(told) == 1
    assert "% of the epoch went by in waiting for batches: try workers=" in told[0]
