"""The numbers among a group's options, by name; `momentum` is the first of `betas` where the optimizer calls it so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def numbers(group: Mapping[str, Any]) -> dict[str, float]:
    """All of them. Reading one that lies in a tensor on a device waits for it."""
    found = {option: float(value) for option, value in group.items() if _is_number(value)}
    if "betas" in group and _is_number(group["betas"][0]):
        found.setdefault("momentum", float(group["betas"][0]))
    return found


def held(group: Mapping[str, Any], option: str) -> float | None:
    """One of them; None where it lies in a tensor, and reading it might wait for a device."""
    value = group["betas"][0] if _is_beta(group, option) else group[option]
    return None if isinstance(value, Tensor) else float(value)


def put(group: dict[str, Any], option: str, value: float) -> None:
    """Sets one of them."""
    if _is_beta(group, option):
        group["betas"] = (value, *group["betas"][1:])
    elif isinstance(group[option], Tensor):
        group[option].fill_(value)  # in place: a captured or compiled step reads this tensor
    else:
        group[option] = value


def _is_beta(group: Mapping[str, Any], option: str) -> bool:
    return option == "momentum" and "momentum" not in group


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1
    return isinstance(value, (int, float)) and not isinstance(value, bool)
