"""What a criterion may return, and how it is read as one loss."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradstep import tree
from gradstep.errors import ModelError, RecipeError, listed, nearest

Criterion = Callable[[Any, Any], Any]


class Ratio(NamedTuple):
    """A term that is a sum over samples divided by something that depends on the targets alone, as a number of
    tokens."""

    numerator: Tensor  # 0-dimensional, with a graph
    denominator: Tensor | float  # 0-dimensional


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
        return {name: _weighted(self.weights[name], each(outputs, targets)) for name, each in self.criteria.items()}


def _weighted(weight: float, value: Any) -> Any:
    return Ratio(weight * value.numerator, value.denominator) if isinstance(value, Ratio) else weight * value


def read_loss(value: Any, samples: int) -> tuple[Tensor, dict[str, Tensor]]:
    """`(loss, terms)` of what a criterion returned for a batch of `samples` samples: 0-dimensional, with their graphs.

    A scalar is the loss; a vector of one loss per sample is averaged over the batch; a `Ratio` is its quotient; a dict
    of any of them is summed in its order, and its values are the terms. Anything else raises ModelError.
    """
    if isinstance(value, (Tensor, Ratio)):
        return _scalar(value, samples, "The criterion"), {}
    if isinstance(value, Mapping) and value:
        terms = {name: _scalar(term, samples, f"The criterion's term '{name}'") for name, term in value.items()}
        return functools.reduce(torch.add, terms.values()), terms  # in the order given, as `a + b + c` would
    raise ModelError(
        f"The criterion returned {tree.describe(value)}. It must return a scalar tensor, one loss per sample, or a "
        "dict of named terms that are either."
    )


def units_of(value: Any) -> dict[str, Tensor]:
    """The denominators of the ratios in what a criterion returned, by term; under `loss` where it is one itself."""
    if isinstance(value, Tensor):
        return {}
    terms = {"loss": value} if isinstance(value, Ratio) else value if isinstance(value, Mapping) else {}
    return {
        name: torch.as_tensor(term.denominator, device=term.numerator.device).detach()
        for name, term in terms.items()
        if isinstance(term, Ratio)
    }


def _scalar(value: Any, samples: int, who: str) -> Tensor:
    if isinstance(value, Ratio):
        return _scalar(value.numerator, samples, f"{who}'s numerator") / value.denominator
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
