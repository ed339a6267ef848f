"""What a criterion may return, read as one loss; and how losses of several batches make a mean."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gradstep import tree
from gradstep.errors import ModelError, RecipeError, listed, nearest

Criterion = Callable[[Any, Any], Any]
Share = tuple[Tensor, Tensor | int]  # (the loss of one unit, how many units): a mean is Σ loss·units / Σ units


class Terms(nn.Module):
    """Named criteria of the same outputs and targets, each with its weight: the loss is their weighted sum."""

    def __init__(self, criteria: Mapping[str, Criterion], weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        weights = weights or {}
        for name in weights:
            if name not in criteria:
                raise RecipeError(f"criterion: a weight is given for '{name}', not a term.{nearest(name, criteria)}")
        self.criteria = dict(criteria)
        self.weights = {name: float(weights.get(name, 1.0)) for name in criteria}
        self.modules_among = nn.ModuleDict({n: c for n, c in criteria.items() if isinstance(c, nn.Module)})

    def forward(self, outputs: Any, targets: Any) -> dict[str, Any]:
        return {name: self.weights[name] * each(outputs, targets) for name, each in self.criteria.items()}


def read_loss(value: Any, samples: int) -> tuple[Tensor, dict[str, Tensor]]:
    """`(loss, terms)` of what a criterion returned for a batch of `samples` samples: 0-dimensional, with their graphs.

    A scalar is the loss; a vector of one loss per sample is averaged over the batch; a dict of either is summed in
    its order, and its values are the terms. Anything else raises ModelError.
    """
    if isinstance(value, Tensor):
        return _scalar(value, samples, "The criterion"), {}
    if isinstance(value, Mapping) and value:
        terms = {name: _scalar(term, samples, f"The criterion's term '{name}'") for name, term in value.items()}
        return functools.reduce(torch.add, terms.values()), terms  # in the order given, as `a + b + c` would
    raise ModelError(
        f"The criterion returned {tree.describe(value)}. It must return a scalar tensor, one loss per sample, or a "
        "dict of named terms that are either."
    )


def _scalar(value: Any, samples: int, who: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise ModelError(f"{who} returned a {type(value).__name__} and must return a tensor, or backward has no graph.")
    if value.dim() == 0:
        return value
    if value.dim() == 1 and len(value) == samples and value.is_floating_point():
        return value.mean()
    if not value.is_floating_point():
        raise ModelError(f"{who} returned {value.dtype}, which has no graph: a loss is made of floats.")
    raise ModelError(
        f"{who} returned a tensor of shape {list(value.shape)} for a batch of {samples}. It must be a scalar or hold "
        "one loss per sample; average the other dimensions, or use reduction='mean'."
    )


def require_graph(loss: Tensor, terms: Mapping[str, Tensor]) -> None:
    """Raises ModelError where nothing could flow back: a loss, or a term, that no parameter reaches."""
    for name, term in terms.items():
        if not term.requires_grad:
            raise ModelError(
                f"The criterion's term '{name}' has no graph, so it changes no gradient. A value that is only to be "
                f"logged belongs into metrics={{'{name}': ...}}."
            )
    if not loss.requires_grad:
        raise ModelError(
            "The loss has no graph: no parameter that requires a gradient reaches it. Look for .item(), .detach(), "
            "torch.no_grad() or argmax on its way, or for a model that is frozen as a whole."
        )


def criterion_gradient(criterion: Criterion, outputs: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
    """`(loss, ∂loss/∂outputs)`, the gradient as a value of its own, of the shape of `outputs`.

    `outputs.backward(gradient)` then sends it through the model: Torch7's `criterion:backward` and `model:backward`.
    """
    with torch.enable_grad():
        leaf = outputs.detach().requires_grad_()
        loss, terms = read_loss(criterion(leaf, targets), len(leaf))
        require_graph(loss, terms)
        (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


class Sharing:
    """How losses of several batches make means: the loss's, and each named term's.

    A unit is a sample, unless a criterion itself divides by something else: torch's cross entropy and NLL divide by
    the class weights of the targets that they don't ignore. A summed loss is one of all its samples. Where terms
    divide by different things (`Terms`), the mean loss is the sum of their means, not a mean of their sums.
    """

    def __init__(self, criterion: Criterion) -> None:
        own = criterion.criteria if isinstance(criterion, Terms) else {}
        self._share = _share_of(criterion)
        self._term_shares = {name: _share_of(each) for name, each in own.items()}

    def shares(self, loss: Tensor, terms: Mapping[str, Tensor], targets: Any, samples: int) -> dict[str, Share]:
        """The share of each mean that one batch has, under `loss` and the terms' names."""
        shares = {} if self._term_shares else {"loss": self._share(loss, targets, samples)}
        for name, term in terms.items():
            shares[name] = self._term_shares.get(name, _by_samples)(term, targets, samples)
        return shares

    def means(self, means: Mapping[str, float]) -> dict[str, float]:
        """The means with the loss among them, where it is made of its terms'."""
        return {"loss": sum(means.values()), **means} if self._term_shares and means else dict(means)


def _share_of(criterion: Criterion) -> Callable[[Tensor, Any, int], Share]:
    if getattr(criterion, "reduction", None) == "sum":
        return lambda loss, _targets, samples: (loss / samples, samples)
    if isinstance(criterion, (nn.CrossEntropyLoss, nn.NLLLoss)) and criterion.reduction == "mean":
        return lambda loss, targets, samples: (loss, _class_weight(criterion, targets, samples))
    return _by_samples


def _by_samples(loss: Tensor, _targets: Any, samples: int) -> Share:
    return loss, samples


def _class_weight(criterion: nn.CrossEntropyLoss | nn.NLLLoss, targets: Tensor, samples: int) -> Tensor | int:
    if targets.is_floating_point():  # soft targets are averaged over samples
        return samples
    counted = targets != criterion.ignore_index
    if criterion.weight is None:
        return counted.sum()
    return criterion.weight[targets.where(counted, 0)].mul(counted).sum()


def describe(criterion: Criterion) -> str:
    """A criterion's name for people."""
    if isinstance(criterion, Terms):
        return " + ".join(f"{weight:g}·{name}" for name, weight in criterion.weights.items())
    return getattr(criterion, "__name__", type(criterion).__name__)


def named_loss(name: str) -> type[nn.Module]:
    """A loss class of `torch.nn`. RecipeError names the nearest one there is."""
    known = [n for n in dir(nn) if n.endswith("Loss")]
    if name not in known:
        raise RecipeError(f"criterion: torch.nn has no '{name}'. It has {listed(known, 40)}.{nearest(name, known)}")
    loss: type[nn.Module] = getattr(nn, name)
    return loss
