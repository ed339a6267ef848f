"""What the documents say of optimizers, each as a property; and any torch optimizer trains in `fit`."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from benchmarks.optimizers import DocumentSGD
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gradstep
from gradstep.optim.descent import SGD

Make = Callable[[list[Tensor]], torch.optim.Optimizer]
gradient = st.one_of(st.floats(1e-3, 1e3), st.floats(-1e3, -1e-3))
gradients = st.lists(gradient, min_size=2, max_size=12)
FAST = settings(max_examples=30)
momenta = st.sampled_from([0.3, 0.9, 0.99])


def one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64, requires_grad=True)


def moves(
    make: Make, given_: list[float], before_step: Callable[[dict[str, Any], int], None] | None = None
) -> list[float]:
    """How far each step goes from zero, where the parameter is put back each time, so that no digit is lost."""
    p = one(0.0)
    optimizer = make([p])
    found = []
    for t, g in enumerate(given_, start=1):
        if before_step:
            before_step(optimizer.param_groups[0], t)
        with torch.no_grad():
            p.zero_()
        p.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
        found.append(p.item())
    return found


def effective_rates(make: Make, given_: list[float]) -> list[float]:
    return [-move / g for move, g in zip(moves(make, given_), given_, strict=True)]


# Momentum with the rate inside the velocity and outside of it.


def walk(form: str, rates: list[float], given_: list[float], **options: Any) -> list[float]:
    """Where a parameter is after each step, from 1, each step at its own rate."""
    p = one(1.0)
    optimizer, places = SGD([p], rates[0], momentum_form=form, **options), []
    for rate, g in zip(rates, given_, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        p.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
        places.append(p.item())
    return places


@FAST
@given(
    gradients, momenta, st.booleans(), st.sampled_from([0.0, 0.4]), st.sampled_from([0.0, 0.1]), st.floats(1e-4, 1.0)
)
def test_both_forms_of_momentum_are_equal_at_a_constant_rate(
    given_: list[float], momentum: float, nesterov: bool, dampening: float, decay: float, rate: float
) -> None:
    options = {"momentum": momentum, "nesterov": nesterov, "dampening": 0.0 if nesterov else dampening}
    options |= {"weight_decay": decay, "weight_decay_l1": decay}
    outside, inside = (walk(form, [rate] * len(given_), given_, **options) for form in ("outside", "inside"))
    scale = max(1.0, rate * sum(map(abs, given_)) / (1 - momentum))  # what cancels in the walk
    assert inside == pytest.approx(outside, rel=0, abs=1e-13 * scale * len(given_))


@FAST
@given(
    st.lists(st.tuples(gradient, st.floats(1e-4, 1.0)), min_size=2, max_size=10), momenta, st.sampled_from([0.0, 0.4])
)
def test_they_part_by_what_the_rate_moved_since_each_gradient(
    steps: list[tuple[float, float]], momentum: float, dampening: float
) -> None:
    """Inside minus outside: the sum over s ≤ t of (η_t - η_s)·μ^(t-s)·c_s·g_s, c_0 = 1 and then 1 - dampening."""
    given_, rates = [g for g, _ in steps], [rate for _, rate in steps]
    options = {"momentum": momentum, "dampening": dampening}
    inside, outside = (walk(form, rates, given_, **options)[-1] for form in ("inside", "outside"))
    apart = sum(
        (rates[t] - rates[s]) * momentum ** (t - s) * (1.0 if s == 0 else 1 - dampening) * given_[s]
        for t in range(len(steps))
        for s in range(t + 1)
    )
    scale = max(1.0, sum(map(abs, given_)) / (1 - momentum))
    assert inside - outside == pytest.approx(apart, rel=0, abs=1e-13 * scale * len(steps))


def test_a_rate_of_zero_stops_the_one_at_once_and_lets_the_other_run_out() -> None:
    rates, given_ = [1.0, 0.0, 0.0], [1.0, 5.0, 5.0]
    assert walk("outside", rates, given_, momentum=0.5) == [0.0, 0.0, 0.0]
    assert walk("inside", rates, given_, momentum=0.5) == [0.0, -0.5, -0.75]  # Δw(t) = μ·Δw(t-1)


@FAST
@given(st.lists(st.floats(0.01, 0.2), min_size=3, max_size=12), momenta, st.floats(-2, 2))
def test_nesterov_inside_is_sutskevers_at_any_rates(rates: list[float], momentum: float, start: float) -> None:
    """v = μ·v - ε·∇f(θ + μ·v), θ = θ + v (2013, equations 3 and 4), where our p is θ + μ·v. f is log cosh."""
    theta, v, p = start, 0.0, one(start)
    optimizer = SGD([p], rates[0], momentum=momentum, nesterov=True, momentum_form="inside")
    for rate in rates:
        v = momentum * v - rate * math.tanh(theta + momentum * v)
        theta += v
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        p.cosh().log().sum().backward()
        optimizer.step()
        assert p.item() == pytest.approx(theta + momentum * v, rel=1e-11, abs=1e-11)


# AdaGrad, RMSProp, Adam.


@FAST
@given(gradients, st.sampled_from([0.0, 0.1]), st.sampled_from([0.0, 2.0]))
def test_adagrads_rate_only_falls(given_: list[float], lr_decay: float, begin: float) -> None:
    rates = effective_rates(
        lambda p: torch.optim.Adagrad(p, lr=0.5, lr_decay=lr_decay, initial_accumulator_value=begin), given_
    )
    assert all(later < earlier * (1 + 1e-13) for earlier, later in pairwise(rates))
    squares = [begin + sum(g * g for g in given_[: t + 1]) for t in range(len(given_))]
    assert rates == pytest.approx(
        [0.5 / (1 + t * lr_decay) / (math.sqrt(each) + 1e-10) for t, each in enumerate(squares)], rel=1e-12
    )


@FAST
@given(gradients, st.sampled_from([0.5, 0.9, 0.99]))
def test_rmsprops_denominator_is_a_moving_average_of_squares(given_: list[float], alpha: float) -> None:
    rates = effective_rates(lambda p: torch.optim.RMSprop(p, lr=0.5, alpha=alpha), given_)
    average = 0.0
    for rate, g in zip(rates, given_, strict=True):
        before, average = average, alpha * average + (1 - alpha) * g * g
        assert min(before, g * g) * (1 - 1e-12) <= average <= max(before, g * g) * (1 + 1e-12)
        assert rate == pytest.approx(0.5 / (math.sqrt(average) + 1e-8), rel=1e-12)


def test_rmsprops_rate_rises_again_where_adagrads_does_not() -> None:
    given_ = [100.0] * 10 + [0.01] * 30
    rmsprop = effective_rates(lambda p: torch.optim.RMSprop(p, lr=0.5, alpha=0.9), given_)
    adagrad = effective_rates(lambda p: torch.optim.Adagrad(p, lr=0.5), given_)
    assert all(later < earlier for earlier, later in pairwise(rmsprop[:10]))
    assert all(later > earlier for earlier, later in pairwise(rmsprop[9:]))
    # Each small step keeps 0.9 of the average of squares, all but 1e-8 of it, so the rate grows by 1/√0.9.
    assert rmsprop[-1] / rmsprop[9] == pytest.approx(0.9**-15, rel=1e-3)
    assert adagrad[-1] <= adagrad[9]


@FAST
@given(gradients, st.sampled_from([0.5, 0.9, 0.999]), st.sampled_from([1e-8, 0.1]))
def test_adam_without_smoothing_is_rmsprop_but_for_the_bias_correction(
    given_: list[float], beta2: float, eps: float
) -> None:
    """RMSProp at step t with lr·√(1-β₂ᵗ) and eps·√(1-β₂ᵗ) is Adam with β₁ = 0, since v̂ = v / (1-β₂ᵗ)."""

    def corrected(group: dict[str, Any], t: int) -> None:
        root = math.sqrt(1 - beta2**t)
        group["lr"], group["eps"] = 0.5 * root, eps * root

    adam = moves(lambda p: torch.optim.Adam(p, lr=0.5, betas=(0.0, beta2), eps=eps), given_)
    rmsprop = moves(lambda p: torch.optim.RMSprop(p, lr=0.5, alpha=beta2), given_, corrected)
    assert adam == pytest.approx(rmsprop, rel=1e-11)


@FAST
@given(gradients, st.sampled_from([0.5, 0.9]), st.sampled_from([0.9, 0.999]))
def test_adams_step_is_that_rate_times_a_moving_average_of_the_gradients(
    given_: list[float], beta1: float, beta2: float
) -> None:
    rates = effective_rates(lambda p: torch.optim.Adam(p, lr=0.5, betas=(0.0, beta2)), given_)
    steps = moves(lambda p: torch.optim.Adam(p, lr=0.5, betas=(beta1, beta2)), given_)
    for t, (step, rate) in enumerate(zip(steps, rates, strict=True)):
        weights = [(1 - beta1) * beta1 ** (t - s) / (1 - beta1 ** (t + 1)) for s in range(t + 1)]
        assert sum(weights) == pytest.approx(1, rel=1e-12)
        smoothed = sum(w * g for w, g in zip(weights, given_, strict=False))
        assert step == pytest.approx(-rate * smoothed, rel=1e-10, abs=1e-12 * rate * max(map(abs, given_)))


# Any optimizer of torch's, and of a user's, trains in `fit`.


def regression() -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    inputs = torch.randn(32, 3, generator=draws)
    return inputs, (inputs @ torch.tensor([[1.0], [-2.0], [0.5]])).tanh()


def words() -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 5, (32, 3), generator=draws)
    return inputs, inputs.sum(1, keepdim=True) / 5


class Words(nn.Module):
    """A sum of embeddings whose gradients are sparse."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 1, sparse=True)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.table(inputs).sum(1)


def with_biases() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


def matrices() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8, bias=False), nn.Tanh(), nn.Linear(8, 1, bias=False))


CLASSES = sorted(
    name
    for name, each in vars(torch.optim).items()
    if isinstance(each, type) and issubclass(each, torch.optim.Optimizer) and each is not torch.optim.Optimizer
)
# Two of torch's take only what they are made for; the others take the same net.
NEEDS = {"Muon": (matrices, regression), "SparseAdam": (Words, words)}
RATES = {"Adadelta": 1.0, "LBFGS": 1.0}  # theirs multiply a step that has a length of its own
STEPS = {"LBFGS": 4}  # each of up to 20 inner ones


def losses(optimizer: Callable[[Any], torch.optim.Optimizer], name: str = "") -> tuple[float, float, nn.Module]:
    """The loss before some steps of `fit` and after them, and the model."""
    make, data = NEEDS.get(name, (with_biases, regression))
    torch.manual_seed(0)
    model, criterion, (inputs, targets) = make(), nn.MSELoss(), data()
    with torch.no_grad():
        before = criterion(model(inputs), targets).item()
    steps = STEPS.get(name, 30)
    gradstep.fit(model, criterion, (inputs, targets), optimizer=optimizer, steps=steps, batch_size=16, quiet=True)
    with torch.no_grad():
        return before, criterion(model(inputs), targets).item(), model


def test_the_list_of_torchs_optimizers_is_not_empty() -> None:
    assert {"SGD", "Adam", "LBFGS", *NEEDS, *RATES} <= set(CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_every_optimizer_of_torchs_trains(name: str) -> None:
    before, after, _ = losses(lambda params: getattr(torch.optim, name)(params, lr=RATES.get(name, 0.03)), name)
    assert after < 0.7 * before


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}])
def test_the_documents_own_optimizer_trains_and_ours_is_the_same(options: dict[str, Any]) -> None:
    """Its decays go into `.grad`, which `fit` clears before each step; ours leave it alone, and the weights agree."""
    torch.set_default_dtype(torch.float64)
    try:
        theirs = losses(lambda p: DocumentSGD(p, 0.03, weight_decay1=0.01, weight_decay2=0.02, **options))
        ours = losses(lambda p: SGD(p, 0.03, weight_decay_l1=0.01, weight_decay=0.02, **options))
    finally:
        torch.set_default_dtype(torch.float32)
    assert theirs[1] < 0.7 * theirs[0]
    for a, b in zip(ours[2].parameters(), theirs[2].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_the_documents_own_optimizer_writes_into_the_gradient_and_ours_does_not() -> None:
    found = []
    for make in (lambda p: DocumentSGD(p, 0.1, weight_decay1=0.5), lambda p: SGD(p, 0.1, weight_decay_l1=0.5)):
        p = one(2.0)
        optimizer = make([p])
        p.grad = torch.ones(1, dtype=torch.float64)
        optimizer.step()
        found.append((p.grad.item(), p.item()))
    assert found == [(1.5, 2 - 0.1 * 1.5), (1.0, 2 - 0.1 * 1.5)]
