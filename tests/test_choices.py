"""A recipe's optimizer, groups, schedule, init, clip and ema are what the same words do from Python, bit for bit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradstep
from gradstep import schedules
from gradstep.choices import schedule_of
from gradstep.cli.train import assembled
from gradstep.clock import Clock
from gradstep.errors import RecipeError
from gradstep.keys import key
from gradstep.timetable import timetable


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.LayerNorm(8))
        self.head = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.features(inputs))
        return outputs


class Scaled(nn.Module):
    """A criterion with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs * self.scale, targets)


def train() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(24, 4, generator=generator), torch.randint(3, (24,), generator=generator)


HERE = "tests.test_choices"
BASE: dict[str, Any] = {
    "data": {"train": f"{HERE}:train"},
    "model": {"class": f"{HERE}:Net"},
    "criterion": "CrossEntropyLoss",
    "batch_size": 8,
    "epochs": 4,
    "optimizer": {"name": "SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
    "quiet": True,
}


def by_recipe(**more: Any) -> gradstep.Run:
    built = gradstep.build(gradstep.Recipe.parse(BASE | more))
    return gradstep.fit(**built.arguments)


def started() -> Net:
    """The model as a recipe of seed 0 starts it."""
    before = torch.get_rng_state()
    gradstep.keys.seed_sample(key(0, "initialize"))
    model = Net()
    torch.set_rng_state(before)
    return model


def by_hand(make: Any, model: nn.Module | None = None, criterion: Any = None, **more: Any) -> gradstep.Run:
    model = model or started()
    return gradstep.fit(
        model, criterion or nn.CrossEntropyLoss(), train(), optimizer=make(model), epochs=4, batch_size=8, quiet=True,
        **more,
    )  # fmt: skip


def sgd(model: nn.Module, groups: Any = None, **more: Any) -> torch.optim.Optimizer:
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    return torch.optim.SGD(gradstep.param_groups(model, groups, **more, **options), **options)


def same(one: gradstep.Run, other: gradstep.Run) -> bool:
    pairs = zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    return one.history == other.history and all(torch.equal(a, b) for a, b in pairs)


PATTERNS = {"features": {"lr_scale": 0.5, "freeze": "2 epochs"}, "*.bias": {"weight_decay": 0.0}}


@pytest.mark.parametrize(
    "splits", [{}, {"no_decay": True}, {"layer_decay": 0.5}, {"no_decay": True, "layer_decay": 0.7}]
)
def test_groups(splits: dict[str, Any]) -> None:
    ours = by_recipe(groups=PATTERNS | splits)
    assert same(ours, by_hand(lambda model: sgd(model, PATTERNS, **splits)))
    assert not same(ours, by_recipe())


def test_a_group_s_own_schedule() -> None:
    groups = {"head": {"schedule": {"name": "geometric", "gamma": 0.5}}}
    given = {"head": {"schedule": schedules.geometric(0.5)}}
    ours = by_recipe(groups=groups, schedule={"name": "cosine", "warmup": "1 epoch"})
    assert same(ours, by_hand(lambda model: sgd(model, given), schedule=schedules.cosine("1 epoch")))


def test_the_criterion_s_own_parameters_are_a_group_of_their_own() -> None:
    run = by_recipe(criterion={"name": f"{HERE}:Scaled"}, groups={"head": {"lr": 0.01}})
    groups = run.state.optimizer.param_groups
    assert [group["name"] for group in groups] == ["head", "rest", "criterion"]
    assert run.state.criterion.scale.item() != 1.0


@pytest.mark.parametrize("spec", ["xavier", {"name": "kaiming", "distribution": "normal", "gain": "auto"}])
def test_init(spec: Any) -> None:
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    model = gradstep.initialize(started(), options.pop("name"), seed=0, **options)
    assert same(by_recipe(init=spec), by_hand(sgd, model))


def test_what_init_has_touched_is_said() -> None:
    (note,) = gradstep.build(gradstep.Recipe.parse(BASE | {"init": "kaiming"})).notes
    assert note == "init: kaiming uniform: 2 weights set, 3 biases zero, 1 norm weight one"


def test_clip_and_ema() -> None:
    ours = by_recipe(clip={"value": 0.05}, ema={"decay": 0.9, "start": "1 epoch"})
    theirs = by_hand(sgd, clip={"value": 0.05}, ema={"decay": 0.9, "start": "1 epoch"})
    assert same(ours, theirs)
    averages = [run.state.ema.module.state_dict() for run in (ours, theirs)]
    assert all(torch.equal(averages[0][name], averages[1][name]) for name in averages[0])


def test_gradstep_s_own_sgd_by_name() -> None:
    spec = {"name": "gradstep.optim:SGD", "lr": 0.1, "momentum": 0.9, "weight_decay_l1": 0.01}
    make = lambda m: gradstep.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, weight_decay_l1=0.01)  # noqa: E731
    assert same(by_recipe(optimizer=spec), by_hand(make))


JOINED = schedules.join([schedules.linear("1 epoch"), schedules.constant()], at=["2 epochs"])
SCHEDULES: dict[str, tuple[Any, Any]] = {
    "by its name": ("cosine", schedules.cosine()),
    "with options": ({"name": "piecewise", "factors": {"1 epoch": 0.5}}, schedules.piecewise({"1 epoch": 0.5})),
    "torch's": (
        {"name": "StepLR", "step_size": 2, "gamma": 0.5, "every": "1 epoch"},
        schedules.from_torch("StepLR", step_size=2, gamma=0.5, every="1 epoch"),
    ),
    "a product": (
        {"name": "product", "parts": [{"name": "warmup", "length": "1 epoch"}, {"name": "reciprocal", "c": 0.5}]},
        schedules.warmup("1 epoch") * schedules.reciprocal(c=0.5),
    ),
    "a join": (
        {"name": "join", "at": ["2 epochs"], "parts": [{"name": "linear", "warmup": "1 epoch"}, "constant"]},
        JOINED,
    ),
    "of several options": (
        {"lr": "cosine", "momentum": {"name": "linear", "floor": 0.5}, "weight_decay": {"name": f"{HERE}:halving"}},
        {"lr": schedules.cosine(), "momentum": schedules.linear(floor=0.5), "weight_decay": lambda s, b: b / 2**s},
    ),
}  # fmt: skip


def halving(step: int, base: float) -> float:
    return base / 2**step


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule(name: str) -> None:
    spec, given = SCHEDULES[name]
    assert same(by_recipe(schedule=spec), by_hand(sgd, schedule=given))


@pytest.mark.parametrize("name", SCHEDULES)
def test_its_recipe_written_out_and_read_again_is_the_same(name: str) -> None:
    recipe = gradstep.Recipe.parse(BASE | {"schedule": SCHEDULES[name][0], "groups": PATTERNS, "init": "xavier"})
    again = gradstep.Recipe.parse(gradstep.recipe.read_yaml(recipe.to_yaml(), "again"))
    assert again == recipe


def test_every_schedule_that_needs_nothing_has_a_name() -> None:
    clock = Clock(10, 100)
    for name in (
        "constant",
        "exponential",
        "reciprocal",
        "inverse_sqrt",
        "linear",
        "cosine",
        "one_cycle",
        "on_plateau",
    ):
        rate = schedules.resolve(schedule_of(name), clock)
        assert 0 <= rate(50, 0.1) <= 0.1


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"lr": 0.1}, r"schedule\.lr: 0\.1 is neither a name nor like"),
        (
            {"name": "join", "parts": "cosine", "at": []},
            r"schedule\.parts: join is made of a list of schedules, and this is 'cosine'",
        ),
        ({"name": "product", "parts": ["cosin"]}, r"schedule\.parts\.0: there is no 'cosin'.*Did you mean 'cosine'"),
        ({"name": "StepLR"}, r"StepLR\(\) raised TypeError.*step_size"),
        ({"name": "steplr"}, r"there is no 'steplr'.*Did you mean 'StepLR'"),
    ],
)
def test_a_wrong_schedule_is_named_by_its_place(spec: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        schedule_of(spec)


class Damped(torch.optim.SGD):
    """A user's own optimizer, with an option that none of torch's has."""

    def __init__(self, params: Any, lr: float, calm: float = 0.5) -> None:
        super().__init__(params, lr)
        for group in self.param_groups:
            group.setdefault("calm", calm)

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad *= 1 - group["calm"]
        return super().step(closure)


def test_an_option_of_the_user_s_own_optimizer_has_a_schedule_too() -> None:
    optimizer = {"name": f"{HERE}:Damped", "lr": 0.1, "calm": 0.5}
    run = by_recipe(optimizer=optimizer, schedule={"lr": "constant", "calm": "linear"})
    assert run.state is not None
    assert run.state.step == 12
    assert not same(run, by_recipe(optimizer=optimizer, schedule={"lr": "constant", "calm": "constant"}))


def test_the_recipe_that_the_page_shows_is_built() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "CHOICES.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    given = gradstep.recipe.find("digits")[1] | gradstep.recipe.read_yaml(block, "the page")
    training = assembled(gradstep.build(gradstep.Recipe.parse(given)).arguments)
    assert {group["name"] for group in training.state.optimizer.param_groups} >= {"features", "classifier.4"}
    assert training.clip is not None
    assert training.state.ema is not None


# gradstep recipes NAME --schedule


def lines(**more: Any) -> list[str]:
    return timetable(assembled(gradstep.build(gradstep.Recipe.parse(BASE | more)).arguments))


def test_the_timetable_has_a_row_for_every_change_and_no_other() -> None:
    shown = lines(schedule={"name": "piecewise", "factors": {"1 epoch": 0.5, "8 steps": 0.1}})
    assert [line.split() for line in shown] == [
        ["step", "epoch", "lr"], ["0", "1", "0.1"], ["3", "2", "0.05"], ["8", "3", "0.01"],
    ]  # fmt: skip


def test_the_timetable_shows_each_group_and_option() -> None:
    shown = lines(groups={"head": {"lr": 0.5}}, schedule={"lr": "cosine", "momentum": "constant"})
    assert shown[0].split() == ["step", "epoch", "lr/head", "momentum/head", "lr/rest", "momentum/rest"]
    assert len(shown) == 13
    assert shown[1].split() == ["0", "1", "0.5", "0.9", "0.1", "0.9"]


def test_a_long_timetable_is_thinned_and_says_so() -> None:
    shown = lines(schedule="cosine", epochs=100)
    assert len(shown) <= 45
    assert re.search(r"changes at 300 of 300 steps", shown[-1])
    assert shown[-2].split()[:2] == ["299", "100"]


def test_without_a_schedule_it_says_that_there_is_none(tmp_path: Path) -> None:
    assert lines() == ["no schedule: the rate is 0.1 at all 12 steps"]
    assert "goes by a metric" in lines(data=BASE["data"] | {"valid": 0.25}, schedule="halve_on_plateau")[-1]
