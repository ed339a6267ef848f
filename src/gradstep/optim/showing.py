"""Parameter groups as a table for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

_HEADER = ("group", "parameters", "count", "rate", "decay", "frozen")


def table(groups: Optimizer | Iterable[Mapping[str, Any]], model: nn.Module | None = None) -> str:
    """The groups of an optimizer, or of `param_groups`, as aligned lines of plain text.

    `parameters` are tensors, `count` the numbers in them, `rate` and `decay` the group's lr and weight_decay.
    `frozen` is yes, no, until when, or how many of its parameters require no gradient. Given the model, a group
    without a name of its own has the name of the module that holds it all, and what is in no group has a line too.
    """
    shown = list(groups.param_groups if isinstance(groups, Optimizer) else groups)
    names = {id(p): name for name, p in model.named_parameters()} if model is not None else {}
    rows = [_row(_name(group, number, names), group) for number, group in enumerate(shown)]
    everything = [parameter for group in shown for parameter in group["params"]]
    if model is not None:
        held = {id(parameter) for parameter in everything}
        if outside := [parameter for parameter in model.parameters() if id(parameter) not in held]:
            rows.append(("(in no group)", *_counts(outside), "", "", ""))
    rows.append(("all groups", *_counts(everything), "", "", ""))
    return _aligned([_HEADER, *rows])


def _row(name: str, group: Mapping[str, Any]) -> tuple[str, ...]:
    decay = _number(group.get("weight_decay"))
    if group.get("weight_decay_l1"):
        decay += f", L1 {_number(group['weight_decay_l1'])}"
    return name, *_counts(group["params"]), _number(group.get("lr")), decay, _frozen(group)


def _counts(parameters: Sequence[Tensor]) -> tuple[str, str]:
    return f"{len(parameters):,}", f"{sum(parameter.numel() for parameter in parameters):,}"


def _number(value: Any) -> str:
    """A dash is an option that was not given: the optimizer's default will be used."""
    return "-" if value is None else f"{float(value):g}"


def _frozen(group: Mapping[str, Any]) -> str:
    still = sum(not parameter.requires_grad for parameter in group["params"])
    if still == 0:
        return "no"
    if isinstance(group.get("freeze"), str):
        return f"until {group['freeze']}"
    return "yes" if still == len(group["params"]) else f"{still} of {len(group['params'])}"


def _name(group: Mapping[str, Any], number: int, names: Mapping[int, str]) -> str:
    if "name" in group:
        return str(group["name"])
    inside = [names.get(id(parameter), "").split(".")[:-1] for parameter in group["params"]]
    common = [parts[0] for parts in zip(*inside, strict=False) if len(set(parts)) == 1]
    return ".".join(common) or f"group {number}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    numbers = {1, 2, 3, 4}  # aligned to the right
    lines = (
        "  ".join(
            f"{cell:{'>' if n in numbers else '<'}{width}}"
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
