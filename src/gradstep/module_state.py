"""A module's parameters and persistent buffers by name, and what of them a file of tensors does not say by itself.

That is which names share their memory, and which tensors lie in memory with their channels last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gradstep.errors import CheckpointError, ModelError


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name. A tensor that has several names is there under the first only."""
    return {name: value for name, value, first in _named_tensors(module) if name == first}


def ties(module: nn.Module) -> dict[str, str]:
    """Further names of tensors that have several, each with the first."""
    return {name: first for name, _, first in _named_tensors(module) if name != first}


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor, str]]:
    """`(name, tensor, the first name of the same memory)`."""
    first: dict[tuple[Any, ...], str] = {}
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor) or name.rpartition(".")[2] == "_extra_state":
            raise ModelError(
                f"{type(module).__name__} keeps '{name}' in its state, a {type(value).__name__}. gradstep saves "
                "parameters and buffers, never pickles: register it as a buffer, or leave out get_extra_state()."
            )
        place = (value.data_ptr(), value.shape, value.stride(), value.dtype, value.device)
        yield name, value.detach(), first.setdefault(place, name) if value.numel() else name


@torch.no_grad()
def load_module(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copies saved tensors into a module's own, by name. ModelError names what does not fit, and nothing is copied."""
    check(module, tensors)
    own = module.state_dict()
    for name, value in tensors.items():
        own[name].copy_(value)  # into the tensor that is there: identity, memory format and ties stay


def check(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """ModelError unless `tensors` are the module's own by name and shape."""
    own, expected = module.state_dict(), module_tensors(module)
    for name, value in tensors.items():
        if name not in own:
            raise ModelError(f"the saved weights hold '{name}', which {type(module).__name__} does not have.")
        if own[name].shape != value.shape:
            raise ModelError(f"'{name}' is {list(own[name].shape)} in the model, {list(value.shape)} in the weights.")
    if missing := sorted(set(expected) - set(tensors)):
        raise ModelError(f"the saved weights lack {', '.join(missing[:5])}, which {type(module).__name__} has.")


def check_types(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """CheckpointError unless saved tensors, which a resume puts back bit by bit, are of the module's own dtypes."""
    own = module.state_dict()
    for name, value in tensors.items():
        if own[name].dtype != value.dtype:
            raise CheckpointError(
                f"'{name}' was {value.dtype} when the checkpoint was made and is {own[name].dtype} in this "
                f"{type(module).__name__}. Build the model as it was then; or begin a new run from its weights."
            )


def check_ties(module: nn.Module, saved: Mapping[str, str]) -> None:
    """CheckpointError unless the names that share their memory are those that did when `saved` was made by `ties`."""
    for alias, first in sorted(saved.items() ^ ties(module).items()):
        were, are = ("one tensor", "two") if alias in saved else ("two tensors", "one")
        raise CheckpointError(
            f"'{first}' and '{alias}' were {were} when the checkpoint was made and are {are} in this "
            f"{type(module).__name__}. Build the model as it was then, its weights tied as they were."
        )


_CHANNELS_LAST = {4: ("channels_last", torch.channels_last), 5: ("channels_last_3d", torch.channels_last_3d)}


def layouts(module: nn.Module) -> dict[str, str]:
    """The memory format of the tensors whose channels are last: a file keeps no strides, and torch's kernels differ."""
    return {name: word for name, value in module_tensors(module).items() if (word := _layout(value)) is not None}


def _layout(value: Tensor) -> str | None:
    if value.dim() not in _CHANNELS_LAST:
        return None
    word, memory_format = _CHANNELS_LAST[value.dim()]
    # By strides: is_contiguous() holds of a 1x1 kernel in both formats, and kernels are chosen by its strides.
    plain, last = (
        torch.empty_like(value, device="meta", memory_format=each).stride()
        for each in (torch.contiguous_format, memory_format)
    )
    return word if value.stride() == last != plain else None


@torch.no_grad()
def lay_out(module: nn.Module, words: Mapping[str, str]) -> None:
    """Gives each 4-D and 5-D tensor the layout that `layouts` noted; a parameter stays the object that it is."""
    saved, tied = module_tensors(module), ties(module)
    moved: dict[str, Tensor] = {}
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        first = tied.get(name, name)
        if first in moved:
            value.data = moved[first]  # another object over the same memory: it moves with the first
        elif first in saved and value.dim() in _CHANNELS_LAST and _layout(value) != words.get(first):
            memory_format = _CHANNELS_LAST[value.dim()][1] if first in words else torch.contiguous_format
            value.data = moved[first] = torch.empty_like(value, memory_format=memory_format).copy_(value)
