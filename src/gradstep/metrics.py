"""Metrics: counts that stay on the device until someone reads them, exact whatever the batches.

Anything with torchmetrics' `update(outputs, targets)`, `compute()` and `reset()` is a metric; so is a function of
`(outputs, targets)` that returns a scalar (averaged over samples) or one value per sample.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from gradstep import tree
from gradstep.errors import ModelError, RecipeError, nearest

Value = float | list[Any]  # what a metric comes to: a number, or nested lists of them for a matrix
IGNORED = -100  # torch's own ignore_index


@runtime_checkable
class Metric(Protocol):
    """The protocol, torchmetrics' own. `higher_is_better` (True, False, None) is read where it is there."""

    def update(self, outputs: Any, targets: Any) -> None: ...

    def compute(self) -> Any: ...

    def reset(self) -> None: ...


class _Ratio:
    """A sum over a count, both on the device of what is added."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.total: Tensor | float = 0.0
        self.count: Tensor | int = 0

    def compute(self) -> Tensor | float:
        """The ratio; nan when nothing was counted."""
        if isinstance(self.count, int) and self.count == 0:
            return float("nan")
        return self.total / self.count

    def add(self, total: Tensor, count: Tensor | int) -> None:
        self.total = self.total + (total if total.device.type == "mps" else total.double())
        self.count = self.count + count


class Accuracy(_Ratio):
    """The share of samples whose target is among the `top` largest outputs.

    Outputs `[N, C, ...]`, targets `[N, ...]` of class numbers or `[N, C, ...]` of probabilities. Targets equal to
    `ignore_index` are left out.
    """

    higher_is_better = True

    def __init__(self, top: int = 1, ignore_index: int = IGNORED) -> None:
        super().__init__()
        self.top, self.ignore_index = top, ignore_index

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        targets = _class_numbers("accuracy", outputs, targets)
        if self.top == 1:
            hits = outputs.argmax(1) == targets
        else:
            hits = (outputs.topk(min(self.top, outputs.shape[1]), 1).indices == targets.unsqueeze(1)).any(1)
        counted = targets != self.ignore_index
        self.add((hits & counted).sum(), counted.sum())


class ConfusionMatrix:
    """Counts `[C, C]` of samples by target (row) and largest output (column)."""

    higher_is_better = None

    def __init__(self, ignore_index: int = IGNORED) -> None:
        self.ignore_index = ignore_index
        self.reset()

    def reset(self) -> None:
        self.counts: Tensor | None = None

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        targets = _class_numbers("confusion_matrix", outputs, targets).long()  # uint8 would overflow below
        classes = outputs.shape[1]
        if self.counts is None:
            self.counts = torch.zeros(classes * classes, dtype=torch.int64, device=outputs.device)
        counted = targets != self.ignore_index
        cells = targets.where(counted, 0) * classes + outputs.argmax(1)
        self.counts.scatter_add_(0, cells.flatten(), counted.flatten().long())

    def compute(self) -> Tensor:
        if self.counts is None:
            return torch.zeros(0, 0, dtype=torch.int64)
        side = round(len(self.counts) ** 0.5)
        return self.counts.reshape(side, side)


class SquaredError(_Ratio):
    """The mean over all elements of (output − target)²."""

    higher_is_better = False

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        _same_shape("mse", outputs, targets)
        self.add((outputs - targets).square().sum(), outputs.numel())


class AbsoluteError(_Ratio):
    """The mean over all elements of |output − target|."""

    higher_is_better = False

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        _same_shape("mae", outputs, targets)
        self.add((outputs - targets).abs().sum(), outputs.numel())


class Mean(_Ratio):
    """A function of `(outputs, targets)`, averaged over samples."""

    higher_is_better = None

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.function = function

    def update(self, outputs: Any, targets: Any) -> None:
        samples = tree.samples(outputs) or 1
        value = self.function(outputs, targets)
        value = value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64)
        if value.dim() == 0:
            self.add(value * samples, samples)
        elif value.dim() == 1 and len(value) == samples:
            self.add(value.sum(), samples)
        else:
            raise ModelError(
                f"a metric's function returned shape {list(value.shape)} for {samples} samples. "
                "It must return a scalar or one value per sample."
            )


def _class_numbers(name: str, outputs: Any, targets: Tensor) -> Tensor:
    """Targets `[N, ...]` that fit outputs `[N, C, ...]`; the likeliest class of those given as probabilities."""
    if not isinstance(outputs, Tensor) or outputs.dim() < 2 or outputs.shape[1] < 2:
        raise ModelError(
            f"{name} needs one output per class, [N, C, ...], and the outputs are {tree.describe(outputs)}. For "
            "one logit per sample: metrics={'accuracy': lambda o, t: ((o > 0) == (t > 0.5)).float().mean()}."
        )
    if targets.is_floating_point() and targets.shape == outputs.shape:
        targets = targets.argmax(1)
    if targets.shape != outputs.shape[:1] + outputs.shape[2:]:
        raise ModelError(
            f"{name} needs targets {list(outputs.shape[:1] + outputs.shape[2:])} for outputs "
            f"{list(outputs.shape)}, and they are {tree.describe(targets)}."
        )
    return targets


def _same_shape(name: str, outputs: Tensor, targets: Tensor) -> None:
    if outputs.shape != targets.shape:  # torch would broadcast [N, 1] against [N] to [N, N] without a word
        raise ModelError(
            f"{name} needs outputs and targets of one shape, and they are {list(outputs.shape)} "
            f"and {list(targets.shape)}. Squeeze or unsqueeze one of them."
        )


NAMED: dict[str, Callable[[], Metric]] = {
    "accuracy": Accuracy,
    "confusion_matrix": ConfusionMatrix,
    "mse": SquaredError,
    "mae": AbsoluteError,
}


class MetricSet:
    """Metrics by name, updated together without gradients."""

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        self.metrics = dict(metrics)

    def fresh(self, device: torch.device) -> MetricSet:
        """The same metrics with counts of their own, on `device`."""
        copies = {name: copy.deepcopy(metric) for name, metric in self.metrics.items()}
        for metric in copies.values():
            metric.reset()
            if hasattr(metric, "to"):
                metric.to(device)
        return MetricSet(copies)

    def higher_is_better(self, name: str) -> bool | None:
        return getattr(self.metrics.get(name), "higher_is_better", None)

    def refuse(self, taken: Iterable[str]) -> None:
        """RecipeError for a metric that is called as the loss or one of its terms is."""
        for name in taken:
            if name in self.metrics:
                raise RecipeError(f"metrics: '{name}' is the name of the loss or of a term of it. Call it another.")

    def reset(self) -> None:
        for metric in self.metrics.values():
            metric.reset()

    @torch.no_grad()
    def update(self, outputs: Any, targets: Any) -> None:
        for metric in self.metrics.values():
            metric.update(outputs, targets)

    def compute(self) -> dict[str, Value]:
        """The values as numbers of this process: each waits for the device."""
        values: dict[str, Value] = {}
        for name, metric in self.metrics.items():
            value = metric.compute()
            if isinstance(value, Mapping):  # torchmetrics' collections
                values |= {f"{name}/{part}": _number(each) for part, each in value.items()}
            else:
                values[name] = _number(value)
        return values


def _number(value: Any) -> Value:
    if isinstance(value, Tensor):
        listed: Value = value.tolist()
        return listed if isinstance(listed, list) else float(listed)
    return float(value)


def resolve(given: Any) -> MetricSet:
    """A set out of what `metrics=` takes: a name, a metric, a function; a sequence of them; a dict of name to one.

    `{"top_k": 5}` is the accuracy of the five largest, called `top5`.
    """
    if given is None:
        return MetricSet({})
    if isinstance(given, Mapping) and set(given) != {"top_k"}:
        return MetricSet({name: _metric(each)[1] for name, each in given.items()})
    several = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    named = [_metric(each) for each in several]
    names = [name for name, _ in named]
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(f"metrics: two are called '{name}'. Name them: metrics={{'first': ..., 'second': ...}}.")
    return MetricSet(dict(named))


def _metric(given: Any) -> tuple[str, Metric]:
    if isinstance(given, str):
        if given not in NAMED:
            known = [*NAMED, "top_k"]
            raise RecipeError(
                f"metrics: '{given}' is not one of {', '.join(NAMED)}, {{top_k: 5}}.{nearest(given, known)}"
            )
        return given, NAMED[given]()
    if isinstance(given, Mapping) and set(given) == {"top_k"}:
        k = given["top_k"]
        if not isinstance(k, int) or k < 1:
            raise RecipeError(f"metrics: top_k takes a positive number, not {k!r}.")
        return f"top{k}", Accuracy(top=k)
    if isinstance(given, type):
        given = given()
    if isinstance(given, Metric):
        return type(given).__name__, given
    if callable(given):
        return getattr(given, "__name__", type(given).__name__), Mean(given)
    raise RecipeError(
        f"metrics: {given!r} is neither a name, a function of (outputs, targets), nor an object with update, "
        "compute and reset."
    )
