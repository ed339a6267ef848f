"""What a step changes that no checkpoint holds: looked for in a process's first step, and said.

A resume builds such things anew, and then the run ends elsewhere. A count in a plain attribute of a module is one too,
and can't be seen from here; see docs/RELIABILITY.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from gradstep.keys import stream_positions
from gradstep.state import TrainState

_OUTSIDE = ("Python's random", "NumPy's random")  # torch's own streams are seeded in every step


@contextmanager
def noticed(state: TrainState, say: Callable[[str], None]) -> Iterator[None]:
    """Inside is one step. What it has changed and nobody saves is told to `say`, a line each. Waits for the device."""
    streams = stream_positions()
    buffers = {name: buffer.clone() for name, buffer in _not_persistent(state)}
    yield
    for name, now in stream_positions().items():
        if name in _OUTSIDE and now != streams[name]:
            say(f"note      a step draws from {name}, which a resume does not put back: draw from torch instead")
    for name, now in _not_persistent(state):
        if name not in buffers or not _equal(buffers[name], now):
            say(f"note      a step changes '{name}', which is not saved: register_buffer(..., persistent=True) is")


def _not_persistent(state: TrainState) -> Iterator[tuple[str, torch.Tensor]]:
    for root in (state.model, state.criterion):
        for path, module in root.named_modules() if isinstance(root, nn.Module) else ():
            for name in sorted(module._non_persistent_buffers_set):
                if (buffer := module._buffers.get(name)) is not None:
                    yield f"{path}.{name}" if path else name, buffer


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    both_nan = (one != one).logical_and(other != other)
    return bool((one == other).logical_or(both_nan).all())
