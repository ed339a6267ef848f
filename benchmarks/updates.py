"""`python -m benchmarks.updates`: what exact updates cost, as ratios measured in one run. Record: records/updates.json.

Comparisons on MNIST, each between two ways of taking the same step (forward, criterion, backward, SGD):

- `accumulate` against an accumulation loop as anybody writes it, with the same micro-batches;
- `two_pass` at batch 2,048 in pieces of 256 against one pass over the batch: conv 20, conv 50, linear 128, supervised
  contrastive loss, channels_last;
- the same two passes written out in eight lines, against one pass: what this machine allows;
- a step with keyed dropout against the same step with torch's, on the nets of the seeds with dropout added.

The two take turns in blocks, A B B A; the ratio is the median of the pairs', with a bootstrap interval of 95 %. Before
anything is timed both give their gradient, which must agree, or the cell is void.
"""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradstep import data
from gradstep.models import LeNet
from gradstep.update import Update

RECORD = Path(__file__).parent / "records" / "updates.json"
THREADS = 2
Step = Callable[[], object]


def mnist(samples: int, size: int = 28) -> tuple[Tensor, Tensor]:
    """`(images [N, 1, size, size] float32, labels [N])`: the first of the real MNIST."""
    source = data.prepare(data.load_named("mnist"), [data.ToFloat(), data.Normalize()]).train
    inputs, targets = next(iter(data.Feed(source, samples, shuffle=False).start(0)))
    if size != 28:
        inputs = F.pad(inputs, [(size - 28) // 2] * 4)
    return inputs, targets


def caffe_net() -> nn.Module:
    """The net of the Torch7 document, which ends in class scores."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
    )  # fmt: skip


def embedding_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(800, 128)
    )


def supervised_contrastive(outputs: Tensor, targets: Tensor, temperature: float = 0.1) -> Tensor:
    """Khosla et al. 2020, "Supervised contrastive learning", equation 2."""
    z = F.normalize(outputs, dim=1)
    scores = (z @ z.T / temperature).fill_diagonal_(float("-inf"))
    log_p = scores.log_softmax(1)
    same = (targets[:, None] == targets[None]).fill_diagonal_(False)
    return -(log_p.masked_fill(~same, 0).sum(1) / same.sum(1).clamp(min=1)).mean()


def ratio(
    make: Callable[[str], tuple[Step, nn.Module]], names: tuple[str, str], rounds: int, block: int
) -> dict[str, Any]:
    """The first's time over the second's: median of the pairs, with a bootstrap interval."""
    steps = {name: make(name) for name in names}
    gradients = []
    for name in names:
        step, model = steps[name]
        step()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        step()
    apart = float((gradients[0] - gradients[1]).norm() / gradients[1].norm())
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names if number % 2 == 0 else names[::-1]:
            began = time.perf_counter()
            for _ in range(block):
                steps[name][0]()
            times[name].append((time.perf_counter() - began) / block)
    pairs = [a / b for a, b in zip(times[names[0]], times[names[1]], strict=True)]
    draws = random.Random(0)
    medians = sorted(statistics.median(draws.choices(pairs, k=len(pairs))) for _ in range(2000))
    return {
        "ratio": round(statistics.median(pairs), 4),
        "interval": [round(medians[50], 4), round(medians[-50], 4)],
        "ms": {name: round(1e3 * statistics.median(times[name]), 3) for name in names},
        "gradients_apart": apart,
    }


def stepper(model: nn.Module, fill: Callable[[], object]) -> Step:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

    def step() -> None:
        optimizer.zero_grad()
        fill()
        optimizer.step()

    return step


def accumulation(
    net: Callable[[], nn.Module], batch: int, piece: int, size: int
) -> Callable[[str], tuple[Step, nn.Module]]:
    inputs, targets = mnist(batch, size)
    criterion = nn.CrossEntropyLoss()

    def make(name: str) -> tuple[Step, nn.Module]:
        torch.manual_seed(0)
        model = net()

        def by_hand() -> None:
            for first in range(0, batch, piece):
                rows = slice(first, first + piece)
                loss = criterion(model(inputs[rows]), targets[rows]) * (piece / batch)
                loss.backward()

        update = Update(model, criterion, micro_batch=piece)
        return stepper(model, by_hand if name == "by hand" else lambda: update.backward(inputs, targets)), model

    return make


def contrastive(batch: int, piece: int) -> Callable[[str], tuple[Step, nn.Module]]:
    inputs, targets = mnist(batch)
    inputs = inputs.to(memory_format=torch.channels_last)

    def make(name: str) -> tuple[Step, nn.Module]:
        torch.manual_seed(0)
        model = embedding_net().to(memory_format=torch.channels_last)
        update = Update(model, supervised_contrastive, micro_batch=piece)

        def one_pass() -> None:
            supervised_contrastive(model(inputs), targets).backward()

        def bare() -> None:
            with torch.no_grad():
                outputs = torch.cat([model(rows) for rows in inputs.split(piece)]).requires_grad_()
            supervised_contrastive(outputs, targets).backward()
            assert outputs.grad is not None
            for rows, gradient in zip(inputs.split(piece), outputs.grad.split(piece), strict=True):
                model(rows).backward(gradient)

        ways: dict[str, Callable[[], object]] = {"one pass": one_pass, "bare two passes": bare}
        return stepper(model, ways.get(name, lambda: update.backward(inputs, targets))), model

    return make


def dropped(net: Callable[[], nn.Module], batch: int, size: int) -> Callable[[str], tuple[Step, nn.Module]]:
    inputs, targets = mnist(batch, size)
    criterion = nn.CrossEntropyLoss()

    def make(name: str) -> tuple[Step, nn.Module]:
        torch.manual_seed(0)
        model = net()
        update = Update(model, criterion, dropout=name)
        return stepper(model, lambda: update.backward(inputs, targets)), model

    return make


def caffe_dropout() -> nn.Module:
    layers = list(caffe_net())
    return nn.Sequential(*layers[:2], nn.Dropout2d(0.1), *layers[2:7], nn.Dropout(0.5), layers[7])


def lenet_dropout() -> nn.Module:
    net = LeNet(channels=1)
    layers = list(net.classifier)
    net.classifier = nn.Sequential(*layers[:2], nn.Dropout(0.5), *layers[2:4], nn.Dropout(0.5), layers[4])
    return net


def main() -> None:
    os.environ.setdefault("GRADSTEP_DATA", str(Path(__file__).resolve().parents[2] / "shared" / "data"))
    torch.set_num_threads(THREADS)
    ours, hand = ("gradstep", "by hand"), ("keyed", "stream")
    cells = {
        "accumulate, document's net, 200 in pieces of 20": (accumulation(caffe_net, 200, 20, 28), ours, 40, 2),
        "accumulate, LeNet, 256 in pieces of 32": (accumulation(lambda: LeNet(1), 256, 32, 32), ours, 40, 3),
        "two_pass, 2048 in pieces of 256": (contrastive(2048, 256), ("gradstep", "one pass"), 20, 1),
        "two passes written out bare, 2048 in pieces of 256": (
            contrastive(2048, 256),
            ("bare two passes", "one pass"),
            20,
            1,
        ),
        "keyed dropout, document's net, batch 200": (dropped(caffe_dropout, 200, 28), hand, 40, 2),
        "keyed dropout, LeNet, batch 64": (dropped(lenet_dropout, 64, 32), hand, 40, 5),
    }
    results = {}
    for name, (make, names, rounds, block) in cells.items():
        results[name] = ratio(make, names, rounds, block)
        print(name, json.dumps(results[name]), flush=True)
    machine = {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "torch": str(torch.__version__),
        "threads": THREADS,
    }
    RECORD.write_text(json.dumps({"machine": machine, "ratios": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
