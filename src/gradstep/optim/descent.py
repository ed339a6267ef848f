"""Stochastic gradient descent with L1 and L2 decay, a decaying rate, and both forms of momentum.

torch's own rule moves the parameters: this file only prepares what it is handed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT
from torch.optim.sgd import sgd

from gradstep.errors import ModelError, RecipeError, listed, nearest
from gradstep.optim.settings import as_number

_FORMS = ("outside", "inside")


class SGD(Optimizer):
    """torch's SGD, and what the older rules have beside it. With the options that torch has, the same bits.

    With g the gradient, t the steps taken before and η = lr / (1 + t·lr_decay), a step is::

        d = g + weight_decay_l1·sign(p) + weight_decay·p        in a copy: `.grad` stays as it was; sign(0) = 0
        v = momentum·v + (1 - dampening)·d,  p = p - η·v        momentum_form="outside": torch's, Torch7's
        v = momentum·v + (1 - dampening)·η·d,  p = p - v        momentum_form="inside": -v is the classic Δw(t)

    The velocity starts as d (as η·d inside), undampened. Without momentum both forms are p = p - η·d. While the rate
    is constant they are the same steps to rounding, for one velocity is η times the other. When it moves they differ:
    outside, a new rate applies at once to all that the velocity holds; inside, only to what comes in from now on.

    With `nesterov`, `d + momentum·v` takes the velocity's place outside (`η·d + momentum·v` inside). Inside it is
    Nesterov's rule as Sutskever et al. have it, also while the rate moves, with p the point that they look ahead to
    ("On the importance of initialization and momentum in deep learning", 2013, equations 3 and 4). It needs momentum,
    and no dampening. Dampening goes with either form.

    Every option can be set for a group too, and changed there between steps; momentum_form only before the first step
    with momentum, for a velocity of one form is read as the other's and not converted.

    Args:
        params: parameters, named parameters, or groups, as for any optimizer of torch's.
        lr: the learning rate, at least 0; a tensor of one element too. It may be left out where each group has its own.
        momentum: how much of the velocity stays, at least 0.
        dampening: what the velocity leaves out of d, from 0 to 1; `"momentum"` for as much as the momentum is at that
            step, which is Torch7's default.
        nesterov: looks ahead, as above.
        weight_decay: the L2 decay, at least 0: the gradient of weight_decay/2·‖p‖².
        weight_decay_l1: the L1 decay, at least 0: the gradient of weight_decay_l1·Σ|p|. Not for complex parameters.
        lr_decay: at least 0, Torch7's learningRateDecay. t is the group's own option `steps`: the calls of `step()`
            since it joined, in which lr_decay was not 0, whether or not its parameters had gradients.
        momentum_form: "outside" or "inside", above.
        maximize: goes up the gradient instead of down. Both decays pull towards zero still.
        foreach: torch's way over all tensors at once, or its loop over them (False). By default torch chooses: the
            loop on the CPU. Both give the same bits on the CPU in float32 and float64; in 16 bits they may differ by
            a rounding.
        fused: torch's fused kernel. Equal to the others to rounding.

    What a parameter's state holds is one tensor, `momentum_buffer`, which is v. A state_dict of torch.optim.SGD loads;
    the form is "outside" afterwards, for its velocities are of that form.
    A parameter whose `.grad` is None is left alone, whatever the decay and the momentum. Sparse gradients train as in
    torch, without decay. RecipeError for an option that is wrong; ModelError for complex parameters with an L1 decay,
    and for a sparse gradient that meets a decay or the fused kernel.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor | None = None,
        *,
        momentum: float = 0.0,
        dampening: float | str = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        weight_decay_l1: float = 0.0,
        lr_decay: float = 0.0,
        momentum_form: str = "outside",
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        if lr is None:
            params, lr = _rated(params)
        options = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "weight_decay_l1": weight_decay_l1,
            "lr_decay": lr_decay,
            "momentum_form": momentum_form,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
            "steps": 0,
        }
        super().__init__(params, _checked(options, "SGD"))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Takes in a group, its options looked at first. RecipeError for one that is wrong, or nearly a known one;
        ModelError for complex parameters with an L1 decay."""
        where = f"SGD, group {param_group.get('name', len(self.param_groups))}"
        for name in param_group:
            # Strict, for a group may hold anything beside: the schedulers of torch leave max_momentum in it.
            if name not in self.defaults and (near := get_close_matches(name, self.defaults, cutoff=0.85)):
                raise RecipeError(f"{where}: there is no option '{name}'; what comes near it: {listed(near)}.")
        options = {name: param_group.get(name, default) for name, default in self.defaults.items()}
        super().add_param_group({**param_group, **_checked(options, where)})
        added = self.param_groups[-1]  # whose parameters are a list now, whatever was given
        if added["weight_decay_l1"] and any(parameter.is_complex() for parameter in added["params"]):
            self.param_groups.pop()
            raise ModelError(f"{where}: weight_decay_l1 is not for complex parameters. Put them in a group without it.")

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # of a state_dict that torch.optim.SGD wrote
            group.setdefault("momentum_form", "outside")  # what its velocities are, whatever was asked for here
            for name, default in self.defaults.items():
                group.setdefault(name, default)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes a step; with a `closure`, after calling it with gradients enabled. Returns what it gave, else None."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.set_grad_enabled(False):  # half of what no_grad() costs, which shows in a small model's step
            for group in self.param_groups:
                self._advance(group)
        return loss

    def _advance(self, group: dict[str, Any]) -> None:
        rate = _decayed(group) if group["lr_decay"] else group["lr"]
        params: list[Tensor] = []
        grads: list[Tensor] = []
        sparse = False
        for parameter in group["params"]:
            if (gradient := parameter.grad) is not None:
                params.append(parameter)
                grads.append(gradient)
                sparse = sparse or gradient.is_sparse
        if not params:
            return
        if sparse:
            _check_sparse(group)
        momentum, dampening, weight_decay = group["momentum"], group["dampening"], group["weight_decay"]
        if group["weight_decay_l1"]:
            grads, weight_decay = _with_decays(group, params, grads), 0.0
        if group["momentum_form"] == "inside":
            # torch's own velocity, run at rate 1 on gradients and a decay that are already multiplied by the rate.
            factor, rate = float(rate), 1.0
            grads, weight_decay = list(torch._foreach_mul(grads, factor)), weight_decay * factor
        elif group["nesterov"] and _writes_into_gradients(group, params):
            grads = [gradient.clone() for gradient in grads]
        states = [self.state[parameter] for parameter in params] if momentum else []
        buffers = [state.get("momentum_buffer") for state in states]
        sgd(
            params,
            grads,
            buffers,
            has_sparse_grad=sparse,
            foreach=group["foreach"],
            # torch's kernel takes velocities for all or for none: where a parameter got its first gradient late, no.
            fused=group["fused"] and len({buffer is None for buffer in buffers}) < 2,
            weight_decay=weight_decay,
            momentum=momentum,
            lr=rate,
            dampening=momentum if dampening == "momentum" else dampening,
            nesterov=group["nesterov"],
            maximize=group["maximize"],
        )
        for state, buffer in zip(states, buffers, strict=True):
            state["momentum_buffer"] = buffer


def _decayed(group: dict[str, Any]) -> Any:
    """The rate of the step that begins, which is counted."""
    steps = group["steps"]
    group["steps"] = steps + 1
    return group["lr"] / (1 + steps * group["lr_decay"])


def _by_foreach(group: Mapping[str, Any], params: list[Tensor]) -> bool:
    """Whether torch will step over all tensors at once: where it is told to, and by default off the CPU."""
    return group["foreach"] or (group["foreach"] is None and not group["fused"] and not params[0].is_cpu)


def _writes_into_gradients(group: Mapping[str, Any], params: list[Tensor]) -> bool:
    """Whether torch would add Nesterov's velocity into `.grad` itself: that way does, unless it is a copy by then."""
    copied = group["weight_decay_l1"] or group["weight_decay"] or group["maximize"]
    return _by_foreach(group, params) and not copied


def _with_decays(group: Mapping[str, Any], params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
    """d in new tensors. To maximise, torch's rule turns them round, so the decays go in the other way."""
    turn = -1 if group["maximize"] else 1
    l1, l2 = turn * group["weight_decay_l1"], turn * group["weight_decay"]
    if _by_foreach(group, params):
        decayed = list(torch._foreach_add(grads, torch._foreach_sign(params), alpha=l1))
    else:  # each sum into its sign's memory: on the CPU, fresh memory for large tensors costs more than the sums
        signs = (parameter.sign() for parameter in params)
        decayed = [torch.add(g, sign, alpha=l1, out=sign) for g, sign in zip(grads, signs, strict=True)]
    if l2:
        torch._foreach_add_(decayed, params, alpha=l2)
    return decayed


def _check_sparse(group: Mapping[str, Any]) -> None:
    clash = [name for name in ("weight_decay", "weight_decay_l1", "fused") if group[name]]
    if clash:
        raise ModelError(
            f"SGD: a gradient is sparse, and {listed(clash)} can't be used with it. Put the parameters of layers made "
            "with sparse=True into a group of their own without that, or make them with sparse=False."
        )


def _rated(params: ParamsT) -> tuple[list[Any], Any]:
    """`(groups, a rate)` of groups that have each its own. RecipeError for what has none: there is no default."""
    groups: list[Any] = list(params)
    if not groups or not all(isinstance(group, dict) and "lr" in group for group in groups):
        raise RecipeError("SGD: say at which rate, as in lr=0.1; or give each group its own.")
    return groups, groups[0]["lr"]


def _checked(options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The options with each number a float. RecipeError names the first that is wrong, alone or beside another."""
    checked = dict(options)
    for name in ("momentum", "weight_decay", "weight_decay_l1", "lr_decay"):
        checked[name] = _number(options[name], f"{where}: {name}")
    if not isinstance(options["lr"], Tensor):
        checked["lr"] = _number(options["lr"], f"{where}: lr")
    elif not _is_rate(options["lr"]):
        raise RecipeError(f"{where}: lr={options['lr']!r} is not a tensor of one finite number of at least 0.")
    if options["dampening"] != "momentum":
        checked["dampening"] = _number(options["dampening"], f"{where}: dampening", 1.0, ", nor 'momentum'")
    for name, words in (("nesterov", ""), ("maximize", ""), ("foreach", " nor None"), ("fused", " nor None")):
        if not isinstance(options[name], bool) and not (words and options[name] is None):
            raise RecipeError(f"{where}: {name}={options[name]!r} is neither True nor False{words}.")
    if options["momentum_form"] not in _FORMS:
        hint = nearest(str(options["momentum_form"]), _FORMS)
        raise RecipeError(f"{where}: momentum_form={options['momentum_form']!r}; there are {listed(_FORMS)}.{hint}")
    if not isinstance(options["steps"], int) or options["steps"] < 0:
        raise RecipeError(f"{where}: steps={options['steps']!r} is not a whole number of at least 0.")
    if options["nesterov"] and not checked["momentum"]:
        raise RecipeError(f"{where}: nesterov needs a momentum, for instance momentum=0.9. Or leave nesterov out.")
    if options["nesterov"] and checked["dampening"]:
        raise RecipeError(f"{where}: nesterov goes without dampening; dampening={options['dampening']!r} was given.")
    if options["foreach"] and options["fused"]:
        raise RecipeError(f"{where}: foreach and fused are two ways of the same step. Leave one of them out.")
    return checked


def _number(value: Any, what: str, most: float = math.inf, nor: str = "") -> float:
    """A float from 0 to `most`, finite. Booleans, strings and tensors are no numbers."""
    number = as_number(value)
    if not 0 <= number <= most:
        span = "of at least 0" if most == math.inf else f"from 0 to {most:g}"
        raise RecipeError(f"{what}={value!r} is not a finite number {span}{nor}.")
    return number


def _is_rate(value: Tensor) -> bool:
    real = value.numel() == 1 and value.dtype != torch.bool and not value.is_complex()
    return real and 0 <= float(value) < math.inf
