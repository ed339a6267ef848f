"""`python -m tests.mutations [NAME...] [--record FILE]`: are the tests able to fail?

Plants one bug at a time (planted.py) in a copy of src/gradstep and runs the one test that must catch it; before that
all of these tests on a copy without any. Ends with 1 if one of them fails there, or if a bug is not caught. A run of
some names replaces those of the record.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from tests.planted import BUGS, Bug, Edit

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "gradstep"
LIMIT_S = 180  # for one bug; what takes longer was not caught
_PASSED, _FAILED = 0, 1  # pytest's own numbers; the others are of tests that could not be run


@contextmanager
def copied() -> Iterator[Path]:
    """The folder that a copy of the package lies in."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(SOURCE, Path(folder) / "gradstep", ignore=shutil.ignore_patterns("__pycache__"))
        yield Path(folder)


def plant(edit: Edit, package: Path) -> None:
    """Replaces the text. ValueError unless it stands there once, and the file is a program afterwards."""
    path = package / edit.file
    before = path.read_text()
    if (found := before.count(edit.text)) != 1:
        raise ValueError(f"{edit.file} has {found} times, and must have once: {edit.text!r}")
    after = before.replace(edit.text, edit.instead)
    compile(after, edit.file, "exec")
    path.write_text(after)


def run(tests: Sequence[str], place: Path, limit: float = LIMIT_S) -> tuple[int | None, str]:
    """`(pytest's exit code, or None for one that took too long, what it printed)` with the package in `place`."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=short", *tests]
    environment = {**os.environ, "PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        printed, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        printed = ""
    late = process.poll() is None
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # with all that the test has started
    process.wait()
    return None if late else process.returncode, printed


def tried(bug: Bug) -> dict[str, Any]:
    """Plants it, runs its test, and says what came of it."""
    with copied() as place:
        for edit in bug.edits:
            plant(edit, place / "gradstep")
        began = time.monotonic()
        code, printed = run([bug.test], place)
        seconds = round(time.monotonic() - began, 1)
    return {
        "bug": bug.name,
        "files": sorted({edit.file for edit in bug.edits}),
        "test": bug.test,
        "caught": code == _FAILED,
        "said": "the test passes" if code == _PASSED else said(printed),
        "seconds": seconds,
    }


def said(printed: str) -> str:
    """The first line about what went wrong, folders left out."""
    found = re.search(r"^(?:E|E? +\|) +(.*(?:assert|Error|Failed).*)$", printed, flags=re.MULTILINE)
    return re.sub(r"/[^\s']*/", "", found[1] if found else printed[-300:])[:160]


def record(path: Path, results: list[dict[str, Any]]) -> None:
    """Writes what came of each bug in the list's order; of those that were not tried now, what the record had."""
    known = {each["bug"]: each for each in (json.loads(path.read_text())["results"] if path.exists() else [])}
    known |= {each["bug"]: each for each in results}
    table = [known[bug.name] for bug in BUGS if bug.name in known]
    machine = {"processor": platform.machine(), "cores": os.cpu_count(), "torch": str(torch.__version__)}
    counts = {"bugs": len(table), "caught": sum(each["caught"] for each in table)}
    path.write_text(json.dumps({"machine": machine, **counts, "results": table}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="of bugs, or words in them; all of them unless given")
    parser.add_argument("--record", type=Path)
    asked = parser.parse_args()
    bugs = [bug for bug in BUGS if not asked.names or any(name in bug.name for name in asked.names)]
    if not bugs:
        sys.exit(f"there is no bug called {asked.names}; there are: " + "; ".join(bug.name for bug in BUGS))
    began = time.monotonic()
    with copied() as place:
        code, printed = run(sorted({bug.test for bug in bugs}), place, limit=10 * LIMIT_S)
    if code != _PASSED:
        sys.exit(f"without any bug the tests must pass:\n{printed}")
    clean = round(time.monotonic() - began, 1)
    print(f"without any bug the tests pass ({clean} s)", flush=True)
    results = []
    for bug in bugs:
        results.append(tried(bug))
        word = "caught" if results[-1]["caught"] else "NOT CAUGHT"
        print(f"{word:<10} {bug.name} ({results[-1]['seconds']} s): {results[-1]['said']}", flush=True)
    missed = [each["bug"] for each in results if not each["caught"]]
    if asked.record:
        record(asked.record, results)
    if missed:
        sys.exit(f"not caught: {'; '.join(missed)}")
    print(f"{len(bugs)} bugs, all caught")


if __name__ == "__main__":
    main()
