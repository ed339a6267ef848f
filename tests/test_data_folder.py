"""A folder per class, perhaps under train, valid and test; and that a CSV of the same images is the same data."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import gradstep
from gradstep import data, parts
from gradstep.data import Options, images_in, open_data, read_folder
from gradstep.errors import DataError
from gradstep.recipe import Recipe


def made(root: Path, *names: str) -> Path:
    """Images at these places, all of one grey each: the number of its name."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        digits = "".join(c for c in path.stem if c.isdigit())
        image = Image.fromarray(np.full((4, 4), int(digits or 0), np.uint8))
        with open(path, "wb") as file:  # Pillow would go by the suffix
            image.save(file, "PNG")
    return root


def seen(source) -> list[tuple[int, str]]:
    """`(grey, class)` of each sample, in order."""
    inputs, targets = source.batch(torch.arange(len(source)), 0, 0)
    return [(int(image[0, 0, 0]), source.classes[t]) for image, t in zip(inputs, targets, strict=True)]


def test_a_folder_per_class_in_the_order_of_classes_then_of_names(tmp_path):
    made(tmp_path, "dog/3.png", "cat/9.png", "dog/1.png", "cat/10.png")
    splits = open_data(str(tmp_path))
    assert [name for name, _ in splits.items()] == ["train"]
    assert seen(splits.train) == [(10, "cat"), (9, "cat"), (1, "dog"), (3, "dog")]
    assert splits.train.classes == ("cat", "dog")
    assert splits.train.targets.dtype == torch.int64
    assert splits.notes == ()


@pytest.mark.parametrize(
    "names", [("train", "valid", "test"), ("Training", "Validation", "Testing"), ("train", "val", "test"),
              ("TRAIN", "dev", "test")]
)  # fmt: skip
def test_folders_of_parts(tmp_path, names):
    train, valid, test = names
    made(tmp_path, f"{train}/cat/1.png", f"{train}/dog/2.png", f"{valid}/dog/3.png", f"{test}/cat/4.png")
    made(tmp_path, f"{test}/dog/5.png")
    splits = open_data(str(tmp_path))
    assert {name: seen(part) for name, part in splits.items()} == {
        "train": [(1, "cat"), (2, "dog")],
        "valid": [(3, "dog")],  # though it is the only class there, it is number 1
        "test": [(4, "cat"), (5, "dog")],
    }
    assert splits.valid.targets.tolist() == [1]


def test_train_alone_and_train_with_test(tmp_path):
    made(tmp_path / "one", "train/a/1.png", "train/b/2.png")
    made(tmp_path / "two", "train/a/1.png", "train/b/2.png", "test/b/3.png")
    assert [name for name, _ in open_data(str(tmp_path / "one")).items()] == ["train"]
    assert [name for name, _ in open_data(str(tmp_path / "two")).items()] == ["train", "test"]


def test_nested_folders_belong_to_the_class_above_at_any_depth(tmp_path):
    made(tmp_path, "cat/a/b/c/1.png", "cat/2.png", "dog/x/3.png", "dog/x.png/4.png")
    assert sorted(seen(open_data(str(tmp_path)).train)) == [(1, "cat"), (2, "cat"), (3, "dog"), (4, "dog")]


def test_the_order_is_that_of_the_paths(tmp_path):
    made(tmp_path, "cat/b/1.png", "cat/z/3.png", "cat/a.png", "cat/c.png")
    inside = [str(Path(path).relative_to(tmp_path)) for path in images_in(tmp_path)]
    assert inside == sorted(inside)


def test_the_order_does_not_depend_on_the_one_in_which_files_were_made(tmp_path):
    names = [f"{c}/{d}/{n}.png" for c in "ab" for d in "jqxkwzmv" for n in range(3)]
    for seed in range(3):
        root = made(tmp_path / str(seed), *np.random.default_rng(seed).permutation(names).tolist())
        paths = read_folder(root).parts["train"].paths
        assert [str(Path(path).relative_to(root)) for path in paths] == sorted(names)


def test_what_is_hidden_is_passed_over_without_a_word(tmp_path):
    made(tmp_path, "cat/1.png", "cat/.2.png", "cat/.thumbs/3.png", ".cache/4.png", "dog/5.png")
    (tmp_path / "cat" / ".DS_Store").write_bytes(b"x")
    splits = open_data(str(tmp_path))
    assert seen(splits.train) == [(1, "cat"), (5, "dog")]
    assert splits.notes == ()


def test_files_that_are_no_images_are_passed_over_and_counted(tmp_path):
    made(tmp_path, "cat/1.png", "dog/2.JPG", "dog/deep/3.jpeg")
    for name in ("cat/notes.txt", "dog/Thumbs.db", "dog/deep/1.png.bak"):
        (tmp_path / name).write_text("x")
    splits = open_data(str(tmp_path))
    assert len(splits.train) == 3
    assert splits.notes == (f"{tmp_path}: 3 files that are no images by their suffix were passed over",)


def test_so_they_are_in_all_parts(tmp_path):
    made(tmp_path, "train/cat/1.png", "valid/cat/2.png")
    for part in ("train", "valid"):
        (tmp_path / part / "cat" / "notes.txt").write_text("x")
    assert "2 files" in open_data(str(tmp_path)).notes[0]


def test_images_beside_the_class_folders_are_not_left_out_without_a_word(tmp_path):
    made(tmp_path, "cat/1.png", "dog/2.png", "3.png", "4.png")
    splits = open_data(str(tmp_path))
    assert len(splits.train) == 2
    assert "2" in " ".join(splits.notes)


def test_links_to_files_and_to_folders_are_followed(tmp_path):
    made(tmp_path / "elsewhere", "1.png", "deep/2.png", "3.png")
    made(tmp_path / "set", "dog/4.png")
    (tmp_path / "set" / "cat").symlink_to(tmp_path / "elsewhere" / "deep")
    (tmp_path / "set" / "dog" / "more").symlink_to(tmp_path / "elsewhere" / "deep")
    (tmp_path / "set" / "dog" / "3.png").symlink_to(tmp_path / "elsewhere" / "3.png")
    (tmp_path / "link").symlink_to(tmp_path / "set")
    for name in ("set", "link"):
        found = seen(open_data(str(tmp_path / name)).train)
        assert sorted(found) == [(2, "cat"), (2, "dog"), (3, "dog"), (4, "dog")]


def test_a_link_to_nothing_is_a_missing_image_and_named(tmp_path):
    made(tmp_path, "cat/1.png")
    (tmp_path / "cat" / "2.png").symlink_to("nowhere.png")
    with pytest.raises(DataError, match=r"1 of 2 images .*\n.*2\.png: there is no such file"):
        open_data(str(tmp_path))
    assert len(open_data(str(tmp_path), Options(on_bad="skip")).train) == 1


@pytest.mark.parametrize("target", [".", ".."])
def test_a_link_that_leads_back_counts_no_image_twice(tmp_path, target):
    made(tmp_path, "cat/1.png", "dog/2.png")
    (tmp_path / "cat" / "loop").symlink_to(target)
    files = read_folder(tmp_path).parts["train"]
    real = [os.path.realpath(path) for path, t in zip(files.paths, files.targets, strict=True) if t == 0]
    assert len(real) == len(set(real))


def test_an_empty_class_folder_is_no_class(tmp_path):
    made(tmp_path, "cat/1.png", "dog/2.png")
    (tmp_path / "bird").mkdir()
    (tmp_path / "bird" / "notes.txt").write_text("x")
    assert open_data(str(tmp_path)).train.classes == ("cat", "dog")


def test_an_empty_one_in_valid_is_no_harm_and_a_class_may_be_missing_there(tmp_path):
    made(tmp_path, "train/cat/1.png", "train/dog/2.png", "valid/dog/3.png")
    (tmp_path / "valid" / "bird").mkdir()
    (tmp_path / "valid" / "cat").mkdir()
    assert seen(open_data(str(tmp_path)).valid) == [(3, "dog")]


@pytest.mark.parametrize("part", ["valid", "test"])
def test_a_class_that_the_training_part_has_not_is_an_error(tmp_path, part):
    made(tmp_path, "train/cat/1.png", "train/dog/2.png", f"{part}/bird/3.png")
    with pytest.raises(DataError) as caught:
        open_data(str(tmp_path))
    assert str(caught.value) == f"{tmp_path / part}: the training data has no class 'bird'. It has cat, dog."


def test_a_second_folder_has_the_classes_of_the_first(tmp_path):
    made(tmp_path / "one", "cat/1.png", "dog/2.png", "emu/3.png")
    made(tmp_path / "two", "emu/4.png", "dog/5.png")
    made(tmp_path / "three", "yak/6.png")

    def splits(valid: str):
        return parts.read_splits(recipe(train=str(tmp_path / "one"), valid=str(tmp_path / valid)))

    assert splits("two").valid.targets.tolist() == [1, 2]
    with pytest.raises(DataError, match=r"three: the training data has no class 'yak'\. It has cat, dog, emu\."):
        splits("three")


def test_a_csv_may_be_the_second_of_a_folder(tmp_path):
    made(tmp_path, "one/cat/1.png", "one/dog/2.png", "3.png", "4.png")
    (tmp_path / "valid.csv").write_text("3.png,dog\n4.png,cat\n")
    splits = parts.read_splits(recipe(train=str(tmp_path / "one"), valid=str(tmp_path / "valid.csv")))
    assert seen(splits.valid) == [(3, "dog"), (4, "cat")]


def test_no_folders_at_all_says_what_is_wanted(tmp_path):
    for number, names in enumerate([(), ("1.png", "2.png"), (".hidden/1.png",)]):
        root = tmp_path / str(number)
        root.mkdir()
        made(root, *names)
        with pytest.raises(DataError) as caught:
            open_data(str(root))
        assert str(caught.value) == (
            f"{root}: there are no folders in it. It wants one for each class: {root}/cat, {root}/dog."
        )


def test_folders_without_images_are_an_error(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="there are no images in it"):
        open_data(str(tmp_path))


def test_images_in_train_without_class_folders_are_an_error(tmp_path):
    made(tmp_path, "train/1.png", "valid/2.png")
    with pytest.raises(DataError, match="train: there are no images in it"):
        open_data(str(tmp_path))


@pytest.mark.parametrize("more", ["unlabelled", "extra"])
def test_parts_beside_another_folder_are_not_taken_for_classes(tmp_path, more):
    made(tmp_path, "train/cat/1.png", "train/dog/2.png", "valid/cat/3.png", f"{more}/cat/4.png")
    try:
        splits = open_data(str(tmp_path))
    except DataError as error:
        told_so = str(error)
        assert more in told_so
        return
    assert splits.train.classes == ("cat", "dog")


def test_two_folders_of_one_part_are_an_error_or_one_part(tmp_path):
    made(tmp_path, "train/cat/1.png", "train/dog/2.png", "val/cat/3.png", "valid/dog/4.png")
    try:
        splits = open_data(str(tmp_path))
    except DataError as error:
        told_so = str(error)
        assert "valid" in told_so
        return
    assert splits.train.classes == ("cat", "dog")
    assert len(splits.valid) == 2


def test_parts_without_a_training_part_are_not_taken_for_classes(tmp_path):
    made(tmp_path, "valid/cat/1.png", "test/cat/2.png")
    with pytest.raises(DataError, match="train"):
        open_data(str(tmp_path))


# The same images by a CSV


def recipe(**data_keys) -> Recipe:
    return Recipe.parse(
        {
            "data": data_keys,
            "model": "gradstep.models:LeNet",
            "criterion": "CrossEntropyLoss",
            "batch_size": 2,
            "epochs": 1,
            "optimizer": {"name": "SGD", "lr": 0.1},
        }
    )


@pytest.fixture
def both(tmp_path) -> tuple[Path, Path]:
    """A folder of 30 images of noise in three classes, with a valid part; and a CSV of them in the folder's order."""
    draws = np.random.default_rng(3)
    lines = ["file,label,part"]
    for part, each in (("train", 8), ("valid", 2)):
        for name in ("ant", "bee", "cat"):
            (tmp_path / "set" / part / name).mkdir(parents=True)
            for number in range(each):
                path = f"set/{part}/{name}/{number}.png"
                Image.fromarray(draws.integers(0, 256, (6, 6, 3), dtype=np.uint8)).save(tmp_path / path)
                lines.append(f"{path},{name},{part}")
    (tmp_path / "set.csv").write_text("\n".join(lines))
    return tmp_path / "set", tmp_path / "set.csv"


def opened(both) -> tuple:
    folder, table = both
    return open_data(str(folder)), open_data(str(table), Options(columns={"split": "part", "target": "label"}))


@pytest.mark.parametrize("kept", [0, None], ids=["read again", "kept in memory"])
def test_as_a_csv_and_as_a_folder_the_same_images_are_the_same_batches(both, monkeypatch, kept):
    if kept is not None:
        monkeypatch.setattr("gradstep.data.files._KEPT", kept)
    for ours, theirs in zip(*[[part for _, part in splits.items()] for splits in opened(both)], strict=True):
        assert ours.classes == theirs.classes == ("ant", "bee", "cat")
        assert ours.in_memory == theirs.in_memory == (kept is None)
        assert ours.fingerprint == theirs.fingerprint
        feeds = [data.Feed(source, 5, shuffle=True, seed=4) for source in (ours, theirs)]
        for step in range(2 * feeds[0].steps_per_epoch):
            assert all(a.equal(b) for a, b in zip(feeds[0][step], feeds[1][step], strict=True))


def trained(splits: data.Splits, **more):
    splits = data.prepare(splits, [data.ToFloat(), data.Normalize()])
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(108, 3))
    return gradstep.fit(
        model,
        torch.nn.CrossEntropyLoss(),
        splits.train,
        splits.valid,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        epochs=3,
        batch_size=5,
        metrics=["accuracy"],
        device="cpu",
        quiet=True,
        **more,
    )


def test_they_train_to_the_same_weights_and_the_same_best(both):
    runs = [trained(splits) for splits in opened(both)]
    weights = [run.model.state_dict() for run in runs]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    assert runs[0].best == runs[1].best
    torch.manual_seed(1)
    start = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(108, 3)).state_dict()
    assert not any(weights[0][name].equal(start[name]) for name in start)  # they did train


def test_another_order_in_the_csv_is_another_run(both):
    """So that the test above can fail: rows turned round give other batches."""
    folder, table = both
    header, *rows = table.read_text().splitlines()
    table.write_text("\n".join([header, *rows[::-1]]))
    ours, theirs = [trained(splits).model[1].weight for splits in opened((folder, table))]
    assert not ours.equal(theirs)


def test_workers_change_no_bit(both, monkeypatch):
    alone = trained(opened(both)[0]).model[1].weight
    monkeypatch.setattr("gradstep.data.files._KEPT", 0)
    assert trained(opened(both)[0], workers=1).model[1].weight.equal(alone)
