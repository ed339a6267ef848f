"""The backward of a scalar, straight into autograd's engine.

`torch.autograd.backward` first looks through its arguments for what a loss that was read can't be: several outputs,
gradients that don't fit, edges, nested tensors. In a small net's step these looks take as long as the optimizer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import graph

_run: Any = getattr(graph, "_engine_run_backward", None)  # what torch.autograd.backward ends in; no public name


def run_backward(loss: Tensor) -> None:
    """`loss.backward()` of a 0-dimensional tensor that requires a gradient: adds to `.grad`, frees the graph."""
    if _run is None or type(loss) is not Tensor or not loss.is_floating_point() or loss.dim():
        torch.autograd.backward(loss)
        return
    # The arguments after the gradient: keep no graph, make none, for no inputs in particular.
    _run((loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True)
