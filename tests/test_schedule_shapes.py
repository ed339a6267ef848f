"""Closed forms equal their formulas, compositions mean what they say, and lengths that don't fit are said."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from gradstep import schedules
from gradstep.clock import Clock, Duration
from gradstep.errors import RecipeError

CLOCK = Clock(10, 100)
clocks = st.builds(Clock, st.integers(1, 30), st.integers(2, 300))
bases = st.floats(1e-6, 10)

# One of each, with the formula that it stands for, of the step t in a run of 100 steps, ten to an epoch.
FORMULAS = {
    "constant": (schedules.constant(), lambda t: 1.0),
    "piecewise": (
        schedules.piecewise({"2 epochs": 0.1, "35 steps": 0.5, "4 epochs": 0.01}),
        lambda t: 1.0 if t < 20 else 0.1 if t < 35 else 0.5 if t < 40 else 0.01,
    ),
    "exponential": (schedules.exponential(), lambda t: math.exp(-t / 10)),
    "exponential of 7 steps": (schedules.exponential("7 steps"), lambda t: math.exp(-t / 7)),
    "geometric": (schedules.geometric(0.9), lambda t: math.prod([0.9] * (t // 10))),
    "geometric, every 3 steps": (schedules.geometric(0.5, every="3 steps"), lambda t: 2.0 ** -(t // 3)),
    "reciprocal": (schedules.reciprocal(), lambda t: 10 / (10 + t)),
    "reciprocal, c = 0.5": (schedules.reciprocal("20 steps", 0.5), lambda t: math.sqrt(20 / (20 + t))),
    "inverse_time": (schedules.inverse_time(1e-2), lambda t: 100 / (100 + t)),
    "inverse_sqrt": (
        schedules.inverse_sqrt("16 steps"),
        lambda t: (t + 1) / 16 if t + 1 <= 16 else 4 / math.sqrt(t + 1),
    ),
    "warmup": (schedules.warmup("2 epochs"), lambda t: min((t + 1) / 20, 1.0)),
    "warmup from 0.2": (schedules.warmup("2 epochs", start=0.2), lambda t: 0.2 + 0.8 * min((t + 1) / 20, 1.0)),
    "linear": (schedules.linear(), lambda t: 1 - t / 100),
    "linear with warm-up and floor": (
        schedules.linear("20 steps", 0.1),
        lambda t: (t + 1) / 20 if t < 20 else 0.1 + 0.9 * (100 - t) / 80,
    ),
    "linear with restarts": (
        schedules.linear("9 steps", restart="13 steps", growth=2),  # periods begin at 9, 22, 48
        lambda t: (t + 1) / 9 if t < 9 else 1 - (t + 4 - (b := 13 * 2 ** int(math.log2((t + 4) / 13 + 1e-9)))) / b,
    ),
    "cosine": (schedules.cosine(), lambda t: 0.5 * (1 + math.cos(math.pi * (t / 100)))),
    "cosine with restarts": (
        schedules.cosine("5 steps", 0.2, restart="19 steps"),
        lambda t: (t + 1) / 5 if t < 5 else 0.2 + 0.4 * (1 + math.cos(math.pi * ((t - 5) % 19) / 19)),
    ),
    "polynomial": (schedules.polynomial(2), lambda t: (1 - t / 100) ** 2),
    "polynomial, warm": (
        schedules.polynomial(0.5, "1 epoch", 0.3),
        lambda t: (t + 1) / 10 if t < 10 else 0.3 + 0.7 * math.sqrt((100 - t) / 90),
    ),
    "one_cycle, linear": (
        schedules.one_cycle(0.5, start=0.2, end=0.0, curve="linear"),
        lambda t: 0.2 + 0.8 * t / 49 if t <= 49 else (99 - t) / 50,
    ),
    "product": (
        schedules.warmup("1 epoch") * schedules.linear() * (lambda step, base: base / 2),
        lambda t: min((t + 1) / 10, 1.0) * (1 - t / 100) / 2,
    ),
    "join": (
        schedules.join(
            [schedules.linear(), lambda step, base: base * step, schedules.linear()], ["3 epochs", "40 steps"]
        ),
        lambda t: 1 - t / 30 if t < 30 else t - 30 if t < 40 else 1 - (t - 40) / 60,
    ),
}
ALL = {
    **{name: schedule for name, (schedule, _) in FORMULAS.items()},
    "one_cycle": schedules.one_cycle(),
    "one_cycle in three phases": schedules.one_cycle(three_phase=True),
    "StepLR": schedules.from_torch("StepLR", step_size=7),
    "plateau": schedules.halve_on_plateau(),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_each_closed_form_is_its_formula(name: str) -> None:
    schedule, formula = FORMULAS[name]
    rate = schedules.resolve(schedule, CLOCK)
    for step in range(CLOCK.total):
        assert rate(step, 0.3) == pytest.approx(0.3 * formula(step), rel=1e-15, abs=0), step
    assert rate(0, 0.3) == 0.3 * formula(0)


@pytest.mark.parametrize("name", ALL)
@given(steps=st.lists(st.integers(0, 99), min_size=1, max_size=8), base=bases)
def test_every_schedule_is_pure_and_proportional_to_its_base(name: str, steps: list[int], base: float) -> None:
    rate = schedules.resolve(ALL[name], CLOCK)
    forth, back = [rate(s, base) for s in steps], [rate(s, base) for s in reversed(steps)]
    assert forth == back[::-1] == [schedules.resolve(ALL[name], CLOCK)(s, base) for s in steps]
    assert [2 * value for value in forth] == [rate(s, 2 * base) for s in steps]
    assert all(isinstance(value, float) and math.isfinite(value) for value in forth)


@settings(max_examples=30)
@given(clocks, bases, st.floats(0.05, 0.95), st.sampled_from(["cosine", "linear"]), st.booleans())
def test_one_cycle_is_torchs(clock: Clock, base: float, share: float, curve: str, three: bool) -> None:
    ours = schedules.resolve(schedules.one_cycle(share, 1 / 20, 1 / 5000, curve, three_phase=three), clock)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    try:
        theirs = lr_scheduler.OneCycleLR(
            optimizer,
            base,
            clock.total,
            pct_start=share,
            anneal_strategy=curve[:3] if curve == "cosine" else curve,
            cycle_momentum=False,
            div_factor=20,
            final_div_factor=250,
            three_phase=three,
        )
    except ZeroDivisionError:  # torch's, where a phase has no length; ours is at the phase's end there
        assert math.isfinite(ours(0, base))
        return
    for step in range(clock.total):
        assert ours(step, base) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12, abs=0)
        optimizer.step()
        theirs.step()


@settings(max_examples=30)
@given(bases, st.integers(1, 20), st.integers(1, 3), st.sampled_from([0.0, 0.1]))
def test_cosine_restarts_are_torchs(base: float, first: int, growth: int, floor: float) -> None:
    ours = schedules.resolve(schedules.cosine(floor=floor, restart=f"{first} steps", growth=growth), CLOCK)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=base)
    theirs = lr_scheduler.CosineAnnealingWarmRestarts(optimizer, first, growth, eta_min=floor * base)
    for step in range(CLOCK.total):
        assert ours(step, base) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12, abs=1e-12 * base)
        optimizer.step()
        theirs.step()


def test_one_cycle_ends_at_its_two_ends_in_any_run() -> None:
    for total in (1, 2, 3, 10, 100):
        rate = schedules.resolve(schedules.one_cycle(0.1, start=0.04, end=0.001), Clock(5, total))
        values = [rate(step, 1.0) for step in range(total)]
        assert values[-1] == pytest.approx(0.001 if total > 1 else values[0])
        assert all(0.001 <= value <= 1.0 for value in values)


def test_a_product_hands_each_value_to_the_part_before_it() -> None:
    rate = schedules.resolve(schedules.product(lambda s, b: b + 1, lambda s, b: b * 10, lambda s, b: b - s), CLOCK)
    assert rate(2, 5.0) == (5.0 - 2) * 10 + 1
    one = schedules.warmup("4 steps")

    def other(step: int, base: float) -> float:
        return base + 1

    left, right = schedules.resolve(one * other, CLOCK), schedules.resolve(other * one, CLOCK)
    assert (left(0, 1.0), right(0, 1.0)) == (0.5, 1.25)


@given(clocks, st.data())
def test_a_joined_part_is_itself_from_its_own_beginning_under_a_clock_of_its_own_length(
    clock: Clock, data: st.DataObject
) -> None:
    at = data.draw(st.integers(1, clock.total - 1))
    first, last = schedules.cosine("1 step", 0.1), schedules.one_cycle()
    rate = schedules.resolve(schedules.join([first, last], at=[f"{at} steps"]), clock)
    own = first.resolve(Clock(clock.steps_per_epoch, at)), last.resolve(Clock(clock.steps_per_epoch, clock.total - at))
    for step in range(clock.total):
        assert rate(step, 0.3) == (own[0](step, 0.3) if step < at else own[1](step - at, 0.3))


def test_a_part_that_the_run_does_not_reach_harms_nothing() -> None:
    for part in ALL.values():
        rate = schedules.resolve(schedules.join([schedules.constant(), part], at=["50 epochs"]), CLOCK)
        assert {rate(step, 0.3) for step in range(CLOCK.total)} == {0.3}


def test_nothing_here_is_about_rates_alone() -> None:
    rising = schedules.resolve(schedules.warmup("10 steps", start=0.5), CLOCK)
    assert [rising(s, 0.9) for s in (0, 9, 50)] == pytest.approx([0.9 * 0.55, 0.9, 0.9])
    assert schedules.resolve(schedules.geometric(2.0), CLOCK)(30, -1.0) == -8.0


def test_what_fits_the_run_has_no_notes() -> None:
    for name, schedule in ALL.items():
        assert schedules.notes(schedule, CLOCK) == [], name
    assert schedules.notes(lambda step, base: base, CLOCK) == []


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        (schedules.piecewise({"5 epochs": 0.1, "10 epochs": 0.01}), ["0.01 begins after 100 steps (10 epochs)"]),
        (schedules.piecewise({"10 epochs": 0.1, "101 steps": 0.01}), ["0.1 begins after 100", "0.01 begins after 101"]),
        (schedules.cosine("10 epochs"), ["schedule.warmup: the warm-up takes 100 steps (10 epochs)"]),
        (schedules.linear("12 epochs", restart="1 epoch"), ["the warm-up takes 120 steps (12 epochs)"]),
        (schedules.inverse_sqrt(), ["the warm-up takes 4000 steps (400 epochs)"]),
        (schedules.warmup("100 steps"), ["schedule.length: the warm-up takes 100 steps (10 epochs)"]),
        (schedules.cosine(restart="101 steps"), ["schedule.restart: the first period takes 101 steps (10.1 epochs)"]),
        (schedules.geometric(0.5, "10 epochs"), ["schedule.every: it is 100 steps (10 epochs)"]),
        (schedules.join([schedules.constant(), schedules.linear()], ["10 epochs"]), ["part 1 begins after 100 steps"]),
        (
            schedules.join([schedules.cosine("5 steps"), schedules.linear()], ["5 steps"]),
            ["takes 5 steps (0.5 epochs)"],
        ),
        (schedules.warmup("1 epoch") * schedules.cosine("200 steps"), ["the warm-up takes 200 steps (20 epochs)"]),
        (schedules.from_torch("StepLR", step_size=7) * schedules.warmup("1 epoch"), ["Write it last"]),
    ],
)
def test_a_length_that_does_not_fit_is_said_with_the_runs(schedule: Any, said: list[str]) -> None:
    notes = schedules.notes(schedule, CLOCK)
    assert len(notes) == len(said)
    for note, part in zip(notes, said, strict=True):
        assert part in note
        assert note.startswith("schedule")
        assert "100 steps (10 epochs)" in note or "5 steps (0.5 epochs)" in note or "last" in note


def test_a_restart_is_measured_against_what_the_warm_up_leaves() -> None:
    assert schedules.notes(schedules.cosine("20 steps", restart="80 steps"), CLOCK) == []
    (note,) = schedules.notes(schedules.cosine("20 steps", restart="9 epochs"), CLOCK)
    assert "takes 90 steps (9 epochs), and the run has 80 steps (8 epochs) for it" in note


@pytest.mark.parametrize("make", [schedules.cosine, schedules.linear, lambda **more: schedules.polynomial(2, **more)])
@given(
    warmup=st.integers(0, 5), restart=st.integers(1, 30), growth=st.integers(1, 4), total=st.integers(6, 200)
)  # fmt: skip
def test_a_period_that_the_runs_end_cuts_is_said(make: Any, warmup: int, restart: int, growth: int, total: int) -> None:
    schedule = make(warmup=f"{warmup} steps", restart=f"{restart} steps", growth=growth)
    ends = [warmup]
    while ends[-1] < total:
        ends.append(ends[-1] + restart * growth ** (len(ends) - 1))
    notes = schedules.notes(schedule, Clock(10, total))
    assert bool(notes) == (ends[-1] != total)
    for note in notes:
        assert (
            f"the {'first' if len(ends) == 2 else 'last'} period takes {Duration(ends[-1] - ends[-2], 'step')} ("
            in note
        )
        assert f"and the run has {Duration(total - ends[-2], 'step')} (" in note


def test_growth_without_a_restart_is_refused() -> None:
    for make in (schedules.cosine, schedules.linear, lambda growth: schedules.polynomial(2, growth=growth)):
        with pytest.raises(RecipeError, match=r"^schedule\.growth: without a restart there is one period"):
            make(growth=3)
        assert schedules.notes(make(growth=1), CLOCK) == []


@pytest.mark.parametrize("gamma", [2, 2.0, 1.5])
def test_a_geometric_that_outgrows_a_float_is_refused_when_the_run_is_known(gamma: float) -> None:
    schedule = schedules.geometric(gamma, "1 step")
    most = math.floor(1024 / math.log2(gamma) - 1e-9)  # the last power below 2^1024
    assert math.isfinite(schedule.resolve(Clock(10, most + 1))(most, 1.0))
    with pytest.raises(
        RecipeError, match=rf"^schedule\.gamma: {gamma:g} after each 1 step is {gamma:g}\^{most + 1} at the"
    ):
        schedule.resolve(Clock(10, most + 2))
    assert schedules.geometric(gamma, "2 steps").resolve(Clock(10, most + 2))(most + 1, 1.0) > 1
    assert schedules.geometric(0.0, "1 step").resolve(Clock(10, 9999))(9998, 1.0) == 0


def test_names_are_the_constructors_that_plain_values_can_be_given_to() -> None:
    assert schedules.NAMES["cosine"] is schedules.cosine
    plain = {name for name in schedules.__all__ if name[0].islower()}
    assert set(schedules.NAMES) == plain - {"product", "join", "resolve", "notes", "plateaus"}
    assert schedules.NAMES["piecewise"](factors={"2 epochs": 0.1}).resolve(CLOCK)(20, 1.0) == 0.1


NUMBERS = [-0.1, math.nan, math.inf, "0.5", None, True]  # none of them a finite number of at least 0
LENGTHS = ["0 epochs", 5, "1 day", None, 2.0]


@pytest.mark.parametrize(
    ("make", "setting", "wrong"),
    [
        (lambda v: schedules.piecewise({"2 epochs": v}), r"factors\['2 epochs'\]", NUMBERS),
        (lambda v: schedules.piecewise({v: 0.1}), "factors", LENGTHS),
        (schedules.piecewise, "factors", [{}, [0.1], None, 0.1]),
        (schedules.exponential, "r", LENGTHS),
        (schedules.geometric, "gamma", NUMBERS),
        (lambda v: schedules.geometric(0.9, v), "every", LENGTHS),
        (schedules.reciprocal, "r", LENGTHS),
        (lambda v: schedules.reciprocal(c=v), "c", NUMBERS),
        (schedules.inverse_time, "decay", NUMBERS),
        (schedules.inverse_sqrt, "warmup", LENGTHS),
        (schedules.warmup, "length", LENGTHS),
        (lambda v: schedules.warmup("1 epoch", v), "start", [*NUMBERS, 1.5]),
        (schedules.linear, "warmup", LENGTHS[1:]),
        (lambda v: schedules.linear(floor=v), "floor", [*NUMBERS, 1.5]),
        (lambda v: schedules.cosine(restart=v), "restart", [each for each in LENGTHS if each is not None]),
        (lambda v: schedules.cosine(growth=v), "growth", [0, 1.5, "2", True, None, math.nan]),
        (schedules.polynomial, "power", NUMBERS),
        (schedules.one_cycle, "warmup_share", [*NUMBERS, 1.5]),
        (lambda v: schedules.one_cycle(start=v), "start", [*NUMBERS, 1.5]),
        (lambda v: schedules.one_cycle(end=v), "end", [*NUMBERS, 1.5]),
        (lambda v: schedules.one_cycle(curve=v), "curve", ["cos", 1, None]),
        (lambda v: schedules.one_cycle(three_phase=v), "three_phase", ["yes", 2, None]),
        (lambda v: schedules.join([schedules.constant()] * 2, [v]), "at", LENGTHS),
        (lambda v: schedules.join([schedules.constant()] * 2, v), "at", [[], ["1 step", "2 steps"], "1 epoch", 3]),
        (lambda v: schedules.join(v, []), "(parts|at)", [[], schedules.constant(), None]),
    ],
)
def test_a_wrong_setting_is_an_error_where_it_is_written_by_its_name(make: Any, setting: str, wrong: list[Any]) -> None:
    for value in wrong:
        with pytest.raises(RecipeError, match=rf"^schedule\.{setting}: "):
            make(value)


@pytest.mark.parametrize("wrong", [3, "cosine", None])
def test_a_part_that_is_no_schedule_is_refused(wrong: Any) -> None:
    for make in (schedules.product, lambda v: schedules.constant() * v, lambda v: v * schedules.constant(),
                 lambda v: schedules.join([v], [])):  # fmt: skip
        with pytest.raises(RecipeError, match=r"is neither a function \(step, base\)"):
            make(wrong)
    with pytest.raises(RecipeError, match="a product needs a schedule"):
        schedules.product()


def test_a_schedule_that_was_not_called_is_refused() -> None:
    for make in (schedules.product, lambda v: schedules.join([v], []), lambda v: schedules.resolve(v, CLOCK)):
        with pytest.raises(RecipeError, match="Cosine is what makes a schedule, and has to be called"):
            make(schedules.cosine)


def test_times_out_of_order_are_refused_in_one_unit_at_once_and_in_two_when_the_clock_is_known() -> None:
    two = [schedules.constant()] * 3
    for make in (lambda a, b: schedules.piecewise({a: 0.1, b: 0.2}), lambda a, b: schedules.join(two, [a, b])):
        for pair in (("2 epochs", "1 epoch"), (Duration(5, "step"), "5 steps")):
            with pytest.raises(RecipeError, match="is not later"):
                make(*pair)
        mixed = make("2 epochs", "15 steps")
        assert schedules.resolve(mixed, Clock(5, 100))(20, 1.0) > 0
        with pytest.raises(RecipeError, match="'15 steps' comes after '2 epochs' and is not later"):
            schedules.resolve(mixed, CLOCK)
