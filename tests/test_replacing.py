"""An optimizer replaced in mid-run: what it takes over is as if nothing had happened, and the rest is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradstep.errors import ModelError
from gradstep.models import LeNet
from gradstep.optim import param_groups, replace
from gradstep.optim.descent import SGD

Options = dict[str, Any]
SPARSE = torch.optim.SparseAdam
CASES: list[tuple[Any, Options]] = [
    (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    (torch.optim.SGD, {}),
    (torch.optim.Adam, {"amsgrad": True}),
    (torch.optim.AdamW, {}),
    (torch.optim.Adamax, {}),
    (torch.optim.NAdam, {}),
    (torch.optim.RAdam, {}),
    (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
    (torch.optim.Rprop, {}),
    (torch.optim.Adadelta, {}),
    (torch.optim.Adagrad, {}),
    (torch.optim.ASGD, {"t0": 1}),
    (torch.optim.Adafactor, {}),
    (torch.optim.Muon, {}),
    (torch.optim.LBFGS, {"max_iter": 3}),
    (SPARSE, {}),
    (SGD, {"momentum": 0.9, "momentum_form": "inside", "weight_decay_l1": 0.01}),
]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 2, bias=False)).double()


def advance(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (model(torch.eye(3, dtype=torch.float64)) - 1).square().mean()
        loss.backward()
        if isinstance(optimizer, SPARSE):
            for parameter in model.parameters():
                parameter.grad = parameter.grad.to_sparse()
        return loss

    for _ in range(steps):
        optimizer.step(closure)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_every_optimizer_of_torch_is_here() -> None:
    kinds = {each for each in vars(torch.optim).values() if isinstance(each, type)}
    own = {each for each in kinds if issubclass(each, torch.optim.Optimizer)} - {torch.optim.Optimizer}
    assert own == {kind for kind, _ in CASES} - {SGD}


@pytest.mark.parametrize(("kind", "options"), CASES, ids=lambda case: getattr(case, "__name__", ""))
def test_one_of_the_same_class_goes_on_bit_for_bit(kind: Any, options: Options) -> None:
    one, other = net(), net()
    advance(one, kind(one.parameters(), lr=0.05, **options), 7)
    old = kind(other.parameters(), lr=0.05, **options)
    advance(other, old, 3)
    slots = {name for state in old.state.values() for name, value in state.items() if value is not None}
    new = kind(other.parameters(), lr=0.05, **options)
    done = replace(old, new)
    assert set(done.kept) == slots
    assert not done.forgotten
    assert not old.state
    advance(other, new, 4)
    assert torch.equal(weights(one), weights(other))


def test_the_document_s_new_optimizer_forgets_momentum_and_this_one_does_not() -> None:
    """A new rate from step 3 on: by hand, by `replace`, and by a new optimizer alone."""
    by_hand, replaced, afresh = net(), net(), net()
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for model in (by_hand, replaced, afresh)]
    for model, optimizer in zip((by_hand, replaced, afresh), optimizers, strict=True):
        advance(model, optimizer, 3)
    optimizers[0].param_groups[0]["lr"] = 0.01
    new = torch.optim.SGD(replaced.parameters(), lr=0.01, momentum=0.9)
    done = replace(optimizers[1], new)
    advance(by_hand, optimizers[0], 2)
    advance(replaced, new, 2)
    advance(afresh, torch.optim.SGD(afresh.parameters(), lr=0.01, momentum=0.9), 2)
    assert torch.equal(weights(by_hand), weights(replaced))
    assert not torch.allclose(weights(by_hand), weights(afresh))
    assert str(done) == "SGD replaces SGD. It keeps momentum_buffer of 2 parameters. Nothing is forgotten."


def test_a_rate_changed_by_hand_keeps_the_velocity() -> None:
    """v = 0.9·v + g, p = p - lr·v: the rate of a step is the group's at that step, and v goes on."""
    parameter = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = torch.optim.SGD([parameter], lr=0.5, momentum=0.9)
    expected, velocity = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for rate in (0.5, 0.5, 0.0625, 2.0):
        optimizer.param_groups[0]["lr"] = rate
        parameter.grad = parameter.detach().sin()
        velocity = 0.9 * velocity + expected.sin()
        expected = expected - rate * velocity
        optimizer.step()
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-15, atol=1e-15)
        torch.testing.assert_close(optimizer.state[parameter]["momentum_buffer"], velocity, rtol=1e-15, atol=1e-15)


def test_another_class_starts_from_nothing_and_says_so() -> None:
    model = net()
    old = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    advance(model, old, 2)
    new = torch.optim.Adam(model.parameters())
    done = replace(old, new)
    assert not new.state
    assert str(done) == ("Adam replaces SGD. Forgotten: momentum_buffer of 2 parameters (Adam is no SGD).")
    advance(model, new, 1)


def test_a_subclass_takes_over_and_its_parent_does_not() -> None:
    model = net()
    adam = torch.optim.Adam(model.parameters())
    advance(model, adam, 2)
    adamw = torch.optim.AdamW(model.parameters())
    assert replace(adam, adamw).kept == {"step": 2, "exp_avg": 2, "exp_avg_sq": 2}
    advance(model, adamw, 1)
    back = replace(adamw, torch.optim.Adam(model.parameters()))
    assert back.forgotten == {"step": 2, "exp_avg": 2, "exp_avg_sq": 2}


@pytest.mark.parametrize(
    ("kind", "before", "after", "reason"),
    [
        (torch.optim.Adam, {}, {"amsgrad": True}, "amsgrad was False and is True"),
        (torch.optim.RMSprop, {}, {"momentum": 0.9}, "momentum was 0 and is 0.9"),
        (torch.optim.RMSprop, {}, {"centered": True}, "centered was False and is True"),
        (torch.optim.SGD, {"momentum": 0.9}, {"momentum": 0.0}, "momentum was 0.9 and is 0.0"),
        (torch.optim.SGD, {"momentum": 0.9}, {"momentum": 0.9, "maximize": True}, "maximize was False and is True"),
        (torch.optim.Adam, {"betas": (0.0, 0.9)}, {"betas": (0.5, 0.9)}, "betas was (0.0, 0.9) and is (0.5, 0.9)"),
        (
            SGD,
            {"momentum": 0.9},
            {"momentum": 0.9, "momentum_form": "inside"},
            "momentum_form was outside and is inside",
        ),
    ],
)
def test_slots_that_would_mean_something_else_are_forgotten(
    kind: Any, before: Options, after: Options, reason: str
) -> None:
    """And the new optimizer steps as a fresh one does: torch's would fail on half a state."""
    model, twin = net(), net()
    old = kind(model.parameters(), lr=0.1, **before)
    advance(model, old, 2)
    twin.load_state_dict(model.state_dict())
    new = kind(model.parameters(), lr=0.1, **after)
    done = replace(old, new)
    assert not done.kept
    assert done.reasons == (reason,)
    assert f" of 2 parameters ({reason})." in str(done)
    advance(model, new, 2)
    advance(twin, kind(twin.parameters(), lr=0.1, **after), 2)
    assert torch.equal(weights(model), weights(twin))


def test_rates_decays_and_sizes_of_momentum_may_change() -> None:
    model = net()
    old = SGD(model.parameters(), lr=0.1, momentum=0.9)
    advance(model, old, 2)
    other = {"lr": torch.tensor(0.2), "momentum": 0.5, "weight_decay": 0.1, "weight_decay_l1": 0.1, "nesterov": True}
    assert replace(old, SGD(model.parameters(), foreach=True, **other)).kept == {"momentum_buffer": 2}


def test_the_count_behind_a_decaying_rate_is_forgotten() -> None:
    model = net()
    old = SGD(model.parameters(), lr=0.1, momentum=0.9, lr_decay=0.1)
    advance(model, old, 2)
    done = replace(old, SGD(model.parameters(), lr=0.1, momentum=0.9, lr_decay=0.1))
    assert str(done).endswith("It keeps momentum_buffer of 2 parameters. Forgotten: steps of 2 parameters.")


def test_parameters_that_leave_and_join_are_named() -> None:
    model = LeNet()
    old = torch.optim.SGD(param_groups(model, {"features": {"lr": 0.1}}, lr=0.2), momentum=0.9)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    old.step()
    extra = nn.Parameter(torch.zeros(()))
    new = torch.optim.SGD([*model.classifier.parameters(), extra], lr=0.1, momentum=0.9)
    assert str(replace(old, new, model)) == (
        "SGD replaces SGD. It keeps momentum_buffer of 6 parameters. Forgotten: momentum_buffer of 4 parameters "
        "(parameters that are no longer trained). No longer trained: features.0.weight, features.0.bias, "
        "features.3.weight, features.3.bias. New: a scalar."
    )
    named = torch.optim.SGD(model.features.named_parameters(), lr=0.1)
    few = torch.optim.SGD([("first", model.features[0].weight)], lr=0.1)
    assert replace(named, few).dropped == ("0.bias", "3.weight", "3.bias")
    unnamed = torch.optim.SGD([model.features[0].weight, model.features[3].weight], lr=0.1)
    assert replace(few, unnamed).added == ("16×6×5×5",)


def test_lbfgs_takes_over_for_exactly_its_own_parameters() -> None:
    model = net()
    old = torch.optim.LBFGS(model.parameters())
    advance(model, old, 1)
    fewer = torch.optim.LBFGS([model[0].weight])
    done = replace(old, fewer)
    assert not done.kept
    assert done.reasons == ("LBFGS remembers all its parameters at once, and they are others",)
    assert done.dropped == ("2×4",)


@pytest.mark.parametrize("own", [False, True])
def test_an_optimizer_of_another_model_is_refused(own: bool) -> None:
    model = net()
    old = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    advance(model, old, 1)
    with pytest.raises(ModelError, match=r"the same optimizer|holds no parameter of the old SGD\. Was it made for"):
        replace(old, old if own else torch.optim.SGD(net().parameters(), lr=0.1, momentum=0.9))
    assert len(old.state) == 2


def test_nothing_to_forget() -> None:
    model = net()
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    advance(model, plain, 1)
    assert str(replace(plain, torch.optim.Adam(model.parameters()))) == "Adam replaces SGD. Nothing is forgotten."
