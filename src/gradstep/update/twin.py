"""A criterion's copy in float64, which may be tried without leaving a trace; and what a criterion remembers."""

from __future__ import annotations

import copy
import functools
import types
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_AS_IT_IS = (types.ModuleType, type, types.BuiltinFunctionType)


def twin(value: Any) -> Any:
    """A copy in float64: of a module, of a function with all that it names, of a bound method's object, of anything.

    Raises what `copy.deepcopy` raises.
    """
    if isinstance(value, _AS_IT_IS):
        return value
    if isinstance(value, Tensor):
        return doubled(value)
    if isinstance(value, types.FunctionType):
        return _function(value)
    if isinstance(value, types.MethodType):
        return types.MethodType(value.__func__, twin(value.__self__))
    if isinstance(value, functools.partial):
        return functools.partial(
            twin(value.func), *map(twin, value.args), **{n: twin(v) for n, v in value.keywords.items()}
        )
    made = copy.deepcopy(value)
    objects = made.double().modules() if isinstance(made, nn.Module) else [made]
    for each in objects:
        for name, inside in getattr(each, "__dict__", {}).items():
            if isinstance(inside, Tensor):
                vars(each)[name] = doubled(inside)
            elif isinstance(inside, nn.Module):
                vars(each)[name] = twin(inside)
    return made


def _function(function: types.FunctionType) -> types.FunctionType:
    cells = tuple(types.CellType(twin(cell.cell_contents)) for cell in function.__closure__ or ())
    # What it reads and may write of its module's: a counter there must not move either.
    globals_ = {**function.__globals__, **{name: twin(value) for name, value in _globals(function).items()}}
    made = types.FunctionType(function.__code__, globals_, function.__name__, function.__defaults__, cells or None)
    made.__kwdefaults__ = function.__kwdefaults__
    return made


def _globals(function: types.FunctionType) -> dict[str, Any]:
    """The values that a function names and that are no code: modules, classes and functions are left out."""
    named = {name: function.__globals__[name] for name in function.__code__.co_names if name in function.__globals__}
    return {name: value for name, value in named.items() if not isinstance(value, (*_AS_IT_IS, types.FunctionType))}


def doubled(tensor: Tensor) -> Tensor:
    """A copy without a graph; real numbers as float64, complex ones as complex128."""
    wide = torch.complex128 if tensor.is_complex() else torch.float64 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to(wide, copy=True)


def modules_of(criterion: Any) -> list[nn.Module]:
    """The modules that a criterion is, closes over, is bound to or holds."""
    if isinstance(criterion, nn.Module):
        return [criterion]
    if isinstance(criterion, functools.partial):
        return [m for each in (criterion.func, *criterion.args, *criterion.keywords.values()) for m in modules_of(each)]
    if isinstance(criterion, types.MethodType):
        return modules_of(criterion.__self__)
    if isinstance(criterion, types.FunctionType):
        held = [cell.cell_contents for cell in criterion.__closure__ or ()] + list(_globals(criterion).values())
    else:
        held = list(getattr(criterion, "__dict__", {}).values())
    return [each for each in held if isinstance(each, nn.Module)]


class UnseenError(Exception):
    """Something that a criterion keeps can't be compared."""


def remembered(criterion: Any) -> Any:
    """What a criterion keeps between its calls: two calls of this are equal if nothing of that changed in between.

    UnseenError names what can't be looked into.
    """
    return _value(criterion, set())


def _value(value: Any, seen: set[int]) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, np.ndarray):
        return value.tobytes() if value.dtype != object else _value(value.tolist(), seen)
    if value is None or isinstance(
        value, (int, float, complex, str, bytes, np.generic, torch.dtype, torch.device, *_AS_IT_IS)
    ):
        return repr(value)
    if id(value) in seen:
        return "again"
    seen = seen | {id(value)}
    if isinstance(value, Mapping):
        return [
            (repr(name) if isinstance(name, (str, int)) else "", _value(each, seen)) for name, each in value.items()
        ]
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return [_value(each, seen) for each in value]
    if isinstance(value, types.FunctionType):
        return [_value(cell.cell_contents, seen) for cell in value.__closure__ or ()] + [_value(_globals(value), seen)]
    if isinstance(value, types.MethodType):
        return _value(value.__self__, seen)
    if isinstance(value, functools.partial):
        return _value([value.func, value.args, value.keywords], seen)
    if hasattr(value, "__dict__"):
        return [type(value).__name__, _value(vars(value), seen)]
    raise UnseenError(f"the criterion keeps a {type(value).__name__}, which can't be looked into")
