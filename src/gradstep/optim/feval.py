"""Calling the user's `feval(x) -> (f, df)`, and noticing one that does not look at x."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gradstep import tree
from gradstep.errors import ModelError
from gradstep.optim.flat import check_sharing, mend_gradients

Feval = Callable[[Tensor], tuple[Any, Tensor]]


def check_vector(params: Tensor) -> None:
    """Raises ModelError unless `params` is a flat floating-point vector, not empty, and its model's if it was one's."""
    if not isinstance(params, Tensor):
        raise ModelError(
            f"params is a {type(params).__name__}; it must be one flat tensor. "
            "Write `params, grads = flatten_parameters(model)` before the loop."
        )
    if params.dim() != 1 or not params.is_floating_point() or not params.is_contiguous():
        raise ModelError(
            f"params is {tree.describe(params)}; it must be one contiguous 1-D tensor of floating-point numbers."
        )
    if not params.numel():
        raise ModelError("params has no elements: there is nothing to optimise.")
    check_sharing(params)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """a·b, summed in float32 or wider: squares leave the range of 16 bits early."""
    wide = torch.promote_types(a.dtype, torch.float32)
    return torch.dot(a.to(wide), b.to(wide))


def evaluate(feval: Feval, params: Tensor) -> tuple[float, Tensor]:
    """`(f, df)` at `params`: a number, and a tensor like `params` that belongs to the caller of the method.

    Gradients are recorded in feval whatever mode the caller is in. Afterwards the `.grad` of flattened parameters are
    views of one vector again. Raises ModelError for results of other kinds.
    """
    with torch.enable_grad():
        result = feval(params)
    mend_gradients(params)
    if not isinstance(result, tuple) or len(result) != 2:
        raise ModelError(f"feval returned a {type(result).__name__}; it must return the pair (f, df).")
    f, df = result
    if not isinstance(df, Tensor) or df.shape != params.shape or df.dtype != params.dtype:
        what = tree.describe(df)
        raise ModelError(
            f"feval's gradient is {what}, and params is {tree.describe(params)}. "
            "Return the vector `grads` of flatten_parameters(model), or one like params."
        )
    if df.data_ptr() == params.data_ptr():
        raise ModelError("feval returned the parameters as their gradient. Return (f, grads).")
    return float(f.detach() if isinstance(f, Tensor) else f), df.detach()


class Evaluations:
    """Evaluations of one feval at a vector that moves in place, within one call of a method.

    `values` are all f in order; `at` and `df` are copies of the last place and gradient.
    """

    def __init__(self, feval: Feval, params: Tensor) -> None:
        self._feval, self._params = feval, params
        self.values: list[float] = []
        self.at = self.df = params.detach()

    def __call__(self) -> tuple[float, Tensor]:
        """`(f, df)` where params is now. Raises ModelError when it is plain that feval takes no notice of params."""
        f, df = evaluate(self._feval, self._params)
        at = self._params.detach().clone()
        if self.values and f == self.values[-1] and torch.equal(df, self.df) and self._must_have_changed(at, f):
            raise ModelError(
                "feval returned the same f and the same gradient at two places where they can't both be the same: it "
                "does not look at x. lbfgs and cg evaluate several times per call, so run the model inside:\n"
                "    def feval(x):\n"
                "        model.zero_grad()\n"
                "        loss = criterion(model(inputs), targets)\n"
                "        loss.backward()\n"
                "        return loss.item(), grads\n"
                "Where x may be another vector than params, begin with `if x is not params: params.copy_(x)`."
            )
        self.values.append(f)
        self.at, self.df = at, df.clone()
        return f, self.df

    def _must_have_changed(self, at: Tensor, f: float) -> bool:
        """Whether the gradient times the way gone is more than rounding can hide.

        The same gradient at both ends says that f changed by about that much. What rounding can hide is measured by f
        and by the terms df·x, which hold the error that x itself has from being rounded.
        """
        change = dot(self.df, at - self.at).abs()
        scale = abs(f) + dot(self.df.abs(), torch.maximum(at.abs(), self.at.abs()))
        return bool(change > 100 * torch.finfo(at.dtype).eps * scale)
