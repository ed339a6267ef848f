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

Call = tuple[str, int]  # a module's name, and its how-manieth call in a forward
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
        own = [(name, m) for name, m in model.named_modules() if isinstance(m, _BatchNorm)]
        self._modules = [(name, m) for name, m in own if type(m).forward is _BatchNorm.forward]
        self._foreign = [(name, m) for name, m in own if type(m).forward is not _BatchNorm.forward]
        self._forwards = {name: functools.partial(self._forward, name, module) for name, module in self._modules}
        self._moments: dict[Call, list[Moments]] = {}
        self._calls: dict[str, int] = {}
        self._count = 0
        self.counting = True  # not in a forward that is repeated: its samples have been counted
        self.seen: dict[Call, Tensor] | None = None  # what goes into each call, while a model is looked at

    def piece(self, count: int) -> None:
        """The forward that comes is that of so many samples."""
        self._count = count
        self._calls.clear()

    def refuse(self) -> None:
        """ModelError for norms whose forward is not torch's BatchNorm's: what else they do would be lost."""
        for name, module in self._foreign:
            if _by_batch(module):
                raise ModelError(
                    f"stat_group: '{name}' is a {type(module).__name__}, whose forward is its own; groups are for "
                    "torch's BatchNorm1d, 2d and 3d. Take one of these and put the rest into a module of its own."
                )

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self._modules + self._foreign}

    def hold(self, samples: int, forward_of_one: Callable[[], Any]) -> None:
        """ModelError, by trying, where the last group of a batch would be one sample and a norm can't take that."""
        if self._modules and samples % self.group == 1 % self.group:
            forward_of_one()

    @contextmanager
    def batch(self, samples: int) -> Iterator[None]:
        """Inside, statistics are those of groups; at the end, running statistics are committed if all went well."""
        self._moments, self.counting = {}, True
        self.piece(samples)
        hung = [(name, module) for name, module in self._modules if "forward" not in vars(module)]
        try:
            for name, module in hung:
                vars(module)["forward"] = self._forwards[name]
            yield
            modules = dict(self._modules)
            for (name, _), moments in self._moments.items():  # a norm that is called twice commits twice, as torch's
                _commit(modules[name], moments)
        finally:
            for _, module in hung:
                del vars(module)["forward"]

    def _forward(self, name: str, module: _BatchNorm, inputs: Tensor) -> Tensor:
        if not _by_batch(module):
            return type(module).forward(module, inputs)
        module._check_input_dim(inputs)
        self._calls[name] = self._calls.get(name, 0) + 1
        call = (name, self._calls[name])
        if self.seen is not None:
            self.seen[call] = inputs.detach().clone()
        rows = len(inputs) // self._count  # of each sample: frames or tokens, say
        if rows == 0 or len(inputs) != rows * self._count:
            raise ModelError(
                f"stat_group: '{name}' got {len(inputs)} rows for {self._count} samples, so a group's rows can't be "
                "told."
            )
        outputs = [self._normalised(call, module, group) for group in inputs.split(self.group * rows)]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _normalised(self, call: Call, module: _BatchNorm, group: Tensor) -> Tensor:
        """torch's own kernel; with a momentum of 1 it hands out the moments that it computes anyway."""
        values = group.numel() // group.size(1)
        if values == 1:
            raise ModelError(
                f"stat_group: a group of one sample gives '{call[0]}' one value per channel, and no variance. Take a "
                "stat_group that does not leave one sample over, or drop_last=True."
            )
        dtype = group.dtype if module.running_mean is None else module.running_mean.dtype
        mean = torch.zeros(group.size(1), dtype=dtype, device=group.device)
        variance = torch.ones_like(mean)
        outputs = F.batch_norm(group, mean, variance, module.weight, module.bias, True, 1.0, module.eps)
        if self.counting and module.running_mean is not None and module.training:
            self._moments.setdefault(call, []).append((values, mean, variance * (values - 1)))
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
