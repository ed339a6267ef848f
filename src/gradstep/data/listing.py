"""CSV files as people have them: any delimiter, with or without a header, in more than one encoding."""

from __future__ import annotations

import codecs
import csv
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gradstep.errors import DataError, listed, nearest

TEXT = (".csv", ".tsv", ".txt")
_DELIMITERS = ",;\t|"
_BYTE_ORDER_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def is_text(path: str | Path) -> bool:
    """Whether a name ends as CSV files do."""
    return Path(path).suffix.lower() in TEXT


@dataclass(frozen=True, slots=True)
class Listing:
    """The rows of a CSV, each as long as the first, every cell without blanks around it.

    `header` is None where there is none; `lines` are the rows' line numbers in the file, counted from 1.
    """

    path: Path
    header: list[str] | None
    rows: list[list[str]]
    lines: list[int]
    notes: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        return len(self.rows[0])

    def cells(self, column: int) -> list[str]:
        """One column's cells."""
        return [row[column] for row in self.rows]

    def place(self, row: int) -> str:
        """Where a row is, for a person."""
        return f"line {self.lines[row]} of {self.path}"

    def name(self, column: int) -> str:
        """A column's name, or its number."""
        return self.header[column] if self.header else str(column)

    def column(self, given: str | int, key: str) -> int:
        """The column that a recipe means by its name, or by its place counted from 0. DataError names the nearest."""
        if isinstance(given, int):
            if 0 <= given < self.width:
                return given
            named = f" The one called so is '\"{given}\"'." if self.header and str(given) in self.header else ""
            raise DataError(
                f"data.columns.{key}: {self.path} has {self.width} columns, numbered from 0; not {given}.{named}"
            )
        if self.header and self.header.count(given) == 1:
            return self.header.index(given)
        if self.header and given in self.header:
            raise DataError(f"data.columns.{key}: {self.path} has several columns '{given}'. Write its number, from 0.")
        there = (
            f"has {listed(self.header, 30)}" if self.header else f"has no header, but {self.width} columns: 0, 1, ..."
        )
        raise DataError(
            f"data.columns.{key}: there is no column '{given}'. {self.path} {there}."
            f"{nearest(given, self.header) if self.header else ''}"
        )


def read_listing(path: str | Path, has_header: Callable[[Sequence[str], Sequence[Sequence[str]]], bool]) -> Listing:
    """The rows of a CSV file. `has_header(first row, the rows below it)` says whether the first one is a header.

    The delimiter is whichever of comma, semicolon, tab and bar cuts the rows into one and the same number of columns.
    DataError: it can't be read, has no rows, or a row of another length, which is named.
    """
    path = Path(path)
    text, notes = _text(path)
    delimiter = _delimiter(text)
    if delimiter != ",":
        notes.append(
            f"{path}: its columns are taken to be separated by {'a tab' if delimiter == chr(9) else delimiter}"
        )
    rows, lines = [], []
    # strict: a quote that is never closed would take all that follows for one cell.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        line = 1
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if any(stripped):
                rows.append(stripped)
                lines.append(line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not CSV ({error}).") from None
    if not rows:
        raise DataError(f"{path}: there is nothing in it.")
    for row, at in zip(rows, lines, strict=True):
        if len(row) != len(rows[0]):
            raise DataError(
                f"{path}, line {at}: {len(row)} columns, where line {lines[0]} has {len(rows[0])}. A cell with a "
                f"'{delimiter}' in it needs quotes around it."
            )
    header = rows[0] if has_header(rows[0], rows[1:]) else None
    if header:
        rows, lines = rows[1:], lines[1:]
    if not rows:
        raise DataError(f"{path}: there is a header and nothing below it.")
    return Listing(path, header, rows, lines, tuple(notes))


def _text(path: Path) -> tuple[str, list[str]]:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file.") from None
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}).") from None
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if raw.startswith(mark)), "utf-8")
    try:
        text, notes = raw.decode(encoding), []
    except UnicodeDecodeError:
        text = raw.decode("cp1252", errors="replace")
        notes = [f"{path}: it is not UTF-8, and was read as Windows-1252. Save it as UTF-8 if letters are wrong."]
    if "\0" in text:
        raise DataError(f"{path}: not a text file, or one in UTF-16 without a mark at its start. Save it as UTF-8.")
    return text, notes


def _delimiter(text: str) -> str:
    """The one that cuts the most of the first rows into one number of columns, above one; a comma where none does."""
    best, most = ",", (0, 0)
    for delimiter in _DELIMITERS:
        rows = csv.reader(io.StringIO(text[:65536], newline=""), delimiter=delimiter, skipinitialspace=True)
        try:
            filled = (row for row in rows if any(cell.strip() for cell in row))
            widths = Counter(len(row) for row, _ in zip(filled, range(20), strict=False))
        except csv.Error:
            continue
        for width, count in widths.items():
            if width > 1 and (count, width) > most:
                best, most = delimiter, (count, width)
    return best
