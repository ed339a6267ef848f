"""`gradstep predict RUN INPUT...`."""

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
    inputs: list[str] = typer.Argument(
        ..., help="Image files, folders of them, a CSV; or one of train, valid, test, a named data set, module:object."
    ),
    to: str = typer.Option(None, "--to", help="A .csv or .jsonl file; standard output, as CSV, unless given."),
    top: int = typer.Option(1, "--top", min=1, help="How many labels, the likeliest first."),
    skip_bad: bool = typer.Option(False, "--skip-bad", help="Leave out images that are missing or can't be read."),
    out: str = typer.Option("runs", "--out", help="The folder that holds runs."),
) -> None:
    """Write a run's prediction for each sample: path, label, probability."""
    from gradstep import building
    from gradstep.errors import OutputError, RecipeError
    from gradstep.parts import inputs_of
    from gradstep.recipe import Recipe, find
    from gradstep.run import predict as outputs_of
    from gradstep.rundir import RunDir

    if to is not None and not to.endswith((".csv", ".jsonl")):
        raise RecipeError(f"--to: '{to}' ends neither in .csv nor in .jsonl.")
    place = RunDir.find(run, out)
    recipe = Recipe.parse(find(str(place.path))[1], str(place.recipe))
    loaded = building.load(place.path)
    (column, named), source, notes = inputs_of(recipe, inputs, loaded.classes, skip_bad)
    for note in notes:
        print(f"note      {note}", file=sys.stderr)
    outputs = outputs_of(loaded, source, batch_size=recipe.batch_size, device=recipe.device, workers=recipe.workers)
    answers = list(_answers(outputs, recipe.criterion.get("name"), loaded.classes, top))
    rows = [{column: name, **answer} for name, answer in zip(named, answers, strict=True)]
    if to is None:
        _write_csv(rows, sys.stdout)
        return
    try:
        with open(to, "w", newline="") as file:  # only now, when there is something to put there
            _write_csv(rows, file) if to.endswith(".csv") else _write_lines(rows, file)
    except OSError as error:
        raise OutputError(f"--to: '{to}' can't be written ({error.strerror}).") from error
    print(f"{len(source):,} predictions written to {to}")


def _answers(
    outputs: Any, criterion: str | None, classes: tuple[str, ...] | None, top: int
) -> Iterator[dict[str, Any]]:
    """Labels and probabilities where the criterion says that outputs are logits or logarithms; else the outputs."""
    import torch

    from gradstep.errors import RecipeError

    if not isinstance(outputs, torch.Tensor):
        raise RecipeError("predict writes outputs that are one tensor; use gradstep.predict from Python for others.")
    if criterion in ("CrossEntropyLoss", "NLLLoss") and outputs.dim() == 2:
        probabilities: Tensor = outputs.softmax(1) if criterion == "CrossEntropyLoss" else outputs.exp()
        values, numbers = probabilities.topk(min(top, outputs.shape[1]), 1)
        for some, labels in zip(values.tolist(), numbers.tolist(), strict=True):
            answer: dict[str, Any] = {}
            for place, (value, number) in enumerate(zip(some, labels, strict=True), 1):
                label, probability = (
                    ("label", "probability") if place == 1 else (f"label{place}", f"probability{place}")
                )
                answer[label] = classes[number] if classes and number < len(classes) else str(number)
                answer[probability] = round(value, 6)
            yield answer
    elif top > 1:
        raise RecipeError("--top: these outputs are no probabilities of classes, by the run's criterion.")
    else:
        for output in outputs.tolist():
            yield {"output": output}


def _write_csv(rows: list[dict[str, Any]], file: TextIO) -> None:
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def _write_lines(rows: list[dict[str, Any]], file: TextIO) -> None:
    for row in rows:
        file.write(json.dumps(row) + "\n")
