"""gradstep's SGD: its rule written out and torch's own bits; `.grad` left alone; state; what is refused."""

from __future__ import annotations

import copy
import itertools
import json
import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gradstep.errors import ModelError, RecipeError
from gradstep.optim import descent
from gradstep.optim.descent import SGD
from gradstep.state import TrainState

FAST = settings(max_examples=30)
SHAPES = [(), (3,), (2, 4), (0,), (2, 1, 3), (1,)]
Gradients = list[list[Tensor | None]]  # by step, then by parameter


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    """Any settings that are allowed together, all of them given."""
    nesterov = draw(st.booleans())
    decays = st.one_of(st.just(0.0), st.floats(1e-3, 0.5))
    some = st.floats(0.05, 0.99)
    return {
        "lr": draw(st.one_of(st.just(0.0), st.floats(1e-3, 0.5))),
        "momentum": draw(some if nesterov else st.one_of(st.just(0.0), some)),
        "dampening": 0.0 if nesterov else draw(st.one_of(st.sampled_from([0.0, 1.0, "momentum"]), some)),
        "nesterov": nesterov,
        "weight_decay": draw(decays),
        "weight_decay_l1": draw(decays),
        "lr_decay": draw(decays),
        "momentum_form": draw(st.sampled_from(["outside", "inside"])),
        "maximize": draw(st.booleans()),
    }


torch_options = options().map(
    lambda o: {
        **{name: o[name] for name in ("lr", "momentum", "nesterov", "weight_decay", "maximize")},
        "dampening": 0.5 if o["dampening"] == "momentum" else o["dampening"],
    }
)
ways = st.sampled_from([None, False, True])  # of foreach
seeds = st.integers(0, 2**31)


def some_parameters(seed: int, dtype: torch.dtype = torch.float64, shapes: Sequence[Any] = SHAPES) -> list[Tensor]:
    """Of all shapes; about a quarter of the numbers are exactly zero, where the sign is zero too."""
    draws = torch.Generator().manual_seed(seed)
    values = [torch.randn(shape, generator=draws, dtype=dtype) for shape in shapes]
    return [(value * (torch.rand(value.shape, generator=draws) < 0.75)).requires_grad_() for value in values]


def some_gradients(seed: int, steps: int = 5, dtype: torch.dtype = torch.float64) -> Gradients:
    """About a fifth of them are missing, as when a branch of the model was not used."""
    draws, chance = torch.Generator().manual_seed(seed + 1), random.Random(seed)
    return [
        [None if chance.random() < 0.2 else torch.randn(shape, generator=draws, dtype=dtype) for shape in SHAPES]
        for _ in range(steps)
    ]


def rates(seed: int, base: float, steps: int = 5) -> list[float]:
    """What a schedule would write into the group."""
    return [base * random.Random(seed + n).choice([1.0, 1.0, 0.5, 2.0]) for n in range(steps)]


def run(optimizer: torch.optim.Optimizer, params: list[Tensor], gradients: Gradients, lr: Sequence[float] = ()) -> None:
    """A step for each list of gradients, at these rates if any. Ours must leave every gradient as it was."""
    for number, step in enumerate(gradients):
        own = [None if gradient is None else gradient.clone() for gradient in step]
        for parameter, gradient in zip(params, own, strict=True):
            parameter.grad = gradient
        for group in optimizer.param_groups:
            group["lr"] = lr[number] if lr else group["lr"]
        optimizer.step()
        for parameter, gradient, before in zip(params, own, step, strict=True):
            if isinstance(optimizer, SGD):  # torch's foreach way writes Nesterov's velocity into it
                assert parameter.grad is gradient
                assert gradient is None or torch.equal(gradient, before)


def by_hand(start: list[Tensor], gradients: Gradients, lr: Sequence[float], o: dict[str, Any]) -> list[Tensor]:
    """The rule, one parameter at a time, as its docstring has it."""
    ends = []
    for place, parameter in enumerate(start):
        p, v = parameter.detach().clone(), None
        for t, step in enumerate(gradients):
            g = step[place]
            if g is None:
                continue
            rate = lr[t] / (1 + t * o["lr_decay"])
            sign = (p > 0).to(p.dtype) - (p < 0).to(p.dtype)
            d = (-g if o["maximize"] else g) + o["weight_decay_l1"] * sign + o["weight_decay"] * p
            d = rate * d if o["momentum_form"] == "inside" else d
            move = d
            if mu := o["momentum"]:
                damp = mu if o["dampening"] == "momentum" else o["dampening"]
                v = d if v is None else mu * v + (1 - damp) * d
                move = d + mu * v if o["nesterov"] else v
            p = p - (move if o["momentum_form"] == "inside" else rate * move)
        ends.append(p)
    return ends


def equal(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


MOMENTA = [
    {"momentum": momentum, "dampening": dampening, "nesterov": False}
    for momentum, dampening in itertools.product([0.0, 0.9], [0.0, 0.2, "momentum"])
] + [{"momentum": 0.9, "dampening": 0.0, "nesterov": True}]


@pytest.mark.parametrize("form", ["outside", "inside"])
@pytest.mark.parametrize("momentum", MOMENTA, ids=lambda o: "-".join(map(str, o.values())))
def test_every_combination_is_the_rule_as_written(momentum: dict[str, Any], form: str) -> None:
    """To rounding; all tensors at once and one by one have the same bits; also where a gradient comes late."""
    choices = itertools.product([0.0, 0.3], [0.0, 0.01], [0.0, 0.1], [False, True])
    for seed, (l1, l2, lr_decay, maximize) in enumerate(choices):
        o = {**momentum, "weight_decay_l1": l1, "weight_decay": l2, "lr_decay": lr_decay}
        o |= {"lr": 0.1, "momentum_form": form, "maximize": maximize}
        gradients, lr = some_gradients(seed), rates(seed, 0.1)
        gradients[0][1] = None  # its first one comes when others have a velocity
        expected, ends = by_hand(some_parameters(seed), gradients, lr, o), []
        for way in ({"foreach": False}, {"foreach": True}, {"fused": True}):
            ends.append(some_parameters(seed))
            run(SGD(ends[-1], **o, **way), ends[-1], gradients, lr)
            for ours, theirs in zip(ends[-1], expected, strict=True):
                torch.testing.assert_close(ours.detach(), theirs, rtol=1e-12, atol=1e-13)
        assert equal(ends[0], ends[1])


@given(options(), ways, seeds)
def test_it_is_the_rule_as_written_for_any_numbers(o: dict[str, Any], foreach: bool | None, seed: int) -> None:
    params, gradients, lr = some_parameters(seed), some_gradients(seed), rates(seed, o["lr"])
    expected = by_hand(params, gradients, lr, o)
    run(SGD(params, **o, foreach=foreach), params, gradients, lr)
    for ours, theirs in zip(params, expected, strict=True):
        torch.testing.assert_close(ours.detach(), theirs, rtol=1e-12, atol=1e-13)


@given(torch_options, ways, seeds, st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_with_torchs_options_it_has_torchs_bits(
    o: dict[str, Any], foreach: bool | None, seed: int, dtype: torch.dtype
) -> None:
    ours, theirs = some_parameters(seed, dtype), some_parameters(seed, dtype)
    gradients, lr = some_gradients(seed, dtype=dtype), rates(seed, o["lr"])
    mine, torchs = SGD(ours, **o, foreach=foreach), torch.optim.SGD(theirs, **o, foreach=foreach)
    run(mine, ours, gradients, lr)
    run(torchs, theirs, gradients, lr)
    assert equal(ours, theirs)
    slots = [
        [optimizer.state[p].get("momentum_buffer") for p in each]
        for optimizer, each in ((mine, ours), (torchs, theirs))
    ]
    assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(*slots, strict=True))


@FAST
@given(st.lists(options(), min_size=3, max_size=3), seeds)
def test_each_group_goes_by_its_own_options(groups: list[dict[str, Any]], seed: int) -> None:
    params, gradients = some_parameters(seed), some_gradients(seed)
    parts = [slice(0, 2), slice(2, 3), slice(3, None)]
    expected = list(
        itertools.chain.from_iterable(
            by_hand(params[part], [step[part] for step in gradients], [o["lr"]] * len(gradients), o)
            for part, o in zip(parts, groups, strict=True)
        )
    )
    optimizer = SGD([{"params": params[part], **o} for part, o in zip(parts[:2], groups, strict=False)], lr=0.5)
    optimizer.add_param_group({"params": params[parts[2]], **groups[2]})
    run(optimizer, params, gradients)
    for ours, theirs in zip(params, expected, strict=True):
        torch.testing.assert_close(ours.detach(), theirs, rtol=1e-12, atol=1e-13)


def test_torch7s_settings_by_numbers() -> None:
    """lr 1, learningRateDecay 1, momentum 0.5 with its own dampening, weightDecay 0.1, over a constant gradient."""
    p = torch.tensor([10.0], dtype=torch.float64, requires_grad=True)
    optimizer = SGD([p], 1.0, momentum=0.5, dampening="momentum", weight_decay=0.1, lr_decay=1.0)
    run(optimizer, [p], [[torch.tensor([2.0], dtype=torch.float64)]] * 3)
    # d = 2 + 0.1·10 = 3, v = 3, rate 1: 7; d = 2.7, v = 2.85, rate 1/2: 5.575; d = 2.5575, v = 2.70375, rate 1/3.
    assert p.item() == pytest.approx(5.575 - 2.70375 / 3, rel=1e-15)


def test_dampening_follows_the_momentum() -> None:
    ours, theirs = some_parameters(3), some_parameters(3)
    mine = SGD(ours, 0.1, momentum=0.9, dampening="momentum")
    torchs = torch.optim.SGD(theirs, lr=0.1, momentum=0.9, dampening=0.9)
    for momentum in (0.9, 0.5, 0.0, 0.7):  # OneCycleLR moves it
        mine.param_groups[0]["momentum"] = momentum
        torchs.param_groups[0].update(momentum=momentum, dampening=momentum)
        run(mine, ours, some_gradients(4, 2))
        run(torchs, theirs, some_gradients(4, 2))
    assert equal(ours, theirs)


def test_the_decaying_rate_counts_the_calls_of_step() -> None:
    """Also those in which no parameter of the group had a gradient, and from where the group joined."""
    first, second = (torch.ones(1, dtype=torch.float64, requires_grad=True) for _ in range(2))
    optimizer = SGD([first], 1.0, lr_decay=1.0)
    first.grad, second.grad = None, torch.ones(1, dtype=torch.float64)
    optimizer.step()
    optimizer.add_param_group({"params": [second]})
    first.grad = torch.ones(1, dtype=torch.float64)
    optimizer.step()
    assert (first.item(), second.item()) == (1 - 1 / 2, 1 - 1 / 1)
    assert [group["steps"] for group in optimizer.param_groups] == [2, 1]


def test_a_rate_as_a_tensor_is_torchs() -> None:
    for shape, foreach in itertools.product([(), (1,)], [False, True]):
        ours, theirs = some_parameters(5), some_parameters(5)
        lr = torch.full(shape, 0.1)
        mine = SGD(ours, lr, momentum=0.9, foreach=foreach)
        torchs = torch.optim.SGD(theirs, lr=lr.clone(), momentum=0.9, foreach=foreach)
        for factor in (1.0, 0.5):
            for optimizer, params in ((mine, ours), (torchs, theirs)):
                optimizer.param_groups[0]["lr"].mul_(factor)
                run(optimizer, params, some_gradients(6, 3))
        assert equal(ours, theirs)


@FAST
@given(options(), seeds)
def test_a_rate_as_a_tensor_is_the_number(o: dict[str, Any], seed: int) -> None:
    ends = []
    for lr in (o["lr"], torch.tensor(o["lr"], dtype=torch.float64)):
        params = some_parameters(seed)
        run(SGD(params, **{**o, "lr": lr}), params, some_gradients(seed))
        ends.append(params)
    for ours, theirs in zip(*ends, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


def test_the_way_and_sparseness_are_handed_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """All ways end in the same weights, so it is looked at here that the way asked for is the one taken."""
    handed = []
    monkeypatch.setattr(descent, "sgd", lambda *_, **options: handed.append(options))
    for way in ({}, {"foreach": True}, {"foreach": False}, {"fused": True}):
        layers = nn.ModuleList([nn.Embedding(3, 2, sparse=not way.get("fused")), nn.Linear(2, 2)])
        optimizer = SGD(layers.parameters(), 0.1, **way)
        layers[1](layers[0](torch.tensor([1]))).sum().backward()
        optimizer.step()
    assert [each["foreach"] for each in handed] == [None, True, False, None]
    assert [each["fused"] for each in handed] == [None, None, None, True]
    assert [each["has_sparse_grad"] for each in handed] == [True, True, True, False]


def test_numbers_of_any_kind_are_kept_as_floats() -> None:
    optimizer = SGD([torch.zeros(1)], np.float32(0.5), momentum=np.float64(1), weight_decay=1)
    group = optimizer.param_groups[0]
    assert [type(group[name]) for name in ("lr", "momentum", "weight_decay")] == [float] * 3
    assert json.dumps({name: value for name, value in group.items() if name != "params"})


def test_a_closure_is_called_with_gradients_enabled_and_its_loss_returned() -> None:
    p = torch.ones(2, requires_grad=True)
    optimizer = SGD([p], 0.25, weight_decay_l1=1.0)
    losses = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        losses.append((p**2).sum())
        losses[-1].backward()
        return losses[-1]

    with torch.no_grad():
        assert optimizer.step(closure) is losses[0]
        assert not torch.is_grad_enabled()
    assert (len(losses), p.tolist(), p.requires_grad) == (1, [0.25, 0.25], True)
    assert optimizer.step() is None


def test_the_step_s_hooks_run_once() -> None:
    torch.optim.SGD([torch.zeros(1)], lr=0.1)  # torch wraps a class's step when the first of the class is made
    optimizer, called = SGD([torch.zeros(1)], 0.1), []
    optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    optimizer.register_step_post_hook(lambda *_: called.append("after"))
    optimizer.step()
    assert called == ["before", "after"]


@FAST
@given(options(), seeds)
def test_a_parameter_without_gradient_keeps_its_bits(o: dict[str, Any], seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    optimizer = SGD(model.parameters(), **{**o, "lr": 0.1})
    frozen = list(model[0].parameters())
    for step in range(4):
        if step == 1:  # after a step that left a velocity, too
            model[0].requires_grad_(False)
            kept = [parameter.clone() for parameter in frozen]
        optimizer.zero_grad()
        model(torch.randn(5, 3)).sum().backward()
        optimizer.step()
    assert all(parameter.grad is None for parameter in frozen)
    assert equal(frozen, kept)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 1)


def a_state(o: dict[str, Any], seed: int) -> TrainState:
    torch.manual_seed(seed)
    model = Net()
    own = {**o, "lr": torch.tensor(o["lr"])}  # a rate as a tensor is saved too
    groups = [{"params": model.first.parameters(), **own}, {"params": model.last.parameters()}]
    return TrainState(model, SGD(groups, lr=0.1, momentum=0.9, lr_decay=0.5), nn.MSELoss(), seed)


def train(state: TrainState, first: int, last: int) -> None:
    for number in range(first, last):
        draws = torch.Generator().manual_seed(number)
        state.optimizer.zero_grad()
        outputs = state.model.last(state.model.first(torch.randn(4, 3, generator=draws)).tanh())
        state.criterion(outputs, torch.randn(4, 1, generator=draws)).backward()
        state.optimizer.step()


@FAST
@given(options(), seeds)
def test_saved_and_loaded_it_goes_on_to_the_bit(o: dict[str, Any], seed: int) -> None:
    whole, half, loaded, by_dict = (a_state(o, seed + n) for n in (0, 0, 1, 2))
    train(whole, 0, 6)
    train(half, 0, 3)
    files = {file: {n: t.clone() for n, t in tensors.items()} for file, tensors in half.tensors().items()}
    numbers = json.loads(json.dumps(half.numbers()))
    loaded.load(files, numbers)
    by_dict.model.load_state_dict(half.model.state_dict())
    by_dict.optimizer.load_state_dict(copy.deepcopy(half.optimizer.state_dict()))
    for state in (loaded, by_dict):
        train(state, 3, 6)
        assert equal(list(state.model.parameters()), list(whole.model.parameters()))


@FAST
@given(options(), seeds)
def test_its_state_is_tensors_only(o: dict[str, Any], seed: int) -> None:
    params = some_parameters(seed)
    optimizer = SGD(params, **o)
    run(optimizer, params, some_gradients(seed))
    assert all(set(slots) <= {"momentum_buffer"} for slots in optimizer.state.values())
    assert all(isinstance(value, Tensor) for slots in optimizer.state.values() for value in slots.values())


def test_what_torchs_sgd_saved_loads() -> None:
    ours, theirs = some_parameters(7), some_parameters(7)
    torchs = torch.optim.SGD(theirs, lr=0.1, momentum=0.9, nesterov=True)
    run(torchs, theirs, some_gradients(8))
    mine = SGD(ours, 0.5, weight_decay_l1=0.0)
    mine.load_state_dict(copy.deepcopy(torchs.state_dict()))  # torch would share the velocities
    with torch.no_grad():
        for a, b in zip(ours, theirs, strict=True):
            a.copy_(b)
    run(mine, ours, some_gradients(9))
    run(torchs, theirs, some_gradients(9))
    assert equal(ours, theirs)


def test_velocities_of_torchs_are_not_taken_for_those_inside() -> None:
    """What torch saved goes on as torch, also where the momentum of this optimizer was asked for inside."""
    ours, theirs = some_parameters(7), some_parameters(7)
    torchs, mine = torch.optim.SGD(theirs, lr=0.1, momentum=0.9), SGD(ours, 0.1, momentum_form="inside")
    run(torchs, theirs, some_gradients(8))
    mine.load_state_dict(copy.deepcopy(torchs.state_dict()))
    assert [group["momentum_form"] for group in mine.param_groups] == ["outside"]
    with torch.no_grad():
        for a, b in zip(ours, theirs, strict=True):
            a.copy_(b)
    for optimizer, params in ((mine, ours), (torchs, theirs)):
        run(optimizer, params, some_gradients(9))
    assert equal(ours, theirs)
    again = SGD(some_parameters(7), 0.1)
    again.load_state_dict(SGD(some_parameters(7), 0.1, momentum_form="inside").state_dict())
    assert again.param_groups[0]["momentum_form"] == "inside"


def test_a_copy_is_an_optimizer_of_its_own() -> None:
    ours = some_parameters(7)
    params, twin = copy.deepcopy((ours, SGD(ours, 0.1, momentum=0.9, lr_decay=0.1, weight_decay_l1=0.1)))
    run(twin, params, some_gradients(8))
    expected = some_parameters(7)
    assert equal(ours, expected)
    run(SGD(expected, 0.1, momentum=0.9, lr_decay=0.1, weight_decay_l1=0.1), expected, some_gradients(8))
    assert equal(params, expected)


@pytest.mark.parametrize("form", ["outside", "inside"])
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
def test_sparse_gradients_train_as_in_torch(form: str, foreach: bool, nesterov: bool) -> None:
    tables = [nn.Embedding(6, 2, sparse=True), nn.Embedding(6, 2, sparse=True)]
    tables[1].load_state_dict(tables[0].state_dict())
    mine = SGD(tables[0].parameters(), 0.1, momentum=0.9, nesterov=nesterov, foreach=foreach, momentum_form=form)
    torchs = torch.optim.SGD(tables[1].parameters(), lr=0.1, momentum=0.9, nesterov=nesterov, foreach=foreach)
    for table, optimizer in zip(tables, (mine, torchs), strict=True):
        for step in range(4):
            optimizer.zero_grad()
            (table(torch.tensor([step, 1, 1])) ** 2).sum().backward()
            optimizer.step()
    tolerance = 0.0 if form == "outside" else 1e-6
    torch.testing.assert_close(tables[0].weight, tables[1].weight, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("clash", ["weight_decay", "weight_decay_l1", "fused"])
def test_sparse_gradients_are_refused_where_torch_has_no_rule(clash: str) -> None:
    table = nn.Embedding(6, 2, sparse=True)
    before = table.weight.clone()
    optimizer = SGD(table.parameters(), 0.1, **{clash: True if clash == "fused" else 0.1})
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ModelError, match=rf"a gradient is sparse, and {clash} can't be used with it\. Put"):
        optimizer.step()
    assert torch.equal(table.weight, before)


REFUSED = [
    *[({name: value}, rf"{name}=.* is not a finite number of at least 0\.")
      for name in ("lr", "momentum", "weight_decay", "weight_decay_l1", "lr_decay")
      for value in (-0.1, math.inf, math.nan, "0.1", True, None, [0.1])
      if (name, value) != ("lr", None)],  # which is to give each group its own
    ({"lr": 10**400}, r"lr=1000.* is not a finite number of at least 0\."),
    *[({"lr": torch.tensor(value)}, "not a tensor of one finite number of at least 0")
      for value in ([0.1, 0.1], -0.1, math.nan, 0.1 + 0j, True)],
    *[({"momentum": 0.9, "dampening": value}, r"dampening=.* not a finite number from 0 to 1, nor 'momentum'\.")
      for value in (-0.1, 1.5, math.nan, "momentun", True)],
    *[({name: value}, rf"{name}=.* is neither True nor False\.")
      for name in ("nesterov", "maximize") for value in (1, None, "yes")],
    *[({name: 1}, rf"{name}=1 is neither True nor False nor None\.") for name in ("foreach", "fused")],
    ({"momentum_form": "insid"}, r"momentum_form='insid'; there are outside, inside\. Did you mean 'inside'\?"),
    ({"momentum_form": None}, r"momentum_form=None; there are outside, inside\."),
    ({"nesterov": True}, r"nesterov needs a momentum, for instance momentum=0\.9\."),
    ({"nesterov": True, "momentum": 0.9, "dampening": 0.1}, r"nesterov goes without dampening; dampening=0\.1 was"),
    ({"nesterov": True, "momentum": 0.9, "dampening": "momentum"}, r"without dampening; dampening='momentum' was"),
    ({"foreach": True, "fused": True}, "two ways of the same step"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "words"), REFUSED, ids=[str(wrong) for wrong, _ in REFUSED])
def test_what_is_wrong_is_refused_before_the_first_step(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=f"^SGD: .*{words}"):
        SGD([torch.zeros(1)], **{"lr": 0.1, **wrong})
    with pytest.raises(RecipeError, match=f"^SGD, group 1: .*{words}"):
        SGD([{"params": torch.zeros(1)}, {"params": torch.zeros(1), **wrong}], 0.1)
    optimizer = SGD([torch.zeros(1)], 0.1)
    with pytest.raises(RecipeError, match=f"^SGD, group head: .*{words}"):
        optimizer.add_param_group({"params": torch.zeros(1), "name": "head", **wrong})
    assert len(optimizer.param_groups) == 1


def test_complex_parameters_are_refused_an_l1_decay_and_train_without() -> None:
    weights = torch.ones(2, dtype=torch.complex128, requires_grad=True)
    with pytest.raises(ModelError, match=r"^SGD, group 0: weight_decay_l1 is not for complex parameters"):
        SGD([torch.zeros(1), weights], 0.1, weight_decay_l1=0.1)
    optimizer = SGD([torch.zeros(1)], 0.1)
    with pytest.raises(ModelError, match=r"^SGD, group head: weight_decay_l1 is not for complex parameters"):
        optimizer.add_param_group({"params": iter([weights]), "name": "head", "weight_decay_l1": 0.1})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [weights], "weight_decay": 0.5})
    weights.grad = torch.full_like(weights, 1j)
    optimizer.step()
    torch.testing.assert_close(weights.detach(), torch.full_like(weights, 0.95 - 0.1j))


def test_options_of_a_group_are_looked_at_together_with_the_default_ones() -> None:
    with pytest.raises(RecipeError, match="group 0: nesterov needs a momentum"):
        SGD([{"params": torch.zeros(1), "momentum": 0.0}], 0.1, momentum=0.9, nesterov=True)
    SGD([{"params": torch.zeros(1), "nesterov": True}], 0.1, momentum=0.9)


def test_a_misspelt_option_of_a_group_is_refused_and_what_others_keep_there_is_not() -> None:
    words = r"group 0: there is no option 'weight_decay1'; what comes near it: weight_decay, weight_decay_l1\."
    with pytest.raises(RecipeError, match=words):
        SGD([{"params": torch.zeros(1), "weight_decay1": 0.1}], 0.1)
    beside = {"name": "head", "initial_lr": 1, "max_lr": 1, "min_lr": 1, "swa_lr": 1, "base_momentum": 1}
    beside |= {"max_momentum": 1, "freeze": "2 epochs", "schedule": None, "lr_scale": 2.0, "mine": "x"}
    given_ = {"params": torch.zeros(1), **beside}
    group = SGD([given_], 0.1).param_groups[0]
    assert {name: group[name] for name in beside} == beside
    assert set(given_) == {"params", *beside}  # the user's own dict is not written into


def test_named_parameters_are_taken_as_torch_takes_them() -> None:
    optimizer = SGD(nn.Linear(2, 1).named_parameters(), 0.1)
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]


def test_torchs_own_schedulers_run_on_it() -> None:
    ours, theirs = some_parameters(1), some_parameters(1)
    for params, optimizer in ((ours, SGD(ours, 0.1, momentum=0.9)), (theirs, torch.optim.SGD(theirs, 0.1, 0.9))):
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=6)
        for step in some_gradients(2):
            run(optimizer, params, [step])
            cycle.step()
    assert equal(ours, theirs)


def test_the_rate_may_be_each_group_s_own_and_must_be_somewhere() -> None:
    model = nn.Linear(2, 2)
    groups = [{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.2}]
    assert [group["lr"] for group in SGD(groups, momentum=0.9).param_groups] == [0.1, 0.2]
    for none in (model.parameters(), [{"params": [model.weight], "lr": 0.1}, {"params": [model.bias]}], []):
        with pytest.raises(RecipeError, match="say at which rate"):
            SGD(none)
