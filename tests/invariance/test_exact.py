"""A batch means the same whatever the memory: gradients, buffers, losses and streams, against one pass in float64."""

from __future__ import annotations

import dataclasses
import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradstep import tree
from gradstep.update import Update
from tests.exact_cases import BATCH, CASES, Case

NEAR = 1e-12  # the contract's, relative to the whole gradient
PARTITIONS: dict[str, tuple[int, ...]] = {
    "whole": (10,),
    "one by one": (1,) * 10,
    "threes": (3, 3, 3, 1),
    "ragged": (4, 4, 2),
    "random": (2, 5, 1, 2),
}


def net(head: nn.Module, dropout: bool = True) -> nn.Module:
    """Two dropout layers between tied weights, and a norm that looks at one sample."""
    torch.manual_seed(3)
    tied = nn.Linear(8, 8)
    between = [nn.Dropout(0.4), nn.Dropout(0.2)] if dropout else [nn.Identity(), nn.Identity()]
    return nn.Sequential(
        nn.Linear(6, 8),
        nn.Tanh(),
        between[0],
        tied,
        nn.LayerNorm(8),
        between[1],
        tied,
        nn.Tanh(),
        nn.Linear(8, 4),
        head,
    )


def everything(model: nn.Module, criterion: Any, outcome: Any) -> tuple[Tensor, list[Tensor], list[Any]]:
    """`(all gradients in one vector, what else must be near, what must be the same)`."""
    modules = [each for each in (model, criterion) if isinstance(each, nn.Module)]
    parameters = [p for module in modules for p in module.parameters()]
    gradient = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    near = [outcome.loss, *outcome.terms.values(), *outcome.units.values(), *tree.tensors(outcome.outputs)]
    near += [buffer for module in modules for buffer in module.buffers()]
    streams = [torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())]
    return gradient, near, [[p.grad is None for p in parameters], list(outcome.terms), *streams]


def taken(
    case: Case, partition: tuple[int, ...] | None, method: str = "auto", dropout: bool = True
) -> tuple[Any, Update]:
    """One batch of a case, whole or in these micro-batches."""
    torch.manual_seed(11)
    # Only the tensors are float64, not torch's default: a number made on the way must not be rounded to float32.
    inputs, targets = torch.randn(BATCH, 6).double(), tree.map_tensors(_double, case.targets())
    criterion, model = case.criterion(), net(case.head(), dropout).double()
    criterion = criterion.double() if isinstance(criterion, nn.Module) else criterion
    update = Update(model, criterion, micro_batch=None if partition is None else 3, method=method)
    if partition is not None:
        way = update.decide(inputs, targets)
        update.found.ways[BATCH] = dataclasses.replace(way, sizes=partition)
    torch.manual_seed(12)
    outcome = update.backward(inputs, targets, step=7)
    return everything(model, criterion, outcome), update


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def compare(one: Any, other: Any) -> None:
    (g, near, same), (g_, near_, same_) = one, other
    assert same == same_
    assert float((g - g_).norm()) <= NEAR * float(g.norm())
    for a, b in zip(near, near_, strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=NEAR, atol=1e-13, equal_nan=True)


@pytest.mark.parametrize("name", CASES)
def test_every_partition_gives_the_gradient_of_one_pass(name: str) -> None:
    case = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of targets that are broadcast and reductions that are to change
        whole, _ = taken(case, None)
        for partition in PARTITIONS.values():
            parts, update = taken(case, partition)
            assert update.ways[BATCH].method == case.method
            compare(whole, parts)


@pytest.mark.parametrize("name", CASES)
def test_two_passes_are_right_for_every_criterion(name: str) -> None:
    case = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole, _ = taken(case, None)
        compare(whole, taken(case, PARTITIONS["random"], "two_pass")[0])
