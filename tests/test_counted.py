"""What a metric has counted is taken out, put into a fresh copy, and the count goes on exactly."""

from __future__ import annotations

import collections
import enum
import json
import re
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from torch import Tensor, nn
from torchmetrics.aggregation import RunningMean

from gradstep import metrics
from gradstep.counted import counts, set_counts
from gradstep.encoding import get, put
from gradstep.errors import CheckpointError, ModelError

CPU = torch.device("cpu")


def gap(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.amax(1) - targets).abs()


class Mode(enum.Enum):
    SUM = 1


class Own:
    """Counts in Python's numbers, NumPy's, a list and a dict of tensors; with settings of odd kinds."""

    def __init__(self) -> None:
        self.mode, self.kind, self.function, self.names = Mode.SUM, torch.float64, gap, re.compile("a.*")
        self.reset()

    def reset(self) -> None:
        self.total, self.batches, self.seen = 0.0, 0, np.zeros(3, np.int64)
        self.history: list[Any] = []
        self.by_class: dict[int, Tensor] = {}

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.total += float(self.function(outputs, targets).sum())
        self.batches += 1
        self.seen += np.bincount(targets.numpy(), minlength=3)
        self.history.append((self.batches, outputs.mean()))
        for number in targets.tolist():
            self.by_class[number] = self.by_class.get(number, torch.zeros(())) + outputs[0, 0]

    def compute(self) -> Any:
        parts = [self.total / self.batches, *self.seen / 7, *(value for _, value in self.history)]
        return torch.tensor([float(each) for each in [*parts, *(self.by_class[key] for key in sorted(self.by_class))]])


class Slotted:
    __slots__ = ("total",)

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.total = 0.0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.total += float(outputs.sum())

    def compute(self) -> float:
        return self.total


class SavesItself:
    """Keeps a deque, and says itself how that is saved."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.last: collections.deque[float] = collections.deque(maxlen=4)

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.last.append(float(outputs.sum()))

    def compute(self) -> float:
        return sum(self.last)

    def state_dict(self) -> dict[str, Any]:
        return {"last": list(self.last)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.last = collections.deque(state["last"], maxlen=4)


class OfOthers:
    """Metrics inside a metric: one by itself, one in a list, one in a dict."""

    def __init__(self) -> None:
        self.first, self.more, self.named = Own(), [metrics.Accuracy(), 1], {"sum": SavesItself()}

    def _each(self) -> list[Any]:
        return [self.first, self.more[0], self.named["sum"]]

    def reset(self) -> None:
        for each in self._each():
            each.reset()

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        for each in self._each():
            each.update(outputs, targets)

    def compute(self) -> Tensor:
        return torch.cat([torch.as_tensor(each.compute()).flatten().double() for each in self._each()])


class AsModule(nn.Module):
    """A module with a buffer, a plain number, and a network that is equipment."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(()))
        self.net, self.batches = nn.BatchNorm1d(3), 0

    def reset(self) -> None:
        self.total, self.batches = torch.zeros_like(self.total), 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.total += outputs.sum()
        self.batches += 1

    def compute(self) -> Tensor:
        return self.total / self.batches


def collection() -> torchmetrics.MetricCollection:
    of_classes = {"num_classes": 3, "average": "macro"}
    return torchmetrics.MetricCollection(
        {
            "precision": torchmetrics.classification.MulticlassPrecision(**of_classes),
            "recall": torchmetrics.classification.MulticlassRecall(**of_classes),
            "auroc": torchmetrics.classification.MulticlassAUROC(**of_classes, thresholds=None),
            "ap": torchmetrics.classification.MulticlassAveragePrecision(**of_classes, thresholds=None),
        }
    )


class OfOutputs:
    """One of torchmetrics' aggregations, given the outputs alone."""

    def __init__(self, inner: torchmetrics.Metric) -> None:
        self.inner = inner

    def reset(self) -> None:
        self.inner.reset()

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.inner.update(outputs.mean())

    def compute(self) -> Any:
        value = self.inner.compute()
        return {name: float(each) for name, each in value.items()} if isinstance(value, dict) else value


METRICS = {
    **{name: make for name, make in metrics.NAMED.items() if name not in ("mse", "mae")},
    "top2": lambda: metrics.Accuracy(top=2),
    "a function": lambda: metrics.Mean(gap),
    "a function of one number": lambda: metrics.Mean(lambda outputs, targets: outputs.mean()),
    "own": Own,
    "slots": Slotted,
    "state_dict": SavesItself,
    "of others": OfOthers,
    "a module": AsModule,
    "torchmetrics, accuracy": lambda: torchmetrics.Accuracy(task="multiclass", num_classes=3),
    "torchmetrics, AUROC": lambda: torchmetrics.AUROC(task="multiclass", num_classes=3),
    "torchmetrics, AUROC, binned": lambda: torchmetrics.AUROC(task="multiclass", num_classes=3, thresholds=7),
    "torchmetrics, mean": lambda: OfOutputs(torchmetrics.MeanMetric()),
    "torchmetrics, running": lambda: OfOutputs(RunningMean(4)),
    "torchmetrics, least and most": lambda: OfOutputs(torchmetrics.MinMaxMetric(torchmetrics.MeanMetric())),
    "torchmetrics, collection": collection,
    "torchmetrics, sum of two": lambda: (
        torchmetrics.Accuracy(task="multiclass", num_classes=3) + torchmetrics.Recall(task="multiclass", num_classes=3)
    ),
}


def batch(number: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    outputs = torch.randn(5, 3, generator=generator).softmax(1)
    return outputs, torch.randint(0, 3, (5,), generator=generator)


def through_json(metric: Any) -> Any:
    kept: dict[str, Tensor] = {}
    document = json.loads(json.dumps(put("m", counts(metric), kept, "the metric"), allow_nan=False))
    kept = {name: value.clone() for name, value in kept.items()}
    return get(document, kept, CPU)


def come_to(metric: Any) -> Any:
    return metrics.MetricSet({"m": metric}).compute()


@pytest.mark.parametrize("looked_at", [False, True], ids=["", "looked at"])
@pytest.mark.parametrize("cut", [1, 3])
@pytest.mark.parametrize("name", METRICS)
def test_counts_put_into_a_fresh_copy_go_on_to_the_very_number(name: str, cut: int, looked_at: bool) -> None:
    whole, stopped, fresh = METRICS[name](), METRICS[name](), METRICS[name]()
    for number in range(6):
        whole.update(*batch(number))
    for number in range(cut):
        stopped.update(*batch(number))
    if looked_at:  # torchmetrics keeps what it came to until the next update
        stopped.compute()
    saved = through_json(stopped)
    stopped.update(*batch(99))  # what was saved is not what goes on counting
    set_counts(fresh, saved)
    for number in range(cut, 6):
        fresh.update(*batch(number))
    assert come_to(fresh) == come_to(whole)
    again = METRICS[name]()
    set_counts(again, through_json(fresh))
    assert come_to(again) == come_to(whole)


def test_torchmetrics_count_of_updates_comes_back() -> None:
    stopped, fresh = METRICS["torchmetrics, AUROC"](), METRICS["torchmetrics, AUROC"]()
    assert not fresh.update_called
    stopped.update(*batch(0))
    set_counts(fresh, through_json(stopped))
    assert fresh.update_count == 1


def test_metrics_of_a_collection_that_share_a_count_share_it_again() -> None:
    stopped, fresh = collection(), collection()
    stopped.update(*batch(0))
    set_counts(fresh, through_json(stopped))
    fresh.update(*batch(1))
    groups = {tuple(sorted(group)) for group in fresh.compute_groups.values()}
    assert groups == {("ap", "auroc"), ("precision", "recall")}
    assert fresh["auroc"].update_count == 2


def with_attribute(**kept: Any) -> Any:
    metric = Slotless()
    metric.__dict__ |= kept
    return metric


class Slotless(Slotted):
    __slots__ = ("__dict__",)


class Theirs(torchmetrics.Metric):
    def __init__(self) -> None:
        super().__init__()
        self.window: collections.deque[int] = collections.deque()

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.window.append(1)

    def compute(self) -> int:
        return len(self.window)


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (with_attribute(window=collections.deque()), "Slotless keeps 'window', a deque"),
        (with_attribute(seen={1}), "Slotless keeps 'seen', a set"),
        (with_attribute(by=collections.Counter("a")), "Slotless keeps 'by', a Counter"),
        (with_attribute(parts=[{"a": collections.deque()}]), "Slotless keeps 'parts', a list"),
        (with_attribute(generator=torch.Generator()), "Slotless keeps 'generator', a Generator"),
        (Theirs(), "Theirs keeps 'window', a deque"),
    ],
)
def test_an_attribute_that_can_not_be_saved_is_named_at_once_with_what_to_do(metric: Any, said: str) -> None:
    with pytest.raises(ModelError, match=rf"{said}.*Give the metric state_dict\(\) and load_state_dict\(\)"):
        counts(metric)


def test_counts_of_another_metric_are_refused() -> None:
    with pytest.raises(CheckpointError, match="Own lacks"):
        set_counts(Own(), counts(collection()))
