"""Every example runs, and states a result that it asserts itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# `make results` runs every example in full. Of these, which take half a minute, two have tests of their own besides.
ELSEWHERE = {"fine_tuning", "five_levels", "gan", "three_factors", "torch7_five_methods"}
EXAMPLES = sorted(
    path for path in (Path(__file__).resolve().parents[1] / "examples").glob("*.py") if path.stem not in ELSEWHERE
)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_an_example_reaches_the_result_that_it_states(path: Path, tmp_path: Path, mnist: Path) -> None:
    assert "Result:" in path.read_text()
    assert "\nassert " in path.read_text(), "an example checks its own result"
    where = {**os.environ, "GRADSTEP_DATA": str(mnist.parent)}
    done = subprocess.run([sys.executable, str(path)], cwd=tmp_path, env=where, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
