"""The parameters of a model, each once however many modules share it, and why one of them must be left alone."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from gradstep.errors import ModelError, listed
from gradstep.initialization.layers import Role, base, role, statistics

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Place:
    """A module that holds a parameter, and the parameter's name in it and in the whole model."""

    layer: nn.Module
    local: str
    name: str


@dataclass(frozen=True, slots=True)
class Held:
    """One parameter and all the places that hold it, in the model's order; the first has the parameter's name."""

    parameter: nn.Parameter
    places: list[Place] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.places[0].name

    def known(self) -> tuple[Place, Role] | None:
        """The first place whose layer is known to hold such a parameter."""
        for place in self.places:
            found = role(place.layer, place.local, self.parameter)
            if found is not None:
                return place, found
        return None


def parameters(model: nn.Module) -> list[Held]:
    """Every parameter of the model once, in the order and under the names of `model.named_parameters()`."""
    found: dict[int, Held] = {}
    for prefix, module in model.named_modules():
        for local, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{prefix}.{local}" if prefix else local
            found.setdefault(id(parameter), Held(parameter)).places.append(Place(module, local, name))
    return list(found.values())


def running_statistics(model: nn.Module, keep_frozen: bool) -> list[tuple[Place, Role]]:
    """The running statistics of the norms; not of one whose parameters are all frozen, where these are kept."""
    found: list[tuple[Place, Role]] = []
    for prefix, module in model.named_modules():
        own = [parameter.requires_grad for parameter in module.parameters(recurse=False)]
        if not (keep_frozen and own and not any(own)):
            for local, constant in statistics(module).items():
                found.append((Place(module, local, f"{prefix}.{local}" if prefix else local), constant))
    return found


def hold_ready(model: nn.Module) -> None:
    """ModelError: this is no model, or some of its parameters have no shape or no memory yet."""
    if not isinstance(model, nn.Module):
        raise ModelError(f"initialize: {type(model).__name__} is no torch.nn.Module.")
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    lazy = [name for name, tensor in tensors.items() if is_lazy(tensor)]
    if lazy:
        raise ModelError(
            f"initialize: {listed(lazy)} of the model have no shape yet. Run one batch through it first: model(inputs)."
        )
    meta = [name for name, tensor in tensors.items() if tensor.is_meta]
    if meta:
        raise ModelError(
            f"initialize: {listed(meta)} of the model lie on the meta device and have no memory. "
            "Call model.to_empty(device=...) first."
        )


def why_left(held: Held) -> str:
    """Why a parameter whose role is not known stays as it is."""
    place = held.places[0]
    if isinstance(place.layer, ParametrizationList):
        return "a parametrised weight is computed from it"
    kind = base(place.layer)
    if kind is None:
        return f"{type(place.layer).__name__} is no layer that initialize knows"
    whole = place.local.rpartition("_")[0]  # weight_g and weight_v, as the old weight_norm has them; weight_orig
    if whole and whole not in place.layer._parameters and hasattr(place.layer, whole):
        return f"{whole} is computed from it"
    return f"no parameter of {kind.__name__}"


def unfit(values: Tensor) -> str:
    """Why numbers can't be written into this tensor as they are; empty if they can."""
    if type(values.data) is not Tensor:
        return f"a {type(values.data).__name__}"
    if values.is_quantized:
        return "quantised"
    if values.layout != torch.strided:
        return "sparse"
    if values.dtype not in _DTYPES:
        return f"its dtype is {str(values.dtype).removeprefix('torch.')}"
    if values.numel() == 0:
        return "it is empty"
    return "several of its elements are one number in memory" if _overlaps_itself(values) else ""


def overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two strided tensors of one storage have a number in common."""
    spans = _span(one), _span(other)
    begin, end = min(first for first, _ in spans), max(last for _, last in spans)
    if max(first for first, _ in spans) >= min(last for _, last in spans):
        return False
    if one.dtype != other.dtype:
        return True  # two readings of one memory: not looked at more closely
    # Ranges that cross need not have a number in common: columns of one matrix have none.
    size = one.element_size()
    taken = torch.zeros((end - begin) // size, dtype=torch.bool, device="cpu")
    taken.as_strided(one.shape, one.stride(), (one.data_ptr() - begin) // size).fill_(True)
    return bool(taken.as_strided(other.shape, other.stride(), (other.data_ptr() - begin) // size).any())


def _span(values: Tensor) -> tuple[int, int]:
    """Where in memory a tensor begins and ends, in bytes."""
    last = sum((size - 1) * stride for size, stride in zip(values.shape, values.stride(), strict=True))
    return values.data_ptr(), values.data_ptr() + (last + 1) * values.element_size()


def _overlaps_itself(values: Tensor) -> bool:
    """Whether elements share memory, as after `expand()`: a stride does not get past what smaller ones run through."""
    reach = 0
    for stride, size in sorted(zip(values.stride(), values.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return True
            reach += stride * (size - 1)
    return False
