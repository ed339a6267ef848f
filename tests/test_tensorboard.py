"""What the TensorBoard hook writes, read back by TensorBoard's own reader."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import gradstep
from gradstep.errors import DivergedError, RecipeError

Scalars = dict[tuple[str, int], float]


def train(out: Path | None, *hooks: Any, **more: Any) -> gradstep.Run:
    """Three epochs of four steps, validated and tested, two groups, a named term and a metric that is a matrix."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(15, 3), torch.randint(0, 2, (15,))
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    terms = gradstep.Terms({"ce": nn.CrossEntropyLoss(), "size": lambda o, t: o.square().mean()}, {"size": 0.1})
    settings: dict[str, Any] = {
        "optimizer": torch.optim.SGD([{"params": net[0].parameters()}, {"params": [*net[1:].parameters()]}], lr=0.1),
        "schedule": lambda step, base: base / (1 + step),
        "metrics": ["accuracy", "confusion_matrix"],
        "log_every": "2 steps",
        "quiet": True,
        "epochs": 3,
    }
    data = (inputs, targets)
    return gradstep.fit(net, terms, data, data, data, batch_size=4, out=out, hooks=hooks, **settings | more)


def reader(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0})
    return events.Reload()


def scalars(events: EventAccumulator) -> Scalars:
    return {(tag, event.step): event.value for tag in events.Tags()["scalars"] for event in events.Scalars(tag)}


def of_the_record(folder: Path) -> Scalars:
    """Every number of metrics.jsonl that has a curve, at its step, and the times of the epochs."""
    found: Scalars = {}
    for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        for name, value in row.items():
            if name.startswith(("train/", "valid/", "test/")) and isinstance(value, (int, float)):
                found[name, row["step"]] = value
            if name in ("lr", "lr/1") and (row["kind"] == "train" or row["step"] == 0):
                found[name, row["step"]] = value
            if (name, row["kind"]) in (("samples", "train"), ("epoch", "epoch")):
                found[name, row["step"]] = value
    for row in map(json.loads, (folder / "timing.jsonl").read_text().splitlines()):
        if row["kind"] == "epoch":
            found["epoch_time", row["step"]] = row["training_s"]
    return found


def test_every_curve_has_each_step_and_value_of_the_record(tmp_path: Path) -> None:
    run = train(tmp_path, gradstep.TensorBoard(histograms="5 steps"))
    assert run.path is not None
    events = reader(run.path / "tensorboard")
    read, record = scalars(events), of_the_record(run.path)
    assert read == {place: float(np.float32(value)) for place, value in record.items()}
    assert set(events.Tags()["scalars"]) == {
        *("lr", "lr/1", "samples", "epoch", "epoch_time"),
        *("train/running_loss", "train/loss", "train/ce", "train/size", "train/accuracy"),
        *(f"{kind}/{name}" for kind in ("valid", "test") for name in ("loss", "ce", "size", "accuracy")),
    }
    for tag in events.Tags()["scalars"]:
        steps = [event.step for event in events.Scalars(tag)]
        assert steps == sorted(set(steps))  # each once


def test_rate_samples_epoch_and_its_time_are_at_the_steps_they_belong_to(tmp_path: Path) -> None:
    run = train(tmp_path, gradstep.TensorBoard())
    assert run.path is not None
    events = reader(run.path / "tensorboard")
    assert {(e.step, e.value) for e in events.Scalars("samples")} == {
        *((2, 8), (4, 15), (6, 23), (8, 30), (10, 38), (12, 45))
    }
    rates = {event.step: event.value for event in events.Scalars("lr")}
    assert rates == pytest.approx({0: 0.1, **{step: 0.1 / step for step in (2, 4, 6, 8, 10, 12)}}, rel=1e-6)
    assert [(event.step, event.value) for event in events.Scalars("epoch")] == [(4, 1), (8, 2), (12, 3)]
    assert [event.step for event in events.Scalars("epoch_time")] == [4, 8, 12]
    assert all(event.value > 0 for event in events.Scalars("epoch_time"))
    assert [event.step for event in events.Scalars("test/loss")] == [12]
    assert events.Tags()["histograms"] == []


class Keep:
    """Keeps each parameter and its gradient at some steps."""

    def __init__(self, *steps: int) -> None:
        self.steps, self.kept = steps, dict[tuple[str, int], torch.Tensor]()

    def on_train_batch_end(self, state: Any, outcome: Any) -> None:
        if state.step in self.steps:
            for name, parameter in state.model.named_parameters():
                self.kept[f"weights/{name}", state.step] = parameter.detach().clone()
                self.kept[f"gradients/{name}", state.step] = parameter.grad.clone()


def test_every_parameter_has_a_histogram_of_its_weights_and_gradients_whenever_one_is_due(tmp_path: Path) -> None:
    keep = Keep(5, 10)
    run = train(tmp_path, gradstep.TensorBoard(histograms="5 steps"), keep)
    assert run.path is not None
    events = reader(run.path / "tensorboard")
    read = {(tag, e.step): e.histogram_value for tag in events.Tags()["histograms"] for e in events.Histograms(tag)}
    assert len(keep.kept) == 2 * 6 * 2
    assert read.keys() == keep.kept.keys()
    for place, values in keep.kept.items():
        assert read[place].num == sum(read[place].bucket) == values.numel()
        assert read[place].sum == pytest.approx(values.double().sum().item(), rel=1e-5, abs=1e-6)
        assert (read[place].min, read[place].max) == pytest.approx((values.min().item(), values.max().item()))


def test_a_histogram_an_epoch_is_at_each_epochs_end(tmp_path: Path) -> None:
    train(None, gradstep.TensorBoard(histograms="1 epoch", folder=tmp_path / "elsewhere"))
    assert [event.step for event in reader(tmp_path / "elsewhere").Histograms("weights/0.weight")] == [4, 8, 12]


def test_watching_by_tensorboard_changes_no_weight_and_no_row(tmp_path: Path) -> None:
    watched, alone = train(tmp_path, gradstep.TensorBoard(histograms="1 step")), train(None)
    assert watched.history == alone.history
    for one, other in zip(watched.model.state_dict().values(), alone.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)


class KillAt:
    """Ends the process's run as a kill would: nothing is saved after it."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, state: Any, outcome: Any) -> None:
        if state.step == self.step:
            raise KeyboardInterrupt


def test_a_run_that_was_killed_and_resumed_has_each_point_once(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, gradstep.TensorBoard(histograms="2 steps"), KillAt(7))
    run = train(tmp_path, gradstep.TensorBoard(histograms="2 steps"), resume=True)
    assert run.path is not None
    events = reader(run.path / "tensorboard")
    whole = {tag for tag, _ in of_the_record(run.path)}
    assert set(events.Tags()["scalars"]) == whole
    for tag in whole - {"epoch_time"}:
        expected = {step: value for (name, step), value in of_the_record(run.path).items() if name == tag}
        points = [(event.step, event.value) for event in events.Scalars(tag)]
        assert points == [(step, float(np.float32(value))) for step, value in sorted(expected.items())]
    assert [event.step for event in events.Histograms("weights/0.weight")] == [2, 4, 6, 8, 10, 12]


def test_without_a_place_to_write_it_says_what_to_give() -> None:
    with pytest.raises(RecipeError, match=r"give fit an out=, or TensorBoard a folder="):
        train(None, gradstep.TensorBoard())


def test_a_histogram_length_without_a_unit_is_refused_at_once() -> None:
    with pytest.raises(RecipeError, match="histograms: 100 is not a duration"):
        gradstep.TensorBoard(histograms=100)  # type: ignore[arg-type]


def test_a_run_that_diverges_is_told_as_such_and_not_as_a_histogram_that_failed(tmp_path: Path) -> None:
    with pytest.raises(DivergedError):
        train(tmp_path, gradstep.TensorBoard(histograms="1 step"), schedule=lambda step, base: 1e25)
    events = reader(tmp_path / "latest" / "tensorboard")
    assert all(math.isfinite(event.value) for event in events.Scalars("lr"))
