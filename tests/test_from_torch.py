"""`from_torch` gives what torch's own stepping gives, bit for bit: every class, any chain, any group, any order."""

from __future__ import annotations

import copy
import inspect
import math
from array import array
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD, Adam, Optimizer, lr_scheduler

from gradstep import schedules
from gradstep.clock import Clock
from gradstep.errors import ModelError, RecipeError, UserCodeError

STEPS = 200
CLOCK = Clock(7, STEPS)
RATES = [0.4, 0.03, 1e-3]
Make = Callable[[Optimizer], Any]


def halving(calls: int) -> float:
    return 0.5 ** (calls // 50)


def waves(calls: int) -> float:
    return 1.0 + 0.5 * math.sin(calls)


def nearly(calls: int) -> float:
    return 0.999


# The arguments that each class is tried with. A list has one entry for each of three groups.
CASES: dict[str, list[dict[str, Any]]] = {
    "LambdaLR": [{"lr_lambda": halving}, {"lr_lambda": [halving, waves, nearly]}],
    "MultiplicativeLR": [{"lr_lambda": nearly}, {"lr_lambda": [nearly, halving, waves]}],
    "StepLR": [{"step_size": 30}, {"step_size": 7, "gamma": 0.9}],
    "MultiStepLR": [{"milestones": [3, 50, 50, 120], "gamma": 0.3}],
    "ConstantLR": [{}, {"factor": 0.1, "total_iters": 30}],
    "LinearLR": [{}, {"start_factor": 0.01, "end_factor": 0.7, "total_iters": 90}],
    "ExponentialLR": [{"gamma": 0.97}],
    "PolynomialLR": [{}, {"total_iters": 170, "power": 1.7}],
    "CosineAnnealingLR": [{"T_max": 200}, {"T_max": 30, "eta_min": 1e-4}],
    "CosineAnnealingWarmRestarts": [{"T_0": 20}, {"T_0": 11, "T_mult": 2, "eta_min": 1e-4}],
    "OneCycleLR": [
        {"max_lr": 0.5, "total_steps": 200},
        {"max_lr": [0.5, 0.1, 0.2], "epochs": 20, "steps_per_epoch": 10, "anneal_strategy": "linear"},
        {"max_lr": 0.5, "total_steps": 210, "three_phase": True, "base_momentum": [0.8, 0.7, 0.6]},
    ],
    "CyclicLR": [
        {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 30},
        {"base_lr": [0.01, 0.1, 0.2], "max_lr": 0.5, "step_size_up": 10, "step_size_down": 25, "mode": "triangular2"},
        {"base_lr": 0.01, "max_lr": 0.1, "mode": "exp_range", "gamma": 0.99, "cycle_momentum": False},
    ],
}
EVERY_CASE = [(name, options) for name, cases in CASES.items() for options in cases]


def optimizer_of(kind: str = "SGD", rates: list[Any] = RATES) -> Optimizer:
    groups = [{"params": [nn.Parameter(torch.zeros(2))], "lr": rate} for rate in rates]
    return SGD(groups, lr=1.0, momentum=0.9) if kind == "SGD" else Adam(groups, lr=1.0, betas=(0.87, 0.99))


def held(optimizer: Optimizer, option: str) -> list[float]:
    groups = optimizer.param_groups
    if option == "momentum" and "betas" in groups[0]:
        return [float(group["betas"][0]) for group in groups]
    return [float(group[option]) for group in groups]


def stepped(scheduler: Any, optimizer: Optimizer, calls: int, option: str = "lr") -> list[array[float]]:
    """What torch's own stepping sets, for each group: before the first call, and after each."""
    rows = [held(optimizer, option)]
    for _ in range(calls):
        optimizer.step()
        scheduler.step()
        rows.append(held(optimizer, option))
    return [array("d", column) for column in zip(*rows, strict=True)]


def ours(schedule: Any, optimizer: Optimizer, clock: Clock = CLOCK, option: str = "lr") -> list[array[float]]:
    """What the schedule gives at each step of a run, for each group."""
    bases = held(optimizer, option)
    groups = optimizer.param_groups
    rates = [schedule.for_group(number, groups).resolve(clock) for number in range(len(groups))]
    return [array("d", [rate(s, b) for s in range(clock.total)]) for rate, b in zip(rates, bases, strict=True)]


def same(a: list[array[float]], b: list[array[float]]) -> bool:
    return [x.tobytes() for x in a] == [y.tobytes() for y in b]


def test_every_scheduler_of_torchs_has_a_case() -> None:
    """A class that a new torch brings fails here until it has its lines in CASES."""
    theirs = {
        name
        for name, each in vars(lr_scheduler).items()
        if inspect.isclass(each) and issubclass(each, lr_scheduler.LRScheduler) and not name.startswith("_")
    }
    assert theirs == {*CASES, "LRScheduler", "SequentialLR", "ChainedScheduler", "ReduceLROnPlateau"}


@pytest.mark.parametrize(("name", "options"), EVERY_CASE)
@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_each_class_alone_is_torchs_own_stepping(name: str, options: dict[str, Any], kind: str) -> None:
    make = getattr(lr_scheduler, name)
    reference, optimizer = optimizer_of(kind), optimizer_of(kind)
    expected = stepped(make(reference, **options), reference, STEPS - 1)
    before = copy.deepcopy(optimizer.state_dict())
    assert same(ours(schedules.from_torch(make, **options), optimizer), expected)
    assert same(ours(schedules.from_torch(name, **options), optimizer), expected)
    assert optimizer.state_dict() == before
    assert len({column.tobytes() for column in expected}) > 1 or name in ("CyclicLR", "OneCycleLR")


@pytest.mark.parametrize(("name", "options"), EVERY_CASE)
@pytest.mark.parametrize("every", ["1 epoch", "3 steps"])
def test_per_epoch_it_is_stepped_after_each(name: str, options: dict[str, Any], every: str) -> None:
    length = 7 if every == "1 epoch" else 3
    reference = optimizer_of()
    rows = stepped(getattr(lr_scheduler, name)(reference, **options), reference, STEPS // length)
    expected = [array("d", [column[step // length] for step in range(STEPS)]) for column in rows]
    assert same(ours(schedules.from_torch(name, every=every, **options), optimizer_of()), expected)


leaves = st.sampled_from(EVERY_CASE).map(
    lambda case: lambda optimizer: getattr(lr_scheduler, case[0])(optimizer, **case[1])
)


def compositions(parts: st.SearchStrategy[Make]) -> st.SearchStrategy[Make]:
    several = st.lists(parts, min_size=2, max_size=3)

    def chained(makes: list[Make]) -> Make:
        return lambda optimizer: lr_scheduler.ChainedScheduler([make(optimizer) for make in makes], optimizer)

    def sequential(makes: list[Make], lengths: list[int]) -> Make:
        at = [sum(lengths[: n + 1]) for n in range(len(makes) - 1)]
        return lambda optimizer: lr_scheduler.SequentialLR(optimizer, [make(optimizer) for make in makes], at)

    return several.map(chained) | st.builds(sequential, several, st.lists(st.integers(1, 90), min_size=2, max_size=2))


@pytest.mark.filterwarnings("ignore:Detected call of")  # the reference's: torch builds a chain in a sequence so
@settings(max_examples=40)
@given(st.recursive(leaves, compositions, max_leaves=5), st.sampled_from(["SGD", "Adam"]))
def test_any_chain_and_sequence_is_torchs_own_stepping(make: Make, kind: str) -> None:
    reference = optimizer_of(kind)
    try:
        expected = stepped(make(reference), reference, STEPS - 1)
    except Exception as error:  # torch's: a ChainedScheduler can't be second in a SequentialLR, cosines end at a zero
        with pytest.raises((RecipeError, UserCodeError), match=type(error).__name__):
            ours(schedules.from_torch(make), optimizer_of(kind))
        return
    assert same(ours(schedules.from_torch(make), optimizer_of(kind)), expected)


def test_the_usual_chains_are_among_those_that_work() -> None:
    def usual(o: Optimizer) -> Any:
        warm = lr_scheduler.LinearLR(o, 0.01, total_iters=20)
        both = lr_scheduler.ChainedScheduler([warm, lr_scheduler.StepLR(o, 40)])
        falling = lr_scheduler.SequentialLR(o, [both, lr_scheduler.CosineAnnealingLR(o, 180)], milestones=[20])
        return lr_scheduler.ChainedScheduler([falling, lr_scheduler.ExponentialLR(o, 0.99)])

    reference = optimizer_of()
    with pytest.warns(UserWarning, match="Detected call of"):  # torch's; the simulation has nothing to advise
        expected = stepped(usual(reference), reference, STEPS - 1)
    assert expected[0][0] < expected[0][18] > expected[0][150]
    assert same(ours(schedules.from_torch(usual), optimizer_of()), expected)


@settings(max_examples=30)
@given(st.floats(1e-6, 10), st.lists(st.integers(0, STEPS - 1), min_size=1, max_size=10), st.sampled_from(EVERY_CASE))
def test_alone_it_is_a_pure_function_of_step_and_base(base: float, steps: list[int], case: Any) -> None:
    name, options = case
    if any(isinstance(value, list) for key, value in options.items() if key != "milestones"):
        return  # these need the groups
    reference = optimizer_of(rates=[base])
    (expected,) = stepped(getattr(lr_scheduler, name)(reference, **options), reference, max(steps))
    rate = schedules.resolve(schedules.from_torch(name, **options), CLOCK)
    other = [rate(step, 2 * base) for step in steps]
    assert [rate(step, base) for step in steps] == [expected[step] for step in steps]
    assert [rate(step, base) for step in reversed(steps)] == [expected[step] for step in reversed(steps)]
    assert [rate(step, 2 * base) for step in steps] == other


def test_many_bases_are_told_apart_though_not_all_of_their_tables_are_kept() -> None:
    schedule = schedules.from_torch("ExponentialLR", gamma=0.5)
    rate = schedules.resolve(schedule, CLOCK)
    for _ in range(2):
        assert [rate(3, float(base)) for base in range(1, 300)] == [base / 8 for base in range(1, 300)]
    assert len(schedule.tables) <= 64


def test_all_groups_of_an_optimizer_share_one_simulation() -> None:
    made = []

    def make(optimizer: Optimizer) -> Any:
        made.append(optimizer)
        return lr_scheduler.StepLR(optimizer, 30)

    ours(schedules.from_torch(make), optimizer_of())
    assert len(made) == 1


def test_a_rate_held_in_a_tensor_is_computed_as_torch_does_it() -> None:
    def rates() -> list[Any]:
        return [torch.tensor(0.3), torch.tensor(0.7, dtype=torch.float64)]

    reference, optimizer = optimizer_of("Adam", rates()), optimizer_of("Adam", rates())
    expected = stepped(lr_scheduler.ExponentialLR(reference, 0.97), reference, STEPS - 1)
    assert same(ours(schedules.from_torch("ExponentialLR", gamma=0.97), optimizer), expected)
    assert [group["lr"].item() for group in optimizer.param_groups] == [torch.tensor(0.3).item(), 0.7]


def test_a_built_scheduler_of_rates_in_tensors_leaves_the_tensors_alone() -> None:
    optimizer, twin = optimizer_of("Adam", [torch.tensor(0.3)]), optimizer_of("Adam", [torch.tensor(0.3)])
    schedule = schedules.from_torch(lr_scheduler.ExponentialLR(optimizer, 0.97))
    assert same(ours(schedule, optimizer), stepped(lr_scheduler.ExponentialLR(twin, 0.97), twin, STEPS - 1))
    assert held(optimizer, "lr") == [torch.tensor(0.3).item()]


def test_what_an_earlier_scheduler_left_in_the_groups_is_not_looked_at() -> None:
    used, fresh = optimizer_of(), optimizer_of(rates=[rate / 4 for rate in RATES])
    lr_scheduler.LinearLR(used, 0.25)  # sets a quarter at once, and keeps the rest as initial_lr
    schedule = schedules.from_torch("CosineAnnealingWarmRestarts", T_0=50)
    assert same(ours(schedule, used), stepped(lr_scheduler.CosineAnnealingWarmRestarts(fresh, 50), fresh, STEPS - 1))


MOMENTUM = [(name, options) for name, options in EVERY_CASE if name in ("OneCycleLR", "CyclicLR")]


@pytest.mark.parametrize(("name", "options"), MOMENTUM)
@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_the_momentum_that_a_scheduler_moves_is_its_companion(name: str, options: dict[str, Any], kind: str) -> None:
    reference, optimizer = optimizer_of(kind), optimizer_of(kind)
    expected = stepped(getattr(lr_scheduler, name)(reference, **options), reference, STEPS - 1, "momentum")
    schedule = schedules.from_torch(name, **options)
    companions = schedule.companions(optimizer.param_groups)
    if options.get("cycle_momentum") is False:
        assert companions == {}
        return
    assert list(companions) == ["momentum"]
    assert same(ours(companions["momentum"], optimizer, option="momentum"), expected)
    bound = schedule.for_group(1, optimizer.param_groups).companions(optimizer.param_groups)["momentum"]
    assert array("d", [bound.resolve(CLOCK)(s, 0.5) for s in range(STEPS)]) == expected[1]


def test_companions_are_found_in_chains_products_and_joins_and_nowhere_else() -> None:
    optimizer = optimizer_of()
    groups = optimizer.param_groups
    one = schedules.from_torch("OneCycleLR", max_lr=0.5, total_steps=100)
    (alone,) = ours(one.companions(groups)["momentum"], optimizer, Clock(7, 100), "momentum")[:1]

    def chain(o: Optimizer) -> Any:
        return lr_scheduler.ChainedScheduler([lr_scheduler.OneCycleLR(o, 0.5, 100), lr_scheduler.StepLR(o, 5)])

    for composed in (schedules.from_torch(chain), schedules.warmup("9 steps") * one):
        found = ours(composed.companions(groups)["momentum"], optimizer, Clock(7, 100), "momentum")
        assert found[0] == alone
    joined = schedules.join([schedules.constant(), one], at=["50 steps"]).companions(groups)
    first = ours(joined["momentum"], optimizer, Clock(7, 150), "momentum")[0]
    assert first == array("d", [0.9] * 50 + list(alone))
    for none in (schedules.from_torch("StepLR", step_size=3), schedules.cosine() * schedules.constant()):
        assert none.companions(groups) == {}


def test_in_a_product_or_a_join_each_group_has_its_own() -> None:
    options = {"lr_lambda": [halving, waves, nearly]}
    reference, optimizer = optimizer_of(), optimizer_of()
    theirs = stepped(lr_scheduler.LambdaLR(reference, **options), reference, STEPS - 1)
    schedule = schedules.from_torch("LambdaLR", **options)
    doubled = ours((lambda step, base: 2 * base) * schedule, optimizer)
    assert same(doubled, [array("d", [2 * value for value in column]) for column in theirs])
    joined = ours(schedules.join([schedules.constant(), schedule], ["9 steps"]), optimizer)
    pairs = zip(RATES, theirs, strict=True)
    assert same(joined, [array("d", [base] * 9 + list(column[: STEPS - 9])) for base, column in pairs])
    shared = schedules.warmup("1 epoch") * schedules.cosine()
    assert shared.for_group(1, optimizer.param_groups) is shared


class Uncopied(nn.Parameter):
    """A parameter too large to be copied."""

    def __deepcopy__(self, memo: Any) -> Any:
        raise AssertionError("a parameter was copied")


def built(kind: str, make: Make, already: int) -> tuple[Optimizer, Any]:
    """What a user has: an optimizer, and a scheduler of it, stepped some times."""
    groups = [{"params": [Uncopied(torch.zeros(2))], "lr": rate} for rate in RATES]
    optimizer = SGD(groups, lr=1.0, momentum=0.9) if kind == "SGD" else Adam(groups, lr=1.0)
    scheduler = make(optimizer)
    stepped(scheduler, optimizer, already)
    return optimizer, scheduler


def state_of(optimizer: Optimizer, scheduler: Any) -> Any:
    plain = {name: repr(value) for name, value in scheduler.state_dict().items() if "_schedulers" not in name}
    return copy.deepcopy([{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]), plain


@pytest.mark.filterwarnings("ignore:Detected call of")
@settings(max_examples=40)
@given(st.recursive(leaves, compositions, max_leaves=3), st.sampled_from(["SGD", "Adam"]), st.integers(0, 20))
def test_a_scheduler_that_the_user_built_goes_on_from_where_it_is_and_is_left_there(
    make: Make, kind: str, already: int
) -> None:
    try:
        twin, theirs = built(kind, make, already)
        expected = stepped(theirs, twin, 149)
    except (NotImplementedError, ZeroDivisionError, OverflowError, ValueError):
        reject()  # torch itself can't; where it can, so must we
    optimizer, scheduler = built(kind, make, already)
    before = state_of(optimizer, scheduler)
    parts = [id(each) for each in getattr(scheduler, "_schedulers", [])]
    schedule = schedules.from_torch(scheduler)
    assert schedule.optimizer is optimizer
    assert same(ours(schedule, optimizer, Clock(7, 150)), expected)
    companions = schedule.companions(optimizer.param_groups)
    moved = {name: ours(each, optimizer, Clock(7, 150), name) for name, each in companions.items()}
    assert state_of(optimizer, scheduler) == before
    assert [id(each) for each in getattr(scheduler, "_schedulers", [])] == parts
    if moved:
        twin, theirs = built(kind, make, already)
        assert same(moved["momentum"], stepped(theirs, twin, 149, "momentum"))


@pytest.mark.parametrize(("name", "options"), EVERY_CASE)
def test_each_class_can_be_given_as_a_built_scheduler(name: str, options: dict[str, Any]) -> None:
    def make(optimizer: Optimizer) -> Any:
        return getattr(lr_scheduler, name)(optimizer, **options)

    optimizer, scheduler = built("SGD", make, 11)
    first = ours(schedules.from_torch(scheduler), optimizer, Clock(7, 100))
    for group in optimizer.param_groups:
        group["lr"] = 123.0  # as a training does, while the table is still growing
    assert same(first, stepped(make(twin := optimizer_of()), twin, 110)) is False
    twin, theirs = built("SGD", make, 11)
    assert same(first, stepped(theirs, twin, 99))


def test_a_built_scheduler_is_only_for_the_optimizer_that_it_was_built_on() -> None:
    optimizer, scheduler = built("SGD", lambda o: lr_scheduler.StepLR(o, 3), 0)
    schedule = schedules.from_torch(scheduler)
    with pytest.raises(ModelError, match="built on another optimizer"):
        schedule.for_group(0, optimizer_of().param_groups)
    with pytest.raises(ModelError, match="built on another optimizer"):
        (schedules.warmup("1 epoch") * schedule).for_group(0, optimizer_of().param_groups)
    with pytest.raises(RecipeError, match="3 groups, and each has its own values"):
        schedule.resolve(CLOCK)
    assert schedule.for_group(2, optimizer.param_groups).resolve(CLOCK)(0, 77.0) == RATES[2]  # not the base


def test_its_lengths_against_the_runs() -> None:
    def said(name: str, every: str = "1 step", **options: Any) -> list[str]:
        return schedules.notes(schedules.from_torch(name, every, **options), Clock(10, 100))

    run = "it runs for 100 steps (10 epochs)"
    short = [
        said("CosineAnnealingLR", T_max=50),
        said("PolynomialLR", total_iters=98),
        said("PolynomialLR", every="1 epoch", total_iters=5),
    ]
    long = [
        said("CosineAnnealingLR", T_max=101),
        said("CosineAnnealingLR", every="1 epoch", T_max=11),
        said("OneCycleLR", max_lr=0.1, total_steps=1000),
        said("LinearLR", total_iters=100),
        said("LinearLR", every="1 epoch", total_iters=10),
        said("ConstantLR", total_iters=100),
        said("PolynomialLR", total_iters=101),
        said("CosineAnnealingWarmRestarts", T_0=101),
        said("CyclicLR", base_lr=0.1, max_lr=0.2, step_size_up=51),
        said("StepLR", step_size=100),
        said("MultiStepLR", milestones=[30, 100]),
    ]
    for (note,) in short + long:
        assert run in note
    assert "CosineAnnealingLR's T_max is 50 steps (5 epochs), and it runs for" in short[0][0]
    assert "LinearLR's total_iters is 100 steps (10 epochs)" in long[4][0]
    (growing,), (even,) = (
        said("CosineAnnealingWarmRestarts", T_0=10, T_mult=2),  # 10, 20, 40, and 30 of 80
        said("CosineAnnealingWarmRestarts", every="1 epoch", T_0=4),
    )
    assert "last period is 80 steps (8 epochs), and it runs for 30 steps (3 epochs): it does not come to" in growing
    assert "last period is 40 steps (4 epochs), and it runs for 20 steps (2 epochs)" in even
    fitting = [
        said("CosineAnnealingWarmRestarts", T_0=25),
        said("CosineAnnealingWarmRestarts", every="1 epoch", T_0=1, T_mult=9),
        said("CosineAnnealingLR", T_max=100),
        said("CosineAnnealingLR", every="1 epoch", T_max=10),
        said("OneCycleLR", max_lr=0.1, total_steps=100),
        said("LinearLR", total_iters=99),
        said("PolynomialLR", total_iters=100),
        said("CosineAnnealingWarmRestarts", T_0=100),
        said("CyclicLR", base_lr=0.1, max_lr=0.2, step_size_up=50),
        said("StepLR", step_size=99),
        said("MultiStepLR", milestones=[30, 99]),
        said("ExponentialLR", gamma=0.9),
    ]
    assert fitting == [[]] * len(fitting)


def test_the_lengths_within_a_sequence_are_measured_against_its_parts() -> None:
    def notes(warm: int, falling: int, at: int) -> list[str]:
        def make(o: Optimizer) -> Any:
            parts = [lr_scheduler.LinearLR(o, 0.1, total_iters=warm), lr_scheduler.CosineAnnealingLR(o, falling)]
            return lr_scheduler.ChainedScheduler([lr_scheduler.SequentialLR(o, parts, [at])])

        return schedules.notes(schedules.from_torch(make), Clock(10, 100))

    assert notes(20, 80, at=20) == []
    (warm,), (falling,), (at,) = notes(21, 80, at=20), notes(20, 100, at=20), notes(20, 80, at=100)
    assert "total_iters is 21 steps (2.1 epochs), and it runs for 20 steps" in warm
    assert "T_max is 100 steps (10 epochs), and it runs for 80 steps" in falling
    assert "SequentialLR's milestone is 100 steps (10 epochs), and it runs for 100 steps" in at
    optimizer, scheduler = built("SGD", lambda o: lr_scheduler.CosineAnnealingLR(o, 100), 30)
    placed = schedules.from_torch(scheduler).for_group(0, optimizer.param_groups)
    assert schedules.notes(placed, Clock(10, 70)) == []
    assert len(schedules.notes(placed, Clock(10, 100))) == 1


def test_one_that_ends_before_the_run_says_so_with_both_lengths_before_it() -> None:
    schedule = schedules.from_torch("OneCycleLR", max_lr=0.1, total_steps=50)
    with pytest.raises(RecipeError, match=r"after 50 steps \(5 epochs\), and the run has 100 steps \(10 epochs\)\."):
        schedule.resolve(Clock(10, 100))
    with pytest.raises(RecipeError, match="total steps is 50"):
        schedule.for_group(1, optimizer_of().param_groups).resolve(Clock(10, 100))
    rate = schedules.from_torch("OneCycleLR", max_lr=0.1, total_steps=100).resolve(Clock(10, 100))
    for _ in range(2):  # the second time too
        with pytest.raises(RecipeError, match="OneCycleLR can't go on after 100 steps"):
            rate(101, 1.0)
    assert rate(99, 1.0) < rate(30, 1.0)


def test_a_scheduler_of_the_users_own_class_works_and_its_mistakes_are_shown_where_they_are() -> None:
    class Own(lr_scheduler.LRScheduler):
        def get_lr(self) -> list[float]:
            return [base / (1 + self.last_epoch) for base in self.base_lrs]

    assert schedules.from_torch(Own).resolve(CLOCK)(3, 1.0) == 0.25

    def wrong(optimizer: Optimizer) -> Any:
        return lr_scheduler.StepLR(optimizer, 3, wrong=4)

    with pytest.raises(UserCodeError, match=r"from_torch's function raised TypeError.*test_from_torch\.py, line"):
        schedules.from_torch(wrong).resolve(CLOCK)


def plateau(optimizer: Optimizer) -> Any:
    return lr_scheduler.ReduceLROnPlateau(optimizer)


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (lr_scheduler.ReduceLROnPlateau, {}, "goes by a metric, not by the step. Use gradstep.schedules.on_plateau"),
        ("ReduceLROnPlateau", {"factor": 0.5}, "Use gradstep.schedules.on_plateau"),
        (plateau(optimizer_of()), {}, "Use gradstep.schedules.on_plateau"),
        ("StepLr", {"step_size": 3}, "has no 'StepLr'. Did you mean 'StepLR'?"),
        ("StepLR", {"stepsize": 3}, "StepLR takes no 'stepsize'. Did you mean 'step_size'?"),
        (lr_scheduler.StepLR, {"period": 3}, "takes no 'period'. It takes step_size, gamma, last_epoch"),
        ("StepLR", {"optimizer": 3, "step_size": 1}, "StepLR takes no 'optimizer'"),
        ("StepLR", {}, r"StepLR\(\) raised TypeError: .*step_size"),
        ("ConstantLR", {"factor": 2.0}, r"ConstantLR\(factor=2.0\) raised ValueError"),
        ("OneCycleLR", {"max_lr": [0.1, 0.2]}, "raised ValueError: You must define either total_steps"),
        ("CosineAnnealingWarmRestarts", {"T_0": 0}, "Expected positive integer T_0"),
        ("StepLR", {"step_size": -3}, "StepLR's step_size is -3, and no number of 1 or more"),
        ("StepLR", {"step_size": 0}, "StepLR's step_size is 0"),
        ("StepLR", {"step_size": "3"}, "StepLR's step_size is '3'"),
        ("ExponentialLR", {"gamma": "0.9"}, r"ExponentialLR\(gamma='0.9'\) raised TypeError"),
        ("MultiStepLR", {"milestones": [3, "5"]}, "MultiStepLR's milestone '5' is no number"),
        ("CosineAnnealingLR", {"T_max": -5}, "CosineAnnealingLR's T_max is -5"),
        ("LinearLR", {"total_iters": -1}, "LinearLR's total_iters is -1, and no number of 0 or more"),
        ("SequentialLR", {}, r"from_torch\(lambda optimizer: SequentialLR\(\.\.\.\)\)"),
        (lr_scheduler.ChainedScheduler, {"schedulers": []}, "made of schedulers of one optimizer"),
        (lr_scheduler.LRScheduler, {}, "raised NotImplementedError"),
        (SGD, {}, "is no scheduler of torch.optim.lr_scheduler"),
        (0.1, {}, "0.1 is no scheduler of torch.optim.lr_scheduler"),
        (None, {}, "None is no scheduler"),
        (lambda o: o, {"gamma": 0.1}, "'gamma' can be given to a class"),
        (lr_scheduler.StepLR(optimizer_of(), 3), {"gamma": 0.1}, "'gamma' can be given to a class"),
        ("StepLR", {"every": "0 steps", "step_size": 3}, r"schedule\.every: '0 steps' is no positive length"),
        ("StepLR", {"every": 1, "step_size": 3}, r"schedule\.every: 1 is not a duration"),
    ],
)
def test_what_can_not_work_is_an_error_where_it_is_written(make: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        schedules.from_torch(make, **options)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (plateau, "Use gradstep.schedules.on_plateau"),
        (lambda o: 3, "made 3, which is no torch.optim.lr_scheduler"),
        (lambda o: [lr_scheduler.StepLR(o, 3)], "go into a ChainedScheduler or a SequentialLR"),
        (lambda o: lr_scheduler.StepLR(optimizer_of(), 3), "a scheduler of another optimizer"),
        (lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.StepLR(o, -3)]), "StepLR's step_size is -3"),
    ],
)
def test_a_function_that_makes_something_else_is_refused_when_it_is_called(make: Make, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        schedules.from_torch(make).resolve(CLOCK)


def test_a_built_scheduler_with_a_length_that_is_none_is_refused() -> None:
    with pytest.raises(RecipeError, match="StepLR's step_size is -3"):
        schedules.from_torch(lr_scheduler.StepLR(optimizer_of(), -3))


def test_a_later_part_of_a_sequence_can_be_no_sequence() -> None:
    """As the documents say: torch's own SequentialLR raises."""

    def make(o: Optimizer) -> Any:
        inner = lr_scheduler.SequentialLR(o, [lr_scheduler.ConstantLR(o), lr_scheduler.StepLR(o, 3)], [4])
        return lr_scheduler.SequentialLR(o, [lr_scheduler.ConstantLR(o), inner], [5])

    with pytest.raises(RecipeError):
        schedules.from_torch(make).resolve(CLOCK)


def test_a_scheduler_that_can_not_be_copied_is_refused_with_the_way_out() -> None:
    class Holding(lr_scheduler.LRScheduler):
        def get_lr(self) -> list[float]:
            self.lines = (each for each in "abc")  # a generator has no copy
            return list(self.base_lrs)

    with pytest.raises(RecipeError, match=r"the Holding can't be copied .* Give from_torch the function"):
        schedules.from_torch(Holding(optimizer_of()))


def test_a_group_without_a_rate_is_refused_by_its_number() -> None:
    with pytest.raises(RecipeError, match="group 1 has no lr"):
        schedules.from_torch("StepLR", step_size=3).for_group(0, [{"lr": 0.1}, {"eps": 0.1}])


def test_arguments_for_another_number_of_groups_are_refused() -> None:
    schedule = schedules.from_torch("LambdaLR", lr_lambda=[halving, waves])
    with pytest.raises(RecipeError, match="Expected 3 lr_lambdas, but got 2"):
        schedule.for_group(0, optimizer_of().param_groups).resolve(CLOCK)
