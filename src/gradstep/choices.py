"""A recipe's optimizer, groups, schedule and initialisation -> objects: the choices that decide a training."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler

from gradstep import schedules
from gradstep.errors import RecipeError, listed, nearest
from gradstep.initialization import initialize, plan_initialization, summary
from gradstep.objects import call, find_object
from gradstep.optim import SGD, param_groups
from gradstep.optim.options import known_options
from gradstep.recipe import Recipe

_SPLITS = ("no_decay", "layer_decay")  # what `groups` may hold beside patterns, as `param_groups` takes it


def optimizer_of(recipe: Recipe, model: nn.Module) -> Callable[[Any], Optimizer]:
    """A function of the parameters, as `fit` takes it; groups by pattern are those of this model."""
    options = dict(recipe.optimizer)
    name = named(options, "optimizer", "SGD")
    make = find_object(name, "optimizer.name") if ":" in name else _torchs(name)
    theirs, ours = (inspect.signature(each).parameters for each in (torch.optim.SGD, SGD))
    for option in options:
        if make is torch.optim.SGD and option in ours and option not in theirs:
            raise RecipeError(
                f"optimizer: torch's SGD takes no '{option}', and gradstep's does: optimizer.name=gradstep.optim:SGD"
            )
    # Made once for a parameter of its own, so that a wrong option is found before anything else is built.
    call(make, options, "optimizer", name, [nn.Parameter(torch.zeros(1, 1))])
    if recipe.groups is None:
        return lambda parameters: make(parameters, **options)
    splits = {key: value for key, value in recipe.groups.items() if key in _SPLITS}
    patterns = {key: _group(value, key, options) for key, value in recipe.groups.items() if key not in _SPLITS}
    groups = param_groups(model, patterns, **splits, **options)
    own = {id(parameter) for parameter in model.parameters()}

    def grouped(parameters: list[nn.Parameter]) -> Optimizer:
        more = [parameter for parameter in parameters if id(parameter) not in own]
        made: Optimizer = make(groups + ([{"params": more, "name": "criterion"}] if more else []), **options)
        return made

    return grouped


def _torchs(name: str) -> Callable[..., Optimizer]:
    known = [n for n in dir(torch.optim) if inspect.isclass(getattr(torch.optim, n)) and n != "Optimizer"]
    if name not in known:
        raise RecipeError(f"optimizer: torch.optim has no '{name}'. It has {listed(known, 20)}.{nearest(name, known)}")
    made: Callable[..., Optimizer] = getattr(torch.optim, name)
    return made


def _group(options: Any, pattern: str, own: Collection[str]) -> Any:
    if not isinstance(options, Mapping) or "schedule" not in options:
        return options
    return {**options, "schedule": schedule_of(options["schedule"], f"groups.{pattern}.schedule", own)}


def schedule_of(spec: Any, where: str = "schedule", own: Collection[str] = ()) -> Any:
    """A schedule by name, of `gradstep.schedules` or of torch's classes; or one for each of several options.

    `own` are options of the user's own optimizer, beside those that torch's have.
    """
    if spec is None:
        return None
    if isinstance(spec, Mapping) and "name" not in spec:
        for option in spec:
            if option not in known_options() and option not in own:
                raise RecipeError(
                    f"{where}: say which by name, as in {where}: {{name: cosine}}; or for each option of the "
                    f"optimizer, as in {where}: {{lr: cosine}}. '{option}' is none.{nearest(option, known_options())}"
                )
        return {option: schedule_of(each, f"{where}.{option}") for option, each in spec.items()}
    if not isinstance(spec, (str, Mapping)):
        raise RecipeError(f"{where}: {spec!r} is neither a name nor like {{name: cosine, warmup: 1 epoch}}.")
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = named(options, where, "cosine")
    if ":" in name:
        found = find_object(name, f"{where}.name")
        return call(found, options, where, name) if options or inspect.isclass(found) else found
    if name in ("product", "join"):
        parts = options.pop("parts", None)
        if not isinstance(parts, list):
            raise RecipeError(f"{where}.parts: {name} is made of a list of schedules, and this is {parts!r}.")
        made = [schedule_of(each, f"{where}.parts.{number}") for number, each in enumerate(parts)]
        if name == "product":
            return call(schedules.product, options, where, name, *made)
        return call(schedules.join, options, where, name, made)
    if name in schedules.NAMES:
        return call(schedules.NAMES[name], options, where, name)
    if name not in lr_scheduler.__all__:
        known = [*schedules.NAMES, "product", "join"]
        hint = nearest(name, [*known, *lr_scheduler.__all__])
        raise RecipeError(f"{where}: there is no '{name}'. There are {listed(known, 30)}, and torch's classes.{hint}")
    return schedules.from_torch(name, **options)


def start(model: nn.Module, recipe: Recipe) -> None:
    """Starts the model's weights as the recipe's `init` says, if it says anything."""
    if recipe.init is not None:
        options = dict(recipe.init)
        name = named(options, "init", "xavier")
        call(initialize, {"seed": recipe.seed, **options}, "init", name, model, name)


def about_start(model: nn.Module, recipe: Recipe) -> tuple[str, ...]:
    """A line for people about what `init` has set, and what it has left as it was."""
    if recipe.init is None:
        return ()
    options = {option: value for option, value in recipe.init.items() if option != "seed"}
    return (f"init: {summary(plan_initialization(model, **options))}",)


def named(options: dict[str, Any], where: str, example: str) -> str:
    """Takes the name out of options. RecipeError where there is none."""
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise RecipeError(f"{where}: say which by name, as in {where}: {{name: {example}}}.")
    return name
