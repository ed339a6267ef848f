"""One file from the first of several addresses that gives it: resumed, checked, and whole or not there at all.

Built on urllib, because a library such as pooch neither resumes nor goes on to a mirror. What has come lies in
`<file>.part`; only when its SHA-256 is right does it get its name.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import os
import re
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast
from urllib.error import HTTPError, URLError

from gradstep.errors import DataError, OutputError, StorageError

TIMEOUT = 30.0  # seconds without a sign of life, for connecting and for each read
ATTEMPTS = 10  # connections to one mirror for one file, each but the last cut off after it brought something
_CHUNK = 1 << 18
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")

Progress = Callable[[int, int | None], None]


def fetch(urls: Sequence[str], to: Path, sha256: str, *, size: int | None, progress: Progress | None = None) -> None:
    """Puts the file with this hash at `to`, from the first of `urls` that gives it.

    Goes on from what an earlier call left behind, and over a connection that was cut. `size` guards the disk: not more
    than one byte beyond it is taken. `progress` hears `(bytes so far, bytes in all or None)`. DataError says what each
    mirror said.
    """
    tell = progress if progress is not None else (lambda _done, _total: None)
    said: list[str] = []
    with Part(to) as part:
        if size is not None and part.size >= size and part.sha256() != sha256:
            part.clear()
        if part.size and part.size == size:
            part.finish()
            return
        for url in urls:
            try:
                _from_mirror(url, part, sha256, size, tell)
            except _Refused as refused:
                said.append(f"{url}: {' '.join(str(refused).split())}")
            else:
                part.finish()
                return
        kept = f"\nThe {part.size:,} bytes that came are kept; the next call goes on from there." if part.size else ""
    raise DataError(
        f"'{to.name}' could not be downloaded:\n  " + "\n  ".join(said) + kept + f"\nBy hand: put it into {to.parent}"
    )


class Part:
    """`<to>.part`, held by this process alone: where a file grows until `finish` gives it its name.

    Left where it is when something goes wrong, unless it is empty, so that the next call can go on from there.
    """

    def __init__(self, to: Path) -> None:
        self.to, self.path = to, to.with_name(f"{to.name}.part")
        self.inherited = False  # whether it has bytes from before the present mirror was asked
        self._finished = False
        try:
            to.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._locked()
        except BlockingIOError as error:
            raise OutputError(f"'{to}' is being fetched by another process. Wait for it, or stop it.") from error
        except OSError as error:
            raise OutputError(
                f"'{to.parent}' can't be written to ({error.strerror}). Point GRADSTEP_DATA at a folder that can."
            ) from error
        self.size = os.fstat(self._file.fileno()).st_size

    def __enter__(self) -> Part:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()

    def write(self, chunk: bytes) -> None:
        """Appends, unbuffered, so that a kill loses nothing that was counted."""
        left = memoryview(chunk)
        with self._storage():
            while left:
                written = self._file.write(left)
                left = left[written:]
                self.size += written

    def fill(self, content: IO[bytes], limit: int | None = None) -> None:
        """All of `content`, or its first `limit` bytes, in place of what there is."""
        self.clear()
        while chunk := content.read(_CHUNK if limit is None else min(_CHUNK, limit - self.size)):
            self.write(chunk)

    def clear(self) -> None:
        """Back to nothing, still held."""
        with self._storage():
            self._file.truncate(0)
        self.size, self.inherited = 0, False

    def sha256(self) -> str:
        """The hash of all that is in it."""
        with self._storage():
            self._file.seek(0)  # writes go to the end all the same: the file is open for appending
            return hashlib.file_digest(cast(Any, self._file), "sha256").hexdigest()

    def finish(self) -> None:
        """Forces it to the disk and gives it its name, over whatever has that name."""
        with self._storage():
            os.fsync(self._file.fileno())
            os.replace(self.path, self.to)
            self._finished = True
            folder = os.open(self.to.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def discard(self) -> None:
        """For what can be had again at no cost: takes it away, unless it is finished."""
        if not self._finished:
            with contextlib.suppress(StorageError):
                self.clear()
        self._close()

    def _locked(self) -> FileIO:
        while True:
            file = self.path.open("a+b", buffering=0)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Who held the lock may just have renamed the file: then this locks the finished one, not the part.
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(file.fileno()), os.stat(self.path)):
                        return file
            except BaseException:
                file.close()
                raise
            file.close()

    @contextlib.contextmanager
    def _storage(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"'{self.path}' could not be written ({error.strerror or error}). "
                "When that is put right, type the same again."
            ) from error

    def _close(self) -> None:
        if self.size == 0 and not self._finished:
            with contextlib.suppress(OSError):
                self.path.unlink()  # while the lock is still held
        self._file.close()


class _Refused(Exception):  # noqa: N818 - not an error yet: there are more mirrors
    """Why this mirror can't give the file."""


class _Cut(Exception):  # noqa: N818
    """The connection ended too early; the same mirror may go on from there."""


def _from_mirror(url: str, part: Part, sha256: str, size: int | None, tell: Progress) -> None:
    """Returns when the file is whole and right."""
    part.inherited = part.size > 0
    for attempt in range(1, ATTEMPTS + 1):
        before = part.size
        try:
            _receive(url, part, size, tell)
        except _Cut as cut:
            if part.size <= before or attempt == ATTEMPTS:
                raise _Refused(str(cut)) from cut
            continue
        found, inherited = part.sha256(), part.inherited
        if found == sha256:
            return
        part.clear()
        # Where the beginning came from elsewhere, that may have been what was wrong: this mirror gets one clean chance.
        if not inherited or attempt == ATTEMPTS:
            raise _Refused(f"the SHA-256 of '{part.to.name}' is {found} instead of {sha256}")


def _receive(url: str, part: Part, size: int | None, tell: Progress) -> None:
    """One request for what is missing. Returns at the end of what the server has, right or wrong."""
    response = _open(url, part.size)
    if response is None:
        return
    with response:
        start, total = _extent(response)
        if size is not None and total not in (None, size):
            raise _Refused(f"has {total:,} bytes instead of {size:,}")
        if start in (0, part.size):
            if start == 0:
                part.clear()  # a server without ranges sends everything
            _append(response, part, size, total if size is None else size, tell)
            return
    if not part.size:
        raise _Refused("sends a piece of the file when asked for the whole")
    part.clear()  # so that it is asked for the whole
    _receive(url, part, size, tell)


def _open(url: str, start: int) -> http.client.HTTPResponse | None:
    """The answer to a request for all from byte `start`; None when the server says that nothing follows it."""
    if not url.lower().startswith(("http://", "https://")):
        raise _Refused("is neither an http nor an https address")
    headers = {"User-Agent": "gradstep"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        response = _opener().open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code == 416 and start:
            return None
        raise _Refused(f"{error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _Refused(_reason(error)) from error
    if response.status not in (200, 206):
        response.close()
        raise _Refused(f"{response.status} {response.reason}")
    return cast(http.client.HTTPResponse, response)


def _opener() -> urllib.request.OpenerDirector:
    """Not urllib's default, which follows a redirect to ftp: this one knows nothing but http and https."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener


def _extent(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """`(where the body starts, the size of the whole file)`; -1 when a partial answer does not say where."""
    if response.status == 200:
        return 0, response.length
    found = _RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    if found is None:
        return -1, None
    return int(found[1]), None if found[2] == "*" else int(found[2])


def _append(
    response: http.client.HTTPResponse, part: Part, size: int | None, total: int | None, tell: Progress
) -> None:
    tell(part.size, total)
    while True:
        try:
            # read1 hands over what is there, so that a slow server's bytes are kept as they come.
            chunk = response.read1(_CHUNK if size is None else min(_CHUNK, size + 1 - part.size))
        except (OSError, http.client.HTTPException) as error:
            raise _Cut(f"stopped after {part.size:,} bytes ({_reason(error)})") from error
        if not chunk:
            break
        part.write(chunk)
        if size is not None and part.size > size:
            part.clear()
            raise _Refused(f"sends more than the {size:,} bytes of the file")
        tell(part.size, total)
    if total is not None and part.size < total:
        raise _Cut(f"stopped after {part.size:,} of {total:,} bytes")


def _reason(error: BaseException) -> str:
    cause = error.reason if isinstance(error, URLError) else error
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return str(cause) or type(cause).__name__
