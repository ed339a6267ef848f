"""Is every gradient sent through the graph of the outputs that it was computed from? A check for anybody's loop.

Where a loop computes the criterion's gradient as a value of its own and sends it through the model afterwards
(Torch7's `model:backward(input, gradient)`, gradient caching, split models), nothing but the loop's author sees to it
that both belong together: autograd sends any gradient of the right shape through any graph. Here it is looked for by
value. Seen are every forward of the models (what went in and what came out), every gradient that reached a tensor cut
off from the graph (`outputs.detach().requires_grad_()`) with the values it had then, and every gradient that arrives
at a forward's outputs. One that arrives is held against those seen before:

- it is a multiple of consecutive rows of an earlier one, so it was computed from the values `V` that these rows had;
- all is well if `V` are the outputs that it arrived at, and nothing is claimed if `V` came out of no forward, or if it
  was not given as a value, to a backward or as a factor: then a criterion has made it of the outputs there and then;
- else it was computed from another forward's outputs, and MismatchError says whose.

All three must fit, so that a loop without such gradients is never accused. That leaves things that are not seen:
gradients worked out by hand, of outputs changed on their way to the criterion (`outputs / 2`), weighted by row, of rows
in another order, or of too few numbers to be told apart (one output per micro-batch, say). It costs several times a
step's time: it is for a few steps, while a loop is being written.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import TensorWeakRef

from gradstep import tree
from gradstep.errors import MismatchError, ModelError
from gradstep.update.alike import (
    Forward,
    Match,
    Record,
    agrees,
    copy,
    digests,
    evidence,
    exact,
    found,
    holds,
    is_wrapped,
    looks_linear,
    matches,
    origin,
    readable,
    rounding,
    same_inputs,
    tolerance_of,
    views,
)

OTHER_GRAPH = "another forward's graph"
REPEATED_ON_OTHERS = "forward repeated on other inputs"
STALE = "stale outputs"
KEEP = 256  # forwards, and gradients, that are remembered
_BYTES = 2**30  # and no more of each than fits in here
_GIVEN = 2**14  # constants whose names are kept, no more
_EVIDENCE = 24.0  # bits: less than this may fit by chance
_BACKWARDS = (torch.autograd.backward, Tensor.backward)


@contextmanager
def check_backward(models: nn.Module | Iterable[nn.Module], *, keep: int = KEEP) -> Iterator[None]:
    """Raises MismatchError from inside a backward that sends a gradient through the wrong forward's graph.

        with gradstep.check_backward(model):
            ...  # a few steps of anybody's loop

    Three mistakes are told apart: "another forward's graph", "forward repeated on other inputs" and "stale outputs"
    (the same inputs, but weights, dropout masks or buffers changed in between). The `.grad` of all parameters is as
    it was before the offending backward. `models` are the modules whose calls are the forwards. The last `keep`
    forwards and gradients are remembered, up to 1 GiB of each; no graph is kept alive, and no hook is left behind.
    """
    watched = [models] if isinstance(models, nn.Module) else list(models)
    for each in watched:
        if not isinstance(each, nn.Module):
            raise ModelError(f"check_backward takes a module, or a list of modules: {type(each).__name__} is none.")
    watch = _Watch([_own(each) for each in watched], keep)
    # A hook on all modules and not on these: a model stays picklable, and a copy made of it is not watched.
    on_forward = register_module_forward_hook(watch.forward, with_kwargs=True)
    try:
        with watch, warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*when there are global hooks on modules")  # of a compiled module
            yield
    finally:
        on_forward.remove()
        torch_modules._global_forward_hooks_with_kwargs.pop(on_forward.id, None)  # which torch's own remove() forgets
        watch.close()


class _Watch(TorchFunctionMode):
    """What is seen while the check runs. Every function of torch comes by, and so does every forward."""

    def __init__(self, models: list[nn.Module], keep: int) -> None:
        super().__init__()
        self.models, self.keep = models, keep
        self.forwards: dict[int, Forward] = {}
        self.records: dict[int, Record] = {}
        self.leaves: dict[int, tuple[TensorWeakRef, RemovableHandle | None]] = {}
        self.given: dict[int, tuple[TensorWeakRef, int]] = {}
        self.handles: list[RemovableHandle] = []
        self.count = self.seen = 0
        self.task: int | None = None

    def close(self) -> None:
        """Removes all hooks and forgets everything."""
        for handle in [*self.handles, *(handle for _, handle in self.leaves.values() if handle is not None)]:
            handle.remove()
        for kept in (self.forwards, self.records, self.leaves, self.given, self.handles):
            kept.clear()

    # What is seen.

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Looks at what goes by, and changes none of it."""
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():
            return func(*args, **kwargs)
        self._look((args, kwargs))
        self._note_given((args, kwargs), of_a_backward=func in _BACKWARDS or func is torch.autograd.grad)
        if func in _BACKWARDS:
            return self._backward(func, args, kwargs)
        self.task = None
        result = func(*args, **kwargs)
        if func is torch.autograd.grad:
            self._took(args[1] if len(args) > 1 else kwargs["inputs"], result)
        self._look((args, result if isinstance(result, Tensor) else ()))  # `requires_grad_()` has made leaves of them
        return result

    def _look(self, values: Any) -> None:
        """Hooks the tensors cut off from the graph that are to get a gradient, when they come by first."""
        for leaf in _tensors(values):
            if not (readable(leaf) and leaf.requires_grad and leaf.is_leaf) or self._known(leaf):
                continue
            ref = TensorWeakRef(leaf)
            handle = None if isinstance(leaf, nn.Parameter) else leaf.register_hook(self._hook(self._reached, ref))
            self.leaves[id(leaf)] = (ref, handle)
            if len(self.leaves) % 1024 == 0:
                self.leaves = {key: pair for key, pair in self.leaves.items() if pair[0]() is not None}

    def _note_given(self, values: Any, *, of_a_backward: bool) -> None:
        """Notes the constants that meet a graph: a gradient that is sent on is one, alone or as a factor."""
        tensors = list(_tensors(values))
        if not of_a_backward and not (torch.is_grad_enabled() and any(each.requires_grad for each in tensors)):
            return
        for each in tensors:
            if readable(each) and each.numel() > 1 and (of_a_backward or not each.requires_grad):
                self.given[id(each)] = (TensorWeakRef(each), self.count)
        if len(self.given) > _GIVEN:
            alive = [(key, pair) for key, pair in self.given.items() if pair[0]() is not None]
            self.given = dict(alive[-_GIVEN // 2 :])

    def _was_given(self, gradient: Tensor, forward: Forward) -> bool:
        """Whether it is rows of such a constant, noted since the forward. What a criterion makes itself is none."""
        constants = [ref() for ref, since in self.given.values() if since >= forward.number]
        for constant in (each for each in constants if each is not None):
            for view in views(gradient.shape, constant.shape):
                tolerance = rounding(gradient, constant)
                if found(exact(view(gradient)), exact(view(constant)), tolerance, scaled=True):
                    return True
        return False

    def _known(self, leaf: Tensor) -> bool:
        return id(leaf) in self.leaves and self.leaves[id(leaf)][0]() is leaf

    def _hook(self, function: Callable[..., None], *given: Any) -> Callable[[Tensor | None], None]:
        def hook(gradient: Tensor | None) -> None:
            if gradient is not None and readable(gradient):
                with torch.no_grad(), torch._C.DisableTorchFunction():
                    self.task = torch._C._current_graph_task_id()
                    function(*given, gradient)

        hook.__torch_unserializable__ = True  # type: ignore[attr-defined]  # else saving the tensor would warn of it
        return hook

    def _reached(self, ref: TensorWeakRef, gradient: Tensor) -> None:
        leaf = ref()
        if leaf is not None and leaf.shape == gradient.shape:
            self._remember(Record(copy(leaf), copy(gradient), tolerance_of(leaf), self.task, self.count, ref))

    def _took(self, inputs: Any, gradients: Any) -> None:
        """`torch.autograd.grad` with respect to tensors that are no leaves: a model's outputs themselves, say."""
        asked = [inputs] if isinstance(inputs, Tensor) else list(inputs)
        for tensor, gradient in zip(asked, gradients, strict=False):
            if gradient is not None and readable(gradient) and not tensor.is_leaf and tensor.shape == gradient.shape:
                self._remember(Record(copy(tensor), copy(gradient), tolerance_of(tensor), self.task, self.count))

    def _remember(self, record: Record) -> None:
        self.seen += 1
        self.records[self.seen] = record
        _trim(self.records, self.keep)

    def forward(self, module: nn.Module, args: Any, kwargs: Any, outputs: Any) -> None:
        """The hook on every module's forward: keeps those of the models."""
        if torch.compiler.is_compiling():
            return
        module = _own(module)
        if not any(module is each for each in self.models):
            return
        given, returned = list(_tensors((args, kwargs))), list(_tensors(outputs))
        if any(is_wrapped(each) for each in [*given, *returned, *module.parameters()]):
            return  # inside vmap and its like, where values are not to be had
        returned = [each for each in returned if readable(each)]
        self.count += 1
        with torch.no_grad(), torch._C.DisableTorchFunction():
            self.forwards[self.count] = Forward(
                self.count,
                module,
                [digests(each) for each in given],
                [copy(each) for each in returned],
                tuple(_state(each) for each in module.parameters()),
                module.training,
                max((tolerance_of(each) for each in returned), default=0.0),
                f"forward {self.count} ({self._name(module)}inputs {_shapes(given)}, outputs {_shapes(returned)})",
            )
            for slot, each in enumerate(returned):
                if each.grad_fn is not None:
                    self.handles.append(each.register_hook(self._hook(self._arrived, self.count, slot)))
        _trim(self.forwards, self.keep)
        if self.count % 1024 == 0:
            self.handles = [handle for handle in self.handles if handle.hooks_dict_ref() is not None]

    def _name(self, module: nn.Module) -> str:
        if len(self.models) == 1:
            return ""
        number = next(n for n, each in enumerate(self.models, 1) if each is module)
        return f"of model {number}, {type(module).__name__}; "

    # What a backward does.

    def _backward(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Runs it; after a mismatch every `.grad` is as it was, also of parameters that were through already."""
        leaves = [ref() for ref, _ in self.leaves.values()]
        parameters = [parameter for model in self.models for parameter in model.parameters()]
        known = {id(each): each for each in [*leaves, *parameters] if each is not None}
        before = [(each, each.grad, copy(each.grad)) for each in known.values() if each.grad is not None]
        without = [each for each in known.values() if each.grad is None]
        try:
            return func(*args, **kwargs)
        except MismatchError:
            with torch.no_grad():
                for each in without:
                    each.grad = None
                for each, gradient, was in before:
                    each.grad = gradient.copy_(was)  # the user's own tensor, with what was in it
            raise

    def _arrived(self, number: int, slot: int, gradient: Tensor) -> None:
        """A gradient is about to go through the graph of forward `number`: raises where it belongs to another's."""
        forward = self.forwards.get(number)
        if forward is None:
            return
        assert self.task is not None
        forward.tasks.add(self.task)
        if evidence(gradient) < _EVIDENCE:
            return
        outputs, wrong = forward.outputs[slot], []
        for record in reversed(self.records.values()):
            if record.task in forward.tasks:
                continue  # a tensor in this forward's own graph, such as an offset added to its outputs
            for match in matches(record, gradient):
                if agrees(match, outputs, forward.tolerance):
                    return
                wrong.append(match)
        given = bool(wrong) and self._was_given(gradient, forward)
        for match in wrong:
            parts = match.pieces()
            if given or (parts and all(self._was_given(each, forward) for each in parts)):
                self._claim(match, forward, gradient)

    def _claim(self, match: Match, forward: Forward, gradient: Tensor) -> None:
        """Raises where the values that the gradient was computed from came, all of them, out of known forwards."""
        known = [each for each in self.forwards.values() if each.model is forward.model]
        origins = [one for each in known if (one := origin(match, each)) is not None]
        if len(set().union(*(one.rows for one in origins))) < len(match.values):
            return
        origins = [one for one in origins if one.source is not forward]  # which has its part in a sum
        if not origins:  # another output of the same forward
            return
        same = [one.source for one in origins if same_inputs(one, forward)]
        if not same:
            sources = [one.source for one in origins]
            kind = REPEATED_ON_OTHERS if self._is_repeat(match, forward, sources[-1]) else OTHER_GRAPH
            raise MismatchError(_told(kind, match, forward, sources[-1]), kind)
        if not looks_linear(gradient):
            raise MismatchError(_told(STALE, match, forward, same[-1]), STALE)

    def _is_repeat(self, match: Match, forward: Forward, source: Forward) -> bool:
        """Whether the forward was run for this backward, again, on inputs of the same step."""
        return match.record.forwards < forward.number and any(
            each.model is forward.model and each.weights == source.weights and holds(each, forward)
            for each in self.forwards.values()
            if each.number < forward.number
        )


def _told(kind: str, match: Match, forward: Forward, source: Forward) -> str:
    """The whole message of one mistake."""
    way = (
        f"a gradient computed from the outputs of {source.text} was sent through the graph of {forward.text}: "
        f"{match.text}."
    )
    if kind == OTHER_GRAPH:
        advice = (
            "A graph holds what its own forward left behind, so what would have reached the weights is the gradient of "
            "nothing. Keep the outputs of every micro-batch, and call outputs.backward(gradient) on the very outputs "
            "that the gradient was computed from"
        )
    elif kind == REPEATED_ON_OTHERS:
        advice = (
            f"Forward {forward.number} had been repeated for it, but on inputs of another micro-batch. Repeat it on "
            "those that the gradient belongs to: outputs = model(inputs[a:b]), then outputs.backward(gradient[a:b])"
        )
    else:
        advice = f"The inputs are the same and the outputs are not. {_changed(source, forward)}"
    rest = "Or leave it all to gradstep.backward(model, criterion, inputs, targets, micro_batch=...)."
    return f"{kind}: {way} {advice}. {rest}"


def _changed(before: Forward, now: Forward) -> str:
    if before.training != now.training:
        return "One was run in training mode and one was not: call model.train() before both"
    if before.weights != now.weights:
        return "The weights were changed in between: step the optimizer only when all gradients are through"
    return (
        "The weights are the same, so dropout masks, other random draws or buffers differ: draw the same masks again "
        "(save torch.get_rng_state() before the first forward, set it before the second)"
    )


def _own(module: nn.Module) -> nn.Module:
    """The module itself, where `torch.compile` has wrapped it."""
    inner = getattr(module, "_orig_mod", module)
    return inner if isinstance(inner, nn.Module) else module


# Tensors.


def _tensors(values: Any) -> Iterator[Tensor]:
    """All tensors in a nest, dataclasses among it."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        for each in values.values():
            yield from _tensors(each)
    elif isinstance(values, (list, tuple)):
        for each in values:
            yield from _tensors(each)
    elif is_dataclass(values) and not isinstance(values, type):
        for one in fields(values):
            yield from _tensors(getattr(values, one.name, None))


def _state(parameter: Tensor) -> tuple[int, float]:
    """Two numbers that change with a parameter: torch's count of its changes, and its sum for those made past it."""
    version = -1 if parameter.is_inference() else parameter._version
    return version, float(parameter.detach().double().sum()) if readable(parameter) else 0.0


def _shapes(tensors: list[Tensor]) -> str:
    return ", ".join(tree.describe(each) for each in tensors) or "none"


def _trim(kept: dict[int, Any], keep: int) -> None:
    """Forgets the oldest: what is over `keep`, or over the bytes that are allowed."""
    size = sum(each.size for each in kept.values())
    while len(kept) > keep or (size > _BYTES and len(kept) > 1):
        size -= kept.pop(next(iter(kept))).size
