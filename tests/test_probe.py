"""Whether a criterion decomposes over samples: the trial's verdicts, and that it leaves no trace."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradstep import tree
from gradstep.update.pieces import Layout
from gradstep.update.probe import Verdict, decomposes
from gradstep.update.twin import remembered, twin
from tests.exact_cases import BATCH, CASES, decorrelation, labels


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def tried(criterion: Any, outputs: Any, targets: Any, samples: int | None = None) -> Verdict:
    samples = samples or tree.samples(outputs) or 1
    return decomposes(criterion, outputs, targets, Layout.simple_for(outputs, samples), samples)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_verdict_on_every_criterion(name: str) -> None:
    """Those of torch too, which the table knows: the trial must not contradict it."""
    torch.set_default_dtype(torch.float64)
    try:
        case = CASES[name]
        targets = case.targets()
        outputs = case.head()(torch.randn(BATCH, 4))
        few, more = (case.head()(torch.randn(n, 4)) for n in (2, 3))
        verdict = decomposes(case.criterion(), outputs, targets, Layout.learn(few, 2, more, 3), BATCH)
    finally:
        torch.set_default_dtype(torch.float32)
    if name == "everything ignored":
        assert verdict.why == "undecided: only 0% of the samples have a gradient"
    elif name == "broadcasting one against the other":
        assert verdict.decomposes
    else:
        assert verdict.decomposes == (case.method == "accumulate"), verdict.why


# The page's table, in float32 as users have it, at a batch of 64.

N, C = 64, 10


def hinge_active(outputs: Tensor, targets: Tensor) -> Tensor:
    each = F.relu(1 + outputs[:, :5].sum(1) - outputs[:, 5:].sum(1))
    return each.sum() / (each > 0).sum().clamp(min=1)


def ohem(k: int) -> Callable[[Tensor, Tensor], Tensor]:
    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        each = F.cross_entropy(outputs, targets, reduction="none")
        return each.topk(min(k, len(each))).values.mean()

    return criterion


def switched(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs, F.one_hot(targets, C).float()).sqrt() if len(outputs) > 32 else outputs.sum()


TABLE: dict[str, tuple[Any, bool]] = {
    "cross entropy": (nn.CrossEntropyLoss(), True),
    "cross entropy, summed": (nn.CrossEntropyLoss(reduction="sum"), True),
    "cross entropy with class weights": (nn.CrossEntropyLoss(weight=torch.rand(C)), True),
    "cross entropy and a constant": (lambda o, t: F.cross_entropy(o, t) + 1.0, True),
    "mean square": (lambda o, t: F.mse_loss(o, F.one_hot(t, C).float()), True),
    "RMSE": (lambda o, t: F.mse_loss(o, F.one_hot(t, C).float()).sqrt(), False),
    "OHEM of four": (ohem(4), False),
    "the average of the active": (hinge_active, False),
    "cross entropy and 1e-3 of decorrelation": (lambda o, t: F.cross_entropy(o, t) + 1e-3 * decorrelation(o, t), False),
    "cross entropy and 1e-9 of decorrelation": (lambda o, t: F.cross_entropy(o, t) + 1e-9 * decorrelation(o, t), False),
    "a switch at half the batch": (switched, False),  # the trial is made at the real batch size
    "OHEM of more than there are": (ohem(100), True),  # at this size it is the mean: what it is is what is taken
}


@pytest.mark.parametrize("name", TABLE)
def test_the_page_s_table(name: str) -> None:
    criterion, expected = TABLE[name]
    verdict = tried(criterion, torch.randn(N, C), torch.randint(C, (N,)))
    assert verdict.decomposes is expected, verdict.why


def test_hinges_that_are_all_active_are_not_fooled_by_it() -> None:
    """In a region where the number of the active does not move, only a large redraw tells."""
    outputs = torch.randn(N, C) * 0.01
    assert float((1 + outputs[:, :5].sum(1) - outputs[:, 5:].sum(1)).min()) > 0
    assert not tried(hinge_active, outputs, torch.randint(C, (N,))).decomposes


def test_what_fools_it_is_known() -> None:
    """A coupling that no redraw reaches, and a criterion whose coupling begins later (docs/EXACTNESS.md)."""

    def far(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets) * (2.0 if outputs.detach().abs().max() > 1e9 else 1.0)

    class Later(nn.Module):
        share = 0.0

        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return F.cross_entropy(outputs, targets) + self.share * decorrelation(outputs, targets)

    outputs, targets = torch.randn(N, C), torch.randint(C, (N,))
    assert tried(far, outputs, targets).decomposes
    assert tried(Later(), outputs, targets).decomposes


# What it can't decide.


@pytest.mark.parametrize(
    ("criterion", "said"),
    [
        (
            lambda o, t: o.float().matmul(torch.ones(C, 1)).sum() * 1.0 + (o[0] @ torch.ones(C)).sum(),
            "undecided: its copy in",
        ),
        (lambda o, t: (o * 0).sum(), "undecided: only 0% of the samples have a gradient"),
        (lambda o, t: o.log().sum() * float("nan"), "undecided: its gradient is not finite"),
        (lambda o, t: F.cross_entropy(o, t) + torch.rand(()), "the criterion draws random numbers"),
        (lambda o, t: None, "undecided: its copy in float64 raised ModelError: The criterion returned NoneType"),
        (lambda o, t: 1 / 0, "undecided: its copy in float64 raised ZeroDivisionError: division by zero"),
    ],
)
def test_what_can_t_be_decided_counts_as_coupled(criterion: Any, said: str) -> None:
    verdict = tried(criterion, torch.randn(N, C), torch.randint(C, (N,)))
    assert not verdict.decomposes
    assert verdict.why.startswith(said)


def test_a_criterion_of_probabilities_is_tried_within_their_range() -> None:
    def of_probabilities(outputs: Tensor, targets: Tensor) -> Tensor:
        if bool((outputs < 0).any() | (outputs > 1).any()):
            raise ValueError
        return -outputs.log().gather(1, targets[:, None]).mean()

    def together(outputs: Tensor, targets: Tensor) -> Tensor:
        return of_probabilities(outputs, targets) + outputs.mean(0).square().sum()

    outputs, targets = torch.randn(N, C).softmax(1), torch.randint(C, (N,))
    assert tried(of_probabilities, outputs, targets).decomposes
    assert not tried(together, outputs, targets).decomposes


# No trace.


class Queue(nn.Module):
    """PML's CrossBatchMemory in small: a queue that each call fills."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", torch.zeros(8, C))
        self.place = 0

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = (outputs @ self.queue.clone().T).logsumexp(1).mean()
        self.queue[self.place % 8] = outputs[0].detach()
        self.place += 1
        return loss


class Plain:
    """A callable that is no module."""

    def __init__(self) -> None:
        self.calls, self.weight = 0, torch.ones(C)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.calls += 1
        return F.cross_entropy(outputs, targets, weight=self.weight)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self(outputs, targets)


def closed_over() -> Any:
    calls: list[int] = []
    weight = torch.rand(C)

    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(1)
        return F.cross_entropy(outputs, targets, weight=weight)

    return criterion


@pytest.mark.parametrize("make", [Queue, Plain, lambda: Plain().loss, closed_over])
def test_a_criterion_that_remembers_is_found_and_untouched(make: Callable[[], Any]) -> None:
    criterion = make()
    before, streams = remembered(criterion), torch.get_rng_state()
    verdict = tried(criterion, torch.randn(N, C), torch.randint(C, (N,)))
    assert remembered(criterion) == before
    assert not verdict.decomposes
    assert verdict.why == "the criterion changes its own state, which must happen once for a batch"
    criterion(torch.randn(N, C), torch.randint(C, (N,)))
    assert remembered(criterion) != before  # so the comparison can fail
    torch.set_rng_state(streams)


def test_streams_are_where_they_were() -> None:
    outputs, targets = torch.randn(N, C), torch.randint(C, (N,))
    before = torch.get_rng_state()
    tried(lambda o, t: F.cross_entropy(o, t) + torch.rand(()), outputs, targets)
    tried(nn.CrossEntropyLoss(), outputs, targets)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_twin_is_in_float64_whatever_it_is() -> None:
    weight = torch.rand(C)

    def criterion(outputs: Tensor, targets: Tensor, *, floor: float = 0.0) -> Tensor:
        return F.cross_entropy(outputs, targets, weight=weight) + floor

    class Holds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain, self.inner = torch.rand(C), nn.CrossEntropyLoss(weight)

        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return self.inner(outputs, targets) + (outputs * self.plain).mean()

    outputs, targets = torch.randn(N, C, dtype=torch.float64), torch.randint(C, (N,))
    for each in (criterion, Holds(), Plain(), Plain().loss, functools.partial(criterion, floor=1.0)):
        assert twin(each)(outputs, targets).dtype == torch.float64
    assert weight.dtype == torch.float32


def test_labels_of_one_class_and_one_sample_are_no_trouble() -> None:
    assert tried(nn.CrossEntropyLoss(), torch.randn(2, C), labels()[:2]).decomposes
    assert not tried(nn.CrossEntropyLoss(), torch.randn(1, C), labels()[:1]).decomposes  # nobody else to redraw
