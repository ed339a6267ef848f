"""What surrounds an exact update: hooks, 16 bits, scalers, clipping, closures; and what is refused, all untouched."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradstep
from gradstep.errors import DivergedError, ModelError, RecipeError
from gradstep.update import Update

INPUTS = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(3, (10,), generator=torch.Generator().manual_seed(0))


def net(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3)).to(dtype)


def together(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets) * outputs.std()


CRITERIA: list[Any] = [nn.CrossEntropyLoss(), lambda o, t: F.cross_entropy(o, t), together]
each_way = pytest.mark.parametrize("criterion", CRITERIA, ids=["by table", "among others", "two passes"])


def gradients(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


# `.grad`.


@each_way
@pytest.mark.parametrize("scale", [1.0, 0.25, torch.tensor(8.0)])
def test_a_batch_is_added_to_what_is_there_in_place_and_scaled(criterion: Any, scale: float | Tensor) -> None:
    whole, parts, inputs = net(), net(), INPUTS.double()
    Update(whole, criterion).backward(inputs, LABELS, step=1)
    there = []
    for parameter in parts.parameters():
        parameter.grad = torch.ones_like(parameter)
        there.append(parameter.grad)
    loss = Update(parts, criterion, micro_batch=3).backward(inputs, LABELS, step=1, scale=scale).loss
    assert torch.allclose(gradients(parts), 1 + scale * gradients(whole), rtol=1e-12, atol=1e-14)
    assert all(p.grad is g for p, g in zip(parts.parameters(), there, strict=True))  # views of a flat vector stay so
    assert torch.allclose(loss, Update(net(), criterion).backward(inputs, LABELS, step=1).loss, rtol=1e-12)


@each_way
def test_gradients_of_16_bits_are_summed_in_32(criterion: Any) -> None:
    """The parts' own sum in bfloat16 is off by more than rounding once."""
    exact, parts = net(), net(torch.bfloat16)
    with torch.no_grad():
        for a, b in zip(exact.parameters(), parts.parameters(), strict=True):
            a.copy_(b)
    inputs = INPUTS.to(torch.bfloat16)
    Update(parts, nn.CrossEntropyLoss(), micro_batch=1, dropout="keyed").backward(inputs, LABELS)
    sums = [torch.zeros_like(p, dtype=torch.float32) for p in parts.parameters()]
    for row in range(10):  # each sample's own gradient, as bfloat16 gives it
        twin = copy.deepcopy(parts)
        update = Update(twin, nn.CrossEntropyLoss(reduction="sum"), micro_batch=1)
        for parameter in twin.parameters():
            parameter.grad = None
        update.decide(inputs, LABELS)
        with update._own_layers(1, 10):
            update._keyed.piece(row, 1)
            (F.cross_entropy(twin(inputs[row : row + 1]), LABELS[row : row + 1], reduction="sum") * 0.1).backward()
        sums = [total + p.grad.float() for total, p in zip(sums, twin.parameters(), strict=True)]
    for parameter, total in zip(parts.parameters(), sums, strict=True):
        assert parameter.grad.dtype == torch.bfloat16
        assert torch.equal(parameter.grad, total.to(torch.bfloat16))


def test_256_ones_and_one_are_257_in_a_bfloat16_gradient() -> None:
    class Weight(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))

        def forward(self, inputs: Tensor) -> Tensor:
            return inputs * self.weight

    model = Weight()
    inputs = torch.tensor([[256.0], [1.0], [1.0]], dtype=torch.bfloat16)
    Update(model, lambda o, t: o.float().sum(), micro_batch=1, method="two_pass").backward(inputs, None)
    assert float(model.weight.grad) == 258.0  # bfloat16 alone would say 256


@each_way
def test_clipping_comes_once_after_all_and_finds_the_norm_of_one_pass(criterion: Any) -> None:
    norms, values = [], []
    for micro_batch in (None, 3):
        model = net()
        Update(model, criterion, micro_batch=micro_batch).backward(INPUTS.double(), LABELS)
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.01)))
        nn.utils.clip_grad_value_(model.parameters(), 1e-3)
        values.append(gradients(model))
    assert norms[0] == pytest.approx(norms[1], rel=1e-12)
    assert torch.allclose(*values, rtol=1e-12, atol=1e-16)


@each_way
@pytest.mark.parametrize("bad", [None, 4])
def test_a_scaler_has_one_scale_and_one_skip_for_a_batch(criterion: Any, bad: int | None) -> None:
    """A sample that overflows in the second of four micro-batches: nothing is stepped, and the scale halves once."""
    model = net(torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    inputs = INPUTS.clone()
    if bad is not None:
        inputs[bad] = math.inf
    before = copy.deepcopy(model.state_dict())
    scale = scaler.scale(torch.ones(()))
    update = Update(model, criterion, micro_batch=3, method="two_pass" if criterion is together else "auto")
    update.decide(INPUTS, LABELS)
    update.backward(inputs, LABELS, scale=scale)
    scaler.unscale_(optimizer)
    if bad is None:
        plain = net(torch.float32)
        Update(plain, criterion).backward(inputs, LABELS)
        assert torch.allclose(gradients(model), gradients(plain), rtol=1e-4, atol=1e-6)
    scaler.step(optimizer)
    scaler.update()
    unchanged = all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert unchanged == (bad is not None)
    assert bool(optimizer.state) == (bad is None)
    assert scaler.get_scale() == (1024.0 if bad is None else 512.0)


def test_autocast_around_both_passes() -> None:
    """Weights cast in the pass without a graph must not serve the one that needs it."""
    model, plain, inputs = net(torch.float32), net(torch.float32), INPUTS
    with torch.autocast("cpu", dtype=torch.bfloat16):
        Update(plain, together).backward(inputs, LABELS)
        Update(model, together, micro_batch=3).backward(inputs, LABELS)
    assert all(p.grad is not None for p in model.parameters())
    assert float((gradients(model) - gradients(plain)).norm() / gradients(plain).norm()) < 0.02


# Hooks.


@each_way
def test_an_optimizer_in_the_backward_and_a_hook_on_a_gradient_are_refused_in_micro_batches(criterion: Any) -> None:
    for attach, said in (
        (
            lambda p: p.register_post_accumulate_grad_hook(lambda p: None),
            r"'3\.weight' has a hook.*an optimizer that steps",
        ),
        (lambda p: p.register_hook(lambda g: g.clamp(-1, 1)), r"'3\.weight' has a hook.*a clip or a rescaling"),
    ):
        model = net(torch.float32)
        handle = attach(model[3].weight)
        Update(model, criterion).backward(INPUTS, LABELS)  # once for a batch: as it always was
        before = gradients(model)
        with pytest.raises(ModelError, match=said):
            Update(model, criterion, micro_batch=3).backward(INPUTS, LABELS)
        assert torch.equal(gradients(model), before)
        handle.remove()
        Update(model, criterion, micro_batch=3).backward(INPUTS, LABELS)


# Closures.


@each_way
def test_lbfgs_gets_the_whole_batch_at_each_evaluation_with_the_same_masks(criterion: Any) -> None:
    def run(micro_batch: int | None) -> tuple[list[float], Tensor]:
        model = net()
        run = gradstep.fit(
            model, criterion, (INPUTS.double(), LABELS), epochs=4, batch_size=10, micro_batch=micro_batch, quiet=True,
            optimizer=lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3, line_search_fn="strong_wolfe"),
            log_every="1 step",
        )  # fmt: skip
        losses = [row["train/running_loss"] for row in run.history if row["kind"] == "train"]
        return losses, torch.cat([p.detach().flatten() for p in model.parameters()])

    whole, parts = run(None), run(3)
    assert parts[0] == pytest.approx(whole[0], rel=1e-9)
    assert torch.allclose(parts[1], whole[1], rtol=1e-7, atol=1e-9)


# The one-liner.


def test_the_one_liner_is_the_whole_batch_s_gradient_and_remembers_what_it_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, parts, inputs = net(), net(), INPUTS.double()
    tried: list[int] = []
    own = gradstep.update.update.choose
    monkeypatch.setattr(gradstep.update.update, "choose", lambda *given: tried.append(1) or own(*given))
    for _ in range(3):
        torch.manual_seed(4)
        one = gradstep.backward(whole, together, inputs, LABELS)
        torch.manual_seed(4)
        other = gradstep.backward(parts, together, inputs, LABELS, micro_batch=3)
        assert torch.allclose(one, other, rtol=1e-12)
        assert not other.requires_grad
        assert torch.allclose(gradients(whole), gradients(parts), rtol=1e-12)
    assert len(tried) == 1
    gradstep.backward(parts, lambda o, t: together(o, t), inputs, LABELS, micro_batch=3)
    assert len(tried) == 2

    class Holds:
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return together(outputs, targets)

    held = Holds()
    for _ in range(2):  # a bound method is another object each time, and the same criterion
        gradstep.backward(parts, held.loss, inputs, LABELS, micro_batch=3)
    assert len(tried) == 3
    torch.manual_seed(5)
    assert not torch.equal(gradstep.backward(whole, together, inputs, LABELS), one)  # other masks


def test_what_the_one_liner_found_goes_with_the_model() -> None:
    import gc
    import weakref

    model = net()
    gradstep.backward(model, together, INPUTS.double(), LABELS, micro_batch=3)
    ref = weakref.ref(model)
    del model
    gc.collect()
    assert ref() is None


# What is refused, and that nothing has changed then.


class Coupled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.linear(inputs)
        return outputs - outputs.mean(0)


class Scores(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.linear(inputs)
        return hidden @ hidden.T


class Balanced(nn.Module):
    """A loss of its own beside the outputs, over the samples that it sees, as mixtures of experts have it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.linear(inputs)
        return outputs, outputs.softmax(1).mean(0).square().sum()


def plain() -> nn.Module:
    return net(torch.float32)


def frozen() -> nn.Module:
    return plain().requires_grad_(False)


BAD: dict[str, tuple[Callable[[], nn.Module], Any, str]] = {
    "a model that couples samples": (
        Coupled,
        nn.CrossEntropyLoss(),
        "couples samples: a sample's outputs changed when other",
    ),
    "scores of all with all": (
        Scores,
        lambda o, t: o.sum(),
        r"can't be told: 2×2 float32 for 2 samples, 3×3 float32 for",
    ),
    "a loss inside the model": (
        Balanced,
        lambda o, t: F.cross_entropy(o[0], t) + o[1],
        "couples samples: an output without rows for the samples",
    ),
    "a vector": (plain, lambda o, t: o.mean(0), r"a tensor of shape \[3\] for a batch of 10"),
    "a word": (plain, lambda o, t: "loss", "The criterion returned str. It must return a scalar tensor"),
    "nothing to train": (frozen, nn.CrossEntropyLoss(), "The loss has no graph"),
    "no graph": (plain, lambda o, t: o.detach().sum(), "The loss has no graph"),
    "a term without a graph": (plain, lambda o, t: {"a": o.sum(), "b": o.detach().sum()}, "term 'b' has no graph"),
    "NaN": (plain, lambda o, t: o.sum() * float("nan"), "the loss of a batch of 10 samples is nan"),
    "an error in the criterion": (plain, lambda o, t: o.sum() / (1 // 0), "by zero"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused_says_so_and_changes_nothing(case: str) -> None:
    make, criterion, said = BAD[case]
    model = make()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before, streams = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with pytest.raises((ModelError, DivergedError, ZeroDivisionError), match=said):
        Update(model, criterion, micro_batch=3).backward(INPUTS, LABELS)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), streams)
    assert model.training
    assert all("forward" not in vars(module) for module in model.modules())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"micro_batch": 0}, "micro_batch: 0 is not a whole number of at least 1"),
        ({"micro_batch": -4}, "micro_batch: -4 is not a whole number"),
        ({"micro_batch": 2.5}, "micro_batch: 2.5 is not a whole number"),
        ({"micro_batch": True}, "micro_batch: True is not a whole number"),
        ({"stat_group": 0}, "stat_group: 0 is not a whole number"),
        ({"method": "acumulate"}, r"method: there is no 'acumulate'.*Did you mean 'accumulate'\?"),
        ({"method": "one_pass", "micro_batch": 3}, "one_pass takes the batch whole; leave micro_batch out"),
        ({"dropout": "none"}, "dropout: there is no 'none'. There are keyed and stream"),
        ({"micro_batch": 10, "stat_group": 4}, "micro_batch: 10 is not a multiple of stat_group 4"),
        ({"micro_batch": 2, "stat_group": 4}, "micro_batch: 2 is not a multiple of stat_group 4.*Take 4"),
    ],
)
def test_arguments_that_can_t_be(given: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Update(net(), nn.CrossEntropyLoss(), **given)


def test_accumulate_asked_for_a_criterion_that_does_not_decompose_is_refused_with_the_reason() -> None:
    with pytest.raises(ModelError, match=r"together can't be accumulated.*gradient moves by .*Take method='two_pass'"):
        Update(net(), together, micro_batch=3, method="accumulate").backward(INPUTS.double(), LABELS)


def test_a_batch_no_larger_than_a_micro_batch_is_one_pass_bit_for_bit() -> None:
    for micro_batch in (10, 11):
        model, plain = net(), net()
        update = Update(model, together, micro_batch=micro_batch)
        outcome = update.backward(INPUTS.double(), LABELS)
        assert update.ways[10].method == "one_pass"
        assert torch.equal(outcome.loss, Update(plain, together).backward(INPUTS.double(), LABELS).loss)
        assert torch.equal(gradients(model), gradients(plain))


def test_the_same_partition_twice_is_bit_for_bit_the_same() -> None:
    one, other = net(torch.float32), net(torch.float32)
    for model in (one, other):
        update = Update(model, together, micro_batch=3)
        for _ in range(3):
            update.backward(INPUTS, LABELS)
    assert torch.equal(gradients(one), gradients(other))
