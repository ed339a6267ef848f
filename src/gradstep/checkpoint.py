"""Checkpoints: written whole or not at all, and believed only while their hashes hold.

    checkpoints/step-00001234/   model.safetensors  optimizer.safetensors  state.json  MANIFEST.json

Everything is written into a folder beside the target and forced to the disk before one rename makes it the
checkpoint; the rename itself is forced to the disk before anything older is pruned (`retention.py`).

What is read may be damaged or made by somebody with bad intentions: it is looked at from the cheap to the dear (names,
kinds of file, sizes, hashes, headers), nothing is read without a bound, and nothing in it is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gradstep import disk, tensorfile
from gradstep.errors import CheckpointError, StorageError
from gradstep.tensorfile import cut, object_of
from gradstep.tensorfile import from_json as from_json

FORMAT = 3
REPLACED = ".replaced-"  # what a checkpoint of the same step is called while another takes its place
_FOLDER = re.compile(r"step-([0-9]{8,})")
_HASH = re.compile(r"[0-9a-f]{64}")
_MANIFEST, _STATE = "MANIFEST.json", "state.json"
_REQUIRED = {"model.safetensors", "optimizer.safetensors", _STATE}
_FILES = _REQUIRED | {"criterion.safetensors", "ema.safetensors", "metrics.safetensors"}
_OTHER_CONTENT = "its content does not match its SHA-256"
_MANIFEST_LIMIT, _STATE_LIMIT = 1_000_000, 64_000_000


Contents = dict[str, tuple[int, Iterable[disk.Buffer]]]  # size and content of each file, by its name


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint that was verified. Tensors, by the file they are in, are loaded when they are asked for."""

    path: Path
    step: int
    tensors: dict[str, Mapping[str, Tensor]]
    values: dict[str, Any]


# Which there are.


def steps(folder: Path) -> list[int]:
    """The steps that have a checkpoint, in order, whether it is valid or not."""
    return sorted(
        int(match[1])
        for path in folder.glob("step-*")
        if (match := _FOLDER.fullmatch(path.name)) and path.name == at(folder, int(match[1])).name
    )


def at(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


# Writing.


def write(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    values: Mapping[str, Any],
    before_commit: Callable[[], None] = lambda: None,
) -> Path:
    """Writes the checkpoint of `step` under `folder` and returns its path, once it is there for good.

    `before_commit` makes durable what the checkpoint speaks of, as the log up to its offset; what it raises goes
    through. StorageError when the disk did not take it. Either way what was there before is as it was.
    """
    target = at(folder, step)
    temporary = folder / f".tmp-{step:08d}-{os.getpid()}"
    try:
        with _storage_errors(folder, step):
            files = _contents(tensors, values)
            _refuse_a_full_disk(folder, sum(size for size, _ in files.values()))
            _fill(temporary, step, files)
        before_commit()
        with _storage_errors(folder, step):
            _commit(temporary, target)
    except BaseException:
        with suppress(OSError):  # as far as possible; `retention.sweep` does the rest
            disk.remove_tree(temporary)
        raise
    with suppress(OSError):
        disk.remove_tree(_replaced(target))
    return target


def _contents(tensors: Mapping[str, Mapping[str, Tensor]], values: Mapping[str, Any]) -> Contents:
    """Size and content of each file. Tensors are copied from their device as they are written: that waits for it."""
    files: Contents = {f"{stem}.safetensors": tensorfile.parts(group) for stem, group in tensors.items()}
    state = to_json(values)
    if len(state) > _STATE_LIMIT:
        raise OSError(f"{_STATE} would have {len(state)} bytes, and {_STATE_LIMIT} are the most")
    files[_STATE] = len(state), [state]
    assert _REQUIRED <= set(files) <= _FILES, files.keys()
    return files


def _refuse_a_full_disk(folder: Path, needed: int) -> None:
    """Before anything is written, since a disk that is filled to the brim is a trouble to everybody on it."""
    free = disk.free(folder)
    if free < needed:
        raise OSError(
            f"it needs {needed / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are free: make room, then resume; "
            "checkpoint.keep=1 needs the least"
        )


def _fill(temporary: Path, step: int, files: Contents) -> None:
    disk.remove_tree(temporary)  # left by a process of the same number
    disk.make_folder(temporary)
    sums = {name: list(disk.write_new(temporary / name, parts, size)) for name, (size, parts) in files.items()}
    manifest = to_json({"format": FORMAT, "step": step, "files": sums})
    assert len(manifest) <= _MANIFEST_LIMIT
    disk.write_new(temporary / _MANIFEST, [manifest])
    disk.sync_folder(temporary)  # files without names are lost


def _commit(temporary: Path, target: Path) -> None:
    """The rename that makes it the checkpoint. Order: content on the disk, rename, the rename on the disk."""
    aside = _replaced(target)
    replaces = os.path.lexists(target)  # the same step saved twice, or a run resumed from further back
    if replaces:
        disk.remove_tree(aside)
        disk.rename(target, aside)  # killed here: `retention.sweep` puts it back
    try:
        disk.rename(temporary, target)
    except OSError:
        if replaces:
            disk.rename(aside, target)
        raise
    disk.sync_folder(target.parent)  # only now is it there for good


def _replaced(target: Path) -> Path:
    return target.with_name(REPLACED + target.name)


@contextmanager
def _storage_errors(folder: Path, step: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = disk.reason(error) if os.path.isdir(folder) else "the folder is gone, or is none"
        raise StorageError(
            f"the checkpoint of step {step} could not be written to '{folder}' ({why}). "
            "Earlier checkpoints are as they were."
        ) from error


def to_json(value: Mapping[str, Any]) -> bytes:
    """ValueError for NaN and infinities, which JSON has not."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


# Reading.


def newest(folder: Path) -> tuple[Saved | None, list[str]]:
    """`(the newest valid checkpoint, why each newer one was rejected)`; None when there are none.

    CheckpointError when there are some and none is valid: starting again from nothing would hide the loss.
    """
    rejected: list[str] = []
    for step in reversed(steps(folder)):
        try:
            return read(at(folder, step)), rejected
        except CheckpointError as error:
            rejected.append(str(error))
    if rejected:
        raise CheckpointError("no checkpoint is valid, and none was touched:\n  " + "\n  ".join(rejected))
    return None, rejected


def read(path: Path) -> Saved:
    """A checkpoint, verified as a whole. CheckpointError says which file is not what the manifest says."""
    with _reading(path):
        found = disk.names(path, len(_FILES) + 1)  # it is a folder, and no link to one
    step, listed = _manifest(path)
    _refuse_other_files(path, set(found), {*listed, _MANIFEST})
    tensor_files = sorted(set(listed) - {_STATE})
    for name, (size, _) in listed.items():  # all that is cheap before the first hash
        with _reading(path / name):
            _insist((found_size := disk.size(path / name)) == size, f"{found_size} bytes instead of {size}")
            if name != _STATE:
                tensorfile.header_length(path / name)
    for name in tensor_files:
        with _reading(path / name):
            _insist(disk.hashed(path / name) == listed[name][1], _OTHER_CONTENT)
    with _reading(path / _STATE):
        content = disk.read(path / _STATE, _STATE_LIMIT)
        _insist(hashlib.sha256(content).hexdigest() == listed[_STATE][1], _OTHER_CONTENT)
        values = object_of(content)
    tensors = {name.removesuffix(".safetensors"): tensorfile.opened(path / name) for name in tensor_files}
    return Saved(path, step, tensors, values)


def numbers(folder: Path, step: int) -> dict[str, Any]:
    """What state.json says, without verifying the checkpoint."""
    path = at(folder, step) / _STATE
    with _reading(path):
        return object_of(disk.read(path, _STATE_LIMIT))


def _manifest(path: Path) -> tuple[int, dict[str, tuple[int, str]]]:
    """`(the step, size and hash of each file)`. Names are a checkpoint's own, so none leads out of its folder."""
    with _reading(path / _MANIFEST):
        manifest = object_of(disk.read(path / _MANIFEST, _MANIFEST_LIMIT))
    _refuse_another_format(path, manifest.get("format"))
    with _reading(path / _MANIFEST):
        step: Any = manifest.get("step")
        files: Any = manifest.get("files")
        _insist(type(step) is int and path.name == at(path.parent, step).name, f"it is of step {step}")
        _insist(isinstance(files, dict), "it lists no files")
        listed = ", ".join(sorted(files))
        _insist(_REQUIRED <= set(files) <= _FILES, f"it lists {listed}, not the files of a checkpoint")
        for name, said in files.items():
            match said:
                case [int(size), str(digest)] if type(size) is int and size >= 0 and _HASH.fullmatch(digest):
                    pass
                case _:
                    raise ValueError(f"it gives no size and SHA-256 of {name}")
    return step, {name: (size, digest) for name, (size, digest) in files.items()}


def _refuse_another_format(path: Path, found: Any) -> None:
    if type(found) is int and found == FORMAT:
        return
    older = type(found) is int and found < FORMAT
    what = "Finish this run with" if older else "Read it with"
    raise CheckpointError(
        f"{path}: format {cut(found)}, and this gradstep reads {FORMAT}. {what} the gradstep that wrote it (its "
        "version is in the run's environment.json), or begin a new run."
    )


def _refuse_other_files(path: Path, found: set[str], listed: set[str]) -> None:
    for name in sorted(found - listed):
        raise CheckpointError(f"{path}: holds '{cut(name)}', which its {_MANIFEST} does not list.")
    for name in sorted(listed - found):
        raise CheckpointError(f"{path / name}: is missing.")


def _insist(as_it_should: bool, otherwise: str) -> None:
    if not as_it_should:
        raise ValueError(otherwise)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what went wrong into a CheckpointError that names the file. What strangers wrote is cut and escaped."""
    try:
        yield
    except (OSError, ValueError) as error:
        why = disk.reason(error) if isinstance(error, OSError) else error
        raise CheckpointError(f"{path}: can't be read ({cut(why)}).") from error
