"""`gradstep data show`: what is in the data, counted on data of which it is known."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gradstep.cli.train import find_recipe
from gradstep.data import Part, load_named
from gradstep.parts import cut, read_splits
from gradstep.recipe import Recipe, override
from tests.test_cli import gradstep

__all__ = ["gradstep"]  # the fixture


@pytest.fixture
def photos(gradstep) -> Path:
    """40 different images of two classes in three sizes and two modes; then what is wrong with a data set."""
    draws = np.random.default_rng(0)
    lines = ["file,label,part"]

    def add(name: str, label: str, part: str) -> None:
        lines.append(f"{name},{label},{part}")

    for number in range(40):
        shape = [(8, 8), (8, 8, 3), (10, 12)][number % 3]
        Image.fromarray(draws.integers(0, 256, shape, dtype=np.uint8)).save(gradstep.folder / f"{number}.png")
        add(f"{number}.png", "cat" if number < 25 else "dog", "train" if number % 4 else "valid")
    content = (gradstep.folder / "1.png").read_bytes()
    for name, label, part in [("a.png", "cat", "train"), ("b.png", "dog", "train")]:
        (gradstep.folder / name).write_bytes(content)  # 1.png again, once under another label
        add(name, label, part)
    (gradstep.folder / "c.png").write_bytes((gradstep.folder / "0.png").read_bytes())  # of valid
    add("c.png", "cat", "train")
    (gradstep.folder / "cut.png").write_bytes(content[:60])
    add("cut.png", "dog", "train")
    add("none.png", "dog", "valid")
    (gradstep.folder / "photos.csv").write_text("\n".join(lines))
    return gradstep.folder


def test_everything_that_is_known_of_the_data_is_found(gradstep, photos: Path) -> None:
    before = sorted(photos.rglob("*"))
    code, out, err = gradstep("data", "show", "photos.csv", "data.columns.split=part")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "train     34 samples, 2 classes",
        "          cat: 20",
        "          dog: 14",
        "valid     11 samples, 2 classes",
        "          cat: 7",
        "          dog: 4",
        "modes     L (28), RGB (15)",
        "sizes     8×8 (30), 10×12 (13)",
        "bad       2 missing or unreadable",
        "          cut.png (line 45): image file is truncated",
        "          none.png (line 46): there is no such file",
        "copies    1 samples are there more than once within a part, 1 across parts",
        "          1 of them under different labels",
        "          train: 1.png (line 3) [cat] = train: a.png (line 42) [cat] = train: b.png (line 43) [dog]",
        "          train: c.png (line 44) [cat] = valid: 0.png (line 2) [cat]",
    ]
    assert sorted(photos.rglob("*")) == before, "looking writes nothing"


def test_without_parts_of_its_own_the_split_is_the_one_that_training_would_make(gradstep, photos: Path) -> None:
    text = (photos / "photos.csv").read_text()
    (photos / "plain.csv").write_text("\n".join(line.rpartition(",")[0] for line in text.splitlines()))
    changes = ["data.on_bad=skip", "data.images={mode: L, size: 8}", "data.test=0.1", "data.limit=30"]
    shown = gradstep("data", "show", "plain.csv", *changes)[1]
    recipe = Recipe.parse(override(find_recipe("plain.csv", changes)[1], changes))
    trained = read_splits(recipe)
    looked, missing = cut(recipe.data)[0], {str(photos / name) for name in ("cut.png", "none.png")}
    for part in ("train", "valid", "test"):
        files = [looked[part].whole.paths[number] for number in looked[part].numbers]
        source = getattr(trained, part)
        source = source if isinstance(source, Part) else source.whole
        numbers = source.numbers.tolist()
        assert [source.whole.files.paths[n] for n in numbers] == [f for f in files if str(photos / f) not in missing]
        assert re.search(rf"^{part} +{len(files)} samples", shown, flags=re.MULTILINE)
    assert [len(each) for each in looked.values()] == [30, 9, 4]
    assert sum(len(part) for _, part in trained.items()) < 30 + 9 + 4, "a bad file is in one of them"


def test_data_that_can_t_be_trained_on_can_be_looked_at(gradstep) -> None:
    folder = gradstep.folder / "one" / "cat"
    folder.mkdir(parents=True)
    for number in range(10):
        Image.new("L", (8, 8), number).save(folder / f"{number}.png")
    code, out, err = gradstep("data", "show", "one")
    assert code == 0, err
    assert "1 classes\n          cat: 8\n" in out
    assert "every sample is of one class" in gradstep("train", "one")[2]

    np.savez(gradstep.folder / "masks.npz", x=np.zeros((10, 1, 8, 8)), y=np.zeros((10, 8, 8), np.int64))
    code, out, err = gradstep("data", "show", "masks.npz", "seed=3")
    assert code == 0, err
    assert "train     8 samples\n" in out
    assert "Write a recipe for these." in gradstep("train", "masks.npz")[2]

    shutil.copytree(folder, gradstep.folder / "one" / "dog")
    for path in folder.parent.rglob("*.png"):
        path.write_bytes(b"no image")
    code, out, err = gradstep("data", "show", "one")
    assert code == 0, err
    assert "bad       20 missing or unreadable" in out
    assert "none of its 20 images can be read" in gradstep("train", "one")[2]


def test_a_sheet_of_samples_per_class(gradstep, photos: Path) -> None:
    code, out, err = gradstep("data", "show", "photos.csv", "data.columns.split=part", "--sheet", "sheet.png")
    assert code == 0, err
    assert out.splitlines()[-1] == "sheet     sheet.png"
    with Image.open(photos / "sheet.png") as sheet:
        assert sheet.size == (120 + 10 * 66 + 2, 2 * 66 + 2)
        page = np.asarray(sheet)
    with Image.open(photos / "1.png") as image:  # the first of the first class: eight screen pixels for each of its own
        own = np.asarray(image)
    assert (page[2 : 2 + 64 : 8, 120 : 120 + 64 : 8] == own).all()


def test_a_sheet_of_augmented_samples_is_what_training_sees(gradstep, mnist: Path) -> None:
    changes = ["data.augment=[{shift: 6}]", "data.limit=200"]
    sheets = {}
    for name, more in {
        "plain": [],
        "one": ["--augment"],
        "again": ["--augment"],
        "two": ["--augment", "--epoch", "2"],
    }.items():
        code, out, err = gradstep("data", "show", "mnist", *changes, "--sheet", f"{name}.png", *more)
        assert code == 0, err
        sheets[name] = (gradstep.folder / f"{name}.png").read_bytes()
    assert "as augmented in epoch 2" in out
    assert sheets["one"] == sheets["again"]
    assert len(set(sheets.values())) == 3

    # The first image of class 0, by the source's own feed.
    import torch

    from gradstep.data import Draws, Shift, split

    train = split(load_named("mnist").train, 0.1)[0]
    number = int(train.numbers[train.targets == 0][0])
    image = load_named("mnist").train.content[0][number]
    moved = Shift(6)(image[None], Draws(0, 0, torch.tensor([number]), 0))[0, 0].numpy()
    with Image.open(gradstep.folder / "one.png") as sheet:
        page = np.asarray(sheet.convert("L"))
    assert (page[2 + 4 : 2 + 60 : 2, 120 + 4 : 120 + 60 : 2] == moved).all()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["photos.csv", "--augment"], "--augment: say where to, as in --sheet augmented.png"),
        (["photos.csv", "--sheet", "a.jpg"], "--sheet: 'a.jpg' does not end in .png."),
        (
            ["photos.csv", "data.columns.split=part", "--sheet", "a.png", "--augment"],
            "data.augment='[flip, {shift: 2}]'",
        ),
        (["photo.csv"], "there is no file or folder 'photo.csv'. Did you mean 'photos.csv'?"),
        (["digits", "--sheet", "no/such/folder/a.png"], "can't be written"),
    ],
)
def test_mistakes(gradstep, photos: Path, typed: list[str], said: str) -> None:
    code, _, err = gradstep("data", "show", *typed)
    assert code == 2
    assert said in err
