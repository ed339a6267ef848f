"""What every tool is given: models, data, the exact answers, and a witness that sees each optimizer step."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

RATE = 0.5
Optimizer = torch.optim.Optimizer


def classifier(*, dropout: float = 0.0, norm: bool = False) -> nn.Module:
    """Six numbers to three classes, in float64; the same weights at every call."""
    torch.manual_seed(7)
    middle: list[nn.Module] = [nn.BatchNorm1d(16)] if norm else []
    last = [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(nn.Linear(6, 16), *middle, nn.Tanh(), *last, nn.Linear(16, 3)).double()


def samples(count: int) -> tuple[Tensor, Tensor]:
    """Inputs `[count, 6]` and classes `[count]`."""
    draw = torch.Generator().manual_seed(11)
    inputs = torch.randn(count, 6, generator=draw, dtype=torch.float64)
    return inputs, torch.randint(0, 3, (count,), generator=draw)


class Tagger(nn.Module):
    """Tokens `[batch, time]` to logits `[batch, class, time]`, the layout of torch's cross entropy."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.embed, self.head = nn.Embedding(11, 5), nn.Linear(5, 7)
        self.double()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embed(tokens).tanh()).transpose(1, 2)


def sentences(lengths: Iterable[int]) -> tuple[Tensor, Tensor]:
    """Padded tokens and their targets; a target behind a sentence's end is -100, which cross entropy ignores."""
    lengths = list(lengths)
    draw = torch.Generator().manual_seed(13)
    tokens = torch.randint(0, 11, (len(lengths), max(lengths)), generator=draw)
    targets = torch.randint(0, 7, tokens.shape, generator=draw)
    behind = torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]
    return tokens, targets.masked_fill(behind, -100)


class Uniform(nn.Module):
    """One large parameter whose gradient is -1 everywhere, so that a value of it tells which step it is of."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.weight.sum()


def flat(parameters: Iterable[Tensor]) -> Tensor:
    return torch.cat([each.detach().flatten() for each in parameters]).clone()


def gradient(model: nn.Module, weights: Tensor, criterion: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """The gradient of one batch at `weights`, by torch alone."""
    parameters, at = {}, 0
    for name, parameter in model.named_parameters():
        parameters[name] = weights[at : at + parameter.numel()].view_as(parameter).clone().requires_grad_()
        at += parameter.numel()
    loss = criterion(torch.func.functional_call(model, parameters, (inputs,)), targets)
    return flat(torch.autograd.grad(loss, list(parameters.values())))


def distance(one: Tensor, exact: Tensor) -> float:
    return float((one - exact).norm() / exact.norm())


@dataclass
class Step:
    before: Tensor
    after: Tensor
    rate: float


class Witness:
    """Sees the weights before and after each step of a torch optimizer. A subclass may do more than look."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.steps = model, list[Step]()

    def attach(self, optimizer: Optimizer) -> Optimizer:
        optimizer.register_step_pre_hook(lambda opt, *_: self.before(float(opt.param_groups[0]["lr"])))
        optimizer.register_step_post_hook(lambda *_: self.after())
        return optimizer

    def before(self, rate: float) -> None:
        self.now, self.rate = flat(self.model.parameters()), rate

    def after(self) -> None:
        self.steps.append(Step(self.now, flat(self.model.parameters()), self.rate))


class Killer(Witness):
    """Kills its own process with SIGKILL right after the `at`-th step."""

    def __init__(self, model: nn.Module, at: int) -> None:
        super().__init__(model)
        self.at, self.done = at, 0

    def after(self) -> None:
        self.done += 1
        if self.done == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Job:
    """One epoch over `inputs` in their order, in micro-batches of `micro`, `window` of which make one step."""

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    micro: int
    window: int
    way: str
    folder: Path
    make: Callable[..., Optimizer] = torch.optim.SGD
    settings: dict[str, Any] = field(default_factory=lambda: {"lr": RATE})
    schedule: Callable[[int], float] | None = None
    criterion: nn.Module = field(default_factory=nn.CrossEntropyLoss)

    def __post_init__(self) -> None:
        self.witness = Witness(self.model)

    def optimizer(self, parameters: Iterable[Tensor]) -> Optimizer:
        return self.witness.attach(self.make(parameters, **self.settings))


@dataclass
class Task:
    """A whole training in `folder`, continued there where a former process left it, saved `every` step or epoch."""

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    criterion: nn.Module
    batch: int
    epochs: int
    rate: float
    momentum: float
    shuffle: bool
    way: str
    folder: Path
    witness: Witness

    @property
    def every(self) -> str:
        return "epoch" if self.way.startswith("epoch") else "step"

    def optimizer(self, parameters: Iterable[Tensor]) -> Optimizer:
        return self.witness.attach(torch.optim.SGD(parameters, lr=self.rate, momentum=self.momentum))


class OutOfMemory(nn.Module):
    """A model that runs out of memory once: at its `at`-th forward pass, if the batch is larger than `limit`."""

    def __init__(self, inner: nn.Module, at: int, limit: int) -> None:
        super().__init__()
        self.inner, self.at, self.limit, self.calls, self.raised = inner, at, limit, 0, 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += self.training
        if self.calls >= self.at > 0 and len(inputs) > self.limit and not self.raised:
            self.raised += 1
            raise torch.OutOfMemoryError("CUDA out of memory. This one is simulated.")
        return self.inner(inputs)
