"""The list of planted bugs does not rot: each can be planted, and the test that must catch it is there."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest

from tests.mutations import ROOT, SOURCE, plant
from tests.planted import BUGS, Bug, Edit


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_bug_can_be_planted_and_its_test_exists(bug: Bug, tmp_path: Path) -> None:
    for file in {edit.file for edit in bug.edits}:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SOURCE / file, tmp_path / file)
    for edit in bug.edits:
        plant(edit, tmp_path)
    file, name = bug.test.split("[")[0].split("::")
    tree = ast.parse((ROOT / file).read_text())
    assert name in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


def test_no_two_bugs_have_one_name() -> None:
    assert len({bug.name for bug in BUGS}) == len(BUGS)


@pytest.mark.parametrize(
    ("edit", "error"),
    [
        (Edit("disk.py", "a text that is not there", ""), ValueError),
        (Edit("disk.py", "os.fsync(descriptor)", "pass"), ValueError),
        (Edit("disk.py", "os.fsync(descriptor)  # waits for the disk", "pass)"), SyntaxError),
    ],
)
def test_a_text_that_is_not_there_once_or_leaves_no_program_is_an_error(
    edit: Edit, error: type[Exception], tmp_path: Path
) -> None:
    shutil.copy(SOURCE / "disk.py", tmp_path / "disk.py")
    with pytest.raises(error):
        plant(edit, tmp_path)
    assert (tmp_path / "disk.py").read_text() == (SOURCE / "disk.py").read_text()
