"""The main job for most: a CSV of image paths and labels, or a folder per class, and one command."""

import csv
import itertools
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from gradstep.data import load_named
from tests.test_cli import gradstep, rows

__all__ = ["gradstep"]  # the fixture


@pytest.fixture
def digits(gradstep, mnist: Path) -> Path:
    """1,500 MNIST images as PNG, a folder for each class, and a CSV that lists them class by class."""
    images, labels = load_named("mnist").train.content
    lines = ["file,label"]
    for number in sorted(range(1500), key=lambda n: (int(labels[n]), n)):
        path = Path("photos") / str(int(labels[number])) / f"{number:05d}.png"
        (gradstep.folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[number, 0].numpy()).save(gradstep.folder / path)
        lines.append(f"{path},{int(labels[number])}")
    (gradstep.folder / "digits.csv").write_text("\n".join(lines) + "\n")
    return gradstep.folder


def test_a_csv_of_png_files_trains_to_what_is_promised_and_predicts_files(gradstep, digits: Path) -> None:
    code, out, err = gradstep("train", "digits.csv")
    assert code == 0, err
    assert float(re.search(r"^best +valid/accuracy ([\d.]+)", out, flags=re.MULTILINE)[1]) >= 0.9
    for line in ("chosen    images.mode: L, the files being all L", "valid: 20% of the training part, stratified"):
        assert line in out
    some = [
        f"photos/{label}/{path.name}" for label in range(10) for path in [min((digits / f"photos/{label}").iterdir())]
    ]
    code, out, err = gradstep("predict", "1", *some)
    assert code == 0, err
    predicted = list(csv.DictReader(out.splitlines()))
    assert [list(line) for line in predicted] == [["path", "label", "probability"]] * 10
    assert [line["path"] for line in predicted] == some
    assert sum(line["label"] == Path(line["path"]).parent.name for line in predicted) >= 9
    assert all(0.1 < float(line["probability"]) <= 1 for line in predicted)

    # The recipe that was chosen is saved, and is itself runnable: the same weights come of it.
    document = yaml.safe_load((digits / "runs/0001-digits/recipe.yaml").read_text())
    assert document["data"]["images"] == {"mode": "L"}
    assert document["data"]["columns"] == {"path": "file", "target": "label"}
    assert gradstep("train", "digits.csv", "epochs=1")[0] == 0
    assert gradstep("train", "runs/0002-digits/recipe.yaml")[0] == 0
    assert same_weights(digits / "runs/0002-digits", digits / "runs/0003-digits")

    top_three(gradstep, digits)
    a_folder_gives_the_same_weights(gradstep, digits)


def top_three(gradstep, digits: Path) -> None:
    (digits / "list.csv").write_text("image\nphotos/3/00007.png\n")
    code, _, err = gradstep("predict", "1", "list.csv", "photos/0", "--top", "3", "--to", "p.jsonl")
    assert (code, err) == (0, "")
    lines = rows(digits / "p.jsonl")
    assert lines[0]["path"] == "photos/3/00007.png"
    assert len(lines) == 1 + len(list((digits / "photos/0").iterdir()))
    for line in lines:
        assert list(line) == ["path", "label", "probability", "label2", "probability2", "label3", "probability3"]
        assert line["probability"] >= line["probability2"] >= line["probability3"]
        assert len({line["label"], line["label2"], line["label3"]}) == 3


def a_folder_gives_the_same_weights(gradstep, digits: Path) -> None:
    """The order of samples being the same: the CSV goes through the folders as the folder source does."""
    assert gradstep("train", "photos", "epochs=1", "--name", "folder")[0] == 0
    assert same_weights(digits / "runs/0002-digits", digits / "runs/0004-folder")
    one, other = ((digits / f"runs/{name}/metrics.jsonl").read_bytes() for name in ("0002-digits", "0004-folder"))
    assert one == other


def same_weights(one: Path, other: Path) -> bool:
    first, second = (load_file(path / "model.safetensors") for path in (one, other))
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def few(gradstep) -> Path:
    """Photos of two kinds, in colour, of several sizes, one of them transparent."""
    for number in range(24):
        size, colour = (20 + number, 30), (250, 20, 20) if number % 2 else (20, 20, 250)
        Image.new("RGB", size, colour).save(gradstep.folder / f"{number}.jpg")
    Image.new("RGBA", (40, 40), (0, 255, 0, 100)).save(gradstep.folder / "24.png")
    names = [f"{number}.jpg,{'red' if number % 2 else 'blue'}" for number in range(24)]
    (gradstep.folder / "photos.csv").write_text("\n".join([*names, "24.png,blue", ""]))
    return gradstep.folder


def test_what_was_chosen_is_printed_and_written(gradstep, few: Path) -> None:
    code, out, err = gradstep("train", "photos.csv", "epochs=2")
    assert code == 0, err
    assert "images.mode: RGB, the files being 24 RGB, 1 RGBA" in out
    assert "images.size: 24, the files being" in out
    document = yaml.safe_load((few / "runs/0001-photos/recipe.yaml").read_text())
    assert document["data"]["images"] == {"mode": "RGB", "size": 24, "ground": "white"}
    assert document["model"] == {"class": "gradstep.models:ConvNet", "channels": 3, "stages": 3, "outputs": 2}
    code, out, err = gradstep("predict", "1", "24.png", "3.jpg")
    assert [line.split(",")[0] for line in out.splitlines()] == ["path", "24.png", "3.jpg"]


def test_every_choice_can_be_made_otherwise(gradstep, few: Path) -> None:
    changes = ["data.images={mode: L, size: [16, 12], ground: black}", "data.valid=0.4", "epochs=1", "batch_size=5"]
    assert gradstep("train", "photos.csv", *changes)[0] == 0
    document = yaml.safe_load((few / "runs/0001-photos/recipe.yaml").read_text())
    assert document["data"]["images"] == {"mode": "L", "size": [16, 12], "ground": "black"}
    assert (document["data"]["valid"], document["batch_size"], document["model"]["channels"]) == (0.4, 5, 1)


def test_augmentation_by_one_word(gradstep, few: Path) -> None:
    said = gradstep("train", "photos.csv", "epochs=1", "data.augment=[flip, {crop: {size: 24, pad: 3}}, {mixup: 0.3}]")
    assert said[0] == 0, said[2]
    document = yaml.safe_load((few / "runs/0001-photos/recipe.yaml").read_text())
    assert document["data"]["augment"] == ["flip", {"crop": {"size": 24, "pad": 3}}, {"mixup": 0.3}]
    assert gradstep("train", "photos.csv", "epochs=1")[0] == 0
    assert gradstep("train", "photos.csv", "epochs=1", "data.augment={shift: 3}")[0] == 0
    runs = [few / f"runs/000{number}-photos" for number in (1, 2, 3)]
    assert not any(same_weights(one, other) for one, other in itertools.combinations(runs, 2)), "it is done"


def test_a_table_of_numbers_regression_and_prediction_without_targets(gradstep) -> None:
    lines = ["width,height,area"] + [f"{w},{h},{w * h / 10 + 0.05}" for w in range(1, 16) for h in range(1, 16)]
    (gradstep.folder / "areas.csv").write_text("\n".join(lines))
    code, out, err = gradstep("train", "areas.csv", "data.columns.target=area", "epochs=60")
    assert code == 0, err
    assert float(re.search(r"^best +valid/mae ([\d.]+)", out, flags=re.MULTILINE)[1]) < 0.7
    (gradstep.folder / "new.csv").write_text("height,width\n10,7\n3,3\n")
    code, out, err = gradstep("predict", "1", "new.csv")
    assert code == 0, err
    found = [float(line["output"]) for line in csv.DictReader(out.splitlines())]
    assert found == pytest.approx([7.05, 0.95], abs=1.0)
    assert json.loads(gradstep("evaluate", "1", "areas.csv", "--json")[1])["mae"] < 0.7


def test_a_named_set_without_a_recipe_gets_the_default_one(gradstep, mnist: Path, monkeypatch) -> None:
    folder = gradstep.folder / "data"
    monkeypatch.setenv("GRADSTEP_DATA", str(folder))
    (folder / "fashion_mnist").mkdir(parents=True)
    for each in mnist.iterdir():
        (folder / "fashion_mnist" / each.name).symlink_to(each)
    code, out, err = gradstep("train", "fashion_mnist", "--dry-run")
    assert code == 0, err
    assert "test      10,000 samples of 1×28×28" in out
    assert not (gradstep.folder / "runs").exists()
