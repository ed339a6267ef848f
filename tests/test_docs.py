"""Tables in the docs say what the committed records say."""

import json
import re
from pathlib import Path

from benchmarks.resume.__main__ import table as resumes

import gradstep
from gradstep.cli.train import assembled
from gradstep.timetable import timetable

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "benchmarks" / "records"


def short(figure: str) -> str:
    """`exact (4e-16)` as `exact`, `8.7e-01` as `0.87`, `bitwise by epoch, differs by step` as its first half."""
    if figure.startswith(("exact", "not offered")):
        return re.match(r"exact|not offered", figure)[0]
    if figure.endswith("no step"):
        return "no step"
    if figure.startswith("differs") and "by" in figure:
        return "differs"
    number = re.fullmatch(r"(differs \()?(\d\.\de[+-]\d\d)(\))?", figure)
    if number:
        value = f"{float(number[2]):.2f}"
        return f"differs ({value})" if number[1] else value
    return figure.partition(",")[0]


def test_the_table_of_other_tools_is_the_record() -> None:
    record = json.loads((RECORDS / "exactness.json").read_text())
    text = (ROOT / "docs" / "EXACTNESS.md").read_text()
    for tool, cells in record["cells"].items():
        row = next(line for line in text.splitlines() if line.startswith(f"| {tool}"))
        shown = [cell.strip() for cell in row.strip("|").split("|")[1:]]
        assert shown == [short(cell["figure"]) for cell in cells.values()], tool


def test_the_table_of_costs_is_the_record() -> None:
    cells = json.loads((RECORDS / "updates.json").read_text())["ratios"]
    text = (ROOT / "docs" / "EXACTNESS.md").read_text()
    for name, cell in cells.items():
        low, high = cell["interval"]
        assert f"| {cell['ratio']:.2f} ({low:.2f} to {high:.2f}) |" in text, name


def test_the_table_of_mnist_torch7_is_the_record() -> None:
    results = json.loads((RECORDS / "results.json").read_text())["results"]
    (record,) = [each for each in results if each.get("recipe") == "mnist-torch7"]
    assert record["holds"]
    text = (ROOT / "docs" / "CHOICES.md").read_text()
    for epoch in range(1, 11):
        rows = [row for row in record["table"] if row["epoch"] == epoch]
        assert [row["seed"] for row in rows] == [0, 1, 2]
        losses = ", ".join(f"{row['loss']:.3f}" for row in rows)
        assert re.search(rf"^\| {epoch} \| {re.escape(losses)} \|", text, flags=re.MULTILINE)
        for name in ("printed", "accuracy"):
            assert ", ".join(f"{row[name]:.4f}" for row in rows) in text
        assert "{:.3f} to {:.3f}".format(*rows[0]["loss_range"]) in text


def test_the_table_of_the_three_factors_is_the_record() -> None:
    record = json.loads((RECORDS / "three_factors.json").read_text())
    text = (ROOT / "docs" / "CHOICES.md").read_text()
    settings = record["settings"]
    found = {(cell["optimizer"], cell["initialisation"], cell["rate"]): cell["accuracy"] for cell in record["cells"]}
    assert len(found) == len(settings["optimizers"]) * len(settings["initialisations"]) * len(settings["rates"])
    for optimizer in settings["optimizers"]:
        for start in settings["initialisations"]:
            values = [found[optimizer, start, rate] for rate in settings["rates"]]
            shown = " | ".join("diverged" if value is None else f"{value:.3f}" for value in values)
            assert f"| {optimizer} | {start} | {shown} |" in text


def test_the_schedule_that_the_page_prints_is_what_the_command_prints() -> None:
    text = (ROOT / "docs" / "CHOICES.md").read_text()
    block = re.search(r"\$ gradstep recipes digits --schedule\n(.*?)```", text, flags=re.DOTALL)[1]
    built = gradstep.build(gradstep.Recipe.parse(gradstep.recipe.find("digits")[1]))
    printed = timetable(assembled(built.arguments))
    assert [line for line in block.splitlines() if line.strip() != "..." and line not in printed] == []


def test_each_of_the_ways_to_fail_is_held_by_a_test_that_is_there() -> None:
    page = (ROOT / "docs" / "FAILURES.md").read_text()
    rows = dict(re.findall(r"^\| (\d+) \| [^|]+ \| (.+) \|$", page, flags=re.MULTILINE))
    assert list(rows) == [str(number) for number in range(1, 73)]
    for number, held in rows.items():
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", held)
        assert named or re.search(r"\b(as|case) \d+|not there yet|ENOSPC from", held), f"case {number} names no test"
        for file, test in named:
            assert not test or re.search(rf"^def {test}\(", (ROOT / file).read_text(), re.MULTILINE), (number, test)
            assert (ROOT / file).exists(), (number, file)


def test_the_table_of_resumes_is_the_record() -> None:
    rows = json.loads((RECORDS / "resume.json").read_text())["rows"]
    assert resumes(rows) in (ROOT / "docs" / "RELIABILITY.md").read_text()


def test_what_changes_nothing_is_adopted_in_no_more_than_one_trial_of_a_hundred() -> None:
    record = json.loads((RECORDS / "adoption.json").read_text())
    beside = record["beside a busy neighbour"]
    assert all(
        record[name]["adopted"] <= 0.01 * record[name]["trials"] for name in ("alone", "beside a busy neighbour")
    )
    assert beside["ms a step"] > 1.03 * record["alone"]["ms a step"]  # it was there
    assert (beside["adopted"], beside["trials"]) == (0, 1000)
    assert "none of 1,000 real ones" in " ".join((ROOT / "docs" / "PLAN.md").read_text().split())


def test_the_figures_of_the_torture_and_the_mutations_are_the_records() -> None:
    torture, mutations = (json.loads((RECORDS / f"{name}.json").read_text()) for name in ("torture", "mutations"))
    text = " ".join((ROOT / "docs" / "RELIABILITY.md").read_text().split())
    assert f"{torture['kills']:,} kills" in text
    assert torture["kills"] >= 1000
    assert torture["differences"] == torture["leftover_processes"] == 0
    assert mutations["bugs"] == mutations["caught"] == 40
