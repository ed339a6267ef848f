"""BatchNorm over declared groups: statistics are those of each g consecutive samples of the batch, whatever is in
memory.

That is a mathematical choice, known as ghost batch normalisation (Hoffer, Hubara, Soudry 2017, "Train longer,
generalize better", algorithm 1), and micro-batches are multiples of it. The running statistics are committed once for
each batch, from the moments of all its groups pooled (Chan, Golub, LeVeque 1983, "Algorithms for computing the sample
variance", equation 2.1), unbiased, as torch commits those of a whole batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from gradstep.errors import ModelError

Moments = tuple[int, Tensor, Tensor]  # how many values a channel has, their mean, their sum of squared deviations


def coupled(model: nn.Module) -> list[str]:
    """The names of the model's modules that would normalise over the batch now."""
    return [name for name, module in model.named_modules() if isinstance(module, _BatchNorm) and _by_batch(module)]


def _by_batch(module: _BatchNorm) -> bool:
    return module.training or module.running_mean is None


class NormGroups:
    """The BatchNorm modules of one model, for one `Update` with a `stat_group`."""

    def __init__(self, model: nn.Module, group: int) -> None:
        self.group = group
        self._modules = [(name, m) for name, m in model.named_modules() if isinstance(m, _BatchNorm)]
        for name, module in self._modules:
            if isinstance(module, nn.SyncBatchNorm):
                raise ModelError(
                    f"stat_group: '{name}' is a SyncBatchNorm, which has groups of its own: the processes."
                )
        self._forwards = {name: functools.partial(self._forward, name, module) for name, module in self._modules}
        self._moments: dict[str, list[Moments]] = {}
        self.counting = True  # not in a forward that is repeated: its samples have been counted

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self._modules}

    def hold(self, samples: int, forward_of_one: Callable[[], Any]) -> None:
        """ModelError, by trying, where the last group of a batch would be one sample and a norm can't take that."""
        if self._modules and samples % self.group == 1 % self.group:
            forward_of_one()

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Inside, statistics are those of groups; at the end, running statistics are committed if all went well."""
        self._moments, self.counting = {}, True
        hung = [(name, module) for name, module in self._modules if "forward" not in vars(module)]
        try:
            for name, module in hung:
                vars(module)["forward"] = self._forwards[name]
            yield
            for name, module in self._modules:
                if name in self._moments:
                    _commit(module, self._moments[name])
        finally:
            for _, module in hung:
                del vars(module)["forward"]

    def _forward(self, name: str, module: _BatchNorm, inputs: Tensor) -> Tensor:
        if not _by_batch(module):
            return type(module).forward(module, inputs)
        module._check_input_dim(inputs)
        outputs = [self._normalised(name, module, group) for group in inputs.split(self.group)]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _normalised(self, name: str, module: _BatchNorm, group: Tensor) -> Tensor:
        """torch's own kernel; with a momentum of 1 it hands out the moments that it computes anyway."""
        values = group.numel() // group.size(1)
        if values == 1:
            raise ModelError(
                f"stat_group: a group of one sample gives '{name}' one value per channel, and no variance. Take a "
                "stat_group that does not leave one sample over, or drop_last=True."
            )
        dtype = group.dtype if module.running_mean is None else module.running_mean.dtype
        mean = torch.zeros(group.size(1), dtype=dtype, device=group.device)
        variance = torch.ones_like(mean)
        outputs = F.batch_norm(group, mean, variance, module.weight, module.bias, True, 1.0, module.eps)
        if self.counting and module.running_mean is not None and module.training:
            self._moments.setdefault(name, []).append((values, mean, variance * (values - 1)))
        return outputs


def pooled(moments: list[Moments]) -> Moments:
    """The moments of all values together."""
    total, mean, deviations = moments[0]
    for values, other_mean, other in moments[1:]:
        away = other_mean - mean
        deviations = deviations + other + away.square() * (total * values / (total + values))
        mean = mean + away * (values / (total + values))
        total += values
    return total, mean, deviations


def _commit(module: Any, moments: list[Moments]) -> None:
    values, mean, deviations = pooled(moments)
    with torch.no_grad():
        module.num_batches_tracked.add_(1)
        # torch reads the number here too when there is no momentum: a cumulative average waits for the device.
        share = 1.0 / float(module.num_batches_tracked) if module.momentum is None else module.momentum
        module.running_mean.mul_(1 - share).add_(mean, alpha=share)
        module.running_var.mul_(1 - share).add_(deviations / (values - 1), alpha=share)
