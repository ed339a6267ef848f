"""Fetching data sets, against a real HTTP server on this machine that can be made to misbehave."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from gradstep.cli import data_get
from gradstep.data import download, load_named
from gradstep.data.download import Part, fetch
from gradstep.data.mirrors import SETS, File, Member, RemoteSet
from gradstep.data.remote import get
from gradstep.errors import DataError, OutputError, RecipeError, StorageError

CONTENT = bytes(range(256)) * 2000  # 512,000 bytes: more than one read
SIZE = len(CONTENT)


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Site:
    """What the server has, how it misbehaves, and what it was asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cuts: dict[str, list[int]] = {}  # how many bytes each answer sends before the connection ends
        self.odd: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}  # paths that answer in a way of their own
        self.ranges = True
        self.asked: list[tuple[str, str | None]] = []
        self.url = ""


@contextlib.contextmanager
def serving() -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.asked.append((self.path, self.headers["Range"]))
            with contextlib.suppress(OSError):  # the client may hang up
                site.odd.get(self.path, answer)(self)

        def log_message(self, *_) -> None:
            pass

    def answer(handler: BaseHTTPRequestHandler) -> None:
        content = site.files.get(handler.path)
        if content is None:
            handler.send_error(404)
            return
        asked = handler.headers["Range"] if site.ranges else None
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if start and start >= len(content):
            handler.send_error(416)
            return
        handler.send_response(206 if asked else 200)
        if asked:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        handler.send_header("Content-Length", str(len(content) - start))
        handler.end_headers()
        cuts = site.cuts.get(handler.path)
        handler.wfile.write(content[start:][: cuts.pop(0) if cuts else None])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as site:
        yield site


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


def head(handler: BaseHTTPRequestHandler, status: int, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


# fetch


def test_a_file_is_fetched_whole(site: Site, tmp_path: Path) -> None:
    site.files["/f"] = CONTENT
    seen: list[tuple[int, int | None]] = []
    fetch([f"{site.url}/f"], tmp_path / "new" / "f", sha(CONTENT), size=SIZE, progress=lambda *at: seen.append(at))
    assert (tmp_path / "new" / "f").read_bytes() == CONTENT
    assert site.asked == [("/f", None)]
    assert seen[0] == (0, SIZE)
    assert seen[-1] == (SIZE, SIZE)
    assert seen == sorted(seen)
    assert left_in(tmp_path / "new") == ["f"]


@pytest.mark.parametrize("size", [SIZE, None])
def test_after_a_cut_only_what_is_missing_is_asked_for(site: Site, tmp_path: Path, size: int | None) -> None:
    site.files["/f"] = CONTENT
    site.cuts["/f"] = [300_000, 100_000]
    fetch([f"{site.url}/f"], tmp_path / "f", sha(CONTENT), size=size)
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert site.asked == [("/f", None), ("/f", "bytes=300000-"), ("/f", "bytes=400000-")]


@settings(max_examples=40)
@given(
    cuts=st.lists(st.integers(0, SIZE), max_size=5),
    stale=st.one_of(st.none(), st.integers(0, SIZE + 9)),
    garbage=st.booleans(),
    ranges=st.booleans(),
    known=st.booleans(),
)
def test_any_cuts_and_any_leftovers_end_in_the_same_bytes(cuts, stale, garbage, ranges, known) -> None:
    with serving() as site, tempfile.TemporaryDirectory() as folder:
        site.ranges, to = ranges, Path(folder) / "f"
        for path in ("/a", "/b"):
            site.files[path] = CONTENT
        site.cuts["/a"] = list(cuts)
        if stale is not None:
            (Path(folder) / "f.part").write_bytes(b"x" * stale if garbage else CONTENT[:stale])
        fetch([f"{site.url}/a", f"{site.url}/b"], to, sha(CONTENT), size=SIZE if known else None)
        assert to.read_bytes() == CONTENT
        assert left_in(Path(folder)) == ["f"]


def test_a_mirror_that_only_ever_cuts_is_left_and_what_it_gave_is_kept(site: Site, tmp_path: Path) -> None:
    site.files["/a"] = site.files["/b"] = CONTENT
    site.cuts["/a"] = [1000] * 100
    fetch([f"{site.url}/a", f"{site.url}/b"], tmp_path / "f", sha(CONTENT), size=SIZE)
    assert len(site.asked) == download.ATTEMPTS + 1
    assert site.asked[-1] == ("/b", f"bytes={1000 * download.ATTEMPTS}-")


def test_a_mirror_that_brings_nothing_is_asked_once(site: Site, tmp_path: Path) -> None:
    site.files["/a"] = CONTENT
    site.cuts["/a"] = [0] * 100
    with pytest.raises(DataError, match="stopped after 0 of 512,000 bytes"):
        fetch([f"{site.url}/a"], tmp_path / "f", sha(CONTENT), size=SIZE)
    assert len(site.asked) == 1
    assert left_in(tmp_path) == []


def test_a_killed_process_s_bytes_are_not_asked_for_again(site: Site, tmp_path: Path) -> None:
    half, go = SIZE // 2, threading.Event()

    def stalls(handler: BaseHTTPRequestHandler) -> None:
        head(handler, 200, Content_Length=str(SIZE))
        handler.wfile.write(CONTENT[:half])
        go.wait(60)

    site.odd["/f"] = stalls
    code = (
        "import sys; from pathlib import Path; from gradstep.data.download import fetch; "
        "fetch([sys.argv[1]], Path(sys.argv[2]), sys.argv[3], size=int(sys.argv[4]))"
    )
    child = subprocess.Popen([sys.executable, "-c", code, f"{site.url}/f", tmp_path / "f", sha(CONTENT), str(SIZE)])
    try:
        part, until = tmp_path / "f.part", time.monotonic() + 60
        while not (part.exists() and part.stat().st_size == half):
            assert child.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        with pytest.raises(OutputError, match="another process"):
            fetch([f"{site.url}/f"], tmp_path / "f", sha(CONTENT), size=SIZE)
        assert len(site.asked) == 1  # the second one did not even ask
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        go.set()
    assert left_in(tmp_path) == ["f.part"]
    del site.odd["/f"]
    site.files["/f"] = CONTENT
    fetch([f"{site.url}/f"], tmp_path / "f", sha(CONTENT), size=SIZE)
    assert site.asked[1:] == [("/f", f"bytes={half}-")]
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert left_in(tmp_path) == ["f"]


def test_ctrl_c_leaves_what_came(site: Site, tmp_path: Path) -> None:
    site.files["/f"] = CONTENT

    def stop(done: int, _total: int | None) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch([f"{site.url}/f"], tmp_path / "f", sha(CONTENT), size=SIZE, progress=stop)
    came = (tmp_path / "f.part").stat().st_size
    assert came > 0
    fetch([f"{site.url}/f"], tmp_path / "f", sha(CONTENT), size=SIZE)
    if came < SIZE:
        assert site.asked[1:] == [("/f", f"bytes={came}-")]
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_the_lock_is_on_the_part_and_not_on_what_it_became(tmp_path: Path) -> None:
    with Part(tmp_path / "f") as first:
        first.write(b"right")
        with pytest.raises(OutputError, match="another process"):
            Part(tmp_path / "f")
        first.finish()
        with Part(tmp_path / "f") as second:
            assert second.size == 0
            second.write(b"other")
    assert (tmp_path / "f").read_bytes() == b"right"


def test_a_file_finished_while_another_opens_it_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f.part").write_bytes(b"right")
    lock = download.fcntl.flock

    def late(file, how: int) -> None:
        if (tmp_path / "f.part").read_bytes():  # between our opening and our locking, its owner gives it its name
            (tmp_path / "f.part").rename(tmp_path / "f")
        lock(file, how)

    monkeypatch.setattr(download.fcntl, "flock", late)
    with Part(tmp_path / "f") as part:
        assert part.size == 0
        part.write(b"other")
    assert (tmp_path / "f").read_bytes() == b"right"


def test_a_whole_part_needs_no_request(site: Site, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(CONTENT)
    fetch([f"{site.url}/f"], tmp_path / "f", sha(CONTENT), size=SIZE)
    assert site.asked == []
    assert (tmp_path / "f").read_bytes() == CONTENT


@pytest.mark.parametrize("part", [CONTENT, b"x" * SIZE, b"x" * 2 * SIZE])
def test_416_means_that_the_part_is_whole_or_wrong(site: Site, tmp_path: Path, part: bytes) -> None:
    site.files["/f"] = CONTENT
    (tmp_path / "f.part").write_bytes(part)
    fetch([f"{site.url}/f"], tmp_path / "f", sha(CONTENT), size=None)
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert site.asked == [("/f", f"bytes={len(part)}-")] + [("/f", None)] * (part != CONTENT)


@pytest.mark.parametrize("content_range", [f"bytes 5-{SIZE - 1}/{SIZE}", "nonsense", None])
def test_206_from_another_place_is_not_appended(site: Site, tmp_path: Path, content_range: str | None) -> None:
    def elsewhere(handler: BaseHTTPRequestHandler) -> None:
        if handler.headers["Range"]:
            head(handler, 206, **({"Content-Range": content_range} if content_range else {}))
            handler.wfile.write(CONTENT[5:])
        else:
            head(handler, 200)
            handler.wfile.write(CONTENT)

    site.odd["/f"] = elsewhere
    (tmp_path / "f.part").write_bytes(CONTENT[:1000])
    fetch([f"{site.url}/f"], tmp_path / "f", sha(CONTENT), size=SIZE)
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert site.asked == [("/f", "bytes=1000-"), ("/f", None)]


def test_206_to_a_request_for_the_whole_is_refused(site: Site, tmp_path: Path) -> None:
    site.odd["/f"] = lambda handler: head(handler, 206, Content_Range=f"bytes 5-{SIZE - 1}/{SIZE}")
    with pytest.raises(DataError, match="a piece of the file when asked for the whole"):
        fetch([f"{site.url}/f"], tmp_path / "f", sha(CONTENT), size=SIZE)
    assert len(site.asked) == 1


def test_a_wrong_checksum_goes_on_to_the_next_mirror(site: Site, tmp_path: Path) -> None:
    site.files["/bad"], site.files["/good"] = b"x" * SIZE, CONTENT
    fetch([f"{site.url}/bad", f"{site.url}/good"], tmp_path / "f", sha(CONTENT), size=SIZE)
    assert site.asked == [("/bad", None), ("/good", None)]  # from the start: the garbage is gone
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_where_all_checksums_are_wrong_nothing_is_left(site: Site, tmp_path: Path) -> None:
    site.files["/a"], site.files["/b"] = b"x" * SIZE, b"y" * SIZE
    with pytest.raises(DataError) as caught:
        fetch([f"{site.url}/a", f"{site.url}/b"], tmp_path / "f", sha(CONTENT), size=SIZE)
    lines = str(caught.value).splitlines()
    assert f"{site.url}/a: the SHA-256 of 'f' is {sha(b'x' * SIZE)} instead of {sha(CONTENT)}" in lines[1]
    assert f"{site.url}/b: the SHA-256 of 'f' is {sha(b'y' * SIZE)} instead of {sha(CONTENT)}" in lines[2]
    assert lines[3] == f"By hand: put it into {tmp_path}"
    assert left_in(tmp_path) == []


def test_a_wrong_beginning_from_elsewhere_is_not_blamed_on_the_mirror(site: Site, tmp_path: Path) -> None:
    site.files["/f"] = CONTENT
    (tmp_path / "f.part").write_bytes(b"x" * 1000)
    fetch([f"{site.url}/f"], tmp_path / "f", sha(CONTENT), size=SIZE)
    assert site.asked == [("/f", "bytes=1000-"), ("/f", None)]
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_server_without_ranges_starts_over(site: Site, tmp_path: Path) -> None:
    site.files["/f"], site.ranges = CONTENT, False
    (tmp_path / "f.part").write_bytes(CONTENT[:1000])
    fetch([f"{site.url}/f"], tmp_path / "f", sha(CONTENT), size=SIZE)
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert site.asked == [("/f", "bytes=1000-")]


def test_redirects_are_followed_with_the_range(site: Site, tmp_path: Path) -> None:
    site.odd["/f"] = lambda handler: head(handler, 302, Location="/elsewhere")
    site.files["/elsewhere"] = CONTENT
    (tmp_path / "f.part").write_bytes(CONTENT[:1000])
    fetch([f"{site.url}/f"], tmp_path / "f", sha(CONTENT), size=SIZE)
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert site.asked[-1] == ("/elsewhere", "bytes=1000-")


@pytest.mark.parametrize("address", ["file://{}", "ftp://127.0.0.1{}", "data:,x"])
def test_no_redirect_leaves_http(site: Site, tmp_path: Path, address: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(CONTENT)
    site.odd["/f"] = lambda handler: head(handler, 302, Location=address.format(secret))
    with pytest.raises(DataError, match=r"not allowed|unknown url type"):
        fetch([f"{site.url}/f"], tmp_path / "f", sha(CONTENT), size=SIZE)
    with pytest.raises(DataError, match="neither an http nor an https address"):
        fetch([address.format(secret)], tmp_path / "f", sha(CONTENT), size=SIZE)
    assert left_in(tmp_path) == ["secret"]


def test_an_endless_redirect_is_one_line(site: Site, tmp_path: Path) -> None:
    site.odd["/f"] = lambda handler: head(handler, 302, Location="/f")
    with pytest.raises(DataError, match="infinite loop") as caught:
        fetch([f"{site.url}/f"], tmp_path / "f", sha(CONTENT), size=SIZE)
    assert len(str(caught.value).splitlines()) == 3


def test_mirrors_are_asked_in_order_and_each_says_why(site: Site, tmp_path: Path) -> None:
    site.odd["/broken"] = lambda handler: handler.send_error(500)
    site.odd["/empty"] = lambda handler: head(handler, 204)
    site.odd["/silly"] = lambda handler: handler.wfile.write(b"what?\r\n\r\n") and None
    site.files["/short"] = CONTENT[:-1]
    refused = f"http://127.0.0.1:{closed_port()}/f"
    paths = ["/none", "/broken", "/empty", "/silly", "/short"]
    urls = [refused, "http://[", *(f"{site.url}{path}" for path in paths)]
    with pytest.raises(DataError) as caught:
        fetch(urls, tmp_path / "f", sha(CONTENT), size=SIZE)
    said = str(caught.value).splitlines()[1:-1]
    assert [line.strip().split(": ")[0] for line in said] == urls
    for line, reason in zip(said, ["refused", "IPv6", "404", "500", "204", "what", "has 511,999"], strict=True):
        assert reason in line
    assert [path for path, _ in site.asked] == paths
    site.files["/good"] = CONTENT
    fetch([*urls, f"{site.url}/good"], tmp_path / "f", sha(CONTENT), size=SIZE)
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_silent_server_is_given_up(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    done = threading.Event()

    def falls_silent(handler: BaseHTTPRequestHandler) -> None:
        head(handler, 200, Content_Length=str(SIZE))
        handler.wfile.write(CONTENT[:1000])
        done.wait(30)

    site.odd["/mute"], site.odd["/fades"] = (lambda handler: done.wait(30) and None), falls_silent
    site.files["/f"] = CONTENT
    fetch([f"{site.url}/{path}" for path in ("mute", "fades", "f")], tmp_path / "f", sha(CONTENT), size=SIZE)
    done.set()
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_an_endless_body_is_stopped(site: Site, tmp_path: Path) -> None:
    def endless(handler: BaseHTTPRequestHandler) -> None:
        head(handler, 200)
        while True:
            handler.wfile.write(CONTENT)

    site.odd["/f"] = endless
    most = 0

    def watch(*_) -> None:
        nonlocal most
        most = max(most, (tmp_path / "f.part").stat().st_size)

    with pytest.raises(DataError, match="sends more than the 512,000 bytes"):
        fetch([f"{site.url}/f"], tmp_path / "f", sha(CONTENT), size=SIZE, progress=watch)
    assert most <= SIZE
    assert left_in(tmp_path) == []


def test_a_full_disk_is_a_storage_error_and_the_rest_comes_later(site: Site, tmp_path: Path) -> None:
    site.files["/f"] = CONTENT
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))  # as near to a full disk as a test gets
    try:
        with pytest.raises(StorageError, match=r"f\.part' could not be written"):
            fetch([f"{site.url}/f"], tmp_path / "f", sha(CONTENT), size=SIZE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "f.part").stat().st_size == 200_000
    fetch([f"{site.url}/f"], tmp_path / "f", sha(CONTENT), size=SIZE)
    assert site.asked[1:] == [("/f", "bytes=200000-")]
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_folder_that_can_t_be_is_an_output_error(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="GRADSTEP_DATA"):
        fetch([f"{site.url}/f"], tmp_path / "file" / "f", sha(CONTENT), size=SIZE)
    assert site.asked == []


# get: sets of files


NAMES = ("one.gz", "two.gz")
INSIDE = {"one.gz": b"one" * 1000, "two.gz": b"two" * 1000}
PACKED = {name: gzip.compress(content, mtime=0) for name, content in INSIDE.items()}


def small(site: Site, unpacked: bool = True) -> dict[str, RemoteSet]:
    files = (File(n, sha(PACKED[n]), len(PACKED[n]), sha(INSIDE[n]) if unpacked else None) for n in NAMES)
    return {"small": RemoteSet((f"{site.url}/first/", f"{site.url}/second/"), tuple(files))}


class Said(list):
    def __call__(self, what: str, about: str) -> None:
        self.append((what, about.split()[0]))


def test_a_set_is_fetched_once(site: Site, tmp_path: Path) -> None:
    site.files |= {f"/second/{name}": content for name, content in PACKED.items()}
    said, seen = Said(), set()
    hear = {"progress": lambda name, *_: seen.add(name), "say": said}
    paths = get("small", folder=tmp_path, sets=small(site), **hear)
    assert paths == [tmp_path / "small" / name for name in NAMES]
    assert [path.read_bytes() for path in paths] == list(PACKED.values())
    assert said == [("fetched", name) for name in NAMES]
    assert seen == set(NAMES)
    asked = len(site.asked)
    said.clear()
    assert get("small", folder=tmp_path, sets=small(site), **hear) == paths
    assert len(site.asked) == asked
    assert said == [("there", name) for name in NAMES]


def test_only_what_is_wrong_is_fetched_again(site: Site, tmp_path: Path) -> None:
    site.files |= {f"/first/{name}": content for name, content in PACKED.items()}
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "one").write_bytes(INSIDE["one.gz"])  # unpacked is right too
    (tmp_path / "small" / "two").write_bytes(b"not two")  # readers would take it before two.gz
    said = Said()
    paths = get("small", folder=tmp_path, sets=small(site), say=said)
    assert [path.name for path in paths] == ["one", "two.gz"]
    assert said == [("there", "one"), ("fetched", "two.gz"), ("aside", "two")]
    assert left_in(tmp_path / "small") == ["one", "two.gz", "two.wrong"]
    assert site.asked == [("/first/two.gz", None)]


def test_unpacked_files_that_can_t_be_checked_are_left_but_not_taken_from_elsewhere(site: Site, tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    for name, content in INSIDE.items():
        (tmp_path / "small" / name.removesuffix(".gz")).write_bytes(content)
    said = Said()
    get("small", folder=tmp_path, sets=small(site, unpacked=False), say=said)
    assert said == [("there", "one"), ("there", "two")]
    with pytest.raises(DataError, match=r"only the SHA-256 of 'one\.gz' is known"):
        get("small", str(tmp_path / "small"), folder=tmp_path / "new", sets=small(site, unpacked=False))
    assert left_in(tmp_path / "new" / "small") == []


def test_offline_says_which_files_to_put_where(tmp_path: Path) -> None:
    offline = f"http://127.0.0.1:{closed_port()}/"
    files = SETS["mnist"].files
    with pytest.raises(DataError) as caught:
        get("mnist", folder=tmp_path, sets={"mnist": RemoteSet((offline, f"{offline}too/"), files)})
    message = str(caught.value)
    for each in (f"{offline}{files[0].name}: Connection refused", f"{offline}too/", str(tmp_path / "mnist")):
        assert each in message
    assert all(file.name in message for file in files)
    assert "gradstep data get mnist --from FOLDER" in message


@pytest.mark.parametrize(
    ("name", "says"),
    [("mnits", "Did you mean 'mnist'"), ("fashion-mnist", "fashion_mnist'"), ("digits", "needs no download")],
)
def test_an_unknown_name_writes_nothing(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        get(name, folder=tmp_path)
    assert left_in(tmp_path) == []


def test_an_address_of_one_s_own(site: Site, tmp_path: Path) -> None:
    site.files |= {f"/own/{name}?key=1": content for name, content in PACKED.items()}
    get("small", f"{site.url}/own/?key=1", folder=tmp_path, sets=small(site))
    assert [path for path, _ in site.asked] == ["/own/one.gz?key=1", "/own/two.gz?key=1"]
    with pytest.raises(DataError, match="404"):  # and no official address instead
        get("small", f"{site.url}/none", folder=tmp_path / "new", sets=small(site))
    with pytest.raises(RecipeError, match="http://"):
        get("small", "s3://bucket/mnist", folder=tmp_path / "new", sets=small(site))
    with pytest.raises(DataError, match="is not there"):
        get("small", str(tmp_path / "nowhere"), folder=tmp_path / "new", sets=small(site))
    assert left_in(tmp_path / "new" / "small") == []


def test_the_real_mnist_from_a_folder(mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in mnist.iterdir()}
    monkeypatch.setenv("GRADSTEP_DATA", str(tmp_path / "data"))
    said = Said()
    paths = get("mnist", str(mnist), say=said)
    assert {path.parent for path in paths} == {tmp_path / "data" / "mnist"}
    assert [what for what, _ in said] == ["copied"] * 4
    get("mnist", folder=mnist.parent)  # which may be read-only: all is there, so nothing is written
    assert {path.name: path.stat().st_mtime_ns for path in mnist.iterdir()} == before
    splits = load_named("mnist")
    assert splits.test is not None
    assert (len(splits.train), len(splits.test)) == (60_000, 10_000)
    said.clear()
    get("mnist", say=said)
    assert [what for what, _ in said] == ["there"] * 4


def test_a_folder_that_lacks_a_file_gives_none(mnist: Path, tmp_path: Path) -> None:
    shutil.copytree(mnist, tmp_path / "copy")
    gone = next((tmp_path / "copy").glob("t10k-labels*"))
    gone.unlink()
    with pytest.raises(DataError, match=r"lacks files of 'mnist'[^$]*t10k-labels-idx1-ubyte\.gz"):
        get("mnist", str(tmp_path / "copy"), folder=tmp_path / "data")
    assert left_in(tmp_path / "data") == []


@pytest.mark.parametrize("how", ["other", "cut", "bits", "not gzip"])
def test_a_corrupted_file_in_a_folder_gives_none(site: Site, tmp_path: Path, how: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "one.gz").write_bytes(gzip.compress(INSIDE["one.gz"], 1))  # packed anew: right
    bad = bytearray(PACKED["two.gz"])
    bad[len(bad) // 2] ^= 255
    wrong = {"other": gzip.compress(b"three"), "cut": PACKED["two.gz"][:-9], "bits": bytes(bad), "not gzip": b"<html>"}
    (source / "two.gz").write_bytes(wrong[how])
    with pytest.raises(DataError, match="none was copied") as caught:
        get("small", str(source), folder=tmp_path / "data", sets=small(site))
    assert str(source / "two.gz") in str(caught.value)
    assert "one.gz" not in str(caught.value)
    assert sha(wrong[how]) in str(caught.value)
    assert sha(PACKED["two.gz"]) in str(caught.value)
    assert left_in(tmp_path / "data" / "small") == []
    (source / "two").write_bytes(INSIDE["two.gz"])  # one form that is right is enough
    paths = get("small", str(source), folder=tmp_path / "data", sets=small(site))
    assert [path.name for path in paths] == ["one.gz", "two"]
    assert left_in(tmp_path / "data" / "small") == ["one.gz", "two"]
    with pytest.raises(DataError, match="Name the folder"):
        get("small", str(source / "two"), folder=tmp_path / "new", sets=small(site))


# get: members of an archive


MEMBERS = {"in/a.bin": b"a" * 3000, "in/b.bin": b"b" * 3000, "in/names.txt": b"cat\ndog\n"}


def entry(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info


def archive(members: dict[str, bytes], *more: tuple[tarfile.TarInfo, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        tar.addfile(entry("in", kind=tarfile.DIRTYPE))
        for name, inside in members.items():
            tar.addfile(entry(name, len(inside)), io.BytesIO(inside))
        for info, inside in more:
            tar.addfile(info, io.BytesIO(inside))
    return content.getvalue()


GOOD = archive(MEMBERS, (entry("in/readme.html", 5), b"hello"))


def packed(content: bytes, url: str = "http://127.0.0.1:1") -> dict[str, RemoteSet]:
    members = (Member("in/a.bin", 3000), Member("in/b.bin", 3000), Member("in/names.txt"))
    return {"packed": RemoteSet((f"{url}/",), (File("p.tar.gz", sha(content), len(content)),), members)}


def test_an_archive_is_fetched_and_its_members_are_put_down(site: Site, tmp_path: Path) -> None:
    site.files["/p.tar.gz"], site.files["/mine.tgz"] = GOOD, GOOD
    site.cuts["/p.tar.gz"] = [100]
    sets, place, said = packed(GOOD, site.url), tmp_path / "packed", Said()
    paths = get("packed", folder=tmp_path, sets=sets, say=said)
    assert [path.read_bytes() for path in paths] == list(MEMBERS.values())
    assert left_in(place) == ["SHA256SUMS", "a.bin", "b.bin", "names.txt"]
    assert site.asked == [("/p.tar.gz", None), ("/p.tar.gz", "bytes=100-")]
    assert said == [("fetched", "p.tar.gz"), ("unpacked", "a.bin,")]
    assert subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=place, check=False).returncode == 0
    site.asked.clear()
    get("packed", folder=tmp_path, sets=sets)
    assert site.asked == []
    (place / "b.bin").write_bytes(b"x" * 3000)  # the right size, and wrong
    get("packed", f"{site.url}/mine.tgz", folder=tmp_path, sets=sets)
    assert site.asked == [("/mine.tgz", None)]
    assert (place / "b.bin").read_bytes() == MEMBERS["in/b.bin"]
    (place / "SHA256SUMS").unlink()
    said.clear()
    get("packed", folder=tmp_path, sets=sets, say=said)
    assert said == [("there", path.name) for path in paths]
    (place / "p.tar.gz").write_bytes(GOOD)  # as a stop while unpacking leaves it
    (place / "a.bin").unlink()
    get("packed", folder=tmp_path, sets=sets)
    assert len(site.asked) == 1
    assert left_in(place) == ["SHA256SUMS", "a.bin", "b.bin", "names.txt"]


def test_an_archive_from_a_file_or_its_folder(tmp_path: Path) -> None:
    (tmp_path / "p.tar.gz").write_bytes(GOOD)
    for number, source in enumerate((tmp_path / "p.tar.gz", tmp_path)):
        paths = get("packed", str(source), folder=tmp_path / str(number), sets=packed(GOOD))
        assert [path.read_bytes() for path in paths] == list(MEMBERS.values())
    assert (tmp_path / "p.tar.gz").read_bytes() == GOOD
    with pytest.raises(DataError, match=r"lacks the archive of 'packed': p\.tar\.gz"):
        get("packed", str(tmp_path / "0"), folder=tmp_path / "new", sets=packed(GOOD))
    (tmp_path / "p.tar.gz").write_bytes(GOOD[:-1])
    with pytest.raises(DataError, match=f"SHA-256 {sha(GOOD[:-1])} instead of {sha(GOOD)}"):
        get("packed", str(tmp_path), folder=tmp_path / "new", sets=packed(GOOD))
    assert left_in(tmp_path / "new") == []


BOMB = 40 << 20
BAD_ARCHIVES = {
    "up": (archive(MEMBERS, (entry("../evil", 1), b"x")), r"'\.\./evil' points out"),
    "up inside": (archive(MEMBERS, (entry("in/../../evil", 1), b"x")), r"'in/\.\./\.\./evil' points out"),
    "absolute": (archive(MEMBERS, (entry("/tmp/evil", 1), b"x")), "'/tmp/evil' points out"),
    "symlink": (archive({}, (entry("in/a.bin", 0, tarfile.SYMTYPE, "/etc/passwd"), b"")), "'in/a.bin' is a link"),
    "hard link": (archive(MEMBERS, (entry("in/c.bin", 0, tarfile.LNKTYPE, "in/a.bin"), b"")), "'in/c.bin' is a link"),
    "device": (archive(MEMBERS, (entry("in/null", 0, tarfile.CHRTYPE), b"")), "'in/null' is a link or a device"),
    "bomb": (archive({**MEMBERS, "in/b.bin": bytes(BOMB)}), "'in/b.bin' has 41,943,040 bytes instead of 3,000"),
    "bomb of text": (archive({**MEMBERS, "in/names.txt": bytes(BOMB)}), "instead of at most 1,048,576"),
    "bomb beside": (archive(MEMBERS, (entry("in/more", BOMB), bytes(BOMB))), "'in/more' has 41,943,040 bytes"),
    "short": (archive({**MEMBERS, "in/a.bin": b"a"}), "'in/a.bin' has 1 bytes instead of 3,000"),
    "twice": (archive(MEMBERS, (entry("./in/a.bin", 3000), b"c" * 3000)), "is there twice"),
    "absent": (archive({"in/a.bin": MEMBERS["in/a.bin"]}), "lacks members:\n  in/b.bin\n  in/names.txt"),
    "elsewhere": (archive({name.removeprefix("in/"): each for name, each in MEMBERS.items()}), "lacks members"),
    "cut off": (GOOD[: len(GOOD) // 2], "can't be read|ends after|lacks members"),
    "no archive": (b"<html>", "can't be read as a .tar.gz"),
}


@pytest.mark.parametrize(("content", "says"), BAD_ARCHIVES.values(), ids=BAD_ARCHIVES)
def test_a_bad_archive_writes_nothing(tmp_path: Path, content: bytes, says: str) -> None:
    source, folder = tmp_path / "source", tmp_path / "data"
    source.mkdir()
    (source / "p.tar.gz").write_bytes(content)
    with pytest.raises(DataError, match=says):
        get("packed", str(source), folder=folder, sets=packed(content))
    assert left_in(folder / "packed") == []
    assert left_in(tmp_path) in (["data", "source"], ["source"])


# the table and the command


def test_the_table_is_plausible() -> None:
    assert list(SETS) == ["mnist", "fashion_mnist", "cifar10"]
    for wanted in SETS.values():
        assert all(re.fullmatch(r"https?://[^ ]+/", mirror) for mirror in wanted.mirrors)
        for file in wanted.files:
            assert re.fullmatch(r"[0-9a-f]{64}", file.sha256)
            assert file.size
    assert len({file.sha256 for wanted in SETS.values() for file in wanted.files}) == 9
    bins = [member.size for member in SETS["cifar10"].members if member.name.endswith(".bin")]
    assert bins == [30_730_000] * 6


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    monkeypatch.setenv("GRADSTEP_DATA", str(tmp_path))
    app = typer.Typer()
    app.command()(data_get.get)
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def test_the_command_says_what_it_did_and_what_is_next(mnist: Path, tmp_path: Path, command) -> None:
    said = command("mnist", "--from", str(mnist))
    assert said.exit_code == 0
    assert said.output.splitlines()[-2:] == [f"files     {tmp_path / 'mnist'}", "next      gradstep train mnist"]
    assert said.output.count("copied    ") == 4
    assert command("mnist").output.count("there     ") == 4
    assert "needs no download" in command("digits").output
    assert isinstance(command("mnits").exception, RecipeError)


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(data_get, "_PLAIN_EVERY", 0.0)
    with data_get._Shown() as shown:
        shown.progress("f", 1000, 2000)
        shown.say("fetched", "f")
    assert capsys.readouterr().out == "fetching  f  1,000 of 2,000 bytes\nfetched   f\n"

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", Terminal())
    with data_get._Shown() as shown:
        shown.progress("f", 1000, 2000)
        shown.say("fetched", "f")
    assert "1.0/2.0 kB" in sys.stdout.getvalue()
    assert sys.stdout.getvalue().endswith("fetched   f\n")


def test_ctrl_c_leaves_with_130(command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_, **__) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gradstep.data.remote.get", interrupted)
    assert command("mnist").exit_code == 130


def test_help_needs_no_torch() -> None:
    code = "import sys, gradstep.cli.data_get; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
