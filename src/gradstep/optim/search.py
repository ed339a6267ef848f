"""Functional optimizers that search along lines: lbfgs, whose work torch does, and nonlinear conjugate gradients.

`method(feval, params, config=None, state=None) -> (params, fs)`, as in `gradstep.optim.functional`; but one call is
`max_iter` iterations, and several evaluations, of one function. `fs` is f at every evaluation, the first where the
call began; the last is f where params is now. feval is always called with `params`, moved in place; an error in it
leaves params where it was raised.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS

from gradstep.errors import RecipeError
from gradstep.optim.feval import Evaluations, Feval, check_vector, dot
from gradstep.optim.line_search import Point, Wolfe, strong_wolfe
from gradstep.optim.settings import Settings, check_slot

Numbers = MutableMapping[str, Any]
Step = tuple[Tensor, list[float]]

_LBFGS = Settings(
    "lbfgs",
    {
        "lr": 1.0, "max_iter": 20, "max_eval": None, "tolerance_grad": 1e-5, "tolerance_change": 1e-9,
        "history_size": 100, "line_search_fn": None,
    },
    ("func_evals", "n_iter", "d", "t", "old_dirs", "old_stps", "ro", "H_diag", "prev_flat_grad", "prev_loss"),
)  # fmt: skip
_CG = Settings(
    "cg",
    {"max_iter": 20, "max_eval": None, "tolerance_grad": 1e-7, "c1": 0.01, "c2": 0.1},
    ("func_evals", "n_iter", "direction", "gradient", "slope", "t"),
    {"rho": "c1", "sig": "c2"},
)
_TRIALS = 20  # evaluations in one line search, at most


@torch.no_grad()
def lbfgs(feval: Feval, params: Tensor, config: Numbers | None = None, state: Numbers | None = None) -> Step:
    """Limited-memory BFGS (Nocedal and Wright 2006, algorithm 7.5; torch.optim.LBFGS).

    lr 1, max_iter 20, max_eval 1.25·max_iter, tolerance_grad 1e-5 (on the largest element of the gradient),
    tolerance_change 1e-9 (of f, and of the largest step), history_size 100; line_search_fn None for steps of length
    lr, or "strong_wolfe".

    The state holds torch's slots, numbers, tensors and lists of tensors: calls that share it continue as one
    torch.optim.LBFGS would. torch does not evaluate where it ends; one more evaluation here does, if need be.

    Raises RecipeError for options that can't be, ModelError where feval, params and state don't go together or feval
    does not look at x.
    """
    check_vector(params)
    options, memory = _LBFGS.read(config, state)
    _check_counts(_LBFGS, options)
    if options["line_search_fn"] not in (None, "strong_wolfe"):
        raise RecipeError(f"lbfgs: line_search_fn = {options['line_search_fn']!r}; it is None or 'strong_wolfe'.")
    slots = {name: memory[name] for name in _LBFGS.slots if name in memory}
    for name in ("d", "prev_flat_grad", "old_dirs", "old_stps"):
        kept = slots.get(name, [])
        for value in kept if isinstance(kept, list) else [kept]:
            check_slot("lbfgs", name, value, params)
    parameter = nn.Parameter(params.detach())  # the same memory
    optimizer = LBFGS([parameter], **options)
    optimizer.state[parameter].update(slots)
    evaluations = Evaluations(feval, params)

    def closure() -> float:
        f, parameter.grad = evaluations()
        return f

    optimizer.step(closure)
    kept = optimizer.state[parameter]
    memory.update({name: kept[name] for name in _LBFGS.slots if name in kept})
    if not torch.equal(evaluations.at, params):
        evaluations()
    return params, evaluations.values


@torch.no_grad()
def cg(feval: Feval, params: Tensor, config: Numbers | None = None, state: Numbers | None = None) -> Step:
    """Nonlinear conjugate gradients, Polak and Ribière's with restarts: PR+ (Nocedal and Wright 2006, eq. 5.45).

    Every step is one line search for the strong Wolfe conditions; Torch7's, Rasmussen's `minimize`, differs in how it
    interpolates. max_iter 20, max_eval 1.25·max_iter, tolerance_grad 1e-7 (on the largest element of the gradient);
    c1 0.01 and c2 0.1, the conditions' constants (Torch7: rho 0.01 and sig 0.5; PR+ wants c2 small).

    Calls that share a state continue as one call would, on one function. `fs` ends with f where params is now. In
    float16 its sums are float32's; where params round more coarsely than the trial steps, the line search stalls.
    Raises as `lbfgs` does.
    """
    check_vector(params)
    options, memory = _CG.read(config, state)
    _check_counts(_CG, options)
    c1, c2 = options["c1"], options["c2"]
    if not 0 < c1 < c2 < 1:
        raise RecipeError(f"cg: c1 = {c1} and c2 = {c2}, but the line search needs 0 < c1 < c2 < 1.")
    for name in {"direction", "gradient"} & set(memory):
        check_slot("cg", name, memory[name], params)
    most = options["max_eval"] or options["max_iter"] * 5 // 4
    evaluations = Evaluations(feval, params)

    f, gradient = evaluations()
    iterations = 0
    while iterations < options["max_iter"] and float(gradient.abs().max()) > options["tolerance_grad"]:
        left = min(_TRIALS, most - len(evaluations.values))
        if left < 1:
            break
        direction, slope = _direction(gradient, memory)
        start = Point(0.0, f, slope, gradient)
        line = _Line(evaluations, params, direction)
        point = strong_wolfe(line, Wolfe(start, c1, c2), _first_trial(gradient, slope, memory), left)
        line.go(point.t)
        iterations += 1
        if point.t == 0:
            if "direction" not in memory:
                break  # not even downhill: rounding hides what is left
            _forget(memory)
            continue
        memory.update(direction=direction, gradient=gradient, slope=slope, t=point.t)
        f, gradient = point.f, point.gradient
    memory["n_iter"] = memory.get("n_iter", 0) + iterations
    memory["func_evals"] = memory.get("func_evals", 0) + len(evaluations.values)
    return params, evaluations.values if evaluations.values[-1] == f else [*evaluations.values, f]


class _Line:
    """f along `direction` from where params is now. Moves params in place."""

    def __init__(self, evaluations: Evaluations, params: Tensor, direction: Tensor) -> None:
        self._evaluations, self._params, self._direction = evaluations, params, direction
        self._start = params.clone()

    def go(self, t: float) -> None:
        torch.add(self._start, self._direction, alpha=t, out=self._params)

    def __call__(self, t: float) -> Point:
        self.go(t)
        f, gradient = self._evaluations()
        return Point(t, f, float(dot(gradient, self._direction)), gradient)


def _direction(gradient: Tensor, memory: Numbers) -> tuple[Tensor, float]:
    """The next direction and the slope along it: downhill again where the conjugate one does not descend."""
    if "direction" in memory:
        before = memory["gradient"]
        beta = max(0.0, float(dot(gradient, gradient - before) / dot(before, before)))
        direction = torch.add(-gradient, memory["direction"], alpha=beta)
        slope = float(dot(gradient, direction))
        if slope < 0:
            return direction, slope
        _forget(memory)
    return -gradient, -float(dot(gradient, gradient))


def _first_trial(gradient: Tensor, slope: float, memory: Numbers) -> float:
    """The step that would change f, to first order, as the last one did (Nocedal and Wright 2006, section 3.5)."""
    if "t" not in memory:
        return min(1.0, 1.0 / float(dot(gradient, gradient.sign())))
    return float(memory["t"] * min(100.0, memory["slope"] / slope))


def _forget(memory: Numbers) -> None:
    for name in ("direction", "gradient", "slope", "t"):
        memory.pop(name, None)


def _check_counts(settings: Settings, options: Numbers) -> None:
    for name in ("max_iter", "max_eval", "history_size"):
        value = options.get(name)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise RecipeError(f"{settings.method}: {name} = {value!r} is not a count of 1 or more.")
