"""SGD and Nesterov's accelerated gradient by the rules of Torch7's `optim.sgd` and `optim.nag`.

Called as the methods of `gradstep.optim.functional` are: `method(feval, params, config, state) -> (params, [f])`,
one call one step. They remember `evalCounter`, the number of calls, and their velocities: sgd's is `dfdx`, a sum of
gradients, nag's is `velocity`, a way to go, so that the one is not taken for the other.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor

from gradstep.errors import RecipeError
from gradstep.optim.feval import Feval, check_vector, evaluate
from gradstep.optim.settings import Settings, as_number, check_slot

Numbers = MutableMapping[str, Any]
Step = tuple[Tensor, list[float]]

_SGD = Settings(
    "sgd",
    {
        "lr": 1e-3, "lr_decay": 0.0, "weight_decay": 0.0, "momentum": 0.0, "dampening": None, "nesterov": False,
        "lrs": None, "weight_decays": None,
    },
    ("evalCounter", "dfdx"),
)  # fmt: skip
_NAG = Settings(
    "nag",
    {"lr": 1e-3, "lr_decay": 0.0, "weight_decay": 0.0, "momentum": 0.9, "lrs": None},
    ("evalCounter", "velocity"),
)


@torch.no_grad()
def sgd(feval: Feval, params: Tensor, config: Numbers | None = None, state: Numbers | None = None) -> Step:
    """One step of SGD by Torch7's rule, in which the momentum's dampening is the momentum unless it is given.

        g = df + weight_decay·x          (or weight_decays·x, a number for each element)
        v = g at first, then momentum·v + (1 − dampening)·g
        g = v, or g + momentum·v with nesterov
        x ← x − lr/(1 + t·lr_decay)·g    (or lr·lrs·g, a number for each element); t counts calls from 0

    lr 1e-3, lr_decay 0, weight_decay 0, momentum 0, dampening = momentum, nesterov False. df is left as it was.

    Raises RecipeError for bad options, among them nesterov without momentum or with dampening (which is not 0 by
    default), ModelError where feval, params and state don't go together.
    """
    check_vector(params)
    options, memory = _SGD.read(config, state)
    momentum, dampening = options["momentum"], _dampening(options)
    decays = _per_element(_SGD, options, "weight_decays", params)
    if decays is not None and options["weight_decay"]:
        raise RecipeError("sgd: give weight_decay for all elements or weight_decays for each, not both.")
    rate, rates = _rate(options, memory), _per_element(_SGD, options, "lrs", params)
    velocity = _slot(_SGD, "dfdx", memory, params)

    f, df = evaluate(feval, params)
    gradient = _decayed(df, params, options["weight_decay"] if decays is None else decays)
    if momentum:
        if velocity is None:
            velocity = memory["dfdx"] = gradient.clone()
        else:
            velocity.mul_(momentum).add_(gradient, alpha=1 - dampening)
        gradient = gradient.add(velocity, alpha=momentum) if options["nesterov"] else velocity
    _descend(params, gradient, rate, rates)
    memory["evalCounter"] = memory.get("evalCounter", 0) + 1
    return params, [f]


@torch.no_grad()
def nag(feval: Feval, params: Tensor, config: Numbers | None = None, state: Numbers | None = None) -> Step:
    """One step of Nesterov's accelerated gradient (Sutskever et al. 2013, eq. 3 and 4), as Torch7 has it.

        y = x + momentum·v               v is 0 at first
        v ← momentum·v − lr/(1 + t·lr_decay)·(df(y) + weight_decay·y)
        x ← y + the second term

    feval is called while `params` is y, so f is the value there; after an error in it, params is x again.

    lr 1e-3, lr_decay 0, weight_decay 0, momentum 0.9, which must not be 0; lrs, a factor on lr for each element.
    Raises as `sgd` does.
    """
    check_vector(params)
    options, memory = _NAG.read(config, state)
    momentum = options["momentum"]
    if not momentum:
        raise RecipeError("nag needs a momentum above 0; without one it is sgd.")
    rate, rates = _rate(options, memory), _per_element(_NAG, options, "lrs", params)
    velocity = _slot(_NAG, "velocity", memory, params)
    if velocity is None:
        velocity = torch.zeros_like(params)

    start = params.clone()
    params.add_(velocity, alpha=momentum)
    try:
        f, df = evaluate(feval, params)
    except BaseException:
        params.copy_(start)
        raise
    gradient = _decayed(df, params, options["weight_decay"])
    velocity.mul_(momentum)
    _descend(velocity, gradient, rate, rates)
    _descend(params, gradient, rate, rates)
    memory["velocity"] = velocity
    memory["evalCounter"] = memory.get("evalCounter", 0) + 1
    return params, [f]


def _dampening(options: Numbers) -> float:
    momentum, dampening = options["momentum"], options["dampening"]
    if dampening is None:
        dampening = momentum
    elif not as_number(dampening) <= 1:
        raise RecipeError(f"sgd: dampening = {dampening!r} is not a number from 0 to 1.")
    if options["nesterov"] and (not momentum or dampening):
        raise RecipeError(
            f"sgd: nesterov needs a momentum and no dampening; here they are {momentum} and {dampening}. "
            "Dampening is the momentum unless it is given: add dampening=0."
        )
    return float(dampening)


def _rate(options: Numbers, memory: Numbers) -> float:
    return float(options["lr"] / (1 + memory.get("evalCounter", 0) * options["lr_decay"]))


def _per_element(settings: Settings, options: Numbers, name: str, params: Tensor) -> Tensor | None:
    value = options[name]
    if value is None:
        return None
    if not isinstance(value, Tensor) or value.shape != params.shape or not _are_rates(value):
        raise RecipeError(
            f"{settings.method}: {name} must be a tensor of {params.numel()} finite numbers of 0 or more, one for each "
            "element of params."
        )
    return value.to(params)


def _are_rates(value: Tensor) -> bool:
    return not value.is_complex() and bool(((value >= 0) & value.isfinite()).all())


def _slot(settings: Settings, name: str, memory: Numbers, params: Tensor) -> Tensor | None:
    if name not in memory:
        return None
    check_slot(settings.method, name, memory[name], params)
    velocity: Tensor = memory[name]
    return velocity


def _decayed(df: Tensor, params: Tensor, decay: float | Tensor) -> Tensor:
    """The gradient with weight decay, in a tensor of its own if there is any: df is the user's."""
    if isinstance(decay, Tensor):
        return df + decay * params
    return df.add(params, alpha=decay) if decay else df


def _descend(vector: Tensor, gradient: Tensor, rate: float, rates: Tensor | None) -> None:
    vector.add_(gradient if rates is None else rates * gradient, alpha=-rate)
