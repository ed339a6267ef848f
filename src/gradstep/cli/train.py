"""`gradstep train WHAT [key=value ...]`."""

from __future__ import annotations

import inspect
import re
import shlex
import sys
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from gradstep.recipe import Recipe
    from gradstep.run import Run
    from gradstep.setup import Training

_EXIT_CODES = {"InterruptAt": 3, "SIGHUP": 129, "SIGINT": 130, "SIGTERM": 143}


def train(
    what: str = typer.Argument(
        ...,
        help="A built-in recipe (see: gradstep recipes), a recipe file, or data: a CSV, a folder per class, a name.",
    ),
    settings: list[str] = typer.Argument(
        None, metavar="[KEY=VALUE]...", help="Changes to the recipe, such as optimizer.lr=0.1 epochs=3."
    ),
    out: str = typer.Option("runs", "--out", help="The folder that holds runs."),
    name: str = typer.Option(None, "--name", help="The run's name; the recipe's unless given."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Everything but training, in a temporary folder."),
    test_run: bool = typer.Option(False, "--test-run", help="One batch per epoch through everything."),
    interrupt_at: int = typer.Option(None, "--interrupt-at", help="Save and leave (exit 3) after so many epochs."),
) -> None:
    """Train from a recipe, or straight from data."""
    from gradstep.recipe import Recipe, override

    found, document, chosen = find_recipe(what, settings or [])
    recipe = Recipe.parse(override(document, settings or []), what)
    if test_run:
        limited = override(recipe.document(), [f"data.limit={recipe.batch_size}"])
        recipe = Recipe.parse(limited, what)
    if interrupt_at is not None and recipe.epochs is not None and interrupt_at >= recipe.epochs:
        from gradstep.errors import RecipeError

        raise RecipeError(f"--interrupt-at: {interrupt_at} is not before the end; the run has {recipe.epochs} epochs.")
    from gradstep.building import Documents, build
    from gradstep.hooks import InterruptAt
    from gradstep.record import Console

    built = build(recipe)
    console = Console(recipe.quiet)  # whose reader may be gone
    console.facts([("chosen", line) for line in chosen] + [("note", note) for note in built.notes])
    console.facts(("recipe" if not n else "", line) for n, line in enumerate(_lines(built.recipe)))
    if dry_run:
        _rehearse(built.arguments)
        return
    hooks: list[Any] = [Documents(built.recipe, shlex.join(["gradstep", *sys.argv[1:]]))]
    hooks += [InterruptAt(interrupt_at)] if interrupt_at is not None else []
    called = name or re.sub(r"[^\w.+-]+", "-", found).strip("-") or "run"
    run_recipe(built.recipe, built.arguments, hooks, out=out, name=called)


def run_recipe(recipe: Recipe, arguments: dict[str, Any], hooks: list[Any], **where: Any) -> None:
    """Trains, says what to do next, and leaves with the code that belongs to how it ended."""
    from gradstep.loop import fit
    from gradstep.record import Console

    run = fit(**{**arguments, "hooks": [*hooks, *arguments["hooks"]]}, **where)
    Console(recipe.quiet).facts(_next(run, recipe))
    if run.paused is not None:
        raise typer.Exit(_EXIT_CODES.get(run.paused, 3))  # a hook of the user's pauses as --interrupt-at does


def find_recipe(what: str, settings: list[str]) -> tuple[str, dict[str, Any], list[str]]:
    """`(name, document, what was chosen)`: a recipe, or the default one for data."""
    from pathlib import Path

    from gradstep.recipe import builtin, find, is_recipe

    if is_recipe(what):
        both = what in builtin() and Path(what).exists()
        return *find(what), [f"the built-in recipe '{what}'; for what is called so here: ./{what}"] if both else []
    from gradstep.default import default_recipe

    return default_recipe(*_of_data(what, settings))


def find_data(what: str, settings: list[str]) -> dict[str, Any]:
    """A recipe to look at its data: for data, with nothing of a training in it."""
    from gradstep.recipe import find, is_recipe

    if is_recipe(what):
        return find(what)[1]
    from gradstep.default import default_data

    nothing = {"model": {}, "criterion": {}, "optimizer": {}, "batch_size": 1, "epochs": 1}
    return {"data": default_data(*_of_data(what, settings))[0], **nothing}


def _of_data(what: str, settings: list[str]) -> tuple[str, dict[str, Any]]:
    """The word, if it is one for data, and what the settings say of it."""
    from gradstep import data
    from gradstep.recipe import find, override

    if not (what in data.NAMED or data.is_on_disk(what)):
        find(what)  # raises, naming what there is
    given: dict[str, Any] = override({"data": {}}, settings)["data"]
    return what, given


def _next(run: Run, recipe: Recipe) -> list[tuple[str, str]]:
    """What to type next."""
    if run.paused is not None:
        return [("next", f"gradstep resume {run.path}")]
    part = next((name for name in ("valid", "test") if getattr(recipe.data, name) is not None), "train")
    evaluate, predict = f"gradstep evaluate {run.path}", f"gradstep predict {run.path} {part} --to predictions.csv"
    return [("next", evaluate), ("", predict)]


def _lines(recipe: Recipe) -> list[str]:
    return recipe.to_yaml().splitlines()


def _rehearse(given: dict[str, Any]) -> None:
    from gradstep.rehearsal import rehearse
    from gradstep.watching import Watching

    training = assembled(given)
    others = {"valid": given["valid"], "test": given["test"]}
    watching = Watching.of(training, others, **{name: given[name] for name in _of(Watching.of, given)})
    for line in rehearse(training, watching):
        print(line)
    print("dry run   fine. Nothing was trained, and nothing is kept.")


def assembled(given: dict[str, Any]) -> Training:
    """The parts of a training of a recipe's arguments, and nothing run."""
    from gradstep.setup import assemble

    parts = [given[name] for name in ("model", "criterion", "train")]
    return assemble(*parts, **{name: given[name] for name in _of(assemble, given)})


def _of(function: Any, given: dict[str, Any]) -> list[str]:
    """The keyword-only parameters of a function that the recipe gave."""
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name in given]
