"""checkgrad: right gradients pass, wrong ones are found, and params stay as they were."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gradstep.errors import ModelError, RecipeError
from gradstep.optim.differences import checkgrad
from gradstep.optim.flat import flatten_parameters
from tests.rosenbrock import far, rosenbrock


def test_checkgrad_passes_a_right_gradient_and_puts_params_back() -> None:
    x = far(10)
    difference, analytic, numeric = checkgrad(rosenbrock, x)
    assert difference < 1e-8
    assert torch.equal(analytic, rosenbrock(x)[1])
    torch.testing.assert_close(numeric, analytic, rtol=1e-7, atol=1e-6)
    assert torch.equal(x, far(10))


@given(place=st.integers(0, 9), factor=st.sampled_from([-1.0, 0.0, 0.99, 1.01, 2.0]))
def test_checkgrad_finds_one_wrong_element(place: int, factor: float) -> None:
    def wrong(x: Tensor) -> tuple[float, Tensor]:
        f, df = rosenbrock(x)
        df[place] *= factor
        return f, df

    right = far(10) + torch.linspace(0, 0.5, 10, dtype=torch.float64)  # no element of the gradient is near 0
    difference, analytic, numeric = checkgrad(wrong, right)
    assert difference > 1e-6
    assert int((analytic - numeric).abs().argmax()) == place


def test_checkgrad_on_a_model_in_both_precisions() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

    def feval(x: Tensor) -> tuple[Tensor, Tensor]:
        model.zero_grad()
        loss = model(torch.ones(2, 3, dtype=x.dtype)).square().sum()
        loss.backward()
        return loss, flatten_parameters(model).grads

    with pytest.warns(UserWarning, match=r"checkgrad in float32.*model.double\(\)"):
        difference, *_ = checkgrad(feval, flatten_parameters(model).params)
    assert difference < 1e-2
    difference, *_ = checkgrad(feval, flatten_parameters(model.double()).params)
    assert difference < 1e-8


@pytest.mark.parametrize("scale", [1e4, 1e6])
def test_checkgrad_goes_further_where_params_are_large(scale: float) -> None:
    """With the step that is right at 1, rounding of f would leave nothing of the difference."""
    x = far(10) * scale
    assert checkgrad(lambda x: (float(x.square().sum()), 2 * x), x)[0] < 1e-9
    assert torch.equal(x, far(10) * scale)


def test_checkgrads_warning_points_at_the_caller() -> None:
    with pytest.warns(UserWarning, match="checkgrad in float32") as caught:
        checkgrad(rosenbrock, far(2).float())
    assert [each.filename for each in caught] == [__file__]


@pytest.mark.parametrize("f", [math.nan, math.inf])
def test_checkgrad_of_what_is_not_finite(f: float) -> None:
    with pytest.raises(ModelError, match=rf"f = {f}, which is not finite"):
        checkgrad(lambda x: (f, x.clone()), far(2))


@pytest.mark.parametrize("eps", [0, 1, -1e-5, math.nan, "1e-5", True])
def test_checkgrads_eps_is_a_number_between(eps: object) -> None:
    with pytest.raises(RecipeError, match=r"eps = .* is not a number between 0 and 1"):
        checkgrad(rosenbrock, far(2), eps=eps)  # type: ignore[arg-type]
    assert checkgrad(rosenbrock, far(2), eps=np.float32(1e-5))[0] < 1e-6


def test_checkgrad_of_zero_of_chance_and_of_errors() -> None:
    x = far(2)
    assert checkgrad(lambda x: (1.0, torch.zeros_like(x)), x)[0] == 0
    with pytest.raises(ModelError, match="at one place"):
        checkgrad(lambda x: (float(torch.rand(())), x.clone()), x)
    with pytest.raises(RecipeError, match="eps = 0"):
        checkgrad(rosenbrock, x, eps=0)
    calls = iter([(1.0, torch.ones(2).double())] * 2)
    with pytest.raises(StopIteration):
        checkgrad(lambda x: next(calls), x)
    assert torch.equal(x, far(2))
