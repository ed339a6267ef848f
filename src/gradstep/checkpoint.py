"""Checkpoints: written whole or not at all, and believed only while their hashes hold.

    checkpoints/step-00001234/   model.safetensors  optimizer.safetensors  state.json  MANIFEST.json

Everything is written into a folder beside the target and forced to the disk before one rename makes it the
checkpoint; the rename itself is forced to the disk before anything older is pruned.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from gradstep.errors import CheckpointError, StorageError

FORMAT = 2
_NAME = re.compile(r"step-(\d{8,})")
_FILES = {"model.safetensors", "optimizer.safetensors", "criterion.safetensors", "ema.safetensors", "state.json"}


def write(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], values: Mapping[str, Any]) -> Path:
    """Writes the checkpoint of `step` under `folder` and returns its path; StorageError leaves older ones alone."""
    target = folder / f"step-{step:08d}"
    temporary = folder / f".tmp-{step:08d}-{os.getpid()}"
    shutil.rmtree(_trash(target), ignore_errors=True)
    # Copying to the CPU waits for the device: the one place where saving does.
    files = {f"{name}.safetensors": to_safetensors(group) for name, group in tensors.items()}
    files["state.json"] = to_json(values)
    sums = {name: [len(content), hashlib.sha256(content).hexdigest()] for name, content in files.items()}
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, content in files.items():
            write_durably(temporary / name, content)
        write_durably(temporary / "MANIFEST.json", to_json({"format": FORMAT, "step": step, "files": sums}))
        _sync_folder(temporary)
        if target.exists():  # left by a run that was resumed from further back
            _to_trash(target)
        temporary.rename(target)
        _sync_folder(folder)  # only now is the checkpoint there for good
        shutil.rmtree(_trash(target), ignore_errors=True)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise StorageError(
            f"the checkpoint of step {step} could not be written to '{folder}' ({error.strerror or error}). "
            "Earlier checkpoints are as they were."
        ) from error
    return target


def read(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """`(tensors by file, numbers)` of a checkpoint. CheckpointError says which file is not what the manifest says."""
    files = _verified(path)
    try:
        tensors = {
            name.removesuffix(".safetensors"): safetensors.torch.load(content)
            for name, content in files.items()
            if name.endswith(".safetensors")
        }
        values = json.loads(files["state.json"])
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: can't be read ({error}).") from error
    return tensors, values


def steps(folder: Path) -> list[int]:
    """The steps that have a checkpoint, in order, whether it is valid or not."""
    return sorted(int(found[1]) for path in folder.glob("step-*") if (found := _NAME.fullmatch(path.name)))


def at(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def newest(folder: Path, accept: Callable[[Mapping[str, Any]], bool] = lambda _: True) -> tuple[Path | None, list[str]]:
    """`(the newest valid checkpoint whose numbers are accepted, what was rejected and why)`; None when there are none.

    CheckpointError when there are some and none will do: starting again from nothing would hide the loss.
    """
    rejected: list[str] = []
    for step in reversed(steps(folder)):
        try:
            values = json.loads(_verified(at(folder, step))["state.json"])
        except CheckpointError as error:
            rejected.append(str(error))
        else:
            if accept(values):
                return at(folder, step), rejected
            rejected.append(f"{at(folder, step)}: is within an epoch; this version goes on from an epoch's end.")
    if rejected:
        raise CheckpointError("no checkpoint is valid, and none was touched:\n  " + "\n  ".join(rejected))
    return None, rejected


def numbers(folder: Path, step: int) -> dict[str, Any]:
    """The numbers of a checkpoint, unverified."""
    found: dict[str, Any] = json.loads((at(folder, step) / "state.json").read_bytes())
    return found


def sweep(folder: Path) -> None:
    """Removes what killed processes left half done. Only for who has the run to himself."""
    for left in (*folder.glob(".tmp-*"), *folder.glob(".trash-*")):
        shutil.rmtree(left, ignore_errors=True)


def prune(folder: Path, keep: int, protected: Iterable[int | None]) -> None:
    """Removes all but the newest `keep` and the protected ones. Called only after a newer one is there for good."""
    spared = {*steps(folder)[-keep:], *protected}
    for step in steps(folder):
        if step not in spared:
            _to_trash(at(folder, step))  # first out of sight, so that a kill leaves no half checkpoint
            shutil.rmtree(_trash(at(folder, step)), ignore_errors=True)


def set_aside(folder: Path, after: int) -> None:
    """Takes checkpoints later than `after` out of the count, because the run goes on from there."""
    for step in steps(folder):
        if step > after:
            beside = folder / f".abandoned-{step:08d}"
            shutil.rmtree(beside, ignore_errors=True)
            at(folder, step).rename(beside)


def _trash(checkpoint: Path) -> Path:
    return checkpoint.with_name(f".trash-{checkpoint.name}-{os.getpid()}")


def _to_trash(checkpoint: Path) -> None:
    shutil.rmtree(_trash(checkpoint), ignore_errors=True)
    checkpoint.rename(_trash(checkpoint))


def write_durably(path: Path, content: bytes) -> None:
    """Writes a new file and waits until the disk has it."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_durably(path: Path, content: bytes) -> None:
    """The same over a file that may be there: it is the old one or the new one at every instant."""
    beside = path.with_name(f".{path.name}-{os.getpid()}")
    beside.unlink(missing_ok=True)
    try:
        write_durably(beside, content)
        beside.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise StorageError(f"'{path}' could not be written ({error.strerror or error}).") from error


def to_safetensors(tensors: Mapping[str, Tensor], header: dict[str, str] | None = None) -> bytes:
    """Copies, because safetensors refuses tensors that share memory, as views of one buffer do."""
    copies = {name: value.cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    content: bytes = safetensors.torch.save(copies, metadata=header)
    return content


def to_json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def _verified(path: Path) -> dict[str, bytes]:
    """The files of a checkpoint, each of the size and hash that its manifest gives."""
    try:
        manifest = json.loads((path / "MANIFEST.json").read_bytes())
        listed: dict[str, tuple[int, str]] = {
            name: (size, digest) for name, (size, digest) in manifest["files"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: its MANIFEST.json can't be read ({error}).") from error
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path}: format {manifest.get('format')}, and this gradstep reads {FORMAT}.")
    if path.name != f"step-{manifest.get('step')!s:0>8}":
        raise CheckpointError(f"{path}: its MANIFEST.json is of step {manifest.get('step')}.")
    if not {"model.safetensors", "optimizer.safetensors", "state.json"} <= set(listed) <= _FILES:
        raise CheckpointError(f"{path}: its manifest lists {', '.join(listed)}, not the files of a checkpoint.")
    files = {}
    for name, (size, digest) in listed.items():
        try:
            if (path / name).stat().st_size != size:
                raise CheckpointError(f"{path / name}: {(path / name).stat().st_size} bytes instead of {size}.")
            files[name] = (path / name).read_bytes()
        except OSError as error:
            raise CheckpointError(f"{path / name}: can't be read ({error.strerror}).") from error
        if hashlib.sha256(files[name]).hexdigest() != digest:
            raise CheckpointError(f"{path / name}: its content does not match its SHA-256.")
    return files


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
