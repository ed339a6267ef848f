"""Recipes: what may be written, what wins over what, and that numbers are read as YAML 1.2 reads them."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradstep.errors import RecipeError
from gradstep.recipe import SYNONYMS, Recipe, builtin, builtin_text, find, override, spelled_out
from gradstep.yaml12 import read_yaml, write_yaml

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@given(plain)
def test_what_is_written_is_read_back(document) -> None:
    assert read_yaml(write_yaml(document), "it") == document


@given(st.from_regex(r"[-+]?[0-9]{1,3}(\.[0-9]{1,3})?([eE][-+]?[0-9]{1,2})?", fullmatch=True))
def test_numbers_are_numbers_however_they_are_written(text: str) -> None:
    assert read_yaml(text, "it") == float(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("1E5", 1e5), ("no", "no"), ("yes", "yes"), ("off", "off"), ("010", 10), ("0o10", 8),
     ("0x1F", 31), ("1:30", "1:30"), ("2026-01-01", "2026-01-01"), ("1_000", "1_000"), (".5", 0.5), ("~", None),
     ("true", True), ("True", True), ("'1e-3'", "1e-3"), ("-.inf", -math.inf), ("", None)],
)  # fmt: skip
def test_yaml_1_2_and_not_1_1(text: str, value: object) -> None:
    assert read_yaml(text, "it") == value
    assert type(read_yaml(text, "it")) is type(value)


def test_a_bomb_of_aliases_and_foreign_tags_are_refused() -> None:
    bomb = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"
    with pytest.raises(RecipeError, match="aliases"):
        read_yaml(bomb, "it")
    with pytest.raises(RecipeError, match="not YAML"):
        read_yaml("!!python/object/apply:os.system ['true']", "it")
    with pytest.raises(RecipeError):
        read_yaml("[" * 100_000, "it")


@pytest.mark.parametrize("name", builtin())
def test_a_built_in_recipe_is_valid_and_says_command_cost_and_result(name: str) -> None:
    recipe = Recipe.parse(find(name)[1], name)
    assert Recipe.parse(recipe.document()) == recipe
    assert Recipe.parse(read_yaml(recipe.to_yaml(), name)) == recipe
    comments = [line for line in builtin_text(name).splitlines() if line.startswith("#")]
    assert f"gradstep train {name}" in comments[0]
    assert comments[1].startswith("# cost: ")
    assert comments[2].startswith("# result: ")


def test_the_command_line_wins_and_goes_as_deep_as_it_likes() -> None:
    document = override(find("digits")[1], ["optimizer.lr=1e-3", "checkpoint.every=7 steps", "metrics=[accuracy, mse]"])
    recipe = Recipe.parse(document)
    assert recipe.optimizer == {"name": "SGD", "lr": 0.001, "momentum": 0.9}
    assert recipe.checkpoint.every == "7 steps"
    assert recipe.metrics == ["accuracy", "mse"]
    later = Recipe.parse(override(document, ["optimizer.lr=2", "optimizer.lr=3", "epochs=null", "steps=5"]))
    assert (later.optimizer["lr"], later.epochs, later.steps) == (3, None, 5)


def test_override_leaves_the_document_it_was_given_alone() -> None:
    document = find("digits")[1]
    before = write_yaml(document)
    override(document, ["optimizer.lr=9", "data.limit=5"])
    assert write_yaml(document) == before


def test_shorthands_are_the_long_forms() -> None:
    short = {"data": "digits", "model": "m:N", "criterion": "MSELoss", "optimizer": "SGD", "schedule": "cosine",
             "metrics": "mse", "hooks": "TensorBoard", "checkpoint": "2 epochs"}  # fmt: skip
    assert spelled_out(short) == {
        "data": {"train": "digits"}, "model": {"class": "m:N"}, "criterion": {"name": "MSELoss"},
        "optimizer": {"name": "SGD"}, "schedule": {"name": "cosine"}, "metrics": ["mse"],
        "hooks": ["TensorBoard"], "checkpoint": {"every": "2 epochs"},
    }  # fmt: skip


@pytest.mark.parametrize("word", SYNONYMS)
def test_another_trainer_s_word_is_answered_with_ours(word: str) -> None:
    with pytest.raises(RecipeError, match="It is called '") as told:
        Recipe.parse(override(find("digits")[1], [f"{word}=1"]))
    ours = str(told.value).split("'")[3].split(".")[0]
    assert ours in Recipe.model_fields


def test_synonyms_are_no_keys() -> None:
    assert not set(SYNONYMS) & set(Recipe.model_fields)


def test_several_mistakes_are_told_at_once() -> None:
    with pytest.raises(RecipeError) as told:
        Recipe.parse(override(find("digits")[1], ["epoch=3", "batch_size=0", "data.tran=x", "seed=-1"]))
    assert len(str(told.value).splitlines()) == 4


def test_a_run_s_folder_is_a_recipe(tmp_path: Path) -> None:
    folder = tmp_path / "0003-mine"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(builtin_text("digits"))
    assert find(str(folder)) == ("mine", find("digits")[1])


def test_reading_a_recipe_needs_no_torch() -> None:
    code = "import sys; from gradstep.recipe import Recipe, find; Recipe.parse(find('mnist')[1]); "
    code += "assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["ema=0.9", "ema.evaluate=false"], {"ema": {"decay": 0.9, "evaluate": False}}),
        (["clip=0.5", "clip.type=1"], {"clip": {"norm": 0.5, "type": 1}}),
        (["init=xavier", "init.gain=auto"], {"init": {"name": "xavier", "gain": "auto"}}),
        (
            ["schedule.lr=cosine", "schedule.lr.warmup=1 epoch"],
            {"schedule": {"lr": {"name": "cosine", "warmup": "1 epoch"}}},
        ),
        (
            ["groups={0: {schedule: cosine}}", "groups.0.schedule.floor=0.1"],
            {"groups": {"0": {"schedule": {"name": "cosine", "floor": 0.1}}}},
        ),
    ],
)
def test_a_shorthand_can_be_added_to(settings: list[str], expected: dict[str, object]) -> None:
    assert override({}, settings) == expected


def test_a_word_that_holds_no_keys_is_not_written_over() -> None:
    with pytest.raises(RecipeError, match=r"'device\.name=cuda': 'device' is 'cpu', and has no 'name'"):
        override({"device": "cpu"}, ["device.name=cuda"])
