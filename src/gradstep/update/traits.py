"""What a model does, seen from two small forwards of different size: enough to cut its batches, or to say why not."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gradstep import tree
from gradstep.errors import ModelError
from gradstep.update.buffers import Kept
from gradstep.update.keyed import Call, KeyedDropout
from gradstep.update.pieces import Follows, Layout, cut, follows
from gradstep.update.replay import Streams

# Relative to the largest output. A coupling such as BatchNorm's moves outputs by tenths; kernels for another number of
# rows move float32 by 1e-6.
_NEAR = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass(frozen=True, slots=True)
class Traits:
    """What was seen of a model; `notes` are for its user."""

    layout: Layout
    row_shapes: tuple[tuple[int, ...], ...]  # of each leaf of the outputs: its shape but for the first dimension
    dropout: dict[Call, Follows]  # how each call of keyed dropout lies
    changes: tuple[str, ...]  # buffers that a forward changes
    edits_inputs: bool
    draws: tuple[str, ...]  # random operations besides keyed dropout, with the line of the user's code
    dropouts: tuple[str, ...]  # those of them that are dropout

    @property
    def notes(self) -> list[str]:
        """What of this makes a result depend on the micro-batches without being wrong."""
        if not self.draws:
            return []
        return [f"the model draws random numbers ({'; '.join(self.draws)}): other micro-batches, other numbers."]


def traits(
    forward: Callable[[Any], Any],
    inputs: Any,
    samples: int,
    keyed: KeyedDropout | None,
    streams: Streams,
    buffers: Kept,
    *,
    unit: int = 1,
) -> Traits:
    """Runs `forward` on a few of the samples, twice, with the streams and `buffers` as they are now; and puts them
    back.

    `unit` is how many samples belong together, as in a group of BatchNorm. ModelError: the model couples samples, or
    its outputs' samples can't be found.
    """
    few, more = _sizes(samples, unit)
    try:
        one = _Look(forward, inputs, samples, few, keyed, streams)
        changes = buffers.changed()
        buffers.put_back()
        other = _Look(forward, inputs, samples, more, keyed, streams)
    finally:
        buffers.put_back()
    layout = Layout.learn(one.outputs, few, other.outputs, more) if more > few else Layout.simple_for(one.outputs, few)
    if more > few and not other.draws:  # where numbers are drawn, outputs differ by them
        _hold_apart(layout, one.outputs, few, other.outputs)
    return Traits(
        layout=layout,
        row_shapes=tuple(
            tuple(leaf.shape[1:]) if isinstance(leaf, Tensor) else () for leaf in layout.flatten(one.outputs)
        ),
        dropout=_dropout_layouts(one, few, other, more),
        changes=tuple(changes),
        edits_inputs=one.edited,
        draws=tuple(dict.fromkeys(other.draws)),
        dropouts=tuple(dict.fromkeys(other.dropouts)),
    )


def dropout_layouts(
    forward: Callable[[Any], Any], inputs: Any, samples: int, keyed: KeyedDropout, streams: Streams, buffers: Kept
) -> dict[Call, Follows]:
    """How each call of keyed dropout lies, for a batch that is taken whole. What can't be told is left out."""
    few, more = _sizes(samples, 1)
    try:
        one = _Look(forward, inputs, samples, few, keyed, streams)
        buffers.put_back()
        return _dropout_layouts(one, few, _Look(forward, inputs, samples, more, keyed, streams), more)
    except Exception:  # a model that takes no other number of samples is trained as it is
        return {}
    finally:
        buffers.put_back()


def _sizes(samples: int, unit: int) -> tuple[int, int]:
    """Two numbers of samples to look at, whole units if there are so many."""
    if unit > 1:
        return (unit, 2 * unit) if samples >= 2 * unit else (samples, samples)
    return (min(2, samples), min(3, samples)) if samples != 2 else (1, 2)


@contextmanager
def unwarned() -> Iterator[None]:
    """Activation checkpointing warns of a forward without gradients, which is meant here."""
    if torch.is_grad_enabled():
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "None of the inputs have requires_grad")
        yield


class _Look:
    """One forward of the first samples."""

    def __init__(
        self,
        forward: Callable[[Any], Any],
        inputs: Any,
        samples: int,
        number: int,
        keyed: KeyedDropout | None,
        streams: Streams,
    ) -> None:
        piece = tree.map_tensors(Tensor.clone, cut(inputs, samples, 0, number))
        versions = [tensor._version for tensor in tree.tensors(piece)]
        seen = _Draws()
        if keyed is not None:
            keyed.piece(0, number)
            keyed.shapes = {}
        try:
            with streams.kept(), unwarned(), seen:
                self.outputs = tree.map_tensors(Tensor.detach, forward(piece))
        finally:
            self.shapes = dict(keyed.shapes or {}) if keyed is not None else {}
            if keyed is not None:
                keyed.shapes = None
        self.edited = versions != [tensor._version for tensor in tree.tensors(piece)]
        self.draws, self.dropouts = seen.others, seen.dropouts


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


def _dropout_layouts(one: _Look, few: int, other: _Look, more: int) -> dict[Call, Follows]:
    found: dict[Call, Follows] = {}
    for call, shape in one.shapes.items():
        if call in other.shapes and more > few:
            try:
                place = follows(shape, few, other.shapes[call], more)
            except ValueError:
                place = None
            if place is None:
                raise ModelError(
                    f"dropout: '{call[0]}' gets a tensor of shape {list(shape)} for {few} samples and of "
                    f"{list(other.shapes[call])} for {more}: which of its elements are a sample's can't be told. Give "
                    "it "
                    "a tensor with rows for each sample, or take dropout='stream' without micro-batches."
                )
            found[call] = place
    return found


def _hold_apart(layout: Layout, one: Any, few: int, other: Any) -> None:
    """ModelError where a sample's outputs depend on which other samples are in the batch."""
    for place, mine, theirs in zip(layout.leaves, layout.flatten(one), layout.flatten(other), strict=True):
        if not isinstance(mine, Tensor) or not mine.is_floating_point():
            continue
        same = theirs if place is None else layout.rows(theirs, place, 0, few)
        away = (mine.double() - same.double()).abs().nan_to_num(0.0).max() if mine.numel() else torch.zeros(())
        size = float(mine.double().abs().nan_to_num(0.0).max()) if mine.numel() else 0.0
        if float(away) > _NEAR.get(mine.dtype, 1e-4) * max(size, 1e-30):
            what = "an output without rows for the samples" if place is None else "a sample's outputs"
            raise ModelError(
                f"the model couples samples: {what} changed by {float(away):.1e} when one more sample was in the "
                "batch, so "
                "micro-batches would compute something else. Leave micro_batch out; or take a layer that looks at one "
                "sample at a time, as GroupNorm or LayerNorm do; or move what looks at the whole batch into the "
                "criterion."
            )
