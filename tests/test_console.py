"""What a person sees: a table that grows by a line per epoch, a bar on a terminal only, and nothing when quiet."""

import io
import os
import pty
import re
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
