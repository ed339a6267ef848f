"""`gradstep resume [RUN]`."""

from __future__ import annotations

import typer


def resume(
    run: str = typer.Argument(None, help="A run's folder, name or number; the newest unless given."),
    out: str = typer.Option("runs", "--out", help="The folder that holds runs."),
) -> None:
    """Go on with a run from its last finished epoch."""
    from gradstep.building import build
    from gradstep.cli.train import run_recipe
    from gradstep.errors import DataError, RecipeError
    from gradstep.recipe import Recipe, find
    from gradstep.rundir import RunDir

    place = RunDir.find(run, out)
    if not place.recipe.exists():
        raise RecipeError(
            f"{place.path} was started from Python and has no recipe. Resume it there: fit(..., resume='{place.path}')."
        )
    recipe = Recipe.parse(find(str(place.path))[1], str(place.recipe))
    try:
        arguments = build(recipe).arguments
    except DataError as error:
        raise DataError(f"{error}\nWhere files have moved, write their new places into {place.recipe}.") from error
    run_recipe(recipe, arguments, [], out=out, resume=place.path)
