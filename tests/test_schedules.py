"""A schedule is a pure function of step and base rate, and in `fit` each step runs at exactly what it says."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gradstep
from gradstep import schedules
from gradstep.clock import Clock, Duration
from gradstep.errors import RecipeError
from gradstep.run import Run

FAST = settings(max_examples=50, deadline=None)
clocks = st.builds(Clock, st.integers(1, 30), st.integers(2, 300))
bases = st.floats(1e-6, 10)


def test_cosine_with_warm_up_has_the_values_computed_by_hand() -> None:
    rate = schedules.resolve(schedules.cosine(warmup="1 epoch", floor=0.1), Clock(10, 50))
    by_hand = {
        0: 0.04,  # 1/10 of the base
        4: 0.20,
        9: 0.40,  # the warm-up's last step is at the base
        10: 0.40,  # so is the cosine's first
        20: 0.4 * (0.1 + 0.9 * (2 + math.sqrt(2)) / 4),  # a quarter of the way: (1 + cos 45°) / 2
        30: 0.4 * 0.55,  # half
        50: 0.04,  # one past the last: the floor
    }
    assert {step: rate(step, 0.4) for step in by_hand} == pytest.approx(by_hand, rel=1e-14)


@FAST
@given(clocks, bases)
def test_cosine_without_warm_up_is_torchs_own(clock: Clock, base: float) -> None:
    rate = schedules.resolve(schedules.cosine(), clock)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=base)
    for step in (0, 1, clock.total // 3, clock.total - 1):
        theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, clock.total)
        theirs.last_epoch, theirs.base_lrs = step, [base]
        assert rate(step, base) == pytest.approx(theirs._get_closed_form_lr()[0], rel=1e-12, abs=1e-18)


@FAST
@given(clocks, bases, st.floats(0, 1), st.data())
def test_cosine_stays_between_floor_and_base_and_never_rises_after_the_warm_up(
    clock: Clock, base: float, floor: float, data: st.DataObject
) -> None:
    warmup = data.draw(st.integers(0, clock.total - 1))
    rate = schedules.resolve(schedules.Cosine(Duration(warmup, "step"), floor), clock)
    values = [rate(step, base) for step in range(warmup, clock.total + 1)]
    assert values[0] == base
    assert values == sorted(values, reverse=True)
    assert all(floor * base * (1 - 1e-12) <= value <= base for value in values)
    assert values[-1] == pytest.approx(floor * base, abs=1e-15)


@FAST
@given(clocks, bases, st.data())
def test_warm_up_rises_in_a_line_from_the_first_share_to_the_base(
    clock: Clock, base: float, data: st.DataObject
) -> None:
    warmup = data.draw(st.integers(1, clock.total - 1))
    rate = schedules.resolve(schedules.cosine(f"{warmup} steps", floor=0.5), clock)
    assert [rate(s, base) for s in range(warmup)] == pytest.approx([base * (s + 1) / warmup for s in range(warmup)])
    assert rate(warmup - 1, base) == pytest.approx(base, rel=1e-14)


def test_in_a_run_shorter_than_the_warm_up_the_rate_only_rises() -> None:
    rate = schedules.resolve(schedules.cosine("2 epochs"), Clock(4, 6))
    assert [rate(step, 0.8) for step in range(6)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert math.isfinite(schedules.resolve(schedules.cosine("6 steps"), Clock(4, 6))(6, 0.8))


@FAST
@given(clocks, bases, st.data())
def test_a_rate_is_pure_and_proportional_to_its_base(clock: Clock, base: float, data: st.DataObject) -> None:
    steps = data.draw(st.lists(st.integers(0, clock.total), min_size=1, max_size=10))
    rate = schedules.resolve(schedules.cosine("1 step", floor=0.2), clock)
    forth, back = [rate(s, base) for s in steps], [rate(s, base) for s in reversed(steps)]
    assert forth == back[::-1]
    assert forth == [schedules.resolve(schedules.cosine("1 step", floor=0.2), clock)(s, base) for s in steps]
    assert [2 * value for value in forth] == [rate(s, 2 * base) for s in steps]


@FAST
@given(clocks, bases)
def test_constant_is_the_base_and_a_plain_function_is_taken_as_it_is(clock: Clock, base: float) -> None:
    def halving(step: int, base: float) -> float:
        return base / 2**step

    constant = schedules.resolve(schedules.constant(), clock)
    assert {constant(step, base) for step in range(clock.total)} == {base}
    assert schedules.resolve(halving, clock) is halving


class Watch:
    """Keeps the rates that each step ran at."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []

    def on_train_batch_end(self, state: Any, outcome: Any) -> None:
        self.rates.append([float(group["lr"]) for group in state.optimizer.param_groups])


def train(schedule: Any, optimizer: Any = None, **more: Any) -> tuple[Run, list[list[float]]]:
    """Seven steps, three to an epoch."""
    torch.manual_seed(0)
    data, watch = (torch.randn(11, 3), torch.randn(11, 2)), Watch()
    net = nn.Linear(3, 2)
    given = optimizer or (lambda ps: torch.optim.SGD([{"params": [ps[0]], "lr": 0.4}, {"params": [ps[1]], "lr": 0.01}]))
    settings = {"steps": 7, "batch_size": 4, "log_every": "1 step", "quiet": True, "hooks": [watch]} | more
    run = gradstep.fit(net, nn.MSELoss(), data, optimizer=given, schedule=schedule, **settings)
    return run, watch.rates


def inverse(step: int, base: float) -> float:
    return base / (1 + 0.5 * step)


@pytest.mark.parametrize("schedule", [inverse, schedules.cosine("1 epoch", floor=0.1), schedules.constant()])
def test_in_fit_each_step_and_group_runs_at_what_the_function_says_of_its_own_base(schedule: Any) -> None:
    run, rates = train(schedule)
    rate = schedules.resolve(schedule, Clock(3, 7))
    assert rates == [[rate(step, 0.4), rate(step, 0.01)] for step in range(7)]
    assert run.state is not None
    assert run.state.base_rates == [0.4, 0.01]


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.piecewise({"1 epoch": 0.5, "5 steps": 0.1}),
        schedules.one_cycle(),
        schedules.warmup("1 epoch") * schedules.reciprocal("2 steps", 0.5) * inverse,
        schedules.join([schedules.linear(), inverse, schedules.inverse_sqrt("2 steps")], at=["2 steps", "1 epoch"]),
    ],
)
def test_in_fit_each_of_them_and_any_composition_is_followed(schedule: Any) -> None:
    _, rates = train(schedule)
    rate = schedules.resolve(schedule, Clock(3, 7))
    assert rates == [[rate(step, 0.4), rate(step, 0.01)] for step in range(7)]


@pytest.mark.parametrize("every", ["1 step", "1 epoch"])
def test_in_fit_a_scheduler_of_torchs_is_stepped_after_the_optimizer_per_step_or_per_epoch(every: str) -> None:
    def make(optimizer: torch.optim.Optimizer) -> Any:
        parts = [torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=2),
                 torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]  # fmt: skip
        return torch.optim.lr_scheduler.SequentialLR(optimizer, parts, milestones=[2])

    _, rates = train(schedules.from_torch(make, every))
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "lr": rate} for rate in (0.4, 0.01)])
    scheduler, expected = make(optimizer), []
    for done in range(1, 8):
        expected.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        if every == "1 step" or done % 3 == 0:
            scheduler.step()
    assert rates == expected


def test_in_fit_the_step_itself_is_made_at_that_rate() -> None:
    run, _ = train(lambda step, base: base if step == 4 else 0.0, evaluate_every="1 step")
    only, _ = train(lambda step, base: base if step == 4 else 0.0, steps=5)
    never, _ = train(lambda step, base: 0.0, steps=4)
    torch.manual_seed(0)
    torch.randn(11, 3), torch.randn(11, 2)  # what `train` draws before it makes the net
    for untouched, kept in zip(nn.Linear(3, 2).parameters(), never.model.parameters(), strict=True):
        assert torch.equal(untouched, kept)
    for moved, end, start in zip(
        only.model.parameters(), run.model.parameters(), never.model.parameters(), strict=True
    ):
        assert torch.equal(moved, end)
        assert not torch.equal(moved, start)


def test_the_rows_hold_the_rate_that_the_step_ran_at_and_at_an_epochs_start_the_coming_one() -> None:
    run, rates = train(inverse)
    assert [row["step"] for row in run.history if row["kind"] == "train"] == [1, 2, 3, 4, 5, 6, 7]
    for row in run.history:
        if row["kind"] in ("train", "epoch"):
            assert [row["lr"], row["lr/1"]] == rates[row["step"] - 1]
        if row["kind"] == "start":
            assert [row["lr"], row["lr/1"]] == rates[row["step"]]


def test_a_rate_held_in_a_tensor_is_changed_in_place() -> None:
    held, made = torch.tensor(0.25), []

    def optimizer(parameters):
        made.append(torch.optim.SGD(parameters, lr=held))
        return made[-1]

    _, rates = train(lambda step, base: base / 2**step, optimizer)
    assert rates == [[0.25 / 2**step] for step in range(7)]
    assert made[0].param_groups[0]["lr"] is held  # the very tensor, so what was captured reads the new rate
    assert held.item() == 0.25  # the user's own rate again


def test_an_optimizer_that_asks_several_times_for_the_loss_runs_at_the_schedule_too() -> None:
    _, rates = train(inverse, lambda ps: torch.optim.LBFGS(ps, lr=0.5, max_iter=2))
    assert rates == [[inverse(step, 0.5)] for step in range(7)]


def test_without_a_schedule_the_rate_is_left_alone() -> None:
    _, rates = train(None)
    assert rates == [[0.4, 0.01]] * 7


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: schedules.cosine(floor=1.5), r"schedule\.floor: 1\.5"),
        (lambda: schedules.cosine(floor=-0.1), r"schedule\.floor: -0\.1"),
        (lambda: schedules.cosine(floor=math.nan), r"schedule\.floor: nan"),
        (lambda: schedules.cosine(warmup=5), r"schedule\.warmup: 5 is not a duration.*'5 steps' or '5 epochs'"),
        (lambda: schedules.cosine(warmup="1 day"), r"schedule\.warmup: '1 day' is not a duration"),
    ],
)
def test_a_wrong_setting_is_an_error_where_it_is_written(wrong: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        wrong()


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ("cosine", "schedule: 'cosine' is neither a function"),
        (0.1, r"schedule: 0\.1 is neither a function"),
    ],
)
def test_a_schedule_that_can_not_work_is_refused_before_the_first_step(schedule: Any, said: str) -> None:
    watch = Watch()
    with pytest.raises(RecipeError, match=said):
        train(schedule, hooks=[watch])
    assert watch.rates == []
