"""The commands, as somebody types them. Most run inside this process, to save importing torch each time."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gradstep import cli
from gradstep.data import load_named, split
from gradstep.recipe import builtin

QUICK = ["epochs=2", "batch_size=128"]


@pytest.fixture
def gradstep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs a command in a folder of its own: `(exit code, standard output, standard error)`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gradstep", *arguments])
        try:
            cli.main()
            code = 0
        except SystemExit as left:
            code = int(left.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    run.folder = tmp_path
    return run


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_train_leaves_the_folder_of_the_design(gradstep) -> None:
    code, out, _ = gradstep("train", "digits", *QUICK, "--name", "first")
    assert code == 0
    run = gradstep.folder / "runs" / "0001-first"
    left = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    files = {"model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json"}
    steps = {f"checkpoints/step-{step:08d}/{name}" for step in (12, 24) for name in files}
    documents = {"recipe.yaml", "plan.json", "environment.json", "command.txt"}
    assert left == documents | {"metrics.jsonl", "timing.jsonl", "model.safetensors"} | steps
    assert (gradstep.folder / "runs" / "latest").resolve() == run
    assert (run / "command.txt").read_text() == "gradstep train digits epochs=2 batch_size=128 --name first\n"
    assert "optimizer: {name: SGD, lr: 0.03, momentum: 0.9}" in out  # row P9: the choices are echoed
    assert str(run.relative_to(gradstep.folder) / "model.safetensors") in out
    assert "next      gradstep evaluate runs/0001-first" in out


def test_the_resolved_recipe_runs_again_to_the_same_end(gradstep) -> None:
    gradstep("train", "digits", *QUICK)
    code, _, _ = gradstep("train", "runs/0001-digits/recipe.yaml")
    assert code == 0
    one, other = (gradstep.folder / "runs" / f"000{n}-digits" for n in (1, 2))
    assert (one / "recipe.yaml").read_text() == (other / "recipe.yaml").read_text()
    assert "normalize" in (one / "recipe.yaml").read_text()
    assert "measured" not in (one / "recipe.yaml").read_text()  # the numbers stand there instead
    for name in ("metrics.jsonl", "model.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_command_line_wins_over_the_recipe_and_other_seeds_differ(gradstep) -> None:
    gradstep("train", "digits", *QUICK, "seed=1", "optimizer.lr=1e-3")
    gradstep("train", "digits", *QUICK, "seed=2", "optimizer.lr=1e-3")
    one, other = (gradstep.folder / "runs" / f"000{n}-digits" for n in (1, 2))
    assert "lr: 0.001" in (one / "recipe.yaml").read_text()
    assert (one / "metrics.jsonl").read_bytes() != (other / "metrics.jsonl").read_bytes()


def test_dry_run_trains_nothing_and_leaves_nothing(gradstep) -> None:
    code, out, _ = gradstep("train", "digits", "--dry-run")
    assert code == 0
    assert "one batch forward and backward" in out
    assert "written, read back and equal" in out
    assert "valid     one batch evaluated" in out
    assert list(gradstep.folder.iterdir()) == []


def test_test_run_takes_one_batch_per_epoch_through_everything(gradstep, mnist) -> None:
    code, out, _ = gradstep("train", "mnist", "--test-run")
    assert code == 0
    run = gradstep.folder / "runs" / "0001-mnist"
    record = rows(run / "metrics.jsonl")
    assert [row["samples"] for row in record if row["kind"] == "epoch"] == [64, 128, 192, 256, 320]
    assert sum(row["kind"] == "valid" for row in record) == 5
    assert sum(row["kind"] == "test" for row in record) == 1
    assert "64 samples" in out


def test_interrupt_at_saves_after_validation_and_leaves_with_3(gradstep) -> None:
    code, out, _ = gradstep("train", "digits", *QUICK, "epochs=4", "--interrupt-at", "2")
    assert code == 3
    run = gradstep.folder / "runs" / "0001-digits"
    state = json.loads((run / "checkpoints" / "step-00000024" / "state.json").read_text())
    record = rows(run / "metrics.jsonl")
    assert [row["epoch"] for row in record if row["kind"] == "valid"] == [1, 2]
    best = max((row for row in record if row["kind"] == "valid"), key=lambda row: row["valid/accuracy"])
    assert state["standing"]["best"] == best["valid/accuracy"]  # the best was updated first
    assert "next      gradstep resume runs/0001-digits" in out
    code, out, _ = gradstep("resume")
    assert code == 0
    assert "resumed   after step 24, epoch 2" in out
    whole = gradstep("train", "digits", *QUICK, "epochs=4")
    assert whole[0] == 0
    other = gradstep.folder / "runs" / "0002-digits"
    for name in ("metrics.jsonl", "model.safetensors"):
        assert (run / name).read_bytes() == (other / name).read_bytes(), name


def test_resume_of_a_finished_run_says_so(gradstep) -> None:
    gradstep("train", "digits", *QUICK)
    code, out, _ = gradstep("resume")
    assert code == 0
    assert "already finished at step 24" in out


def test_resume_with_no_valid_checkpoint_touches_nothing_and_leaves_with_4(gradstep) -> None:
    gradstep("train", "digits", *QUICK, "epochs=4", "--interrupt-at", "2")
    run = gradstep.folder / "runs" / "0001-digits"
    for path in (run / "checkpoints").glob("step-*/model.safetensors"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code, _, err = gradstep("resume")
    assert code == 4
    assert "no checkpoint is valid, and none was touched" in err
    assert err.count("does not match its SHA-256") == 2
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_evaluate_gives_the_number_that_training_wrote(gradstep) -> None:
    gradstep("train", "digits", *QUICK)
    record = rows(gradstep.folder / "runs" / "0001-digits" / "metrics.jsonl")
    best = max(row["valid/accuracy"] for row in record if row["kind"] == "valid")
    code, out, _ = gradstep("evaluate", "1", "--json")
    assert code == 0
    assert json.loads(out)["accuracy"] == best
    assert gradstep("evaluate", "runs/0001-digits", "valid")[0] == 0


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_predict_writes_a_line_for_each_sample(gradstep, ending: str) -> None:
    gradstep("train", "digits", *QUICK)
    code, out, _ = gradstep("predict", "digits", "valid", "--to", f"p.{ending}")
    assert code == 0
    assert "359 predictions" in out
    file = gradstep.folder / f"p.{ending}"
    lines = list(csv.DictReader(file.read_text().splitlines())) if ending == "csv" else rows(file)
    valid = split(load_named("digits").train, 0.2)[1]  # numbered as in the whole that it was cut from
    assert [int(line["index"]) for line in lines] == valid.numbers.tolist()
    accuracy = json.loads(gradstep("evaluate", "1", "--json")[1])["accuracy"]
    from gradstep.data import targets_in_memory
    from gradstep.parts import part_of
    from gradstep.recipe import Recipe, find

    source, _ = part_of(Recipe.parse(find("runs/0001-digits")[1]), "valid", None)
    right = [int(line["label"]) == label for line, label in zip(lines, targets_in_memory(source).tolist(), strict=True)]
    assert sum(right) / 359 == pytest.approx(accuracy)
    assert all(0 < float(line["probability"]) <= 1 for line in lines)


def test_predict_without_a_file_writes_csv_to_standard_output(gradstep) -> None:
    gradstep("train", "digits", *QUICK)
    out = gradstep("predict", "1", "valid")[1]
    assert out.splitlines()[0] == "index,label,probability"
    assert len(out.splitlines()) == 360


def test_recipes_lists_and_prints(gradstep) -> None:
    code, out, _ = gradstep("recipes")
    assert code == 0
    for name in builtin():
        assert name in out
    code, out, _ = gradstep("recipes", "digits")
    (gradstep.folder / "mine.yaml").write_text(out)
    assert gradstep("train", "mine.yaml", *QUICK)[0] == 0
    assert (gradstep.folder / "runs" / "0001-mine").is_dir()


def test_starting_from_a_weights_file(gradstep) -> None:
    gradstep("train", "digits", *QUICK)
    weights = gradstep.folder / "runs" / "0001-digits" / "model.safetensors"
    code, _, _ = gradstep("train", "digits", *QUICK, f"model.weights={weights}", "optimizer.lr=0.0", "schedule=null")
    assert code == 0
    one, other = load_file(weights), load_file(gradstep.folder / "runs" / "0002-digits" / "model.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_quiet_says_nothing(gradstep) -> None:
    assert gradstep("train", "digits", *QUICK, "quiet=true")[1:] == ("", "")


def test_a_user_s_own_module_is_found_in_the_current_folder(gradstep) -> None:
    (gradstep.folder / "ours.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, width=8):\n"
        "        super().__init__()\n"
        "        self.layers = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1))\n"
        "    def forward(self, x):\n"
        "        return self.layers(x)\n"
        "def train():\n"
        "    x = torch.rand(64, 2, generator=torch.Generator().manual_seed(0))\n"
        "    return {'x': x, 'y': x.sum(1, keepdim=True)}\n"
        "class Set:\n"
        "    def __len__(self): return 64\n"
        "    def __getitem__(self, i): return {'x': train()['x'][i], 'y': train()['y'][i]}\n"
        "def unpack(batch): return batch['x'], batch['y']\n"
        "def forward(model, x): return model(x) * 1.0\n"
        "def gap(outputs, targets): return (outputs - targets).abs().amax(1)\n"
    )
    (gradstep.folder / "own.yaml").write_text(
        "data: {train: ours:Set, valid: 0.25}\nmodel: {class: ours:Net, width: 4}\n"
        "criterion: {terms: {square: MSELoss, size: L1Loss}, weights: {size: 0.1}}\nunpack: ours:unpack\n"
        "forward: ours:forward\noptimizer: {name: Adam, lr: 1e-2}\nbatch_size: 16\nsteps: 30\n"
        "metrics: [mse, ours:gap]\nmonitor: {name: valid/gap, mode: min}\npatience: 20 epochs\n"
    )
    code, out, err = gradstep("train", "own.yaml")
    assert (code, err) == (0, "")
    assert "best      valid/gap" in out
    record = rows(gradstep.folder / "runs" / "0001-own" / "metrics.jsonl")
    measured = next(row for row in record if row["kind"] == "valid")
    assert {"valid/loss", "valid/square", "valid/size", "valid/mse", "valid/gap"} <= set(measured)
    assert gradstep("evaluate", "1", "train")[0] == 0
    assert gradstep("predict", "1", "valid")[1].splitlines()[0] == "index,output"


def test_help_needs_no_torch_and_every_command_has_some() -> None:
    code = "import sys; sys.argv = ['gradstep', '--help']\ntry:\n    from gradstep.cli import main; main()\n"
    code += "except SystemExit: pass\nassert 'torch' not in sys.modules and 'pydantic' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in ("train", "resume", "evaluate", "predict", "recipes"):
        assert command in done.stdout
