"""checkgrad: right gradients pass, wrong ones are found, and params stay as they were."""

from __future__ import annotations

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
