"""The canonical record: metrics.jsonl, the same bytes for the same run; and timing.jsonl, which is nobody's promise."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradstep import disk
from gradstep.errors import CheckpointError, StorageError

Row = dict[str, Any]
_BEHIND = 64_000_000  # bytes of rows that are read behind a mark: those of the end of a run are few


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in metrics.jsonl: how many bytes stand before it, and their SHA-256."""

    offset: int = 0
    sha256: str = hashlib.sha256().hexdigest()


class Journal:
    """Rows of metrics in memory and, given a place, on disk. A row holds no wall-clock time; timings go apart."""

    def __init__(
        self, metrics: Path | None = None, timing: Path | None = None, since: Mark | None = None, whole: bool = False
    ) -> None:
        """Goes on at `since`: what a killed run wrote behind its checkpoint is cut off, unless the `whole` is wanted.

        A torn row behind the mark is what a kill leaves; one before it is damage. CheckpointError says so.
        """
        self.rows: list[Row] = []
        self._content, self._offset = hashlib.sha256(), 0
        self._metrics = self._timing = None
        if metrics is None or timing is None:
            return
        self._path = metrics
        try:
            if since is not None and since.offset:
                content = before(metrics, since, whole)
                self.rows = [_values(json.loads(line)) for line in content.splitlines()]
                self._content.update(content)
                self._offset = len(content)
            self._metrics = disk.log_open(metrics, self._offset)
            self._timing = disk.log_open(timing, timing.stat().st_size if timing.exists() else 0)
        except OSError as error:
            raise StorageError(f"'{error.filename or metrics}' can't be opened ({error.strerror}).") from error

    def write(self, row: Row) -> None:
        """Adds a row of metrics."""
        self.rows.append(row)
        if self._metrics is not None:
            line = _line(row)
            self._append(self._metrics, line)
            self._content.update(line)
            self._offset += len(line)

    def time(self, row: Row) -> None:
        """Adds a row of timings."""
        if self._timing is not None:
            self._append(self._timing, _line(row))

    def mark(self) -> Mark:
        """Where the metrics are now. They are on the disk for good only after `sync`."""
        return Mark(self._offset, self._content.hexdigest())

    def sync(self) -> None:
        """Returns when the disk has every row of metrics: before a checkpoint that counts on them may be believed."""
        if self._metrics is not None:
            try:
                disk.sync(self._metrics)
            except OSError as error:
                raise StorageError(f"'{self._path}' could not be written ({error.strerror}).") from error

    def close(self) -> None:
        """StorageError where that says that something of what was written is lost."""
        descriptors, self._metrics, self._timing = (self._metrics, self._timing), None, None
        failed: list[OSError] = []
        for descriptor in descriptors:
            try:
                if descriptor is not None:
                    disk.close(descriptor)
            except OSError as error:  # the other one is closed all the same
                failed.append(error)
        if failed:
            raise StorageError(f"a row of '{self._path.parent}' was not written ({failed[0].strerror}).") from failed[0]

    def _append(self, descriptor: int, line: bytes) -> None:
        try:
            disk.write_all(descriptor, line)
        except OSError as error:
            raise StorageError(
                f"a row of '{self._path.parent}' could not be written ({error.strerror}). The checkpoints are as they "
                "were: make room and type gradstep resume."
            ) from error


def before(metrics: Path, since: Mark, whole: bool = False) -> bytes:
    """The rows up to a mark, or all that are `whole`. CheckpointError where they are not what they were."""
    try:
        content, size = disk.beginning(metrics, since.offset + (_BEHIND if whole else 0))
    except FileNotFoundError:
        content, size = b"", 0
    except OSError as error:
        raise CheckpointError(f"{metrics}: can't be read ({disk.reason(error)}).") from error
    known = content[: since.offset]
    if len(known) < since.offset:
        what = f"{size} bytes, and the checkpoint was made when there were {since.offset}"
    elif hashlib.sha256(known).hexdigest() != since.sha256:
        what = f"its first {since.offset} bytes are not those that were there when the checkpoint was made"
    else:
        return content[: content.rfind(b"\n") + 1] if whole else known
    raise CheckpointError(
        f"{metrics}: {what}. The record was damaged since. Restore it from a copy, or start a new run."
    )


def tells_of_steps(metrics: Path) -> bool:
    """Whether any row is of a step that was made; a torn one at the end is none."""
    try:
        lines = disk.beginning(metrics, _BEHIND)[0].split(b"\n")[:-1]
        return any(json.loads(line)["step"] > 0 for line in lines)
    except FileNotFoundError:
        return False
    except (OSError, ValueError, TypeError, LookupError):
        return True  # it is no record of a run's beginning, and so nothing to write over


def _line(row: Row) -> bytes:
    return (json.dumps(_plain(row), allow_nan=False) + "\n").encode()


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
