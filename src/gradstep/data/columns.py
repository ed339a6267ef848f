"""Which columns of a CSV mean what: as the recipe says, else as their names and cells say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradstep.data.images import is_image
from gradstep.data.labels import number
from gradstep.data.listing import Listing
from gradstep.data.sources import PART_OF
from gradstep.errors import DataError, RecipeError, listed, nearest

COLUMNS = ("path", "inputs", "target", "split")
_TARGETS = ("label", "target", "class", "category", "y")  # names that need no explanation
_PATHS = ("path", "file", "filename", "image", "image_path", "filepath")
_SPLITS = ("split", "subset", "part", "partition", "fold", "set")
_NOTHING = ("", "-", "?", "na", "n/a", "none", "null")  # a cell that is missing, and no name
_UNNAMED = ("", "unnamed: 0")  # what pandas calls its index
_SOME = 50  # rows that are looked at


@dataclass(frozen=True, slots=True)
class Columns:
    """The images' paths or the inputs, the targets, the part a row belongs to: each by number."""

    path: int | None
    inputs: tuple[int, ...]
    targets: tuple[int, ...]
    split: int | None

    def document(self, listing: Listing) -> dict[str, Any]:
        """How a recipe writes them: by name, or by number where a name is not enough."""
        names: list[Any] = list(listing.header) if listing.header else list(range(listing.width))
        if len(set(names)) < len(names):
            names = list(range(listing.width))
        targets = [names[column] for column in self.targets]
        written = {
            "path": None if self.path is None else names[self.path],
            "inputs": [names[column] for column in self.inputs] or None,
            "target": targets[0] if len(targets) == 1 else targets,
            "split": None if self.split is None else names[self.split],
        }
        return {key: value for key, value in written.items() if value is not None}

    def notes(self, listing: Listing, given: Mapping[str, Any]) -> tuple[str, ...]:
        """What was recognised, and what was passed over, that would change the training if it were a mistake."""
        notes = []
        if self.split is not None and "split" not in given:
            notes.append(f"{listing.path}: the column '{listing.name(self.split)}' says which part a row belongs to")
        if listing.header and _counted(listing.header):
            notes.append(f"{listing.path}: line 1 counts, and is taken for the columns' names")
        used = {self.path, self.split, *self.inputs, *self.targets}
        if unused := [listing.name(column) or "(no name)" for column in range(listing.width) if column not in used]:
            notes.append(f"{listing.path}: columns that are not used: {listed(unused)}")
        return tuple(notes)


def hold_keys(given: Mapping[str, Any]) -> None:
    """RecipeError for a key of `data.columns` that there is not."""
    for key in given:
        if key not in COLUMNS:
            hint = nearest(key, COLUMNS) or f" There are {', '.join(COLUMNS)}; the label's column is the target."
            raise RecipeError(f"data.columns: there is no '{key}'.{hint}")


def understood(listing: Listing, given: Mapping[str, Any], training: bool = True) -> Columns:
    """The columns as `given` names them, the others recognised. A file that is not `training` may have no split."""
    path = path_column(listing, given)
    inputs = [listing.column(each, "inputs") for each in several(given.get("inputs", []))]
    targets = [listing.column(each, "target") for each in several(given.get("target", []))]
    if path in targets:
        raise DataError(f"data.columns.target: {listing.path}'s column {listing.name(targets[0])} names the images.")
    split = _split_column(listing, given, {path, *inputs, *targets}, training)
    if not targets:
        taken = {path, split, *inputs}
        targets = [_target_column(listing, [c for c in range(listing.width) if c not in taken], path is not None)]
    if path is None and not inputs:
        left = [column for column in range(listing.width) if column not in {split, *targets}]
        inputs = [column for column in left if not _is_index(listing, column)]
        if not inputs:
            raise DataError(f"{listing.path}: beside the target there is no column left for the inputs.")
    return Columns(path, tuple(inputs), tuple(targets), split)


def path_column(listing: Listing, given: Mapping[str, Any]) -> int | None:
    """The column whose cells, or else whose name, say that they are image files. None where there is none."""
    if "path" in given:
        return listing.column(given["path"], "path")
    if "inputs" in given:
        return None
    some = listing.rows[:: max(1, len(listing.rows) // _SOME)]
    like = [c for c in range(listing.width) if sum(is_image(row[c]) for row in some) * 2 > len(some)]
    if not like and listing.header:  # files without a suffix, under a name that says what they are
        like = [c for c, name in enumerate(listing.header) if name.lower() in _PATHS]
    if len(like) > 1:
        names = " and ".join(listing.name(column) for column in like)
        raise DataError(
            f"{listing.path}: the columns {names} name images. Say which: data.columns.path={listing.name(like[0])}"
        )
    return like[0] if like else None


def is_header(first: Sequence[str], below: Sequence[Sequence[str]], given: Mapping[str, Any]) -> bool:
    """Whether a first row names the columns: the recipe does so by its cells, or it is unlike the rows below it."""
    if any(isinstance(each, str) for value in given.values() for each in several(value)):
        return True
    if any(is_image(cell) for cell in first):
        return False
    numbers = [cell for cell in first if number(cell) is not None]
    if not below:
        return not numbers
    # As pandas writes columns without names. Data would hardly count so, in one row alone.
    if _counted(first) and not any(_counted(row) for row in below):
        words = [column for column, cell in enumerate(first) if number(cell) is None]
        if all(first[column] != row[column] for column in words for row in below) and (words or numbers[0] == "0"):
            return True
    for column, cell in enumerate(first):
        values = [row[column] for row in below[:_SOME]]
        if cell.lower() in (*_TARGETS, *_PATHS) and cell not in values:
            return True
        of_data = all(number(value) is not None for value in values) or any(is_image(value) for value in values)
        if of_data and _is_name(cell) and len(numbers) * 2 <= len(first):  # one bad cell makes no header
            return True
    return False


def _counted(row: Sequence[str]) -> bool:
    """Whether the numbers of a row are 0, 1, 2, ... or 1, 2, 3, ..., three of them at least."""
    numbers = [cell for cell in row if number(cell) is not None]
    start = numbers[0] if numbers else ""
    return len(numbers) > 2 and start in "01" and numbers == [str(int(start) + n) for n in range(len(numbers))]


def _is_index(listing: Listing, column: int) -> bool:
    """Whether it is a column without a name that counts the rows, as pandas writes one."""
    named = listing.header is None or listing.header[column].lower() not in _UNNAMED
    return not named and listing.cells(column) == [str(row) for row in range(len(listing.rows))]


def several(value: Any) -> list[Any]:
    """What may be given as one or as a list."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _is_name(cell: str) -> bool:
    return number(cell) is None and cell.lower() not in _NOTHING


def _split_column(listing: Listing, given: Mapping[str, Any], taken: set[int | None], training: bool) -> int | None:
    """The one that is given; else one whose name and all of whose cells are about parts.

    DataError where most of its cells are: to train on what was set aside must not be a slip of one cell.
    """
    there = (*range(listing.width), *(listing.header or ()))
    if "split" in given and (training or given["split"] in there):
        return listing.column(given["split"], "split")
    for column, name in enumerate(listing.header or ()):
        if name.lower() not in _SPLITS or column in taken:
            continue
        parts = [PART_OF.get(cell.lower()) for cell in listing.cells(column)]
        if None not in parts and ("train" in parts or not training):
            return column
        if None in parts and "train" in parts and parts.count(None) * 2 <= len(parts):
            row = parts.index(None)
            raise DataError(
                f"{listing.place(row)}: the column '{name}' has '{listing.rows[row][column]}', and most of it is "
                "train, valid or test. Mend it, or give the column another name if it is about something else."
            )
    return None


def _target_column(listing: Listing, left: list[int], images: bool) -> int:
    """The target where nobody said which: the one that is left, or that is called so."""
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
