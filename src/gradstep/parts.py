"""From a recipe's `data` to the parts of a data set, and back to what must be written into the recipe of a run."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

import torch

from gradstep import data
from gradstep.data import FileList, Options, Part, Reading, Source, Splits
from gradstep.errors import DataError, GradstepError, RecipeError, UserCodeError, listed, raised_at
from gradstep.objects import call, find_object, optional
from gradstep.recipe import Data, Recipe


def read_splits(recipe: Recipe) -> Splits:
    """The parts that a recipe names, under its transforms, the training part under its augmentations."""
    spec = recipe.data
    splits = _named(spec)
    transforms = [data.from_document(each) for each in spec.transforms]
    augment = [data.augmentation_from_document(each) for each in spec.augment]
    try:
        splits = data.prepare(splits, transforms, augment)
    except GradstepError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}{raised_at(error)}"
        raise UserCodeError(f"data.train: measuring its transforms raised {what}.") from error
    if spec.limit is None:
        return splits
    return splits.map(lambda source: Part(source, torch.arange(min(spec.limit or 0, len(source)))))


def unopened(recipe: Recipe) -> dict[str, tuple[FileList | Source, torch.Tensor]]:
    """The parts as `read_splits` cuts them, image files only named: what each is cut from, and its samples' numbers."""
    spec = recipe.data
    whole = dict(_named(spec).items()) if _is_object(spec.train) else data.survey(spec.train, _options(spec, "train"))
    train: Any = data.Part(whole["train"], torch.arange(len(whole["train"])))  # type: ignore[arg-type]
    parts: dict[str, tuple[FileList | Source, torch.Tensor]] = {}
    divided = isinstance(spec.train, str) and data.is_on_disk(spec.train)
    for name in ("valid", "test"):
        given = getattr(spec, name)
        if isinstance(given, (int, float)):
            share = float(given) * len(whole["train"]) / len(train)
            train, other = data.split(train, share, name, spec.split_seed)
            parts[name] = (whole["train"], other.original(torch.arange(len(other))))  # type: ignore[attr-defined]
        elif given is not None and given != spec.train:
            found = data.survey(given, replace(_options(spec, name), classes=whole["train"].classes))
            part = found.get(name) or found["train"]
            parts[name] = (part, torch.arange(len(part)))
        elif name in whole and (given is not None or divided):
            parts[name] = (whole[name], torch.arange(len(whole[name])))
    return {"train": (whole["train"], train.original(torch.arange(len(train)))), **parts}


def part_of(recipe: Recipe, what: str, classes: tuple[str, ...] | None = None) -> Source:
    """The samples a word names: `train`, `valid`, `test` of the recipe, else data as `data.train` may name it.

    `classes` are the run's: what labels of other data must be of.
    """
    if what in ("train", "valid", "test"):
        source: Source | None = getattr(read_splits(recipe), what)
        if source is None:
            raise RecipeError(f"the recipe's data has no '{what}' part.")
        return source
    splits = _raw(what, "DATA", _options(recipe.data, "test", classes))
    source = splits.test or splits.train
    return source.transformed(tuple(data.from_document(t) for t in recipe.data.transforms))


def inputs_of(
    recipe: Recipe, words: Sequence[str], skip_bad: bool = False
) -> tuple[list[str] | None, Source, tuple[str, ...]]:
    """`(paths, source, notes)` of what a prediction is asked for; paths are None where samples have numbers only.

    Image files, folders of them at any depth, CSVs that list them, in the order given; the rows of a table; or, as
    the only word, a part of the recipe or other data as `data.train` names it. Targets need not be there.
    """
    first = words[0]
    on_disk = Path(first).exists() or (":" not in first and data.is_on_disk(first))
    if not on_disk and len(words) == 1:
        return None, part_of(recipe, first), ()
    spec, columns = recipe.data, recipe.data.columns.model_dump(exclude_none=True)
    if len(words) == 1 and "inputs" in columns:
        return None, data.Tensors((rows := data.rows_of(first, columns), rows)), ()
    if len(words) == 1 and spec.images.mode is None and not Path(first).is_dir() and not first.endswith(data.SUFFIXES):
        return None, part_of(recipe, first), ()
    paths = [path for word in words for path in _image_paths(word, columns)]
    files = data.FileList("the images to predict", paths, torch.zeros(len(paths), dtype=torch.int64))
    images, notes = data.image_files(files, reading_of(spec), "skip" if skip_bad else "error", way_out="--skip-bad")
    transform = _options(spec, "test").transform
    source = images if transform is None else data.per_sample(images, transform)
    return images.files.paths, source.transformed(tuple(data.from_document(t) for t in spec.transforms)), notes


def _image_paths(word: str, columns: Mapping[str, Any]) -> list[str]:
    path = Path(word)
    if path.is_dir():
        found = data.images_in(path)
        if not found:
            raise DataError(f"{path}: there are no images in it, by their suffixes ({listed(data.SUFFIXES)}).")
        return found
    if path.suffix.lower() in (".csv", ".tsv", ".txt"):
        return data.list_of_paths(path, columns.get("path"))
    return [word]  # whether it is there, and an image, is found with all the others


def reading_of(spec: Data) -> Reading:
    """How image files are read."""
    return Reading(spec.images.mode, spec.images.ground, spec.images.size)  # type: ignore[arg-type]  # a number too


def resolved(spec: Data, splits: Splits) -> Data:
    """The recipe's `data` with what was measured, and seen, written in: so that it means the same for other files."""
    update: dict[str, Any] = {"transforms": [t.document() for t in splits.train.transforms]}
    if splits.reading is not None:
        update["images"] = spec.images.model_copy(update={"mode": splits.reading.mode})
    if isinstance(spec.train, str) and spec.train.endswith((".csv", ".tsv", ".txt")):
        columns = data.columns_of(spec.train, spec.columns.model_dump(exclude_none=True))
        update["columns"] = spec.columns.model_copy(update=columns)
        update["targets"] = "classes" if splits.train.classes else "numbers"
    return spec.model_copy(update=update)


def _named(spec: Data) -> Splits:
    """The parts as they are read, the training part without what was set aside."""
    whole = _raw(spec.train, "data.train", _options(spec, "train"))
    train, notes = whole.train, whole.notes
    # What a column or folders divide is divided; a named data set's test part is asked for by name.
    divided = isinstance(spec.train, str) and ":" not in spec.train and data.is_on_disk(spec.train)
    parts: dict[str, Source | None] = {name: getattr(whole, name) if divided else None for name in ("valid", "test")}
    for name in parts:
        given = getattr(spec, name)
        if isinstance(given, (int, float)):
            train, parts[name] = data.split(train, float(given) * len(whole.train) / len(train), name, spec.split_seed)
        elif given is not None:
            other = whole if given == spec.train else _raw(given, f"data.{name}", _like(spec, whole, name))
            parts[name] = getattr(other, name) or (None if given == spec.train else other.train)
            notes += () if other is whole else other.notes
            if parts[name] is None:
                raise RecipeError(
                    f"data.{name}: '{given}' has no part of that name. A fraction sets some samples aside."
                )
    return Splits(train, parts["valid"], parts["test"], notes, whole.reading)


def _options(spec: Data, part: str, classes: tuple[str, ...] | None = None) -> Options:
    chosen = spec.transform.get(part) if isinstance(spec.transform, Mapping) else spec.transform
    return Options(
        columns=spec.columns.model_dump(exclude_none=True),
        images=reading_of(spec),
        targets=spec.targets,
        on_bad=spec.on_bad,
        transform=optional(chosen, "data.transform"),
        target_transform=optional(spec.target_transform, "data.target_transform"),
        classes=classes,
    )


def _like(spec: Data, whole: Splits, part: str) -> Options:
    """How another part is read: its labels are the training part's, its images read as those were."""
    reading = spec.images if whole.reading is None else spec.images.model_copy(update={"mode": whole.reading.mode})
    known = data.targets_in_memory(whole.train)
    seen = None if known is None else ("numbers" if known.is_floating_point() else "classes")
    kind = spec.targets or ("classes" if whole.train.classes else seen)
    return _options(spec.model_copy(update={"images": reading, "targets": kind}), part, whole.train.classes)


def _is_object(given: str | Mapping[str, str]) -> TypeGuard[str]:
    """Whether it is an object of the user's, and not data by name or on disk."""
    return isinstance(given, str) and ":" in given


def _raw(given: str | Mapping[str, str], where: str, options: Options) -> Splits:
    if not _is_object(given):
        return data.open_data(given, options, where)
    found = find_object(given, where)
    if inspect.isclass(found) or (callable(found) and not hasattr(found, "__getitem__")):
        found = call(found, {}, where, given)
    if data.is_dataset_dict(found):
        return data.hub_splits(found, where, options.images)
    if data.is_dataset(found):
        return Splits(data.hub_source(found, where, options.images))
    return found if isinstance(found, Splits) else Splits(data.as_source(found, where))
