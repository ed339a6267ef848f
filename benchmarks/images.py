"""`python -m benchmarks.images`: a list of image files trained on, against torch's DataLoader.

Record: records/images.json. 10,000 PNG of 32×32, grey, from MNIST, listed in a CSV; a small net (1024-32-10), and
LeNet, in which the net's own steps are most of the time; batches of 64, SGD; three epochs. On one side
`data.open_data` and `gradstep.steps`; on the other a `Dataset` that opens each file with Pillow and makes floats of
it, normalised, in a `DataLoader` with two persistent workers, and the loop that anybody writes.
Timed are the first epoch, from before the
CSV is opened to the last step's end, and the mean of the epochs after it: with an empty cache of decoded images, and
once more with the one that the run before it left. The CSV and the files are in the system's own cache.

Each round is a process of its own, of one thread, that only begins the clock behind its imports; the contenders take
turns, A B B A. A fourth trains from memory, with no files: what is left of an epoch when data cost nothing.
Ratios are medians of the pairs', with a bootstrap interval of 95 %. Beside them, what one look at large JPEGs costs
that are resized to 64×64, with and without the scale that Pillow can decode them at.
"""

from __future__ import annotations

import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parent / "records" / "images.json"
COUNT, EPOCHS, BATCH = 10_000, 3, 64
ROUNDS = 8
NAMES = ("gradstep, no cache yet", "gradstep, cache there", "DataLoader", "no files at all")
SIDES = dict(zip(NAMES, ("ours", "ours", "theirs", "bare"), strict=True))
GOALS = {"epoch 1": 1.0, "epochs 2 and later": 0.3}


def make_files(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    from gradstep.data import load_named

    images, labels = load_named("mnist").train.content  # type: ignore[attr-defined]  # MNIST lies in memory
    lines = ["file,label"]
    for number in range(COUNT):
        Image.fromarray(np.pad(images[number, 0].numpy(), 2)).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{labels[number]}")
    (folder / "list.csv").write_text("\n".join(lines))


def net(name: str) -> Any:
    from torch import nn

    from gradstep.models import LeNet

    if name == "lenet":
        return LeNet(channels=1)
    return nn.Sequential(nn.Flatten(), nn.Linear(1024, 32), nn.ReLU(), nn.Linear(32, 10))


def ours(csv: str, name: str) -> list[float]:
    """Seconds since the start at the end of each epoch."""
    import torch

    import gradstep
    from gradstep import data

    model = net(name)
    steps = gradstep.steps  # imports what it needs
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)  # the first one imports for a second or two
    began, ends = time.perf_counter(), []
    splits = data.prepare(data.open_data(csv), [data.ToFloat(), data.Normalize([0.1], [0.3])])
    loop = steps(
        model,
        torch.nn.CrossEntropyLoss(),
        splits.train,
        optimizer=optimizer,
        epochs=EPOCHS,
        batch_size=BATCH,
        device="cpu",
    )
    per_epoch = -(-COUNT // BATCH)
    for number, outcome in enumerate(loop, start=1):
        if number % per_epoch == 0:
            outcome.loss.item()
            ends.append(time.perf_counter() - began)
    return ends


def theirs(csv: str, name: str) -> list[float]:
    """The same by hand."""
    import numpy as np
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    class Files(Dataset[Any]):
        def __init__(self) -> None:
            rows = [line.split(",") for line in Path(csv).read_text().splitlines()[1:]]
            self.files = [(os.path.join(os.path.dirname(csv), name), int(label)) for name, label in rows]

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
            path, label = self.files[number]
            with Image.open(path) as image:
                pixels = torch.from_numpy(np.array(image))
            return (pixels[None].float() / 255 - 0.1) / 0.3, label

    return by_hand(lambda: DataLoader(Files(), BATCH, shuffle=True, num_workers=2, persistent_workers=True), name)


def bare(csv: str, name: str) -> list[float]:  # noqa: ARG001
    """The loop alone, over as many images that lie in memory, ready."""
    import torch

    inputs, targets = torch.randn(COUNT, 1, 32, 32), torch.randint(0, 10, (COUNT,))

    class Batches:
        def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            return ((inputs[numbers], targets[numbers]) for numbers in torch.randperm(COUNT).split(BATCH))

    return by_hand(Batches, name)


def by_hand(opened: Callable[[], Any], name: str) -> list[float]:
    """Seconds since before the batches were opened, at the end of each epoch of the loop that anybody writes."""
    import torch

    model = net(name)
    criterion, optimizer = torch.nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.01)
    began, ends = time.perf_counter(), []
    batches = opened()
    for _ in range(EPOCHS):
        for inputs, targets in batches:
            optimizer.zero_grad()
            loss = criterion(model(inputs), targets)
            loss.backward()
            optimizer.step()
        loss.item()
        ends.append(time.perf_counter() - began)
    return ends


def large(folder: Path) -> dict[str, float]:
    """ms for each JPEG of 3000×2000, read at 64×64: as gradstep does, and with all of it decoded."""
    import numpy as np
    from PIL import Image

    from gradstep.data import Reading, images, read_image

    draws = np.random.default_rng(0)
    for number in range(6):
        small = draws.integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(small).resize((3000, 2000)).save(folder / f"{number}.jpg", quality=90)
    reading, scaled = Reading("RGB", size=(64, 64)), images._draft
    times: dict[str, list[float]] = {"scaled": [], "whole": []}
    for _ in range(3):
        for name, how in (("scaled", scaled), ("whole", lambda *_, **__: None)):
            images._draft = how
            began = time.perf_counter()
            for path in folder.glob("*.jpg"):
                read_image(path, reading)
            times[name].append((time.perf_counter() - began) / 6)
    images._draft = scaled
    return {name: round(1e3 * statistics.median(each), 1) for name, each in times.items()}


def run(name: str, csv: Path, cache: Path, model: str) -> dict[str, float]:
    """Seconds of one contender in a process of its own."""
    if name == NAMES[0]:
        shutil.rmtree(cache, ignore_errors=True)
    which = SIDES[name]
    command = [sys.executable, "-m", "benchmarks.images", which, str(csv), model]
    environment = {**os.environ, "GRADSTEP_CACHE": str(cache)}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
    ends: list[float] = json.loads(done.stdout)
    return {"epoch 1": ends[0], "epochs 2 and later": (ends[-1] - ends[0]) / (EPOCHS - 1)}


def ratio(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
    draws = random.Random(0)
    medians = sorted(statistics.median(draws.choices(pairs, k=len(pairs))) for _ in range(2000))
    return {"ratio": round(statistics.median(pairs), 3), "interval": [round(medians[50], 3), round(medians[-50], 3)]}


def main() -> None:
    os.environ.setdefault("GRADSTEP_DATA", str(Path(__file__).resolve().parents[2] / "shared" / "data"))
    if len(sys.argv) == 4:
        import torch

        torch.manual_seed(0)
        torch.set_num_threads(1)
        print(json.dumps({"ours": ours, "theirs": theirs, "bare": bare}[sys.argv[1]](*sys.argv[2:])))
        return
    rounds = int(sys.argv[1]) if len(sys.argv) == 2 else ROUNDS
    times: dict[str, Any] = {
        model: {name: {what: [] for what in GOALS} for name in NAMES} for model in ("small net", "lenet")
    }
    kept = []  # whether the first of two left a cache: what is decoded in less than half a second is not kept
    with tempfile.TemporaryDirectory() as place:
        folder, cache = Path(place) / "files", Path(place) / "cache"
        folder.mkdir()
        make_files(folder)
        time.sleep(2.5)  # files changed just now are not cached
        for number in range(rounds + 1):
            # The one with the cache comes behind the one that leaves it; the first round warms the system's cache.
            for model, its in times.items():
                for name in NAMES if number % 2 == 0 else (*NAMES[2:], *NAMES[:2]):
                    found = run(name, folder / "list.csv", cache, model)
                    kept += [cache.exists()] if name == NAMES[0] else []
                    for what, seconds in found.items():
                        its[name][what] += [seconds] if number else []
        jpegs = large(Path(place))
    import torch

    record: dict[str, Any] = {
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "torch": str(torch.__version__),
        "threads": 1,
        "rounds": rounds,
        "goals": GOALS,
        "runs that left a cache": f"{sum(kept)} of {len(kept)}",
        "ratios": {
            model: {
                name: {what: ratio(its[name][what], its[NAMES[2]][what]) for what in GOALS}
                for name in NAMES
                if name != NAMES[2]
            }
            for model, its in times.items()
        },
        "seconds": {
            model: {
                name: {what: round(statistics.median(each), 2) for what, each in its[name].items()} for name in NAMES
            }
            for model, its in times.items()
        },
        "ms for each JPEG of 3000×2000 at 64×64": jpegs,
    }
    print(json.dumps(record, indent=1, ensure_ascii=False))
    RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
