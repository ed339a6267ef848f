"""What holds the house together: floors, public names, sizes, and the words of README and docs."""

import ast
import inspect
import re
import shlex
import tomllib
from pathlib import Path

import pytest

import gradstep
from gradstep.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "gradstep"

# docs/ARCHITECTURE.md shows the same floors to people.
FLOORS = [
    {"errors", "keys", "tree", "clock", "yaml12", "disk", "heap"},
    {"data", "update", "optim", "schedules", "initialization", "metrics", "counted", "precision"},
    {"encoding", "snapshot", "module_state", "optimizer_state", "state", "rundir", "tensorfile", "checkpoint",
     "retention", "record"},
    {"scheduling", "timetable", "step", "graphs", "plan", "evaluation", "hooks", "stopping", "setup", "meaning",
     "check", "keeper", "saver", "finite", "watching", "opening", "closing", "interrupt", "facts", "changes", "failure",
     "run", "rehearsal", "unsaved", "session", "loop"},
    {"words", "recipe", "objects", "parts", "choices", "default", "building", "models", "recipes", "cli", "__main__"},
]  # fmt: skip
FLOOR_OF = {room: number for number, floor in enumerate(FLOORS) for room in floor}


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """The modules of gradstep that a file imports, as `data.sources`; imports for type checkers alone don't count."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "gradstep":
            inside = str(node.module).removeprefix("gradstep").lstrip(".")
            for name in node.names:
                is_module = (SOURCE / inside.replace(".", "/") / f"{name.name}.py").exists()
                module = f"{inside}.{name.name}".lstrip(".") if is_module or not inside else inside
                found.add(module)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found - {"__version__"}


FILES = [path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py"]


def test_every_room_has_a_floor() -> None:
    assert {room_of(path) for path in FILES} | {"recipes"} == set(FLOOR_OF)


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(SOURCE)) for path in FILES])
def test_imports_run_downwards(path: Path) -> None:
    room = room_of(path)
    for other in {module.split(".")[0] for module in imports(path)} - {room}:
        assert FLOOR_OF[other] <= FLOOR_OF[room], f"{room} imports {other} from a floor above"
        assert FLOOR_OF[room] != 1 or FLOOR_OF[other] == 0, f"{room} imports {other}, a room of its own floor"


def test_no_modules_import_each_other_in_a_circle() -> None:
    names = {path: path.relative_to(SOURCE).with_suffix("").as_posix().replace("/", ".") for path in FILES}
    graph = {name.removesuffix(".__init__"): imports(path) for path, name in names.items()}

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        left = list(graph[start])
        while left:
            each = left.pop()
            if each not in seen:
                seen.add(each)
                left += graph.get(each, ())
        return seen

    assert [name for name in graph if name in reached(name)] == []


def test_no_file_is_over_its_budget() -> None:
    """400 lines hold one idea; a file that needs more says why here."""
    reasons: dict[str, str] = {}
    for path in SOURCE.rglob("*.py"):
        lines = path.read_text().count("\n")
        name = str(path.relative_to(SOURCE))
        assert lines <= 400 or name in reasons, f"{name} has {lines} lines: split it, or give the reason here"


def test_functions_fit_a_screen() -> None:
    """60 lines of code; what a signature and a docstring take is not code."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                length = (node.end_lineno or 0) - (body[0].lineno if body else node.lineno)
                assert length <= 60, f"{path.name}: {node.name} has {length} lines"


def test_public_names() -> None:
    assert set(gradstep.__all__) == {
        "__version__", "fit", "steps", "evaluate", "predict", "Run", "Update", "backward", "Outcome", "Ratio", "Terms",
        "criterion_gradient", "check_backward", "param_groups", "flatten_parameters", "initialize",
        "Request", "TensorBoard", "TrainState", "Recipe", "build", "load", "GradstepError",
        "data", "errors", "hooks", "keys", "metrics", "models", "optim", "schedules",
    }  # fmt: skip
    for name in gradstep.__all__:
        assert getattr(gradstep, name) is not None
    assert callable(gradstep.evaluate)
    assert set(dir(gradstep)) == set(gradstep.__all__)
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        gradstep.fitt  # noqa: B018


def keywords(function) -> dict[str, object]:
    return {name: p.default for name, p in inspect.signature(function).parameters.items()}


def test_fit_s_keywords_one_by_one() -> None:
    required = inspect.Parameter.empty
    assert keywords(gradstep.fit) == {
        "model": required, "criterion": required, "train": required, "valid": None, "test": None,
        "optimizer": required, "epochs": None, "steps": None, "batch_size": None, "drop_last": False,
        "micro_batch": None, "stat_group": None, "schedule": None, "metrics": None, "monitor": None, "patience": None,
        "clip": None, "ema": None, "on_nonfinite": "stop", "seed": 0, "dropout": "keyed",
        "device": "auto", "precision": "fp32", "workers": 0, "evaluate_every": "1 epoch", "evaluate_train": False,
        "log_every": "50 steps", "checkpoint": None, "hooks": (), "plan": "measured", "out": None, "name": None,
        "resume": False, "allow_changes": False, "quiet": False, "unpack": None, "forward": None,
    }  # fmt: skip


def test_fit_s_keywords_are_the_recipe_s_keys() -> None:
    of_a_place = {"out", "name", "resume", "allow_changes"}  # where a run goes is said on the command line
    of_data = {"train", "valid", "test"}  # the recipe has them inside `data`
    of_objects = {"init", "groups"}  # from Python: gradstep.initialize(model, ...), gradstep.param_groups(model, ...)
    assert set(keywords(gradstep.fit)) - of_a_place - of_data == set(Recipe.model_fields) - {"data"} - of_objects


def test_defaults_of_fit_are_the_recipe_s() -> None:
    said_otherwise = {"checkpoint", "metrics", "hooks", "model", "criterion", "optimizer", "batch_size"}
    for name, default in keywords(gradstep.fit).items():
        if name in Recipe.model_fields and name not in said_otherwise:
            assert Recipe.model_fields[name].default == default, name


def test_what_steps_and_fit_share_has_the_same_default() -> None:
    ours, theirs = keywords(gradstep.steps), keywords(gradstep.fit)
    assert {name: theirs[name] for name in ours} == ours


def test_every_public_function_and_class_says_what_it_is() -> None:
    for path in FILES:
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), f"{path.name} does not say what it holds"
        for node in tree.body:
            public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            if public and path.parent.name != "cli":
                short = isinstance(node, ast.ClassDef) and path.name == "errors.py"
                trivial = (node.end_lineno or 0) - node.lineno <= 8
                assert ast.get_docstring(node) or short or trivial, f"{path.name}: {node.name}"


def commands(text: str) -> list[str]:
    """The commands in a page's shell blocks, comments left out."""
    blocks = re.findall(r"```(?:sh|console)\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.removeprefix("$ ").split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if re.match(r"(make|gradstep|git|cd|GRADSTEP_DATA=\S+ gradstep) ", line)]


def test_the_readme_s_commands_exist() -> None:
    """Each is run by a test: make's targets by CI and below, gradstep's in test_readme.py."""
    found = commands((ROOT / "README.md").read_text())
    assert found
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for command in found:
        word = shlex.split(command)
        if word[0] == "make":
            assert word[1] in targets, command


def test_the_files_that_the_docs_name_exist() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for name in re.findall(r"`((?:src|tests|docs|benchmarks|examples)/[\w./-]+)`", page.read_text()):
            assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_the_architecture_page_shows_these_floors() -> None:
    page = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    for room in FLOOR_OF:
        assert re.search(rf"^\s+(\d\s+)?{re.escape(room)}[./ ]", page, flags=re.MULTILINE), f"{room} is not shown"


def test_every_dependency_is_argued_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    extras = project["optional-dependencies"]
    for requirement in [*project["dependencies"], *extras["demo"], *extras["tensorboard"], *extras["augment"]]:
        name = re.match(r"[\w-]+", requirement)[0]
        assert re.search(rf"\*\*{name}\*\*", page, flags=re.IGNORECASE), f"{name} is not argued for"
