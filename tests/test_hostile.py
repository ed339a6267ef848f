"""A checkpoint that somebody damaged, or made with bad intentions, is refused quickly, in bounded memory, and unrun.

Each case is made in a folder of its own from a checkpoint that is whole; most have a manifest whose sizes and hashes
are right, so that what is behind the manifest has to refuse.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gradstep import checkpoint, fit
from gradstep.errors import CheckpointError
from tests.fuzz_reader import Corpus, look_at
from tests.test_tensorfile import MALICIOUS

STEP = 10
NAMES = ["model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json"]
SECONDS = 2.0
MEGABYTES = 300


def whole(folder: Path) -> Path:
    tensors = {
        "model": {"weight": torch.arange(12.0).reshape(3, 4), "bias": torch.zeros(3)},
        "optimizer": {"weight/momentum_buffer": torch.ones(3, 4, dtype=torch.float64)},
    }
    return checkpoint.write(folder, STEP, tensors, {"step": STEP, "standing": {"best": 0.5}})


def sign(path: Path, **other: Any) -> None:
    """Gives the checkpoint a manifest that its files agree with."""
    files = {
        each.name: [each.stat().st_size, hashlib.sha256(each.read_bytes()).hexdigest()]
        for each in path.iterdir()
        if each.name != "MANIFEST.json" and each.is_file() and not each.is_symlink()
    }
    document = {"format": checkpoint.FORMAT, "step": STEP, "files": files} | other
    (path / "MANIFEST.json").write_text(json.dumps(document))


def put(name: str, content: bytes) -> Callable[[Path], None]:
    """The case of one file with other content, and a manifest that vouches for it."""

    def make(path: Path) -> None:
        (path / name).write_bytes(content)
        if name != "MANIFEST.json":
            sign(path)

    return make


def manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        document = json.loads((path / "MANIFEST.json").read_text())
        change(document)
        (path / "MANIFEST.json").write_text(json.dumps(document))

    return make


def replaced(by: Callable[[Path], object], name: str = "model.safetensors") -> Callable[[Path], None]:
    """The case of something else where a file should be. What was there is kept outside, for links to point at."""

    def make(path: Path) -> None:
        shutil.copy(path / name, path.parent / "outside")
        (path / name).unlink()
        by(path / name)

    return make


def bound_socket(path: Path) -> None:
    before = os.getcwd()
    os.chdir(path.parent)  # a socket's name must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path.name)
    os.chdir(before)


def sparse(path: Path, size: int = 10 * 2**30) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def linked_folder(path: Path) -> None:
    path.rename(path.parent / "elsewhere")
    path.symlink_to(path.parent / "elsewhere")


def sparse_and_listed(path: Path) -> None:
    """10 GB of zeros with a manifest that says so: hashing them would take long, their first 8 bytes are enough."""
    sparse(path / "model.safetensors")
    manifest(lambda m: m["files"]["model.safetensors"].__setitem__(0, 10 * 2**30))(path)


class Canary:
    """Unpickling it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def pickled(path: Path) -> None:
    (path / "model.safetensors").write_bytes(pickle.dumps(Canary(path.parent / "canary")))
    sign(path)


def saved_by_torch(path: Path) -> None:
    torch.save({"a": Canary(path.parent / "canary")}, path / "model.safetensors")
    sign(path)


def files(*names: str) -> Callable[[dict[str, Any]], object]:
    return lambda m: m["files"].update({name: [4, "0" * 64] for name in names})


CASES: dict[str, Callable[[Path], object]] = {
    **{f"{name} is missing": lambda path, name=name: (path / name).unlink() for name in NAMES},
    **{f"{name} is empty": lambda path, name=name: (path / name).write_bytes(b"") for name in NAMES},
    **{f"{name} is empty, and signed": put(name, b"") for name in NAMES},
    **{f"signed tensors: {case}": put("model.safetensors", content) for case, content in MALICIOUS.items()},
    # What is no regular file.
    "a link": replaced(lambda path: path.symlink_to(path.parent.parent / "outside")),
    "a link as numbers": replaced(lambda path: path.symlink_to(path.parent.parent / "outside"), "state.json"),
    "a link as manifest": replaced(lambda path: path.symlink_to(path.parent.parent / "outside"), "MANIFEST.json"),
    "a link to a device": replaced(lambda path: path.symlink_to("/dev/zero")),
    "a FIFO": replaced(os.mkfifo),
    "a FIFO as manifest": replaced(os.mkfifo, "MANIFEST.json"),
    "a FIFO as numbers": replaced(os.mkfifo, "state.json"),
    "a socket": replaced(bound_socket),
    "a folder": replaced(Path.mkdir),
    "the checkpoint is a link": linked_folder,
    "the checkpoint is a file": lambda path: (shutil.rmtree(path), path.touch()),
    "a FIFO more": lambda path: os.mkfifo(path / "more"),
    # Sizes.
    "a sparse file of 10 GB": lambda path: sparse(path / "model.safetensors"),
    "a sparse file of 10 GB, and listed": sparse_and_listed,
    "a sparse manifest of 10 GB": lambda path: sparse(path / "MANIFEST.json"),
    "sparse numbers of 10 GB": lambda path: (
        sparse(path / "state.json"),
        manifest(lambda m: m["files"]["state.json"].__setitem__(0, 10 * 2**30))(path),
    ),
    "10 GB declared": manifest(lambda m: m["files"]["model.safetensors"].__setitem__(0, 10**10)),
    "1,000 files more": lambda path: [(path / f"{number}").touch() for number in range(1000)],
    # The manifest.
    "manifest: torn": lambda path: os.truncate(path / "MANIFEST.json", 100),
    "manifest: huge": put("MANIFEST.json", b'{"format": 3, "x": "' + b"x" * 5_000_000 + b'"}'),
    "manifest: a list": put("MANIFEST.json", b"[]"),
    "manifest: a number": put("MANIFEST.json", b"3"),
    "manifest: nested 10^5 deep": put("MANIFEST.json", b"[" * 10**5),
    "manifest: objects nested 10^5 deep": put("MANIFEST.json", b'{"a":' * 10**5),
    "manifest: a number of 10^5 digits": put("MANIFEST.json", b'{"format":' + b"9" * 10**5 + b"}"),
    "manifest: NaN": put("MANIFEST.json", b'{"format":NaN}'),
    "manifest: UTF-16": lambda path: (path / "MANIFEST.json").write_text(
        (path / "MANIFEST.json").read_text(), encoding="utf-16"
    ),
    "manifest: a name twice": lambda path: (path / "MANIFEST.json").write_text(
        (path / "MANIFEST.json").read_text().replace('"format"', '"step": 10, "format"')
    ),
    "manifest: a file twice": lambda path: (path / "MANIFEST.json").write_text(
        (path / "MANIFEST.json").read_text().replace('"state.json"', '"model.safetensors": [1, ""], "state.json"')
    ),
    "manifest: no format": manifest(lambda m: m.pop("format")),
    "manifest: a future format": manifest(lambda m: m.update(format=4)),
    "manifest: an older format": manifest(lambda m: m.update(format=2)),
    "manifest: format 3.0": manifest(lambda m: m.update(format=3.0)),
    "manifest: format in words": manifest(lambda m: m.update(format="\x1b[31m" * 1000)),
    "manifest: step in words": manifest(lambda m: m.update(step="10")),
    "manifest: step yes": manifest(lambda m: m.update(step=True)),
    "manifest: another step": manifest(lambda m: m.update(step=11)),
    "manifest: step -10": manifest(lambda m: m.update(step=-10)),
    "manifest: files in a list": manifest(lambda m: m.update(files=["model.safetensors"])),
    "manifest: ../../x": manifest(files("../../x")),
    "manifest: /etc/passwd": manifest(files("/etc/passwd")),
    "manifest: a name with a zero": manifest(files("model\0.safetensors")),
    "manifest: half a character": manifest(files("\ud800")),
    "manifest: the manifest itself": manifest(files("MANIFEST.json")),
    "manifest: an unknown file": manifest(files("more.safetensors")),
    "manifest: a file that is not there": manifest(files("ema.safetensors")),
    "manifest: size in words": manifest(lambda m: m["files"]["state.json"].__setitem__(0, "4")),
    "manifest: size yes": manifest(lambda m: m["files"]["state.json"].__setitem__(0, True)),
    "manifest: size -1": manifest(lambda m: m["files"]["state.json"].__setitem__(0, -1)),
    "manifest: no hash": manifest(lambda m: m["files"]["state.json"].__setitem__(1, None)),
    "manifest: a short hash": manifest(lambda m: m["files"]["state.json"].__setitem__(1, "")),
    "manifest: three of them": manifest(lambda m: m["files"]["state.json"].append(1)),
    # The numbers, signed.
    "numbers: a list": put("state.json", b"[1]"),
    "numbers: torn": put("state.json", b'{"step": 1'),
    "numbers: a name twice": put("state.json", b'{"step": 1, "step": 2}'),
    "numbers: NaN": put("state.json", b'{"step": NaN}'),
    "numbers: nested 10^5 deep": put("state.json", b"[" * 10**5 + b"]" * 10**5),
    "numbers: objects nested 10^5 deep": put("state.json", b'{"a":' * 10**5 + b"1" + b"}" * 10**5),
    "numbers: a pickle": put("state.json", pickle.dumps({"step": 1})),
    "numbers: over the limit": put("state.json", b'{"a": "' + b"x" * 64_000_000 + b'"}'),
    # What runs when it is unpickled.
    "a pickle, and signed": pickled,
    "a file of torch.save, and signed": saved_by_torch,
}  # fmt: skip


def refusal(case: str, folder: Path) -> tuple[str, float]:
    """`(what reading the case says, in how many seconds)`."""
    path = whole(folder)
    CASES[case](path)
    began = time.perf_counter()
    with pytest.raises(CheckpointError) as raised:
        checkpoint.read(path)
    return str(raised.value), time.perf_counter() - began


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_by_name_quickly_and_nothing_is_run_or_changed(case: str, tmp_path: Path) -> None:
    said, seconds = refusal(case, tmp_path)
    assert said.startswith(str(checkpoint.at(tmp_path, STEP)))
    assert said.isprintable()
    assert len(said) < 600 + len(str(tmp_path))
    assert seconds < SECONDS
    assert not (tmp_path / "canary").exists()
    with pytest.raises(CheckpointError, match="no checkpoint is valid, and none was touched"):
        checkpoint.newest(tmp_path)  # case 36: nothing is begun anew


def test_the_canary_would_sing(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Canary(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


def test_all_of_them_are_refused_in_bounded_memory(tmp_path: Path) -> None:
    for number, case in enumerate(CASES):
        (tmp_path / str(number)).mkdir()
        CASES[case](whole(tmp_path / str(number)))
    code = f"""
import resource
from pathlib import Path
from gradstep import checkpoint, fit
from gradstep.errors import CheckpointError
folder, used = Path({str(tmp_path)!r}), lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = used()
for each in folder.iterdir():
    try:
        checkpoint.read(checkpoint.at(each, {STEP}))
    except CheckpointError:
        continue
    raise SystemExit(f"{{each}} was read")
print((used() - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < MEGABYTES


# Damage by accident.


@pytest.mark.parametrize("name", NAMES)
def test_a_file_cut_at_any_sixteenth_is_refused_and_named_and_the_one_before_is_used(name: str, tmp_path: Path) -> None:
    path = whole(tmp_path)
    shutil.copytree(path, checkpoint.at(tmp_path, 3))
    sign(checkpoint.at(tmp_path, 3), step=3)
    content = (path / name).read_bytes()
    for sixteenth in range(16):
        (path / name).write_bytes(content[: len(content) * sixteenth // 16])
        saved, (why,) = checkpoint.newest(tmp_path)
        assert saved is not None
        assert saved.step == 3
        assert str(path / name) in why


@pytest.mark.parametrize("name", NAMES)
def test_any_flipped_bit_is_refused(name: str, tmp_path: Path) -> None:
    """One bit of every byte of every file."""
    path = whole(tmp_path)
    content = (path / name).read_bytes()
    for place in range(len(content)):
        (path / name).write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        with pytest.raises(CheckpointError):
            checkpoint.read(path)


@pytest.mark.parametrize("case", MALICIOUS)
def test_malicious_tensors_are_refused_wherever_they_lie(case: str, tmp_path: Path) -> None:
    path = whole(tmp_path)
    for name in ("optimizer", "criterion", "ema", "metrics"):
        shutil.rmtree(path)
        whole(tmp_path)
        put(f"{name}.safetensors", MALICIOUS[case])(path)
        with pytest.raises(CheckpointError, match=rf"{name}\.safetensors"):
            checkpoint.read(path)


def test_what_a_stranger_says_in_a_header_is_one_printable_line(tmp_path: Path) -> None:
    path = whole(tmp_path)
    (path / "\x1b[2J\n").touch()
    with pytest.raises(CheckpointError) as raised:
        checkpoint.read(path)
    assert str(raised.value).isprintable()
    assert r"\x1b[2J\n" in str(raised.value)


def test_reading_in_little_address_space_is_enough_for_a_file_of_10_gb_that_is_none(tmp_path: Path) -> None:
    path = whole(tmp_path)
    sparse_and_listed(path)
    code = f"""
import resource
from pathlib import Path
from gradstep import checkpoint, fit
from gradstep.errors import CheckpointError
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
try:
    checkpoint.read(Path({str(path)!r}))
except CheckpointError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "its header would have 0 bytes" in done.stdout


# What the fuzzer found worth keeping.

CORPUS = Corpus(Path(__file__).parent / "corpus" / "reader")


def test_the_corpus_is_there_and_small() -> None:
    assert len(CORPUS.names()) >= 10
    assert sum(path.stat().st_size for path in CORPUS.folder.iterdir()) < 1_000_000


@pytest.mark.parametrize("name", CORPUS.names())
def test_what_the_fuzzer_kept_is_still_refused_or_read_as_it_was(name: str, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path, said = CORPUS.unpack(name, tmp_path)
    found = look_at(path)
    assert found.fault is None
    assert (found.message is None) == (said is None)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES * 1024


FORGED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no progress": (lambda state: state.pop("progress"), "has no progress"),
    "another step": (lambda state: state.update(step=10**30), "is of step 1000000"),
    "a meaning that is a word": (lambda state: state.update(meaning="x"), "is not one of gradstep's"),
    "no log": (lambda state: state["log"].clear(), "is not one of gradstep's .KeyError: 'offset'"),
    "no list of plateaus": (lambda state: state.update(plateaus=None), "is not one of gradstep's"),
    "a standing with an unknown word": (lambda state: state["standing"].update(more=1), "is not one of gradstep's"),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_state_that_somebody_wrote_with_right_hashes_is_refused_and_the_run_stays_as_it_was(
    case: str, tmp_path: Path
) -> None:
    def train(resume: bool) -> None:
        model, data = torch.nn.Linear(2, 2), (torch.zeros(8, 2), torch.zeros(8, dtype=torch.long))
        fit(model, torch.nn.CrossEntropyLoss(), data, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), batch_size=4,
            epochs=1, out=tmp_path, name="run", resume=resume, quiet=True, checkpoint={"keep": 1})  # fmt: skip

    train(resume=False)
    change, said = FORGED[case]
    (path,) = (tmp_path / "0001-run" / "checkpoints").glob("step-*")
    state = json.loads((path / "state.json").read_text())
    change(state)
    (path / "state.json").write_text(json.dumps(state))
    sign(path, step=2)
    before = {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()}
    with pytest.raises(CheckpointError, match=said):
        train(resume=True)
    assert {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()} == before
