"""The table of `examples/three_factors.py` can be killed: started again, it goes on where it was."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PROGRAM = Path(__file__).resolve().parents[1] / "examples" / "three_factors.py"
EPOCH = 25  # steps: 400 images in batches of 16
GRID = ("--optimizers", "SGD", "Adam", "--initialisations", "kaiming", "--rates", "0.1", "0.01")
SIZE = ("--samples", "400", "--batch-size", "16", "--epochs", "3")
NAMES = ["0001-SGD-kaiming-0.1", "0002-SGD-kaiming-0.01", "0003-Adam-kaiming-0.1", "0004-Adam-kaiming-0.01"]


def started(out: Path, mnist: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(PROGRAM), *GRID, *SIZE, "--out", str(out), *more]
    where = {**os.environ, "GRADSTEP_DATA": str(mnist.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=where, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> str:
    out, error = process.communicate()
    assert (process.returncode, error) == (0, "")
    return out


def halfway(out: Path) -> Path | None:
    """A run, not the first, that has two of its three epochs on disk and not the third."""
    for run in sorted(out.glob("0*"))[1:]:
        steps = {int(path.name.removeprefix("step-")) for path in run.glob("checkpoints/step-*")}
        if 2 * EPOCH in steps and 3 * EPOCH not in steps:
            return run
    return None


def killed_halfway(process: subprocess.Popen[str], out: Path) -> Path:
    """Kills the process within its second run or a later one. It is stopped for the look, so that nothing moves."""
    with process:
        while process.poll() is None:
            if halfway(out) is None:
                time.sleep(0.002)
                continue
            process.send_signal(signal.SIGSTOP)
            if (run := halfway(out)) is not None:
                process.kill()
                assert process.wait() == -signal.SIGKILL
                return run
            process.send_signal(signal.SIGCONT)
        raise AssertionError(f"it ended before it could be killed: {process.communicate()}")


def marks(folder: Path) -> dict[str, tuple[int, int]]:
    """What tells a file from another one of the same name and content."""
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*.safetensors"))}


def test_m6_a_table_that_was_killed_goes_on_and_comes_out_the_same(tmp_path: Path, mnist: Path) -> None:
    whole, cut, record = tmp_path / "whole", tmp_path / "cut", tmp_path / "record.json"
    finished(started(whole, mnist, "--record", str(record)))
    half = killed_halfway(started(cut, mnist), cut)
    before = json.loads((cut / "table.json").read_text())["cells"]
    assert 1 <= len(before) < len(NAMES)
    done, kept = marks(cut / NAMES[0]), marks(half / "checkpoints" / f"step-{2 * EPOCH:08d}")
    assert done
    assert kept
    shown = finished(started(cut, mnist))

    # The finished run was not touched, the half one went on from its second epoch, and none was begun anew.
    assert marks(cut / NAMES[0]) == done
    assert marks(half / "checkpoints" / f"step-{2 * EPOCH:08d}") == kept
    assert sorted(path.name for path in cut.glob("0*")) == NAMES
    for name in ("table.json", "table.md", *(f"{run}/metrics.jsonl" for run in NAMES)):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    assert (cut / "table.md").read_text() in shown
    assert record.read_bytes() == (whole / "table.json").read_bytes()


def test_a_run_that_diverged_counts_as_chance(tmp_path: Path, mnist: Path) -> None:
    given = ("--initialisations", "kaiming", "--rates", "0.1", "0.01", "--optimizers", "SGD", *SIZE)
    settings = {"optimizers": ["SGD"], "initialisations": ["kaiming"], "rates": [0.1, 0.01]}
    settings |= {"samples": 400, "batch_size": 16, "epochs": 3}
    cells = [
        {"optimizer": "SGD", "initialisation": "kaiming", "rate": rate, "accuracy": accuracy}
        for rate, accuracy in ((0.1, None), (0.01, 0.35))
    ]
    (tmp_path / "table.json").write_text(json.dumps({"settings": settings, "cells": cells}))
    shown = finished(started(tmp_path, mnist, *given))  # all of its cells are there: nothing is trained
    assert "diverged" in shown
    assert "the rate alone moves it by up to 0.250" in shown


def test_another_table_is_not_mixed_into_this_one(tmp_path: Path, mnist: Path) -> None:
    (tmp_path / "table.json").write_text(json.dumps({"settings": {"samples": 7}, "cells": []}))
    process = started(tmp_path, mnist)
    assert "is another table: {'samples': 7}" in process.communicate()[1]
    assert process.returncode == 1
    assert not list(tmp_path.glob("0*"))
