"""Data sets known by name. Nothing is downloaded: what is not there is an error that says what to put where."""

from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from gradstep.data.cifar import cifar_parts
from gradstep.data.idx import idx
from gradstep.data.places import data_folder
from gradstep.data.sources import Source, Splits, Tensors
from gradstep.errors import DataError, RecipeError, nearest

_DIGITS = tuple("0123456789")
_CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_IDX = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def load_named(name: str) -> Splits:
    """The data set called `name`, with the parts that it has."""
    if name not in NAMED:
        raise RecipeError(f"there is no data set named '{name}'. Known: {', '.join(NAMED)}.{nearest(name, NAMED)}")
    return NAMED[name]()


def _digits() -> Splits:
    """scikit-learn's 1,797 images of 8×8 grey values, 0 to 16, scaled to uint8 (a value v becomes 15·v).

    The file is read out of the installed package, because importing scikit-learn takes two seconds.
    """
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise DataError(
            "the data set 'digits' lies inside scikit-learn, which is not installed. Type: pip install 'gradstep[demo]'"
        )
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    images = torch.from_numpy(table[:, :64] * 15).reshape(-1, 1, 8, 8)
    return Splits(Tensors((images, torch.from_numpy(table[:, 64].astype(np.int64))), _DIGITS))


def _mnist(name: str, classes: tuple[str, ...]) -> Splits:
    """60,000 and 10,000 images of 28×28 grey values, uint8, in LeCun's four files."""
    folder = data_folder() / name
    wanted = [file for part in _IDX.values() for file in part]
    missing = [file for file in wanted if not (folder / file).exists() and not (folder / f"{file}.gz").exists()]
    if missing:
        raise DataError(_absent(name, folder, missing, ", each as it is or with .gz,"))

    def part(which: str) -> Source:
        files = [p if p.exists() else p.with_name(f"{p.name}.gz") for p in (folder / file for file in _IDX[which])]
        return idx(files[0], files[1], classes)

    return Splits(train=part("train"), test=part("test"))


def _cifar10() -> Splits:
    """50,000 and 10,000 images of 3×32×32 colour values, uint8 (Krizhevsky, 2009)."""
    folder = data_folder() / "cifar10"
    wanted = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    if missing := [file for file in wanted if not (folder / file).exists()]:
        raise DataError(_absent("cifar10", folder, missing, ""))
    parts = cifar_parts(folder)
    return Splits(train=parts["train"], test=parts["test"])


def _absent(name: str, folder: Path, missing: list[str], form: str) -> str:
    return (
        f"the data set '{name}' is not here. Type: gradstep data get {name}\nWithout a network, put these files{form} "
        f"into {folder}:\n  " + "\n  ".join(missing) + f"\nor point GRADSTEP_DATA at a folder that holds {name}/."
    )


NAMED: dict[str, Callable[[], Splits]] = {
    "digits": _digits,
    "mnist": lambda: _mnist("mnist", _DIGITS),
    "fashion_mnist": lambda: _mnist("fashion_mnist", _CLOTHES),
    "cifar10": _cifar10,
}
