"""`gradstep recipes [NAME]`."""

from __future__ import annotations

import typer


def recipes(name: str = typer.Argument(None, help="Print this one, ready to be saved and changed.")) -> None:
    """List the built-in recipes, or print one: gradstep recipes digits > mine.yaml"""
    from gradstep.recipe import builtin, builtin_text, find

    if name is not None:
        find(name)  # an unknown name is an error that names the nearest
        print(builtin_text(name), end="")
        return
    for each in builtin():
        comments = [line.removeprefix("# ") for line in builtin_text(each).splitlines() if line.startswith("#")]
        print(f"{each:<10}{comments[0]}")
        for line in comments[1:]:
            print(f"{'':<10}{line}")
