"""Parameter groups: they partition the parameters as the patterns say, and what they say is what optimizers do."""

from __future__ import annotations

import copy
import inspect
import math
import re
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from gradstep.clock import Clock, Duration
from gradstep.errors import GradstepError, ModelError, RecipeError
from gradstep.models import LeNet
from gradstep.optim import apply_freezing, check_groups, frozen_at, param_groups, table
from gradstep.optim.descent import SGD
from gradstep.optim.options import known_options

Names = dict[nn.Parameter, list[str]]

OPTIMIZERS = [
    each
    for each in vars(torch.optim).values()
    if isinstance(each, type) and issubclass(each, torch.optim.Optimizer) and each is not torch.optim.Optimizer
]


class Block(nn.Module):
    """A module of one's own: parts by name, and a parameter that lies in no part."""

    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2, 1))
        for number, part in enumerate(parts):
            self.add_module("abc"[number], part)


LEAVES = {
    "linear": lambda: nn.Linear(2, 2),
    "relu": nn.ReLU,
    "batch norm": lambda: nn.BatchNorm1d(2),
    "layer norm": lambda: nn.LayerNorm((2, 2)),  # its weight has two dimensions
    "lstm": lambda: nn.LSTM(2, 2),
    "embedding": lambda: nn.Embedding(3, 2),
    "attention": lambda: nn.MultiheadAttention(2, 1),
}
INNER = {
    "sequential": lambda parts: nn.Sequential(*parts),
    "list": nn.ModuleList,
    "dict": lambda parts: nn.ModuleDict({f"p{n}": part for n, part in enumerate(parts)}),
    "block": Block,
}


def grown(tree: Any) -> nn.Module:
    if isinstance(tree, str):
        return LEAVES[tree]()
    kind, parts = tree
    return INNER[kind]([grown(part) for part in parts])


TREES = st.recursive(
    st.sampled_from(sorted(LEAVES)),
    lambda inner: st.tuples(st.sampled_from(sorted(INNER)), st.lists(inner, min_size=1, max_size=3)),
    max_leaves=6,
)


@st.composite
def models(draw: Any) -> nn.Module:
    """Trees of modules; some share a layer or a weight between two places."""
    parts = draw(st.lists(TREES, min_size=1, max_size=3))
    model = INNER[draw(st.sampled_from(sorted(INNER)))]([grown(part) for part in parts])
    owners = [(m, n) for m in model.modules() for n, c in m.named_children() if isinstance(c, nn.Linear)]
    if len(owners) > 1 and (tie := draw(st.sampled_from(["none", "layer", "weight"]))) != "none":
        (one, a), (other, b) = owners[0], owners[-1]
        if tie == "layer":
            setattr(other, b, getattr(one, a))
        else:
            getattr(other, b).weight = getattr(one, a).weight
    assume(any(True for _ in model.parameters()))
    return model


def names_of(model: nn.Module) -> Names:
    names: Names = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return names


@st.composite
def patterns(draw: Any, model: nn.Module) -> list[str]:
    """Names in the model, some with a part replaced by a glob, and some from nowhere."""
    known = [name for names in names_of(model).values() for name in names]
    known += [name for name, _ in model.named_modules() if name]
    made = []
    for name in draw(st.lists(st.sampled_from(known), min_size=1, max_size=4)):
        parts = name.split(".")
        for place in draw(st.sets(st.integers(0, len(parts) - 1), max_size=2)):
            parts[place] = draw(st.sampled_from(["*", "?", "[0-1]", "[!0]", "p?", "*bias*", "weight*"]))
        made.append(".".join(parts[: draw(st.integers(1, len(parts)))]))
    return list(dict.fromkeys(made))


def matches(pattern: str, name: str) -> bool:
    """The rule written another way: as one regular expression that may end at any dot."""
    expression = re.sub(r"\[!", "[^", pattern.replace(".", r"\.").replace("*", ".*").replace("?", "."))
    return re.fullmatch(rf"(?s:{expression})(\..*)?", name) is not None


def first_match(names: list[str], those: list[str]) -> str:
    return next((pattern for pattern in those if any(matches(pattern, name) for name in names)), "rest")


def expected_shares(model: nn.Module, those: list[str]) -> dict[str, list[nn.Parameter]]:
    shares: dict[str, list[nn.Parameter]] = {pattern: [] for pattern in [*those, "rest"]}
    for parameter, names in names_of(model).items():
        shares[first_match(names, those)].append(parameter)
    return shares


def same(one: list[Any], other: list[Any]) -> bool:
    return list(map(id, one)) == list(map(id, other))


@given(st.data())
def test_groups_partition_the_parameters_and_the_first_match_wins(data: st.DataObject) -> None:
    model = data.draw(models())
    those = data.draw(patterns(model))
    shares = expected_shares(model, those)
    given_groups = {pattern: {"lr": float(number)} for number, pattern in enumerate(those)}
    if any(not shares[pattern] for pattern in those):
        with pytest.raises(RecipeError, match=r"^groups: '"):
            param_groups(model, given_groups)
        return
    made = param_groups(model, given_groups, momentum=0.9)
    assert [group["name"] for group in made] == those + (["rest"] if shares["rest"] else [])
    for group in made:
        assert same(group["params"], shares[group["name"]])
        assert group.keys() == {"params", "name", "momentum"} | ({"lr"} if group["name"] != "rest" else set())
        assert group.get("lr") == given_groups.get(group["name"], {}).get("lr")
    assert sorted(id(p) for group in made for p in group["params"]) == sorted(map(id, model.parameters()))


def test_no_groups_are_one_group() -> None:
    model = LeNet()
    (only,) = param_groups(model, lr=0.1)
    assert only["name"] == "rest"
    assert same(only["params"], list(model.parameters()))


def test_globs_go_over_dots_and_case_counts() -> None:
    made = param_groups(LeNet(), {"*.bias": {}, "cl*[02].weight": {}})
    assert [len(group["params"]) for group in made] == [5, 2, 3]
    with pytest.raises(RecipeError, match=r"Did you mean 'features'"):
        param_groups(LeNet(), {"Features": {}})


def test_the_document_s_groups_are_one_line_each() -> None:
    """A rate per part, and a rate per layer with the rest collected."""
    net = LeNet()
    by_part = torch.optim.SGD(param_groups(net, {"features": {}, "classifier": {"lr": 1e-2}}, lr=1e-5))
    assert [(g["name"], g["lr"]) for g in by_part.param_groups] == [("features", 1e-5), ("classifier", 1e-2)]
    by_layer = param_groups(net, {"classifier.[02]": {"lr": 0.01}}, lr=0.001)
    special = [*net.classifier[0].parameters(), *net.classifier[2].parameters()]
    assert same(by_layer[0]["params"], special)
    assert (by_layer[1]["name"], len(by_layer[1]["params"])) == ("rest", 6)


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        (["clasifier"], "'clasifier' matches no module and no parameter of LeNet. Did you mean 'classifier'"),
        (["features.0.wight"], "Did you mean 'features.0.weight'"),
        (["zzz"], "matches no module and no parameter of LeNet. It has features, features.0, features.3, classifier,"),
        (["classifier[3]"], "'classifier[3]' matches nothing in LeNet. A layer's number follows a dot: 'classifier.3'"),
        (
            ["classifier.3"],
            "'classifier.3' matches only modules without parameters: 'classifier.3' is a ReLU. "
            "Near it, with parameters: classifier.0, classifier.2, classifier.4.",
        ),
        (["features.[12]"], "only modules without parameters: 'features.1' is a ReLU, 'features.2' is a MaxPool2d."),
        (
            ["features", "*.bias", "classifier.0", "classifier.0.weight"],
            "'classifier.0.weight' is left empty: classifier.0.weight went to 'classifier.0', written before it.",
        ),
        (["classifier.[02].*", "*.weight", "classifier.0"], "went to 'classifier.[02].*', '*.weight', written before"),
    ],
)
def test_a_pattern_without_parameters_says_why(groups: list[str], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        param_groups(LeNet(), {pattern: {"freeze": True} for pattern in groups})
    assert said in str(caught.value)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.body = nn.Linear(3, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight


@pytest.mark.parametrize("pattern", ["embedding", "head", "head.weight", "*.weight"])
def test_a_tied_parameter_is_matched_by_any_of_its_names_and_is_there_once(pattern: str) -> None:
    model = Tied()
    first, *others = param_groups(model, {pattern: {}, "body.bias": {}})
    assert first["params"][0] is model.embedding.weight
    assert sum(p is model.embedding.weight for group in [first, *others] for p in group["params"]) == 1
    with pytest.raises(RecipeError, match=r"'head' is left empty: embedding.weight went to 'embedding'"):
        param_groups(model, {"embedding": {}, "head": {}})


# Options


@pytest.mark.parametrize(
    ("options", "defaults", "said"),
    [
        ({"learning_rate": 0.1}, {}, "groups['features']: there is no option 'learning_rate'. It is called 'lr' here."),
        ({"weightDecay": 0.1}, {}, "It is called 'weight_decay' here."),
        ({"wd": 0.1}, {}, "It is called 'weight_decay' here."),
        ({"requires_grad": False}, {}, "It is called 'freeze' here."),
        ({"momentun": 0.1}, {}, "Did you mean 'momentum'?"),
        ({"freze": True}, {}, "Did you mean 'freeze'?"),
        ({"foo": 1}, {}, "give its default: param_groups(..., foo=...)"),
        ({"name": "body"}, {}, "'name' is no option; a group has the name of its pattern."),
        ({"lr": True}, {}, "groups['features']: lr is True, not a finite number of at least 0."),
        ({"lr": "1e-3"}, {}, "lr is '1e-3', not"),
        ({"lr": None}, {}, "lr is None, not"),
        ({"lr": -1.0}, {}, "lr is -1.0, not"),
        ({"lr": torch.tensor(-1.0)}, {}, "lr is tensor(-1.), not"),
        ({"lr": torch.ones(2)}, {}, "lr is tensor([1., 1.]), not"),
        ({"momentum": math.inf}, {}, "momentum is inf, not"),
        ({"momentum": torch.tensor(0.5)}, {}, "momentum is tensor(0.5000), not"),
        ({"weight_decay": math.nan}, {}, "weight_decay is nan, not"),
        ({"lr_scale": "10"}, {"lr": 1}, "lr_scale is '10', not"),
        ({"lr_scale": 10, "lr": 1}, {"lr": 1}, "lr and lr_scale are both given"),
        ({"lr_scale": 10}, {}, "lr_scale multiplies the default lr, and there is none"),
        ({"freeze": 3}, {}, "groups['features']: freeze: 3 is not a duration. Write a number with its unit"),
        ({"freeze": "2 weeks"}, {}, "freeze: '2 weeks' is not a duration."),
        ({"freeze": None}, {}, "freeze: None is not a duration."),
        ({"0": {"lr": 1}}, {}, "'0' is a mapping. For a part of it write the pattern 'features.0'."),
        (1e-3, {}, "groups['features']: write its options as a mapping, as in {'features': {'lr': 0.001}}."),
        (None, {}, "write its options as a mapping"),
        ({}, {"learning_rate": 1}, "param_groups: there is no option 'learning_rate'. Did you mean 'lr'?"),
        ({}, {"weight_deacy": 1}, "there is no option 'weight_deacy'. Did you mean 'weight_decay'?"),
        ({}, {"lr": "fast"}, "param_groups: lr is 'fast', not"),
        ({}, {"momentum": False}, "param_groups: momentum is False, not"),
        ({}, {"freeze": True}, "param_groups: freeze belongs to a group"),
        ({}, {"name": "all"}, "param_groups: 'name' is no option"),
        ({}, {"no_decay": 1}, "no_decay: 1 is neither True nor False."),
        ({}, {"layer_decay": 0, "lr": 1}, "layer_decay: 0 is not a number above 0 and at most 1"),
        ({}, {"layer_decay": 1.5, "lr": 1}, "layer_decay: 1.5 is not a number above 0 and at most 1"),
        ({}, {"layer_decay": True, "lr": 1}, "layer_decay: True is not a number above 0 and at most 1"),
        ({}, {"layer_decay": 0.5}, "layer_decay multiplies the default lr, and there is none"),
    ],
)
def test_a_wrong_option_is_refused_and_the_model_stays_as_it_was(options: Any, defaults: Any, said: str) -> None:
    model = LeNet()
    with pytest.raises(RecipeError) as caught:
        param_groups(model, {"classifier": {"freeze": True}, "features": options}, **defaults)
    assert said in str(caught.value)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("groups", [["features"], "features", {("features",): {}}, {"": {}}, {0: {}}])
def test_groups_are_a_mapping_of_patterns(groups: Any) -> None:
    with pytest.raises(RecipeError, match=r"^groups: .*(is not a mapping|is no pattern)\. Write"):
        param_groups(LeNet(), groups)


@pytest.mark.parametrize("model", [nn.ReLU(), nn.LazyLinear(3), list(nn.Linear(1, 1).parameters())])
def test_a_model_without_parameters_is_refused(model: Any) -> None:
    with pytest.raises(ModelError, match="param_groups"):
        param_groups(model, lr=0.1)


def test_every_option_of_torch_s_optimizers_and_ours_is_known() -> None:
    for kind in [*OPTIMIZERS, SGD]:
        own = [name for name in inspect.signature(kind).parameters if name != "params"]
        assert set(own) <= known_options()
        plain = {name: 0.5 if name in ("lr", "momentum", "weight_decay", "weight_decay_l1") else 0 for name in own}
        (group,) = param_groups(nn.Linear(2, 2), {"*": plain})
        assert plain.items() <= group.items()


def test_options_of_an_own_optimizer_pass_once_they_have_a_default() -> None:
    far = {"trust_coefficient": 0.1, "beta3": 0.9, "warmup_steps": 7, "d_coef": 1.0}
    made = param_groups(LeNet(), {"features": {"trust_coefficient": 0.2}}, **far)
    assert [group["trust_coefficient"] for group in made] == [0.2, 0.1]


def test_lr_scale_multiplies_the_default_rate() -> None:
    scaled, rest = param_groups(LeNet(), {"features": {"lr_scale": 0.1}}, lr=0.03)
    assert (scaled["lr"], rest["lr"]) == (0.03 * 0.1, 0.03)
    assert "lr_scale" not in scaled


def test_groups_do_not_share_a_tensor_rate() -> None:
    rate = torch.tensor(0.1)
    made = param_groups(LeNet(), {"features": {}, "classifier.0": {"lr_scale": 2}}, lr=rate)
    made[0]["lr"].fill_(5.0)
    assert [float(group["lr"]) for group in made[1:]] == [pytest.approx(0.2), pytest.approx(0.1)]
    assert float(rate) == pytest.approx(0.1)


def test_a_schedule_is_kept_as_it_is() -> None:
    def schedule(step: int, base: float) -> float:
        return base / (step + 1)

    made = param_groups(LeNet(), {"features": {"schedule": schedule}, "classifier": {"schedule": {"name": "cosine"}}})
    assert made[0]["schedule"] is schedule
    assert made[1]["schedule"] == {"name": "cosine"}


# Decay and layers


def expected_free(model: nn.Module, parameter: nn.Parameter, names: list[str]) -> bool:
    in_norm = any(
        parameter in set(module.parameters(recurse=False))
        for module in model.modules()
        if type(module).__name__ in ("BatchNorm1d", "LayerNorm")
    )
    return parameter.dim() < 2 or in_norm or any(re.search(r"(^|\.)(bias[^.]*|[^.]*bias)$", name) for name in names)


@given(models(), st.sampled_from([None, 0, 0.0, 0.1]))
def test_biases_norms_and_vectors_get_no_decay(model: nn.Module, decay: float | None) -> None:
    made = param_groups(model, no_decay=True, **({} if decay is None else {"weight_decay": decay}))
    if decay == 0:  # nothing would change
        assert [group["name"] for group in made] == ["rest"]
        return
    names = names_of(model)
    free = [p for p in model.parameters() if expected_free(model, p, names[p])]
    kept = [p for p in model.parameters() if not expected_free(model, p, names[p])]
    shares = {group["name"]: group for group in made}
    assert list(shares) == ["rest"] * bool(kept) + ["rest (no decay)"] * bool(free)
    if free:
        assert same(shares["rest (no decay)"]["params"], free)
        assert shares["rest (no decay)"]["weight_decay"] == 0.0
    if kept:
        assert same(shares["rest"]["params"], kept)
        assert shares["rest"].get("weight_decay") == decay


def test_what_is_free_of_decay_by_name_and_by_dimension() -> None:
    model = nn.Module()
    for name, shape in {
        "gate": (3,),
        "heat": (),
        "in_proj_bias": (2, 2),
        "bias_ih": (2, 2),
        "unbiased": (2, 2),
    }.items():
        model.register_parameter(name, nn.Parameter(torch.ones(shape)))
    kept, free = param_groups(model, no_decay=True)
    assert same(kept["params"], [model.unbiased])
    assert same(free["params"], [model.gate, model.heat, model.in_proj_bias, model.bias_ih])


def test_a_pattern_s_own_decay_is_split_too_and_frozen_groups_are_not() -> None:
    groups = {
        "classifier.0": {"weight_decay": 0.5},
        "classifier.2": {"weight_decay": 0},
        "features.0": {"freeze": True},
    }
    made = param_groups(LeNet(), groups, no_decay=True, weight_decay=0.1, weight_decay_l1=0.2)
    assert [(g["name"], g["weight_decay"], g["weight_decay_l1"]) for g in made] == [
        ("classifier.0", 0.5, 0.2),
        ("classifier.0 (no decay)", 0.0, 0.0),
        ("classifier.2", 0, 0.2),
        ("classifier.2 (no decay)", 0.0, 0.0),
        ("features.0", 0.1, 0.2),
        ("rest", 0.1, 0.2),
        ("rest (no decay)", 0.0, 0.0),
    ]


def expected_layers(model: nn.Module) -> list[tuple[str, set[nn.Parameter]]]:
    """By names alone: the path of a parameter is cut after the first module that is no container."""
    kinds = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    every = dict(model.named_modules(remove_duplicate=False))
    layers: dict[str, set[nn.Parameter]] = {}
    taken: set[nn.Parameter] = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        above = [".".join(name.split(".")[:n]) for n in range(1, name.count(".") + 1)]
        layer = next((prefix for prefix in above if not isinstance(every[prefix], kinds)), None)
        if layer is not None and parameter not in taken.difference(layers.get(layer, ())):
            layers.setdefault(layer, set()).add(parameter)
            taken.add(parameter)
    return list(layers.items())


@given(models(), st.floats(0.1, 1.0))
def test_rates_fall_layer_by_layer(model: nn.Module, decay: float) -> None:
    layers = expected_layers(model)
    if len(layers) < 2:
        with pytest.raises(RecipeError, match="fewer than two layers"):
            param_groups(model, layer_decay=decay, lr=0.3)
        return
    made = param_groups(model, layer_decay=decay, lr=0.3)
    found = {p: (group["lr"], group["name"]) for group in made for p in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in made) == len(list(model.parameters()))
    for parameter in model.parameters():
        place = next((n for n, (_, own) in enumerate(layers) if parameter in own), 0)
        assert found[parameter] == (0.3 * decay ** (len(layers) - 1 - place), f"rest [{layers[place][0]}]")


def test_a_tied_head_is_no_layer_above() -> None:
    made = param_groups(Tied(), layer_decay=0.5, lr=1.0)
    assert [(group["name"], group["lr"]) for group in made] == [("rest [embedding]", 0.5), ("rest [body]", 1.0)]


def test_layer_decay_leaves_rates_that_patterns_set() -> None:
    groups = {"features.0": {"lr": 7.0}, "classifier.4": {"lr_scale": 2.0}, "*.bias": {"momentum": 0.5}}
    made = param_groups(LeNet(), groups, layer_decay=0.5, no_decay=True, lr=1.0, weight_decay=0.1)
    assert [(group["name"], group["lr"]) for group in made] == [
        ("features.0", 7.0),
        ("features.0 (no decay)", 7.0),
        ("classifier.4", 2.0),
        ("classifier.4 (no decay)", 2.0),
        ("*.bias [features.3] (no decay)", 0.125),
        ("*.bias [classifier.0] (no decay)", 0.25),
        ("*.bias [classifier.2] (no decay)", 0.5),
        ("rest [features.3]", 0.125),
        ("rest [classifier.0]", 0.25),
        ("rest [classifier.2]", 0.5),
    ]


def test_layer_decay_asks_for_the_model_inside_a_wrapper() -> None:
    with pytest.raises(RecipeError, match="If it wraps the model, give the model inside"):
        param_groups(nn.DataParallel(LeNet()), layer_decay=0.5, lr=1.0)


# Freezing

ROWS = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()


def bits(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def moved(before: list[Tensor], after: list[Tensor]) -> list[bool]:
    return [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]


MOVERS = {
    "SGD": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.1),
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=0.1, weight_decay=0.1),
    "gradstep's SGD": lambda groups: SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.1, weight_decay_l1=0.1),
    "LBFGS": lambda groups: torch.optim.LBFGS([p for group in groups for p in group["params"]], max_iter=2),
}


@pytest.mark.parametrize("mover", MOVERS)
@pytest.mark.parametrize("freeze", [True, "3 steps", "2 epochs"])
def test_a_frozen_group_keeps_its_bits_and_no_gradient_until_it_is_time(mover: str, freeze: Any) -> None:
    model, clock = net(), Clock(steps_per_epoch=2, total=6)
    model(ROWS).sum().backward()  # a gradient left from before must not move anything
    groups = param_groups(model, {"0": {"freeze": freeze}})
    thaws = {True: 99, "3 steps": 3, "2 epochs": 4}[freeze]
    assert groups[0]["freeze"] == freeze
    optimizer = MOVERS[mover](groups)
    for step in range(6):
        before = bits(model)
        assert apply_freezing(groups, step, clock) == (["0"] if step == thaws else [])

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = model(ROWS).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        frozen = step < thaws
        assert frozen_at(groups[0], step, clock) == frozen
        assert [p.grad is None for p in model[0].parameters()] == [frozen, frozen]
        after = moved(before, bits(model))
        # A linear layer's bias just before batch normalisation hardly matters, but decay or rounding moves the weight.
        assert after[0] is not frozen
        if frozen:
            assert not after[1]
        assert all(after[4:])


@given(st.lists(st.integers(0, 9), max_size=8), st.integers(0, 9), st.sampled_from(["step", "epoch"]))
def test_freezing_is_a_function_of_the_step(steps: list[int], amount: int, unit: str) -> None:
    model, clock = net(), Clock(steps_per_epoch=2, total=20)
    groups = param_groups(model, {"0": {"freeze": Duration(amount, unit)}, "1": {"freeze": True}})
    assert [p.requires_grad for p in model[0].parameters()] == [amount == 0] * 2  # as it has to be in step 0
    for step in [0, *steps]:
        frozen = step < clock.steps(Duration(amount, unit))
        was = model[0].weight.requires_grad
        for parameter in model[0].parameters():
            parameter.grad = torch.ones_like(parameter)
        assert apply_freezing(groups, step, clock) == (["0"] if was == frozen else [])
        assert apply_freezing(groups, step, clock) == []
        assert all(p.requires_grad is not frozen and (p.grad is None) is frozen for p in model[0].parameters())
        assert not any(p.requires_grad for p in model[1].parameters())
        assert all(p.requires_grad for p in model[3].parameters())


def test_what_the_user_froze_is_left_alone() -> None:
    model = net()
    model[0].weight.requires_grad_(False)
    groups = param_groups(model, {"0": {"lr": 0.1}, "3": {"freeze": False}})
    assert [len(group["params"]) for group in groups] == [2, 2, 2]
    assert "freeze" not in groups[1]
    assert apply_freezing(groups, 5) == []
    assert [p.requires_grad for p in model[0].parameters()] == [False, True]
    assert "1 of 2" in table(groups)


def test_epochs_need_a_clock_and_steps_need_none() -> None:
    assert frozen_at({"freeze": "3 steps"}, 2) is True
    assert frozen_at({"freeze": "3 steps"}, 3) is False
    assert frozen_at({"freeze": True}, 10**9) is True
    assert frozen_at({}, 0) is False
    with pytest.raises(RecipeError, match=r"'2 epochs' needs a clock .* Clock\(steps_per_epoch=len\(loader\)"):
        frozen_at({"freeze": "2 epochs"}, 0)


# The table


def test_the_table_of_lenet() -> None:
    groups = {"features": {"lr": 1e-5, "freeze": "2 epochs"}, "classifier.4": {"lr_scale": 10}}
    made = param_groups(LeNet(), groups, no_decay=True, lr=1e-3, weight_decay=5e-4)
    assert table(torch.optim.SGD(made)) == (
        "group                    parameters   count   rate   decay  frozen\n"
        "features                          2   2,850  1e-05  0.0005  until 2 epochs\n"
        "features (no decay)               2      22  1e-05       0  until 2 epochs\n"
        "classifier.4                      1     840   0.01  0.0005  no\n"
        "classifier.4 (no decay)           1      10   0.01       0  no\n"
        "rest                              2  58,080  0.001  0.0005  no\n"
        "rest (no decay)                   2     204  0.001       0  no\n"
        "all groups                       10  62,006"
    )


def test_the_table_of_any_optimizer() -> None:
    model = LeNet()
    model.features[0].requires_grad_(False)
    parts = [model.features[0], model.classifier]
    optimizer = SGD([{"params": part.parameters()} for part in parts], lr=torch.tensor(0.5), weight_decay_l1=0.01)
    assert [line.split()[:2] for line in table(optimizer).splitlines()[1:3]] == [["group", "0"], ["group", "1"]]
    assert table(optimizer, model) == (
        "group          parameters   count  rate       decay  frozen\n"
        "features.0              2     456   0.5  0, L1 0.01  yes\n"
        "classifier              6  59,134   0.5  0, L1 0.01  no\n"
        "(in no group)           2   2,416\n"
        "all groups              8  59,590"
    )


# Optimizers


class Matrices(nn.Module):
    """Parameters of two dimensions only, as Muon wants them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False)


@pytest.mark.parametrize(
    "kind", [*OPTIMIZERS, SGD], ids=lambda kind: f"{kind.__module__.split('.')[0]}.{kind.__name__}"
)
def test_every_optimizer_takes_the_groups_and_steps(kind: Any) -> None:
    model, lone = Matrices(), kind is torch.optim.LBFGS  # LBFGS has one group by its nature
    rates = {"*": {"lr": 0.25}} if lone else {"a": {"lr": 0.25}, "b": {"lr_scale": 3, "schedule": lambda s, b: b}}
    optimizer = kind(param_groups(model, rates, lr=0.125), lr=0.5)
    check_groups(optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == ([0.25] if lone else [0.25, 0.375])
    before = bits(model)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model.b(model.a(torch.ones(1, 3))).square().sum()
        loss.backward()
        if kind is torch.optim.SparseAdam:
            for parameter in model.parameters():
                parameter.grad = parameter.grad.to_sparse()
        return loss

    optimizer.step(closure)
    assert all(moved(before, bits(model)))


def test_an_option_that_the_optimizer_does_not_take_is_found() -> None:
    groups = param_groups(LeNet(), {"features": {"momentum": 0.9}}, lr=0.1)
    with pytest.raises(RecipeError, match=r"groups\['features'\]: Adam takes no 'momentum'\. It takes lr, betas, eps"):
        check_groups(torch.optim.Adam(groups))
    with pytest.raises(RecipeError, match=r"groups\['rest'\]: AdamW takes no 'beta3'\. Did you mean 'betas'\?"):
        check_groups(torch.optim.AdamW(param_groups(LeNet(), beta3=0.9)))
    check_groups(torch.optim.SGD(param_groups(LeNet(), {"features": {"momentum": 0.9}}, lr=0.1)))
    check_groups(torch.optim.Adam([{"params": list(LeNet().parameters()), "momentum": 0.9}]))  # not one of ours


def test_torch_s_schedulers_leave_groups_that_still_pass() -> None:
    groups = param_groups(LeNet(), {"features": {"lr": 0.1, "freeze": "1 epoch"}}, lr=0.2)
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=[0.1, 0.2], total_steps=9)
    check_groups(optimizer)


def test_groups_survive_a_state_dict() -> None:
    model = LeNet()
    optimizer = torch.optim.Adam(param_groups(model, {"features": {"lr": 0.1, "freeze": "1 epoch"}}, lr=0.2))
    saved = copy.deepcopy(optimizer.state_dict())
    other = torch.optim.Adam(param_groups(model, {"features": {"lr": 9.0}}, lr=9.0))
    other.load_state_dict(saved)
    assert [(g["name"], g["lr"], g.get("freeze")) for g in other.param_groups] == [
        ("features", 0.1, "1 epoch"),
        ("rest", 0.2, None),
    ]


@given(st.data())
def test_whatever_is_wrong_is_a_named_error(data: st.DataObject) -> None:
    """Nothing but gradstep's own errors comes out, whatever the options hold."""
    value = st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.just({}) | st.just([1])
    option = st.sampled_from(["lr", "freeze", "lr_scale", "momentum", "schedule", "nesterov", "x", "params", 3, None])
    groups = data.draw(value | st.dictionaries(st.sampled_from(["features", "classifier.*", "zz", 1]), value))
    if isinstance(groups, dict):
        groups |= {key: data.draw(st.dictionaries(option, value, max_size=3)) for key in list(groups)[:2]}
    model = LeNet()
    try:
        made = param_groups(model, groups)
    except GradstepError as error:
        assert len(str(error)) > 20  # noqa: PT017
        assert all(parameter.requires_grad for parameter in model.parameters())
    else:
        assert sum(len(group["params"]) for group in made) == 10
