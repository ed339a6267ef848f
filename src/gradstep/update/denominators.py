"""What torch's criteria divide by: how the losses of a batch's parts, or of several batches, make one mean.

Each line of the table is verified against the whole batch, in float64, by tests/invariance/test_exact.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from gradstep.update.criterion import Criterion, Terms

Share = tuple[Tensor, Tensor | int]  # (the loss of one unit, how many units): a mean is Σ loss·units / Σ units
Denominator = Callable[[Any, Tensor, int], Tensor | int]  # of (criterion, targets, samples)


def _elements(_criterion: Any, targets: Tensor, _samples: int) -> int:
    return targets.numel()


def _samples(_criterion: Any, _targets: Tensor, samples: int) -> int:
    return samples


def class_weight(criterion: Any, targets: Tensor, _samples: int) -> Tensor | int:
    """Cross entropy and NLL: the weights of the classes that are not ignored; of soft targets, how many there are."""
    if targets.is_floating_point():  # [N, classes, ...]: averaged over all but the classes, weighted or not
        return targets.numel() // targets.shape[1]
    counted: Tensor = targets != criterion.ignore_index
    if criterion.weight is None:
        return counted.sum()
    weights: Tensor = criterion.weight[targets.where(counted, 0)]
    return weights.mul(counted).sum()


def _batchmean(criterion: Any, targets: Tensor, samples: int) -> int:
    return samples if criterion.reduction == "batchmean" else targets.numel()


# Criteria of (outputs, targets) whose `mean` is their `sum` divided by this. Others are tried (`probe.py`).
_TABLE: dict[type, Denominator] = {
    nn.CrossEntropyLoss: class_weight,
    nn.NLLLoss: class_weight,
    nn.KLDivLoss: _batchmean,
    **dict.fromkeys(
        (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss, nn.SoftMarginLoss,
         nn.PoissonNLLLoss, nn.HingeEmbeddingLoss),
        _elements,
    ),
    **dict.fromkeys((nn.MultiMarginLoss, nn.MultiLabelMarginLoss, nn.MultiLabelSoftMarginLoss), _samples),
}  # fmt: skip
_CLASSES = (nn.CrossEntropyLoss, nn.NLLLoss)


def tabled(criterion: Any, shape: tuple[int, ...], targets: Any, samples: int) -> bool:
    """Whether the table says how this criterion decomposes over the rows of outputs of `shape` and of its targets."""
    divides = _TABLE.get(type(criterion))
    if divides is None or not isinstance(targets, Tensor) or targets.dim() == 0 or len(targets) != shape[0]:
        return False
    if criterion.reduction == "none" and (len(targets) != samples or targets.dim() > 1):
        return False  # it is not one loss per sample
    if divides in (_elements, _batchmean):  # torch would broadcast one against the other, and over samples
        weights = (getattr(criterion, "weight", None), getattr(criterion, "pos_weight", None))
        by_rows = any(weight is not None and weight.dim() >= targets.dim() for weight in weights)
        return tuple(targets.shape) == shape and not by_rows
    return len(shape) > 1


def is_mean(criterion: Any) -> bool:
    """Whether `Sharing` makes the same means of a criterion whatever the batches: all that it is made of is known."""
    return all(
        type(each) in _TABLE for each in (criterion.criteria.values() if isinstance(criterion, Terms) else [criterion])
    )


def summed(criterion: Any) -> Any:
    """The criterion that gives the sum where this gives the mean; itself where it gives the sum, or one loss each."""
    if criterion.reduction not in ("mean", "batchmean"):
        return criterion
    twin = copy.copy(criterion)  # it shares the weights
    twin.reduction = "sum"
    return twin


def denominator(criterion: Any, targets: Tensor, samples: int) -> Tensor | int:
    """What the batch's loss divides the sum over its rows by. Never read: it may lie on the device."""
    if criterion.reduction == "sum":
        return 1
    return samples if criterion.reduction == "none" else _TABLE[type(criterion)](criterion, targets, samples)


class Sharing:
    """How losses of several batches make means: the loss's, and each named term's.

    A unit is a sample, unless a criterion itself divides by something else: torch's cross entropy and NLL divide by
    the class weights of the targets that they don't ignore, a `Ratio` by its denominator. A summed loss is one of all
    its samples. Where terms divide by different things, the mean loss is the sum of their means, not a mean of their
    sums.
    """

    def __init__(self, criterion: Criterion) -> None:
        own = criterion.criteria if isinstance(criterion, Terms) else {}
        self._share = _share_of(criterion)
        self._term_shares = {name: _share_of(each) for name, each in own.items()}

    def shares(
        self,
        loss: Tensor,
        terms: Mapping[str, Tensor],
        targets: Any,
        samples: int,
        units: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Share]:
        """The share of each mean that one batch has, under `loss` and the terms' names. `units` are of ratios."""
        units = units or {}
        if "loss" in units:
            return {"loss": (loss, units["loss"])}
        shares = {} if self._term_shares or units else {"loss": self._share(loss, targets, samples)}
        for name, term in terms.items():
            own = (term, units[name]) if name in units else None
            shares[name] = own or self._term_shares.get(name, _by_samples)(term, targets, samples)
        return shares

    def means(self, means: Mapping[str, float]) -> dict[str, float]:
        """The means with the loss among them, where it is made of its terms'."""
        return {"loss": sum(means.values()), **means} if means and "loss" not in means else dict(means)


def _share_of(criterion: Criterion) -> Callable[[Tensor, Any, int], Share]:
    if getattr(criterion, "reduction", None) == "sum":
        return lambda loss, _targets, samples: (loss / samples, samples)
    if isinstance(criterion, _CLASSES) and criterion.reduction == "mean":
        return lambda loss, targets, samples: (loss, class_weight(criterion, targets, samples))
    return _by_samples


def _by_samples(loss: Tensor, _targets: Any, samples: int) -> Share:
    return loss, samples
