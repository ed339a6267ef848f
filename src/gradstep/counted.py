"""What a metric has counted so far: taken out of it and put into a fresh copy, so that a run goes on within an epoch.

A metric is what it is in `metrics.py`: anything with `update`, `compute` and `reset`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradstep.errors import CheckpointError, ModelError

_ADVICE = (
    "so what it has counted can't be saved. Give the metric state_dict() and load_state_dict(), of tensors, numbers, "
    "strings, lists, tuples and dicts."
)
# What torchmetrics' base class keeps beside the states: settings, caches, and functions in a dict.
_OF_TORCHMETRICS = {
    "_TORCH_GREATER_EQUAL_2_1", "_device", "_dtype", "compute_on_cpu", "dist_sync_on_step", "process_group",
    "dist_sync_fn", "distributed_available_fn", "sync_on_compute", "compute_with_cache", "_update_signature", "update",
    "compute", "_computed", "_forward_cache", "_to_sync", "_should_unsync", "_enable_grad", "_dtype_convert",
    "_defaults", "_persistent", "_reductions", "_is_synced", "_cache",
}  # fmt: skip
_OF_MODULES = set(vars(nn.Module()))


def counts(metric: Any) -> dict[str, Any]:
    """What `metric` has counted so far: tensors, arrays, numbers, strings, and lists, tuples and dicts of them.

    These are, in this order, its own `state_dict()`; for modules, torchmetrics' among them, the attributes and buffers
    of each metric inside; else its attributes. Functions, types and modules are settings, and so is any odd object
    that copies share and a reset leaves. ModelError names an attribute that is neither a setting nor can be saved.
    The tensors are the metric's own.
    """
    if isinstance(metric, nn.Module):
        return {path: _attributes(module) for path, module in metric.named_modules() if _is_metric(module)}
    if _saves_itself(metric):
        return {"state_dict": dict(metric.state_dict())}
    return {"": _attributes(metric)}


def set_counts(metric: Any, saved: dict[str, Any]) -> None:
    """Puts what `counts` gave into a fresh copy of the metric. CheckpointError where it is of another metric."""
    if isinstance(metric, nn.Module):
        modules = dict(metric.named_modules())
    elif _saves_itself(metric) and set(saved) == {"state_dict"}:
        metric.load_state_dict(saved["state_dict"])
        return
    else:
        modules = {"": metric}
    if other := set(saved) - set(modules):
        raise CheckpointError(f"the checkpoint has counts of {sorted(other)}, which {type(metric).__name__} lacks.")
    for path, attributes in saved.items():
        for name, value in attributes.items():
            _set(modules[path], name, value)


def _is_metric(value: Any) -> bool:
    has_all = all(hasattr(value, name) for name in ("update", "compute", "reset"))
    return has_all and not isinstance(value, type)


def _saves_itself(metric: Any) -> bool:
    return hasattr(metric, "state_dict") and hasattr(metric, "load_state_dict")


def _attributes(metric: Any) -> dict[str, Any]:
    """The attributes of one metric that are, or may be, counts."""
    theirs = hasattr(metric, "_defaults") and hasattr(metric, "metric_state")
    passed = (_OF_TORCHMETRICS if theirs else set()) | (_OF_MODULES if isinstance(metric, nn.Module) else set())
    is_setting = _settings_of(metric)
    found = {}
    for name, value in _named(metric):
        if name in passed:
            continue
        if _is_plain(value):
            found[name] = _taken(value)
        elif not is_setting(name, value):
            kind = type(value).__name__
            raise ModelError(f"metrics: {type(metric).__name__} keeps '{name}', a {kind} or with one in it, {_ADVICE}")
    return found


def _named(metric: Any) -> list[tuple[str, Any]]:
    """Attributes by name: those in `__dict__`, in slots, and a module's parameters and buffers."""
    slots = [name for kind in type(metric).__mro__ for name in _slots(kind) if hasattr(metric, name)]
    found = {**{name: getattr(metric, name) for name in slots}, **getattr(metric, "__dict__", {})}
    if isinstance(metric, nn.Module):
        found |= {**metric._parameters, **metric._buffers}
    return list(found.items())


def _slots(kind: type) -> list[str]:
    slots = vars(kind).get("__slots__", ())
    return [name for name in ([slots] if isinstance(slots, str) else slots) if not name.startswith("__")]


def _is_plain(value: Any) -> bool:
    if value is None or isinstance(value, (Tensor, np.ndarray, np.generic)) or _is_metric(value):
        return True
    if type(value) in (list, tuple, torch.Size):
        return all(_is_plain(each) for each in value)
    if type(value) is dict:
        return all(_is_plain(each) for each in value.values())
    return type(value) in (bool, int, float, str)  # not isinstance: an Enum may be a string too


def _settings_of(metric: Any) -> Callable[[str, Any], bool]:
    """A rule that says of an odd attribute whether it is a setting, which the fresh copy has from its maker."""
    fresh: list[Any] = []

    def is_setting(name: str, value: Any) -> bool:
        # torchmetrics' own classes count in states and plain attributes; what else they keep is their equipment.
        if callable(value) or isinstance(value, ModuleType) or type(metric).__module__.startswith("torchmetrics."):
            return True
        if not fresh:  # made only where an odd attribute is met: a copy may be large
            fresh.append(copy.deepcopy(metric))
            fresh[0].reset()
        there = getattr(fresh[0], name, None)
        return there is value or (isinstance(value, torch.device) and there == value)

    return is_setting


def _taken(value: Any) -> Any:
    """A value with each metric in it replaced by its counts."""
    if _is_metric(value):
        return counts(value)
    if isinstance(value, list) and _holds_metrics(value):
        return [_taken(each) for each in value]
    if isinstance(value, tuple) and _holds_metrics(value):
        return tuple(_taken(each) for each in value)
    if isinstance(value, dict) and _holds_metrics(value):
        return {key: _taken(each) for key, each in value.items()}
    return value


def _holds_metrics(value: Any) -> bool:
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return _is_metric(value)
    return any(_holds_metrics(each) for each in value)


def _set(metric: Any, name: str, value: Any) -> None:
    live = getattr(metric, name, None)
    if isinstance(live, nn.Parameter):
        live.data = value
    elif live is None or not _holds_metrics(live):
        setattr(metric, name, value)
    else:
        _set_within(live, value)


def _set_within(live: Any, saved: Any) -> None:
    """Metrics inside a metric's attribute stay where they are, and get their counts."""
    if _is_metric(live):
        set_counts(live, saved)
    elif isinstance(live, dict):
        for key, each in live.items():
            _set_within(each, saved[key])
    elif isinstance(live, (list, tuple)):
        for each, given in zip(live, saved, strict=True):
            _set_within(each, given)
