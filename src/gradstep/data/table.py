"""Sources out of CSV files: a list of image files, or a table of numbers. Which it is, is seen from the cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradstep.data.files import FileList
from gradstep.data.images import SUFFIXES
from gradstep.data.labels import targets_of
from gradstep.data.listing import Listing, read_listing
from gradstep.data.sources import Tensors
from gradstep.errors import DataError, RecipeError, listed, nearest

_LARGEST = float(np.finfo(np.float32).max)  # what is more would be infinite in float32
COLUMNS = ("path", "inputs", "target", "split")
_TARGETS = ("label", "target", "class", "category", "y")  # names that need no explanation
_PATHS = ("path", "file", "filename", "image", "image_path", "filepath")
PARTS = {"train": "train", "training": "train", "valid": "valid", "val": "valid", "validation": "valid", "dev": "valid",
         "test": "test", "testing": "test"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns mean what, by number: the images' paths or the inputs, the targets, the part a row belongs to."""

    path: int | None
    inputs: tuple[int, ...]
    targets: tuple[int, ...]
    split: int | None


def read_csv(
    path: str | Path, columns: Mapping[str, Any], kind: str | None = None, classes: tuple[str, ...] | None = None
) -> tuple[dict[str, FileList | Tensors], tuple[str, ...]]:
    """`(parts, notes)`: the rows as `train`, or as the parts that a split column says.

    Paths are relative to the CSV. `kind` and `classes` are as in `labels.targets_of`; labels that are classes are
    those of the training part, and the other parts' must be among them.
    """
    for key in columns:
        if key not in COLUMNS:
            hint = nearest(key, COLUMNS) or f" There are {', '.join(COLUMNS)}; the label's column is the target."
            raise RecipeError(f"data.columns: there is no '{key}'.{hint}")
    listing = read_listing(path, lambda first, second: _is_header(first, second, columns))
    chosen = _columns(listing, columns)
    parts: dict[str, FileList | Tensors] = {}
    for part, rows in sorted(_parts(listing, chosen.split).items(), key=lambda item: item[0] != "train"):
        made = _part(listing, chosen, rows, kind, classes)
        if part == "train":
            classes, kind = made.classes, "classes" if made.classes else "numbers"
        parts[part] = made
    return parts, listing.notes


def _part(
    listing: Listing, chosen: Columns, rows: list[int], kind: str | None, classes: tuple[str, ...] | None
) -> FileList | Tensors:
    targets, classes = targets_of(
        [[listing.rows[row][column] for row in rows] for column in chosen.targets],
        kind=kind,
        classes=classes,
        place=lambda number: listing.place(rows[number]),
        what=str(listing.path),
    )
    if chosen.path is None:
        return Tensors((torch.from_numpy(_numbers(listing, chosen.inputs, rows)), targets), classes)
    paths = [_resolved(listing, row, listing.rows[row][chosen.path]) for row in rows]
    return FileList(str(listing.path), paths, targets, classes, [f"line {listing.lines[row]}" for row in rows])


def columns_of(path: str | Path, columns: Mapping[str, Any]) -> dict[str, Any]:
    """The columns as they were understood, each by its name, or its number where there is no header."""
    listing = read_listing(path, lambda first, second: _is_header(first, second, columns))
    chosen = _columns(listing, columns)
    names: list[Any] = list(listing.header) if listing.header else list(range(listing.width))
    if len(set(names)) < len(names):
        names = list(range(listing.width))
    targets = [names[column] for column in chosen.targets]
    understood = {"path": None if chosen.path is None else names[chosen.path],
                  "inputs": [names[column] for column in chosen.inputs] or None,
                  "target": targets[0] if len(targets) == 1 else targets,
                  "split": None if chosen.split is None else names[chosen.split]}  # fmt: skip
    return {key: value for key, value in understood.items() if value is not None}


def rows_of(path: str | Path, columns: Mapping[str, Any]) -> torch.Tensor:
    """The inputs alone of a table, float32 `[N, columns]`, whether or not its targets are there."""
    listing = read_listing(path, lambda first, second: _is_header(first, second, columns))
    inputs = [listing.column(each, "inputs") for each in _several(columns["inputs"])]
    return torch.from_numpy(_numbers(listing, inputs, list(range(len(listing.rows)))))


def list_of_paths(path: str | Path, named: str | int | None = None) -> list[str]:
    """The paths alone of a CSV that lists images, with labels or without: what a prediction needs.

    They are in the column `named`, as the run's data had it; where none is called so, in the one that looks so.
    """
    listing = read_listing(path, lambda first, second: named in first or _is_header(first, second, {}))
    there = named is not None and (named in (listing.header or ()) or isinstance(named, int))
    column = _path_column(listing, {"path": named} if there else {})
    if column is None:
        raise DataError(f"{path}: no column of it names image files. Say which: data.columns.path=NAME.")
    return [_resolved(listing, row, cells[column]) for row, cells in enumerate(listing.rows)]


def _resolved(listing: Listing, row: int, cell: str) -> str:
    if not cell:
        raise DataError(f"{listing.place(row)} names no file. Fill it in, or take the line out.")
    return str(listing.path.parent / cell)


def _numbers(listing: Listing, inputs: Sequence[int], rows: list[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """`[N, columns]` float32; DataError at the first cell that is no finite number."""
    table = np.empty((len(rows), len(inputs)), np.float32)
    for place, column in enumerate(inputs):
        cells = [listing.rows[row][column] for row in rows]
        try:
            exact = np.asarray(cells, dtype=np.float64)
            if (np.abs(exact) <= _LARGEST).all():
                table[:, place] = exact
                continue
        except ValueError:
            pass
        for row, cell in zip(rows, cells, strict=True):
            if not _is_number(cell) or not abs(float(cell)) <= _LARGEST:
                name = f"'{listing.name(column)}'" if listing.header else f"number {column}"
                raise DataError(
                    f"{listing.place(row)}: the column {name} has '{cell}', which is no finite number. Mend it, or "
                    "name the columns that are inputs: data.columns.inputs=[...]"
                )
    return table


def _parts(listing: Listing, split: int | None) -> dict[str, list[int]]:
    if split is None:
        return {"train": list(range(len(listing.rows)))}
    parts: dict[str, list[int]] = {}
    for row, cell in enumerate(listing.cells(split)):
        part = PARTS.get(cell.lower())
        if part is None:
            raise DataError(f"{listing.place(row)}: the split '{cell}' is none of train, valid and test.")
        parts.setdefault(part, []).append(row)
    if "train" not in parts:
        raise DataError(f"{listing.path}: no row's split is train.")
    return parts


def _columns(listing: Listing, given: Mapping[str, Any]) -> Columns:
    path = _path_column(listing, given)
    split = listing.column(given["split"], "split") if "split" in given else None
    inputs = [listing.column(each, "inputs") for each in _several(given.get("inputs", []))]
    taken = {column for column in (path, split, *inputs) if column is not None}
    if "target" in given:
        targets = [listing.column(each, "target") for each in _several(given["target"])]
    else:
        targets = [_target_column(listing, [c for c in range(listing.width) if c not in taken], path is not None)]
    if path in targets:
        raise DataError(f"data.columns.target: {listing.path}'s column {listing.name(targets[0])} names the images.")
    if path is None and not inputs:
        inputs = [column for column in range(listing.width) if column not in {split, *targets}]
        if not inputs:
            raise DataError(f"{listing.path}: beside the target there is no column left for the inputs.")
    return Columns(path, tuple(inputs), tuple(targets), split)


def _path_column(listing: Listing, given: Mapping[str, Any]) -> int | None:
    if "path" in given:
        return listing.column(given["path"], "path")
    if "inputs" in given:
        return None
    some = listing.rows[:: max(1, len(listing.rows) // 50)]
    like = [c for c in range(listing.width) if sum(_names_image(row[c]) for row in some) * 2 > len(some)]
    if not like and listing.header:  # files without a suffix, under a name that says what they are
        like = [c for c, name in enumerate(listing.header) if name.lower() in _PATHS]
    if len(like) > 1:
        names = " and ".join(listing.name(column) for column in like)
        raise DataError(
            f"{listing.path}: the columns {names} name images. Say which: data.columns.path={listing.name(like[0])}"
        )
    return like[0] if like else None


def _target_column(listing: Listing, left: list[int], images: bool) -> int:
    """The target where nobody said which: the one that is left, or that is called so; of a table, the last."""
    named = [c for c in left if listing.header and listing.header[c].lower() in _TARGETS]
    if len(named) == 1:
        return named[0]
    if len(left) == 1 and images:
        return left[0]
    columns = listed([listing.name(column) for column in left], 30)
    if not left:
        raise DataError(f"{listing.path}: there is no column for the labels beside the paths. It has one column.")
    raise DataError(
        f"{listing.path}: which column is the target? There are {columns}. Say so: data.columns.target="
        f"{listing.name(left[-1])} (several as [a, b]; counted from 0 where there is no header)."
    )


def _is_header(first: Sequence[str], second: Sequence[str] | None, columns: Mapping[str, Any]) -> bool:
    """Whether a first row names the columns: the recipe does by its cells, or nothing in it looks like data."""
    named = [each for value in columns.values() for each in _several(value) if isinstance(each, str)]
    if named:
        return True
    looks_like_data = any(_names_image(cell) or _is_number(cell) for cell in first)
    if looks_like_data or second is None:
        return not looks_like_data
    below = any(_is_number(cell) or _names_image(cell) for cell in second)
    return below or any(cell.lower() in (*_TARGETS, *_PATHS) for cell in first)


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _names_image(cell: str) -> bool:
    return cell.lower().endswith(SUFFIXES)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
