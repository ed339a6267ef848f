"""Steps that a device replays: the kernels of a whole step are launched as one, and not one by one.

What Python decides in a step is decided when its graph is captured. So the numbers that move from step to step are
read from the device's memory, and written there before each replay: the batch, the rates, the step that masks are keyed
by, the seed. Everything else that a step goes by is compared with what it was; where it is another, the step is taken
one by one, and a new graph is captured in the next.

A kernel reads a rate from memory as float32. So that a step is the same in every bit whether it is replayed or not, as
after a resume, those that are taken one by one have their rates in float32 too.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
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
from gradstep.step import begin, done, finish
from gradstep.update import Outcome, Update

_MOST = 16  # graphs of a run: where conditions are always others, steps are taken one by one
_OPTIMIZERS = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, SGD)  # whose fused kernels read a rate from memory
_PLAIN = (bool, int, float, str, type(None))


class Keeper(Protocol):
    """What keeps graphs on a device, for one training: a stream, and memory that its graphs share."""

    def aside(self) -> AbstractContextManager[list[str]]:
        """Inside, kernels go where graphs are captured. What it gives says afterwards where they waited."""

    def capture(self, body: Callable[[], Outcome]) -> tuple[Outcome, Callable[[], None]]:
        """What `body` gives, to be filled by a replay, and what replays it: none of its kernels runs now."""


class Cuda:
    """CUDA graphs, captured in a stream in which a step was taken before, as torch's notes on them ask."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def aside(self) -> Iterator[list[str]]:
        waits: list[str] = []
        here, before = torch.cuda.current_stream(self._device), torch.cuda.get_sync_debug_mode()
        self._stream.wait_stream(here)
        with warnings.catch_warnings(record=True) as heard, torch.cuda.stream(self._stream):
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")  # a capture that fails by a wait leaves torch in disorder
            try:
                yield waits
            finally:
                torch.cuda.set_sync_debug_mode(before)
                here.wait_stream(self._stream)
        for each in heard:
            if "synchroniz" in str(each.message):
                waits.append(f"{each.filename}:{each.lineno}")
            else:
                warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)

    def capture(self, body: Callable[[], Outcome]) -> tuple[Outcome, Callable[[], None]]:
        graph, results = torch.cuda.CUDAGraph(), []
        # The outer contexts put back what is current, whatever becomes of the inner one. Threads that write a
        # checkpoint or make batches go on meanwhile. Entering waits for the device: once in a graph's life.
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            try:
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                    results.append(body())
            except Exception as error:
                raise error.__context__ or error from None  # what ends a capture says less than what broke it
        return results[0], graph.replay


def keeper_of(device: torch.device) -> Callable[[torch.device], Keeper] | None:
    """What keeps graphs on a device; None where nothing does."""
    return Cuda if device.type == "cuda" else None


def why_not(state: TrainState, update: Update, guard: Guard, device: torch.device) -> str | None:
    """Why steps of this training can't be captured; None where that may be tried."""
    groups = state.optimizer.param_groups
    if keeper_of(device) is None:
        return f"{device.type} keeps no graphs"
    if update.micro_batch is not None:
        return "micro-batches are taken one by one"
    if guard.rule.policy == "skip" or state.scale is not None:
        return "each step waits to see whether its gradient is finite"
    if type(state.optimizer) not in _OPTIMIZERS:
        return f"{type(state.optimizer).__name__} has no fused kernel that reads its rate from memory"
    if any(group.get("lr_decay") or group.get("momentum_form") == "inside" for group in groups):
        return "the optimizer counts its steps in Python"
    options = [value for group in groups for name, value in group.items() if name != "params"]
    if tree.tensors(options):
        return "an option of the optimizer is a tensor, which is the user's"
    return None


@dataclass(frozen=True, slots=True)
class _Captured:
    replay: Callable[[], None]
    conditions: list[Any]
    held: list[Any]  # tensors that conditions are about: their addresses can't be given to others
    batch: list[Tensor]  # that the kernels read
    outcome: Outcome  # that they fill
    gradients: list[tuple[nn.Parameter, Tensor | None]]


class GraphedSteps:
    """Takes steps as `step.step` does: the first of a kind one by one, those after it by replaying a graph.

    With `strict`, RuntimeError says why a step can't be captured; else a warning does, and all are taken one by one.
    """

    def __init__(self, keeper: Keeper, *, strict: bool) -> None:
        self._keeper, self._strict = keeper, strict
        self._known: dict[Any, _Captured | list[Any]] = {}  # by the kind of batch: a graph, or under what it was seen
        self._left = _MOST  # graphs that may be captured still
        self._broken = False
        self._rates: list[Tensor] = []
        self._watched: list[tuple[dict[str, Any], list[str]]] = []  # what modules hold, and under which names
        self.replayed = 0  # steps

    def __call__(
        self, state: TrainState, batch: Any, update: Update, clip: Clip | None, guard: Guard, device: torch.device
    ) -> Outcome:
        def body(inputs: Any, targets: Any) -> Outcome:
            scale = begin(state, guard)
            outcome = update.backward(inputs, targets, step=state.step + 1, scale=scale)
            finish(state, outcome, clip, guard)
            return outcome

        given = update.unpack(batch)
        leaves, nest = pytree.tree_flatten(given)
        if not all(isinstance(leaf, Tensor) and leaf.device.type == device.type for leaf in leaves):
            self._give_up("a batch holds more than tensors on the device")
        if self._broken or state.step in state.left_out:
            return self._one_by_one(state, given, body, device)
        kind = (nest, *[(leaf.shape, leaf.dtype, leaf.stride()) for leaf in leaves])
        known, conditions = self._known.get(kind), self._conditions(state, update)
        if isinstance(known, _Captured) and known.conditions == conditions:
            return self._replayed(known, leaves, given[1], state, update, device)
        if known == conditions and self._left:
            try:
                captured = self._captured(leaves, nest, conditions, body, state, update, device)
            except Exception as error:  # no kernel has run, and what Python did is undone: the step is taken now
                self._give_up(error)
                return self._one_by_one(state, given, body, device)
            self._known[kind] = captured
            return self._replayed(captured, leaves, given[1], state, update, device)
        if not self._left:
            return self._one_by_one(state, given, body, device)
        versions = [leaf._version for leaf in leaves]
        with self._keeper.aside() as waits:
            outcome = self._one_by_one(state, given, body, device)
        self._watched = []  # a first step makes slots, and perhaps attributes
        self._known[kind] = self._conditions(state, update)
        if waits:
            self._give_up(f"it waits for the device at {waits[0]}")
        elif versions != [leaf._version for leaf in leaves]:
            self._give_up("it writes into its batch, and a graph into a copy")
        return outcome

    def _give_up(self, why: object) -> None:
        if self._strict:
            raise RuntimeError(f"the step can't be captured: {why}")
        if not self._broken:
            warnings.warn(f"plan.graph: a step can't be captured, and all are taken one by one: {why}", stacklevel=3)
        self._broken = True
        self._known.clear()

    def _one_by_one(
        self, state: TrainState, given: tuple[Any, Any], body: Callable[[Any, Any], Outcome], device: torch.device
    ) -> Outcome:
        seed_model(device, key(state.seed, "model", index=state.step))
        with _options(state, [{"lr": rate.item()} for rate in _in_float32(state)]):
            outcome = body(*given)
        done(state, outcome)
        return outcome

    def _captured(
        self,
        leaves: Sequence[Tensor],
        nest: Any,
        conditions: list[Any],
        body: Callable[[Any, Any], Outcome],
        state: TrainState,
        update: Update,
        device: torch.device,
    ) -> _Captured:
        self._left -= 1
        self._rates = self._rates or [rate.to(device) for rate in _in_float32(state)]
        batch = [leaf.clone() for leaf in leaves]
        restore, parameters = self._undoing(state), _parameters(state)
        reading = [{"lr": rate, **({"capturable": True} if "capturable" in group else {})}
                   for rate, group in zip(self._rates, state.optimizer.param_groups, strict=True)]  # fmt: skip
        try:
            before = _host_streams(device)
            with _options(state, reading), update.keyed_from_memory():
                outcome, replay = self._keeper.capture(lambda: body(*pytree.tree_unflatten(batch, nest)))
            _refuse(_host_streams(device) != before, "it draws from a stream of the host, and a graph draws no more")
            changed = self._conditions(state, update) != conditions
            _refuse(changed, "the model keeps in Python what a step changes, and a graph has it fixed")
        except BaseException:
            restore()
            raise
        held = [own[name] for own, names in self._watched for name in names if name in own]
        held += [slot for slots in state.optimizer.state.values() for slot in slots.values()]
        gradients = [(parameter, parameter.grad) for parameter in parameters]
        return _Captured(replay, conditions, held, batch, outcome, gradients)

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
        captured.replay()
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

    def _write_rates(self, state: TrainState) -> None:
        for rate, group in zip(self._rates, state.optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])

    def _undoing(self, state: TrainState) -> Callable[[], None]:
        """What puts back what Python does in a step: streams of the host, what modules hold, slots, gradients."""
        restore, slots = keep_streams(), {p: dict(own) for p, own in state.optimizer.state.items()}
        modules = [(own, {name: own[name] for name in names if name in own}) for own, names in self._watched]
        gradients = [(parameter, parameter.grad) for parameter in _parameters(state)]

        def undo() -> None:
            restore()
            for own, was in modules:
                own.update(was)
            state.optimizer.state.clear()
            state.optimizer.state.update(slots)
            for parameter, gradient in gradients:
                parameter.grad = gradient

        return undo

    def _conditions(self, state: TrainState, update: Update) -> list[Any]:
        """What a step goes by beside its batch, its rates and its number."""
        if not self._watched:
            self._watched = list(_watched(state.model, state.criterion))
        optimizer = state.optimizer
        found: list[Any] = [id(optimizer), id(update.forward)]
        for group in optimizer.param_groups:
            found += [(name, value) for name, value in group.items() if name not in ("params", "lr")]
            for parameter in group["params"]:
                found += map(_mark, optimizer.state.get(parameter, {}).values())
        for parameter in _parameters(state):
            found += [_mark(parameter), parameter.requires_grad]
        return [*found, *[tuple([_mark(own.get(name)) for name in names]) for own, names in self._watched]]


def _parameters(state: TrainState) -> list[nn.Parameter]:
    """All that a step may give a gradient, whether the optimizer holds it or not."""
    roots = [root for root in (state.model, state.criterion) if isinstance(root, nn.Module)]
    own = [parameter for root in roots for parameter in root.parameters()]
    return list(dict.fromkeys([*own, *(p for group in state.optimizer.param_groups for p in group["params"])]))


def _watched(*roots: Any) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """The numbers, words and tensors that modules hold, buffers among them: in which mapping, under which names."""
    for root in roots:
        for module in root.modules() if isinstance(root, nn.Module) else ():
            own = vars(module)
            yield own, [name for name, value in own.items() if isinstance(value, (*_PLAIN, Tensor))]
            yield module._buffers, list(module._buffers)


def _mark(value: Any) -> Any:
    """Of a tensor, where and how its numbers lie; of anything else, what it is."""
    if isinstance(value, Tensor):
        return value.data_ptr(), value.shape, value.stride(), value.dtype
    return value if isinstance(value, _PLAIN) else id(value)


def _in_float32(state: TrainState) -> list[Tensor]:
    """The rates on the host, as a kernel reads them."""
    return [torch.tensor(group["lr"], dtype=torch.float32) for group in state.optimizer.param_groups]


@contextmanager
def _options(state: TrainState, values: Sequence[dict[str, Any]]) -> Iterator[None]:
    """Inside, the groups have these options; then their own again."""
    groups = state.optimizer.param_groups
    before = [{name: group[name] for name in each} for each, group in zip(values, groups, strict=True)]
    try:
        for group, each in zip(groups, values, strict=True):
            group.update(each)
        yield
    finally:
        for group, was in zip(groups, before, strict=True):
            group.update(was)


def _refuse(whether: bool, why: str) -> None:
    if whether:
        raise RuntimeError(why)


def _host_streams(device: torch.device) -> dict[str, Any]:
    """Where the streams are that no device replays."""
    positions = stream_positions()
    if device.type == "cpu":  # torch's stream there is the device's own
        positions.pop("torch")
    return positions
