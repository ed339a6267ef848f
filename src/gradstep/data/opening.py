"""One way into data on disk: a name, a file, a folder or a pair of files to the parts that are in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gradstep.data.arrays import arrays, npz_parts
from gradstep.data.cifar import cifar, cifar_parts
from gradstep.data.files import FileList, Images, image_files, per_sample
from gradstep.data.folder import read_folder
from gradstep.data.idx import idx
from gradstep.data.images import Reading
from gradstep.data.labels import KINDS
from gradstep.data.named import NAMED, load_named
from gradstep.data.sources import Source, Splits
from gradstep.data.table import read_csv
from gradstep.errors import DataError, RecipeError, listed, nearest

_TEXT = (".csv", ".tsv", ".txt")


@dataclass(frozen=True, slots=True)
class Options:
    """How data on disk is read: the recipe's `data` but for what the parts are.

    `classes` are those that labels must be of, where another part has said them.
    """

    columns: Mapping[str, Any] = field(default_factory=dict)
    images: Reading = field(default_factory=Reading)
    targets: str | None = None
    on_bad: str = "error"
    transform: Callable[[Any], Any] | None = None
    target_transform: Callable[[Any], Any] | None = None
    classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.targets is not None and self.targets not in KINDS:
            raise RecipeError(f"data.targets: '{self.targets}' is neither {' nor '.join(KINDS)}.")


def open_data(given: str | Mapping[str, str], options: Options | None = None, where: str = "data") -> Splits:
    """The parts of a named data set, a CSV, a folder per class, `.npz`, CIFAR-10's files, or a pair of files.

    Image files are all read once; what is wrong with any of them is found here. `where` names the data in errors.
    """
    options = options or Options()
    listed_parts, notes = _listed(given, options, where)
    sources: dict[str, Source] = {}
    reading = None
    for part, each in listed_parts.items():
        if isinstance(each, FileList):
            images, more = image_files(each, replace(options.images, mode=reading.mode) if reading else options.images,
                                       options.on_bad)  # fmt: skip
            reading, notes = images.reading, notes + more
            sources[part] = _source(images, options)
        else:
            sources[part] = each
    train = sources.get("train") or sources.get("test")
    if train is None:
        raise DataError(f"{where}: there is no training part in {given}.")
    return Splits(train, sources.get("valid"), sources.get("test"), notes, reading)


def survey(given: str | Mapping[str, str], options: Options | None = None) -> dict[str, FileList | Source]:
    """The parts, image files only named: none of them is opened."""
    return dict(_listed(given, options or Options(), "data")[0])


def is_on_disk(given: str) -> bool:
    """Whether a word means a file or a folder, and not a named data set."""
    return given not in NAMED and (os.sep in given or bool(Path(given).suffix) or Path(given).exists())


def _source(images: Images, options: Options) -> Source:
    if options.transform is None and options.target_transform is None:
        return images
    return per_sample(images, options.transform, options.target_transform)


def _listed(
    given: str | Mapping[str, str], options: Options, where: str
) -> tuple[Mapping[str, FileList | Source], tuple[str, ...]]:
    if isinstance(given, Mapping):
        return {"train": _pair(given, where)}, ()
    if not is_on_disk(given):
        splits = load_named(given)
        return dict(splits.items()), ()
    path, suffix = Path(given), Path(given).suffix.lower()
    if not path.exists():
        around = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"{where}: there is no file or folder '{path}'.{nearest(path.name, around)}")
    if path.is_dir():
        if any(path.glob("data_batch_*.bin")):
            return dict(cifar_parts(path)), ()
        return read_folder(path, options.classes)
    if suffix in _TEXT:
        return read_csv(path, options.columns, options.targets, options.classes)
    if suffix == ".npz":
        return dict(npz_parts(path)), ()
    if suffix == ".bin":
        return {"train": cifar([path])}, ()
    if suffix == ".npy":
        raise DataError(
            f"{where}: '{path}' is one array, and there are inputs and targets. Write "
            f"{{inputs: {path}, targets: OTHER.npy}}."
        )
    kinds = ", ".join((*_TEXT, ".npz", ".bin"))
    raise DataError(f"{where}: '{path}' is none of the files that are known ({kinds}), nor a folder.")


def _pair(given: Mapping[str, str], where: str) -> Source:
    if set(given) == {"images", "labels"}:
        return idx(given["images"], given["labels"])
    if set(given) == {"inputs", "targets"}:
        return arrays(given["inputs"], given["targets"])
    raise RecipeError(
        f"{where}: two files are given as {{images: FILE, labels: FILE}} (IDX) or {{inputs: FILE, targets: FILE}} "
        f"(.npy), not as {listed(given)}."
    )
