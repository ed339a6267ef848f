"""`gradstep evaluate RUN [DATA]`."""

from __future__ import annotations

import json
import sys

import typer


def evaluate(
    run: str = typer.Argument(..., help="A run's folder, name or number."),
    data: str = typer.Argument(
        None, help="train, valid or test of the run's recipe, or other data, as data.train names it; test or valid."
    ),
    out: str = typer.Option("runs", "--out", help="The folder that holds runs."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Measure a run's weights on data, with the run's criterion and metrics."""
    from gradstep import building
    from gradstep.evaluation import evaluate as measure
    from gradstep.parts import part_of
    from gradstep.recipe import Recipe, find
    from gradstep.rundir import RunDir

    place = RunDir.find(run, out)
    recipe = Recipe.parse(find(str(place.path))[1], str(place.recipe))
    what = data or ("test" if recipe.data.test is not None else "valid")
    loaded = building.load(place.path)
    source, notes = part_of(recipe, what, loaded.classes)
    for note in notes:
        print(f"note      {note}", file=sys.stderr)
    values = measure(
        loaded.model,
        building.build_criterion(recipe.criterion),
        source,
        batch_size=recipe.batch_size,
        metrics=building.build_metrics(recipe),
        device=recipe.device,
        workers=recipe.workers,
        seed=recipe.seed,
        unpack=loaded.unpack,
        forward=loaded.forward,
    )
    if as_json:
        print(json.dumps({"run": str(place.path), "data": what, "samples": len(source), **values}))
        return
    print(f"{place.path} on {what}, {len(source):,} samples")
    for name, value in values.items():
        print(f"  {name:<18}{value:.6f}" if isinstance(value, float) else f"  {name}\n    {value}")
