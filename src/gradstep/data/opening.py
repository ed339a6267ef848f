"""One way into data on disk: a name, a file, a folder or a pair of files to the parts that are in it.

First they are surveyed, which opens no image file; then cut, which needs labels alone; then opened.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradstep.data.arrays import arrays, npz_parts
from gradstep.data.cifar import cifar, cifar_parts
from gradstep.data.files import FileList, Images, Survey, image_files, per_sample
from gradstep.data.folder import read_folder
from gradstep.data.idx import idx
from gradstep.data.images import Reading
from gradstep.data.labels import KINDS
from gradstep.data.listing import TEXT, is_text
from gradstep.data.named import NAMED, load_named
from gradstep.data.sources import PARTS, Part, Source, Splits
from gradstep.data.split import Cut
from gradstep.data.table import read_csv
from gradstep.errors import DataError, RecipeError, listed, nearest

_KNOWN = (*TEXT, ".npz", ".bin")


@dataclass(frozen=True, slots=True)
class Options:
    """How data on disk is read: the recipe's `data` but for what the parts are.

    `transform` is one callable, or one for each part by its name. `classes` are those that labels must be of, where
    another part has said them; then `training` is false: there need be no training part, nor a split column.
    """

    columns: Mapping[str, Any] = field(default_factory=dict)
    images: Reading = field(default_factory=Reading)
    targets: str | None = None
    on_bad: str = "error"
    transform: Callable[[Any], Any] | Mapping[str, Callable[[Any], Any]] | None = None
    target_transform: Callable[[Any], Any] | None = None
    classes: tuple[str, ...] | None = None
    training: bool = True

    def __post_init__(self) -> None:
        if self.targets is not None and self.targets not in KINDS:
            raise RecipeError(f"data.targets: '{self.targets}' is neither {' nor '.join(KINDS)}.")
        if self.on_bad not in ("error", "skip"):
            raise RecipeError(f"data.on_bad: '{self.on_bad}' is neither error nor skip.")
        for name in self.transform if isinstance(self.transform, Mapping) else ():
            if name not in PARTS:
                raise RecipeError(f"data.transform: there is no part '{name}'.{nearest(name, PARTS)}")

    def transform_of(self, part: str) -> Callable[[Any], Any] | None:
        """What is done to each image of a part. The test part is treated as the validation part, unless it is said."""
        if not isinstance(self.transform, Mapping):
            return self.transform
        for name in {"train": ("train",), "valid": ("valid", "test"), "test": ("test", "valid")}[part]:
            if name in self.transform:
                return self.transform[name]
        raise RecipeError(f"data.transform: it has {listed(self.transform)}, and nothing for {part}. Add it.")


def open_data(given: str | Mapping[str, str], options: Options | None = None, where: str = "data") -> Splits:
    """The parts of a named data set, a CSV, a folder per class, `.npz`, CIFAR-10's files, or a pair of files.

    Image files are all read once; what is wrong with any of them is found here. `where` names the data in errors.
    """
    options = options or Options()
    found = survey(given, options, where)
    found.train(where)
    parts, notes, reading = open_parts({part: Cut.all_of(each) for part, each in found.parts.items()}, options)
    return Splits(**parts, notes=found.notes + notes, reading=reading, columns=found.columns)


def open_parts(cuts: Mapping[str, Cut], options: Options) -> tuple[dict[str, Source], tuple[str, ...], Reading | None]:
    """`(sources, notes, how images were read)`. All images that the parts are cut from are read once, here.

    They are read in one mode: where none is said, the first part's, which should be the training part.
    """
    transforms = {part: options.transform_of(part) for part in cuts}  # what is missing is found before all is read
    opened: dict[int, tuple[Images, Tensor]] = {}  # by identity: two parts of one list share what was read
    sources: dict[str, Source] = {}
    notes: tuple[str, ...] = ()
    reading = options.images
    for part, cut in cuts.items():
        whole, numbers = cut.whole, cut.numbers
        if not isinstance(whole, FileList):
            _refuse_callables(options, part)
            sources[part] = _numbered(whole, numbers)
            continue
        if id(whole) not in opened:
            images, good, more = image_files(whole, reading, options.on_bad)
            opened[id(whole)], reading, notes = (images, good), images.reading, notes + more
        images, good = opened[id(whole)]
        numbers = numbers[torch.isin(numbers, good, assume_unique=True)]
        if not len(numbers):
            raise DataError(f"{whole.name}: all images of the {part} part are missing or can't be read.")
        called = (transforms[part], options.target_transform)
        sources[part] = _numbered(images if called == (None, None) else per_sample(images, *called), numbers)
    return sources, notes, reading if opened else None


def _numbered(whole: Source, numbers: Tensor) -> Source:
    return whole if len(numbers) == len(whole) else Part(whole, numbers)


def _refuse_callables(options: Options, part: str) -> None:
    for name in ("transform", "target_transform"):
        if getattr(options, name) is not None:
            raise RecipeError(
                f"data.{name}: it is called for image files, and the {part} part has none. Call it in a Dataset of "
                "your own, as in data.train=module:object, or leave it out."
            )


def is_on_disk(given: str) -> bool:
    """Whether a word means a file or a folder, and not a named data set."""
    return given not in NAMED and (os.sep in given or bool(Path(given).suffix) or Path(given).exists())


def survey(given: str | Mapping[str, str], options: Options | None = None, where: str = "data") -> Survey:
    """What a word or a pair of files names. `where` names it in errors."""
    options = options or Options()
    if isinstance(given, Mapping):
        return Survey({"train": _pair(given, where)})
    if not is_on_disk(given):
        return Survey(dict(load_named(given).items()))
    path, suffix = Path(given), Path(given).suffix.lower()
    if not path.exists():
        around = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"{where}: there is no file or folder '{path}'.{nearest(path.name, around)}")
    if path.is_dir():
        is_cifar = any(path.glob("data_batch_*.bin"))
        return Survey(cifar_parts(path)) if is_cifar else read_folder(path, options.classes)
    if is_text(path):
        return read_csv(path, options.columns, options.targets, options.classes, options.training)
    if suffix == ".npz":
        return Survey(npz_parts(path))
    if suffix == ".bin":
        return Survey({"train": cifar([path])})
    if suffix == ".npy":
        raise DataError(
            f"{where}: '{path}' is one array, and there are inputs and targets. Write "
            f"{{inputs: {path}, targets: OTHER.npy}}."
        )
    raise DataError(f"{where}: '{path}' is none of the files that are known ({', '.join(_KNOWN)}), nor a folder.")


def _pair(given: Mapping[str, str], where: str) -> Source:
    if set(given) == {"images", "labels"}:
        return idx(given["images"], given["labels"])
    if set(given) == {"inputs", "targets"}:
        return arrays(given["inputs"], given["targets"])
    raise RecipeError(
        f"{where}: two files are given as {{images: FILE, labels: FILE}} (IDX) or {{inputs: FILE, targets: FILE}} "
        f"(.npy), not as {listed(given)}."
    )
