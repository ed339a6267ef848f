"""What a criterion may return, what is said when it returns something else, and how batches make one mean."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import gradstep
from gradstep.errors import ModelError, RecipeError
from gradstep.update import Sharing, Terms, Update, criterion_gradient, read_loss

FAST = settings(max_examples=30, deadline=None)
seeds, sizes = st.integers(0, 2**31), st.integers(1, 9)


def net_and_batch(seed: int, samples: int, classes: int = 3) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(seed)
    net = nn.Linear(4, classes).double()
    return net, torch.randn(samples, 4, dtype=torch.float64), torch.randint(0, classes, (samples,))


def gradients(net: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(net.parameters())))


def updated(net: nn.Module, criterion: Any, inputs: Tensor, targets: Any) -> tuple[Any, list[Tensor]]:
    net.zero_grad()
    outcome = Update(net, criterion).backward(inputs, targets)
    return outcome, [parameter.grad for parameter in net.parameters() if parameter.grad is not None]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# What may be returned.


@FAST
@given(seeds, sizes)
def test_a_scalar_is_the_loss_bitwise(seed: int, samples: int) -> None:
    net, inputs, targets = net_and_batch(seed, samples)
    outcome, grads = updated(net, nn.CrossEntropyLoss(), inputs, targets)
    loss = nn.CrossEntropyLoss()(net(inputs), targets)
    assert torch.equal(outcome.loss, loss)
    assert outcome.terms == {}
    assert same(grads, gradients(net, loss))


@FAST
@given(seeds, sizes)
def test_one_loss_per_sample_is_summed_and_divided_by_the_batchs_true_size(seed: int, samples: int) -> None:
    net, inputs, targets = net_and_batch(seed, samples)
    outcome, grads = updated(net, nn.CrossEntropyLoss(reduction="none"), inputs, targets)
    each = [nn.CrossEntropyLoss()(net(inputs[[i]]), targets[[i]]) for i in range(samples)]
    loss = torch.stack(each).sum() / samples
    assert torch.allclose(outcome.loss, loss, rtol=1e-12, atol=0)
    for ours, theirs in zip(grads, gradients(net, loss), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-15)
    assert outcome.samples == samples


@FAST
@given(seeds, sizes)
def test_named_terms_are_summed_in_the_order_given_and_kept_by_name(seed: int, samples: int) -> None:
    net, inputs, targets = net_and_batch(seed, samples)

    def criterion(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {
            "fit": F.cross_entropy(outputs, targets),
            "size": outputs.square().mean(1) * 1e-3,  # a term may be one loss per sample
            "spread": outputs.std() * 1e3,
        }

    outcome, grads = updated(net, criterion, inputs, targets)
    outputs = net(inputs)
    a, b, c = F.cross_entropy(outputs, targets), (outputs.square().mean(1) * 1e-3).mean(), outputs.std() * 1e3
    assert list(outcome.terms) == ["fit", "size", "spread"]
    assert same(list(outcome.terms.values()), [a, b, c])
    assert torch.equal(outcome.loss, a + b + c)
    assert same(grads, gradients(net, a + b + c))
    assert not any(value.requires_grad for value in (outcome.loss, *outcome.terms.values()))


@FAST
@given(seeds, sizes, st.lists(st.floats(-10, 10), min_size=6, max_size=6))
def test_terms_with_weights_are_the_hand_written_weighted_sum_bitwise(
    seed: int, samples: int, weights: list[float]
) -> None:
    net, inputs, _ = net_and_batch(seed, samples)
    values = torch.randn(samples, 3, dtype=torch.float64)
    u, v, w, x, y, z = weights
    terms = Terms(
        {
            "mse": nn.MSELoss(),
            "own": lambda o, t: (o - t).abs().amax(),
            "l1": nn.L1Loss(),
            "huber": nn.HuberLoss(),
            "size": lambda o, t: o.square().mean(),
            "shift": lambda o, t: o.mean(),
        },
        {"shift": z, "mse": u, "own": v, "l1": w, "size": y, "huber": x},  # the order of the terms is the terms'
    )
    outcome, grads = updated(net, terms, inputs, values)
    o, t = net(inputs), values
    a, b, c = F.mse_loss(o, t), (o - t).abs().amax(), F.l1_loss(o, t)
    loss = u * a + v * b + w * c + x * F.huber_loss(o, t) + y * o.square().mean() + z * o.mean()
    assert torch.equal(outcome.loss, loss)
    assert same(grads, gradients(net, loss))


def test_a_term_without_a_weight_counts_once_and_a_weight_without_a_term_is_an_error() -> None:
    outputs, targets = torch.randn(4, 2), torch.randn(4, 2)
    terms = Terms({"mse": nn.MSELoss(), "l1": nn.L1Loss()}, {"l1": 0.5})
    assert read_loss(terms(outputs, targets), 4)[1] == {
        "mse": F.mse_loss(outputs, targets),
        "l1": 0.5 * F.l1_loss(outputs, targets),
    }
    with pytest.raises(RecipeError, match=r"a weight is given for 'mes', not a term\. Did you mean 'mse'"):
        Terms({"mse": nn.MSELoss()}, {"mes": 2.0})


def test_terms_take_the_tensors_and_parameters_of_their_criteria_along() -> None:
    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return ((outputs - targets) * self.scale).square().mean()

    terms = Terms({"ce": nn.CrossEntropyLoss(weight=torch.ones(3)), "learned": Learned()}).double()
    assert sorted(name.rpartition(".")[2] for name in terms.state_dict()) == ["scale", "weight"]
    assert all(value.dtype == torch.float64 for value in terms.state_dict().values())
    assert terms.criteria["ce"].weight.dtype == torch.float64


@FAST
@given(seeds, sizes, st.floats(0.1, 10))
def test_the_gradient_is_added_to_what_is_there_and_scaled_while_the_loss_is_not(
    seed: int, samples: int, scale: float
) -> None:
    net, inputs, targets = net_and_batch(seed, samples)
    loss = F.cross_entropy(net(inputs), targets)
    expected = gradients(net, loss)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    outcome = Update(net, nn.CrossEntropyLoss()).backward(inputs, targets, scale=scale)
    assert torch.equal(outcome.loss, loss)
    for parameter, gradient in zip(net.parameters(), expected, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, 1 + scale * gradient, rtol=1e-12, atol=1e-14)


# What may not, and what is said then.

WRONG = {
    "a float": (lambda o, t: 1.0, "The criterion returned float. It must return a scalar tensor"),
    "nothing": (lambda o, t: None, "The criterion returned NoneType. It must return a scalar tensor"),
    "no terms": (lambda o, t: {}, "It must return a scalar tensor, one loss per sample, or a dict"),
    "a tuple": (lambda o, t: (o.mean(), o.std()), "(scalar float64, scalar float64). It must return"),
    "a number as a term": (
        lambda o, t: {"a": o.mean(), "kl": o.mean().item()},
        "The criterion's term 'kl' returned a float and must return a tensor",
    ),
    "every element": (lambda o, t: o.square(), "a tensor of shape [4, 3] for a batch of 4. It must be a scalar or"),
    "a column": (lambda o, t: o.mean(1, keepdim=True), "shape [4, 1] for a batch of 4"),
    "another length": (lambda o, t: o.mean(0), "shape [3] for a batch of 4"),
    "one in a vector": (lambda o, t: o.mean()[None], "shape [1] for a batch of 4"),
    "every element as a term": (lambda o, t: {"a": o.square()}, "term 'a' returned a tensor of shape [4, 3]"),
    "whether it is right": (lambda o, t: o.argmax(1) == t, "no graph"),
    "how many are right": (lambda o, t: (o.argmax(1) == t).sum(), "The loss has no graph"),
    "a loss cut off": (lambda o, t: F.cross_entropy(o, t).detach(), "The loss has no graph: no parameter"),
    "a term cut off": (
        lambda o, t: {"ce": F.cross_entropy(o, t), "kl": o.mean().detach()},
        "The criterion's term 'kl' has no graph, so it changes no gradient. A value that is only to be logged "
        "belongs into metrics={'kl': ...}",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_return_is_an_error_that_says_what_to_do_and_leaves_no_gradient(case: str) -> None:
    criterion, said = WRONG[case]
    net, inputs, targets = net_and_batch(0, 4)
    with pytest.raises(ModelError, match=re.escape(said)):
        updated(net, criterion, inputs, targets)
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("case", WRONG)
def test_fit_raises_it_before_anything_changes(case: str) -> None:
    net, inputs, targets = net_and_batch(0, 4)
    before = [parameter.clone() for parameter in net.parameters()]
    with pytest.raises(ModelError):
        gradstep.fit(
            net,
            WRONG[case][0],
            (inputs, targets),
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
            batch_size=4,
            epochs=1,
            quiet=True,
        )
    assert same(before, list(net.parameters()))


def test_a_model_that_is_frozen_on_its_way_has_no_graph() -> None:
    net, inputs, targets = net_and_batch(0, 4)
    with torch.no_grad(), pytest.raises(ModelError, match=r"Look for \.item\(\), \.detach\(\), torch\.no_grad\(\)"):
        Update(net, nn.CrossEntropyLoss()).backward(inputs, targets)


# The criterion's gradient as a value of its own.


@FAST
@given(seeds, sizes, st.sampled_from(["mean", "none", "terms"]))
def test_criterion_gradient_is_autograds_and_sent_through_the_model_it_is_the_updates(
    seed: int, samples: int, kind: str
) -> None:
    net, inputs, targets = net_and_batch(seed, samples)
    criterion: Any = {
        "mean": nn.CrossEntropyLoss(),
        "none": nn.CrossEntropyLoss(reduction="none"),
        "terms": Terms({"ce": nn.CrossEntropyLoss(), "size": lambda o, t: o.square().mean()}, {"size": 0.1}),
    }[kind]
    outputs = net(inputs)
    loss, gradient = criterion_gradient(criterion, outputs, targets)
    leaf = outputs.detach().requires_grad_()
    expected, _ = read_loss(criterion(leaf, targets), samples)
    expected.backward()
    assert torch.equal(loss, expected)
    assert torch.equal(gradient, leaf.grad)
    assert not loss.requires_grad
    outputs.backward(gradient)
    sent = [parameter.grad.clone() for parameter in net.parameters()]
    assert same(sent, updated(net, criterion, inputs, targets)[1])


def test_criterion_gradient_works_under_no_grad_and_refuses_what_has_no_graph() -> None:
    outputs, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        _, gradient = criterion_gradient(nn.CrossEntropyLoss(), outputs, targets)
    assert torch.allclose(gradient, (outputs.softmax(1) - F.one_hot(targets, 3)) / 4, atol=1e-6)
    assert not outputs.requires_grad
    with pytest.raises(ModelError, match="no graph"):
        criterion_gradient(lambda o, t: o.detach().mean(), outputs, targets)


# How the losses of several batches make the mean over all.


class Batches:
    """Whole batches in an order of their own."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


W = torch.tensor([0.2, 3.0, 1.0], dtype=torch.float64)
SAMPLES = 11


def draw(kind: str) -> Tensor:
    if kind == "classes":
        return torch.randint(0, 3, (SAMPLES,))
    if kind == "some ignored":
        return (
            torch.randint(0, 3, (SAMPLES,))
            .masked_fill(torch.rand(SAMPLES) < 0.5, -100)
            .index_fill(0, torch.tensor(0), 1)
        )
    if kind == "soft":
        return torch.rand(SAMPLES, 3, dtype=torch.float64).softmax(1)
    if kind == "bits":
        return torch.randint(0, 2, (SAMPLES, 3)).double()
    return torch.randn(SAMPLES, 3, dtype=torch.float64)


def hinge(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.multi_margin_loss(outputs, targets, reduction="none")


WHOLE = {
    "cross entropy": (lambda: nn.CrossEntropyLoss(), "classes"),
    "cross entropy, weights": (lambda: nn.CrossEntropyLoss(W), "classes"),
    "cross entropy, some ignored": (lambda: nn.CrossEntropyLoss(), "some ignored"),
    "cross entropy, another ignored": (lambda: nn.CrossEntropyLoss(ignore_index=2), "classes"),
    "cross entropy, smooth": (lambda: nn.CrossEntropyLoss(label_smoothing=0.2), "some ignored"),
    "cross entropy, all": (lambda: nn.CrossEntropyLoss(W, label_smoothing=0.2), "some ignored"),
    "cross entropy, soft": (lambda: nn.CrossEntropyLoss(), "soft"),
    "cross entropy, soft, weights": (lambda: nn.CrossEntropyLoss(W, label_smoothing=0.1), "soft"),
    "nll": (lambda: nn.NLLLoss(), "some ignored"),
    "nll, weights": (lambda: nn.NLLLoss(W), "some ignored"),
    "mse": (lambda: nn.MSELoss(), "values"),
    "huber": (lambda: nn.HuberLoss(), "values"),
    "bce with logits": (lambda: nn.BCEWithLogitsLoss(pos_weight=W), "bits"),
    "per sample": (lambda: nn.CrossEntropyLoss(reduction="none"), "classes"),
    "per sample, a function": (lambda: hinge, "classes"),
    "a function of the mean": (lambda: F.cross_entropy, "classes"),
    "terms": (lambda: Terms({"a": nn.MSELoss(), "b": nn.L1Loss()}, {"b": 0.3}), "values"),
    "terms, weights": (lambda: Terms({"a": nn.CrossEntropyLoss(W), "b": nn.CrossEntropyLoss()}, {"b": 0.3}), "classes"),
    "terms, some ignored": (lambda: Terms({"a": nn.CrossEntropyLoss(), "b": nn.NLLLoss(W)}), "some ignored"),
}


@pytest.mark.parametrize("case", WHOLE)
def test_evaluates_loss_over_any_partition_is_the_criterions_own_on_the_whole_set(case: str) -> None:
    make, kind = WHOLE[case]
    criterion = make()

    @settings(max_examples=12, deadline=None, phases=[Phase.generate])
    @given(seeds, st.sets(st.integers(1, SAMPLES - 1), max_size=SAMPLES), st.permutations(range(SAMPLES)))
    def holds(seed: int, cuts: set[int], order: list[int]) -> None:
        net, inputs, _ = net_and_batch(seed, SAMPLES)
        targets = draw(kind)
        with torch.no_grad():
            whole, terms = read_loss(criterion(net(inputs), targets), SAMPLES)
        edges = [0, *sorted(cuts), SAMPLES]
        parts = [order[a:b] for a, b in pairwise(edges)]
        values = gradstep.evaluate(net, criterion, Batches([(inputs[part], targets[part]) for part in parts]))
        assert values["loss"] == pytest.approx(whole.item(), rel=1e-12, abs=1e-13)
        for name, term in terms.items():
            assert values[name] == pytest.approx(term.item(), rel=1e-12, abs=1e-13)

    holds()


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(W, reduction="sum"), nn.MSELoss(reduction="sum")])
@FAST
@given(seeds, st.integers(1, SAMPLES))
def test_a_summed_loss_is_one_of_each_sample(criterion: Any, seed: int, batch_size: int) -> None:
    net, inputs, targets = net_and_batch(seed, SAMPLES)
    given = targets if isinstance(criterion, nn.CrossEntropyLoss) else draw("values")
    with torch.no_grad():
        whole = criterion(net(inputs), given).item() / SAMPLES
    assert gradstep.evaluate(net, criterion, (inputs, given), batch_size=batch_size)["loss"] == pytest.approx(whole)


def test_a_batch_whose_targets_are_all_ignored_has_no_say_and_a_set_of_them_has_no_loss() -> None:
    net, inputs, targets = net_and_batch(0, 6)
    ignored = torch.full((6,), -100)
    criterion = nn.CrossEntropyLoss()
    values = gradstep.evaluate(net, criterion, Batches([(inputs, ignored), (inputs, targets), (inputs, ignored)]))
    assert values["loss"] == pytest.approx(criterion(net(inputs), targets).item(), rel=1e-12)
    assert torch.tensor(gradstep.evaluate(net, criterion, (inputs, ignored))["loss"]).isnan()


@FAST
@given(seeds, st.sets(st.integers(1, SAMPLES - 1)))
def test_shares_themselves_make_the_mean_of_any_partition(seed: int, cuts: set[int]) -> None:
    net, inputs, _ = net_and_batch(seed, SAMPLES)
    targets = draw("some ignored")
    criterion = nn.CrossEntropyLoss(W)
    sharing, edges = Sharing(criterion), [0, *sorted(cuts), SAMPLES]
    total, units = 0.0, 0.0
    with torch.no_grad():
        for a, b in pairwise(edges):
            outputs = net(inputs[a:b])
            value, weight = sharing.shares(criterion(outputs, targets[a:b]), {}, targets[a:b], b - a)["loss"]
            if float(weight):
                total, units = total + float(value) * float(weight), units + float(weight)
        assert total / units == pytest.approx(criterion(net(inputs), targets).item(), rel=1e-12)
