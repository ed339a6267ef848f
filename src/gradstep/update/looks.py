"""One forward of a few samples, looked at: what goes in and out, what is drawn, where dropout and BatchNorm are met."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gradstep import tree
from gradstep.update.keyed import Call, KeyedDropout
from gradstep.update.norm import NormGroups
from gradstep.update.pieces import pick
from gradstep.update.replay import Streams


@contextmanager
def unwarned() -> Iterator[None]:
    """Activation checkpointing warns of a forward without gradients, which is meant here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "None of the inputs have requires_grad")
        yield


class Look:
    """A forward of the samples with these `numbers`, the streams being as they are now, and again afterwards."""

    def __init__(
        self,
        forward: Callable[[Any], Any],
        inputs: Any,
        samples: int,
        numbers: Sequence[int],
        keyed: KeyedDropout | None,
        norm: NormGroups | None,
        streams: Streams,
    ) -> None:
        self.samples = len(numbers)
        piece = pick(inputs, samples, numbers)  # copies
        versions = [tensor._version for tensor in tree.tensors(piece)]
        before, ops = streams.positions(), _Draws()
        self.dropped: dict[Call, Tensor] = {}  # what goes into each call of dropout, which drops nothing here
        self.normed: dict[Call, Tensor] = {}
        if keyed is not None:
            keyed.piece(0, self.samples)
            keyed.seen = self.dropped
        if norm is not None:
            norm.piece(self.samples)
            norm.seen = self.normed
        try:
            with streams.kept(), unwarned(), ops:
                self.outputs = tree.map_tensors(Tensor.detach, forward(piece))
                moved = [name for name, position in streams.positions().items() if position != before[name]]
        finally:
            if keyed is not None:
                keyed.seen = None
            if norm is not None:
                norm.seen = None
        self.edited = versions != [tensor._version for tensor in tree.tensors(piece)]
        self.dropouts = ops.dropouts
        # torch's own are known by the operation; of others only that they were drawn from.
        self.draws = [*ops.others, *(name for name in moved if name != "torch" or not ops.others)]


class _Draws(TorchDispatchMode):
    """Sees which operations draw random numbers: torch tags them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.others: list[str] = []
        self.dropouts: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags and _draws(func, args, kwargs or {}):
            dropout, line = _who(sys._getframe(1))
            name = func.name().removeprefix("aten::").partition(".")[0]
            self.others.append(f"{name}{line}")
            if dropout or "dropout" in name or name.startswith("_scaled_dot_product"):
                self.dropouts.append(f"{dropout or name}{line}")
        return func(*args, **(kwargs or {}))


def _draws(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operation that can draw does: attention has dropout in it that is mostly 0."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.name == "dropout_p":
            value = kwargs.get("dropout_p", args[place] if place < len(args) else argument.default_value)
            return bool(value)
    return True


def _who(frame: FrameType | None) -> tuple[str, str]:
    """`(the dropout function of torch among the callers, or nothing; " at nets.py, line 12")`."""
    dropout, own = "", Path(__file__).parent
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if "torch" in path.parts:
            inside = frame.f_code.co_name
            if path.name == "functional.py" and "dropout" in inside:
                dropout = inside
            elif path.name == "rnn.py" and inside == "forward":
                dropout = f"the dropout inside {type(frame.f_locals['self']).__name__}"
        elif path.parent != own:
            return dropout, f" at {path.name}, line {frame.f_lineno}"
        frame = frame.f_back
    return dropout, ""
