"""The backward of a scalar, straight into autograd's engine.

`torch.autograd.backward` first looks through its arguments for what a loss that was read can't be (several outputs,
gradients that don't fit, edges, nested tensors), and lays out what threads of other devices may need. In a small net's
step that takes longer than the optimizer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.variable import Variable

_engine: Any = getattr(Variable, "_execution_engine", None)  # what torch.autograd.backward ends in; no public name


def run_backward(loss: Tensor) -> None:
    """`loss.backward()` of a 0-dimensional tensor that requires a gradient: adds to `.grad`, frees the graph."""
    if _engine is None or type(loss) is not Tensor or not loss.is_floating_point() or not loss.is_cpu:
        torch.autograd.backward(loss)
        return
    # The arguments after the gradient: keep no graph, make none, for no inputs in particular.
    _engine.run_backward(
        (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
    )
