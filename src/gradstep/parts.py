"""From a recipe's `data` to the parts of a data set, and back to what must be written into the recipe of a run."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

import torch

from gradstep import data
from gradstep.data import PARTS, Cut, FileList, Options, Reading, Source, Splits, Survey
from gradstep.errors import DataError, GradstepError, RecipeError, UserCodeError, listed, raised_at
from gradstep.objects import call, find_object, optional
from gradstep.recipe import Data, Recipe

Names = tuple[str, Sequence[Any]]


def read_splits(recipe: Recipe) -> Splits:
    """The parts that a recipe names, under its transforms, the training part under its augmentations."""
    spec = recipe.data
    cuts, found = cut(spec)
    parts, notes, reading = data.open_parts(cuts, _options(spec))
    splits = Splits(**parts, notes=found.notes + notes, reading=reading, columns=found.columns)
    try:
        return data.prepare(splits, spec.transforms, spec.augment)
    except GradstepError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}{raised_at(error)}"
        raise UserCodeError(f"data.train: measuring its transforms raised {what}.") from error


def cut(spec: Data) -> tuple[dict[str, Cut], Survey]:
    """The parts as training has them, the training part first, and what was found where it is cut from.

    No image file is opened: which sample is in which part does not depend on which of them can be read.
    """
    found = _survey(spec.train, "data.train", _options(spec))
    whole, notes = found.train("data.train"), found.notes
    train = Cut.all_of(whole)
    # What a column or folders divide is divided; a named data set's test part is asked for by name.
    divided = _on_disk(spec.train)
    others: dict[str, Cut] = {}
    for name in ("valid", "test"):
        given = getattr(spec, name)
        if isinstance(given, (int, float)):
            share = float(given) * len(whole) / len(train)
            train, others[name] = train.divided(share, name, spec.split_seed)
            if divided and name in found.parts:
                notes += (f"data.{name}: a share of the training part; what {spec.train} itself sets aside is unused",)
        elif given is not None and _from_the_root(given) != _from_the_root(spec.train):
            other = _survey(given, f"data.{name}", _like(spec, found))
            others[name], notes = Cut.all_of(_of(other, name, "train")), notes + other.notes
            _hold_classes(others[name].whole, data.class_names(whole), f"data.{name}")
        elif name in found.parts and (given is not None or divided):
            others[name] = Cut.all_of(found.parts[name])
        elif given is not None:
            raise RecipeError(f"data.{name}: '{given}' has no part of that name. A fraction sets some samples aside.")
    cuts = {"train": train, **others}
    if spec.limit is not None:
        cuts = {name: Cut(each.whole, each.numbers[: spec.limit]) for name, each in cuts.items()}
    return cuts, replace(found, notes=notes)


def part_of(recipe: Recipe, what: str, classes: tuple[str, ...] | None) -> tuple[Source, tuple[str, ...]]:
    """`(samples, notes)` of a word: `train`, `valid`, `test` of the recipe, else data as `data.train` may name it.

    `classes` are the run's: what labels of other data must be of.
    """
    notes = _hidden_by(what)
    if what in PARTS:
        splits = read_splits(recipe)
        source: Source | None = getattr(splits, what)
        if source is None:
            raise RecipeError(f"the recipe's data has no '{what}' part.")
        return source, notes + splits.notes
    options = replace(_options(recipe.data), classes=classes, training=False)
    found = _survey(what, "DATA", options)
    other = _of(found, "test", "train", "valid")
    _hold_classes(other, classes, what)
    if len(found.parts) > 1:
        name = next(part for part, each in found.parts.items() if each is other)
        notes += (f"{what}: it has {', '.join(found.parts)}, and its {name} part is taken",)
    opened, more, _ = data.open_parts({"test": Cut.all_of(other)}, options)
    return opened["test"].transformed(data.transforms_of(recipe.data.transforms)), notes + found.notes + more


def _hidden_by(what: str) -> tuple[str, ...]:
    """A note where a word names a part of the recipe or a data set, and something on disk is called so too."""
    meant = f"the {what} part of the run's recipe" if what in PARTS else f"the data set {what}"
    both = (what in PARTS or what in data.NAMED) and Path(what).exists()
    return (f"'{what}' is {meant}; for what is called so here: ./{what}",) if both else ()


def _hold_classes(other: FileList | Source, classes: tuple[str, ...] | None, where: str) -> None:
    """DataError where a number stands for one class here and for another in the training data."""
    named = [each for each in (other.classes, classes) if each and each != tuple(map(str, range(len(each))))]
    if len(named) == 2 and any(own != known for own, known in zip(*named, strict=False)):
        raise DataError(
            f"{where}: its classes are {listed(named[0])}, and the training data's {listed(named[1])}: a target's "
            "number would mean another class. Give its classes in the same order."
        )


def inputs_of(
    recipe: Recipe, words: Sequence[str], classes: tuple[str, ...] | None, skip_bad: bool = False
) -> tuple[Names, Source, tuple[str, ...]]:
    """`(names, source, notes)` of what a prediction is asked for; names are `("path", files)`, or `("index", numbers)`.

    Image files, folders of them at any depth, CSVs that list them, in the order given; the rows of a table; or, as
    the only word, a part of the recipe or other data as `data.train` names it. Targets need not be there.
    """
    first, spec = words[0], recipe.data
    named = first in PARTS or first in data.NAMED or not (Path(first).exists() or _on_disk(first))
    if named and len(words) == 1:
        return _by_name(*part_of(recipe, first, classes))
    columns = spec.columns.model_dump(exclude_none=True)
    if len(words) == 1 and "inputs" in columns:
        rows = data.rows_of(first, columns)
        return _by_name(data.Tensors((rows, rows)), ())
    if len(words) == 1 and spec.images.mode is None and not Path(first).is_dir() and not data.is_image(first):
        return _by_name(*part_of(recipe, first, classes))
    paths = [path for word in words for path in _image_paths(word, columns)]
    files = data.FileList("the images to predict", paths, torch.zeros(len(paths), dtype=torch.int64))
    on_bad = "skip" if skip_bad else "error"
    # What is predicted is seldom asked for twice: it would push out of the cache what is trained on.
    images, good, notes = data.image_files(files, reading_of(spec), on_bad, "--skip-bad", cached=False)
    transform = _options(spec).transform_of("test")
    source = data.Part(images if transform is None else data.per_sample(images, transform), good)
    return _by_name(source.transformed(data.transforms_of(spec.transforms)), notes)


def _by_name(source: Source, notes: tuple[str, ...]) -> tuple[Names, Source, tuple[str, ...]]:
    """Samples as the user knows them: files, or numbers in the data that they were cut from."""
    numbers = torch.arange(len(source))
    files = data.paths(source, numbers)
    return ("index", data.original(source, numbers).tolist()) if files is None else ("path", files), source, notes


def _image_paths(word: str, columns: Mapping[str, Any]) -> list[str]:
    path = Path(word)
    if path.is_dir():
        found = data.images_in(path)
        if not found:
            raise DataError(f"{path}: there are no images in it, by their suffixes ({listed(data.SUFFIXES)}).")
        return found
    if data.is_text(path):
        return data.list_of_paths(path, columns.get("path"))
    return [word]  # whether it is there, and an image, is found with all the others


def reading_of(spec: Data) -> Reading:
    """How image files are read."""
    return Reading(spec.images.mode, spec.images.ground, spec.images.size)  # type: ignore[arg-type]  # a number too


def resolved(spec: Data, splits: Splits) -> Data:
    """The recipe's `data` with what was measured, and seen, written in: so that it means the same for other files.

    Files are named from the root: the run is evaluated and resumed from any folder.
    """
    update: dict[str, Any] = {"transforms": [t.document() for t in splits.train.transforms]}
    update |= {name: _from_the_root(getattr(spec, name)) for name in PARTS}
    if splits.reading is not None:
        update["images"] = spec.images.model_copy(update={"mode": splits.reading.mode})
    if splits.columns:
        update["columns"] = spec.columns.model_copy(update=dict(splits.columns))
        update["targets"] = "classes" if splits.train.classes else "numbers"
    return spec.model_copy(update=update)


def _from_the_root(given: Any) -> Any:
    if isinstance(given, Mapping):
        return {name: str(Path(file).absolute()) for name, file in given.items()}
    return str(Path(given).absolute()) if isinstance(given, str) and _on_disk(given) else given


def _options(spec: Data) -> Options:
    where, given = "data.transform", spec.transform
    each = {n: find_object(word, f"{where}.{n}") for n, word in given.items()} if isinstance(given, dict) else None
    return Options(
        columns=spec.columns.model_dump(exclude_none=True),
        images=reading_of(spec),
        targets=spec.targets,
        on_bad=spec.on_bad,
        transform=optional(given, where) if not isinstance(given, dict) else each,
        target_transform=optional(spec.target_transform, "data.target_transform"),
    )


def _like(spec: Data, found: Survey) -> Options:
    """How another file is read: its columns are called, and its labels are, as those of the training part."""
    train = found.parts["train"]
    known: Any = data.targets_in_memory(train)
    numbers = isinstance(known, torch.Tensor) and known.is_floating_point()
    kind = spec.targets or (None if known is None else "numbers" if numbers else "classes")
    columns = {**_options(spec).columns, **found.columns}
    return replace(_options(spec), columns=columns, targets=kind, classes=data.class_names(train), training=False)


def _of(found: Survey, *names: str) -> FileList | Source:
    """The first of these parts that is there, else the only part."""
    return next((found.parts[name] for name in names if name in found.parts), next(iter(found.parts.values())))


def _on_disk(given: str | Mapping[str, str]) -> bool:
    return isinstance(given, str) and not _is_object(given) and data.is_on_disk(given)


def _is_object(given: str | Mapping[str, str]) -> TypeGuard[str]:
    """Whether it is an object of the user's, and not data by name or on disk."""
    return isinstance(given, str) and ":" in given and os.sep not in given.partition(":")[0]


def _survey(given: str | Mapping[str, str], where: str, options: Options) -> Survey:
    """What a word of the recipe names, objects of the user's among them."""
    if not _is_object(given):
        return data.survey(given, options, where)
    found = find_object(given, where)
    if inspect.isclass(found) or (callable(found) and not hasattr(found, "__getitem__")):
        found = call(found, {}, where, given)
    if data.is_dataset_dict(found):
        found = data.hub_splits(found, where, options.images)
    if isinstance(found, Splits):
        return Survey(dict(found.items()), found.notes)
    source = data.hub_source(found, where, options.images) if data.is_dataset(found) else data.as_source(found, where)
    return Survey({"train": source})
