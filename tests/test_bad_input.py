"""Bad input costs seconds: a clear error, exit code 2, before training starts, and nothing written over.

The texts are part of the product. They are kept in snapshots/errors.txt, and a change to one is seen in review; write
them anew with GRADSTEP_SNAPSHOTS=write.
"""

import gzip
import json
import os
import re
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gradstep import cli

SNAPSHOT = Path(__file__).parent / "snapshots" / "errors.txt"
MODULE = """
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

def pair(n=12, features=4, labels=3, dtype=torch.float32):
    return torch.linspace(0, 1, n * features).reshape(n, features).to(dtype), torch.arange(n) % labels

train = pair()
empty = pair(0)
outside = (pair()[0], torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 9, 1]))
not_numbers = (pair()[0].clone().index_put_((torch.tensor(5), torch.tensor(2)), torch.tensor(float("nan"))), pair()[1])
wide = pair(features=7)
double = pair(dtype=torch.float64)
whole_numbers = pair(dtype=torch.int64)
short_labels = (pair()[0], pair()[1].int())
float_labels = (pair()[0], pair()[1].float())
column = (pair()[0], pair()[0][:, 0])
no_pair = (pair()[0], pair()[1], pair()[1])
lengths = (pair()[0], pair()[1][:-1])
alone = pair()[0]
objects = (np.array([["a"]] * 12), np.arange(12))
loader = DataLoader(torch.utils.data.TensorDataset(*pair()), batch_size=4)

class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(*pair())

class Broken(Dataset):
    def __len__(self):
        return 12
    def __getitem__(self, index):
        return {}["missing"]

class Listed(Dataset):
    samples = train
    def __len__(self):
        return 12
    def __getitem__(self, index):
        return self.samples[0][index], self.samples[1][index]

class NotNumbers(Listed):
    samples = not_numbers

class Outside(Listed):
    samples = outside

rows = (pair()[0], pair()[1][:, None])

def bad_schedule(step, base):
    raise LookupError("no such step")

def no_rate(step, base):
    return "0.1"

class Net(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.layer = nn.Linear(4, width)
    def forward(self, x):
        return self.layer(x)

class BadForward(Net):
    def forward(self, x):
        return self.layre(x)

class BadInit(nn.Module):
    def __init__(self):
        raise KeyError("size")

class Frozen(Net):
    def __init__(self):
        super().__init__()
        self.requires_grad_(False)

class Normed(Net):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
    def forward(self, x):
        return self.norm(self.layer(x))

class Dropped(Net):
    def forward(self, x):
        return nn.functional.dropout(self.layer(x), 0.5, self.training)

class Activated(Net):
    def __init__(self):
        super().__init__()
        self.activation = nn.ReLU()

class Centred(Net):
    def forward(self, x):
        return self.layer(x) - self.layer(x).mean(0)

class Scores(Net):
    def forward(self, x):
        return self.layer(x) @ self.layer(x).T

class Moving(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("centre", torch.zeros(3))
    def forward(self, x):
        self.centre += 0.1 * self.layer(x).detach().mean(0)
        return self.layer(x) - self.centre

class Hooked(Net):
    def __init__(self):
        super().__init__()
        self.layer.weight.register_post_accumulate_grad_hook(lambda p: None)

def mean(outputs, targets):
    return outputs.mean()

class Wrong:
    def on_train_batch_ends(self, state, outcome):
        pass

def not_a_net():
    return 3

def no_tensor(outputs, targets):
    return 1.0

def matrix(outputs, targets):
    return outputs

def bad_loss(outputs, targets):
    raise ZeroDivisionError("of mine")

def bad_transform(image):
    raise ArithmeticError("of mine")

def bad_metric(outputs, targets):
    return outputs.nope

other = (pair()[0] + 1, pair()[1])
"""

BASE = """
data: {train: "mine:train"}
model: {class: "mine:Net"}
criterion: CrossEntropyLoss
batch_size: 4
epochs: 1
optimizer: {name: SGD, lr: 0.1}
"""

# name -> what is typed after `gradstep train base.yaml`
CASES: dict[str, list[str]] = {
    "empty data": ["data.train=mine:empty"],
    "labels outside the model's range": ["data.train=mine:outside"],
    "numbers that are none": ["data.train=mine:not_numbers"],
    "inputs of another width": ["data.train=mine:wide"],
    "inputs of double precision": ["data.train=mine:double"],
    "inputs of integers": ["data.train=mine:whole_numbers"],
    "labels of another integer type": ["data.train=mine:short_labels"],
    "labels that are floats": ["data.train=mine:float_labels"],
    "targets that would be broadcast": ["data.train=mine:column", "criterion=MSELoss"],
    "a batch of three parts": ["data.train=mine:no_pair"],
    "inputs and targets of two lengths": ["data.train=mine:lengths"],
    "inputs without targets": ["data.train=mine:alone"],
    "arrays of words": ["data.train=mine:objects"],
    "a loader instead of a data set": ["data.train=mine:loader"],
    "an iterable data set": ["data.train=mine:Stream"],
    "a data set that raises": ["data.train=mine:Broken"],
    "a data set that is not there": ["data.train=minst"],
    "a named set whose files are missing": ["data.train=mnist"],
    "a fraction that leaves nothing": ["data.valid=0.01"],
    "a fraction above one": ["data.valid=1.5"],
    "an IDX file that is not there": ["data.train={images: no-such-file, labels: labels}"],
    "an IDX file that is cut off": ["data.train={images: cut.gz, labels: labels}"],
    "a gzip file that is cut off": ["data.train={images: cut-gzip.gz, labels: labels}"],
    "an IDX file that is none": ["data.train={images: base.yaml, labels: labels}"],
    "a transform that does not exist": ["data.transforms=[flaot]"],
    "a transform before float": ["data.train=digits", "data.transforms=[{normalize: measured}]"],
    "an unknown key": ["epoch=3"],
    "a key of another trainer": ["learning_rate=0.1"],
    "a key of another trainer, inside": ["momentum=0.9"],
    "an unknown key inside data": ["data.tran=mine:train"],
    "a setting without a value": ["epochs"],
    "a value of the wrong type": ["batch_size=many"],
    "a fraction of an epoch": ["epochs=1.5"],
    "a negative size": ["batch_size=-4"],
    "no epochs": ["epochs=0"],
    "epochs and steps": ["steps=10"],
    "a duration without a unit": ["evaluate_every=5"],
    "a duration of nothing": ["evaluate_every=0 epochs"],
    "a missing key": ["optimizer=null"],
    "a precision that this version does not have": ["precision=fp8"],
    "a precision that is none": ["precision=bf17"],
    "a plan that is none": ["plan=fastest"],
    "a switch that is none": ["plan.compil=off"],
    "a switch with a wrong value": ["plan.optimizer=Adam"],
    "a micro-batch of nothing": ["micro_batch=0"],
    "a micro-batch that is not whole": ["micro_batch=1.5"],
    "accumulation as another trainer counts it": ["accumulate_grad_batches=4"],
    "a micro-batch that does not divide into groups": ["model.class=mine:Normed", "micro_batch=3", "stat_group=2"],
    "BatchNorm in micro-batches without groups": ["model.class=mine:Normed", "micro_batch=2"],
    "BatchNorm and a last group of one": ["model.class=mine:Normed", "batch_size=5", "micro_batch=2", "stat_group=2"],
    "dropout from torch's stream in micro-batches": ["model.class=mine:Dropped", "micro_batch=2", "dropout=stream"],
    "a dropout that does not exist": ["dropout=key"],
    "a model that couples samples": ["model.class=mine:Centred", "micro_batch=2"],
    "outputs of all samples with all": ["model.class=mine:Scores", "criterion=mine:mean", "micro_batch=2"],
    "a buffer that takes in the samples": ["model.class=mine:Moving", "micro_batch=2"],
    "an optimizer in the backward": ["model.class=mine:Hooked", "micro_batch=2"],
    "a setting beside terms": ["criterion={terms: {a: CrossEntropyLoss}, weihgts: {a: 2.0}}"],
    "a label per row": ["data.train=mine:rows"],
    "an interruption at the end": ["--interrupt-at", "1"],
    "a schedule that raises": ["schedule=mine:bad_schedule"],
    "a schedule that gives no rate": ["schedule=mine:no_rate"],
    "numbers that are none, in a data set": ["data.train=mine:NotNumbers"],
    "labels outside the model's range, in a data set": ["data.train=mine:Outside"],
    "an unknown optimizer": ["optimizer.name=Adamm"],
    "an unknown optimizer option": ["optimizer.learning_rate=0.1"],
    "an optimizer option of the wrong type": ["optimizer.lr=fast"],
    "a negative rate": ["optimizer.lr=-1"],
    "a rate that is no number": ["optimizer.lr=.nan"],
    "Nesterov without momentum": ["optimizer.nesterov=true"],
    "Nesterov without momentum, in gradstep's SGD": ["optimizer={name: 'gradstep.optim:SGD', lr: 0.1, nesterov: true}"],
    "L1 decay asked of torch's SGD": ["optimizer.weight_decay_l1=0.1"],
    "a group's pattern without a match": ["groups={laier: {lr: 0.01}}"],
    "a group's pattern left empty by an earlier one": ["groups={'layer*': {lr: 0.01}, '*.bias': {lr: 0.02}}"],
    "a group's pattern for a layer without parameters": [
        "model.class=mine:Activated", "groups={activation: {lr: 0.01}}"],
    "an unknown option of a group": ["groups={layer: {learning_rate: 0.1}}"],
    "an option of a group that another optimizer has": ["groups={layer: {betas: [0.9, 0.99]}}"],
    "a group's option of the wrong type": ["groups={layer: {lr: fast}}"],
    "a group's negative rate": ["groups={layer: {lr: -0.1}}"],
    "a group that is no mapping": ["groups={layer: 0.01}"],
    "a time to freeze until without a unit": ["groups={layer: {freeze: 3}}"],
    "everything frozen": ["groups={'*': {freeze: true}}"],
    "a decay of layers above one": ["groups={layer_decay: 1.5}"],
    "a clip of nothing": ["clip=0"],
    "a clip as another trainer calls it": ["max_grad_norm=1.0"],
    "an average without a decay": ["ema=1.5"],
    "an unknown initialisation": ["init=xaver"],
    "an unknown option of an initialisation": ["init={name: xavier, distribution: unifrom}"],
    "an initialisation and weights": ["init=xavier", "model.weights=no.safetensors"],
    "an unknown criterion": ["criterion=CrossEntropy"],
    "an unknown criterion option": ["criterion={name: CrossEntropyLoss, smoothing: 0.1}"],
    "a weight for no term": ["criterion={terms: {a: CrossEntropyLoss}, weights: {b: 1.0}}"],
    "a criterion that returns no tensor": ["criterion=mine:no_tensor"],
    "a criterion that returns a matrix": ["criterion=mine:matrix"],
    "a criterion that raises": ["criterion=mine:bad_loss"],
    "an unknown schedule": ["schedule=cosin"],
    "an unknown schedule option": ["schedule={name: cosine, warm_up: 1 epoch}"],
    "a schedule of an option that is not there": ["schedule={momentun: constant}"],
    "a schedule of torch's with an unknown argument": ["schedule={name: StepLR, stepsize: 3}"],
    "a schedule of torch's that ends before the run": [
        "epochs=4", "schedule={name: OneCycleLR, max_lr: 0.1, total_steps: 3}"],
    "a scheduler of torch's that goes by a metric": ["schedule=ReduceLROnPlateau"],
    "a schedule that goes by a metric, without validation": ["schedule=halve_on_plateau"],
    "a schedule that goes by a metric that is not measured": [
        "data.valid=0.25", "schedule={name: halve_on_plateau, metric: valid/acc}"],
    "a schedule without a name": ["schedule={warmup: 1 epoch}"],
    "a product of nothing": ["schedule=product"],
    "a part of a word": ["device.name=cpu"],
    "what is frozen, as a key of its own": ["freeze=layer"],
    "a warm-up, as a key of its own": ["warmup=1 epoch"],
    "schedules in a row without times": ["schedule={name: join, parts: [constant, cosine], at: []}"],
    "a negative time constant": ["schedule={name: inverse_time, decay: -1}"],
    "an unknown metric": ["metrics=[acuracy]"],
    "a metric that raises": ["metrics=[mine:bad_metric]"],
    "a metric for other outputs": ["metrics=[mse]"],
    "a monitor that is not measured": ["data.valid=0.25", "monitor=valid/acc", "metrics=[accuracy]"],
    "a monitor without validation": ["monitor=valid/loss"],
    "a patience without a unit": ["data.valid=0.25", "patience=3"],
    "an unknown hook": ["hooks=[TensorBord]"],
    "a hook with a misspelled method": ["hooks=[mine:Wrong]"],
    "a model without a colon": ["model.class=Net"],
    "a module that is not there": ["model.class=mien:Net"],
    "an object that is not there": ["model.class=mine:Nett"],
    "a model's unknown argument": ["model.widht=3"],
    "a model that is none": ["model.class=mine:not_a_net"],
    "a model with nothing to train": ["model.class=mine:Frozen"],
    "a model whose constructor raises": ["model.class=mine:BadInit"],
    "a model whose forward raises": ["model.class=mine:BadForward"],
    "BatchNorm and a last batch of one": ["model.class=mine:Normed", "batch_size=11"],
    "a weights file that is not there": ["model.weights=no.safetensors"],
    "a weights file that is none": ["model.weights=base.yaml"],
    "a device that is not there": ["device=cuda:9"],
    "a device that does not exist": ["device=gpu"],
    "everything dropped": ["batch_size=100", "drop_last=true"],
    "a folder that can't be written": ["--out", "base.yaml"],
    "a name that is no folder's": ["--name", "a/b"],
    "an epoch to interrupt at that is none": ["--interrupt-at", "0"],
    "an augmentation that does not exist": ["data.augment=[flop]"],
    "an augmentation's unknown option": ["data.augment=[{crop: {size: 8, padding: 2}}]"],
    "an augmentation's impossible value": ["data.augment=[{shift: -1}]"],
    "an augmentation of what is no image": ["data.augment=[flip]"],
    "mixing without class names": ["data.augment=[{mixup: 0.2}]"],
    "mixing under a criterion for class numbers": [
        "data.augment=[{mixup: {alpha: 0.2, classes: 3}}]", "criterion=NLLLoss"],
    "an unknown key of images": ["data.images.sise=32"],
    "an unknown mode of images": ["data.train=photos/good.csv", "data.images.mode=RGBB"],
    "a ground that is no colour": ["data.train=photos/good.csv", "data.images={mode: RGB, ground: wite}"],
    "images of several sizes": ["data.train=photos/good.csv", "data.images.mode=L", "data.transforms=[float]"],
    "images of several modes": ["data.train=photos/good.csv"],
    "a transparent image and no ground": ["data.train=photos/clear.csv", "data.images.mode=RGB"],
    "a validation label that training does not have": [
        "data.train=photos/good.csv", "data.valid=photos/other.csv", "data.images={mode: L, size: 4}"],
    "what to do about bad images, misspelled": ["data.train=photos/good.csv", "data.on_bad=ignore"],
    "targets that are neither classes nor numbers": ["data.train=photos/good.csv", "data.targets=labels"],
    "a transform of images that raises": [
        "data.train=photos/good.csv", "data.images.mode=L", "data.transform=mine:bad_transform"],
    "an array alone": ["data.train=inputs.npy"],
    "arrays of two lengths": ["data.train={inputs: inputs.npy, targets: targets.npy}"],
    "a CIFAR file that is cut off": ["data.train=cut.bin"],
    "what to do about no number, misspelled": ["on_nonfinite=skp"],
    "no step that may be left out": ["on_nonfinite={skip: 0}"],
    "an optimizer whose steps can't be left out": ["optimizer={name: LBFGS}", "on_nonfinite=skip"],
    "a policy for checkpoints that is none": ["checkpoint={evry: 1 epoch}"],
    "no checkpoint to keep": ["checkpoint.keep=0"],
}  # fmt: skip

# name -> the whole command
COMMANDS: dict[str, list[str]] = {
    "an unknown recipe": ["train", "digist"],
    "a recipe file that is not there": ["train", "nowhere.yaml"],
    "a recipe that is not YAML": ["train", "broken.yaml"],
    "a recipe that is a list": ["train", "list.yaml"],
    "a recipe with a key twice": ["train", "twice.yaml"],
    "a recipe with an alias": ["train", "alias.yaml"],
    "a run that is not there": ["resume", "0007-digits"],
    "no run yet": ["resume"],
    "a run to evaluate that is not there": ["evaluate", "7"],
    "a run to predict with that is not there": ["predict", "7", "digits"],
    "a recipe to print that is not there": ["recipes", "digit"],
    "images that are missing or can't be read": ["train", "photos/bad.csv"],
    "images that are left out, all of them": ["train", "photos/none.csv", "data.on_bad=skip", "data.images={mode: L}"],
    "a CSV that is empty": ["train", "photos/empty.csv"],
    "a CSV with a header alone": ["train", "photos/header.csv"],
    "a CSV of one class": ["train", "photos/one.csv"],
    "a CSV's column that is not there": ["train", "photos/good.csv", "data.columns.target=lable"],
    "a CSV with two columns for the label": ["train", "photos/two.csv"],
    "a CSV without labels": ["train", "photos/alone.csv"],
    "a CSV with a row too short": ["train", "photos/short.csv"],
    "a CSV with a label missing": ["train", "photos/hole.csv"],
    "a CSV with a different label for each": ["train", "photos/each.csv"],
    "a table whose target nobody named": ["train", "table.csv"],
    "a table with a cell that is no number": ["train", "table.csv", "data.columns.target=area"],
    "a file that is nothing known": ["train", "notes.md"],
    "a folder without classes": ["train", "photos"],
    "a folder that might be parts or classes": ["train", "mixed"],
    "a data set to fetch that is not known": ["data", "get", "minst"],
    "a data set to show that is not there": ["data", "show", "photo.csv"],
    "a sheet that is no PNG": ["data", "show", "photos/good.csv", "--sheet", "sheet.jpg"],
    "augmentation shown without any": ["data", "show", "photos/good.csv", "--sheet", "s.png", "--augment"],
}

# name -> what is typed after `gradstep resume`, where had/ holds runs that were interrupted after two epochs of four
RESUMES: dict[str, list[str]] = {
    "a run resumed with another rate": ["had/0001-base", "optimizer.lr=0.01"],
    "a run resumed with another batch size and seed": ["had/0001-base", "batch_size=3", "seed=1"],
    "a run resumed with other data": ["had/0001-base", "data.train=mine:other"],
    "a run made longer whose schedule depends on its length": ["had/0001-base", "epochs=8"],
    "a run made shorter than it is": ["had/0001-base", "epochs=1"],
    "a run resumed with a misspelled key": ["had/0001-base", "epoch=8"],
    "a run resumed with a value and no key": ["had/0001-base", "8"],
    "a checkpoint that is not there": ["had/0001-base/checkpoints/step-00000004"],
    "a checkpoint that is named and damaged": ["had/0002-base/checkpoints/step-00000003"],
    "a run of which no checkpoint is valid": ["had/0003-base"],
    "a run whose record was changed": ["had/0004-base"],
    "a run that was started from Python": ["had/0005-base"],
    "a run that died three times of one step": ["had/0006-base"],
}
EXIT_CODES = {
    "a checkpoint that is named and damaged": 4,
    "a run of which no checkpoint is valid": 4,
    "a run whose record was changed": 4,
    "a run that died three times of one step": 5,
}  # else 2


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    (folder / "mine.py").write_text(MODULE)
    (folder / "base.yaml").write_text(BASE)
    (folder / "broken.yaml").write_text("data: {train: digits\nmodel: x\n")
    (folder / "list.yaml").write_text("- data\n- model\n")
    (folder / "twice.yaml").write_text(BASE + "epochs: 2\n")
    (folder / "alias.yaml").write_text("a: &a [1, 2]\nb: [*a, *a]\n")
    images = struct.pack(">HBBIII", 0, 8, 3, 4, 2, 2) + bytes(16)
    (folder / "cut.gz").write_bytes(gzip.compress(images[:-3], mtime=0))
    (folder / "cut-gzip.gz").write_bytes(gzip.compress(images, mtime=0)[:-6])
    _write_data(folder)
    _write_runs(folder)
    (folder / "labels").write_bytes(struct.pack(">HBBI", 0, 8, 1, 4) + bytes(4))
    return folder


def _write_data(folder: Path) -> None:
    """Images and tables with something wrong with each."""
    (folder / "photos").mkdir()
    for number in range(12):
        Image.new("L" if number < 8 else "RGB", (8, 8 if number < 4 else 9)).save(folder / "photos" / f"{number}.png")
    Image.new("RGBA", (8, 8), (0, 0, 0, 99)).save(folder / "photos/clear.png")
    (folder / "photos/cut.png").write_bytes((folder / "photos/1.png").read_bytes()[:44])
    (folder / "photos/text.png").write_text("not an image")
    names = [f"{number}.png" for number in range(12)]
    files = {
        "good": ["file,label", *(f"{name},{'ab'[n % 2]}" for n, name in enumerate(names))],
        "other": ["file,label", "0.png,a", "1.png,c"],
        "clear": ["file,label", "clear.png,a", "11.png,b"],
        "bad": ["file,label", *(f"{name},{n % 2}" for n, name in enumerate([*names, "cut.png", "text.png", "no.png"])),
                *(f"gone{n}.png,0" for n in range(9))],
        "none": ["file,label", "no.png,a", "nor.png,b"],
        "empty": [],
        "header": ["file,label"],
        "one": ["file,label", *(f"{name}, cat " for name in names)],
        "two": ["file,kind,color", *(f"{name},a,b" for name in names)],
        "alone": names,
        "short": ["file,label", "0.png,a", "1.png"],
        "hole": ["file,label", "0.png,a", "1.png,"],
        "each": ["file,label", *(f"{n % 12}.png,{n}" for n in range(48))],
    }  # fmt: skip
    for name, lines in files.items():
        (folder / "photos" / f"{name}.csv").write_text("\n".join(lines))
    (folder / "table.csv").write_text("width,height,area\n1,2,2\n3,n/a,9\n")
    (folder / "notes.md").write_text("# notes\n")
    for name in ("train", "extra"):
        (folder / "mixed" / name).mkdir(parents=True)
        shutil.copy(folder / "photos/0.png", folder / "mixed" / name)
    np.save(folder / "inputs.npy", np.zeros((5, 4), np.float32))
    np.save(folder / "targets.npy", np.zeros(4, np.int64))
    (folder / "cut.bin").write_bytes(bytes(5000))


def _write_runs(folder: Path) -> None:
    """Runs that were interrupted, with something wrong with each but the first."""
    command = ["train", "base.yaml", "epochs=4", "schedule=cosine", "checkpoint.keep=9", "quiet=true"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr(sys, "dont_write_bytecode", True)
        patch.setattr(sys, "argv", ["gradstep", *command, "--interrupt-at", "2", "--out", "had"])
        with pytest.raises(SystemExit):
            cli.main()
    sys.modules.pop("mine", None)  # it is each test's own
    (folder / "had/latest").unlink()
    for number in range(2, 7):
        shutil.copytree(folder / "had/0001-base", folder / f"had/000{number}-base")
    _flip(folder / "had/0002-base/checkpoints/step-00000003/model.safetensors")
    for weights in folder.glob("had/0003-base/checkpoints/*/model.safetensors"):
        _flip(weights)
    _flip(folder / "had/0004-base/metrics.jsonl")
    (folder / "had/0005-base/recipe.yaml").unlink()
    died = {"step": 8, "epoch": 3, "batch": 1, "samples": [3, 1, 7], "error": "DivergedError", "checkpoint": 6,
            "message": "the loss of step 8 is nan", "where": "mine.py:9", "times": 3}  # fmt: skip
    (folder / "had/0006-base/failure.json").write_text(json.dumps(died))


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def texts() -> Iterator[dict[str, str]]:
    """The texts of this run, to be written as the snapshot when asked for."""
    seen: dict[str, str] = {}
    yield seen
    if os.environ.get("GRADSTEP_SNAPSHOTS") == "write":
        SNAPSHOT.parent.mkdir(exist_ok=True)
        SNAPSHOT.write_text("\n\n".join(f"## {name}\n{text}" for name, text in sorted(seen.items())) + "\n")


def kept() -> dict[str, str]:
    parts = SNAPSHOT.read_text().removesuffix("\n").removeprefix("## ").split("\n\n## ")
    return dict(part.split("\n", 1) for part in parts)


@pytest.mark.parametrize("name", [*CASES, *COMMANDS, *RESUMES])
def test_bad_input_is_explained_and_nothing_is_written(
    name: str,
    template: Path,
    texts: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "here"
    shutil.copytree(template, folder, ignore=None if name in RESUMES else shutil.ignore_patterns("had"))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("GRADSTEP_DATA", str(folder))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    first = ["train", "base.yaml"] if name in CASES else ["resume"] if name in RESUMES else []
    typed = [*first, *{**CASES, **COMMANDS, **RESUMES}[name]]
    monkeypatch.setattr(sys, "argv", ["gradstep", *typed])
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as left:
        cli.main()
    said = capsys.readouterr().err
    assert left.value.code == EXIT_CODES.get(name, 2), said
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert not (folder / "runs").exists()
    assert "src/gradstep" not in said, "a user's error shows the user's own frames"
    text = said.replace(str(folder), "FOLDER").strip()
    text = re.sub(r'File "FOLDER/mine.py", line \d+', 'File "FOLDER/mine.py", line N', text)
    text = re.sub(r"\(mine.py, line \d+", "(mine.py, line N", text)
    text = re.sub(r"is not here \(.*?\)", "is not here (...)", text)  # torch's reason depends on its build
    text = re.sub(r"first \d+ bytes", "first N bytes", re.sub(r"\([0-9a-f]{12}\)", "(HASH)", text))
    texts[name] = text
    if os.environ.get("GRADSTEP_SNAPSHOTS") != "write":
        assert text == kept()[name]


def test_the_snapshot_has_no_text_that_nobody_says() -> None:
    assert set(kept()) == {*CASES, *COMMANDS, *RESUMES}
