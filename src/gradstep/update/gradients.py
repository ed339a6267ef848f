""".grad while a batch is in the making: the pieces' sum is kept apart, and added only when it is whole.

So an error in the third micro-batch leaves what was there before the first. And where parameters are of 16 bits, the
sum is taken in float32 and rounded once, as one pass rounds once: 256 + 1 is 256 in bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType

import torch
from torch import Tensor, nn

from gradstep.errors import ModelError


class Gradients:
    """A context: inside, `.grad` of the modules' parameters starts from nothing; at its end, what came is added to
    what was.

    ModelError for hooks on parameters: they would fire for each micro-batch, on a part of the gradient.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        roots = list(modules)
        # Once each: a criterion may hold the model, or share a layer with it.
        self._own = list(dict.fromkeys(p for root in roots for p in root.parameters() if p.requires_grad))
        for parameter in self._own:
            if parameter._post_accumulate_grad_hooks or parameter._backward_hooks:
                _refuse(roots, parameter)
        self._narrow = [p for p in self._own if p.dtype in (torch.bfloat16, torch.float16)]
        self._sums: dict[nn.Parameter, Tensor] = {}
        self._before: list[Tensor | None] = []

    def __enter__(self) -> Gradients:
        self._before = [parameter.grad for parameter in self._own]
        for parameter in self._own:
            parameter.grad = None
        return self

    def fold(self) -> None:
        """After each micro-batch: takes the gradients of 16-bit parameters into their sums."""
        for parameter in self._narrow:
            if parameter.grad is None:
                continue
            if parameter in self._sums:
                self._sums[parameter] += parameter.grad
            else:
                self._sums[parameter] = parameter.grad.float()
            parameter.grad = None

    def finite(self) -> bool:
        """Whether what came is numbers. Waits for the device."""
        came = [*self._sums.values(), *(p.grad for p in self._own if p.grad is not None)]
        return all(bool(torch.isfinite(gradient).all()) for gradient in came)

    def __exit__(self, kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        self.fold()
        for parameter, before in zip(self._own, self._before, strict=True):
            if kind is not None:
                parameter.grad = before
                continue
            came = self._sums[parameter].to(parameter.dtype) if parameter in self._sums else parameter.grad
            if before is None:
                parameter.grad = came
            elif came is None:
                parameter.grad = before
            else:
                parameter.grad = before.add_(came.detach())  # in place: it may be a view of a flat vector


def _refuse(roots: list[nn.Module], parameter: nn.Parameter) -> None:
    name = next(name for root in roots for name, each in root.named_parameters() if each is parameter)
    what = (
        "an optimizer that steps in the backward" if parameter._post_accumulate_grad_hooks else "a clip or a rescaling"
    )
    raise ModelError(
        f"the parameter '{name}' has a hook on its gradient ({what}, perhaps), which would fire for each micro-batch "
        "on a part of the gradient. Remove it and work on .grad after the whole batch; or leave micro_batch out."
    )
