"""How the named data sets get into the data folder. Only ever on request."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import tarfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from gradstep.data.download import Part, fetch
from gradstep.data.mirrors import SETS, File, Member, RemoteSet
from gradstep.data.places import data_folder
from gradstep.errors import DataError, OutputError, RecipeError, nearest

_SMALL = 1 << 20  # bytes: what a member of no stated size may have
_SUMS = "SHA256SUMS"  # of an archive's members, as `sha256sum --check` reads it


@dataclass(frozen=True)
class _Task:
    """One call of `get`: the set, its folder, and what is told to whom."""

    name: str
    wanted: RemoteSet
    place: Path
    source: str | None
    progress: Callable[[str, int, int | None], None]
    say: Callable[[str, str], None]

    @property
    def local(self) -> Path | None:
        """The folder or file that `source` names, if it names one."""
        return None if self.source is None or "://" in self.source else Path(self.source).expanduser()


def get(
    name: str,
    source: str | None = None,
    *,
    folder: Path | None = None,
    progress: Callable[[str, int, int | None], None] = lambda *_: None,
    say: Callable[[str, str], None] = lambda *_: None,
    sets: Mapping[str, RemoteSet] = SETS,
) -> list[Path]:
    """Puts the files of the data set `name` into `folder/name` and returns them.

    `folder` is data_folder() unless given. They come from `source`: a folder or an archive, copied and never moved, or
    an http(s) address; else from the official addresses. What is there and right is left alone. `progress` hears
    `(file, bytes so far, bytes in all or None)`, `say` a word and what it is about: `there`, `fetched`, `copied`,
    `unpacked`, `aside`.
    """
    if name == "digits":
        raise RecipeError("'digits' needs no download: it comes with scikit-learn. Type: gradstep train digits")
    if name not in sets:
        raise RecipeError(f"'{name}' can't be fetched. Known: {', '.join(sets)}.{nearest(name, [*sets, 'digits'])}")
    if source is not None and "://" in source and not source.lower().startswith(("http://", "https://")):
        raise RecipeError(
            f"--from: '{source}' is no folder, no file and no address that starts with http:// or https://."
        )
    place = (folder or data_folder()) / name
    task = _Task(name, sets[name], place, source, progress, say)
    if task.local is not None and not os.path.exists(task.local):
        raise DataError(f"--from: '{source}' is not there. It takes a folder, an archive or an address.")
    return _members(task) if task.wanted.members else _files(task)


# Sets of files


def _files(task: _Task) -> list[Path]:
    there = {file: _there(task, file) for file in task.wanted.files}
    missing = [file for file, path in there.items() if path is None]
    if missing and task.local is not None:
        there |= _copied(task, task.local, missing)
    elif missing:
        for file in missing:
            there[file] = _fetched(task, file)
    paths = [path for path in there.values() if path is not None]
    for file, path in there.items():
        unpacked = task.place / file.name.removesuffix(".gz")
        if path is not None and path != unpacked and unpacked.exists():
            _set_aside(task, unpacked)  # readers take the unpacked one first, and it is not the right one
    return paths


def _forms(folder: Path, file: File) -> list[Path]:
    """The places of a file in a folder, unpacked first, as readers look."""
    names = dict.fromkeys((file.name.removesuffix(".gz"), file.name))
    return [path for path in (folder / name for name in names) if os.path.isfile(path)]


def _there(task: _Task, file: File) -> Path | None:
    for path in _forms(task.place, file):
        if path.name != file.name and file.unpacked is None:
            task.say("there", f"{path.name} (unpacked, so its SHA-256 is not known)")
            return path
        if _fault(path, path.name, file) is None:
            task.say("there", path.name)
            return path
    return None


def _fault(path: Path, name: str, file: File) -> str | None:
    """What is wrong with the content of `path`, which stands for `name`; None when it is right, packed anew or not."""
    found = _sha256(path)
    if name != file.name:
        if file.unpacked is None:
            return f"only the SHA-256 of '{file.name}' is known, so it can't be checked unpacked"
        return None if found == file.unpacked else f"SHA-256 {found} instead of {file.unpacked}"
    if found == file.sha256:
        return None
    said = f"SHA-256 {found} instead of {file.sha256}"
    if file.unpacked is None:
        return said
    try:
        with gzip.open(path) as content:
            inside = hashlib.file_digest(cast(Any, content), "sha256").hexdigest()
    except (OSError, EOFError, zlib.error) as error:
        return f"{said}, and it can't be unpacked ({error})"
    return None if inside == file.unpacked else f"{said}; unpacked {inside} instead of {file.unpacked}"


def _fetched(task: _Task, file: File) -> Path:
    path = task.place / file.name
    try:
        fetch(_addresses(task, file), path, file.sha256, size=file.size, progress=partial(task.progress, file.name))
    except DataError as error:
        raise DataError(f"{error}\n{_by_hand(task)}") from error
    task.say("fetched", file.name)
    return path


def _addresses(task: _Task, file: File) -> list[str]:
    if task.source is None:
        return [f"{mirror}{file.name}" for mirror in task.wanted.mirrors]
    base, mark, query = task.source.partition("?")
    if task.wanted.members and base.endswith((".tar.gz", ".tgz")):
        return [task.source]
    return [f"{base.rstrip('/')}/{file.name}{mark}{query}"]


def _by_hand(task: _Task) -> str:
    names = "\n  ".join(file.name for file in task.wanted.files)
    kind = "FILE" if task.wanted.members else "FOLDER"
    return (
        f"'{task.name}' needs, in {task.place}:\n  {names}\n"
        f"From another place: gradstep data get {task.name} --from {kind}"
    )


def _copied(task: _Task, source: Path, missing: list[File]) -> dict[File, Path]:
    """All of them or none: a name is given only when each copy is right."""
    if not source.is_dir():
        raise DataError(f"--from: '{source}' is one file, and '{task.name}' is several. Name the folder that has them.")
    lacking = [file.name for file in missing if not _forms(source, file)]
    if lacking:
        raise DataError(
            f"--from: '{source}' lacks files of '{task.name}', which may be there with .gz or without:\n  "
            + "\n  ".join(lacking)
        )
    parts: dict[File, Part] = {}
    faults: list[str] = []
    with contextlib.ExitStack() as stack:
        for file in missing:
            said = []
            for path in _forms(source, file):
                part = Part(task.place / path.name)
                stack.callback(part.discard)
                try:
                    with path.open("rb") as content:
                        part.fill(content)
                except OSError as error:
                    raise DataError(f"'{path}' can't be read ({error.strerror}).") from error
                fault = _fault(part.path, path.name, file)
                if fault is None:
                    parts[file] = part
                    break
                said.append(f"{path}: {fault}")
            else:
                faults += said
        if faults:
            raise DataError(f"--from: not the files of '{task.name}', and none was copied:\n  " + "\n  ".join(faults))
        for part in parts.values():
            part.finish()
            task.say("copied", part.to.name)
    return {file: part.to for file, part in parts.items()}


def _set_aside(task: _Task, path: Path) -> None:
    try:
        path.replace(path.with_name(f"{path.name}.wrong"))
    except OSError as error:
        raise OutputError(f"'{path}' is not what it should be and can't be renamed ({error.strerror}).") from error
    task.say("aside", f"{path.name} was not what it should be; it is {path.name}.wrong now")


# Sets that are members of an archive


def _members(task: _Task) -> list[Path]:
    paths = [task.place / member.name for member in task.wanted.members]
    if (checked := _members_there(task)) is not None:
        for path in paths:
            task.say("there", path.name + ("" if checked else " (put there by hand, only its size was checked)"))
        return paths
    (file,) = task.wanted.files
    archive = task.place / file.name
    if task.local is not None:
        given = task.local / file.name if task.local.is_dir() else task.local
        if not given.is_file():
            raise DataError(f"--from: '{task.local}' lacks the archive of '{task.name}': {file.name}")
        if (found := _sha256(given)) != file.sha256:
            raise DataError(f"--from: '{given}': SHA-256 {found} instead of {file.sha256}, so it is not '{file.name}'.")
        _unpack(task, given)
    else:
        if not archive.is_file() or _sha256(archive) != file.sha256:  # left by a stop while unpacking, or put there
            _fetched(task, file)
        _unpack(task, archive)
        with contextlib.suppress(OSError):
            archive.unlink()
    return paths


def _members_there(task: _Task) -> bool | None:
    """None: not all there, or wrong. False: right in size. True: also in SHA-256, as it was in the archive."""
    for member in task.wanted.members:
        path = task.place / member.name
        if not path.is_file() or member.size not in (None, path.stat().st_size):
            return None
    sums = task.place / _SUMS
    if not sums.is_file():
        return False
    try:
        lines = sums.read_text().splitlines()
    except (OSError, ValueError):
        return None
    right = {f"{_sha256(task.place / member.name)}  {member.name}" for member in task.wanted.members} <= set(lines)
    return True if right else None


def _unpack(task: _Task, archive: Path) -> None:
    """The wanted members, read one by one and written under names of ours: all or none. Nothing is ever extracted."""
    parts: dict[str, Part] = {}
    with contextlib.ExitStack() as stack:
        try:
            tar = stack.enter_context(tarfile.open(archive, "r|gz"))
            for info in tar:
                member = _accepted(task, info, archive)
                if member is None:
                    continue
                if member.name in parts:
                    raise DataError(f"'{archive}': the member '{info.name}' is there twice.")
                part = parts[member.name] = Part(task.place / member.name)
                stack.callback(part.discard)
                part.fill(cast(IO[bytes], tar.extractfile(info)), limit=info.size)
                if part.size != info.size:
                    raise DataError(f"'{archive}': the member '{info.name}' ends after {part.size:,} bytes.")
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise DataError(f"'{archive}' can't be read as a .tar.gz ({error}).") from error
        absent = [member.path for member in task.wanted.members if member.name not in parts]
        if absent:
            raise DataError(f"'{archive}' lacks members:\n  " + "\n  ".join(absent))
        sums = Part(task.place / _SUMS)
        stack.callback(sums.discard)
        sums.fill(io.BytesIO("".join(f"{part.sha256()}  {name}\n" for name, part in parts.items()).encode()))
        for part in (sums, *parts.values()):  # the sums first, so that a stop in between is seen by the next call
            part.finish()
    task.say("unpacked", ", ".join(parts))


def _accepted(task: _Task, info: tarfile.TarInfo, archive: Path) -> Member | None:
    """The wanted member that an entry is, or None for a harmless other one. What is neither is an error."""
    path = PurePosixPath(info.name)
    where = f"'{archive}': the member '{info.name}'"
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{where} points out of the archive. Nothing was unpacked.")
    if info.isdir():
        return None
    if not info.isreg():
        raise DataError(f"{where} is a link or a device, not a file. Nothing was unpacked.")
    member = next((each for each in task.wanted.members if each.path == str(path)), None)
    exact = member.size if member is not None else None
    if (info.size != exact) if exact is not None else not 0 <= info.size <= _SMALL:
        should = f"{exact:,}" if exact is not None else f"at most {_SMALL:,}"
        raise DataError(f"{where} has {info.size:,} bytes instead of {should}. Nothing was unpacked.")
    return member


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"'{path}' can't be read ({error.strerror or os.strerror(error.errno or 0)}).") from error
