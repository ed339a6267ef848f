"""The criteria that exact updates are tested on: each with what makes its targets, and what is to be proved of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradstep import Ratio, Terms

BATCH, CLASSES = 10, 4
W = torch.tensor([0.2, 1.0, 3.0, 0.5], dtype=torch.float64)


@dataclass
class Case:
    criterion: Callable[[], Any]
    targets: Callable[[], Any]
    method: str = "accumulate"
    head: Callable[[], nn.Module] = nn.Identity  # what the net's [N, 4] outputs go through


def labels() -> Tensor:
    return torch.randint(CLASSES, (BATCH,))


def some_ignored() -> Tensor:
    return labels().index_fill(0, torch.tensor([0, 1, 2, 3, 7]), -100)  # a whole micro-batch of 3 has nothing to count


def soft() -> Tensor:
    return torch.rand(BATCH, CLASSES).softmax(1)


def values() -> Tensor:
    return torch.randn(BATCH, CLASSES)


def bits() -> Tensor:
    return torch.randint(2, (BATCH, CLASSES)).double()


def signs() -> Tensor:
    return bits() * 2 - 1


def counts() -> Tensor:
    return torch.randint(5, (BATCH, CLASSES)).double()


def many_labels() -> Tensor:
    return torch.tensor([[2, 0, -1, -1], [1, -1, 0, 0]] * (BATCH // 2))


class Positive(nn.Module):
    def forward(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid() * 0.9 + 0.05


def log_softmax() -> nn.Module:
    return nn.LogSoftmax(1)


class Pixels(nn.Module):
    """[N, 4] as [N, 2 classes, 2 pixels]."""

    def forward(self, outputs: Tensor) -> Tensor:
        return outputs.view(-1, 2, 2)


def pixel_labels() -> Tensor:
    return torch.randint(2, (BATCH, 2)).index_fill(0, torch.tensor([1, 2]), -100)


class Split(nn.Module):
    def __init__(self, parts: int) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, outputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(outputs.roll(part, 1) ** (part + 1) for part in range(self.parts))


def plain(make: Callable[..., nn.Module], targets: Callable[[], Any], **options: Any) -> Case:
    head = options.pop("head", nn.Identity)
    return Case(lambda: make(**options), targets, head=head)


TORCH: dict[str, Case] = {}
for reduction in ("mean", "sum"):
    for weight in (None, W):
        for smoothing in (0.0, 0.2):
            with_weights, smoothed = ", weights" * (weight is not None), ", smoothed" * bool(smoothing)
            name = f"cross entropy, {reduction}{with_weights}{smoothed}"
            options: dict[str, Any] = {"reduction": reduction, "weight": weight, "label_smoothing": smoothing}
            TORCH[name] = plain(nn.CrossEntropyLoss, labels, **options)
            TORCH[f"{name}, some ignored"] = plain(nn.CrossEntropyLoss, some_ignored, **options)
            TORCH[f"{name}, soft"] = plain(nn.CrossEntropyLoss, soft, **options)
            of_pixels = {**options, "weight": None if weight is None else weight[:2]}
            TORCH[f"{name}, pixels"] = plain(nn.CrossEntropyLoss, pixel_labels, head=Pixels, **of_pixels)
        TORCH[f"nll, {reduction}{', weights' if weight is not None else ''}"] = plain(
            nn.NLLLoss, some_ignored, reduction=reduction, weight=weight, head=log_softmax
        )
    more = {"reduction": reduction}
    TORCH |= {
        f"mse, {reduction}": plain(nn.MSELoss, values, **more),
        f"l1, {reduction}": plain(nn.L1Loss, values, **more),
        f"smooth l1, {reduction}": plain(nn.SmoothL1Loss, values, beta=0.3, **more),
        f"huber, {reduction}": plain(nn.HuberLoss, values, delta=0.3, **more),
        f"bce, {reduction}": plain(nn.BCELoss, bits, head=Positive, **more),
        f"bce, weights of classes, {reduction}": plain(nn.BCELoss, bits, head=Positive, weight=W, **more),
        f"bce with logits, {reduction}": plain(nn.BCEWithLogitsLoss, bits, pos_weight=W, weight=W.flip(0), **more),
        f"bce with logits, weights of samples, {reduction}": plain(
            nn.BCEWithLogitsLoss, bits, weight=torch.rand(BATCH, 1, dtype=torch.float64), **more
        ),
        f"kl divergence, {reduction}": plain(nn.KLDivLoss, soft, head=log_softmax, **more),
        f"kl divergence of logarithms, {reduction}": plain(
            nn.KLDivLoss, lambda: soft().log(), head=log_softmax, log_target=True, **more
        ),
        f"poisson nll, {reduction}": plain(nn.PoissonNLLLoss, counts, full=True, **more),
        f"poisson nll of rates, {reduction}": plain(nn.PoissonNLLLoss, counts, log_input=False, head=Positive, **more),
        f"soft margin, {reduction}": plain(nn.SoftMarginLoss, signs, **more),
        f"hinge embedding, {reduction}": plain(nn.HingeEmbeddingLoss, signs, margin=0.5, **more),
        f"multi margin, {reduction}": plain(nn.MultiMarginLoss, labels, p=2, margin=0.5, weight=W, **more),
        f"multi label margin, {reduction}": plain(nn.MultiLabelMarginLoss, many_labels, **more),
        f"multi label soft margin, {reduction}": plain(nn.MultiLabelSoftMarginLoss, bits, weight=W, **more),
        # Criteria of more than two tensors come as functions of the outputs.
        f"gaussian nll, {reduction}": Case(
            lambda r=reduction: lambda o, t: F.gaussian_nll_loss(o[0], t, F.softplus(o[1]), reduction=r),
            values,
            head=lambda: Split(2),
        ),
        f"margin ranking, {reduction}": Case(
            lambda r=reduction: lambda o, t: F.margin_ranking_loss(o[0], o[1], t, margin=0.1, reduction=r),
            signs,
            head=lambda: Split(2),
        ),
        f"cosine embedding, {reduction}": Case(
            lambda r=reduction: lambda o, t: F.cosine_embedding_loss(o[0], o[1], t, margin=-0.5, reduction=r),
            lambda: signs()[:, 0],
            head=lambda: Split(2),
        ),
        f"triplet margin, {reduction}": Case(
            lambda r=reduction: lambda o, t: F.triplet_margin_loss(*o, swap=True, reduction=r),
            lambda: None,
            head=lambda: Split(3),
        ),
        f"triplet margin with a distance, {reduction}": Case(
            lambda r=reduction: lambda o, t: nn.TripletMarginWithDistanceLoss(
                distance_function=lambda a, b: (a - b).abs().sum(1), reduction=r
            )(*o),
            lambda: None,
            head=lambda: Split(3),
        ),
        f"ctc, {reduction}": Case(
            lambda r=reduction: lambda o, t: F.ctc_loss(
                o.log_softmax(2).movedim(0, 1), t["labels"], t["frames"], t["lengths"], reduction=r
            ),
            lambda: {
                "labels": torch.randint(1, 3, (BATCH, 2)),
                "frames": torch.full((BATCH,), 5),
                "lengths": torch.tensor([1, 2] * (BATCH // 2)),
            },
            head=lambda: nn.Sequential(nn.Linear(4, 15), nn.Unflatten(1, (5, 3))),
        ),
    }  # fmt: skip
TORCH["kl divergence, batchmean"] = plain(nn.KLDivLoss, soft, head=log_softmax, reduction="batchmean")
TORCH["cross entropy, one each"] = plain(nn.CrossEntropyLoss, labels, reduction="none")
TORCH["adaptive softmax"] = Case(
    lambda: _adaptive(),
    labels,  # its weights are parameters of the criterion
)
TORCH["everything ignored"] = plain(nn.CrossEntropyLoss, lambda: torch.full((BATCH,), -100))


class _Adaptive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.softmax = nn.AdaptiveLogSoftmaxWithLoss(4, 6, cutoffs=[2])

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.softmax(outputs, targets).loss


def _adaptive() -> nn.Module:
    torch.manual_seed(5)
    return _Adaptive()


# Whole-batch criteria.


def nt_xent(outputs: tuple[Tensor, Tensor], targets: Any, temperature: float = 0.5) -> Tensor:
    both = F.normalize(torch.cat(outputs), dim=1)
    n = len(both) // 2
    scores = (both @ both.T / temperature).fill_diagonal_(-math.inf)
    return F.cross_entropy(scores, torch.arange(2 * n).roll(n))


def batch_hard_triplet(outputs: Tensor, targets: Tensor) -> Tensor:
    """Hermans et al. 2017: the farthest of the same class, the nearest of another."""
    distances = torch.cdist(outputs, outputs)
    same = targets[:, None] == targets
    far = distances.masked_fill(~same, -1).amax(1)
    near = distances.masked_fill(same, 1e9).amin(1).clamp(max=1e3)
    return F.relu(far - near + 0.3).mean()


def batch_dice(outputs: Tensor, targets: Tensor) -> Tensor:
    p = outputs.sigmoid()
    return 1 - (2 * (p * targets).sum() + 1) / (p.sum() + targets.sum() + 1)


def rmse(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs, targets).sqrt()


def decorrelation(outputs: Tensor, targets: Any) -> Tensor:
    """Barlow Twins' term off the diagonal, of one view."""
    z = (outputs - outputs.mean(0)) / (outputs.std(0) + 1e-3)
    return (z.T @ z / len(z)).fill_diagonal_(0).square().sum()


def hardest_four(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none").topk(4).values.mean()


def average_of_the_active(outputs: Tensor, targets: Tensor) -> Tensor:
    each = F.relu(1 - outputs * targets).sum(1) - 3.5
    active = F.relu(each)
    return active.sum() / (active > 0).sum().clamp(min=1)


class Temperature(nn.Module):
    """A criterion with a parameter of its own, which decomposes."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs * self.scale.exp(), targets)


class Clip(nn.Module):
    """A whole-batch criterion with a parameter: open_clip's mistake is K times its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.1))

    def forward(self, outputs: tuple[Tensor, Tensor], targets: Any) -> Tensor:
        a, b = (F.normalize(each, dim=1) for each in outputs)
        scores = self.scale.exp() * a @ b.T
        return (F.cross_entropy(scores, torch.arange(len(a))) + F.cross_entropy(scores.T, torch.arange(len(a)))) / 2


class Centre(nn.Module):
    """A criterion that remembers: a moving centre of the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(4))

    def forward(self, outputs: Tensor, targets: Any) -> Tensor:
        loss = (outputs - self.centre).square().mean()
        self.centre = 0.9 * self.centre + 0.1 * outputs.detach().mean(0)
        return loss


def noisy_labels(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets.where(torch.rand(len(targets)) > 0.3, 0))


def edits_its_outputs(outputs: Tensor, targets: Tensor) -> Tensor:
    outputs -= outputs.detach().amax(1, keepdim=True)
    return F.cross_entropy(outputs, targets) * outputs.std().detach()


def two_means(outputs: Tensor, targets: Tensor) -> dict[str, Any]:
    """Terms with denominators of their own: tokens that count, and samples."""
    counted = targets >= 0
    tokens = F.cross_entropy(outputs, targets, reduction="sum")
    return {"tokens": Ratio(tokens, counted.sum()), "size": outputs.square().mean(1)}


class Named(nn.Module):
    def forward(self, outputs: Tensor) -> dict[str, Any]:
        return {"logits": outputs[:, :3], "more": (outputs[:, 3:], None, "a word"), "mask": outputs[:, 0] > 0}


def of_named(outputs: dict[str, Any], targets: Tensor) -> Tensor:
    logits, values = outputs["logits"], outputs["more"][0]
    return F.cross_entropy(logits, targets % 3) + (values * outputs["mask"][:, None]).square().mean()


def of_named_together(outputs: dict[str, Any], targets: Tensor) -> Tensor:
    return of_named(outputs, targets) + outputs["more"][0].std()


class Flattened(nn.Module):
    """Two rows for each sample, as language models flatten their tokens."""

    def forward(self, outputs: Tensor) -> Tensor:
        return outputs.reshape(-1, 2)


class TimeFirst(nn.Module):
    """[2, N, 2]: the samples are the second dimension."""

    def forward(self, outputs: Tensor) -> Tensor:
        return outputs.view(-1, 2, 2).transpose(0, 1)


class WithScale(nn.Module):
    """An output that belongs to no sample."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.3))

    def forward(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        return outputs, self.scale.exp()


OWN: dict[str, Case] = {
    "nt-xent": Case(lambda: nt_xent, lambda: None, "two_pass", lambda: Split(2)),
    "triplets with mining": Case(lambda: batch_hard_triplet, labels, "two_pass"),
    "batch dice": Case(lambda: batch_dice, bits, "two_pass"),
    "rmse": Case(lambda: rmse, values, "two_pass"),
    "decorrelation": Case(lambda: decorrelation, lambda: None, "two_pass"),
    "cross entropy and 1e-3 of decorrelation": Case(
        lambda: lambda o, t: F.cross_entropy(o, t) + 1e-3 * decorrelation(o, t), labels, "two_pass"
    ),
    "cross entropy and 1e-9 of decorrelation": Case(
        lambda: lambda o, t: F.cross_entropy(o, t) + 1e-9 * decorrelation(o, t), labels, "two_pass"
    ),
    "the hardest four": Case(lambda: hardest_four, labels, "two_pass"),
    "the average of the active": Case(lambda: average_of_the_active, signs, "two_pass"),
    "a temperature of its own": Case(Temperature, labels, "accumulate"),
    "clip with a learned scale": Case(Clip, lambda: None, "two_pass", lambda: Split(2)),
    "a moving centre": Case(Centre, lambda: None, "two_pass"),
    "noisy labels": Case(lambda: noisy_labels, labels, "two_pass"),
    "one that edits its outputs": Case(lambda: edits_its_outputs, labels, "two_pass"),
    "ratios": Case(lambda: two_means, some_ignored, "accumulate"),
    "one ratio": Case(lambda: lambda o, t: two_means(o, t)["tokens"], some_ignored, "accumulate"),
    "one loss each": Case(lambda: lambda o, t: (o - t).square().sum(1), values, "accumulate"),
    "class frequencies of the batch": Case(
        lambda: lambda o, t: (F.cross_entropy(o, t, reduction="none") / torch.bincount(t, minlength=4)[t]).sum(),
        labels,
        "accumulate",
    ),
    "a constant": Case(lambda: lambda o, t: F.cross_entropy(o, t) + 3.0, labels, "accumulate"),
    "named terms of torch's": Case(
        lambda: Terms({"ce": nn.CrossEntropyLoss(W, label_smoothing=0.1), "margin": nn.MultiMarginLoss()}, {"ce": 0.3}),
        labels,
        "accumulate",
    ),
    "named terms, one of them together": Case(
        lambda: Terms({"mse": nn.MSELoss(), "rmse": rmse}, {"rmse": 0.3}), values, "two_pass"
    ),
    "a dict of outputs": Case(lambda: of_named, labels, "accumulate", Named),
    "a dict of outputs, together": Case(lambda: of_named_together, labels, "two_pass", Named),
    "two rows for each sample": Case(
        lambda: nn.CrossEntropyLoss(ignore_index=-1),
        lambda: torch.randint(-1, 2, (2 * BATCH,)),
        "accumulate",
        Flattened,
    ),
    "samples in the second dimension": Case(
        lambda: lambda o, t: F.mse_loss(o, t), lambda: torch.randn(2, BATCH, 2), "accumulate", TimeFirst
    ),
    "samples in the second dimension, together": Case(
        lambda: rmse, lambda: torch.randn(2, BATCH, 2), "two_pass", TimeFirst
    ),
    "an output that all samples share": Case(
        lambda: lambda o, t: F.cross_entropy(o[0] * o[1], t), labels, "two_pass", WithScale
    ),
    "broadcasting one against the other": Case(
        lambda: nn.MSELoss(), lambda: torch.randn(BATCH, 1), "accumulate"
    ),
}  # fmt: skip

CASES = TORCH | OWN
