"""Parameters and gradients of a model as two flat vectors: Torch7's `getParameters()`, for torch's modules.

Sharing is what makes it useful and what gets lost: torch drops `.grad` in `zero_grad()`, and `.to()` moves parameters.
Gradients are brought back the moment they arrive; parameters that have moved are an error.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.nn.parameter import is_lazy
from torch.utils.weak import WeakTensorKeyDictionary

from gradstep.errors import ModelError, listed

_AGAIN = " Call flatten_parameters(model) again and go on with the vectors it returns."


class FlatParameters(NamedTuple):
    """`(params, grads)`: two 1-D tensors of one length and dtype, which share their memory with the model."""

    params: Tensor
    grads: Tensor

    def check(self) -> None:
        """Brings every `.grad` back into `grads`; one that is missing reads zero.

        Raises ModelError if `params` are no longer the model's.
        """
        check_sharing(self.params)
        mend_gradients(self.params)


def flatten_parameters(model: nn.Module) -> FlatParameters:
    """Lays a model's parameters out in one vector, and their gradients in another, and returns both.

    Every parameter becomes a view of `params` and every `.grad` a view of `grads`, in the order of
    `model.parameters()`. Parameters stay the objects they were, so optimizers that hold them go on working. Gradients
    that are there are kept; where there are none, `grads` is zero. Tied weights are there once.

    Frozen parameters (`requires_grad=False`) are left out, so that weight decay can't move them. Torch7, which knows
    no frozen parameters, has all of them. After freezing or unfreezing, call this again.

    A second call returns the same two tensors, unless parameters have moved or changed: then it makes new ones, and
    the methods of `gradstep.optim` refuse the old.

    Every view is contiguous in torch's default memory format: a model in channels_last gets its weights back in the
    default one, and `model.to(memory_format=torch.channels_last)` afterwards moves them out of `params`.

    What is mended, by a hook at the place where autograd adds to `.grad`: `zero_grad()`, which drops `.grad`, and
    `p.grad = other`. A gradient that your code still holds when autograd finds `.grad` empty is left alone (it may
    have been set aside, to be put back); `FlatParameters.check()` and the methods of `gradstep.optim` mend that too.

    What the mending costs: after `zero_grad()` every backward hangs each view again. Two hundred layers of 4×4 took 1.7
    times as long, forward and backward, on one CPU core; with `grads.zero_()` in its place, 1.1 times.

    Raises ModelError where there is nothing to flatten; for parameters of several dtypes or on several devices; for
    two parameter objects in the same memory; for parameters whose shape is not known yet.
    """
    named = _trainable(model)
    _check_flattenable(model, named)
    parameters = list(named.values())
    flat = _laid_out_before(parameters)
    if flat is None:
        for sharing in list(_SHARING.values()):
            sharing.release_if_sharing(parameters)
        flat = _lay_out(parameters)
        _SHARING[flat.params] = _Sharing(weakref.ref(model), flat.grads, named)
    _OWNED[model] = flat
    return flat


def check_sharing(params: Tensor) -> None:
    """Raises ModelError if `params` came from `flatten_parameters` and are no longer the model's; else does nothing."""
    sharing = _SHARING.get(params)
    if sharing is not None and (complaint := sharing.complaint()):
        raise ModelError(complaint + _AGAIN)


def mend_gradients(params: Tensor) -> None:
    """If `params` came from `flatten_parameters`: every `.grad` is a view of `grads` again, zero where it was None."""
    sharing = _SHARING.get(params)
    if sharing is not None:
        sharing.mend()


@dataclass(slots=True, weakref_slot=True, eq=False)
class _Slot:
    """The place of one parameter: where it begins in the vectors, and in memory."""

    name: str
    parameter: nn.Parameter
    start: int
    data: int  # address of the parameter
    grad: int  # address of its gradient
    hung: Callable[[], Tensor | None]  # the view that was its `.grad`, held weakly
    node: Node  # where autograd adds to `.grad`; autograd holds it weakly, and the hook would go with it

    def in_place(self) -> bool:
        return self.parameter.data_ptr() == self.data

    def shares(self) -> bool:
        grad = self.parameter.grad
        return grad is not None and grad.layout is torch.strided and grad.data_ptr() == self.grad

    def dropped(self) -> bool:
        """Whether nobody holds the view any more. As long as somebody does, it may be put back."""
        return self.hung() is None


class _Sharing:
    """What ties one flat vector to a model's parameters. Holds neither `params` nor the model, so that both can go."""

    def __init__(self, model: Callable[[], nn.Module | None], grads: Tensor, named: Mapping[str, nn.Parameter]) -> None:
        self.model, self.grads, self.released = model, grads, False
        self.slots: list[_Slot] = []
        start = 0
        for name, parameter in named.items():
            view = _view(grads, start, parameter)
            parameter.grad = view
            addresses = parameter.data_ptr(), view.data_ptr()
            node = get_gradient_edge(parameter).node
            self.slots.append(_Slot(name, parameter, start, *addresses, weakref.ref(view), node))
            start += parameter.numel()
        self._hooks = [slot.node.register_hook(_hook(weakref.ref(self), slot)) for slot in self.slots]

    def holds_exactly(self, parameters: Iterable[nn.Parameter]) -> bool:
        return [id(slot.parameter) for slot in self.slots] == [id(parameter) for parameter in parameters]

    def release_if_sharing(self, parameters: Iterable[nn.Parameter]) -> None:
        """Before these parameters move into another vector."""
        moving = {id(parameter) for parameter in parameters}
        if any(id(slot.parameter) in moving for slot in self.slots):
            self.released = True
            for hook in self._hooks:
                hook.remove()

    def complaint(self) -> str:
        """What is wrong with the parameters, in a sentence; nothing if they are the model's and in place."""
        if self.released:
            return "these params were given to another flat vector by a later flatten_parameters()."
        for slot in self.slots:
            if not slot.in_place():
                return f"the parameter '{slot.name}' has left the flat vector (by model.to(), p.data = or the like)."
        model = self.model()
        if model is None or self.holds_exactly(_trainable(model).values()):
            return ""
        own, now = {slot.name: slot.parameter for slot in self.slots}, _trainable(model)
        changed = [name for name in {**own, **now} if own.get(name) is not now.get(name)]
        return f"the model's parameters were replaced, frozen or unfrozen since they were laid out: {listed(changed)}."

    def mend(self) -> None:
        """Whatever `.grad` holds moves into `grads`, and the views are hung again."""
        for slot in self.slots:
            if not slot.shares():
                self._rehang(slot)

    def arrived(self, slot: _Slot) -> None:
        """Autograd has added to this parameter's `.grad`."""
        if not slot.in_place():
            raise ModelError(self.complaint() + _AGAIN)
        if slot.shares() or slot.parameter.grad is None or not slot.dropped():
            return
        # All at once: what gets no gradient in this backward must read zero too, not what the last one left.
        for each in self.slots:
            if not each.shares() and each.dropped():
                self._rehang(each)

    @torch.no_grad()
    def _rehang(self, slot: _Slot) -> None:
        grad = slot.parameter.grad
        if grad is not None and grad.requires_grad:
            raise ModelError(
                f"the gradient of '{slot.name}' carries a graph, which a flat vector can't hold. Take such gradients "
                "with torch.autograd.grad(loss, parameters, create_graph=True) instead of backward(create_graph=True)."
            )
        view = _view(self.grads, slot.start, slot.parameter)
        if grad is None:
            view.zero_()
        else:
            view.copy_(_dense(grad))
        slot.parameter.grad = view
        slot.hung = weakref.ref(view)


# As long as a model lives, so do its vectors; as long as a vector lives, it is known what it shares.
_OWNED: weakref.WeakKeyDictionary[nn.Module, FlatParameters] = weakref.WeakKeyDictionary()
_SHARING = WeakTensorKeyDictionary()


def _hook(sharing: Callable[[], _Sharing | None], slot: _Slot) -> Callable[[Any, Any], None]:
    """Weak, for the slot holds the node and the node its hook: a strong one would be a circle through C++."""
    where = weakref.ref(slot)

    def arrived(_inputs: Any, _outputs: Any) -> None:
        alive, place = sharing(), where()
        if alive is not None and place is not None:
            alive.arrived(place)

    return arrived


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _laid_out_before(parameters: Sequence[nn.Parameter]) -> FlatParameters | None:
    for params, sharing in list(_SHARING.items()):
        if sharing.holds_exactly(parameters) and not sharing.complaint():
            sharing.mend()
            return FlatParameters(params, sharing.grads)
    return None


@torch.no_grad()
def _lay_out(parameters: Sequence[nn.Parameter]) -> FlatParameters:
    """Moves the parameters into a new vector, and copies their gradients into another."""
    first = parameters[0]
    flat = FlatParameters(*(first.new_zeros(sum(each.numel() for each in parameters)) for _ in range(2)))
    start = 0
    for parameter in parameters:
        view = _view(flat.params, start, parameter)
        view.copy_(parameter)
        parameter.data = view
        if parameter.grad is not None:
            _view(flat.grads, start, parameter).copy_(_dense(parameter.grad))
        start += parameter.numel()
    return flat


def _view(vector: Tensor, start: int, like: Tensor) -> Tensor:
    return vector[start : start + like.numel()].view(like.shape)


def _dense(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient


def _check_flattenable(model: nn.Module, named: Mapping[str, nn.Parameter]) -> None:
    if not named:
        raise ModelError(f"{type(model).__name__} has no parameters that require a gradient: nothing to flatten.")
    for name, parameter in named.items():
        if is_lazy(parameter):
            raise ModelError(f"the shape of '{name}' is not known yet. Run one batch through the model first.")
    kinds: dict[tuple[torch.dtype, torch.device], list[str]] = {}
    places: dict[int, str] = {}
    for name, parameter in named.items():
        kinds.setdefault((parameter.dtype, parameter.device), []).append(name)
        if parameter.numel() and (other := places.setdefault(parameter.data_ptr(), name)) != name:
            raise ModelError(
                f"'{other}' and '{name}' are two parameters in the same memory, which would come apart. "
                "Tie them by assigning one parameter object to both names."
            )
    if len(kinds) > 1:
        each = "; ".join(
            f"{str(dtype).removeprefix('torch.')} on {device}: {listed(names, 3)}"
            for (dtype, device), names in kinds.items()
        )
        raise ModelError(
            f"one vector has one dtype and one device; here are {each}. Convert the model first "
            "(model.float(), model.to(device)), or flatten its parts: flatten_parameters(model.part)."
        )
