"""Hugging Face's own `datasets` objects, from Python and by module:object."""

import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

import gradstep
from gradstep import cli
from gradstep.data import Items, as_source, hub_splits, is_dataset, load_named
from gradstep.errors import DataError

NAMES = list("0123456789")


@pytest.fixture
def images(mnist: Path) -> datasets.Dataset:
    inputs, targets = (part[:120] for part in load_named("mnist").train.content)
    features = datasets.Features({"id": datasets.Value("string"), "image": datasets.Image(),
                                  "label": datasets.ClassLabel(names=NAMES)})  # fmt: skip
    content = {
        "id": [f"n{number}" for number in range(120)],
        "image": [Image.fromarray(image[0].numpy()) for image in inputs],
        "label": targets.tolist(),
    }
    return datasets.Dataset.from_dict(content, features=features)


def test_images_and_labels(images: datasets.Dataset) -> None:
    source = as_source(images, "train")
    inputs, targets = load_named("mnist").train.content
    found = source.batch(torch.tensor([7, 3, 119]), 0, 0)
    assert torch.equal(found[0], inputs[[7, 3, 119]])
    assert torch.equal(found[1], targets[[7, 3, 119]])
    assert source.classes == tuple(NAMES)


def test_fit_takes_it_as_it_is(images: datasets.Dataset) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    run = gradstep.fit(
        model, torch.nn.CrossEntropyLoss(), as_source(images, "train").transformed((gradstep.data.ToFloat(),)),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1), epochs=2, batch_size=32, quiet=True,
    )  # fmt: skip
    assert run.classes == tuple(NAMES)


def test_columns_of_numbers() -> None:
    data = datasets.Dataset.from_dict({"a": [1.0, 2.0], "b": [[3, 4], [5, 6]], "target": [0.5, 1.5]})
    inputs, targets = as_source(data, "train").batch(torch.arange(2), 0, 0)
    assert inputs.tolist() == [[1, 3, 4], [2, 5, 6]]
    assert targets.tolist() == [0.5, 1.5]


def test_parts_by_their_names(images: datasets.Dataset) -> None:
    whole = datasets.DatasetDict(images.train_test_split(0.25, seed=0) | {"unsupervised": images})
    splits = hub_splits(whole, "data")
    assert (len(splits.train), splits.valid, len(splits.test)) == (90, None, 30)
    with pytest.raises(DataError, match=r"has the parts a, b, and none is train"):
        hub_splits({"a": images, "b": images}, "data")


def test_what_fits_no_pair_keeps_its_rows() -> None:
    words = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    source = as_source(words, "train")
    assert isinstance(source, Items)
    assert source.batch(torch.arange(2), 0, 0)["text"] == ["a", "b"]
    formatted = datasets.Dataset.from_dict({"x": [1.0, 2.0], "label": [0, 1]}).with_format("torch")
    assert as_source(formatted, "train").batch(torch.arange(2), 0, 0)["label"].tolist() == [0, 1]


def test_other_things_are_none() -> None:
    assert not any(map(is_dataset, ([], {}, np.zeros(3), torch.utils.data.TensorDataset(torch.zeros(2)))))


def test_by_module_and_object_in_a_recipe(images, tmp_path, monkeypatch, capsys) -> None:
    images.train_test_split(0.25, seed=0).save_to_disk(tmp_path / "saved")
    (tmp_path / "mine.py").write_text("import datasets\n\ndef digits():\n    return datasets.load_from_disk('saved')\n")
    recipe = """
data: {train: "mine:digits", test: "mine:digits", images: {mode: RGB, size: 16}, transforms: [float]}
model: {class: "gradstep.models:ConvNet", channels: 3, stages: 2}
criterion: CrossEntropyLoss
batch_size: 30
epochs: 1
optimizer: {name: SGD, lr: 0.1}
"""
    (tmp_path / "mine.yaml").write_text(recipe)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["gradstep", "train", "mine.yaml"])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert not left.value.code
    said = capsys.readouterr().out
    assert "train     90 samples of 3×16×16 float32" in said
    assert "test      30 samples of 3×16×16 float32" in said
