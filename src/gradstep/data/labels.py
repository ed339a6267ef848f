"""Labels as people write them, names or numbers, to targets as a criterion takes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gradstep.errors import DataError

KINDS = ("classes", "numbers")
_WHOLE = re.compile(r"[+-]?\d+(\.0*)?")
LARGEST = torch.finfo(torch.float32).max  # what is more would be infinite in float32


def targets_of(
    cells: Sequence[Sequence[str]],
    *,
    kind: str | None,
    classes: tuple[str, ...] | None,
    place: Callable[[int], str],
    what: str,
) -> tuple[Tensor, tuple[str, ...] | None]:
    """`(targets, classes)` of one or several columns of text, all stripped: `cells[column][sample]`.

    One column of names or whole numbers makes classes (int64, `[N]`), in the order of the numbers or the alphabet;
    what `kind` says goes before. Several columns, or fractions, make numbers (float32, `[N]` or `[N, columns]`).
    `classes` are those that must be meant: a label that is none of them is an error.
    """
    for column in cells:
        for sample, cell in enumerate(column):
            if not cell:
                raise DataError(f"{place(sample)} has no label. Fill it in, or take the line out.")
    values = [[number(cell) for cell in column] for column in cells]
    written = [value for column in values for value in column]
    fractions = None not in written and any(not value.is_integer() for value in written if value is not None)
    if kind == "numbers" or (kind is None and classes is None and (len(cells) > 1 or fractions)):
        return _numbers(cells, values, place), None
    if len(cells) > 1:
        raise DataError(f"{what}: several target columns make numbers, not classes. Name one in data.columns.target.")
    if kind is None and classes is None:
        _hold_names(values[0], cells[0], place)
    known = classes or _classes(cells[0])
    if classes is None and kind is None and len(known) > max(20, len(cells[0]) / 2):
        raise DataError(
            f"{what}: {len(known):,} different labels in {len(cells[0]):,} samples, such as '{cells[0][0]}'. Is it the "
            "right column? Say which: data.columns.target=NAME; and what: data.targets=numbers or data.targets=classes."
        )
    numbers = {name: index for index, name in enumerate(known)}
    targets = []
    for sample, cell in enumerate(cells[0]):
        name = cell if cell in numbers else _spelled(cell)
        if name is None or name not in numbers:
            raise DataError(
                f"{place(sample)} has the label '{cell}', which the training data does not have. "
                f"It has {', '.join(known[:12])}{', ...' if len(known) > 12 else ''}."
            )
        targets.append(numbers[name])
    return torch.tensor(targets, dtype=torch.int64), known


def _hold_names(values: list[float | None], cells: Sequence[str], place: Callable[[int], str]) -> None:
    """Where nearly all labels are numbers, the one that is none is more likely a slip than the name of a class."""
    names = [sample for sample, value in enumerate(values) if value is None]
    if 0 < len(names) <= len(cells) // 20:
        raise DataError(
            f"{place(names[0])} has the label '{cells[names[0]]}', and nearly all others are numbers. Mend it, or say "
            "that labels are names: data.targets=classes."
        )


def _numbers(cells: Sequence[Sequence[str]], values: list[list[float | None]], place: Callable[[int], str]) -> Tensor:
    for column, numbers in zip(cells, values, strict=True):
        for sample, value in enumerate(numbers):
            if value is None or not abs(value) <= LARGEST:
                raise DataError(f"{place(sample)} has the target '{column[sample]}', which is no finite number.")
    targets = torch.tensor(values, dtype=torch.float64).to(torch.float32).T
    return targets[:, 0].contiguous() if len(cells) == 1 else targets.contiguous()


def _classes(cells: Sequence[str]) -> tuple[str, ...]:
    """The distinct labels: numbers by size, if all are whole numbers; else by the alphabet."""
    spelled = {_spelled(cell) for cell in cells}
    whole = [int(each) for each in spelled if each is not None]
    return tuple(map(str, sorted(whole))) if None not in spelled else tuple(sorted(set(cells)))


def _spelled(cell: str) -> str | None:
    """A whole number the one way, None for anything else: 3, 03 and 3.0 are one label."""
    return str(int(cell.partition(".")[0])) if _WHOLE.fullmatch(cell) else None


def number(cell: str) -> float | None:
    """What a cell says, if it is a number, infinity and NaN among them."""
    try:
        return None if "_" in cell else float(cell)  # Python takes 1_0 for 10; a CSV means a name
    except ValueError:
        return None
