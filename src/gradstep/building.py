"""From a recipe to objects: the only place that does it. And from a run's folder back to a run."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from gradstep import data, disk, metrics
from gradstep.choices import about_start, named, optimizer_of, schedule_of, start
from gradstep.data import Splits
from gradstep.errors import (
    CheckpointError,
    RecipeError,
    nearest,
)
from gradstep.keys import kept_streams, key, seed_sample
from gradstep.objects import call, find_object, optional
from gradstep.parts import read_splits, resolved
from gradstep.recipe import Recipe
from gradstep.record import PrintLoss, TensorBoard
from gradstep.run import Run
from gradstep.rundir import RunDir
from gradstep.state import load_module
from gradstep.update import Terms
from gradstep.update.criterion import named_loss
from gradstep.yaml12 import read_yaml

_HOOKS: dict[str, Callable[..., Any]] = {"TensorBoard": TensorBoard, "PrintLoss": PrintLoss}


@dataclass(slots=True)
class Built:
    """The objects of a recipe. `arguments` are `fit`'s; `recipe` has what was read off the data written in."""

    recipe: Recipe
    arguments: dict[str, Any] = field(repr=False)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Documents:
    """A hook that leaves the recipe, and the command it was started by, in the run's folder."""

    recipe: Recipe
    command: str

    def on_train_start(self, state: Any, about: Any) -> None:  # noqa: ARG002
        if about.path is not None and not RunDir(about.path).recipe.exists():
            recipe = self.recipe.model_copy(update={"plan": about.plan.recipe})  # run again, it measures nothing
            disk.replace(RunDir(about.path).recipe, recipe.to_yaml().encode())
            disk.replace(RunDir(about.path).command, (self.command + "\n").encode())


def build(recipe: Recipe) -> Built:
    """The objects that a recipe names, ready for `fit(**built.arguments)`.

    RecipeError, DataError: what is named is not there, or does not take what it is given. UserCodeError: the user's
    own code raised, with its traceback as the cause.
    """
    splits = read_splits(recipe)
    arguments = {
        name: getattr(recipe, name)
        for name in ("batch_size", "drop_last", "micro_batch", "stat_group", "epochs", "steps", "monitor", "patience",
                     "clip", "ema", "on_nonfinite",
                     "evaluate_every", "evaluate_train", "log_every", "seed", "dropout", "device", "precision",
                     "workers", "plan", "quiet")
    }  # fmt: skip
    model = build_model(recipe)
    arguments |= {
        "model": model,
        "criterion": build_criterion(recipe.criterion),
        "train": splits.train,
        "valid": splits.valid,
        "test": splits.test,
        "optimizer": optimizer_of(recipe, model),
        "schedule": schedule_of(recipe.schedule, own=recipe.optimizer),
        "metrics": build_metrics(recipe),
        "checkpoint": recipe.checkpoint.model_dump(),
        "hooks": [_hook(each) for each in recipe.hooks],
        "unpack": optional(recipe.unpack, "unpack"),
        "forward": optional(recipe.forward, "forward"),
    }
    return Built(_resolved(recipe, splits), arguments, splits.notes + about_start(model, recipe))


def _resolved(recipe: Recipe, splits: Splits) -> Recipe:
    """The recipe of the run: with what was seen and measured, and files named from the root."""
    update: dict[str, Any] = {"data": resolved(recipe.data, splits)}
    if isinstance(weights := recipe.model.get("weights"), str):
        update["model"] = {**recipe.model, "weights": str(Path(weights).absolute())}
    return recipe.model_copy(update=update)


def build_model(recipe: Recipe) -> nn.Module:
    """The model, initialised from the recipe's seed alone, or from its weights file."""
    options = dict(recipe.model)
    what = options.pop("class", None)
    weights = options.pop("weights", None)
    if not isinstance(what, str):
        raise RecipeError("model: say which, as in model: {class: module:Class}.")
    make = find_object(what, "model.class")
    with kept_streams():
        seed_sample(key(recipe.seed, "initialize"))
        model = call(make, options, "model", what)
    if not isinstance(model, nn.Module):
        raise RecipeError(f"model.class: '{what}' gives {type(model).__name__}, not a torch.nn.Module.")
    if weights is not None and recipe.init is not None:
        raise RecipeError("init: model.weights would be written over it. Leave one of the two out.")
    start(model, recipe)
    if weights is not None:
        load_module(model, read_weights(Path(weights))[0])
    return model


def load(path: str | Path, *, model: nn.Module | None = None) -> Run:
    """A run from its folder, with the weights to use in its model.

    The model is built by the run's recipe; a run that was started from Python has none, so give `model`.
    """
    place = RunDir.find(path)
    if model is None:
        if not place.recipe.exists():
            raise RecipeError(f"{place.path} was started from Python and has no recipe: give load(..., model=...).")
        document = read_yaml(place.recipe.read_text(), str(place.recipe))
        recipe = Recipe.parse(document, str(place.recipe))
        without = {name: value for name, value in recipe.model.items() if name != "weights"}
        model = build_model(recipe.model_copy(update={"model": without}))
        unpack, forward = optional(recipe.unpack, "unpack"), optional(recipe.forward, "forward")
    else:
        unpack = forward = None
    if not place.weights.exists():
        raise CheckpointError(f"{place.path} has no weights yet: its run has not come to an end. Type: gradstep resume")
    tensors, header = read_weights(place.weights)
    load_module(model, tensors)
    rows = [json.loads(line) for line in place.metrics.read_text().splitlines()]
    return Run(
        model=model,
        history=rows,
        best=None,
        state=None,
        path=place.path,
        classes=tuple(header["classes"]) if header.get("classes") else None,
        transforms=data.transforms_of(header.get("transforms", [])),
        unpack=unpack,
        forward=forward,
    )


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """`(tensors, what gradstep wrote of them into the header)` of a safetensors file, whoever wrote it."""
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("gradstep", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118
    except FileNotFoundError:
        raise RecipeError(f"weights: there is no file '{path}'.") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise RecipeError(f"weights: '{path}' is no safetensors file ({error}).") from None


def build_criterion(spec: Mapping[str, Any], where: str = "criterion") -> Any:
    """A loss of torch.nn, an object of the user's, or named terms of either."""
    if "terms" in spec:
        for part in spec:
            if part not in ("terms", "weights"):
                hint = nearest(part, ["terms", "weights"])
                raise RecipeError(f"{where}: there is no '{part}' beside terms; there is weights.{hint}")
        terms = {
            name: build_criterion({"name": each} if isinstance(each, str) else each, f"{where}.terms.{name}")
            for name, each in spec["terms"].items()
        }
        return Terms(terms, spec.get("weights"))
    options = dict(spec)
    name = named(options, where, "CrossEntropyLoss")
    if ":" not in name:
        tensors = {n: torch.tensor(v) if isinstance(v, list) else v for n, v in options.items()}  # class weights
        return call(named_loss(name), tensors, where, name)
    found = find_object(name, where)
    return call(found, options, where, name) if options or inspect.isclass(found) else found


def build_metrics(recipe: Recipe) -> list[Any]:
    return [_metric(each) for each in recipe.metrics]


def _metric(spec: str | Mapping[str, Any]) -> Any:
    if isinstance(spec, str) and ":" in spec:
        return find_object(spec, "metrics")
    metrics.resolve(spec)  # raises for a name that is none
    return spec


def _hook(spec: str | Mapping[str, Any]) -> Any:
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = named(options, "hooks", "TensorBoard")
    if ":" not in name and name not in _HOOKS:
        raise RecipeError(
            f"hooks: there is no '{name}'. There are {', '.join(_HOOKS)}, or module:Class.{nearest(name, _HOOKS)}"
        )
    found = _HOOKS[name] if name in _HOOKS else find_object(name, "hooks")
    return call(found, options, "hooks", name) if inspect.isclass(found) else found
