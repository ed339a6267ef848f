"""An optimizer's step and zero_grad without what torch wraps around them, where nobody listens to that.

Around each step torch opens a label for its profiler, asks for hooks and tells Dynamo to break its graph: more time
than a small net's whole update. The numbers are those of the optimizer's own code either way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim import optimizer as torch_code

from gradstep.optim import fused

_WRAPPERS = torch_code.__file__  # what torch wraps is written there; a wrapper of anybody else's stays


def step(optimizer: Optimizer) -> None:
    """`optimizer.step()`. Hooks, a profiler that runs, and a step that was put on the object are as ever."""
    own, without_grad = _unwrapped(type(optimizer).step)
    if own is None or _is_watched(optimizer):
        optimizer.step()
    elif without_grad:
        with torch.set_grad_enabled(False):  # half of what no_grad() costs
            if not fused.step(optimizer):
                own(optimizer)
    else:
        own(optimizer)


def zero_grad(optimizer: Optimizer) -> None:
    """`optimizer.zero_grad()`: every gradient None, unless the optimizer has a way of its own."""
    if type(optimizer).zero_grad is not Optimizer.zero_grad or "zero_grad" in vars(optimizer):
        optimizer.zero_grad()
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def _is_watched(optimizer: Optimizer) -> bool:
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or torch_code._global_optimizer_pre_hooks
        or torch_code._global_optimizer_post_hooks
        or "step" in vars(optimizer)
        or optimizer.defaults.get("differentiable")
        or torch._C._autograd._profiler_enabled()
    )


@functools.lru_cache(maxsize=64)
def _unwrapped(step: Callable[..., Any]) -> tuple[Callable[..., Any] | None, bool]:
    """`(the step that a class wrote, whether torch runs it without gradients)`; None where torch wrapped nothing."""
    own, without_grad = step, False
    while hasattr(own, "__wrapped__") and own.__code__.co_filename == _WRAPPERS:
        without_grad = without_grad or own.__code__.co_name == "_use_grad"
        own = own.__wrapped__
    return (None if own is step else own), without_grad
