"""Holding a gradient against finite differences."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from gradstep.errors import ModelError, RecipeError
from gradstep.optim.feval import Feval, check_vector, evaluate
from gradstep.optim.settings import as_number


@torch.no_grad()
def checkgrad(feval: Feval, params: Tensor, eps: float | None = None) -> tuple[float, Tensor, Tensor]:
    """`(difference, analytic, numeric)`: the gradient that feval returns against central differences of its f.

    `difference` is ‖a − n‖/‖a + n‖, as Torch7's `optim.checkgrad` has it: near 0 for a right gradient, and 0 where
    both are zero. Each element is moved up and down by eps·max(1, |x|), so feval is called 2·n + 2 times; eps is the
    cube root of the dtype's precision unless given, where the errors of rounding and of the formula meet (Nocedal and
    Wright 2006, section 8.1). `params` is put back bit for bit, also after an error.

    In float64 a right gradient of a smooth function gives about 1e-9. In float32 and less the differences themselves
    are right to a few digits only, and a warning says so. Raises RecipeError for an eps that is not above 0,
    ModelError for a feval whose f is not finite or that gives two values at one place (dropout, another batch).
    """
    check_vector(params)
    precision = torch.finfo(params.dtype).eps
    if eps is not None and not 0 < as_number(eps) < 1:
        raise RecipeError(f"checkgrad: eps = {eps!r} is not a number between 0 and 1.")
    step = precision ** (1 / 3) if eps is None else as_number(eps)
    if params.dtype != torch.float64:
        name = str(params.dtype).removeprefix("torch.")
        warnings.warn(
            f"checkgrad in {name}: differences are right to about {precision ** (2 / 3):.0e} here. "
            "For a sharp answer flatten model.double(), and give it inputs in float64.",
            stacklevel=3,  # past torch's no_grad, to the caller
        )
    f, df = evaluate(feval, params)
    if not math.isfinite(f):
        raise ModelError(f"feval gave f = {f}, which is not finite, so there are no differences. Begin elsewhere.")
    analytic = df.clone()
    again, _ = evaluate(feval, params)
    if f != again:
        raise ModelError(
            f"feval gave {f} and then {again} at one place, so differences of it say nothing. "
            "Use one batch, and model.eval() where there is dropout."
        )
    numeric = _central_differences(feval, params, step)
    apart, together = float((analytic - numeric).norm()), float((analytic + numeric).norm())
    if apart == 0:
        return 0.0, analytic, numeric
    return (apart / together if together else float("inf")), analytic, numeric


def _central_differences(feval: Feval, params: Tensor, step: float) -> Tensor:
    start, numeric = params.clone(), torch.zeros_like(params)
    try:
        for place, value in enumerate(start.tolist()):
            h = step * max(1.0, abs(value))
            params[place] = value + h
            up, above = float(params[place]), evaluate(feval, params)[0]
            params[place] = value - h
            down, below = float(params[place]), evaluate(feval, params)[0]
            params[place] = value
            numeric[place] = (above - below) / (up - down)  # the way gone, after rounding
    finally:
        params.copy_(start)
    return numeric
