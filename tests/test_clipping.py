"""Clipping is torch's own, once per batch, after the last micro-batch and before the optimizer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import gradstep
from gradstep.errors import RecipeError
from gradstep.optim.clipping import Clip


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(24, 5, generator=generator, dtype=torch.float64)
    return inputs, 10 * torch.randn(24, 2, generator=generator, dtype=torch.float64)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def trained(**more: Any) -> list[torch.Tensor]:
    model = net()
    settings = {"epochs": 3, "batch_size": 8, "quiet": True} | more
    make = settings.pop("optimizer", lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9))
    gradstep.fit(model, nn.MSELoss(), data(), optimizer=make, **settings)
    return [parameter.detach() for parameter in model.parameters()]


def in_groups(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [each]} for each in reversed(list(parameters))], lr=0.05, momentum=0.9)


class Norms:
    """The gradients' common norm and largest element as the optimizer sees them, after each step."""

    def __init__(self) -> None:
        self.norms: list[float] = []
        self.largest: list[float] = []

    def on_train_batch_end(self, state: Any, outcome: Any) -> None:
        own = [parameter.grad for parameter in state.model.parameters()]
        self.norms.append(float(torch.nn.utils.get_total_norm(own)))
        self.largest.append(max(float(each.abs().max()) for each in own))


@pytest.mark.parametrize("clip", [0.5, {"norm": 0.5, "type": math.inf}, {"norm": 2, "type": 1.0}, {"value": 0.01}])
def test_a_run_that_clips_is_the_textbook_loop_with_torchs_function(clip: Any, tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    feed = gradstep.data.Feed(gradstep.data.as_source(data(), "train"), 8, shuffle=True, seed=0)
    for step, (inputs, targets) in enumerate(feed.start(0)):
        if step == 9:
            break
        optimizer.zero_grad()
        nn.MSELoss()(model(inputs), targets).backward()
        if isinstance(clip, dict) and "value" in clip:
            torch.nn.utils.clip_grad_value_(model.parameters(), clip["value"])
        else:
            norm, kind = (clip["norm"], clip["type"]) if isinstance(clip, dict) else (clip, 2.0)
            torch.nn.utils.clip_grad_norm_(model.parameters(), norm, norm_type=kind)
        optimizer.step()
    ours = trained(clip=clip, out=tmp_path)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(ours, model.parameters(), strict=True))
    backwards = trained(clip=clip, optimizer=in_groups)  # whatever the groups, the norm is summed in the model's order
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(backwards, ours, strict=True))
    assert not all(torch.equal(mine, plain) for mine, plain in zip(ours, trained(), strict=True))


def test_the_optimizer_never_sees_more_than_the_limit() -> None:
    free, norm, value = Norms(), Norms(), Norms()
    trained(hooks=[free])
    trained(hooks=[norm], clip=0.5)
    trained(hooks=[value], clip={"value": 0.02})
    assert max(free.norms) > 0.5
    assert max(free.largest) > 0.02
    assert max(norm.norms) == pytest.approx(0.5, abs=1e-6)
    assert max(value.largest) == 0.02


def test_a_batch_in_micro_batches_is_clipped_once_as_a_whole() -> None:
    whole, apart = trained(clip=0.5), trained(clip=0.5, micro_batch=3)
    assert all((a - b).abs().max() <= 1e-12 for a, b in zip(whole, apart, strict=True))


def test_each_evaluation_of_an_optimizer_that_asks_several_times_is_clipped() -> None:
    def lbfgs(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(parameters, lr=0.1, max_iter=3)

    watch = Norms()
    clipped, free = trained(clip=0.1, optimizer=lbfgs, hooks=[watch]), trained(optimizer=lbfgs)
    assert max(watch.norms) <= 0.1 + 1e-6
    assert not all(torch.equal(mine, plain) for mine, plain in zip(clipped, free, strict=True))


@given(st.floats(1e-3, 1e3), st.lists(st.floats(-50, 50), min_size=1, max_size=6))
def test_alone_in_a_plain_loop_it_scales_or_leaves_alone(limit: float, numbers: list[float]) -> None:
    parameter = nn.Parameter(torch.zeros(len(numbers), dtype=torch.float64))
    parameter.grad = torch.tensor(numbers, dtype=torch.float64)
    before = parameter.grad.clone()
    clip = Clip.parse(limit)
    assert clip is not None
    norm = clip([parameter, nn.Parameter(torch.zeros(2))])
    assert norm is not None
    assert float(norm) == pytest.approx(float(before.norm()))
    scale = min(1.0, limit / (float(before.norm()) + 1e-6))
    assert torch.allclose(parameter.grad, before * scale, rtol=1e-12)


@pytest.mark.parametrize(
    ("clip", "said"),
    [
        (0, r"clip\.norm: 0 is no positive number"),
        (-1.0, r"clip\.norm: -1\.0"),
        (math.nan, r"clip\.norm: nan"),
        (math.inf, r"clip\.norm: inf clips nothing; leave clip out"),
        (True, r"clip\.norm: True"),
        ("1", r"clip\.norm: '1'"),
        ({"nrom": 1.0}, r"there is no 'nrom'.*Did you mean 'norm'"),
        ({"norm": 1.0, "value": 1.0}, r"one of them"),
        ({"value": 1.0, "type": 2.0}, r"type is a norm's"),
        ({}, r"give a norm"),
    ],
)
def test_a_wrong_setting_is_an_error_before_the_first_step(clip: Any, said: str) -> None:
    watch = Norms()
    with pytest.raises(RecipeError, match=said):
        trained(clip=clip, hooks=[watch])
    assert watch.norms == []


@pytest.mark.parametrize("wrong", [{}, {"norm": -1.0}, {"norm": 1.0, "value": 0.5}, {"value": math.inf}])
def test_made_by_hand_it_is_checked_too(wrong: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match=r"^clip"):
        Clip(**wrong)
