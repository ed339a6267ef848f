"""Three factors decide what comes of a training: the optimizer, the initialisation and the learning rate.

Each combination is one short run of LeNet on MNIST, with a folder of its own. The table can be killed at any time:
started again, it goes on where it was. What is in table.json is not trained again, and a run that was cut off goes on
from its last epoch. All runs see the same images in the same order, and start from the same seed.

Run:     python examples/three_factors.py
Cost:    15 seconds for 2 x 2 x 2 runs on 1,000 images; --full, 5 x 4 x 4 runs on 20,000 images, 12 minutes on 2 cores
Result:  the best combination reaches a validation accuracy of 0.80, and each factor alone moves it by 0.10 or more
"""

import argparse
import itertools
import json
import os
from pathlib import Path

import torch
from torch import nn

import gradstep
from gradstep import data
from gradstep.errors import DivergedError

OPTIMIZERS = {
    "SGD": torch.optim.SGD,
    "momentum": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
    "RMSprop": torch.optim.RMSprop,
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
}
QUICK = {"optimizers": ["SGD", "Adam"], "initialisations": ["heuristic", "kaiming"], "rates": [0.1, 0.001],
         "samples": 1000, "batch_size": 16, "epochs": 2}  # fmt: skip
FULL = {"optimizers": list(OPTIMIZERS), "initialisations": ["heuristic", "xavier", "kaiming", "orthogonal"],
        "rates": [0.1, 0.01, 0.001, 0.0001], "samples": 20_000, "batch_size": 64, "epochs": 1}  # fmt: skip
FACTORS = ("optimizer", "initialisation", "rate")
CHANCE = 0.1  # the accuracy of guessing one of ten digits: what a run that diverged counts as


def mnist(samples):
    """`[N, 1, 32, 32]`, from 0 to 1: the first training images, and a quarter as many others for validation."""
    os.environ.setdefault("GRADSTEP_DATA", str(Path(__file__).resolve().parents[2] / "shared" / "data"))
    images, labels = data.load_named("mnist").train.content
    train, valid = slice(samples), slice(50_000, 50_000 + samples // 4)
    return [(nn.functional.pad(images[part].float() / 255, (2, 2, 2, 2)), labels[part]) for part in (train, valid)]


def accuracy(optimizer, initialisation, rate, images, settings, out):
    """The validation accuracy of one run, in its best epoch; None if it diverged."""
    model = gradstep.initialize(gradstep.models.LeNet(channels=1), initialisation, seed=0)
    try:
        run = gradstep.fit(
            model,
            nn.CrossEntropyLoss(),
            *images,
            optimizer=lambda parameters: OPTIMIZERS[optimizer](parameters, lr=rate),
            batch_size=settings["batch_size"],
            epochs=settings["epochs"],
            metrics=["accuracy"],
            out=out,
            name=f"{optimizer}-{initialisation}-{rate:g}",
            resume=True,
            quiet=True,
        )
    except DivergedError:
        return None
    return run.best.value


# The table: a list of cells, each with its three factors and its accuracy.


def read(path, settings):
    """The cells that an earlier call has left, if it was the same table."""
    if not path.exists():
        return []
    table = json.loads(path.read_text())
    if table["settings"] != settings:
        raise SystemExit(f"{path} is another table: {table['settings']}. Give this one a folder of its own: --out DIR")
    return table["cells"]


def write(path, text):
    """All or nothing: whoever is killed here leaves the file as it was."""
    beside = path.with_name(f".{path.name}")
    beside.write_text(text)
    beside.replace(path)


def as_json(settings, cells):
    return json.dumps({"settings": settings, "cells": cells}, indent=1) + "\n"


def shown(value):
    return "diverged" if value is None else f"{value:.3f}"


def as_markdown(settings, cells):
    rates, found = settings["rates"], {tuple(cell[factor] for factor in FACTORS): cell["accuracy"] for cell in cells}
    lines = ["| optimizer | initialisation | " + " | ".join(f"{rate:g}" for rate in rates) + " |"]
    lines.append("|---|---|" + "---|" * len(rates))
    for row in itertools.product(settings["optimizers"], settings["initialisations"]):
        values = [found[*row, rate] for rate in rates]
        lines.append(f"| {' | '.join([*row, *map(shown, values)])} |")
    return "\n".join(lines) + "\n"


def counted(cell):
    return CHANCE if cell["accuracy"] is None else cell["accuracy"]


def moves(factor, cells):
    """The largest difference in accuracy between two cells that differ in this factor alone."""
    others = [other for other in FACTORS if other != factor]
    alike = {}
    for cell in cells:
        alike.setdefault(tuple(cell[other] for other in others), []).append(counted(cell))
    return max(max(values) - min(values) for values in alike.values())


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--full", action="store_true", help="the large table; what is given besides is changed in it")
parser.add_argument("--optimizers", nargs="+", choices=list(OPTIMIZERS))
parser.add_argument("--initialisations", nargs="+", help="as gradstep.initialize knows them")
parser.add_argument("--rates", nargs="+", type=float)
parser.add_argument("--samples", type=int, help="at most 50,000")
parser.add_argument("--batch-size", type=int)
parser.add_argument("--epochs", type=int)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--out", type=Path, default=Path("runs/three_factors"), help="the folder of the table and its runs")
parser.add_argument("--record", type=Path, help="a JSON file that gets the finished table too")
options = parser.parse_args()
torch.set_num_threads(options.threads)
standard = FULL if options.full else QUICK
settings = {name: getattr(options, name) or usual for name, usual in standard.items()}

options.out.mkdir(parents=True, exist_ok=True)
images = mnist(settings["samples"])
cells = read(options.out / "table.json", settings)
grid = itertools.product(settings["optimizers"], settings["initialisations"], settings["rates"])
for number, factors in enumerate(grid):
    if number == len(cells):  # all before it are there: cells are made in this order
        value = accuracy(*factors, images, settings, options.out)
        cells.append({**dict(zip(FACTORS, factors, strict=True)), "accuracy": value})
        write(options.out / "table.json", as_json(settings, cells))
    print("{:>10} {:>15} {:8g}  ".format(*factors), shown(cells[number]["accuracy"]), flush=True)

table = as_markdown(settings, cells)
write(options.out / "table.md", table)
if options.record is not None:
    write(options.record, as_json(settings, cells))
print(f"\nValidation accuracy by learning rate\n\n{table}")
for factor in FACTORS:
    print(f"the {factor} alone moves it by up to {moves(factor, cells):.3f}")

best = max(counted(cell) for cell in cells)
assert settings != standard or best >= 0.8
assert settings != standard or all(moves(factor, cells) >= 0.1 for factor in FACTORS)
