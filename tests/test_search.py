"""lbfgs and cg: against torch, SciPy and known minima; and a feval that does not look at x."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import minimize, rosen, rosen_der
from torch import Tensor, nn

from gradstep.data import load_named
from gradstep.errors import ModelError
from gradstep.optim import search, torch7
from gradstep.optim.flat import flatten_parameters
from gradstep.optim.line_search import Point, Wolfe, strong_wolfe
from tests.rosenbrock import far, rosenbrock

METHODS = {"lbfgs": search.lbfgs, "cg": search.cg}


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_calls_of_lbfgs_that_share_a_state_are_one_torch_lbfgs(line_search: str | None) -> None:
    x = far(10)
    parameter = nn.Parameter(x.clone())
    optimizer = torch.optim.LBFGS([parameter], lr=0.5, max_iter=4, history_size=5, line_search_fn=line_search)

    def closure() -> float:
        f, parameter.grad = rosenbrock(parameter)
        return f

    state: dict[str, Any] = {}
    config = {"lr": 0.5, "maxIter": 4, "nCorrection": 5, "lineSearch": line_search, "tolFun": 1e-7}
    for _ in range(12):
        optimizer.step(closure)
        state = copy.deepcopy(state)
        _, fs = search.lbfgs(rosenbrock, x, config, state)
        assert torch.equal(x, parameter.detach())
        assert fs[-1] == rosenbrock(x)[0]
    assert state["n_iter"] == optimizer.state[parameter]["n_iter"] > 20


# ---- functions whose minimum is known ----

WOLFE = {"lineSearch": "strong_wolfe"}


@pytest.mark.parametrize("n", [2, 100])
@pytest.mark.parametrize(("name", "calls", "config"), [("lbfgs", 60, {**WOLFE, "nCorrection": 10}), ("cg", 100, {})])
def test_rosenbrocks_minimum(n: int, name: str, calls: int, config: dict[str, Any]) -> None:
    x = far(n)
    state: dict[str, Any] = {}
    for _ in range(calls):
        _, fs = METHODS[name](rosenbrock, x, config, state)
        assert all(isinstance(f, float) for f in fs)
    assert fs[-1] == rosenbrock(x)[0] < 1e-8
    assert float((x - 1).abs().max()) < 1e-3


@pytest.mark.parametrize("n", [2, 20])
@pytest.mark.parametrize(("name", "reference"), [("cg", "CG"), ("lbfgs", "L-BFGS-B")])
def test_as_low_as_scipy(n: int, name: str, reference: str) -> None:
    """Both run until they can't improve, from the same place: f as low, to 1e-12, where f began at hundreds."""
    x, options = far(n), {"maxIter": 3000, "maxEval": 9000, "tolFun": 1e-8}
    options |= {"tolX": 0.0, "nCorrection": 10, **WOLFE} if name == "lbfgs" else {}
    settings = {"gtol": 1e-8, "maxiter": 3000} | ({"ftol": 0.0} if reference == "L-BFGS-B" else {})
    found = minimize(rosen, far(n).numpy(), jac=rosen_der, method=reference, options=settings)
    _, fs = METHODS[name](rosenbrock, x, options)
    assert fs[-1] <= found.fun + 1e-12
    assert len(fs) <= 1.5 * found.nfev + 20


def test_calls_of_cg_that_share_a_state_are_one_call() -> None:
    x, y, state = far(10), far(10), {}
    many = {"maxEval": 10_000}
    for _ in range(6):
        search.cg(rosenbrock, x, {"maxIter": 5, **many}, state)
        state = copy.deepcopy(state)
    _, fs = search.cg(rosenbrock, y, {"maxIter": 30, **many})
    assert torch.equal(x, y)
    assert fs[-1] == rosenbrock(y)[0]


@given(n=st.integers(2, 8), seed=st.integers(0, 50))
def test_cg_solves_a_quadratic_in_about_as_many_steps_as_it_has_dimensions(n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, n, dtype=torch.float64, generator=generator)
    h, b = a @ a.T + torch.eye(n, dtype=torch.float64), torch.randn(n, dtype=torch.float64, generator=generator)
    x = torch.zeros(n, dtype=torch.float64)
    search.cg(
        lambda x: (float(x @ h @ x / 2 - b @ x), h @ x - b),
        x,
        {"maxIter": 4 * n, "maxEval": 50 * n, "c1": 1e-4, "c2": 0.01},
    )
    torch.testing.assert_close(x, torch.linalg.solve(h, b), rtol=1e-5, atol=1e-5)


def test_logistic_regression_on_mnist(mnist: Path) -> None:
    images, labels = load_named("mnist").train.content
    inputs, targets = images[:2000].double().reshape(2000, -1) / 255, labels[:2000]
    model = nn.Linear(784, 10).double()
    params, grads = flatten_parameters(model)
    params.zero_()

    def feval(x: Tensor) -> tuple[Tensor, Tensor]:
        if x is not params:
            params.copy_(x)
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets) + 5e-3 * sum(
            p.square().sum() for p in model.parameters()
        )
        loss.backward()
        return loss, grads

    def for_scipy(x: Any) -> tuple[float, Any]:
        f, df = feval(torch.from_numpy(x))
        return f.item(), df.numpy().copy()

    found = minimize(for_scipy, params.numpy().copy(), jac=True, method="L-BFGS-B", options={"ftol": 0, "gtol": 1e-5})
    params.zero_()
    _, fs = search.lbfgs(feval, params, {"maxIter": 300, "tolFun": 1e-5, "tolX": 0.0, "nCorrection": 10, **WOLFE})
    assert fs[-1] == pytest.approx(found.fun, rel=1e-6)
    assert fs[-1] < 0.5 < fs[0]
    torch.testing.assert_close(params, torch.from_numpy(found.x), rtol=0, atol=1e-3)


# ---- the line search ----


def line(curve: Callable[[Tensor], Tensor], seen: list[Point]) -> Callable[[float], Point]:
    """`curve` of one variable, its slope taken by autograd; every evaluation is put down in `seen`."""

    def at(t: float) -> Point:
        x = torch.tensor(t, dtype=torch.float64, requires_grad=True)
        f = curve(x)
        (slope,) = torch.autograd.grad(f, x)
        seen.append(Point(t, f.item(), slope.item(), slope))
        return seen[-1]

    return at


@st.composite
def curves(draw: st.DrawFn) -> Callable[[Tensor], Tensor]:
    """A bowl of any width with waves on it, going downhill at 0: several minima, where the conditions are met anew."""
    width, place = draw(st.floats(1e-2, 1e2)), draw(st.floats(0.5, 20))
    height, often, phase = draw(st.floats(0, 3)), draw(st.floats(0.1, 5)), draw(st.floats(0, 6))
    power = draw(st.sampled_from([2, 4]))
    return lambda t: ((t - place) / width).abs() ** power + height * (often * t + phase).sin()


@given(curves(), st.floats(1e-3, 1e3), st.floats(1e-4, 0.3), st.floats(1.1, 3.0))
def test_both_wolfe_conditions_hold_at_what_is_returned(
    curve: Callable[[Tensor], Tensor], t: float, c1: float, ratio: float
) -> None:
    """Written out here. Such a point always exists, for the curve is bounded from below (Nocedal and Wright, 3.1)."""
    seen: list[Point] = []
    at = line(curve, seen)
    start = at(0.0)
    assume(start.slope < -1e-3)
    c2 = c1 * ratio
    point = strong_wolfe(at, Wolfe(start, c1, c2), t, 100)
    assert point.t > 0
    assert point.f <= start.f + c1 * point.t * start.slope
    assert abs(point.slope) <= c2 * abs(start.slope)
    assert point in seen


@given(curves(), st.floats(1e-3, 1e3), st.integers(1, 6))
def test_a_search_cut_short_returns_the_lowest_point_that_falls(
    curve: Callable[[Tensor], Tensor], t: float, limit: int
) -> None:
    seen: list[Point] = []
    at = line(curve, seen)
    start = at(0.0)
    assume(start.slope < -1e-3)
    wolfe = Wolfe(start, 1e-3, 1e-12)  # too sharp to be met by chance
    point = strong_wolfe(at, wolfe, t, limit)
    assert len(seen) <= 1 + limit
    assert point.f == min(each.f for each in seen if each.f <= start.f + 1e-3 * each.t * start.slope)


def test_a_further_point_that_is_higher_is_not_gone_on_from() -> None:
    """It falls and it descends, but a lower one was seen before."""
    start = Point(0.0, 0.0, -1.0, torch.zeros(1))
    point = strong_wolfe(
        lambda t: Point(t, -10.0 if t <= 1 else -5.0, -1.0, start.gradient), Wolfe(start, 1e-3, 0.1), 1, 2
    )
    assert (point.t, point.f) == (1, -10.0)


@pytest.mark.parametrize("wall", [math.inf, math.nan])
def test_a_place_where_f_is_no_number_is_only_too_far(wall: float) -> None:
    seen: list[Point] = []
    at = line(lambda t: (t - 1) ** 2 if t < 2 else t * wall, seen)
    start = at(0.0)
    point = strong_wolfe(at, Wolfe(start, 0.01, 0.1), 100.0, 30)
    assert any(not math.isfinite(each.f) for each in seen)
    assert abs(point.t - 1) <= 0.1


# ---- cg's directions, and other precisions ----


@pytest.mark.parametrize(("before", "beta"), [([2.0, 2.0], 0.0), ([0.5, 0.0], 6.0), ([1.0, 1.0], 0.0)])
def test_a_negative_beta_is_a_restart(before: list[float], beta: float) -> None:
    """PR+: at (1, 1) of |x|²/2 the gradient is (1, 1), and β = g·(g − before)/|before|², −1/4 for the first."""
    state = {"direction": torch.tensor([-1.0, 0.0]), "gradient": torch.tensor(before), "slope": -1.0, "t": 1.0}
    search.cg(lambda x: (float(x.dot(x) / 2), x.clone()), torch.ones(2), {"maxIter": 1, "maxEval": 9}, state)
    assert state["direction"].tolist() == [-1.0 - beta, -1.0]


def test_cg_in_float16_sums_beyond_its_range() -> None:
    """The gradient's square is 6.4 million here, and float16 ends at 65504."""
    x = torch.full((100,), 4.0, dtype=torch.float16)
    _, fs = search.cg(lambda x: (float(32 * x.double().dot(x.double())), 64 * x), x)
    assert fs[-1] < 1e-4 * fs[0]


@pytest.mark.parametrize("name", METHODS)
def test_an_empty_vector_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="params has no elements"):
        METHODS[name](lambda x: (0.0, x.clone()), torch.zeros(0))


# ---- a feval that does not look at x ----


@pytest.mark.parametrize("config", [{}, WOLFE])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_stored_values_are_noticed_by_lbfgs(config: dict[str, Any], scale: float) -> None:
    f, df = rosenbrock(far(10))
    with pytest.raises(ModelError, match=r"does not look at x.*run the model inside"):
        search.lbfgs(lambda x: (f * scale, df * scale), far(10), config)


def test_stored_values_are_noticed_by_cg_and_right_for_one_evaluation() -> None:
    f, df = rosenbrock(far(10))
    with pytest.raises(ModelError, match="does not look at x"):
        search.cg(lambda x: (f, df), far(10))
    x = far(10)
    torch7.sgd(lambda x: (f, df), x, {"lr": 1e-3})
    assert torch.equal(x, far(10).add(df, alpha=-1e-3))


@pytest.mark.parametrize("name", ["lbfgs", "cg"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 1e8])
def test_flat_and_linear_functions_raise_no_alarm(name: str, dtype: torch.dtype, offset: float) -> None:
    slope = torch.tensor([1.0, -2.0], dtype=dtype)
    functions = [
        lambda x: (offset, torch.zeros_like(x)),
        lambda x: (float(offset + slope @ x), slope),
        lambda x: (float(offset + (x.clamp(min=0) * slope.abs()).sum()), (x > 0) * slope.abs()),
        lambda x: (float(offset + (x**4).sum()), 4 * x**3),
    ]
    for function in functions:
        _, fs = METHODS[name](function, torch.tensor([3.0, 0.5], dtype=dtype), {"maxIter": 30})
        assert fs[-1] <= fs[0]
