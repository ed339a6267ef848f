"""What an optimizer holds, saved and put back by parameter name, each tensor in its own dtype and place.

`Optimizer.load_state_dict` goes by position and casts to the parameter's dtype; neither would be exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradstep.encoding import get, put
from gradstep.errors import ChangedError

Names = Mapping[Tensor, str]
_NOT_SAVED = ("params", "schedule", "freeze")  # what a group is to do is meaning, as the run's schedule is


def save(optimizer: Optimizer, names: Names) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """`(tensors, numbers)`: what each parameter's slots hold is written in the numbers, naming the tensors."""
    tensors: dict[str, Tensor] = {}
    groups = [
        {
            "params": [names[parameter] for parameter in group["params"]],
            "options": {
                option: put(f"group{number}/{option}", value, tensors)
                for option, value in group.items()
                if option not in _NOT_SAVED
            },
        }
        for number, group in enumerate(optimizer.param_groups)
    ]
    held = optimizer.state
    slots = {
        name: put(name, dict(held[parameter]), tensors)
        for parameter, name in sorted(names.items(), key=lambda item: item[1])  # not in the order that they came to it
        if parameter in held
    }
    # Some optimizers keep what belongs to no parameter beside the parameters' slots, under keys of their own.
    whole = put("whole", {key: each for key, each in held.items() if not isinstance(key, Tensor)}, tensors)
    return tensors, {"class": type(optimizer).__name__, "groups": groups, "slots": slots, "whole": whole}


def check(optimizer: Optimizer, names: Names, numbers: Mapping[str, Any]) -> None:
    """ChangedError unless the saved state is of this class of optimizer, over the same parameters and groups."""
    own = [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
    now, same = type(optimizer).__name__, own == [group["params"] for group in numbers["groups"]]
    if numbers["class"] != now or not same:
        slots = Counter(slot for each in numbers["slots"].values() for slot, _ in each["dict"])
        lost = ", ".join(f"{slot} of {count} parameters" for slot, count in slots.items()) or "nothing"
        raise ChangedError(
            f"the checkpoint is of {numbers['class']}{'' if same else ' over other parameters or groups'}, and this is "
            f"{now}. Resume with the optimizer that the run was started with; or begin another run from its weights, "
            f"in a recipe by model.weights, which forgets {lost}."
        )


@dataclass(frozen=True, slots=True)
class Saved:
    """A saved state, read and not put in yet: once there is one, nothing can fail any more."""

    options: list[dict[str, Any]]  # of each group
    slots: dict[Tensor, Any]
    whole: dict[Any, Any]


def read(optimizer: Optimizer, names: Names, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> Saved:
    """The saved state with tensors of its own, each on its parameter's device or on the host. Changes nothing."""
    check(optimizer, names, numbers)
    host = torch.device("cpu")
    options = [
        {option: get(saved, tensors, host) for option, saved in group["options"].items()} for group in numbers["groups"]
    ]
    slots = {
        parameter: get(numbers["slots"][name], tensors, parameter.device)
        for parameter, name in names.items()
        if name in numbers["slots"]
    }
    device = next(iter(names)).device if names else host
    return Saved(options, slots, get(numbers["whole"], tensors, device))


@torch.no_grad()
def load(optimizer: Optimizer, saved: Saved, keep_options: bool = False) -> None:
    """The optimizer's state becomes the saved one; with `keep_options` its groups' options stay those given now."""
    if not keep_options:
        for group, options in zip(optimizer.param_groups, saved.options, strict=True):
            for option, value in options.items():
                _set(group, option, value)
    optimizer.state.clear()
    optimizer.state.update(saved.slots)
    optimizer.state.update(saved.whole)


def _set(group: dict[str, Any], option: str, value: Any) -> None:
    if isinstance(group.get(option), Tensor):
        group[option].copy_(torch.as_tensor(value))  # in place: a captured or compiled step reads this tensor
    else:
        group[option] = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
