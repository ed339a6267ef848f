"""`gradstep recipes [NAME]`."""

from __future__ import annotations

import typer


def recipes(
    name: str = typer.Argument(None, help="Print this one, ready to be saved and changed."),
    schedule: bool = typer.Option(False, "--schedule", help="Print the rate at every change instead."),
) -> None:
    """List the built-in recipes, or print one: gradstep recipes digits > mine.yaml"""
    from gradstep.errors import RecipeError
    from gradstep.recipe import builtin, builtin_text, find

    if schedule:
        if name is None:
            raise RecipeError("--schedule: of which recipe? As in: gradstep recipes digits --schedule")
        _show_schedule(name)
        return
    if name is not None:
        find(name)  # an unknown name is an error that names the nearest
        print(builtin_text(name), end="")
        return
    for each in builtin():
        comments = [line.removeprefix("# ") for line in builtin_text(each).splitlines() if line.startswith("#")]
        print(f"{each:<14}{comments[0]}")
        for line in comments[1:]:
            print(f"{'':<14}{line}")


def _show_schedule(name: str) -> None:
    """The lengths of a schedule come from the data, so the recipe is built; nothing is trained or written."""
    from gradstep.building import build
    from gradstep.cli.train import assembled
    from gradstep.recipe import Recipe, find
    from gradstep.timetable import timetable

    found, document = find(name)
    training = assembled(build(Recipe.parse(document, found)).arguments)
    print("\n".join(timetable(training)))
