"""Data sets known by name. Nothing is downloaded: what is not there is an error that says what to put where."""

from __future__ import annotations

import gzip
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from gradstep.data.idx import idx
from gradstep.data.sources import Source, Splits, Tensors
from gradstep.errors import DataError, RecipeError, nearest

_DIGITS = tuple("0123456789")
_MNIST = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def data_folder() -> Path:
    """`$GRADSTEP_DATA`, else the user's cache folder."""
    given = os.environ.get("GRADSTEP_DATA")
    cache = os.environ.get("XDG_CACHE_HOME")
    return Path(given) if given else (Path(cache) if cache else Path.home() / ".cache") / "gradstep"


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


def _mnist() -> Splits:
    """LeCun's 60,000 and 10,000 images of 28×28 grey values, uint8."""
    folder = data_folder() / "mnist"
    wanted = [name for part in _MNIST.values() for name in part]
    missing = [n for n in wanted if not (folder / n).exists() and not (folder / f"{n}.gz").exists()]
    if missing:
        raise DataError(
            "the data set 'mnist' is not here. Put these files, each as it is or with .gz, into "
            f"{folder}:\n  " + "\n  ".join(missing) + "\nor point GRADSTEP_DATA at a folder that holds mnist/."
        )

    def part(name: str) -> Source:
        images, labels = (p if p.exists() else p.with_name(f"{p.name}.gz") for p in (folder / n for n in _MNIST[name]))
        return idx(images, labels, _DIGITS)

    return Splits(train=part("train"), test=part("test"))


NAMED: dict[str, Callable[[], Splits]] = {"digits": _digits, "mnist": _mnist}
