"""`make bench`: a table larger than memory, and 60,000 files looked through. Recorded in benchmarks/records/data.json.

The table is an .npy of 40 GB made sparse, 5,000,000 rows of 2,000 float32, with its labels in another. A recipe trains
100 steps of 64 on it by the command line, a validation part set aside; the time is from the process's start to its
end, the memory its peak above that of a process that imports the same modules and ends. The files are MNIST's 60,000
images as PNG, a folder per class; the time is that of `gradstep data show`. Each is run three times; the worst counts.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gradstep.data import load_named

RECORD = Path(__file__).parent / "records" / "data.json"
ROWS, COLUMNS = 5_000_000, 2_000
RUNS = 3
RECIPE = f"""
data: {{train: {{inputs: x.npy, targets: y.npy}}, valid: 0.0001}}
model: {{class: "gradstep.models:MLP", inputs: {COLUMNS}}}
criterion: CrossEntropyLoss
batch_size: 64
steps: 100
optimizer: {{name: SGD, lr: 0.01}}
"""
NOTHING = "import torch, torch.optim, gradstep.building; torch.optim.SGD([torch.zeros(1)], lr=0.1)"


def run(command: list[str], folder: Path) -> tuple[float, float]:
    """`(seconds, peak megabytes)` of a process."""
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, command
    return time.perf_counter() - began, usage.ru_maxrss / 1e3


def large_table(folder: Path) -> dict[str, object]:
    with open(folder / "x.npy", "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (ROWS, COLUMNS)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + ROWS * COLUMNS * 4)
    np.save(folder / "y.npy", np.arange(ROWS) % 10)
    (folder / "table.yaml").write_text(RECIPE)
    command = [sys.executable, "-m", "gradstep", "train", "table.yaml"]
    base = min(run([sys.executable, "-c", NOTHING], folder)[1] for _ in range(RUNS))
    runs = [run(command, folder) for _ in range(RUNS)]
    return {
        "table_gb": (folder / "x.npy").stat().st_size / 1e9,
        "seconds_to_the_end_of_100_steps": [round(seconds, 2) for seconds, _ in runs],
        "peak_mb_above_imports": [round(peak - base) for _, peak in runs],
    }


def many_files(folder: Path) -> dict[str, object]:
    images, labels = load_named("mnist").train.content  # type: ignore[attr-defined]  # MNIST lies in memory
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        path = folder / "digits" / str(label) / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(path)
    command = [sys.executable, "-m", "gradstep", "data", "show", "digits/"]
    return {"files": len(images), "seconds": [round(run(command, folder)[0], 1) for _ in range(RUNS)]}


def main() -> None:
    os.environ.setdefault("GRADSTEP_DATA", str(Path(__file__).resolve().parents[2] / "shared" / "data"))
    record: dict[str, object] = {"cores": os.cpu_count(), "processor": platform.machine(), "torch": torch.__version__}
    with tempfile.TemporaryDirectory() as folder:
        record["large_table"] = large_table(Path(folder))
        record["many_files"] = many_files(Path(folder))
    print(json.dumps(record, indent=1))
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
