"""A criterion's copy in float64, which may be tried without leaving a trace; and what a criterion remembers."""

from __future__ import annotations

import copy
import functools
import types
from typing import Any

import torch
from torch import Tensor, nn

_AS_IT_IS = (types.ModuleType, type, types.BuiltinFunctionType)


def twin(value: Any) -> Any:
    """A copy in float64: of a module, of a function with what it closes over, of a bound method's object, of anything.

    What a function reads from its module's globals is not copied. Raises what `copy.deepcopy` raises.
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
    made = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, cells or None
    )
    made.__kwdefaults__ = function.__kwdefaults__
    return made


def doubled(tensor: Tensor) -> Tensor:
    """Without a graph; floats as float64."""
    return tensor.detach().double() if tensor.is_floating_point() else tensor.detach()


def remembered(criterion: Any) -> Any:
    """What a criterion keeps between its calls, as far as it can be seen: tensors by value, numbers, lists and dicts.

    Two calls of this are equal if nothing of that has changed in between.
    """
    if isinstance(criterion, nn.Module):
        return [
            {**_written(vars(each)), **_written(each._buffers), **_written(each._parameters)}
            for each in criterion.modules()
        ]
    if isinstance(criterion, types.FunctionType):
        return [_value(cell.cell_contents) for cell in criterion.__closure__ or ()]
    if isinstance(criterion, types.MethodType):
        return remembered(criterion.__self__)
    if isinstance(criterion, functools.partial):
        return remembered(criterion.func)
    return _written(getattr(criterion, "__dict__", {}))


def _written(attributes: Any) -> dict[str, Any]:
    return {name: _value(value) for name, value in attributes.items() if not name.startswith("_")}


def _value(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, nn.Module):
        return remembered(value)
    if isinstance(value, (list, tuple)):
        return [_value(each) for each in value]
    if isinstance(value, dict):
        return {name: _value(each) for name, each in value.items()}
    return repr(value) if isinstance(value, (int, float, str, bool, set)) else None
