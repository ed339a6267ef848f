"""`gradstep resume [RUN] [key=value ...]`."""

from __future__ import annotations

from typing import Any

import typer


def resume(
    run: str | None = typer.Argument(
        None, help="A run's folder, name or number, or one of its checkpoints; else the newest."
    ),
    settings: list[str] = typer.Argument(
        None, metavar="[KEY=VALUE]...", help="Changes to its recipe, such as epochs=20."
    ),
    out: str = typer.Option("runs", "--out", help="The folder that holds runs."),
    allow_changes: bool = typer.Option(
        False, "--allow-changes", help="Go on though the run is not the one it began as; the record says so."
    ),
) -> None:
    """Go on with a run from where it was: from its newest checkpoint that is whole."""
    from gradstep import disk
    from gradstep.building import build
    from gradstep.cli.train import run_recipe
    from gradstep.errors import DataError, RecipeError
    from gradstep.recipe import Recipe, find, override
    from gradstep.rundir import RunDir

    if run is not None and "=" in run:  # gradstep resume epochs=20
        settings, run = [run, *(settings or [])], None
    named = RunDir.at_checkpoint(run) if run is not None else None
    place = named[0] if named else RunDir.find(run, out, begun=True)
    if not place.recipe.exists():
        raise RecipeError(
            f"{place.path} has no recipe. If it was started from Python, resume it there: fit(..., "
            f"resume='{place.path}'). If its command was killed before the first step, nothing is lost: type it again."
        )
    document = find(str(place.path))[1]
    recipe = Recipe.parse(override(document, settings or []), str(place.recipe))
    try:
        built = build(recipe)
    except DataError as error:
        raise DataError(f"{error}\nWhere files have moved, write their new places into {place.recipe}.") from error

    class Rewrite:
        """Once the run goes on, its recipe is what it goes on with."""

        def on_train_start(self, state: Any, about: Any) -> None:
            if settings and state.step < about.clock.total and state.standing.stopped is None:
                disk.replace(place.recipe, built.recipe.to_yaml().encode())

    where = run if named else place.path
    run_recipe(built.recipe, built.arguments, [Rewrite()], out=out, resume=where, allow_changes=allow_changes)
