"""Functional optimizers whose arithmetic is torch's: asgd, adam, adamax, adagrad, adadelta, rmsprop, rprop.

`method(feval, params, config=None, state=None) -> (params, [f])`, as Torch7's `optim` has it. One call is one step:

- `feval(x) -> (f, df)` evaluates at x, which is `params` itself; df is a vector like params. It may be `grads` of
  `flatten_parameters`, and is left as it was.
- `params` is a contiguous 1-D tensor, changed in place. f is from before the step.
- `config` holds options in torch's spelling or Torch7's. Defaults are Torch7's.
- What is remembered between calls (torch's slots, by torch's names: tensors only) is written into `state`, or into
  `config` where no state is given. With neither, nothing is remembered. Copy a state with `copy.deepcopy`.

All raise RecipeError for options that can't be, among them an eps that params.dtype rounds to 0 (the defaults of adam,
adamax, adagrad and rmsprop in float16), and ModelError where feval, params and state don't go together.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import ASGD, Adadelta, Adagrad, Adam, Adamax, Optimizer, RMSprop, Rprop

from gradstep.errors import ModelError, RecipeError
from gradstep.optim.feval import Feval, check_vector, evaluate
from gradstep.optim.settings import PAIRS, Settings, check_slot

Numbers = MutableMapping[str, Any]
Step = tuple[Tensor, list[float]]


def asgd(feval: Feval, params: Tensor, config: Numbers | None = None, state: Numbers | None = None) -> Step:
    """Averaged SGD (Polak and Juditsky 1992; torch.optim.ASGD). The average of the iterates is `state["ax"]`.

    lr 1e-4 (Torch7: eta0), lambd 1e-4, alpha 0.75, t0 1e6, weight_decay 0.
    """
    return _step(_ASGD, feval, params, config, state)


def adam(feval: Feval, params: Tensor, config: Numbers | None = None, state: Numbers | None = None) -> Step:
    """Adam (Kingma and Ba 2015, algorithm 1; torch.optim.Adam).

    lr 1e-3, lr_decay 0, beta1 0.9, beta2 0.999, eps 1e-8, weight_decay 0, amsgrad False. With lr_decay, step t runs at
    lr/(1 + t·lr_decay), t from 0.
    """
    return _step(_ADAM, feval, params, config, state)


def adamax(feval: Feval, params: Tensor, config: Numbers | None = None, state: Numbers | None = None) -> Step:
    """Adam with the infinity norm (Kingma and Ba 2015, algorithm 2; torch.optim.Adamax).

    lr 2e-3, beta1 0.9, beta2 0.999, eps 1e-38, weight_decay 0.
    """
    return _step(_ADAMAX, feval, params, config, state)


def adagrad(feval: Feval, params: Tensor, config: Numbers | None = None, state: Numbers | None = None) -> Step:
    """AdaGrad (Duchi, Hazan and Singer 2011, figure 1; torch.optim.Adagrad).

    lr 1e-3, lr_decay 0, weight_decay 0, eps 1e-10, initial_accumulator_value 0. With lr_decay, step t runs at
    lr/(1 + t·lr_decay), t from 0.
    """
    return _step(_ADAGRAD, feval, params, config, state)


def adadelta(feval: Feval, params: Tensor, config: Numbers | None = None, state: Numbers | None = None) -> Step:
    """AdaDelta (Zeiler 2012, algorithm 1; torch.optim.Adadelta).

    rho 0.9, eps 1e-6, weight_decay 0; lr 1, which Torch7 and the paper do not have.
    """
    return _step(_ADADELTA, feval, params, config, state)


def rmsprop(feval: Feval, params: Tensor, config: Numbers | None = None, state: Numbers | None = None) -> Step:
    """RMSProp (Tieleman and Hinton 2012, lecture 6.5; torch.optim.RMSprop).

    lr 1e-2, alpha 0.99, eps 1e-8, weight_decay 0; momentum 0 and centered False, which Torch7 does not have.
    """
    return _step(_RMSPROP, feval, params, config, state)


def rprop(feval: Feval, params: Tensor, config: Numbers | None = None, state: Numbers | None = None) -> Step:
    """Rprop (Riedmiller and Braun 1993; torch.optim.Rprop), for whole batches: it reads only the gradient's signs.

    lr 0.1, the first step size (Torch7: stepsize); etaminus 0.5, etaplus 1.2, stepsizemin 1e-6, stepsizemax 50.
    """
    return _step(_RPROP, feval, params, config, state)


@dataclass(frozen=True, slots=True)
class _Torch:
    """A class of torch.optim, the options it is given, and the slots it keeps for a parameter."""

    build: Callable[..., Optimizer]
    settings: Settings


_ASGD = _Torch(
    ASGD,
    Settings(
        "asgd",
        {"lr": 1e-4, "lambd": 1e-4, "alpha": 0.75, "t0": 1e6, "weight_decay": 0.0},
        ("step", "eta", "mu", "ax"),
        {"eta0": "lr"},
    ),
)
_ADAM = _Torch(
    Adam,
    Settings(
        "adam",
        {"lr": 1e-3, "lr_decay": 0.0, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False},
        ("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    ),
)
_ADAMAX = _Torch(
    Adamax,
    Settings(
        "adamax",
        {"lr": 2e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-38, "weight_decay": 0.0},
        ("step", "exp_avg", "exp_inf"),
    ),
)
_ADAGRAD = _Torch(
    Adagrad,
    Settings(
        "adagrad",
        {"lr": 1e-3, "lr_decay": 0.0, "weight_decay": 0.0, "eps": 1e-10, "initial_accumulator_value": 0.0},
        ("step", "sum"),
    ),
)
_ADADELTA = _Torch(
    Adadelta,
    Settings(
        "adadelta",
        {"lr": 1.0, "rho": 0.9, "eps": 1e-6, "weight_decay": 0.0},
        ("step", "square_avg", "acc_delta"),
    ),
)
_RMSPROP = _Torch(
    RMSprop,
    Settings(
        "rmsprop",
        {"lr": 1e-2, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0.0, "momentum": 0.0, "centered": False},
        ("step", "square_avg", "momentum_buffer", "grad_avg"),
    ),
)
_RPROP = _Torch(
    Rprop,
    Settings(
        "rprop",
        {"lr": 0.1, "etaminus": 0.5, "etaplus": 1.2, "stepsizemin": 1e-6, "stepsizemax": 50.0},
        ("step", "prev", "step_size"),
        {"stepsize": "lr"},
    ),
)


@torch.no_grad()
def _step(way: _Torch, feval: Feval, params: Tensor, config: Numbers | None, state: Numbers | None) -> Step:
    """One step of a torch optimizer that is built for it and holds what the state remembers."""
    check_vector(params)
    options, memory = way.settings.read(config, state)
    _check_eps(way.settings.method, options, params)
    slots = {name: memory[name] for name in way.settings.slots if name in memory}
    for name, value in slots.items():
        check_slot(way.settings.method, name, value, params)
    parameter = nn.Parameter(params.detach())  # the same memory
    optimizer = _build(way, parameter, options, steps=float(slots.get("step", 0)))
    if slots:
        optimizer.state[parameter] = slots
    f, parameter.grad = evaluate(feval, params)
    try:
        optimizer.step()
    except KeyError as error:
        raise ModelError(
            f"{way.settings.method}: the state has no {error}, which these options need. Start with an empty state."
        ) from error
    memory.update(optimizer.state[parameter])
    return params, [f]


def _check_eps(method: str, options: dict[str, Any], params: Tensor) -> None:
    eps = options.get("eps")
    if eps and not params.new_tensor(eps):
        dtype = str(params.dtype).removeprefix("torch.")
        raise RecipeError(
            f"{method}: eps = {eps!r} is 0 in {dtype}, so an element whose gradient is 0 would become nan. "
            "Give eps=1e-4, or use float32 (model.float())."
        )


def _build(way: _Torch, parameter: nn.Parameter, options: dict[str, Any], steps: float) -> Optimizer:
    if "lr_decay" in options:  # Adam has none of its own, and Adagrad's is this one
        options["lr"] /= 1 + steps * options.pop("lr_decay")
    for pair, parts in PAIRS.items():
        if parts[0] in options:
            options[pair] = (options.pop(parts[0]), options.pop(parts[1]))
    try:
        return way.build([parameter], **options)
    except ValueError as error:
        raise RecipeError(f"{way.settings.method}: {error}.") from error
