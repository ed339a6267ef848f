"""Every file operation of a run: durable where it writes, bounded where it reads.

All of them are calls of `os.NAME` on this module's own `os`, so that a test can put a recording or failing stand-in
there and see, or break, every single one. A write that returns is on the disk, as far as the disk can be believed.

An fsync that failed is never tried again: the kernel may have dropped the pages and would report success the second
time. Such a file is dead, and what was to be in it must be written anew from memory.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from gradstep.errors import StorageError

Buffer = bytes | bytearray | memoryview

_PIECE = 8 * 1024 * 1024  # what is written, read or hashed at once
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_LOG = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
# A link is not followed, and opening a FIFO that nobody writes to does not wait for ever.
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


# Writing.


def make_folder(path: Path) -> None:
    """Makes one level: a run's folder that has vanished must not be made anew by who writes into it."""
    os.mkdir(path)


def create(path: Path) -> int:
    """Makes a file that must not be there yet, to be written by `write_all`. Its descriptor."""
    return os.open(path, _NEW, 0o666)


def write_new(path: Path, parts: Iterable[Buffer], size: int | None = None) -> tuple[int, str]:
    """Writes a file that must not be there yet, and waits until the disk has it: `(bytes, SHA-256)`.

    With `size` the room is claimed first, so that a full disk is found out before anything is written.
    """
    descriptor = create(path)
    try:
        written = _write_parts(descriptor, parts, size)
        os.fsync(descriptor)  # waits for the disk
    except BaseException:
        with suppress(OSError):
            os.close(descriptor)
        raise
    os.close(descriptor)  # outside of `try`: its error is an error of writing, and a second close would be a mistake
    return written


def replace(path: Path, content: bytes) -> None:
    """Writes a file over one that may be there: it is the old one or the new one at every instant."""
    replace_parts(path, [content], len(content))


def replace_parts(path: Path, parts: Iterable[Buffer], size: int) -> None:
    """The same from parts that need not be in memory together. StorageError leaves the old file as it was."""
    beside = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        remove(beside)  # left by a process of the same number
        write_new(beside, parts, size)
        os.replace(beside, path)  # not before the content is on the disk
        sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            remove(beside)
        if isinstance(error, OSError):
            raise StorageError(f"'{path}' could not be written ({reason(error)}).") from error
        raise


def sync_folder(path: Path) -> None:
    """Waits until the disk has the folder's entries: files made, renamed and removed in it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(old: Path, new: Path) -> None:
    """At every instant one of the two is there. For good only after `sync_folder` of the parent."""
    os.rename(old, new)


def remove(path: Path) -> None:
    """Removes a file, or a link and not what it points at. One that is not there is no error."""
    with suppress(FileNotFoundError):
        os.unlink(path)


def remove_tree(path: Path) -> None:
    """Removes a folder and all that is in it. Links are removed, never followed."""
    with suppress(FileNotFoundError):
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            os.unlink(path)
            return
        for name in os.listdir(path):
            remove_tree(path / name)
        os.rmdir(path)


def log_open(path: Path, keep: int) -> int:
    """Opens a log for appending behind its first `keep` bytes; what came after them is cut off. Its descriptor.

    OSError when the log has fewer: something is missing that was there for good.
    """
    descriptor = os.open(path, _LOG, 0o666)
    try:
        _cut_back(descriptor, keep)
        sync_folder(path.parent)  # the file may be new, or made by a process that was killed before this
    except BaseException:
        with suppress(OSError):
            os.close(descriptor)
        raise
    return descriptor


def write_all(descriptor: int, data: Buffer) -> None:
    """A write may take less than it is given; this one goes on until all is taken."""
    left = _flat(data)
    while left:
        left = left[os.write(descriptor, left) :]


def sync(descriptor: int) -> None:
    """Waits until the disk has the file's content. Not to be tried again when it fails."""
    os.fsync(descriptor)


def close(descriptor: int) -> None:
    os.close(descriptor)


# Reading. What is read may have been put there by anybody.


def read(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes; anything else is an OSError before it is read."""
    descriptor, size = _opened(path)
    try:
        if size > limit:
            raise OSError(errno.EFBIG, f"it has {size} bytes and may have {limit} at most", str(path))
        return b"".join(_read_pieces(descriptor, size))
    finally:
        os.close(descriptor)


def beginning(path: Path, length: int) -> tuple[bytes, int]:
    """`(the first bytes of a regular file, at most `length`; how many it has in all)`."""
    descriptor, size = _opened(path)
    try:
        return b"".join(_read_pieces(descriptor, min(size, length))), size
    finally:
        os.close(descriptor)


def size(path: Path) -> int:
    """The bytes of a regular file."""
    return beginning(path, 0)[1]


def hashed(path: Path) -> str:
    """The SHA-256 of a regular file, read in pieces."""
    digest = hashlib.sha256()
    for piece in pieces(path):
        digest.update(piece)
    return digest.hexdigest()


def pieces(path: Path) -> Iterator[bytes]:
    """The content of a regular file, so much at once as memory always has."""
    descriptor, size = _opened(path)
    try:
        yield from _read_pieces(descriptor, size)
    finally:
        os.close(descriptor)


def names(folder: Path, limit: int) -> list[str]:
    """What is in a folder, which must be one and no link to one; OSError when there are more than `limit`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found: list[str] = []
        with os.scandir(descriptor) as entries:
            for entry in entries:
                if len(found) == limit:
                    raise OSError(errno.EIO, f"there are more than {limit} files in it", str(folder))
                found.append(entry.name)
        return sorted(found)
    finally:
        os.close(descriptor)


def free(path: Path) -> int:
    """Bytes that an ordinary user can still write there."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def reason(error: OSError) -> str:
    """Why, without the number and the path that `str` would add."""
    return error.strerror or str(error)


# Inside.


def _write_parts(descriptor: int, parts: Iterable[Buffer], size: int | None) -> tuple[int, str]:
    if size is not None:
        _claim(descriptor, size)
    digest, written = hashlib.sha256(), 0
    for piece in _pieces(parts):
        write_all(descriptor, piece)
        digest.update(piece)
        written += len(piece)
    if size is not None and written != size:
        raise OSError(errno.EIO, f"{written} bytes came and {size} were announced")
    return written, digest.hexdigest()


def _cut_back(descriptor: int, keep: int) -> None:
    size = os.fstat(descriptor).st_size
    if size < keep:
        raise OSError(errno.ENODATA, f"it has {size} bytes and must have {keep} or more")
    if size > keep:
        os.ftruncate(descriptor, keep)
        os.fsync(descriptor)  # before anything is appended: else old rows may come back behind new ones


def _claim(descriptor: int, size: int) -> None:
    claim = getattr(os, "posix_fallocate", None)  # macOS has none
    if claim is None:
        return
    try:
        claim(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # some file systems can't, and need not
            raise


def _pieces(parts: Iterable[Buffer]) -> Iterator[memoryview]:
    for part in parts:
        whole = _flat(part)
        for start in range(0, len(whole), _PIECE):
            yield whole[start : start + _PIECE]


def _flat(data: Buffer) -> memoryview:
    view = memoryview(data)
    return view.cast("B") if view.nbytes else memoryview(b"")  # Python casts nothing that is empty


def _opened(path: Path) -> tuple[int, int]:
    """`(descriptor, size)` of a regular file; its kind is asked of the open file, so that nobody can swap it."""
    try:
        descriptor = os.open(path, _READ)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link; a socket
            raise OSError(error.errno, "it is no regular file", str(path)) from error
        raise
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return descriptor, found.st_size


def _read_pieces(descriptor: int, size: int) -> Iterator[bytes]:
    """`size` bytes; OSError when the file has become shorter meanwhile."""
    while size > 0:
        piece = os.read(descriptor, min(size, _PIECE))
        if not piece:
            raise OSError(errno.EIO, "it became shorter while it was read")
        size -= len(piece)
        yield piece
