"""The default recipe: what `gradstep train photos.csv` does, chosen from the data alone and written out in full."""

from __future__ import annotations

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
    """`(name, document, why)` for data on disk or a named data set.

    `settings` is the part of `data` that the user gave: columns, targets, and how images are read. Nothing is read
    but headers and labels; what can't be read at all is found when the recipe is built.
    """
    # `gradstep.parts` reads a whole recipe, and there is none yet.
    columns = settings.get("columns") or {}
    if not isinstance(columns, Mapping):
        raise RecipeError(
            f"data.columns: {columns!r} names no columns. Write which is which, as in data.columns.target=label"
        )
    found = data.survey(what, Options(columns=columns, targets=settings.get("targets")))
    parts, train = found.parts, found.train(what)
    classes = train.classes
    targets: Any = train.targets if isinstance(train, FileList) else data.targets_in_memory(train)
    if isinstance(targets, Tensor) and not targets.is_floating_point():
        _hold_classes(what, targets, classes)
    chosen = _of_images(train, settings) if isinstance(train, FileList) else _of_rows(train)
    document, why = _with_targets(chosen, targets, classes)
    samples = len(targets)
    spec = {"train": what, **settings, **document.pop("data")}
    # A part of the same name is asked for by naming the data again; without one, a share is set aside.
    spec |= {part: what for part in ("valid", "test") if part in parts}
    if "valid" not in spec:
        spec["valid"] = 0.2 if samples < 10_000 else 0.1
        why.append(f"valid: {spec['valid']:.0%} of the training part, stratified")
    spec = {key: spec[key] for key in (*data.PARTS, *spec) if key in spec}
    small = samples < 5_000
    document |= {
        "batch_size": max(1, min(32 if small else 64, samples // 8)),
        "epochs": 12 if small else 5,
        "optimizer": {"name": "AdamW", "lr": 2e-3, "weight_decay": 0.01},
        "schedule": {"name": "cosine", "warmup": "1 epoch"},
        "seed": 0,
    }
    return Path(what).stem or "data", {"data": spec, **document}, why


def _of_images(files: FileList, settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
    """What suits these image files: `(data, why, the model's arguments)`."""
    modes, sizes = data.headers_of(files)  # those that can't be read wait for all to be looked at
    if not modes:
        number = len(files.paths)
        raise DataError(f"{files.name}: none of its {number:,} images can be read, beginning with {files.place(0)}.")
    given = dict(settings.get("images") or {})
    images = dict(given)
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
    size = images.get("size", common)
    side = size if isinstance(size, int) else min(size or (_LARGEST,))
    stages = max(1, min(4, int(side).bit_length() - 2))
    channels = Reading(images["mode"]).channels
    model = {"class": "gradstep.models:ConvNet", "channels": channels, "stages": stages}
    return {"images": images, "transforms": ["float", {"normalize": "measured"}]}, why, model


def _of_rows(source: Source) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
    """What suits rows of numbers, or images that lie in arrays."""
    inputs = source.batch(torch.arange(1), 0, 0)[0]
    shape = tuple(inputs.shape[1:])
    spec = {"transforms": ["float", {"normalize": "measured"}]}
    if len(shape) == 3 and shape[0] in (1, 3, 4) and min(shape[1:]) >= _SMALLEST:
        stages = max(1, min(4, min(shape[1:]).bit_length() - 2))
        return spec, [], {"class": "gradstep.models:ConvNet", "channels": shape[0], "stages": stages}
    return spec, [], {"class": "gradstep.models:MLP", "inputs": inputs[0].numel()}


def _with_targets(
    chosen: tuple[dict[str, Any], list[str], dict[str, Any]], targets: Any, classes: tuple[str, ...] | None
) -> tuple[dict[str, Any], list[str]]:
    spec, why, model = chosen
    if not isinstance(targets, Tensor) or targets.dim() > 2:
        raise DataError("the default recipe is for one label, or a few numbers, per sample. Write a recipe for these.")
    if targets.is_floating_point():
        model |= {"outputs": 1, "squeeze": True} if targets.dim() == 1 else {"outputs": targets.shape[1]}
        if model["class"].endswith("MLP"):
            model |= {"center": round(float(targets.mean()), 6), "spread": round(float(targets.std()), 6) or 1.0}
        why.append("criterion: the mean squared error, the targets being numbers")
        document: dict[str, Any] = {"criterion": "MSELoss", "metrics": ["mae"], "monitor": "valid/mae"}
    else:
        model["outputs"] = len(classes) if classes else int(targets.max()) + 1
        document = {"criterion": "CrossEntropyLoss", "metrics": ["accuracy"], "monitor": "valid/accuracy"}
        why.append(f"criterion: the cross entropy over {model['outputs']} classes{_or_numbers(classes)}")
    return {"data": spec, "model": model, **document}, why


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
