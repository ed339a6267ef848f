"""Steps that a device replays: the kernels of a whole step are launched as one, and not one by one.

What Python decides in a step is decided when its graph is captured. So the numbers that move from step to step are
read from the device's memory, and written there before each replay: the batch, the rates, the step that masks are keyed
by, the seed. Everything else that a step goes by is compared with what it was; where it is another, the step is taken
one by one, and a new graph is captured in the next.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gradstep import tree
from gradstep.finite import Guard
from gradstep.keys import keep_streams, key, seed_model, stream_positions
from gradstep.optim import SGD
from gradstep.optim.clipping import Clip
from gradstep.state import TrainState
from gradstep.step import advance, done, step
from gradstep.update import Outcome, Update

_MOST = 16  # graphs of a run: a step whose conditions are always others is taken one by one
_OPTIMIZERS = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, SGD)  # whose fused kernels read a rate from memory
_PLAIN = (bool, int, float, str, type(None))


class Graph(Protocol):
    """What a device keeps of the kernels that it was given."""

    def capture(self, body: Callable[[], Outcome]) -> Outcome:
        """What `body` gives, to be filled by a replay: none of its kernels runs now."""

    def replay(self) -> None:
        """Runs them on the memory that they were captured with. Waits for nothing."""


class CudaGraph:
    """A CUDA graph. A step before it has been taken in a stream of its own, as torch's notes on CUDA graphs ask."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._graph = device, torch.cuda.CUDAGraph()

    def capture(self, body: Callable[[], Outcome]) -> Outcome:
        # A thread that writes a checkpoint may go on meanwhile. Entering waits for the device: once in a graph's life.
        with torch.cuda.device(self._device), torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            return body()

    def replay(self) -> None:
        self._graph.replay()


def maker_of(device: torch.device) -> Callable[[torch.device], Graph] | None:
    """What makes graphs on a device; None where it keeps none."""
    return CudaGraph if device.type == "cuda" else None


def why_not(state: TrainState, update: Update, guard: Guard, device: torch.device) -> str | None:
    """Why steps of this training can't be captured; None where that may be tried."""
    groups = state.optimizer.param_groups
    if maker_of(device) is None:
        return f"{device.type} keeps no graphs"
    if update.micro_batch is not None:
        return "micro-batches are taken one by one"
    if guard.rule.policy == "skip" or state.scale is not None:
        return "each step waits to see whether its gradient is finite"
    if type(state.optimizer) not in _OPTIMIZERS:
        return f"{type(state.optimizer).__name__} has no fused kernel that reads its rate from memory"
    if any(group.get("lr_decay") or group.get("momentum_form") == "inside" for group in groups):
        return "the optimizer counts its steps in Python"
    if any(isinstance(value, Tensor) for group in groups for value in group.values()):
        return "an option of the optimizer is a tensor, which is the user's"
    return None


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: Graph
    conditions: list[Any]
    batch: list[Tensor]  # that the kernels read
    outcome: Outcome  # that they fill
    gradients: list[tuple[nn.Parameter, Tensor | None]]


class GraphedSteps:
    """Takes steps as `step.step` does: the first of a kind one by one, those after it by replaying a graph.

    With `strict`, RuntimeError says why a step could not be captured; else all further ones are taken one by one.
    """

    def __init__(self, make: Callable[[torch.device], Graph], *, strict: bool) -> None:
        self._make, self._strict = make, strict
        self._known: dict[Any, _Captured | list[Any]] = {}  # by the kind of batch: a graph, or under what it was seen
        self._captures = 0
        self._rates: list[Tensor] = []
        self._numbers: list[tuple[dict[str, Any], list[str]]] = []  # what modules hold in Python, and where
        self._tensors: list[tuple[dict[str, Any], list[str]]] = []  # and their tensors but for the parameters
        self.replayed = 0  # steps

    def __call__(
        self, state: TrainState, batch: Any, update: Update, clip: Clip | None, guard: Guard, device: torch.device
    ) -> Outcome:
        if self._captures >= _MOST or state.step in state.left_out:
            return step(state, batch, update, clip, guard, device)

        def body(inputs: Any, targets: Any) -> Outcome:
            return advance(state, inputs, targets, update, clip, guard)

        given = update.unpack(batch)
        leaves, nest = pytree.tree_flatten(given)
        kind = (nest, *[(leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves])
        known, conditions = self._known.get(kind), self._conditions(state, update)
        if isinstance(known, _Captured):
            if known.conditions == conditions:
                return self._replayed(known, leaves, given[1], state, update, device)
        elif known == conditions:
            try:
                captured = self._captured(leaves, nest, conditions, body, state, update, device)
            except Exception as error:  # nothing of the step has been done: it is taken now
                if self._strict:
                    raise RuntimeError(f"the step can't be captured: {error}") from error
                self._captures = _MOST
                warnings.warn(
                    f"plan.graph: a step can't be captured, and all are taken one by one: {error}", stacklevel=2
                )
                return step(state, batch, update, clip, guard, device)
            self._known[kind] = captured
            return self._replayed(captured, leaves, given[1], state, update, device)
        with _aside(device):
            outcome = step(state, batch, update, clip, guard, device)
        self._known[kind] = self._conditions(state, update)  # with the slots that the first step has made
        return outcome

    def _captured(
        self,
        leaves: Sequence[Any],
        nest: Any,
        conditions: list[Any],
        body: Callable[[Any, Any], Outcome],
        state: TrainState,
        update: Update,
        device: torch.device,
    ) -> _Captured:
        there = all(isinstance(leaf, Tensor) and leaf.device == device for leaf in leaves)
        _refuse(not there, "a batch holds more than tensors on the device")
        self._captures += 1
        graph, batch = self._make(device), [leaf.clone() for leaf in leaves]
        restore, held = keep_streams(), self._held_in_python()
        try:
            with self._reading_rates(state, device), update.keyed_from_memory():
                before = _host_streams(device)
                outcome = graph.capture(lambda: body(*pytree.tree_unflatten(batch, nest)))
            _refuse(
                _host_streams(device) != before, "it draws from a stream of the host, and a graph draws the same again"
            )
            changed = self._conditions(state, update) != conditions
            _refuse(changed, "the model keeps in Python what a step changes, and a graph has it fixed")
        except BaseException:  # no kernel has run: what Python did is undone too
            restore()
            for own, was in held:
                own.update(was)
            raise
        gradients = [(p, p.grad) for group in state.optimizer.param_groups for p in group["params"]]
        return _Captured(graph, conditions, batch, outcome, gradients)

    def _replayed(
        self,
        captured: _Captured,
        leaves: Sequence[Tensor],
        targets: Any,
        state: TrainState,
        update: Update,
        device: torch.device,
    ) -> Outcome:
        # The order is the step's own: what the kernels read is written before they run.
        seed_model(device, key(state.seed, "model", index=state.step))
        update.key_in_memory(state.step + 1)
        for own, leaf in zip(captured.batch, leaves, strict=True):
            own.copy_(leaf, non_blocking=True)
        self._write_rates(state)
        captured.graph.replay()
        for parameter, gradient in captured.gradients:
            parameter.grad = gradient
        self.replayed += 1
        filled = captured.outcome
        outcome = replace(
            filled,
            loss=filled.loss.clone(),  # the next replay fills the same memory
            terms=tree.map_tensors(Tensor.clone, filled.terms),
            outputs=tree.map_tensors(Tensor.clone, filled.outputs),
            units=tree.map_tensors(Tensor.clone, filled.units),
            spoiled=None if filled.spoiled is None else filled.spoiled.clone(),
            targets=targets,
            step=state.step + 1,
        )
        done(state, outcome)
        return outcome

    def _held_in_python(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        return [(own, {n: own[n] for n in names if n in own}) for own, names in (*self._numbers, *self._tensors)]

    def _write_rates(self, state: TrainState) -> None:
        for rate, group in zip(self._rates, state.optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])

    @contextmanager
    def _reading_rates(self, state: TrainState, device: torch.device) -> Iterator[None]:
        """Inside, the optimizer's kernels read their rates from memory; the options are then as they were."""
        groups = state.optimizer.param_groups
        if len(self._rates) != len(groups):
            self._rates = [torch.zeros((), dtype=torch.float32, device=device) for _ in groups]
        before: list[dict[str, Any]] = [
            {name: group[name] for name in ("lr", "capturable") if name in group} for group in groups
        ]
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate
            if "capturable" in group:
                group["capturable"] = True
        try:
            yield
        finally:
            for group, was in zip(groups, before, strict=True):
                group.update(was)

    def _look_at(self, *roots: Any) -> None:
        for root in roots:
            for module in root.modules() if isinstance(root, nn.Module) else ():
                own = vars(module)
                self._numbers.append((own, [name for name, value in own.items() if isinstance(value, _PLAIN)]))
                self._tensors.append((own, [name for name, value in own.items() if isinstance(value, Tensor)]))
                self._tensors.append((module._buffers, list(module._buffers)))

    def _conditions(self, state: TrainState, update: Update) -> list[Any]:
        """What a step goes by beside its batch, its rates and its number."""
        if not self._numbers:
            self._look_at(state.model, state.criterion)
        optimizer = state.optimizer
        held: list[Any] = []
        for group in optimizer.param_groups:
            held += [(name, value) for name, value in group.items() if name not in ("params", "lr")]
            for parameter in group["params"]:
                slots = optimizer.state.get(parameter, {})
                held += [parameter.data_ptr(), parameter.requires_grad, *map(_place, slots.values())]
        held += [_place(own[name]) for own, names in self._tensors for name in names if name in own]
        return [id(optimizer), id(update.forward), held, [tuple(map(own.get, names)) for own, names in self._numbers]]


def _refuse(whether: bool, why: str) -> None:
    if whether:
        raise RuntimeError(why)


def _place(value: Any) -> Any:
    """Where a tensor's numbers are; of anything else, what it is."""
    return value.data_ptr() if isinstance(value, Tensor) else value


def _host_streams(device: torch.device) -> dict[str, Any]:
    """Where the streams are that no device replays."""
    positions = stream_positions()
    if device.type == "cpu":  # torch's stream there is the device's own
        positions.pop("torch")
    return positions


@contextmanager
def _aside(device: torch.device) -> Iterator[None]:
    """Inside, kernels go into a stream of their own on a device that has streams; what comes waits for them there."""
    if device.type != "cuda":
        yield
        return
    aside, here = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    aside.wait_stream(here)
    with torch.cuda.stream(aside):
        yield
    here.wait_stream(aside)
