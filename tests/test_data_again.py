"""A run and its data later: from another folder, after the files have changed, with the same columns for every file."""

import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.test_cli import gradstep
from tests.test_straight_from_data import same_weights

__all__ = ["gradstep"]  # the fixture

MODULE = """
import torch
from PIL import Image

def bright(image):
    return torch.full((1, 8, 8), 1.0)

def as_it_is(image):
    return torch.tensor(list(image.get_flattened_data()), dtype=torch.float32).reshape(1, 8, 8) / 255

def one_less(target):
    return target
"""


def images(folder: Path, count: int = 24, shade: int = 0) -> None:
    """Dark images for 'a', light ones for 'b', as BMP: files of one length whatever is in them."""
    for number in range(count):
        Image.new("L", (8, 8), shade + 5 * (number // 2) + 128 * (number % 2)).save(folder / f"{number}.bmp")


def listing(path: Path, numbers: range, header: str = "file,label") -> None:
    path.write_text("\n".join([header, *(f"{n}.bmp,{'ab'[n % 2]}" for n in numbers), ""]))


@pytest.fixture
def here(gradstep) -> Path:
    images(gradstep.folder)
    listing(gradstep.folder / "train.csv", range(20))
    listing(gradstep.folder / "valid.csv", range(20, 24))
    return gradstep.folder


def test_a_run_means_its_own_files_from_any_folder(gradstep, here: Path, tmp_path: Path, monkeypatch) -> None:
    assert gradstep("train", "train.csv", "epochs=4", "data.valid=valid.csv", "data.test=0.2")[0] == 0
    assert (
        gradstep("train", "train.csv", "epochs=4", "data.valid=valid.csv", "data.test=0.2", "--interrupt-at", "2")[0]
        == 3
    )
    document = yaml.safe_load((here / "runs/0001-train/recipe.yaml").read_text())
    assert (document["data"]["train"], document["data"]["valid"]) == (str(here / "train.csv"), str(here / "valid.csv"))
    told = [gradstep("evaluate", "1", part, "--json")[1] for part in ("train", "valid", "test")]
    predicted = gradstep("predict", "1", "valid")[1]

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    images(elsewhere, shade=60)  # files of the same names that are others
    listing(elsewhere / "train.csv", range(4))
    listing(elsewhere / "valid.csv", range(4, 8))
    monkeypatch.chdir(elsewhere)
    run = str(here / "runs/0001-train")
    for part, before in zip(("train", "valid", "test"), told, strict=True):
        now = gradstep("evaluate", run, part, "--json")
        assert now[1].partition('"data"')[2] == before.partition('"data"')[2], now
    assert gradstep("predict", run, "valid")[1] == predicted
    there = str(here / "valid.csv")
    own, other = (gradstep("evaluate", run, typed, "--json") for typed in (there, "valid.csv"))
    assert [json.loads(each[1])["samples"] for each in (own, other)] == [4, 4]
    assert json.loads(own[1])["loss"] != json.loads(other[1])["loss"], "what is typed is looked for where one stands"
    assert gradstep("resume", str(here / "runs/0002-train"))[0] == 0
    assert same_weights(here / "runs/0001-train", here / "runs/0002-train")


def shaded(folder: Path) -> None:
    image = folder / "7.bmp"
    length = image.stat().st_size
    Image.new("L", (8, 8), 255).save(image)
    assert image.stat().st_size == length


def relabelled(folder: Path) -> None:
    text = (folder / "train.csv").read_text()
    (folder / "train.csv").write_text(text.replace("6.bmp,a", "6.bmp,b").replace("7.bmp,b", "7.bmp,a"))


def revalidated(folder: Path) -> None:
    Image.new("L", (8, 8), 3).save(folder / "21.bmp")


@pytest.mark.parametrize(
    ("change", "which"),
    [(shaded, "training"), (relabelled, "training"), (revalidated, "validation")],
    ids=["an image of the same length", "labels", "an image of the validation file"],
)
def test_a_resume_refuses_images_that_changed(gradstep, here: Path, change, which: str) -> None:
    assert gradstep("train", "train.csv", "epochs=4", "data.valid=valid.csv", "--interrupt-at", "2")[0] == 3
    change(here)
    code, _, err = gradstep("resume")
    assert code == 2
    assert f"the content of the data behind the {which} part:" in err
    assert not (here / "runs/0001-train/model.safetensors").exists()


def test_a_resume_goes_on_where_only_a_time_changed_and_says_so(gradstep, here: Path) -> None:
    assert gradstep("train", "train.csv", "epochs=3", "--interrupt-at", "2")[0] == 3
    images(here)
    code, out, _ = gradstep("resume")
    assert code == 0
    assert "the training data's files have another time" in out


def a_table(folder: Path) -> tuple[list[str], Path]:
    rows = [[n, n % 5, n % 2] for n in range(40)]
    with open(folder / "table.csv", "w", newline="") as file:
        csv.writer(file).writerows([["x", "z", "label"], *rows])
    return ["table.csv"], folder / "table.csv"


def numpy_files(folder: Path) -> tuple[list[str], Path]:
    np.save(folder / "x.npy", np.arange(120, dtype=np.float32).reshape(40, 3))
    np.save(folder / "y.npy", np.arange(40) % 2)
    recipe = {
        "data": {"train": {"inputs": "x.npy", "targets": "y.npy"}, "valid": 0.2},
        "model": {"class": "gradstep.models:MLP", "inputs": 3, "outputs": 2},
        "criterion": "CrossEntropyLoss",
        "batch_size": 8,
        "epochs": 4,
        "optimizer": {"name": "SGD", "lr": 0.01},
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(recipe))
    return ["mine.yaml"], folder / "x.npy"


@pytest.mark.parametrize("make", [a_table, numpy_files])
def test_a_resume_refuses_small_files_that_changed(gradstep, tmp_path: Path, monkeypatch, make) -> None:
    typed, file = make(gradstep.folder)
    assert gradstep("train", *typed, "epochs=4", "--interrupt-at", "2")[0] == 3
    shutil.copy(file, tmp_path / "before")
    raw = bytearray(file.read_bytes())
    place = raw.rindex(b"39,4") + 1 if file.suffix == ".csv" else len(raw) - 1
    raw[place] ^= 1  # 39 becomes 38: one number of one sample
    file.write_bytes(raw)
    code, _, err = gradstep("resume")
    assert code == 2
    assert "the content of the data behind the training part:" in err
    shutil.copy(tmp_path / "before", file)
    monkeypatch.chdir("/")
    assert (
        gradstep("resume", str(gradstep.folder / "runs/0001-") + ("table" if file.suffix == ".csv" else "mine"))[0] == 0
    )


@pytest.mark.parametrize("header", ["name,kind", "file,kind"])
def test_another_file_has_the_columns_of_the_training_file_or_is_refused_at_once(gradstep, here: Path, header) -> None:
    listing(here / "valid.csv", range(20, 24), header)
    code, _, err = gradstep("train", "train.csv", "epochs=2", "data.valid=valid.csv")
    assert code == 2
    assert "data.columns." in err
    assert "valid.csv has " + header.replace(",", ", ") in err
    assert not (here / "runs").exists()


def test_a_split_column_is_not_asked_of_other_files(gradstep, here: Path) -> None:
    text = (here / "train.csv").read_text().splitlines()
    rows = [f"{line},{'valid' if number > 15 else 'train'}" for number, line in enumerate(text[1:])]
    (here / "train.csv").write_text("\n".join([text[0] + ",part", *rows]))
    code, out, err = gradstep("train", "train.csv", "epochs=2")
    assert code == 0, err
    assert "the column 'part' says which part a row belongs to" in out
    assert '"samples": 4' in gradstep("evaluate", "1", "valid.csv", "--json")[1]
    (here / "test.csv").write_text("file,label,part\n3.bmp,b,test\n")
    assert '"samples": 1' in gradstep("evaluate", "1", "test.csv", "--json")[1]
    assert "a share of the training part" in gradstep("train", "train.csv", "epochs=1", "data.valid=0.25")[1]


@pytest.fixture
def callables(here: Path, monkeypatch) -> Path:
    (here / "mine.py").write_text(MODULE)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "path", [str(here), *sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return here


@pytest.mark.parametrize("valid", ["0.2", "valid.csv"], ids=["a fraction", "a file"])
def test_each_part_has_its_own_transform(gradstep, callables: Path, valid: str) -> None:
    from gradstep.cli.train import find_recipe
    from gradstep.parts import read_splits
    from gradstep.recipe import Recipe, override

    changes = ["data.transform={train: 'mine:bright', valid: 'mine:as_it_is'}", f"data.valid={valid}", "data.test=0.2"]
    changes.append("data.transforms=[]")
    splits = read_splits(Recipe.parse(override(find_recipe("train.csv", changes)[1], changes)))
    seen = {name: part.batch(torch.arange(4), 0, 0)[0] for name, part in splits.items()}
    assert (seen["train"] == 1).all()
    assert not (seen["valid"] == 1).any()
    assert not (seen["test"] == 1).any(), "the test part is treated as the validation part"


@pytest.mark.parametrize(
    ("transform", "said"),
    [
        ("{trian: 'mine:bright'}", "data.transform: there is no part 'trian'. Did you mean 'train'?"),
        ("{train: 'mine:bright'}", "data.transform: it has train, and nothing for valid. Add it."),
    ],
)
def test_a_transform_for_some_parts_only(gradstep, callables: Path, transform: str, said: str) -> None:
    code, _, err = gradstep("train", "train.csv", f"data.transform={transform}")
    assert (code, err.strip()) == (2, f"error: {said}")


def test_a_transform_is_for_image_files(gradstep, callables: Path) -> None:
    a_table(callables)
    for option in ("transform", "target_transform"):
        code, _, err = gradstep("train", "table.csv", f"data.{option}=mine:one_less")
        assert code == 2
        assert f"data.{option}: it is called for image files, and the train part has none." in err


def test_a_word_that_means_two_things_says_which_it_means(gradstep, here: Path) -> None:
    (here / "digits").mkdir()
    assert (
        "the built-in recipe 'digits'; for what is called so here: ./digits"
        in gradstep("train", "digits", "--dry-run")[1]
    )
    assert gradstep("train", "train.csv", "epochs=1", "data.test=0.2")[0] == 0
    (here / "test").mkdir()
    shutil.copy(here / "3.bmp", here / "test" / "3.bmp")
    note = "note      'test' is the test part of the run's recipe; for what is called so here: ./test\n"
    code, out, err = gradstep("predict", "1", "test")
    assert (code, err, len(out.splitlines())) == (0, note, 1 + 4)
    assert gradstep("evaluate", "1", "test")[2] == note
    code, out, err = gradstep("predict", "1", "./test")
    assert (code, err, len(out.splitlines())) == (0, "", 1 + 1)


def test_a_dry_run_says_what_was_chosen(gradstep, here: Path) -> None:
    code, out, err = gradstep("train", "train.csv", "--dry-run")
    assert code == 0, err
    assert "chosen    images.mode: L" in out
    assert "criterion: the cross entropy over 2 classes\n" in out
    assert "recipe    data:" in out
    assert not (here / "runs").exists()


def test_whole_numbers_are_said_to_be_classes(gradstep) -> None:
    rows = "\n".join(f"{number},{number % 9}" for number in range(90))
    (gradstep.folder / "ages.csv").write_text(f"x,label\n{rows}\n")
    said = "criterion: the cross entropy over 9 classes (0, 1, 2, ...); were they quantities: data.targets=numbers"
    assert said in gradstep("train", "ages.csv", "epochs=1")[1]
    assert "the mean squared error" in gradstep("train", "ages.csv", "epochs=1", "data.targets=numbers")[1]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("trian.csv", "there is no file or folder 'trian.csv'. Did you mean 'train.csv'?"),
        ("photo", "there is no recipe 'photo'. Built in: "),
        ("photo", "Did you mean 'photos'?"),
    ],
)
def test_a_name_that_is_not_there_is_answered_with_the_nearest(gradstep, here: Path, typed: str, said: str) -> None:
    (here / "photos").mkdir()
    code, _, err = gradstep("train", typed)
    assert code == 2
    assert said in err


def npz(path: Path, count: int, classes: int) -> None:
    x = np.zeros((count, 1, 8, 8), np.float32)
    y = np.arange(count) % classes
    x[np.arange(count), 0, y, :] = 1
    np.savez(path, x=x, y=y)


NET = """
model: {class: "gradstep.models:MLP", inputs: 64, outputs: 5}
criterion: CrossEntropyLoss
batch_size: 10
epochs: 12
optimizer: {name: AdamW, lr: 0.01}
metrics: [accuracy]
"""


def test_labels_of_other_data_are_the_training_data_s_numbers_though_it_has_no_names(gradstep) -> None:
    """Only classes 2 and 4 are in the CSV and in the folder: they are 2 and 4, and not 0 and 1."""
    here = gradstep.folder
    npz(here / "train.npz", 100, 5)
    (here / "net.yaml").write_text("data: {train: train.npz, images: {mode: F}}" + NET)
    (here / "folder").mkdir()
    for label in (2, 4):
        (here / "folder" / str(label)).mkdir()
        pixels = np.zeros((8, 8), np.uint8)
        pixels[label] = 255
        Image.fromarray(pixels).save(here / "folder" / str(label) / "0.png")
    (here / "list.csv").write_text("folder/2/0.png,2\nfolder/4/0.png,4\n")
    code, out, err = gradstep("train", "net.yaml", "data.valid=list.csv")
    assert code == 0, err
    assert "best      valid/accuracy 1.0000" in out
    for what in ("list.csv", "folder"):
        assert json.loads(gradstep("evaluate", "1", what, "--json")[1])["accuracy"] == 1, what
    assert [line.split(",")[1] for line in gradstep("predict", "1", "list.csv")[1].splitlines()] == ["label", "2", "4"]


def test_classes_in_another_order_are_refused(gradstep, callables: Path) -> None:
    (callables / "mine.py").write_text(
        "import torch\nfrom gradstep.data import Tensors\n"
        "x, y = torch.zeros(8, 3), torch.arange(8) % 2\n"
        "one, other = Tensors((x, y), ('cat', 'dog')), Tensors((x, y), ('dog', 'cat'))\n"
    )
    model = NET.replace("inputs: 64", "inputs: 3")
    (callables / "net.yaml").write_text('data: {train: "mine:one"}' + model)
    code, _, err = gradstep("train", "net.yaml", "data.valid=mine:other")
    assert code == 2
    assert "data.valid: its classes are dog, cat, and the training data's cat, dog" in err
    assert gradstep("train", "net.yaml", "epochs=1")[0] == 0
    code, _, err = gradstep("evaluate", "1", "mine:other")
    assert code == 2
    assert "mine:other: its classes are dog, cat" in err


def test_evaluate_says_what_it_left_out(gradstep, here: Path) -> None:
    assert gradstep("train", "train.csv", "epochs=1", "data.on_bad=skip")[0] == 0
    listing(here / "other.csv", range(20, 26))
    _, out, err = gradstep("evaluate", "1", "other.csv")
    assert "4 samples" in out
    assert "left out: other.csv: 2 of 6 images are missing" in err
    (here / "parts.csv").write_text("file,label,split\n0.bmp,a,train\n1.bmp,b,train\n3.bmp,b,test\n")
    _, out, err = gradstep("evaluate", "1", "parts.csv")
    assert "1 samples" in out
    assert "note      parts.csv: it has train, test, and its test part is taken" in err


def test_a_folder_with_a_colon_in_its_name(gradstep, here: Path, monkeypatch) -> None:
    shutil.copytree(here, here / "run:1")
    monkeypatch.chdir(here / "run:1")
    assert gradstep("train", "train.csv", "epochs=2", "--interrupt-at", "1")[0] == 3
    code, _, err = gradstep("resume")
    assert code == 0, err
    assert gradstep("evaluate", "1", "valid", "--json")[0] == 0


def test_one_file_by_two_spellings_is_one(gradstep, here: Path) -> None:
    code, _, err = gradstep("train", "train.csv", "data.valid=./train.csv")
    assert code == 2
    assert "data.valid: './train.csv' has no part of that name. A fraction sets some samples aside." in err


def test_another_cut_of_the_same_file_is_another_training(gradstep, here: Path) -> None:
    assert gradstep("train", "train.csv", "epochs=3", "--interrupt-at", "1")[0] == 3
    recipe = here / "runs/0001-train/recipe.yaml"
    recipe.write_text(recipe.read_text().replace("split_seed: 0", "split_seed: 1"))
    code, _, err = gradstep("resume")
    assert code == 2
    assert "the content of the data behind the training part:" in err


def test_files_that_moved_are_asked_for_in_the_recipe(gradstep, here: Path) -> None:
    assert gradstep("train", "train.csv", "epochs=3", "--interrupt-at", "1")[0] == 3
    (here / "train.csv").rename(here / "photos.csv")
    code, _, err = gradstep("resume")
    assert code == 2
    assert "Where files have moved, write their new places into runs/0001-train/recipe.yaml." in err
    recipe = here / "runs/0001-train/recipe.yaml"
    recipe.write_text(recipe.read_text().replace("/train.csv", "/photos.csv"))
    assert gradstep("resume")[0] == 0


def test_a_file_s_name_need_not_be_a_run_s(gradstep, here: Path) -> None:
    (here / "train.csv").rename(here / "my photos (1).csv")
    assert gradstep("train", "my photos (1).csv", "epochs=1")[0] == 0
    assert (here / "runs/0001-my-photos-1/model.safetensors").exists()


def test_without_a_header_other_files_may_have_their_paths_elsewhere(gradstep, here: Path) -> None:
    (here / "none.csv").write_text("\n".join(f"{'ab'[n % 2]},{n}.bmp" for n in range(20)))
    assert gradstep("train", "none.csv", "epochs=1")[0] == 0
    for text in ("3.bmp\n5.bmp\n", "9,x,3.bmp\n8,y,5.bmp\n", "b,3.bmp\nb,5.bmp\n"):
        (here / "new.csv").write_text(text)
        code, out, err = gradstep("predict", "1", "new.csv")
        assert code == 0, err
        assert [line.split(",")[0] for line in out.splitlines()] == ["path", "3.bmp", "5.bmp"]


def test_predictions_of_a_part_are_named_by_file(gradstep, here: Path) -> None:
    assert gradstep("train", "train.csv", "epochs=1")[0] == 0
    lines = gradstep("predict", "1", "valid")[1].splitlines()
    paths = [line.split(",")[0] for line in lines]
    assert paths[0] == "path"
    assert len(set(paths[1:])) == 4
    assert all(Path(path).exists() for path in paths[1:])
    by_file = gradstep("predict", "1", *paths[1:])[1].splitlines()
    assert by_file == lines


def test_weights_to_start_from_are_found_from_any_folder(gradstep, here: Path, monkeypatch) -> None:
    assert gradstep("train", "train.csv", "epochs=1")[0] == 0
    shutil.copy(here / "runs/0001-train/model.safetensors", here / "start.safetensors")
    assert gradstep("train", "train.csv", "model.weights=start.safetensors", "epochs=2", "--interrupt-at", "1")[0] == 3
    monkeypatch.chdir("/")
    assert gradstep("resume", str(here / "runs/0002-train"))[0] == 0


def test_columns_is_a_mapping(gradstep, here: Path) -> None:
    code, _, err = gradstep("train", "train.csv", "data.columns=label")
    assert code == 2
    assert "data.columns: 'label' doesn't say of what. Write it as in data.columns.target=label" in err
    code, _, err = gradstep("train", "train.csv", "data.images=64")
    assert code == 2
    assert "data.images: 64 doesn't say of what. Write it as in data.images.size=64" in err
