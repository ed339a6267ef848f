"""Which gradient was computed from which outputs, told by their values alone: what `mismatch` compares.

A gradient that arrives at a forward's outputs is looked for among those seen before (`matches`). Where it is found,
the values that it was computed from are known, and where these came from is found by value too (`origin`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.weak import TensorWeakRef

View = Callable[[Tensor], Tensor]  # reads a tensor as rows


@dataclass(slots=True)
class Forward:
    """One call of a model: values alone, no graph."""

    number: int
    model: nn.Module
    inputs: list[tuple[bytes, ...]]  # of each tensor, a digest of each row
    outputs: list[Tensor]
    weights: tuple[object, ...]
    training: bool
    tolerance: float  # of outputs of the lowest precision in it
    text: str
    tasks: set[int] = field(default_factory=set)  # the backwards that have come by

    @property
    def size(self) -> int:
        return sum(tensor.nbytes for tensor in self.outputs)


@dataclass(slots=True)
class Record:
    """A gradient that reached a tensor cut off from the graph, and the values which that tensor had."""

    values: Tensor
    gradient: Tensor
    tolerance: float
    task: int | None  # the backward that it came with
    forwards: int  # how many there had been
    leaf: TensorWeakRef | None = None

    @property
    def size(self) -> int:
        return self.values.nbytes + self.gradient.nbytes

    def gradients(self) -> list[Tensor]:
        """What arrived, and what the tensor's `.grad` has become: the sum over several criteria."""
        leaf = self.leaf() if self.leaf is not None else None
        total = leaf.grad if leaf is not None else None
        return [self.gradient] if total is None or not readable(total) else [self.gradient, total.detach()]


@dataclass(slots=True)
class Match:
    """Rows of a record whose gradient has arrived somewhere."""

    record: Record
    values: Tensor  # rows × width
    rows: int  # how many; `values` has several times as many where their sum has arrived
    start: int
    of: int
    view: View

    def pieces(self) -> list[Tensor]:
        """The gradients whose sum has arrived, if it is one."""
        return list(self.view(self.record.gradient).split(self.rows)) if len(self.values) > self.rows else []

    @property
    def text(self) -> str:
        if len(self.values) > self.rows:
            return f"the sum of all pieces of {self.rows} rows of that gradient, times a number"
        return f"rows {self.start} to {self.start + self.rows - 1} of the {self.of} of that gradient, times a number"


@dataclass(slots=True)
class Origin:
    """A forward that the values of a match came out of."""

    source: Forward
    rows: set[int]  # of the values
    shares: list[Fraction]  # where the fewer rows begin among the more: values in outputs, or the other way round


def matches(record: Record, gradient: Tensor) -> Iterator[Match]:
    """The rows of a record that `gradient` is a multiple of; also where it is the sum of all pieces of its size."""
    for recorded in record.gradients():
        tolerance = rounding(recorded, gradient)
        for view in views(gradient.shape, recorded.shape):
            small, large, values = (exact(view(each)) for each in (gradient, recorded, record.values))
            rows, of = len(small), len(large)
            for start in places(small, large, tolerance, scaled=True):
                yield Match(record, values[start : start + rows], rows, start, of, view)
            if rows < of and of % rows == 0:
                total = large.reshape(-1, rows, large.shape[1]).sum(0)
                if found(small, total, tolerance * of / rows, scaled=True):
                    yield Match(record, values, rows, 0, of, view)


def agrees(match: Match, outputs: Tensor, tolerance: float) -> bool:
    """Whether the values that a gradient came from are these outputs; of a sum, all of them."""
    own = exact(match.view(outputs))
    return all(found(piece, own, max(tolerance, match.record.tolerance)) for piece in match.values.split(match.rows))


def origin(match: Match, source: Forward) -> Origin | None:
    """Where among the outputs of this forward the values are that a gradient came from, or which of them these are."""
    for outputs in source.outputs:
        try:
            own = exact(match.view(outputs))
        except (IndexError, RuntimeError):  # another kind of output, which can't be read so
            continue
        inside = len(own) < len(match.values)
        small, large = (own, match.values) if inside else (match.values, own)
        at = list(places(small, large, max(source.tolerance, match.record.tolerance)))
        if at:
            rows = {row for start in at for row in range(start, start + len(small))} if inside else range(len(small))
            return Origin(source, set(rows), [Fraction(start, len(large)) for start in at])
    return None


def same_inputs(found_in: Origin, forward: Forward) -> bool:
    """Whether the values came from the forward's own inputs: all of them, or those rows of them."""
    if len(found_in.source.inputs) != len(forward.inputs):
        return False
    for one, other in zip(found_in.source.inputs, forward.inputs, strict=True):
        small, large = sorted((one, other), key=len)
        starts = [0] if len(small) == len(large) else [share * len(large) for share in found_in.shares]
        if not any(large[int(start) : int(start) + len(small)] == small for start in starts):
            return False
    return True


def holds(larger: Forward, smaller: Forward) -> bool:
    """Whether one forward's inputs are the other's, or consecutive rows of them."""
    return len(larger.inputs) == len(smaller.inputs) and all(
        any(large[start : start + len(small)] == small for start in range(len(large) - len(small) + 1))
        for large, small in zip(larger.inputs, smaller.inputs, strict=True)
    )


def views(small: torch.Size, large: torch.Size) -> Iterator[Callable[[Tensor], Tensor]]:
    """Ways to read two tensors as rows so that those of the first may be consecutive ones of the second."""
    if math.prod(small) == 0 or math.prod(large) == 0:
        return
    if len(small) == len(large) > 0:
        unequal = [dim for dim in range(len(small)) if small[dim] != large[dim]]
        dim = unequal[0] if unequal else 0
        if len(unequal) <= 1 and small[dim] <= large[dim]:
            yield lambda tensor: tensor.movedim(dim, 0).reshape(tensor.shape[dim], -1)
            return
    width = min(math.prod(small[1:]), math.prod(large[1:]))
    if math.prod(small) <= math.prod(large) and math.prod(small) % width == 0 and math.prod(large) % width == 0:
        yield lambda tensor: tensor.reshape(-1, width)


def places(small: Tensor, large: Tensor, tolerance: float, *, scaled: bool = False) -> Iterator[int]:
    """Where the rows of `small` are consecutive rows of `large`; `scaled`: times any one number."""
    rows = len(small)
    if rows > len(large) or small.shape[1] != large.shape[1]:
        return
    at = int(small.abs().amax(1).argmax())  # the row with the largest number is looked for first
    row, span = small[at], large[at : len(large) - rows + at + 1]
    if scaled:
        likeness = (span @ row).abs() / (span.norm(dim=1) * row.norm())
        near = likeness >= 1 - 1e-6 - tolerance**2 * len(row)
    else:
        near = (span - row).abs().amax(1) <= tolerance * torch.maximum(small.abs().max(), large.abs().max())
    for start in near.nonzero().flatten().tolist():
        block = large[start : start + rows]
        factor = (small * block).sum() / (block * block).sum() if scaled else 1.0
        size = small.abs().max() if scaled else torch.maximum(small.abs().max(), block.abs().max())
        if (small - factor * block).abs().max() <= tolerance * size:
            yield int(start)


def found(small: Tensor, large: Tensor, tolerance: float, *, scaled: bool = False) -> bool:
    """Whether there is such a place."""
    return any(True for _ in places(small, large, tolerance, scaled=scaled))


def evidence(gradient: Tensor) -> float:
    """How many bits say that a gradient fits another one by more than chance; none where all rows are alike.

    What its pattern of values takes to write down, and what the sizes in it do. A gradient that is zero, or the same
    for every row (a linear criterion), is right at any outputs.
    """
    if gradient.dim() == 0 or gradient.numel() < 2:
        return 0.0
    rows = exact(gradient).reshape(len(gradient), -1)
    largest = rows.abs().max()
    if not torch.isfinite(rows).all() or largest == 0:
        return 0.0
    step = 4 * rounding(gradient, gradient)
    steps = (rows / (largest * step)).round()
    if len(rows) > 1 and bool((steps == steps[0]).all()):
        return 0.0
    counts = steps.unique(return_counts=True)[1].double()
    pattern = float(-(counts * (counts / counts.sum()).log2()).sum())
    sizes = len(steps[steps != 0].abs().unique())
    return pattern + (sizes - 1) * -math.log2(step)


def looks_linear(gradient: Tensor) -> bool:
    """Whether it may be a criterion's that is linear in the outputs: then it is right at any outputs of its inputs.

    Its numbers are zero or of one size, or there is one in each row, as of the likelihood of given log-probabilities.
    """
    rows = exact(gradient).reshape(len(gradient), -1)
    sizes = rows.abs()[rows != 0]
    one_each = rows.shape[1] > 1 and bool(((rows != 0).sum(1) <= 1).all())
    return one_each or bool((sizes - sizes[0]).abs().max() <= 1e-4 * sizes[0])


def readable(tensor: Tensor) -> bool:
    """Whether it has real values that can be read."""
    return tensor.is_floating_point() and tensor.layout is torch.strided and not is_wrapped(tensor)


def is_wrapped(tensor: Tensor) -> bool:
    """Whether it only stands for values: inside vmap, func.grad and the compiler's tracing."""
    inside = torch._C._functorch
    wrapped = inside.is_functorch_wrapped_tensor(tensor) or inside.is_legacy_batchedtensor(tensor)
    return bool(wrapped or tensor.is_meta or isinstance(tensor, FakeTensor))


def copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def exact(tensor: Tensor) -> Tensor:
    """To compare in: on the CPU, which has doubles always."""
    return tensor.detach().cpu().double()


def tolerance_of(tensor: Tensor) -> float:
    """How far outputs of one model for the same inputs may lie apart by rounding, relative to the largest of them."""
    if torch.is_autocast_enabled(tensor.device.type):
        return 5e-2
    known = {torch.float64: 1e-9, torch.float32: 1e-4 if tensor.device.type == "cpu" else 2e-3, torch.float16: 1e-2}
    return known.get(tensor.dtype, 5e-2)


def rounding(*tensors: Tensor) -> float:
    """How far a scaled gradient may lie from the gradient: a few roundings, in the lower precision of both."""
    epsilon = max(torch.finfo(tensor.dtype).eps for tensor in tensors)
    return (2 if epsilon > 1e-4 else 16) * epsilon


def digests(tensor: Tensor) -> tuple[bytes, ...]:
    """A digest of every row, which takes no room."""
    whole = tensor.detach().to_dense() if tensor.layout is not torch.strided else tensor.detach()
    whole = whole.cpu().contiguous()
    rows = whole.reshape(len(whole), -1) if whole.dim() > 0 and len(whole) else whole.reshape(1, -1)
    numbers = rows.resolve_conj().contiguous().view(torch.uint8).numpy() if rows.numel() else rows.numpy()
    return tuple(hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in numbers)
