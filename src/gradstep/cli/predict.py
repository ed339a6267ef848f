"""`gradstep predict RUN DATA`."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

import typer

if TYPE_CHECKING:
    from torch import Tensor


def predict(
    run: str = typer.Argument(..., help="A run's folder, name or number."),
    data: str = typer.Argument(..., help="train, valid or test of the run's recipe, a named data set, module:object."),
    to: str = typer.Option(None, "--to", help="A .csv or .jsonl file; standard output, as CSV, unless given."),
    out: str = typer.Option("runs", "--out", help="The folder that holds runs."),
) -> None:
    """Write a run's prediction for each sample, in the data's order."""
    from gradstep import building
    from gradstep.errors import OutputError, RecipeError
    from gradstep.recipe import Recipe, find
    from gradstep.run import predict as outputs_of
    from gradstep.rundir import RunDir

    if to is not None and not to.endswith((".csv", ".jsonl")):
        raise RecipeError(f"--to: '{to}' ends neither in .csv nor in .jsonl.")
    place = RunDir.find(run, out)
    recipe = Recipe.parse(find(str(place.path))[1], str(place.recipe))
    source = part_of(recipe, data)
    loaded = building.load(place.path)
    outputs = outputs_of(loaded, source, batch_size=recipe.batch_size, device=recipe.device, workers=recipe.workers)
    rows = list(_rows(outputs, recipe.criterion.get("name"), loaded.classes))
    if to is None:
        _write_csv(rows, sys.stdout)
        return
    try:
        with open(to, "w", newline="") as file:  # only now, when there is something to put there
            _write_csv(rows, file) if to.endswith(".csv") else _write_lines(rows, file)
    except OSError as error:
        raise OutputError(f"--to: '{to}' can't be written ({error.strerror}).") from error
    print(f"{len(source):,} predictions written to {to}")


def _rows(outputs: Any, criterion: str | None, classes: tuple[str, ...] | None) -> Iterator[dict[str, Any]]:
    """Class and probability where the criterion says that outputs are logits or logarithms; else the outputs."""
    import torch

    from gradstep.errors import RecipeError

    if not isinstance(outputs, torch.Tensor):
        raise RecipeError("predict writes outputs that are one tensor; use gradstep.predict from Python for others.")
    if criterion in ("CrossEntropyLoss", "NLLLoss") and outputs.dim() == 2:
        probabilities: Tensor = outputs.softmax(1) if criterion == "CrossEntropyLoss" else outputs.exp()
        values, numbers = probabilities.max(1)
        for index, (value, number) in enumerate(zip(values.tolist(), numbers.tolist(), strict=True)):
            name = classes[number] if classes and number < len(classes) else str(number)
            yield {"index": index, "class": name, "probability": round(value, 6)}
    else:
        for index, output in enumerate(outputs.tolist()):
            yield {"index": index, "output": output}


def _write_csv(rows: list[dict[str, Any]], file: TextIO) -> None:
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def _write_lines(rows: list[dict[str, Any]], file: TextIO) -> None:
    for row in rows:
        file.write(json.dumps(row) + "\n")
