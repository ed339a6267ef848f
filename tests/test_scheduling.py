"""Schedules in a run: of any option, for any group, by a metric, and what may be done by hand between two steps."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gradstep
from gradstep import schedules
from gradstep.errors import ModelError, RecipeError
from gradstep.hooks import InterruptAt

STEPS, PER_EPOCH = 12, 4


def data(count: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, 3, generator=generator), torch.randn(count, 2, generator=generator)


def net() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


class Watch:
    """The options of each group that each step was made with, and the weights after it."""

    def __init__(self, *options: str) -> None:
        self.options, self.seen, self.weights = options or ("lr",), [], []

    def on_train_batch_end(self, state: Any, outcome: Any) -> None:
        self.seen.append([tuple(group[option] for option in self.options) for group in state.optimizer.param_groups])
        self.weights.append([parameter.detach().clone() for parameter in state.model.parameters()])


def fit(model: nn.Module | None = None, **more: Any) -> gradstep.Run:
    given = {"epochs": 3, "batch_size": 4, "quiet": True, "optimizer": lambda p: torch.optim.SGD(p, lr=0.1)} | more
    return gradstep.fit(model or net(), nn.MSELoss(), data(), data(8), **given)


def falling(step: int, base: float) -> float:
    return base / (1 + step)


# Any option, any group.


def test_momentum_and_weight_decay_follow_schedules_of_their_own() -> None:
    watch = Watch("lr", "momentum", "weight_decay")
    make = lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, weight_decay=0.01)  # noqa: E731
    rises = lambda step, base: base * step / STEPS  # noqa: E731
    run = fit(optimizer=make, schedule={"momentum": falling, "weight_decay": rises}, hooks=[watch])
    assert watch.seen == [[(0.1, 0.8 / (1 + step), 0.01 * step / STEPS)] for step in range(STEPS)]
    group = run.state.optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.8, 0.01)  # the user's own again


def test_adams_first_beta_goes_by_the_name_of_momentum() -> None:
    watch = Watch("betas")
    make = lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.8, 0.99))  # noqa: E731
    run = fit(optimizer=make, schedule={"momentum": falling}, hooks=[watch])
    assert watch.seen == [[((0.8 / (1 + step), 0.99),)] for step in range(STEPS)]
    assert run.state.optimizer.param_groups[0]["betas"] == (0.8, 0.99)


def test_a_group_s_own_schedule_stands_before_the_run_s(tmp_path: Path) -> None:
    watch, model = Watch(), net()
    own = {"2": {"lr": 0.5, "schedule": schedules.constant()}}
    make = lambda _: torch.optim.SGD(gradstep.param_groups(model, own, lr=0.1))  # noqa: E731
    fit(model, optimizer=make, schedule=falling, hooks=[watch], out=tmp_path)  # and a checkpoint can be written of it
    names = [group["name"] for group in make(None).param_groups]
    expected = {"2": lambda step: 0.5, "rest": lambda step: 0.1 / (1 + step)}
    assert watch.seen == [[(expected[name](step),) for name in names] for step in range(STEPS)]


def test_the_rows_hold_the_rate_of_every_group() -> None:
    model = net()
    make = lambda _: torch.optim.SGD(gradstep.param_groups(model, {"2": {"lr": 0.5}}, lr=0.1))  # noqa: E731
    run = fit(model, optimizer=make, schedule=falling, log_every="1 step")
    for row in run.history:
        if row["kind"] == "train":
            assert sorted([row["lr"], row["lr/1"]]) == [0.1 / row["step"], 0.5 / row["step"]]


@pytest.mark.parametrize(
    ("schedule", "error", "said"),
    [
        (schedules.cosine, RecipeError, r"cosine is what makes a schedule. Call it, as in schedules\.cosine"),
        ("cosine", RecipeError, r"'cosine' is neither a function .* such as schedules\.cosine\(warmup='1 epoch'\)"),
        (torch.optim.lr_scheduler.StepLR, RecipeError, r"schedules\.from_torch\(scheduler, every='1 epoch'\)"),
        ({"momentun": falling}, RecipeError, r"SGD has no number called 'momentun'.*Did you mean 'momentum'"),
        ({"momentum": 0.9}, RecipeError, r"schedule\.momentum: 0\.9 is neither"),
        (lambda step, base: -base, RecipeError, r"asked for step 0 and base 0\.1, it gave -0\.1, no rate"),
        (lambda step, base: base / step, gradstep.errors.UserCodeError, r"step 0 .* raised ZeroDivisionError"),
        (lambda step, base: float("nan") if step == STEPS - 1 else base, RecipeError, r"step 11 .* it gave nan"),
        ({"lr": lambda step, base: "0.1"}, RecipeError, r"it gave '0\.1', no rate"),
        (
            schedules.halve_on_plateau(metric="valid/acuracy"),
            RecipeError,
            r"schedule\.metric: there is no 'valid/acuracy'",
        ),
    ],
)
def test_what_can_not_work_is_refused_before_the_first_step(schedule: Any, error: type, said: str) -> None:
    watch = Watch()
    with pytest.raises(error, match=said):
        fit(schedule=schedule, hooks=[watch])
    assert watch.seen == []


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf"), None])
def test_no_step_is_made_at_a_rate_that_is_none(wrong: Any, tmp_path: Path) -> None:
    """A run of 3,000 steps is not asked for each of them before; it is as each is set."""
    model, start = net(), net()[0].weight
    bad = lambda step, base: wrong if step == 7 else base  # noqa: E731
    with pytest.raises(RecipeError, match=r"asked for step 7 and base 0\.1, it gave (-1\.0|nan|inf|None), no rate"):
        fit(schedule=bad)
    watch = Watch()
    with pytest.raises(RecipeError, match=r"asked for step 7 .*, no rate"):
        fit(model, schedule=bad, epochs=750, hooks=[watch])
    assert len(watch.seen) == 7
    assert not torch.equal(model[0].weight, start)
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_a_scheduler_built_on_another_optimizer_is_refused() -> None:
    other = torch.optim.SGD(net().parameters(), lr=0.1)
    built = torch.optim.lr_scheduler.StepLR(other, 1)
    with pytest.raises(ModelError, match="built on another optimizer"):
        fit(schedule=schedules.from_torch(built, every="1 epoch"))


def test_torch_s_scheduler_built_on_this_optimizer_is_followed_and_left_alone() -> None:
    model, watch = net(), Watch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    built = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    fit(model, optimizer=optimizer, schedule=schedules.from_torch(built, every="1 epoch"), hooks=[watch])
    assert watch.seen == [[(0.1 * 0.5 ** (step // PER_EPOCH),)] for step in range(STEPS)]
    assert built.last_epoch == 0


def test_one_cycle_moves_the_momentum_too_as_torch_does() -> None:
    watch = Watch("lr", "momentum")
    make = lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)  # noqa: E731
    theirs = torch.optim.lr_scheduler.OneCycleLR
    schedule = schedules.from_torch(theirs, max_lr=0.5, total_steps=STEPS)
    fit(optimizer=make, schedule=schedule, hooks=[watch])
    optimizer = make(net().parameters())
    scheduler, expected = theirs(optimizer, max_lr=0.5, total_steps=STEPS), []
    for _ in range(STEPS):
        expected.append([(optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"])])
        optimizer.step()
        if len(expected) < STEPS:
            scheduler.step()
    assert watch.seen == expected


def test_a_scheduler_of_torch_s_may_end_with_a_run_that_is_shorter_than_an_epoch(tmp_path: Path) -> None:
    schedule = schedules.from_torch("OneCycleLR", max_lr=0.5, total_steps=3)
    make = lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)  # noqa: E731
    assert fit(optimizer=make, schedule=schedule, epochs=None, steps=3, out=tmp_path).state.step == 3


def test_a_schedule_that_does_not_fit_the_run_is_said_with_both_lengths(capsys: pytest.CaptureFixture[str]) -> None:
    fit(schedule=schedules.piecewise({"2 epochs": 0.1, "9 epochs": 0.01}), quiet=False)
    (note,) = [line for line in capsys.readouterr().out.splitlines() if "schedule" in line and "note" in line]
    assert "36" in note or "9 epochs" in note
    assert "12" in note or "3 epochs" in note


# By a metric.


@settings(max_examples=10)
@given(st.integers(0, 2), st.sampled_from([0.5, 0.1]), st.floats(0.05, 1.5))
def test_a_run_on_a_plateau_has_the_rates_of_torch_s_class(patience: int, factor: float, lr: float) -> None:
    watch = Watch()
    schedule = schedules.on_plateau(factor=factor, patience=patience, threshold=1e-3)
    run = fit(schedule=schedule, optimizer=lambda p: torch.optim.SGD(p, lr=lr), hooks=[watch], epochs=8)
    optimizer = torch.optim.SGD(net().parameters(), lr=lr)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "min", factor, patience, 1e-3)
    expected = []
    for row in [row for row in run.history if row["kind"] == "valid"]:
        expected += [[(optimizer.param_groups[0]["lr"],)]] * PER_EPOCH
        theirs.step(row["valid/loss"])
    assert watch.seen == expected


def noisy(outputs: Tensor, targets: Tensor) -> Tensor:
    """A metric that goes up and down: the weights' bits decide."""
    return (outputs * 1e4).sum().sin().abs() + 0 * targets.sum()


def test_what_a_plateau_knows_lives_in_the_state_and_outlasts_an_interruption(tmp_path: Path) -> None:
    schedule = schedules.product(
        schedules.cosine(warmup="1 epoch"), schedules.halve_on_plateau(metric="noisy", mode="min")
    )
    arguments = {"schedule": schedule, "metrics": {"noisy": noisy}, "epochs": 8, "log_every": "1 step", "name": "net"}
    whole = fit(**arguments, out=tmp_path / "whole")
    assert whole.state.plateaus[0].reductions > 1
    for epoch in (2, 5):
        fit(**arguments, out=tmp_path / "parts", resume=epoch > 2, hooks=[InterruptAt(epoch)])
    parts = fit(**arguments, out=tmp_path / "parts", resume=True)
    assert (whole.path / "metrics.jsonl").read_bytes() == (parts.path / "metrics.jsonl").read_bytes()
    assert whole.state.plateaus == parts.state.plateaus


def test_without_a_validation_a_plateau_can_not_be_seen() -> None:
    with pytest.raises(RecipeError, match=r"it goes by the validation, and there is no valid= data"):
        gradstep.fit(
            net(), nn.MSELoss(), data(), optimizer=lambda p: torch.optim.SGD(p, 0.1), schedule=schedules.on_plateau(),
            epochs=1, batch_size=4, quiet=True,
        )  # fmt: skip


# By hand.


def steps(model: nn.Module, optimizer: Any, **more: Any) -> Any:
    given = {"epochs": 3, "batch_size": 4} | more
    return gradstep.steps(model, nn.MSELoss(), data(), optimizer=optimizer, **given)


def test_a_rate_changed_by_hand_between_steps_keeps_the_momentum_and_is_in_the_outcome() -> None:
    model, twin = net(), net()
    optimizer, by_hand = (torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (model, twin))
    rates = []
    for outcome in steps(model, optimizer):
        rates.append(outcome.rates)
        if outcome.step == 5:
            optimizer.param_groups[0]["lr"] = 0.02
    assert rates == [(0.1,)] * 5 + [(0.02,)] * 7
    feed = gradstep.data.Feed(gradstep.data.as_source(data(), "train"), 4, shuffle=True, seed=0)
    for step, (inputs, targets) in zip(range(STEPS), feed.start(0), strict=False):
        by_hand.param_groups[0]["lr"] = 0.1 if step < 5 else 0.02
        by_hand.zero_grad()
        nn.MSELoss()(twin(inputs), targets).backward()
        by_hand.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_a_rate_in_a_tensor_is_in_the_outcome_as_it_was() -> None:
    held = torch.tensor(0.25)
    model = net()
    outcomes = list(steps(model, torch.optim.SGD(model.parameters(), lr=held), schedule=falling))
    assert [float(outcome.rates[0]) for outcome in outcomes] == pytest.approx([0.25 / (1 + s) for s in range(STEPS)])


def test_a_rate_changed_by_hand_under_a_schedule_is_not_overwritten_in_silence() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    each = steps(model, optimizer, schedule=falling)
    next(each)
    optimizer.param_groups[0]["lr"] = 7.0
    with pytest.raises(RecipeError, match=r"the lr of the optimizer's group 0 was set by hand to 7"):
        next(each)


def test_an_optimizer_replaced_in_mid_run_says_what_it_forgets_and_goes_on() -> None:
    model, twin = net(), net()
    first = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    each = steps(model, first, schedule=falling)
    for outcome in each:
        if outcome.step == 5:
            said = str(each.replace_optimizer(torch.optim.Adam(model.parameters(), lr=0.01)))
            assert "momentum_buffer" in said
            assert "4 parameters" in said
    assert each.state.step == STEPS
    assert first.param_groups[0]["lr"] == 0.1
    own = [torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9), torch.optim.Adam(twin.parameters(), lr=0.01)]
    feed = gradstep.data.Feed(gradstep.data.as_source(data(), "train"), 4, shuffle=True, seed=0)
    for step, (inputs, targets) in zip(range(STEPS), feed.start(0), strict=False):
        optimizer, base = (own[0], 0.1) if step < 5 else (own[1], 0.01)
        optimizer.param_groups[0]["lr"] = falling(step, base)
        optimizer.zero_grad()
        nn.MSELoss()(twin(inputs), targets).backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_replacing_by_an_optimizer_of_another_model_changes_nothing() -> None:
    model = net()
    each = steps(model, torch.optim.SGD(model.parameters(), lr=0.1), schedule=falling)
    next(each)
    with pytest.raises(ModelError, match="holds no parameter of this model"):
        each.replace_optimizer(torch.optim.SGD(net().parameters(), lr=0.1))
    assert len(list(each)) == STEPS - 1


def test_a_rate_set_by_hand_before_the_first_step_is_not_overwritten_either() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    each = steps(model, optimizer, schedule=falling)
    optimizer.param_groups[0]["lr"] = 0.5
    with pytest.raises(RecipeError, match=r"set by hand to 0\.5"):
        next(each)


def test_a_group_added_under_a_schedule_is_told() -> None:
    model, more = net(), nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    each = steps(model, optimizer, schedule=falling)
    next(each)
    optimizer.add_param_group({"params": [more]})
    with pytest.raises(RecipeError, match=r"had 1 groups when its schedule was made, and now 2"):
        next(each)


def test_what_was_frozen_for_a_time_thaws_under_the_optimizer_that_takes_over() -> None:
    model = net()
    each = steps(model, frozen_at_first("1 epoch", model))
    next(each)
    assert not model[0].weight.requires_grad
    each.replace_optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    before = model[0].weight.detach().clone()
    next(each)
    assert not torch.equal(model[0].weight, before)


def test_a_plateau_of_the_same_rule_goes_on_under_the_optimizer_that_takes_over() -> None:
    model = net()
    plateau = schedules.halve_on_plateau()
    groups = gradstep.param_groups(model, {"0": {"schedule": schedules.on_plateau(0.1)}}, lr=0.8, momentum=0.9)
    each = steps(model, torch.optim.SGD(groups, lr=0.8), schedule=plateau)
    next(each)
    assert not each.observe(1.0)
    assert each.observe(1.0)
    each.replace_optimizer(torch.optim.SGD(model.parameters(), lr=0.8, momentum=0.9))  # one plateau fewer
    assert next(each).rates == (0.4,)
    assert len(each.state.plateaus) == 1


def test_two_plateaus_of_one_rule_stay_two_under_the_optimizer_that_takes_over() -> None:
    model = net()
    two = {"lr": schedules.halve_on_plateau(), "momentum": schedules.halve_on_plateau()}
    make = lambda: torch.optim.SGD(model.parameters(), lr=0.8, momentum=0.8)  # noqa: E731
    each = steps(model, make(), schedule=two)
    next(each)
    each.observe(1.0)
    each.replace_optimizer(make())
    each.observe(1.0)
    next(each)
    group = each.state.optimizer.param_groups[0]
    assert (group["lr"], group["momentum"]) == (0.4, 0.4)
    assert [numbers.reductions for numbers in each.state.plateaus] == [1, 1]


def test_a_metric_that_no_schedule_goes_by_is_told() -> None:
    model = net()
    make = lambda p: torch.optim.SGD(p, lr=0.8, momentum=0.8)  # noqa: E731
    with pytest.raises(RecipeError, match="no schedule goes by a metric"):
        steps(model, make, schedule=falling).observe(1.0)
    two = {"lr": schedules.halve_on_plateau("valid/loss"), "momentum": schedules.halve_on_plateau("valid/acc", "max")}
    each = steps(model, make, schedule=two)
    with pytest.raises(RecipeError, match="Say which: metric="):
        each.observe(1.0)
    with pytest.raises(RecipeError, match="no schedule goes by valid/other"):
        each.observe(1.0, metric="valid/other")
    for _ in range(2):
        each.observe(1.0, metric="valid/loss")
    next(each)
    group = each.state.optimizer.param_groups[0]
    assert (group["lr"], group["momentum"]) == (0.4, 0.8)


def test_in_an_own_loop_a_plateau_is_told_by_hand() -> None:
    model, rates = net(), []
    each = steps(model, lambda p: torch.optim.SGD(p, lr=0.8), schedule=schedules.halve_on_plateau())
    for outcome in each:
        rates.append(outcome.rates[0])
        if outcome.step % 4 == 0:
            each.observe(1.0)
    assert rates == [0.8] * 8 + [0.4] * 4  # the first is the best so far; the second is no better


# Frozen until a given time.


def frozen_at_first(until: str, model: nn.Module) -> Any:
    groups = {"0": {"lr": 0.05, "freeze": until}}
    return lambda _: torch.optim.SGD(gradstep.param_groups(model, groups, lr=0.1), momentum=0.9, weight_decay=0.01)


@pytest.mark.parametrize(("until", "first"), [("1 epoch", 4), ("7 steps", 7)])
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_parameters_are_frozen_until_then_and_move_from_then_on(until: str, first: int, micro_batch: Any) -> None:
    model, watch = net(), Watch()
    start = model[0].weight.detach().clone()
    run = fit(model, optimizer=frozen_at_first(until, model), hooks=[watch], micro_batch=micro_batch)
    moved = [not torch.equal(weights[0], start) for weights in watch.weights]
    assert moved == [step >= first for step in range(STEPS)]
    assert all(parameter.requires_grad for parameter in run.model.parameters())
    other = [weights[2] for weights in watch.weights]
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(other))


def test_a_run_resumed_around_the_thaw_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    def run(out: str, **more: Any) -> gradstep.Run:
        model = net()
        return fit(model, optimizer=frozen_at_first("2 epochs", model), out=tmp_path / out, name="net", **more)

    whole = run("whole")
    for epoch in (1, 2):
        run("parts", resume=epoch > 1, hooks=[InterruptAt(epoch)])
    parts = run("parts", resume=True)
    last = "checkpoints/step-00000012"
    for name in ("metrics.jsonl", "model.safetensors", f"{last}/optimizer.safetensors", f"{last}/state.json"):
        assert (whole.path / name).read_bytes() == (parts.path / name).read_bytes()


def by(kind: Any, **options: Any) -> dict[str, Any]:
    return {"optimizer": lambda p: kind(p, lr=0.1, **options)}


CHANGED = [
    (by(torch.optim.SGD, momentum=0.9), by(torch.optim.SGD, momentum=0.9, nesterov=True)),
    (by(torch.optim.SGD), by(torch.optim.SGD, maximize=True)),
    (by(gradstep.optim.SGD, momentum=0.9), by(gradstep.optim.SGD, momentum=0.9, momentum_form="inside")),
    (by(torch.optim.Adam), by(torch.optim.Adam, betas=(0.9, 0.5))),
    (by(torch.optim.Adam), by(torch.optim.Adam, amsgrad=True)),
    (by(torch.optim.Adam), by(torch.optim.Adam, decoupled_weight_decay=True)),
    (by(torch.optim.RMSprop), by(torch.optim.RMSprop, centered=True)),
]


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        ({"schedule": schedules.halve_on_plateau()}, {"schedule": schedules.on_plateau(0.01)}, "schedule by a metric"),
        (
            {"schedule": schedules.piecewise({"1 epoch": 0.1})},
            {"schedule": schedules.piecewise({"1 epoch": 0.5})},
            "the schedule",
        ),
        ({"clip": 1.0}, {"clip": {"value": 1.0}}, "clip"),
        ({}, {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5)}, "what SGD is given"),
        *[(*each, "is given") for each in CHANGED],
    ],
)
def test_a_resume_under_other_settings_is_refused(then: Any, now: Any, said: str, tmp_path: Path) -> None:
    fit(**then, out=tmp_path, name="net", hooks=[InterruptAt(2)])
    with pytest.raises(gradstep.errors.ChangedError, match=said):
        fit(**(then | now), out=tmp_path, name="net", resume=True)
    assert fit(**then, out=tmp_path, name="net", resume=True).state.step == STEPS


def test_the_same_clip_or_optimizer_in_other_words_goes_on(tmp_path: Path) -> None:
    fit(clip=1, **by(torch.optim.SGD, momentum=0.9), out=tmp_path, name="net", hooks=[InterruptAt(2)])
    run = fit(
        clip={"norm": 1.0}, **by(torch.optim.SGD, momentum=0.9, foreach=True), out=tmp_path, name="net", resume=True
    )
    assert run.state.step == STEPS


def test_another_optimizer_over_the_same_parameters_is_named(tmp_path: Path) -> None:
    fit(**by(torch.optim.Adam), out=tmp_path, name="net", hooks=[InterruptAt(2)])
    with pytest.raises(
        gradstep.errors.ChangedError, match=r"of Adam, and this is AdamW.* forgets step of 4 parameters"
    ):
        fit(**by(torch.optim.AdamW), out=tmp_path, name="net", resume=True)


def test_a_resume_with_another_time_to_thaw_is_refused(tmp_path: Path) -> None:
    model = net()
    fit(model, optimizer=frozen_at_first("1 epoch", model), out=tmp_path, name="net", hooks=[InterruptAt(1)])
    with pytest.raises(gradstep.errors.ChangedError, match="freeze: "):
        fit(model, optimizer=frozen_at_first("2 epochs", model), out=tmp_path, name="net", resume=True)


def test_what_is_frozen_longer_than_the_run_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    model = net()
    fit(model, optimizer=frozen_at_first("9 epochs", model), quiet=False)
    assert "'0' is frozen for 9 epochs, and the run has 12 steps" in capsys.readouterr().out


def test_what_is_frozen_for_good_keeps_no_gradient_and_its_bits() -> None:
    model = net()
    start = [parameter.detach().clone() for parameter in model[0].parameters()]
    groups = gradstep.param_groups(model, {"0": {"freeze": True}}, lr=0.1)
    fit(model, optimizer=torch.optim.SGD(groups, momentum=0.9, weight_decay=0.1))
    for parameter, before in zip(model[0].parameters(), start, strict=True):
        assert parameter.grad is None
        assert torch.equal(parameter, before)
