"""A folder per class, the image files in it; perhaps under folders called train, valid and test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from gradstep.data.files import FileList, Survey
from gradstep.data.images import is_image
from gradstep.data.sources import PART_OF, PARTS
from gradstep.errors import DataError


def read_folder(folder: str | Path, classes: tuple[str, ...] | None = None) -> Survey:
    """The files in the order of classes, then of paths; classes in the order of the alphabet.

    Hidden files and folders are passed over; so are files that are no images by their suffix, which a note counts.
    """
    folder = Path(folder)
    below = [each.name for each in sorted(folder.iterdir()) if each.is_dir() and not each.name.startswith(".")]
    if not below:
        raise DataError(
            f"{folder}: there are no folders in it. It wants one for each class: {folder}/cat, {folder}/dog."
        )
    divided = _parts_in(folder, below)
    parts: dict[str, FileList] = {}
    other = 0
    for part in PARTS:
        if part in divided:
            parts[part], passed_over = _part(divided[part], classes)
            classes, other = parts[part].classes, other + passed_over
    loose = sum(sum(each.is_file() and not each.name.startswith(".") for each in p.iterdir()) for p in divided.values())
    notes: tuple[str, ...] = ()
    notes += (f"{folder}: {other:,} files that are no images by their suffix were passed over",) if other else ()
    notes += (f"{folder}: {loose:,} files beside the classes' folders were passed over",) if loose else ()
    return Survey(parts, notes)


def images_in(folder: str | Path) -> list[str]:
    """The image files at any depth, in the order of their paths."""
    return sorted(path for path in _files(Path(folder)) if is_image(path))


def _parts_in(folder: Path, below: list[str]) -> dict[str, Path]:
    """The folders of the parts, or the whole as the training part. DataError where it might be either."""
    named = [name for name in below if name.lower() in PART_OF]
    divided = {PART_OF[name.lower()]: folder / name for name in named}
    if not named:
        return {"train": folder}
    if "train" not in divided or len(divided) < len(below):
        raise DataError(
            f"{folder}: {', '.join(below[:8])}: are they parts of the data or classes? As parts there is train, and "
            "perhaps valid and test, once each and nothing beside them. Classes can't have these names."
        )
    return divided


def _part(folder: Path, known: tuple[str, ...] | None) -> tuple[FileList, int]:
    names = sorted(each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    classes = known or tuple(name for name in names if images_in(folder / name))
    paths, targets, other = [], [], 0
    for name in names:
        found = images_in(folder / name)
        if not found:
            other += sum(1 for _ in _files(folder / name))
            continue
        if name not in classes:
            raise DataError(f"{folder}: the training data has no class '{name}'. It has {', '.join(classes[:12])}.")
        paths += found
        targets += [classes.index(name)] * len(found)
        other += sum(1 for _ in _files(folder / name)) - len(found)
    return FileList(str(folder), paths, torch.tensor(targets, dtype=torch.int64), classes), other


def _files(folder: Path) -> Iterator[str]:
    """Every file that is not hidden, links followed, but no folder twice: a link may point above itself."""
    walked: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        found = os.stat(place)
        if (found.st_dev, found.st_ino) in walked:
            folders.clear()
            continue
        walked.add((found.st_dev, found.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(place, name) for name in files if not name.startswith("."))
