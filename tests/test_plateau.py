"""The plateau is torch's ReduceLROnPlateau bit by bit, a pure function of four numbers, found in any composition."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import asdict
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import ReduceLROnPlateau

from gradstep import schedules
from gradstep.clock import Clock
from gradstep.errors import RecipeError
from gradstep.schedules import Plateau, PlateauNumbers

CLOCK = Clock(10, 100)
BASES = [1.0, 0.4, 1e-3, 3e-8, 0.0]
series = st.lists(st.one_of(st.floats(), st.integers(-2, 2).map(float), st.just(1.0)), max_size=60)
rules = st.fixed_dictionaries(
    {
        "factor": st.sampled_from([0.0, 0.1, 0.5, 0.9]),
        "patience": st.integers(0, 4),
        "threshold": st.sampled_from([0.0, 1e-4, 0.1, 1.0, 2.0]),
        "threshold_mode": st.sampled_from(["rel", "abs"]),
        "cooldown": st.integers(0, 3),
        "eps": st.sampled_from([0.0, 1e-8, 1e-2]),
    }
)


def held(optimizer: Any) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


def both(rule: Any, options: dict[str, Any], values: list[float], mode: str) -> list[bool]:
    """Follows torch through a series of metrics, comparing the rates of all bases after each; what `observe` said."""
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "lr": base} for base in BASES])
    theirs = ReduceLROnPlateau(optimizer, mode, **options)
    plateau = schedules.resolve(rule, CLOCK)
    assert isinstance(plateau, Plateau)
    said = []
    for number, value in enumerate(values):
        theirs.step(value)
        said.append(plateau.observe(value, higher=mode == "max"))
        assert [plateau(number, base) for base in BASES] == held(optimizer)
        assert plateau.numbers.bad == theirs.num_bad_epochs
        assert plateau.numbers.cooldown == theirs.cooldown_counter
    return said


@given(rules, st.sampled_from([0.0, 1e-3, 0.5]), series, st.sampled_from(["min", "max"]))
@example({"factor": 0.5, "patience": 0, "cooldown": 0}, 0.0, [math.nan] * 40, "min")
@example({"factor": 0.5, "patience": 0, "eps": 0.5}, 0.0, [1.0, 1.0], "min")  # the step is eps itself
@example({"factor": 0.1, "patience": 1, "cooldown": 2}, 1e-3, [1.0] * 40, "max")
def test_on_plateau_is_torchs_own_at_every_evaluation(
    options: dict[str, Any], least: float, values: list[float], mode: str
) -> None:
    both(schedules.on_plateau(min_value=least, **options), {"min_lr": least, **options}, values, mode)


@given(series, st.sampled_from(["min", "max"]), st.integers(0, 2))
def test_halve_on_plateau_is_torchs_with_the_documents_settings(values: list[float], mode: str, patience: int) -> None:
    options = {"factor": 0.5, "patience": patience, "threshold": 0.0, "threshold_mode": "abs"}
    both(schedules.halve_on_plateau(patience=patience), options, values, mode)


@given(st.lists(st.integers(-5, 5).map(float), max_size=30))
def test_halving_happens_exactly_where_the_metric_is_not_better_than_ever(values: list[float]) -> None:
    plateau = schedules.halve_on_plateau().resolve(CLOCK)
    improved = [all(value < before for before in values[:n]) for n, value in enumerate(values)]
    assert [not plateau.observe(value, higher=False) for value in values] == improved
    assert plateau.numbers.reductions == improved.count(False)
    assert plateau(7, 2.0**30) == 2.0 ** (30 - plateau.numbers.reductions)


def test_the_defaults_are_torchs() -> None:
    assert any(both(schedules.on_plateau(), {}, [1.0] * 40, "min"))


@given(rules, series, st.data())
def test_what_it_remembers_is_four_numbers(options: dict[str, Any], values: list[float], data: st.DataObject) -> None:
    """Through JSON and into a new plateau, by assignment or in place, it goes on as if nothing had happened."""
    cut = data.draw(st.integers(0, len(values)))
    rule = schedules.on_plateau(**options)
    whole, first, second, third = (rule.resolve(CLOCK) for _ in range(4))
    said = [whole.observe(value, higher=True) for value in values]
    for value in values[:cut]:
        first.observe(value, higher=True)
    saved = json.loads(json.dumps(asdict(first.numbers)))
    second.numbers = PlateauNumbers(**saved)
    for name, value in saved.items():
        setattr(third.numbers, name, value)
    for plateau in (second, third):
        assert [plateau.observe(value, higher=True) for value in values[cut:]] == said[cut:]
        assert [plateau(0, base) for base in BASES] == [whole(0, base) for base in BASES]
        assert plateau.numbers == whole.numbers


def test_under_given_numbers_it_is_a_pure_function_and_the_step_is_not_looked_at() -> None:
    plateau = schedules.halve_on_plateau().resolve(CLOCK)
    plateau.numbers = PlateauNumbers(reductions=3)
    before = copy.copy(plateau.numbers)
    assert [plateau(step, 8.0) for step in (99, 0, 50)] == [1.0] * 3
    assert plateau.numbers == before


def test_each_resolve_begins_anew() -> None:
    rule = schedules.halve_on_plateau()
    worn = rule.resolve(CLOCK)
    worn.observe(math.nan, higher=False)
    assert rule.resolve(CLOCK).numbers == PlateauNumbers() != worn.numbers


def test_a_mode_of_its_own_is_taken_before_the_monitors() -> None:
    own, monitors = (schedules.halve_on_plateau("valid/loss", mode).resolve(CLOCK) for mode in ("min", None))
    assert (own.metric, own.mode, monitors.metric, monitors.mode) == ("valid/loss", "min", "valid/loss", None)
    falling = [3.0, 2.0, 1.0]
    assert [own.observe(value, higher=True) for value in falling] == [False] * 3
    assert [monitors.observe(value, higher=True) for value in falling] == [False, True, True]


def test_plateaus_are_found_through_products_and_joins() -> None:
    rule = schedules.on_plateau()
    nested = schedules.join([schedules.warmup("1 epoch") * rule, schedules.halve_on_plateau()], at=["5 epochs"])
    rate = schedules.resolve(nested * schedules.cosine(), CLOCK)
    found = schedules.plateaus(rate)
    assert [each.rule.factor for each in found] == [0.1, 0.5]
    before = rate(20, 1.0)
    found[0].numbers.reductions = 1
    assert rate(20, 1.0) == pytest.approx(before / 10, rel=1e-15, abs=0)
    assert schedules.plateaus(lambda step, base: base) == schedules.plateaus(schedules.cosine().resolve(CLOCK)) == []
    plateau = rule.resolve(CLOCK)
    assert schedules.plateaus(schedules.resolve(schedules.product(plateau, plateau), CLOCK)) == [plateau]


@pytest.mark.parametrize(
    ("setting", "wrong"),
    [
        ("factor", [1.0, 2, -0.1, math.nan, "0.1", None, True]),
        ("patience", [-1, 1.5, "3 epochs", None, True]),
        ("cooldown", [-1, 0.5, None]),
        ("threshold", [-1e-4, math.inf, math.nan, "x"]),
        ("threshold_mode", ["relative", None, 1]),
        ("min_value", [-1.0, math.inf, [0.1]]),
        ("eps", [-1e-8, math.nan]),
        ("metric", [3, ["valid/loss"]]),
        ("mode", ["lower", 1, "maximum"]),
    ],
)
def test_a_wrong_setting_is_an_error_where_it_is_written_by_its_name(setting: str, wrong: list[Any]) -> None:
    for value in wrong:
        with pytest.raises(RecipeError, match=rf"^schedule\.{setting}: "):
            schedules.on_plateau(**{setting: value})
