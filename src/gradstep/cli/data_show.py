"""`gradstep data show WHAT`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from torch import Tensor

    from gradstep.data import Cut, FileList, Source
    from gradstep.recipe import Recipe

_COLUMNS, _ROWS = 10, 40  # of a sheet


def show(
    what: str = typer.Argument(..., help="A named data set, a CSV, a folder per class, another file, or a recipe."),
    settings: list[str] = typer.Argument(
        None, metavar="[KEY=VALUE]...", help="Changes to the recipe, such as data.valid=0.1 or data.augment=[flip]."
    ),
    sheet: str = typer.Option(None, "--sheet", help="A .png to write, with samples of each class."),
    augment: bool = typer.Option(False, "--augment", help="Show the samples of the sheet as data.augment makes them."),
    epoch: int = typer.Option(1, "--epoch", min=1, help="The epoch whose augmentation is shown."),
) -> None:
    """Count classes, sizes, modes, bad files and exact duplicates, within and across the split."""
    from gradstep.cli.train import find_data
    from gradstep.data.showing import look_through
    from gradstep.errors import RecipeError
    from gradstep.parts import cut
    from gradstep.recipe import Recipe, override

    if sheet is not None and not sheet.lower().endswith(".png"):
        raise RecipeError(f"--sheet: '{sheet}' does not end in .png.")
    if augment and sheet is None:
        raise RecipeError("--augment: say where to, as in --sheet augmented.png")
    document = find_data(what, settings or [])
    recipe = Recipe.parse(override(document, settings or []), what)
    if augment and not recipe.data.augment:
        raise RecipeError("--augment: there is no augmentation. Add one, as in data.augment='[flip, {shift: 2}]'")
    parts, found = cut(recipe.data)
    for label, text in [*(("note", note) for note in found.notes), *look_through(parts).lines()]:
        print(f"{label:<10}{text}")
    if sheet is not None:
        _write_sheet(sheet, recipe, parts["train"], epoch if augment else None)


def _write_sheet(path: str, recipe: Recipe, part: Cut, epoch: int | None) -> None:
    from gradstep.data.showing import sheet
    from gradstep.errors import OutputError

    rows = _samples(recipe, part, epoch)
    try:
        sheet(dict(list(rows.items())[:_ROWS])).save(path)
    except OSError as error:
        raise OutputError(f"--sheet: '{path}' can't be written ({error.strerror}).") from error
    more = f", of {len(rows)} classes the first {_ROWS}" if len(rows) > _ROWS else ""
    print(f"{'sheet':<10}{path}{more}{f', as augmented in epoch {epoch}' if epoch else ''}")


def _samples(recipe: Recipe, part: Cut, epoch: int | None) -> dict[str, list[Tensor]]:
    """The first readable images of each label."""
    import torch

    from gradstep import data
    from gradstep.data.showing import labels_of
    from gradstep.errors import DataError

    labels = labels_of(part.whole)
    rows: dict[str, list[Any]] = {}
    for number in part.numbers.tolist():
        row = rows.setdefault("" if labels is None else labels[number], [])
        if len(row) < _COLUMNS:
            row += [(number, image) for image in _image(recipe, part.whole, number)]
    placed = enumerate(data.augmentations_of(recipe.data.augment))
    single = [(place, each) for place, each in placed if not data.is_mix(each)]
    if epoch is None:
        return {label: [image for _, image in row] for label, row in sorted(rows.items())}
    try:
        return {
            label: [
                data.augmented(image[None], single, data.Draws(recipe.seed, epoch - 1, torch.tensor([number])))[0]
                for number, image in row
            ]
            for label, row in sorted(rows.items())
        }
    except RuntimeError as error:
        raise DataError(f"--augment: {str(error).splitlines()[0]}") from error


def _image(recipe: Recipe, whole: FileList | Source, number: int) -> list[Tensor]:
    """The image with this number, or nothing where it can't be read; DataError where samples are no images."""
    import torch

    from gradstep import data
    from gradstep.errors import DataError
    from gradstep.parts import reading_of

    if isinstance(whole, data.FileList):
        try:
            return [data.read_image(whole.paths[number], reading_of(recipe.data))]
        except data.UnreadableError:
            return []
    image = whole.batch(torch.tensor([number]), 0, 0)[0][0]
    if not isinstance(image, torch.Tensor) or image.dim() != 3:
        raise DataError("--sheet: these samples are no images [C, H, W], and there is nothing to draw.")
    return [image]
