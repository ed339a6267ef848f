"""The canonical record: metrics.jsonl, the same bytes for the same run; and timing.jsonl, which is nobody's promise."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from gradstep.errors import CheckpointError, StorageError

Row = dict[str, Any]


class Journal:
    """Rows of metrics in memory and, given a place, on disk. A row holds no wall-clock time; timings go apart."""

    def __init__(self, metrics: Path | None = None, timing: Path | None = None, offset: int = 0) -> None:
        """Goes on after `offset` bytes of `metrics`: what a killed run wrote behind its checkpoint is cut off."""
        self.rows: list[Row] = []
        self._metrics = self._timing = None
        if metrics is None or timing is None:
            return
        try:
            if offset:
                content = metrics.read_bytes()
                if len(content) < offset:
                    raise CheckpointError(
                        f"{metrics}: {len(content)} bytes, and the checkpoint was made when there were {offset}. "
                        "The record was damaged since; restore it, or start a new run."
                    )
                self.rows = [_values(json.loads(line)) for line in content[:offset].splitlines()]
            self._metrics = metrics.open("ab")
            self._metrics.truncate(offset)
            self._timing = timing.open("ab")
        except OSError as error:
            raise StorageError(f"'{error.filename}' can't be opened ({error.strerror}).") from error

    def write(self, row: Row) -> None:
        """Adds a row of metrics."""
        self.rows.append(row)
        self._append(self._metrics, row)

    def time(self, row: Row) -> None:
        """Adds a row of timings."""
        self._append(self._timing, row)

    def offset(self) -> int:
        """How many bytes of metrics there are, all of them on the disk."""
        if self._metrics is None:
            return 0
        try:
            self._metrics.flush()
            os.fsync(self._metrics.fileno())
        except OSError as error:
            raise StorageError(f"'{self._metrics.name}' could not be written ({error.strerror}).") from error
        return self._metrics.tell()

    def close(self) -> None:
        for file in (self._metrics, self._timing):
            if file is not None:
                file.close()

    def _append(self, file: BinaryIO | None, row: Row) -> None:
        if file is None:
            return
        try:
            file.write((json.dumps(_plain(row), allow_nan=False) + "\n").encode())
            file.flush()
        except OSError as error:
            raise StorageError(f"'{file.name}' could not be written ({error.strerror}).") from error


def _values(row: Row) -> Row:
    """A row as it was before `_plain` spelled out what is no number."""
    return {name: float(value) if value in ("nan", "inf", "-inf") else value for name, value in row.items()}


def _plain(value: Any) -> Any:
    """JSON has no nan and no infinity: they are written as strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value
