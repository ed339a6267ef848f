"""Every command in the README runs, in the order that it stands there; so does its Python."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

from PIL import Image

from gradstep.data import load_named
from tests.commands import said_by
from tests.test_house import ROOT, commands

README = (ROOT / "README.md").read_text()
LEAVES_WITH = {"gradstep train digits --interrupt-at 2": 3}
SHORTER = {"gradstep train mnist": " epochs=1 data.limit=12000"}  # in full by `make results`, against what is stated


def write_photos(folder: Path) -> None:
    """1,000 MNIST images as PNG, and a CSV that lists them all but one."""
    images, labels = load_named("mnist").train.content
    (folder / "photos").mkdir()
    for number in range(1001):
        name = f"{number:05d}" if number < 1000 else "new"
        Image.fromarray(images[number, 0].numpy()).save(folder / "photos" / f"{name}.png")
    lines = [f"photos/{number:05d}.png,{int(labels[number])}" for number in range(1000)]
    (folder / "photos.csv").write_text("\n".join(["file,label", *lines]))


def test_every_gradstep_command_runs_in_order(tmp_path: Path, mnist: Path) -> None:
    write_photos(tmp_path)
    typed = [command for command in commands(README) if "gradstep " in command and not command.startswith("git")]
    assert len(typed) >= 9
    where = {"GRADSTEP_DATA": str(mnist.parent)}
    for command in typed:
        bare = command.removeprefix("GRADSTEP_DATA=../shared/data ")
        words = (bare + SHORTER.get(bare, "")).split(" > ")
        program, *typed_after = shlex.split(words[0])
        assert program == "gradstep"
        code, said = said_by(typed_after, tmp_path, where)
        assert code == LEAVES_WITH.get(bare, 0), f"{command}\n{said}"
        if len(words) > 1:
            (tmp_path / words[1]).write_text(said)
        if "train mnist" in bare:
            reached = float(re.search(r"^test .*accuracy ([\d.]+)", said, flags=re.MULTILINE)[1])
            assert reached >= 0.9, said
        if "train photos.csv" in bare:
            assert float(re.search(r"^best +valid/accuracy ([\d.]+)", said, flags=re.MULTILINE)[1]) >= 0.85
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 201
    labels = (tmp_path / "labels.csv").read_text().splitlines()
    assert labels[0] == "path,label,probability,label2,probability2"
    assert len(labels) == 1 + 1 + 1001
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height > 600


def test_make_demo_reaches_what_the_recipe_states(tmp_path: Path) -> None:
    """The Makefile's own line, with the environment that is there instead of a new one."""
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    (tmp_path / ".venv").symlink_to(sys.prefix)
    done = subprocess.run(["make", "-o", ".venv/ready", "demo"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    reached = float(re.search(r"^best .*valid/accuracy ([\d.]+)", done.stdout, flags=re.MULTILINE)[1])
    assert reached >= 0.97
    shown = re.search(r"```text\n(.*?)```", README, flags=re.DOTALL)[1]
    labels = [line[:10].strip() for line in shown.splitlines() if not line.startswith(" ") and line]
    assert all(re.search(rf"^{label}", done.stdout, flags=re.MULTILINE) for label in labels)


def test_the_python_in_the_readme_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    assert "Best(metric='valid/accuracy'" in done.stdout
