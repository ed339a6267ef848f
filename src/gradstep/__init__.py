"""gradstep runs the training process of a PyTorch model.

You say what one optimizer step means; nothing else may change the result. Names are loaded when they are first
used, so that `import gradstep` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "fit": "loop",
    "steps": "loop",
    "evaluate": "evaluation",
    "predict": "run",
    "Run": "run",
    "Update": "update",
    "backward": "update",
    "Ratio": "update",
    "Outcome": "update",
    "Terms": "update",
    "criterion_gradient": "update",
    "check_backward": "update",
    "param_groups": "optim",
    "flatten_parameters": "optim",
    "initialize": "initialization",
    "Request": "hooks",
    "TensorBoard": "record",
    "TrainState": "state",
    "Recipe": "recipe",
    "build": "building",
    "load": "building",
    "GradstepError": "errors",
}
_ROOMS = ("data", "errors", "hooks", "keys", "metrics", "models", "optim", "schedules")

__all__ = ["__version__", *_HOME, *_ROOMS]

if TYPE_CHECKING:
    from gradstep import data, errors, hooks, keys, metrics, models, optim, schedules
    from gradstep.building import build, load
    from gradstep.errors import GradstepError
    from gradstep.evaluation import evaluate
    from gradstep.hooks import Request
    from gradstep.initialization import initialize
    from gradstep.loop import fit, steps
    from gradstep.optim import flatten_parameters, param_groups
    from gradstep.recipe import Recipe
    from gradstep.record import TensorBoard
    from gradstep.run import Run, predict
    from gradstep.state import TrainState
    from gradstep.update import Outcome, Ratio, Terms, Update, backward, check_backward, criterion_gradient


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"gradstep.{name}")
    if name in _HOME:
        value = getattr(importlib.import_module(f"gradstep.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'gradstep' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
