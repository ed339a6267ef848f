"""Feeds damaged and forged checkpoints to the reader, for as long as it is told to.

    python -m tests.fuzz_reader --seconds 600 --corpus tests/corpus/reader --record benchmarks/records/fuzz.json

Each input is a checkpoint that was whole, or one that was kept, with a few mutations: bytes of a file, fields of the
manifest, fields of a tensor header, the numbers, which files there are. In half of them the manifest is made to agree
with the files again, so that what lies behind it is reached. The reader must answer with a CheckpointError, or with a
checkpoint whose tensors can all be loaded and which is the one that was written, where hashes were left alone; never
with another exception, nor after more than two seconds, nor with a process grown by more than `MEGABYTES`. Inputs
that were answered in words not heard before are kept in the corpus.
"""

from __future__ import annotations

import argparse
import base64
import copy
import hashlib
import json
import random
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gradstep import checkpoint
from gradstep.errors import CheckpointError

STEP, SECONDS, MEGABYTES = 10, 2.0, 300
Files = dict[str, bytes]
MANIFEST = "MANIFEST.json"

# Values that readers trip over.
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 3, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**400, 0.5, 1e308, "", "x", "\ud800", "\0",
    "../../x", "/dev/zero", "MANIFEST.json", "F32", "F64", "BF16", "I64", "BOOL", "F4", "F6_E2M3", "F8_E8M0", "C64",
    [], {}, [0], [[]], [0, 0], [0, 4], [4, 0], [0, 2**63], [2**62, 4], [-1], [0] * 70, {"a": 1}, {"__metadata__": {}},
]  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """What the reader said. `message` without what differs from input to input; None when it was read."""

    message: str | None
    seconds: float
    same: bool = False  # as what was written
    fault: str | None = None  # what must not happen


@dataclass(frozen=True)
class Corpus:
    """Inputs that were kept, a JSON file each: their files, and what the reader said."""

    folder: Path

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("*.json"))

    def files(self, name: str) -> tuple[Files, str | None]:
        document = json.loads((self.folder / name).read_text())
        return {each: base64.b64decode(content) for each, content in document["files"].items()}, document["said"]

    def unpack(self, name: str, folder: Path) -> tuple[Path, str | None]:
        found, said = self.files(name)
        return laid_out(found, folder), said

    def keep(self, files: Files, said: str | None) -> None:
        document = {
            "said": said,
            "files": {name: base64.b64encode(content).decode() for name, content in files.items()},
        }
        name = hashlib.sha256(str(said).encode()).hexdigest()[:16]
        (self.folder / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")


def laid_out(files: Files, folder: Path) -> Path:
    path = checkpoint.at(folder, STEP)
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


def originals(folder: Path) -> list[tuple[Files, bytes]]:
    """Checkpoints that are whole, and what distinguishes their content."""
    kinds = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64]
    found = []
    for more in ({}, {"criterion": {"scale": torch.ones(())}, "ema": {"a": torch.ones(2)}, "metrics": {}}):
        tensors = {
            "model": {f"layer.{number}": torch.ones(2, 3).to(kind) for number, kind in enumerate(kinds)},
            "optimizer": {"layer.0/exp_avg": torch.zeros(2, 3), "empty": torch.zeros(0, 3)},
            **more,
        }
        path = checkpoint.write(folder, STEP, tensors, {"step": STEP, "standing": {"best": 0.5}, "list": [1, [2, "x"]]})
        found.append(({each.name: each.read_bytes() for each in path.iterdir()}, fingerprint(checkpoint.read(path))))
        shutil.rmtree(path)
    return found


def fingerprint(saved: checkpoint.Saved) -> bytes:
    """A hash of everything that was saved; loads every tensor."""
    digest = hashlib.sha256(json.dumps([saved.step, saved.values]).encode())
    for stem, tensors in sorted(saved.tensors.items()):
        for name, tensor in sorted(tensors.items()):
            digest.update(f"{stem}/{name} {tensor.dtype} {list(tensor.shape)}".encode(errors="replace"))
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()


def look_at(path: Path, whole: bytes | None = None) -> Answer:
    """Reads a checkpoint with all its tensors."""
    began = time.perf_counter()
    message, same, fault = None, False, None
    try:
        same = fingerprint(checkpoint.read(path)) == whole
    except CheckpointError as error:
        message = gist(str(error).replace(str(path), ""))
    except BaseException as error:  # a panic of Rust is none of Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        fault = "".join(traceback.format_exception(error))
    seconds = time.perf_counter() - began
    if seconds > SECONDS:
        fault = f"took {seconds:.1f} s"
    return Answer(message, seconds, same, fault)


def gist(said: str) -> str:
    """An error message without what differs from input to input: what is quoted, names of files, numbers."""
    said = said.replace("can't", "cannot")
    for pattern, instead in (
        (r"'[^']*'|`[^`]*`|\"[^\"]*\"", "..."),
        (r"\w+\.safetensors", "T"),
        (r"it lists .*, not", "it lists ..., not"),
        (r"format .*, and", "format ..., and"),
        (r"of step .*", "of step ..."),
        (r"SHA-256 of .*", "SHA-256 of ..."),
        (r"byte 0x\w+", "byte"),
        (r"expected one of .*", "expected one of ..."),
        (r"\d+(\.\d+)?", "N"),
    ):
        said = re.sub(pattern, instead, said)
    return said[:200]


# Mutations.


def of_bytes(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content) + 1)
    length = draw.choice([1, 1, 2, 8, 64])
    match draw.randrange(6):
        case 0 if content:
            at = draw.randrange(len(content))
            return content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]
        case 1:
            return content[:place]
        case 2:
            return content[:place] + draw.randbytes(length) + content[place:]
        case 3:
            return content[:place] + content[place + length :]
        case 4:
            return content[:place] + draw.randbytes(length) + content[place + length :]
        case _:
            return content[:place] + content[place : place + length] * draw.choice([2, 50]) + content[place + length :]


def of_value(value: Any, draw: random.Random) -> Any:
    """The same JSON with one place in it changed."""
    value = copy.deepcopy(value)
    if draw.random() < 0.2 or not isinstance(value, (dict, list)) or not value:
        return copy.deepcopy(draw.choice(ODD))
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = draw.choice(keys)
    match draw.randrange(5):
        case 0:
            del value[key]
        case 1 if isinstance(value, dict):
            value[draw.choice([*keys, "__metadata__", "../x", "\ud800", ""])] = value[key]
        case 2 if isinstance(value, dict):
            other = draw.choice(keys)
            value[key], value[other] = value[other], value[key]
        case _:
            value[key] = of_value(value[key], draw)
    return value


def of_json(content: bytes, draw: random.Random) -> bytes:
    try:
        text = json.dumps(of_value(json.loads(content), draw))
    except (ValueError, RecursionError):  # was broken before
        return of_bytes(content, draw)
    if draw.random() < 0.05:  # what no dict can hold
        text = text.replace(": ", draw.choice([": NaN, ", ': 1, "step": ', ": [" * 5000, ": -"]), 1)
    return text.encode()


def of_header(content: bytes, draw: random.Random) -> bytes:
    """Another header over the same tensors, its length right or nearly."""
    length = int.from_bytes(content[:8], "little")
    header, data = of_json(content[8 : 8 + length], draw), content[8 + length :]
    said = draw.choice([len(header)] * 6 + [len(header) - 1, len(header) + 1, 0, 2**63, 2**64 - 1, 10**8])
    return max(said, 0).to_bytes(8, "little") + header + draw.choice([data] * 4 + [data[:-1], data + b"\0", b""])


def mutated(files: Files, draw: random.Random) -> Files:
    files = dict(files)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        if not files:
            break
        name = draw.choice(sorted(files))
        if draw.random() < 0.05:
            other = draw.choice(["ema.safetensors", "metrics.safetensors", "x", name])
            content = files.pop(name)
            if draw.random() < 0.5:
                files[other] = content
        elif draw.random() < 0.4:
            files[name] = of_bytes(files[name], draw)
        elif name.endswith(".safetensors"):
            files[name] = of_header(files[name], draw)
        else:
            files[name] = of_json(files[name], draw)
    return files


def signed(files: Files) -> Files:
    """With a manifest that agrees with the files, whatever they hold."""
    sums = {
        name: [len(content), hashlib.sha256(content).hexdigest()] for name, content in files.items() if name != MANIFEST
    }
    document = {"format": checkpoint.FORMAT, "step": STEP, "files": sums}
    return files | {MANIFEST: json.dumps(document).encode()}


# The program.


def fuzz(seconds: float, corpus: Corpus, seed: int, folder: Path) -> dict[str, Any]:
    """What came out, as numbers to record."""
    draw = random.Random(seed)
    corpus.folder.mkdir(parents=True, exist_ok=True)
    bases = originals(folder)
    kept = [corpus.files(name) for name in corpus.names()]
    heard = Counter[str | None]({said: 0 for _, said in kept})
    seeds = [(files, None) for files, _ in kept if files]
    faults: list[str] = []
    inputs = slowest = read = 0
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    end = time.perf_counter() + seconds
    while time.perf_counter() < end and len(faults) < 10:
        files, whole = draw.choice(bases) if draw.random() < 0.7 or not seeds else draw.choice(seeds)
        sign = draw.random() < 0.5
        files = mutated(files, draw)
        files = signed(files) if sign else files
        answer = look_at(laid_out(files, folder), whole)
        inputs, slowest = inputs + 1, max(slowest, answer.seconds)
        read += answer.message is None
        fault = answer.fault
        if answer.message is None and fault is None and not sign and whole is not None and not answer.same:
            fault = "a damaged checkpoint was read as if it were whole"
        if fault is not None:
            faults.append(fault)
            corpus.keep(files, f"fault: {fault}")
        elif answer.message not in heard and sum(map(len, files.values())) < 10_000:
            corpus.keep(files, answer.message)
        heard[answer.message] += 1
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) // 1024
    if grown > MEGABYTES:
        faults.append(f"the process grew by {grown} MB")
    return {
        "seconds": round(seconds), "seed": seed, "inputs": inputs, "read": read, "refused": inputs - read,
        "messages": len(heard), "slowest_ms": round(1000 * slowest, 1), "grown_mb": grown, "faults": faults,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--corpus", type=Path, default=Path("tests/corpus/reader"))
    parser.add_argument("--record", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = fuzz(given.seconds, Corpus(given.corpus), given.seed, Path(folder))
    print(json.dumps(found, indent=1))
    if given.record is not None:
        given.record.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if found["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
