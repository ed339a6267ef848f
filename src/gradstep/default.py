"""The default recipe: what `gradstep train photos.csv` does, chosen from the data alone and written out in full."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradstep import data
from gradstep.data import FileList, Options, Reading, Source
from gradstep.errors import DataError, RecipeError, listed

_LARGEST = 64  # pixels; larger images are shrunk, because a first training should take minutes
_SMALLEST = 8


def default_recipe(what: str, settings: Mapping[str, Any]) -> tuple[str, dict[str, Any], list[str]]:
    """`(name, document, why)` for data on disk or a named data set; the arguments are `default_data`'s.

    What can't be read at all is found when the recipe is built. DataError for what there is no default for.
    """
    spec, why, train = default_data(what, settings)
    targets: Any = data.targets_in_memory(train)
    if isinstance(targets, Tensor) and not targets.is_floating_point() and targets.dim() == 1:
        _hold_classes(what, targets, train.classes)
    shape = _shape(train, spec)
    document = _with_targets(_net(shape), targets, train.classes, why)
    samples = len(targets)
    small = samples < 5_000
    document |= {
        "batch_size": max(1, min(32 if small else 64, samples // 8)),
        "epochs": 12 if small else 5,
        "optimizer": {"name": "AdamW", "lr": 2e-3, "weight_decay": 0.01},
        "schedule": {"name": "cosine", "warmup": "1 epoch"},
        "seed": 0,
    }
    return Path(what).stem or "data", {"data": spec, **document}, why


def default_data(what: str, settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str], FileList | Source]:
    """`(data, why, training part)`: the recipe's `data`, enough to look at it, whether or not it can be trained on.

    `settings` is the part of `data` that the user gave: columns, targets, and how images are read. Nothing is read
    but headers and labels.
    """
    # `gradstep.parts` reads a whole recipe, and there is none yet.
    for section, example in (("columns", "target=label"), ("images", "size=64")):
        given = settings.get(section, {})
        if not isinstance(given, Mapping):
            raise RecipeError(f"data.{section}: {given!r} doesn't say of what. Write it as in data.{section}.{example}")
    found = data.survey(what, Options(columns=settings.get("columns", {}), targets=settings.get("targets")))
    train = found.train(what)
    why: list[str] = []
    spec = {"train": what, **settings, "transforms": ["float", {"normalize": "measured"}]}
    if isinstance(train, FileList):
        spec["images"], why = _reading(train, settings)
    # A part of the same name is asked for by naming the data again; without one, a share is set aside.
    spec |= {part: what for part in ("valid", "test") if part in found.parts}
    if "valid" not in spec:
        spec["valid"] = 0.2 if len(train) < 10_000 else 0.1
        why.append(f"valid: {spec['valid']:.0%} of the training part, stratified")
    return {key: spec[key] for key in (*data.PARTS, *spec) if key in spec}, why, train


def _reading(files: FileList, settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """`(data.images, why)` that suit these image files. Those that can't be read wait for all to be looked at."""
    modes, sizes = data.headers_of(files)
    images = dict(settings.get("images") or {})
    if not modes:
        return images, []
    grey = set(modes) <= {"L", "1", "I;16", "I;16B", "I"}
    images.setdefault("mode", "L" if grey else "RGB")
    if any("transparency" in mode or "A" in mode.upper().replace("LAB", "") for mode in modes):
        images.setdefault("ground", "white")
    why = [f"images.mode: {images['mode']}, the files being {_counted(modes)}"]
    common = next(iter(sizes)) if len(sizes) == 1 else None
    if "size" not in images and (common is None or not _SMALLEST <= min(common) <= max(common) <= _LARGEST):
        images["size"] = _sensible(sizes)
        shown = _counted({"×".join(map(str, size)): count for size, count in sizes.items()})
        why.append(f"images.size: {images['size']}, the files being {shown}")
    return images, why


def _shape(train: FileList | Source, spec: Mapping[str, Any]) -> tuple[int, ...]:
    """Of one sample's inputs: what the first gives that can be read."""
    if not isinstance(train, FileList):
        return tuple(train.batch(torch.arange(1), 0, 0)[0].shape[1:])
    images = spec["images"]
    reading = Reading(images.get("mode"), images.get("ground"), images.get("size"))
    for path in train.paths:
        try:
            return tuple(data.read_image(path, reading).shape)
        except data.UnreadableError:
            continue
    raise DataError(f"{train.name}: none of its {len(train):,} images can be read, beginning with {train.place(0)}.")


def _net(shape: tuple[int, ...]) -> dict[str, Any]:
    """The model that fits inputs of this shape."""
    if len(shape) == 3 and shape[0] in (1, 3, 4) and min(shape[1:]) >= _SMALLEST:
        stages = max(1, min(4, min(shape[1:]).bit_length() - 2))
        return {"class": "gradstep.models:ConvNet", "channels": shape[0], "stages": stages}
    return {"class": "gradstep.models:MLP", "inputs": math.prod(shape)}


def _with_targets(
    model: dict[str, Any], targets: Any, classes: tuple[str, ...] | None, why: list[str]
) -> dict[str, Any]:
    """Model, criterion and metrics for these targets."""
    if not isinstance(targets, Tensor) or targets.dim() > (2 if targets.is_floating_point() else 1):
        raise DataError("the default recipe is for one label, or a few numbers, per sample. Write a recipe for these.")
    if targets.is_floating_point():
        model |= {"outputs": 1, "squeeze": True} if targets.dim() == 1 else {"outputs": targets.shape[1]}
        if model["class"].endswith("MLP"):
            model |= {"center": round(float(targets.mean()), 6), "spread": round(float(targets.std()), 6) or 1.0}
        why.append("criterion: the mean squared error, the targets being numbers")
        return {"model": model, "criterion": "MSELoss", "metrics": ["mae"], "monitor": "valid/mae"}
    model["outputs"] = len(classes) if classes else int(targets.max()) + 1
    why.append(f"criterion: the cross entropy over {model['outputs']} classes{_or_numbers(classes)}")
    return {"model": model, "criterion": "CrossEntropyLoss", "metrics": ["accuracy"], "monitor": "valid/accuracy"}


def _or_numbers(classes: tuple[str, ...] | None) -> str:
    """Whole numbers may be either: what it was taken for is said where it may be wrong."""
    if classes is None or not all(name.lstrip("-").isdigit() for name in classes):
        return ""
    return f" ({listed(classes, 3)}); were they quantities: data.targets=numbers"


def _hold_classes(what: str, targets: Tensor, classes: tuple[str, ...] | None) -> None:
    there = targets.unique().tolist()
    if len(there) == 1:
        name = classes[there[0]] if classes else str(there[0])
        raise DataError(f"{what}: every sample is of one class, '{name}', and there is nothing to tell apart.")


def _sensible(sizes: Counter[tuple[int, int]]) -> int:
    """The side of a square: the shorter side of the image in the middle, a multiple of 8, and not large."""
    shorter = sorted(min(size) for size in sizes.elements())
    return max(_SMALLEST, min(_LARGEST, shorter[len(shorter) // 2] // 8 * 8))


def _counted(counts: Mapping[str, int]) -> str:
    most = sorted(counts.items(), key=lambda item: -item[1])
    if len(most) == 1:
        return f"all {most[0][0]}"
    return ", ".join(f"{count:,} {name}" for name, count in most[:3]) + (" and others" if len(most) > 3 else "")
