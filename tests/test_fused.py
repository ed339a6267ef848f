"""A fused step straight into the kernel: torch's own in every bit, and torch's own code where it is not as ever."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gradstep.optim import bare, fused

SHAPES = [(3, 4), (5,), (2, 1, 3, 3)]
RATES = st.floats(1e-4, 0.5)
SGD = st.fixed_dictionaries(
    {"lr": RATES, "momentum": st.sampled_from([0.0, 0.9]), "weight_decay": st.sampled_from([0.0, 0.1]),
     "maximize": st.booleans(), "nesterov": st.booleans(), "dampening": st.sampled_from([0.0, 0.3])}
).map(lambda o: o | {"nesterov": o["nesterov"] and bool(o["momentum"]) and not o["dampening"]})  # fmt: skip
ADAM = st.fixed_dictionaries(
    {"lr": RATES, "betas": st.sampled_from([(0.9, 0.999), (0.0, 0.5)]), "eps": st.sampled_from([1e-8, 1e-3]),
     "weight_decay": st.sampled_from([0.0, 0.1]), "amsgrad": st.booleans(), "maximize": st.booleans()}
)  # fmt: skip
MADE = st.one_of(
    st.tuples(st.just(torch.optim.SGD), SGD),
    st.tuples(st.just(torch.optim.Adam), ADAM),
    st.tuples(st.just(torch.optim.AdamW), ADAM),
)


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=draw).to(dtype)) for shape in SHAPES]


def gradients_of(params: list[nn.Parameter], number: int, missing: int | None = None) -> None:
    draw = torch.Generator().manual_seed(number)
    for place, parameter in enumerate(params):
        gradient = torch.randn(parameter.shape, generator=draw).to(parameter.dtype)
        parameter.grad = None if place == missing else gradient


def twins(kind: Any, options: dict[str, Any], dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    made = []
    for _ in range(2):
        params = parameters(dtype)
        groups = [{"params": params[:2]}, {"params": params[2:], "lr": options["lr"] / 3}]
        made.append((params, kind(groups, **options, fused=True)))
    return made[0], made[1]


def everything(params: list[nn.Parameter], optimizer: Any) -> list[torch.Tensor]:
    slots = [slot for p in params for slot in optimizer.state[p].values() if isinstance(slot, torch.Tensor)]
    return [*params, *slots]


@given(MADE, st.sampled_from([torch.float32, torch.float64]), st.lists(st.sampled_from([None, 0, 1, 2]), max_size=6))
def test_the_step_is_torchs_own_in_every_bit(made: Any, dtype: torch.dtype, missing: list[int | None]) -> None:
    (ours, mine), (theirs, torchs) = twins(*made, dtype)
    for number, absent in enumerate([None, *missing]):
        gradients_of(ours, number, absent)
        gradients_of(theirs, number, absent)
        with torch.no_grad():
            taken = fused.step(mine)
        assert taken == (number > 0 or not made[1].get("momentum", made[0] is not torch.optim.SGD))
        if not taken:
            mine.step()
        torchs.step()
        for one, other in zip(everything(ours, mine), everything(theirs, torchs), strict=True):
            assert torch.equal(one, other)


def with_first_step(optimizer: torch.optim.Optimizer, params: list[nn.Parameter]) -> torch.optim.Optimizer:
    gradients_of(params, 0)
    optimizer.step()
    gradients_of(params, 1)
    return optimizer


def rate_in_a_tensor(optimizer: Any, params: Any) -> None:
    optimizer.param_groups[0]["lr"] = torch.tensor(0.1)


def not_fused(optimizer: Any, params: Any) -> None:
    optimizer.param_groups[1]["fused"] = None


def scaled(optimizer: Any, params: Any) -> None:
    optimizer.grad_scale = torch.ones(())


def two_dtypes(optimizer: Any, params: Any) -> None:
    params[0].data, params[0].grad = params[0].data.double(), None
    params[0].grad = torch.ones_like(params[0])
    for slots in optimizer.state[params[0]].items():
        if slots[0] != "step":
            optimizer.state[params[0]][slots[0]] = slots[1].double()


def without_slots(optimizer: Any, params: Any) -> None:
    optimizer.state.pop(params[2])


def without_a_velocity(optimizer: Any, params: Any) -> None:
    optimizer.state[params[2]] = {}


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize(
    "unusual", [rate_in_a_tensor, not_fused, scaled, two_dtypes, without_slots, without_a_velocity]
)
def test_what_is_not_as_ever_is_left_to_torch_before_anything_is_done(kind: Any, unusual: Any) -> None:
    options: dict[str, Any] = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    (params, optimizer), _ = twins(kind, {"lr": 0.1, **options})
    with_first_step(optimizer, params)
    unusual(optimizer, params)
    before = copy.deepcopy(everything(params, optimizer))
    with torch.no_grad():
        assert not fused.step(optimizer)
    assert all(torch.equal(one, other) for one, other in zip(everything(params, optimizer), before, strict=True))


def test_a_sparse_gradient_has_torchs_error() -> None:
    table = nn.Embedding(5, 2, sparse=True)
    optimizer = torch.optim.SGD(table.parameters(), lr=0.1, fused=True)
    table(torch.tensor([1, 3])).sum().backward()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        bare.step(optimizer)


def test_a_subclass_of_the_users_has_its_own_step() -> None:
    told = []

    class Own(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            told.append("own")
            return super().step(closure)

    params = parameters()
    gradients_of(params, 0)
    bare.step(Own(params, lr=0.1, fused=True))
    assert told == ["own"]
