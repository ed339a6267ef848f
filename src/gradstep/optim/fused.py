"""A fused optimizer's step, straight into torch's kernel.

torch sorts the tensors of each step by device and dtype, and asks each parameter's slots what they are: more time than
the kernel takes for a small net. Here what is as it was in every step before is only held against that; for the rest
(the first step, a rate in a tensor, several dtypes) torch's own code is there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

Call = Callable[[], None]


def step(optimizer: Optimizer) -> bool:
    """Takes the step, the same in every bit as `optimizer.step()`; False where torch's own code must, and then nothing
    is done. Gradients must be off."""
    prepare = _PREPARE.get(type(optimizer))
    if prepare is None or "grad_scale" in vars(optimizer):  # a GradScaler has its say
        return False
    calls: list[Call] = []
    for group in optimizer.param_groups:
        if not group["fused"] or not _plain(group):
            return False
        params = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not params:
            continue
        if (call := prepare(optimizer.state, group, params)) is None:
            return False
        calls.append(call)
    for call in calls:
        call()
    return True


def _plain(group: dict[str, Any]) -> bool:
    """Whether its rate is a number of Python's, and nobody differentiates through the step."""
    return type(group["lr"]) in (float, int) and not group["differentiable"]


def _alike(params: list[Tensor], grads: list[Tensor]) -> bool:
    """Whether one call of a kernel takes all: dense, of one device and dtype."""
    device, dtype = params[0].get_device(), params[0].dtype
    for tensor in (*params, *grads):
        if tensor.dtype is not dtype or tensor.is_sparse or tensor.get_device() != device:
            return False
    return dtype.is_floating_point


def _sgd(state: Any, group: dict[str, Any], params: list[Tensor]) -> Call | None:
    grads: list[Any] = [parameter.grad for parameter in params]
    momentum = group["momentum"]
    velocities = [state.get(p, _NOTHING).get("momentum_buffer") for p in params] if momentum else []
    if any(velocity is None for velocity in velocities) or not _alike(params, grads):
        return None

    def take() -> None:
        torch._fused_sgd_(
            params,
            grads,
            velocities,
            weight_decay=group["weight_decay"],
            momentum=momentum,
            lr=group["lr"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            is_first_step=False,
        )

    return take


def _adam(state: Any, group: dict[str, Any], params: list[Tensor]) -> Call | None:
    grads: list[Any] = [parameter.grad for parameter in params]
    slots: list[Any] = [state.get(parameter) for parameter in params]
    beta1, beta2 = group["betas"]
    if not all(slots) or isinstance(beta1, Tensor) or isinstance(beta2, Tensor) or not _alike(params, grads):
        return None
    kernel = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_

    def take() -> None:
        steps = [slot["step"] for slot in slots]
        torch._foreach_add_(steps, 1)  # first: the kernel reads them
        kernel(
            params,
            grads,
            [slot["exp_avg"] for slot in slots],
            [slot["exp_avg_sq"] for slot in slots],
            [slot["max_exp_avg_sq"] for slot in slots] if group["amsgrad"] else [],
            steps,
            amsgrad=group["amsgrad"],
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )

    return take


_NOTHING: dict[str, Any] = {}
_PREPARE: dict[type[Optimizer], Callable[[Any, dict[str, Any], list[Tensor]], Call | None]] = {
    torch.optim.SGD: _sgd,
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adam,
}
