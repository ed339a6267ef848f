"""`Update`: fills `.grad` with the exact gradient of one batch, in as many micro-batches as memory asks for.

One pass is written out here; it is what `loss.backward()` does, and the measure of the other two.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from gradstep import tree
from gradstep.errors import DataError, DivergedError, ModelError, RecipeError, listed, nearest
from gradstep.update.batch import Batch
from gradstep.update.buffers import BatchBuffers, Kept, places
from gradstep.update.criterion import Criterion, read_loss, require_graph, units_of
from gradstep.update.engine import run_backward
from gradstep.update.gradients import Gradients
from gradstep.update.keyed import KeyedDropout
from gradstep.update.looks import Look
from gradstep.update.norm import NormGroups
from gradstep.update.outcome import Outcome
from gradstep.update.pieces import count, pattern, sizes
from gradstep.update.replay import Streams, devices_of
from gradstep.update.traits import Layouts, Looks, Traits
from gradstep.update.twin import modules_of
from gradstep.update.ways import METHODS, Way, choose, refuse_coupled


@dataclass(slots=True)
class Found:
    """What was found out about model and criterion on the first batch of each size."""

    traits: Traits | None = None
    streams: Streams | None = None  # that a forward may draw from
    dropout: Layouts = field(default_factory=dict)
    looked: bool = False  # whether `dropout` has been learned
    pattern: tuple[bool, ...] | None = None  # which leaves of the inputs are cut
    modes: list[bool] | None = None  # which modules were training then
    ways: dict[int, Way] = field(default_factory=dict)


class Update:
    """Fills `.grad` with the gradient of one batch; the same gradient whatever `micro_batch` is.

    Args:
        micro_batch: how many samples are in memory at once, at most; nothing takes the batch whole.
        method: `accumulate` for criteria that are sums over samples, `two_pass` for any criterion; `auto` proves which.
        stat_group: BatchNorm's statistics are those of each so many consecutive samples: a mathematical choice.
        dropout: `keyed`, masks that are functions of seed, step, layer call, sample and element; or `stream`, torch's.
        seed: of the keyed masks.
        unpack: `batch -> (inputs, targets)` where a batch is no such pair. Only for those who give whole batches.
        forward: `(model, inputs) -> outputs` where that is not `model(inputs)`.

    `inputs` are cut along the first dimension of their tensors, and of lists of other things; `targets` are whatever
    the criterion takes. The criterion always sees `(outputs, targets)`.

    Raises RecipeError for arguments that can't be.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion,
        *,
        micro_batch: int | None = None,
        method: str = "auto",
        stat_group: int | None = None,
        dropout: str = "keyed",
        seed: int = 0,
        unpack: Callable[[Any], tuple[Any, Any]] | None = None,
        forward: Callable[[nn.Module, Any], Any] | None = None,
    ) -> None:
        _check(micro_batch, method, stat_group, dropout)
        self.model, self.criterion, self.forward = model, criterion, forward
        self.unpack = unpack or pair
        self.micro_batch, self.method, self.stat_group, self.dropout = micro_batch, method, stat_group, dropout
        self.batches = 0  # how many were taken: the step of the next, where none is given
        self.refuses_non_finite = True  # in micro-batches; False for who looks at the gradient himself
        self._keyed = KeyedDropout(model, seed) if dropout == "keyed" else None
        self._norm = NormGroups(model, stat_group) if stat_group else None
        self._modules = list(model.modules())
        self.found = Found()

    def backward(self, inputs: Any, targets: Any, *, step: int | None = None, scale: float | Tensor = 1.0) -> Outcome:
        """Adds `scale` times the batch's gradient to `.grad` and returns the outcome, with the loss unscaled.

        `step` says whose masks dropout takes: the number of this update in the training, counted from 1; unless given,
        of this call. A `scale` may be a tensor, such as a GradScaler's.

        Raises ModelError, DataError where model, criterion and batch do not go together, DivergedError for a loss that
        is no number: in micro-batches, nothing has changed then.
        """
        samples = count(inputs, targets)
        number = self.batches + 1 if step is None else step
        self._same_modes()
        with self._own_layers(number, samples):
            way = self.found.ways.get(samples) or self._decide(inputs, targets, samples)
            if way.take is not None:
                outcome = self._in_pieces(way, inputs, targets, samples, step, scale)
                self.batches = number
                return outcome
            outputs = self.model(inputs) if self.forward is None else self.forward(self.model, inputs)
            value = self.criterion(outputs, targets)
            loss, terms = read_loss(value, samples)
            require_graph(loss, terms)
            if self._keyed is not None:
                self._keyed.recomputing = True  # activation checkpointing forwards again in the backward
            unscaled = not isinstance(scale, Tensor) and scale == 1.0
            run_backward(loss if unscaled else loss * scale)
        self.batches = number  # only now: what is tried again after an error has its masks again
        detached = {name: term.detach() for name, term in terms.items()}
        return Outcome(loss.detach(), detached, tree.detach(outputs), targets, samples, step, units_of(value))

    def decide(self, inputs: Any, targets: Any) -> Way:
        """How batches of this size are taken. Looks at model and criterion on this batch.

        Nothing of them changes but plain attributes that the model's forward itself changes.

        Raises ModelError, RecipeError for what can't be taken in micro-batches.
        """
        samples = count(inputs, targets)
        self._same_modes()
        with self._own_layers(self.batches + 1, samples):
            return self.found.ways.get(samples) or self._decide(inputs, targets, samples)

    def key_in_memory(self, step: int) -> None:
        """Writes the step that masks are keyed by to where a captured forward reads it."""
        if self._keyed is not None:
            self._keyed.write(step)

    @contextmanager
    def keyed_from_memory(self) -> Iterator[None]:
        """Inside, masks are keyed by the step that was written, whatever `backward` is told: a graph is captured."""
        if self._keyed is None:
            yield
            return
        self._keyed.preset = True
        try:
            yield
        finally:
            self._keyed.preset = False

    @property
    def ways(self) -> dict[int, Way]:
        """How batches are taken, by their size, as far as it is decided."""
        return dict(self.found.ways)

    @property
    def notes(self) -> list[str]:
        """What depends on the micro-batches without being wrong."""
        apart = any(way.take is not None for way in self.found.ways.values())
        return self.found.traits.notes if self.found.traits is not None and apart else []

    def _same_modes(self) -> None:
        """What was found out in evaluation mode is not so in training mode."""
        modes = [module.training for module in self._modules]
        if self.found.modes not in (None, modes):
            self.found = Found()
        self.found.modes = modes

    def _run(self, inputs: Any) -> Any:
        """The model's outputs."""
        return self.model(inputs) if self.forward is None else self.forward(self.model, inputs)

    def _decide(self, inputs: Any, targets: Any, samples: int) -> Way:
        parts = tuple(sizes(samples, self.micro_batch, self.stat_group))
        streams = self.found.streams = self._streams(inputs)
        buffers = Kept(places(self.model, self._norm.names if self._norm is not None else ()))
        if self._norm is not None:
            self._norm.counting = False
        try:
            with streams.kept(), torch.no_grad():
                if self._norm is not None:
                    self._norm.refuse()
                    self._norm.hold(
                        samples, lambda: Look(self._run, inputs, samples, [0], self._keyed, self._norm, streams)
                    )
                if len(parts) > 1:
                    way = self._choose(inputs, targets, samples, parts, streams, buffers)
                else:
                    self._learn(inputs, samples, streams, buffers)
                    way = Way("one_pass", "the batch is taken whole", parts)
        finally:
            buffers.put_back()
            if self._norm is not None:
                self._norm.counting = True
                self._norm.piece(samples)
            if self._keyed is not None:
                self._keyed.piece(0, samples)
        self.found.ways[samples] = way
        return way

    def _choose(
        self, inputs: Any, targets: Any, samples: int, parts: tuple[int, ...], streams: Streams, buffers: Kept
    ) -> Way:
        refuse_coupled(self.model, self._norm)
        Gradients(self._roots())  # says which hooks don't go with micro-batches
        self._hold_pattern(pattern(inputs, samples), samples)
        if self.found.traits is None:
            looks = Looks(
                self._run, inputs, samples, self._keyed, self._norm, streams, buffers, unit=self.stat_group or 1
            )
            self.found.traits = looks.traits()
            self.found.dropout.update(self.found.traits.dropout)
            self.found.looked = True
        batch = self._batch(inputs, targets, samples, parts)
        return choose(batch, self.method, self.dropout)

    def _hold_pattern(self, cut: tuple[bool, ...], samples: int) -> None:
        """The same things are cut in every batch: a tensor that all samples share may have as many rows by chance."""
        if not any(cut):
            raise ModelError(
                f"nothing in the inputs can be cut: no tensor in them has {samples} rows, one for each sample, and no "
                "list so many entries. Give tensors, samples first, in dicts, lists or tuples; or leave micro_batch "
                "out."
            )
        if self.found.pattern not in (None, cut):
            raise ModelError(
                f"something in the inputs that all samples share has {samples} rows, as many as this batch has "
                "samples, so what is to be cut can't be told. Keep it out of the batch: in the model, or by forward=."
            )
        self.found.pattern = cut

    def _learn(self, inputs: Any, samples: int, streams: Streams, buffers: Kept) -> None:
        """How dropout lies, for masks that are the same when the batch is cut one day; and BatchNorm, for its
        groups."""
        if self.found.looked or samples == 1 or (self._keyed is None and self._norm is None):
            return
        self.found.looked = True
        try:
            looks = Looks(
                self._run, inputs, samples, self._keyed, self._norm, streams, buffers, unit=self.stat_group or 1
            )
        except Exception:  # a model that takes no other number of samples is trained as it is
            return
        self.found.dropout.update(looks.dropout())
        looks.hold_norms()

    def _in_pieces(
        self, way: Way, inputs: Any, targets: Any, samples: int, step: int | None, scale: float | Tensor
    ) -> Outcome:
        assert self.found.traits is not None
        assert way.take is not None
        batch = self._batch(inputs, targets, samples, way.sizes)
        batch.scale = scale
        changes = self.found.traits.changes
        buffers = batch.buffers = BatchBuffers(self.model, changes) if changes else None
        restore, kept = (
            batch.streams.keep(),
            Kept({k: v for each in modules_of(self.criterion) for k, v in places(each).items()}),
        )
        try:
            with Gradients(self._roots()) as gradients:
                batch.fold = gradients.fold
                outcome = way.take(batch)
                if self.refuses_non_finite:
                    _hold_finite(outcome, gradients, scale)
                if buffers is not None:
                    buffers.commit()
        except BaseException:
            restore()
            kept.put_back()
            if buffers is not None:
                buffers.roll_back()
            raise
        outcome.step = step
        return outcome

    def _batch(self, inputs: Any, targets: Any, samples: int, parts: tuple[int, ...]) -> Batch:
        assert self.found.traits is not None
        assert self.found.streams is not None
        return Batch(
            run=self._run,
            criterion=self.criterion,
            inputs=inputs,
            targets=targets,
            samples=samples,
            sizes=parts,
            traits=self.found.traits,
            streams=self.found.streams,
            keyed=self._keyed,
            norm=self._norm,
        )

    def _roots(self) -> list[nn.Module]:
        """The modules whose parameters may get a gradient."""
        return [self.model, *modules_of(self.criterion)]

    def _streams(self, inputs: Any) -> Streams:
        roots = self._roots()
        own = (t for root in roots for t in (*root.parameters(), *root.buffers()))
        modules = dict.fromkeys(m for root in roots for m in root.modules())
        return Streams(modules, devices_of(own, tree.tensors(inputs)))

    def _own_layers(self, number: int, samples: int) -> AbstractContextManager[Any]:
        """Inside, dropout is by key and BatchNorm by groups, where that is asked for."""
        keyed = _NOTHING if self._keyed is None else self._keyed.batch(number, samples, self.found.dropout)
        return keyed if self._norm is None else _both(keyed, self._norm.batch(samples))


_NOTHING = nullcontext()


@contextmanager
def _both(first: AbstractContextManager[Any], second: AbstractContextManager[Any]) -> Iterator[None]:
    with first, second:
        yield


# What `backward` found out: about a model, for (micro_batch, method), with the criterion that it was found out for.
_FOUND: weakref.WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], tuple[Any, Found]]] = weakref.WeakKeyDictionary()


def backward(
    model: nn.Module,
    criterion: Criterion,
    inputs: Any,
    targets: Any,
    *,
    micro_batch: int | None = None,
    method: str = "auto",
) -> Tensor:
    """Adds the batch's exact gradient to `.grad` and returns the detached loss: `Update.backward` in one line.

    It stands where `criterion(model(inputs), targets).backward()` stood, in anyone's loop. What is found out about
    model and criterion is remembered. Dropout's masks are functions of one number drawn from torch's stream, so they
    follow `torch.manual_seed`, and are the same for any `micro_batch`.
    """
    update = Update(model, criterion, micro_batch=micro_batch, method=method)
    known = _FOUND.setdefault(model, {})
    of, found = known.get((micro_batch, method), (lambda: None, update.found))
    if of() == criterion:
        update.found = found
    else:
        known[micro_batch, method] = (_reference(criterion), update.found)
    before = torch.default_generator.get_state()
    step = int(torch.randint(1 << 31, (), device="cpu"))
    try:
        return update.backward(inputs, targets, step=step).loss
    except BaseException:
        torch.default_generator.set_state(before)
        raise


def _reference(criterion: Criterion) -> Callable[[], Criterion | None]:
    """Gives the criterion as long as somebody else has it; one that can't be referred to so is kept."""
    try:
        return weakref.WeakMethod(criterion) if isinstance(criterion, MethodType) else weakref.ref(criterion)
    except TypeError:
        return lambda: criterion


def _hold_finite(outcome: Outcome, gradients: Gradients, scale: float | Tensor) -> None:
    """DivergedError for a loss that is no number, and takes the gradient along; 0/0 of no targets at all does not.

    Where the loss lies on a device, nobody waits for it here; under a scaler, the scaler skips such a batch.
    """
    if outcome.loss.device.type != "cpu" or isinstance(scale, Tensor) or scale != 1.0:
        return
    if not math.isfinite(float(outcome.loss)) and not gradients.finite():
        raise DivergedError(
            f"the loss of a batch of {outcome.samples} samples is {float(outcome.loss)}, and no gradient was added. "
            "Look at its samples, or try a smaller learning rate."
        )


def _check(micro_batch: Any, method: Any, stat_group: Any, dropout: Any) -> None:
    for name, value in (("micro_batch", micro_batch), ("stat_group", stat_group)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise RecipeError(f"{name}: {value!r} is not a whole number of at least 1.")
    if method not in METHODS:
        raise RecipeError(
            f"method: there is no {method!r}. There are {listed(METHODS)}.{nearest(str(method), METHODS)}"
        )
    if method == "one_pass" and micro_batch is not None:
        raise RecipeError("method: one_pass takes the batch whole; leave micro_batch out, or take method='auto'.")
    if dropout not in ("keyed", "stream"):
        raise RecipeError(f"dropout: there is no {dropout!r}. There are keyed and stream, torch's own.")
    if micro_batch is not None:
        sizes(micro_batch + 1, micro_batch, stat_group)  # says what does not go together


def pair(batch: Any) -> tuple[Any, Any]:
    """A batch that is a pair `(inputs, targets)`, as it is. DataError says what to give for any other."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    raise DataError(
        f"A batch is {tree.describe(batch)}, not a pair (inputs, targets). "
        "Say how to take it apart: unpack=lambda batch: (inputs, targets)."
    )
