"""Every metric is exact whatever the batches, and refuses shapes that torch would broadcast without a word."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gradstep
from gradstep import metrics
from gradstep.errors import ModelError, RecipeError
from gradstep.metrics import IGNORED, Accuracy, ConfusionMatrix, MetricSet

FAST = settings(max_examples=40, deadline=None)


class Data:
    """Outputs and targets of a few samples, and a way to cut them into batches."""

    def __init__(self, seed: int, shape: tuple[int, ...], parts: list[np.ndarray], ignored: float, label: int) -> None:
        draw = np.random.default_rng(seed)
        self.outputs = draw.standard_normal(shape)
        self.values = draw.standard_normal(shape)
        self.soft = draw.dirichlet(np.ones(shape[1]), (shape[0], *shape[2:])).swapaxes(-1, 1)
        self.classes = draw.integers(0, shape[1], (shape[0], *shape[2:]))
        self.classes[draw.random(self.classes.shape) < ignored] = label
        self.parts, self.ignored = parts, label

    def through(self, metric: Any, targets: np.ndarray) -> Any:
        """What the metric comes to, batch by batch."""
        together = metrics.resolve(metric)
        for part in self.parts:
            together.update(torch.from_numpy(self.outputs[part]), torch.from_numpy(targets[part]))
        (value,) = together.compute().values()
        return value


@st.composite
def data(draw: st.DrawFn) -> Data:
    samples, classes = draw(st.integers(1, 17)), draw(st.integers(2, 6))
    more = draw(st.sampled_from([(), (3,), (2, 2)]))
    cuts = sorted(draw(st.sets(st.integers(1, samples), max_size=5)) - {samples})
    order = np.array(draw(st.permutations(range(samples))))
    label = draw(st.sampled_from([IGNORED, 0, classes - 1]))
    seed, ignored = draw(st.integers(0, 2**32)), draw(st.sampled_from([0.0, 0.3, 1.0]))
    return Data(seed, (samples, classes, *more), np.split(order, cuts), ignored, label)


def hits(outputs: np.ndarray, classes: np.ndarray, top: int) -> np.ndarray:
    """Whether fewer than `top` outputs are larger than the target's own."""
    own = np.take_along_axis(outputs, np.clip(classes, 0, None)[:, None], 1)
    return ((outputs > own).sum(1) < top) & (classes >= 0)


@FAST
@given(data(), st.integers(1, 7))
def test_accuracy_of_any_partition_is_the_share_of_hits_among_all_that_count(data: Data, top: int) -> None:
    counted = data.classes != data.ignored
    expected = (hits(data.outputs, data.classes, top) & counted).sum() / counted.sum() if counted.any() else np.nan
    np.testing.assert_equal(data.through(Accuracy(top, data.ignored), data.classes), expected)


@FAST
@given(data())
def test_top_k_by_name_counts_the_k_largest_and_ignores_torchs_own_index(data: Data) -> None:
    data.classes[data.classes == data.ignored] = IGNORED
    counted = data.classes != IGNORED
    expected = hits(data.outputs, data.classes, 2)[counted].mean() if counted.any() else np.nan
    assert list(metrics.resolve({"top_k": 2}).metrics) == ["top2"]
    np.testing.assert_allclose(data.through({"top_k": 2}, data.classes), expected, rtol=1e-15)


@FAST
@given(data())
def test_accuracy_of_soft_targets_is_that_of_their_largest_class(data: Data) -> None:
    expected = (data.outputs.argmax(1) == data.soft.argmax(1)).mean()
    assert data.through("accuracy", data.soft) == pytest.approx(expected, rel=1e-15)


@FAST
@given(data())
def test_squared_and_absolute_error_of_any_partition_are_means_over_all_elements(data: Data) -> None:
    error = data.outputs - data.values
    assert data.through("mse", data.values) == pytest.approx(np.square(error).mean(), rel=1e-12)
    assert data.through("mae", data.values) == pytest.approx(np.abs(error).mean(), rel=1e-12)


@FAST
@given(data())
def test_confusion_matrix_of_any_partition_counts_targets_in_rows_and_outputs_in_columns(data: Data) -> None:
    size = data.outputs.shape[1]
    expected = np.zeros((size, size), int)
    counted = data.classes != data.ignored
    np.add.at(expected, (data.classes[counted], data.outputs.argmax(1)[counted]), 1)
    np.testing.assert_array_equal(data.through(ConfusionMatrix(data.ignored), data.classes), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_confusion_matrix_and_accuracy_take_labels_of_any_integer_type(dtype: torch.dtype) -> None:
    outputs, labels = torch.eye(40), torch.arange(40).to(dtype)
    together = metrics.resolve(["confusion_matrix", "accuracy"])
    together.update(outputs, labels)
    assert together.compute() == {"confusion_matrix": np.eye(40, dtype=int).tolist(), "accuracy": 1.0}


@FAST
@given(data())
def test_a_function_per_sample_is_averaged_over_samples_whatever_the_batches(data: Data) -> None:
    def longest(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).abs().flatten(1).amax(1)

    expected = np.abs(data.outputs - data.values).reshape(len(data.outputs), -1).max(1).mean()
    assert data.through(longest, data.values) == pytest.approx(expected, rel=1e-12)


@FAST
@given(data())
def test_a_function_that_returns_a_mean_counts_by_the_samples_of_each_batch(data: Data) -> None:
    expected = (data.outputs * data.values).mean()
    assert data.through(lambda o, t: (o * t).mean(), data.values) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_function_may_return_pythons_own_numbers_and_none_of_their_digits_is_lost() -> None:
    together = metrics.resolve({"tenth": lambda outputs, targets: 0.1, "two": lambda outputs, targets: 2})
    together.update(torch.zeros(1, 2), torch.zeros(1))
    assert together.compute() == {"tenth": 0.1, "two": 2.0}


def test_a_function_sees_nested_outputs_and_counts_their_samples() -> None:
    together = metrics.resolve({"gap": lambda outputs, targets: (outputs["a"] - targets["b"]).mean()})
    for size, value in ((3, 1.0), (1, 5.0)):
        together.update({"a": torch.full((size,), value)}, {"b": torch.zeros(size)})
    assert together.compute() == {"gap": 2.0}


@pytest.mark.parametrize("shape", [(3,), (4, 1), (4, 2), (1,), (0,)])
def test_a_function_that_returns_neither_a_scalar_nor_one_value_per_sample_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"for 4 samples\. It must return a scalar or one value per sample"):
        metrics.resolve(lambda outputs, targets: torch.zeros(shape)).update(torch.zeros(4, 2), torch.zeros(4))


@pytest.mark.parametrize("name", ["mse", "mae"])
@pytest.mark.parametrize("shapes", [((4, 1), (4,)), ((4,), (4, 1)), ((4, 3), (4, 1)), ((4, 3), (1, 3))])
def test_errors_of_numbers_never_broadcast(name: str, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    outputs, targets = shapes
    with pytest.raises(ModelError) as raised:
        metrics.resolve(name).update(torch.zeros(outputs), torch.zeros(targets))
    assert name in str(raised.value)
    assert str(list(outputs)) in str(raised.value)
    assert str(list(targets)) in str(raised.value)


@pytest.mark.parametrize("name", ["accuracy", "confusion_matrix"])
@pytest.mark.parametrize(
    ("outputs", "targets"),
    [
        (torch.zeros(4), torch.zeros(4, dtype=torch.int64)),  # one logit per sample
        (torch.zeros(4, 3), torch.zeros(4, 1, dtype=torch.int64)),  # would broadcast to [4, 4]
        (torch.zeros(4, 3), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(4, 3, 2), torch.zeros(4, dtype=torch.int64)),
    ],
)
def test_class_metrics_refuse_shapes_that_do_not_fit(name: str, outputs: Tensor, targets: Tensor) -> None:
    with pytest.raises(ModelError, match=name.split("_")[0]):
        metrics.resolve(name).update(outputs, targets)


def test_accuracy_of_a_single_logit_says_what_to_write_instead() -> None:
    with pytest.raises(ModelError, match=r"one output per class.*metrics=\{'accuracy': lambda o, t:"):
        metrics.resolve("accuracy").update(torch.zeros(4, 1), torch.zeros(4))


@pytest.mark.parametrize(
    ("given", "hint"),
    [("acuracy", "accuracy"), ("confusion", "confusion_matrix"), ("MSE", "mse"), ("topk", "top_k")],
)
def test_an_unknown_name_is_an_error_that_names_the_nearest(given: str, hint: str) -> None:
    with pytest.raises(RecipeError, match=f"'{given}' is not one of .*Did you mean '{hint}'"):
        metrics.resolve(["mae", given])


@pytest.mark.parametrize("given", [7, [None], {"a": 3.5}, {"top_k": 0}, [{"top_k": "5"}]])
def test_what_is_no_metric_is_refused(given: Any) -> None:
    with pytest.raises(RecipeError, match="metrics: "):
        metrics.resolve(given)


def test_two_metrics_of_one_name_are_refused_until_they_are_named() -> None:
    with pytest.raises(RecipeError, match="two are called 'Accuracy'"):
        metrics.resolve([Accuracy(), Accuracy(top=2)])
    with pytest.raises(RecipeError, match="two are called '<lambda>'"):
        metrics.resolve([lambda o, t: o.mean(), lambda o, t: t.mean()])
    assert list(metrics.resolve({"one": Accuracy(), "two": Accuracy(top=2)}).metrics) == ["one", "two"]


def test_a_metric_called_loss_does_not_take_the_place_of_the_loss() -> None:
    inputs, targets = torch.randn(6, 3), torch.zeros(6, dtype=torch.int64)
    with pytest.raises(RecipeError, match="loss"):
        gradstep.evaluate(
            nn.Linear(3, 2), nn.CrossEntropyLoss(), (inputs, targets), metrics={"loss": lambda o, t: o.sum() * 0 + 7}
        )


def test_nothing_given_is_no_metric_and_all_forms_can_stand_in_one_list() -> None:
    def spread(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.std()

    assert metrics.resolve(None).compute() == {}
    several = metrics.resolve(["accuracy", {"top_k": 3}, ConfusionMatrix, spread])
    assert list(several.metrics) == ["accuracy", "top3", "ConfusionMatrix", "spread"]
    assert [several.higher_is_better(name) for name in several.metrics] == [True, True, None, None]
    assert metrics.resolve("mse").higher_is_better("mse") is False


def test_a_fresh_set_counts_for_itself_and_a_reset_one_begins_again() -> None:
    outputs, targets = torch.eye(3), torch.tensor([0, 1, 0])
    first = metrics.resolve(["accuracy", "confusion_matrix"])
    first.update(outputs, targets)
    second = first.fresh(torch.device("cpu"))
    assert np.isnan(second.compute()["accuracy"])
    second.update(outputs, torch.tensor([1, 2, 0]))
    assert first.compute()["accuracy"] == pytest.approx(2 / 3)
    assert second.compute()["accuracy"] == 0
    first.reset()
    first.update(outputs, torch.tensor([0, 1, 2]))
    assert first.compute() == {"accuracy": 1.0, "confusion_matrix": np.eye(3, dtype=int).tolist()}


def test_counting_keeps_no_graph() -> None:
    outputs = torch.randn(4, 2, requires_grad=True)
    together: MetricSet = metrics.resolve(["mse", lambda o, t: (o - t).sum(1)])
    together.update(outputs, torch.zeros(4, 2))
    assert not any(metric.total.requires_grad for metric in together.metrics.values())  # type: ignore[attr-defined]


@FAST
@given(data())
def test_torchmetrics_come_to_the_same_over_any_partition(data: Data) -> None:
    classes = data.outputs.shape[1]
    data.classes[data.classes == data.ignored] = 0
    theirs = torchmetrics.classification.MulticlassAccuracy(classes, average="micro")
    assert data.through(theirs, data.classes) == pytest.approx(data.through("accuracy", data.classes), abs=1e-6)
    error = torchmetrics.MeanSquaredError().set_dtype(torch.float64)
    data.outputs, data.values = data.outputs.reshape(len(data.outputs), -1), data.values.reshape(len(data.values), -1)
    assert data.through(error, data.values) == pytest.approx(data.through("mse", data.values), rel=1e-6)


def test_torchmetrics_work_through_fit_and_evaluate_and_stay_the_users_own() -> None:
    torch.manual_seed(0)
    inputs, targets = torch.randn(23, 4), torch.randint(0, 3, (23,))
    model, theirs = nn.Linear(4, 3), torchmetrics.classification.MulticlassAccuracy(3, average="micro")
    run = gradstep.fit(
        model,
        nn.CrossEntropyLoss(),
        (inputs, targets),
        (inputs[:11], targets[:11]),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        epochs=3,
        batch_size=5,
        metrics={"theirs": theirs, "ours": "accuracy"},
        monitor="valid/theirs",
        quiet=True,
    )
    for kind in ("train", "valid"):
        rows = [row for row in run.history if f"{kind}/ours" in row]
        assert len(rows) == 3
        assert [row[f"{kind}/theirs"] for row in rows] == pytest.approx([row[f"{kind}/ours"] for row in rows], abs=1e-6)
    assert run.best is not None
    assert run.best.value == max(row["valid/theirs"] for row in run.history if row["kind"] == "valid")
    assert theirs.update_count == 0  # a copy was counted with

    regression = nn.Linear(4, 1).double()
    given = (inputs.double(), torch.randn(23, 1, dtype=torch.float64))
    error = torchmetrics.MeanSquaredError()
    values = gradstep.evaluate(regression, nn.MSELoss(), given, batch_size=5, metrics=[error, "mse"])
    assert values["MeanSquaredError"] == pytest.approx(values["mse"], rel=1e-6)
    assert values["mse"] == pytest.approx(values["loss"], rel=1e-12)


def test_gradstep_itself_never_imports_torchmetrics() -> None:
    code = (
        "import sys; sys.modules['torchmetrics'] = None\n"
        "import torch, gradstep\n"
        "data = torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)\n"
        "print(gradstep.evaluate(torch.nn.Linear(2, 2), torch.nn.CrossEntropyLoss(), data, metrics='accuracy'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "'accuracy'" in done.stdout


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 13), st.integers(0, 3))
def test_evaluate_gives_the_same_metrics_for_every_batch_size(batch_size: int, ignored: int) -> None:
    torch.manual_seed(1)
    model = nn.Linear(4, 3).double()
    inputs, targets = torch.randn(13, 4, dtype=torch.float64), torch.randint(0, 3, (13,))
    targets[:ignored] = IGNORED
    wanted = ["accuracy", {"top_k": 2}, "confusion_matrix", lambda outputs, targets: outputs.amax(1)]
    whole = gradstep.evaluate(model, nn.CrossEntropyLoss(), (inputs, targets), batch_size=13, metrics=wanted)
    cut = gradstep.evaluate(model, nn.CrossEntropyLoss(), (inputs, targets), batch_size=batch_size, metrics=wanted)
    assert cut.keys() == whole.keys()
    for name, value in whole.items():
        np.testing.assert_allclose(cut[name], value, rtol=1e-12, err_msg=name)
