"""The gain of the nonlinearity that follows a layer: given, or told from the Sequentials that the layer stands in.

The gains are `torch.nn.init.calculate_gain`'s. "Follows" is only known inside a Sequential, at any nesting: pooling,
dropout, norms, padding and reshaping are looked past, and what comes after the last layer of a model that is itself a
Sequential is nothing, so gain 1. A Softmax or LogSoftmax that ends such a model makes probabilities of its outputs, and
counts as nothing too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn import modules

from gradstep.errors import RecipeError, listed, nearest
from gradstep.initialization.formulas import positive
from gradstep.initialization.layers import base

_LINEAR = ("linear", *(f"conv{more}{d}d" for more in ("", "_transpose") for d in (1, 2, 3)))
NONLINEARITIES = (*_LINEAR, "sigmoid", "tanh", "relu", "leaky_relu", "selu")

_ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.SELU: "selu",
}

_PROBABILITIES = (nn.Softmax, nn.LogSoftmax)

_LOOKED_PAST: tuple[type[nn.Module], ...] = (
    nn.Identity,
    *(
        getattr(family, name)
        for family in (
            modules.pooling,
            modules.dropout,
            modules.batchnorm,
            modules.instancenorm,
            modules.normalization,
            modules.flatten,
            modules.padding,
            modules.upsampling,
            modules.pixelshuffle,
            modules.channelshuffle,
        )
        for name in family.__all__
    ),
)


@dataclass(frozen=True, slots=True)
class Follower:
    """What comes after a layer: its gain, or None where that can't be told, and the reason in words."""

    gain: float | None
    why: str


UNKNOWN = Follower(None, "what follows can't be told")


def read_gain(gain: float | str | None) -> float | str | None:
    """A given gain as a number; None and "auto" as they are. RecipeError: neither a number nor a known name."""
    if gain is None or gain == "auto":
        return gain
    if isinstance(gain, str) and gain in NONLINEARITIES:
        return gain_of(gain)
    if isinstance(gain, (int, float)) and positive(gain):
        return float(gain)
    names = ("auto", *NONLINEARITIES)
    hint = nearest(gain, names) if isinstance(gain, str) else ""
    raise RecipeError(
        f"gain: {gain!r} is neither a number above zero nor a name.{hint} The names are {listed(names, len(names))}."
    )


def gain_of(nonlinearity: str, slope: float | None = None) -> float:
    """torch's gain of a nonlinearity by its name; `slope` is LeakyReLU's."""
    calculate: Any = nn.init.calculate_gain  # typed for literal names only
    return float(calculate(nonlinearity, slope))


def followers(model: nn.Module) -> dict[nn.Module, Follower]:
    """What follows each module that stands in a Sequential; one in two places has a follower only if both agree."""
    chains = [module for module in model.modules() if _is_chain(module)]
    nested = {child for chain in chains for child in chain.children() if _is_chain(child)}
    found: dict[nn.Module, Follower] = {}
    for chain in chains:
        links = list(_links(chain)) if chain not in nested else []
        for place, link in enumerate(links):
            follower = _after(links[place + 1 :], whole=chain is model)
            if found.setdefault(link, follower) != follower:
                found[link] = Follower(None, "used more than once, with different followers")
    return found


def _is_chain(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _links(chain: nn.Module) -> Iterator[nn.Module]:
    """What a Sequential calls, in order, those inside it opened; one that is in it twice comes twice."""
    for module in chain._modules.values():
        if module is not None:
            yield from _links(module) if _is_chain(module) else (module,)


def _after(rest: Sequence[nn.Module], whole: bool) -> Follower:
    seen = [module for module in rest if not isinstance(module, _LOOKED_PAST)]
    if not seen:
        return Follower(1.0, "nothing follows") if whole else UNKNOWN
    module, name = seen[0], type(seen[0]).__name__
    if whole and len(seen) == 1 and isinstance(module, _PROBABILITIES):
        return Follower(1.0, f"nothing follows but {name}")
    if base(module) is not None:
        return Follower(1.0, f"{name} follows")
    for kind, nonlinearity in _ACTIVATIONS.items():
        if isinstance(module, kind):
            slope = module.negative_slope if isinstance(module, nn.LeakyReLU) else None
            return Follower(gain_of(nonlinearity, slope), f"{name} follows")
    return Follower(None, f"{name} follows, whose gain is not known")
