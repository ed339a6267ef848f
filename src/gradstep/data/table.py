"""Sources out of CSV files: a list of image files, or a table of numbers. Which it is, is seen from the cells."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradstep.data.columns import Columns, hold_keys, is_header, path_column, several, understood
from gradstep.data.files import FileList, Survey
from gradstep.data.labels import LARGEST, number, targets_of
from gradstep.data.listing import Listing, read_listing
from gradstep.data.sources import PART_OF, Tensors
from gradstep.errors import DataError


def read_csv(
    path: str | Path,
    columns: Mapping[str, Any],
    kind: str | None = None,
    classes: tuple[str, ...] | None = None,
    training: bool = True,
) -> Survey:
    """The rows as `train`, or as the parts that a split column says.

    Paths are relative to the CSV. `kind` and `classes` are as in `labels.targets_of`; labels that are classes are
    those of the training part, and the other parts' must be among them. Where the file is not the `training` one, a
    training part and a split column may be missing.
    """
    hold_keys(columns)
    listing = read_listing(path, lambda first, below: is_header(first, below, columns))
    chosen = understood(listing, columns, training)
    parts: dict[str, FileList | Tensors] = {}
    for part, rows in _parts(listing, chosen.split, training).items():
        made = _part(listing, chosen, rows, kind, classes)
        classes, kind = made.classes, "classes" if made.classes else "numbers"  # the training part's, which is first
        parts[part] = made
    return Survey(parts, (*listing.notes, *chosen.notes(listing, columns)), chosen.document(listing))


def rows_of(path: str | Path, columns: Mapping[str, Any]) -> torch.Tensor:
    """The inputs alone of a table, float32 `[N, columns]`, whether or not its targets are there."""
    listing = read_listing(path, lambda first, below: is_header(first, below, columns))
    inputs = [listing.column(each, "inputs") for each in several(columns["inputs"])]
    return torch.from_numpy(_numbers(listing, inputs, list(range(len(listing.rows)))))


def list_of_paths(path: str | Path, named: str | int | None = None) -> list[str]:
    """The paths alone of a CSV that lists images, with labels or without: what a prediction needs.

    They are in the column `named`, as the run's data had it; where none is called so, in the one that looks so.
    """
    listing = read_listing(path, lambda first, below: named in first or is_header(first, below, {}))
    column = path_column(listing, {"path": named} if named in (listing.header or ()) else {})
    if column is None and isinstance(named, int) and named < listing.width:  # files without a suffix, and no header
        column = named
    if column is None:
        raise DataError(f"{path}: no column of it names image files. Say which: data.columns.path=NAME.")
    return _files(listing, column, range(len(listing.rows)))


def _parts(listing: Listing, split: int | None, training: bool) -> dict[str, list[int]]:
    """The rows of each part, the training part first."""
    if split is None:
        return {"train": list(range(len(listing.rows)))}
    parts: dict[str, list[int]] = {}
    for row, cell in enumerate(listing.cells(split)):
        part = PART_OF.get(cell.lower())
        if part is None:
            raise DataError(f"{listing.place(row)}: the split '{cell}' is none of train, valid and test.")
        parts.setdefault(part, []).append(row)
    if training and "train" not in parts:
        raise DataError(f"{listing.path}: no row's split is train.")
    return dict(sorted(parts.items(), key=lambda item: item[0] != "train"))


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
    paths = _files(listing, chosen.path, rows)
    return FileList(str(listing.path), paths, targets, classes, [f"line {listing.lines[row]}" for row in rows])


def _files(listing: Listing, column: int, rows: Sequence[int]) -> list[str]:
    """The files that these rows name, relative to the CSV.

    Path does it; a plain name is put behind the folder's in a fifth of the time, and there may be a million of them.
    """
    parent, files = listing.path.parent, []
    folder = str(parent) if parent.parts else ""
    for row in rows:
        cell = listing.rows[row][column]
        if not cell:
            raise DataError(f"{listing.place(row)} names no file. Fill it in, or take the line out.")
        plain = os.sep == "/" and all(part not in ("", ".") for part in cell.split("/"))
        files.append(os.path.join(folder, cell) if plain else str(parent / cell))
    return files


def _numbers(listing: Listing, inputs: Sequence[int], rows: list[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """`[N, columns]` float32; DataError at the first cell that is no finite number."""
    table = np.empty((len(rows), len(inputs)), np.float32)
    for place, column in enumerate(inputs):
        cells = [listing.rows[row][column] for row in rows]
        values = [number(cell) for cell in cells]
        for row, cell, value in zip(rows, cells, values, strict=True):
            if value is None or not abs(value) <= LARGEST:
                name = f"'{listing.name(column)}'" if listing.header else f"number {column}"
                raise DataError(
                    f"{listing.place(row)}: the column {name} has '{cell}', which is no finite number. Mend it, or "
                    "name the columns that are inputs: data.columns.inputs=[...]"
                )
        table[:, place] = values
    return table
