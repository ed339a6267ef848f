"""What every contender is given: nets with their first weights, criteria, optimizers, data and the order of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradstep.models import LeNet, Torch7Net, TwoLayerNet

BATCH = 64
ORDERS = 4  # epochs whose order is written down; they come round again after that


@dataclass(frozen=True)
class Problem:
    """A training. `size` is that of MNIST's images, or None where the numbers are random."""

    net: Callable[[], nn.Module]
    criterion: Callable[[], nn.Module]
    optimizer: type[torch.optim.Optimizer]
    settings: dict[str, float]
    threads: int
    size: int | None = None


def _two_layer(optimizer: type[torch.optim.Optimizer]) -> Problem:
    return Problem(lambda: TwoLayerNet(1000, 100, 10), nn.MSELoss, optimizer, {"lr": 1e-4}, threads=1)


SGD, Adam = torch.optim.SGD, torch.optim.Adam
PROBLEMS = {
    # Nothing to compute: what is left is the loop's own.
    "null": Problem(lambda: nn.Linear(1, 1), nn.MSELoss, SGD, {"lr": 0.01}, threads=1),
    "torch7": Problem(Torch7Net, nn.NLLLoss, SGD, {"lr": 0.05}, threads=2, size=28),
    "lenet": Problem(
        lambda: LeNet(channels=1), nn.CrossEntropyLoss, SGD, {"lr": 0.05, "momentum": 0.9}, threads=2, size=32
    ),
    "two_layer_sgd": _two_layer(SGD),
    "two_layer_adam": _two_layer(Adam),
}


@dataclass(frozen=True)
class Job:
    """What one contender does: `kind` is step (resident floats), data (from bytes) or evaluate (a pass a time)."""

    tool: str
    problem: str
    kind: str = "step"
    threads: int = 1
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def what(self) -> Problem:
        return PROBLEMS[self.problem]

    def model(self) -> nn.Module:
        """The net at its start: the same weights in every process."""
        torch.manual_seed(0)
        return self.what.net()

    def optimizer(self, parameters: Any, **options: Any) -> torch.optim.Optimizer:
        """`rate` among the job's options is a planted error: the tests see that the parity gate finds it."""
        settings = {**self.what.settings, **options}
        if "rate" in self.options:
            settings["lr"] = self.options["rate"]
        return self.what.optimizer(parameters, **settings)

    def channels_last(self, model: nn.Module) -> nn.Module:
        wanted = bool(self.options.get("channels_last"))
        return model.to(memory_format=torch.channels_last) if wanted else model  # type: ignore[call-overload]


@dataclass(frozen=True)
class Data:
    """Files of one problem in a folder; each is read when it is asked for, so nobody holds what it does not use."""

    folder: Path

    def read(self, name: str) -> Tensor:
        """A plain read: memory of the process's own, the same for every contender."""
        return torch.from_numpy(np.load(self.folder / f"{name}.npy"))

    @property
    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation of the images in [0, 1]."""
        mean, std = json.loads((self.folder / "moments.json").read_text())
        return mean, std


def prepare(name: str, folder: Path) -> Data:
    """Writes down a problem's data, and the order in which gradstep's feed takes them: everybody's order then."""
    from gradstep.data.order import permutation  # here, so that a loop by hand needs nothing of it

    folder.mkdir(parents=True, exist_ok=True)
    tensors = _mnist(PROBLEMS[name].size or 28, folder) if PROBLEMS[name].size else _random(name)
    length = len(tensors["inputs"])
    tensors["order"] = torch.stack([permutation(length, 0, epoch) for epoch in range(ORDERS)])
    for each, tensor in tensors.items():
        np.save(folder / f"{each}.npy", tensor.numpy())
    return Data(folder)


def _random(name: str) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    rows, inputs, outputs = (BATCH * 4096, 1, 1) if name == "null" else (4096, 1000, 10)
    return {
        "inputs": torch.randn(rows, inputs, generator=draw),
        "targets": torch.randn(rows, outputs, generator=draw),
    }


def _mnist(size: int, folder: Path) -> dict[str, Tensor]:
    from gradstep import data

    splits = data.load_named("mnist")
    assert splits.test is not None
    padding = [(size - 28) // 2] * 4
    parts = {}
    for part, source in (("", splits.train), ("test_", splits.test)):
        images, labels = next(iter(data.Feed(source, len(source), shuffle=False).start(0)))
        parts[part + "bytes"], parts[part + "targets"] = F.pad(images, padding), labels.long()
    measured = data.prepare(data.load_named("mnist"), [data.ToFloat(), data.Normalize()]).train.transforms[1]
    mean, std = float(measured.mean[0]), float(measured.std[0])  # type: ignore[attr-defined]
    (folder / "moments.json").write_text(json.dumps([mean, std]))
    for part in ("", "test_"):
        parts[part + "inputs"] = normalized(parts[part + "bytes"], mean, std)
    return parts


def normalized(images: Tensor, mean: float, std: float) -> Tensor:
    """Bytes to floats in the arithmetic of gradstep's `ToFloat` and `Normalize`."""
    return (images.float().div_(255) - torch.tensor([mean])) / torch.tensor([std])
