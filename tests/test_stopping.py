"""The best evaluation and the end of patience: the rules by themselves, and in a run that is told what to measure."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gradstep
from gradstep.clock import Clock, Duration
from gradstep.errors import RecipeError
from gradstep.state import Standing
from gradstep.stopping import Monitor, Patience, judge

FAST = settings(max_examples=80, deadline=None)
PER_EPOCH = 3
HIGHER, LOWER = Monitor("valid/accuracy", higher=True), Monitor("valid/loss", higher=False)
some_values = st.lists(st.one_of(st.integers(0, 5).map(float), st.just(math.nan)), min_size=1, max_size=12)


def judged(values: list[float], monitor: Monitor, patience: Any) -> tuple[list[bool], int | None, Standing]:
    """`(which epochs were the best so far, the epoch it stops after, the standing)`, one evaluation an epoch."""
    standing, clock, marks = Standing(), Clock(PER_EPOCH, 1000), list[bool]()
    for epoch, value in enumerate(values, 1):
        marks.append(judge(standing, monitor, Patience.parse(patience), value, epoch * PER_EPOCH, clock))
        if standing.stopped:
            return marks, epoch, standing
    return marks, None, standing


# Row T11: accuracy is compared with the evaluation before it, and an equal one resets the count.

T11 = [
    ({"falls": 1}, [0.5, 0.6, 0.59, 0.58, 0.7], 4),  # the document's comment; its code stops one later
    ({"falls": 1}, [0.5, 0.6, 0.59, 0.59, 0.58, 0.57, 0.9], 6),  # equal resets
    ({"falls": 1}, [0.6, 0.5, 0.55, 0.5, 0.55, 0.5], None),  # never two in a row, though never above the first
    ({"falls": 0}, [0.5, 0.6, 0.6, 0.59, 0.9], 4),  # the first fall is the last
    ({"falls": 2}, [0.9, 0.8, 0.7, 0.6, 0.5], 4),
    ({"falls": 1}, [0.6, 0.59, math.nan, 0.58, 0.57, 0.56], 6),  # a nan is no fall, and nothing falls from it
    ("2 epochs", [0.5, 0.6, 0.59, 0.595, 0.7], 4),
    ("2 epochs", [0.5, 0.6, 0.6, 0.6, 0.7], 4),  # equal is no new best
    ("2 epochs", [0.5, 0.4, 0.6, 0.5, 0.7, 0.1, 0.2], 7),
    ("1 epoch", [0.5, 0.6, 0.7], None),
    (None, [0.5, 0.4, 0.3, 0.2, 0.1], None),
]


@pytest.mark.parametrize(("patience", "values", "stops"), T11)
def test_patience_ends_after_this_epoch_whether_more_or_less_is_better(
    patience: Any, values: list[float], stops: int | None
) -> None:
    assert judged(values, HIGHER, patience)[1] == stops
    assert judged([-value for value in values], LOWER, patience)[1] == stops


@FAST
@given(some_values, st.integers(0, 3))
def test_it_stops_at_the_first_run_of_more_than_falls_falls(values: list[float], falls: int) -> None:
    fell = [now < before for before, now in pairwise(values)]
    ends = (
        i + falls + 2
        for i in range(len(fell))
        if len(fell[i : i + falls + 1]) == falls + 1 == sum(fell[i : i + falls + 1])
    )
    assert judged(values, HIGHER, {"falls": falls})[1] == next(ends, None)


@FAST
@given(some_values, st.booleans())
def test_the_best_is_the_first_of_the_extreme_values_and_never_a_nan(values: list[float], higher: bool) -> None:
    marks, _, standing = judged(values, HIGHER if higher else LOWER, None)
    so_far = list[float]()
    for value, mark in zip(values, marks, strict=True):
        assert mark == (not math.isnan(value) and all(value > b if higher else value < b for b in so_far))
        so_far += [] if math.isnan(value) else [value]
    extreme = (max if higher else min)(so_far, default=None)
    assert standing.best == extreme
    assert standing.best_step == (None if extreme is None else (values.index(extreme) + 1) * PER_EPOCH)


@FAST
@given(some_values, st.integers(1, 4), st.sampled_from(["epoch", "step"]))
def test_patience_as_a_duration_counts_from_the_best_in_epochs_or_steps(
    values: list[float], amount: int, unit: str
) -> None:
    marks, stops, _ = judged(values, HIGHER, Duration(amount * (PER_EPOCH if unit == "step" else 1), unit))
    best, expected = 0, None
    for epoch, mark in enumerate(judged(values, HIGHER, None)[0], 1):
        best = epoch if mark else best
        if epoch - best >= amount:
            expected = epoch
            break
    assert stops == expected
    assert len(marks) == (stops or len(values))


@FAST
@given(some_values, st.integers(0, 11), st.sampled_from([None, {"falls": 1}, "2 epochs"]))
def test_a_standing_that_was_saved_and_loaded_goes_on_as_if_it_had_not_been(
    values: list[float], cut: int, patience: Any
) -> None:
    standing, clock = Standing(), Clock(PER_EPOCH, 1000)
    for epoch, value in enumerate(values, 1):
        if epoch == cut:
            standing = Standing(**json.loads(json.dumps(asdict(standing))))
        judge(standing, HIGHER, Patience.parse(patience), value, epoch * PER_EPOCH, clock)
        if standing.stopped:
            break
    assert standing == judged(values, HIGHER, patience)[2]


# What is written for monitor and patience.


def better(name: str) -> bool | None:
    return {"accuracy": True, "mse": False}.get(name)


@pytest.mark.parametrize(
    ("given", "metrics", "expected"),
    [
        (None, ["loss"], ("valid/loss", False)),
        (None, ["loss", "kl", "mse", "accuracy"], ("valid/mse", False)),  # the first that says which way is up
        (None, ["loss", "kl"], ("valid/loss", False)),
        ("accuracy", ["loss", "accuracy"], ("valid/accuracy", True)),
        ("valid/accuracy", ["loss", "accuracy"], ("valid/accuracy", True)),
        ("loss", ["loss", "accuracy"], ("valid/loss", False)),
        ({"name": "valid/kl", "mode": "max"}, ["loss", "kl"], ("valid/kl", True)),
        ({"name": "accuracy", "mode": "min"}, ["loss", "accuracy"], ("valid/accuracy", False)),
        ({"name": "accuracy"}, ["loss", "accuracy"], ("valid/accuracy", True)),
    ],
)
def test_monitor_is_the_name_and_direction_that_is_written_or_the_first_metric(
    given: Any, metrics: list[str], expected: tuple[str, bool]
) -> None:
    parsed = Monitor.parse(given, metrics, better)
    assert (parsed.name, parsed.higher) == expected
    assert parsed.short == expected[0].removeprefix("valid/")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("acuracy", r"monitor: there is no 'acuracy'; there are valid/loss, .*Did you mean 'valid/accuracy'"),
        ("train/accuracy", r"there is no 'train/accuracy'.*Did you mean 'valid/accuracy'"),
        ({"name": "kl"}, r"whether more or less of 'kl' is better can't be told.*\{name: valid/kl, mode: min\}"),
        ({"name": "loss", "mode": "lower"}, r"monitor\.mode: 'lower' is neither min nor max"),
        ({"mode": "min"}, r"monitor: .*name"),
        ({"name": "loss", "mdoe": "min"}, r"monitor: .*'mdoe'.*Did you mean 'mode'"),
    ],
)
def test_a_monitor_that_can_not_be_is_an_error_that_says_what_can(given: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Monitor.parse(given, ["loss", "accuracy", "kl"], better)


def test_patience_is_read_from_durations_and_falls() -> None:
    assert Patience.parse(None) is None
    assert Patience.parse("3 epochs") == Patience(without_best=Duration(3, "epoch"))
    assert Patience.parse("40 steps") == Patience(without_best=Duration(40, "step"))
    assert Patience.parse({"falls": 0}) == Patience(falls=0)
    assert Patience.parse(Patience(falls=2)) == Patience(falls=2)


@pytest.mark.parametrize("given", [3, 1.5, "3", "soon", {"falls": -1}, {"falls": "1"}, {"fall": 1}, [], "0 epochs"])
def test_patience_that_can_not_be_is_an_error(given: Any) -> None:
    with pytest.raises(RecipeError, match="patience: "):
        Patience.parse(given)


# The same in a run, whose metric says at each evaluation what the script wants.


class Script:
    """A metric's function: the next value for each evaluation, known by its five samples; elsewhere 0."""

    __name__ = "score"

    def __init__(self, values: list[float]) -> None:
        self.values, self.asked = values, 0

    def __deepcopy__(self, memo: Any) -> Script:
        return self  # each evaluation counts with a copy of its own, and all of them read one script

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if len(outputs) != 5:
            return torch.zeros(())
        self.asked += 1
        return torch.tensor(self.values[self.asked - 1], dtype=torch.float64)


def scripted(values: list[float], patience: Any, mode: str = "max", **more: Any) -> gradstep.Run:
    torch.manual_seed(0)
    inputs, targets = torch.randn(6, 3), torch.randint(0, 2, (6,))
    return gradstep.fit(
        nn.Linear(3, 2),
        nn.CrossEntropyLoss(),
        (inputs, targets),
        (inputs[:5], targets[:5]),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        batch_size=6,
        metrics=Script(values),
        monitor={"name": "score", "mode": mode},
        patience=patience,
        **{"epochs": len(values), "quiet": True} | more,
    )


@pytest.mark.parametrize(("patience", "values", "stops"), T11)
@pytest.mark.parametrize("mode", ["max", "min"])
def test_fit_stops_after_this_epoch_and_knows_the_best(
    patience: Any, values: list[float], stops: int | None, mode: str
) -> None:
    values = values if mode == "max" else [-value for value in values]
    run = scripted(values, patience, mode)
    last = stops or len(values)
    rows = [row for row in run.history if row["kind"] == "valid"]
    assert [row["epoch"] for row in rows] == list(range(1, last + 1))
    assert [row["valid/score"] for row in rows] == pytest.approx(values[:last], nan_ok=True)
    assert [row["best"] for row in rows] == judged(values, Monitor("valid/score", mode == "max"), patience)[0]
    assert (run.stopped is not None) == (stops is not None)
    assert run.state is not None
    assert run.state.step == last
    best = (max if mode == "max" else min)(value for value in values[:last] if not math.isnan(value))
    assert run.best is not None
    assert (run.best.metric, run.best.value, run.best.step) == ("valid/score", best, values.index(best) + 1)


def test_the_weights_to_use_are_those_of_the_best_and_the_models_own_those_of_the_last_step(tmp_path: Path) -> None:
    values = [0.5, 0.6, 0.59, 0.58, 0.9]
    at_best = scripted(values, None, epochs=2).model.state_dict()
    at_end = scripted(values, None, epochs=4).model.state_dict()
    for out in (None, tmp_path):
        run = scripted(values, {"falls": 1}, out=out)
        assert all(torch.equal(value, at_end[name]) for name, value in run.model.state_dict().items())
        with run.chosen() as model:
            assert all(torch.equal(value, at_best[name]) for name, value in model.state_dict().items())
        assert all(torch.equal(value, at_end[name]) for name, value in run.model.state_dict().items())


def test_the_best_falls_and_patience_outlast_a_pause(tmp_path: Path) -> None:
    values = [0.5, 0.6, 0.59, 0.58, 0.9]
    whole = scripted(values, {"falls": 1}, out=tmp_path / "whole")
    for epoch in (1, 2, 3):
        out = tmp_path / str(epoch)
        first = scripted(values, {"falls": 1}, out=out, hooks=[gradstep.hooks.InterruptAt(epoch)])
        assert first.stopped is None
        second = scripted(values[epoch:], {"falls": 1}, out=out, epochs=5, resume=True)
        assert (second.best, second.stopped, second.history) == (whole.best, whole.stopped, whole.history)


def test_an_infinite_value_is_kept_like_any_other(tmp_path: Path) -> None:
    run = scripted([-math.inf, 0.5, math.inf, 0.6], None, out=tmp_path)
    assert run.best is not None
    assert (run.best.value, run.best.step) == (math.inf, 3)


def test_patience_and_monitor_without_validation_data_are_refused() -> None:
    for more in ({"patience": {"falls": 1}}, {"monitor": "loss"}):
        with pytest.raises(RecipeError, match="monitor and patience look at the validation"):
            gradstep.fit(
                nn.Linear(3, 2),
                nn.CrossEntropyLoss(),
                (torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)),
                optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
                batch_size=4,
                epochs=1,
                quiet=True,
                **more,
            )
