"""What no trial can be made of without the user noticing: copies would not be copies, or would be heard of."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules import module as torch_modules
from torch.optim import optimizer as torch_optimizers

from gradstep.data import Feed

if TYPE_CHECKING:
    from gradstep.setup import Training

FEWEST = 2000  # steps: a shorter run is over before anything could be found out in 2 % of it
_CONSTANT = (
    *(int, float, complex, str, bytes, bool, type(None), type, ModuleType, BuiltinFunctionType),
    *(torch.dtype, torch.device, torch.Size, torch.memory_format),
)


def is_short(training: Training) -> bool:
    """Whether a run is too short for anything to be found out."""
    return training.clock.total < FEWEST


def why_not(training: Training) -> str | None:
    """Why nothing can be found out by measuring copies of this training; None where all is well."""
    return f"the run has fewer than {FEWEST:,} steps" if is_short(training) else why_no_copies(training)


def why_no_copies(training: Training) -> str | None:
    """Why no copies of this training can take its steps."""
    state, update = training.state, training.update
    if not isinstance(training.feed, Feed):
        return "the batches can't be asked for twice"
    if (heard := next(_hooks(training), None)) is not None:
        return f"{heard} has hooks, which would be called for steps that are none"
    for name, each in (("criterion", state.criterion), ("forward", update.forward), ("unpack", update.unpack)):
        if not isinstance(each, nn.Module) and (held := _held(each)) is not None:
            return f"{name} holds {held}, which trials might change"
    return None


def _hooks(training: Training) -> Iterator[str]:
    """Who would be told of a step. Copies lose the hooks of parameters and optimizers: theirs would be other steps."""
    state = training.state
    if torch_modules._global_forward_hooks or torch_modules._global_forward_pre_hooks:
        yield "torch"
    for root in (state.model, state.criterion):
        for name, module in root.named_modules() if isinstance(root, nn.Module) else ():
            own = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
            if any(own):
                yield f"'{name or type(module).__name__}'"
        for name, parameter in root.named_parameters() if isinstance(root, nn.Module) else ():
            if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
                yield f"'{name}'"
    optimizer = state.optimizer
    own_hooks = optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks
    everyone_s = torch_optimizers._global_optimizer_pre_hooks, torch_optimizers._global_optimizer_post_hooks
    if any(own_hooks) or any(everyone_s) or "step" in vars(optimizer):
        yield "the optimizer"


def _held(function: Any) -> str | None:
    """What a function carries with it beside constants, and so may change: a model, a counter, a queue."""
    if function is None or isinstance(function, _CONSTANT):
        return None
    if isinstance(function, functools.partial):
        parts = [function.func, *function.args, *function.keywords.values()]
    elif isinstance(function, FunctionType):
        parts = [cell.cell_contents for cell in function.__closure__ or ()] + list(function.__defaults__ or ())
    else:
        return f"a {type(function).__name__}"
    return next((held for part in parts if (held := _held(part)) is not None), None)
