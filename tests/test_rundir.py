"""A run's folder: numbered, never another run's, and found again by what a person would type."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradstep.errors import OutputError
from gradstep.rundir import RunDir

FAST = settings(max_examples=30, deadline=None)
names = st.from_regex(r"[a-zA-Z0-9_.+-]{1,10}", fullmatch=True)


@FAST
@given(st.lists(names, min_size=1, max_size=6))
def test_runs_are_numbered_in_the_order_they_were_made_and_latest_is_the_last(
    tmp_path_factory: pytest.TempPathFactory, given: list[str]
) -> None:
    out = tmp_path_factory.mktemp("runs") / "not" / "there yet"
    for number, name in enumerate(given, 1):
        run = RunDir.create(out, name)
        assert run.path == out / f"{number:04d}-{name}"
        assert run.checkpoints.is_dir()
        assert (out / "latest").resolve() == run.path.resolve()
        assert RunDir.find(None, out) == run
        assert RunDir.find(out / "latest").path == run.path.resolve()
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*(f"{number:04d}-{name}" for number, name in enumerate(given, 1)), "latest"]
    )


def test_a_number_is_one_more_than_the_highest_and_never_one_that_was_given_out(tmp_path: Path) -> None:
    for name in ("0002-old", "0041-digits", "12345-many", "7-short", "notes", "0099"):
        (tmp_path / name).mkdir()
    assert RunDir.create(tmp_path, "new").path.name == "12346-new"
    assert RunDir.create(tmp_path, "new").path.name == "12347-new"


def test_nothing_in_a_run_is_written_over_by_the_next(tmp_path: Path) -> None:
    first = RunDir.create(tmp_path, "same")
    first.recipe.write_text("mine")
    (tmp_path / "latest").unlink()
    second = RunDir.create(tmp_path, "same")
    assert second != first
    assert first.recipe.read_text() == "mine"
    assert list(second.path.iterdir()) == [second.checkpoints]


def test_a_file_that_has_the_name_is_left_alone_too(tmp_path: Path) -> None:
    (tmp_path / "0001-digits").write_text("a file")
    assert RunDir.create(tmp_path, "digits").path.name == "0002-digits"
    assert (tmp_path / "0001-digits").read_text() == "a file"


@pytest.mark.parametrize("other", ["same", "another"])
def test_two_processes_that_start_at_once_get_folders_of_their_own(other: str, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom gradstep.rundir import RunDir\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "for _ in range(40): print(RunDir.create(sys.argv[1], sys.argv[2]).path.name)\n"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in ("same", other)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    made = [line for process in started for line in process.communicate()[0].split()]
    assert len(made) == len(set(made)) == 80
    assert all((tmp_path / name / "checkpoints").is_dir() for name in made)
    assert (tmp_path / "latest").resolve().name in made


@pytest.mark.parametrize("name", ["", "a/b", "../up", "a b", "é\n", "a:b"])
def test_a_name_that_is_none_for_a_folder_is_refused_and_nothing_is_made(name: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is no name for a folder"):
        RunDir.create(tmp_path / "runs", name)
    assert not (tmp_path / "runs").exists()


def test_a_place_that_can_not_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "runs"):
        with pytest.raises(OutputError, match=r"out: the folder .* can't be written"):
            RunDir.create(out, "digits")


def three(out: Path) -> list[RunDir]:
    return [RunDir.create(out, name) for name in ("digits", "mnist-big", "digits")]


def test_a_run_is_found_by_number_name_path_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = three(tmp_path / "runs")
    out = tmp_path / "runs"
    assert RunDir.find(None, out) == third
    assert RunDir.find("digits", out) == third  # the newest of that name
    assert RunDir.find("mnist-big", out) == second
    assert RunDir.find("0001", out) == first
    assert RunDir.find("0001-digits", out) == first
    assert RunDir.find(first.path, "elsewhere") == first
    assert RunDir.find(str(second.path), "elsewhere") == second
    monkeypatch.chdir(tmp_path)
    assert RunDir.find(None).path == Path("runs/0003-digits")
    assert RunDir.find("runs/0002-mnist-big").path == Path("runs/0002-mnist-big")
    assert RunDir.find("runs/latest").path.name == "0003-digits"


@pytest.mark.parametrize("given", ["2", "02", "0002"])
def test_a_number_needs_no_zeros_before_it(given: str, tmp_path: Path) -> None:
    runs = three(tmp_path)
    assert RunDir.find(given, tmp_path) == runs[1]


def test_the_newest_is_by_number_and_not_by_letter(tmp_path: Path) -> None:
    for name in ("9999-z", "10000-a", "0500-zz"):
        (tmp_path / name).mkdir()
    assert RunDir.find(None, tmp_path).path.name == "10000-a"


def test_a_run_that_is_not_there_is_an_error_that_says_which_are(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"there is no run in .* yet. Start one: gradstep train digits"):
        RunDir.find(None, tmp_path)
    with pytest.raises(OutputError, match=r"there is no run 'digits'. There are no runs in"):
        RunDir.find("digits", tmp_path / "nowhere")
    three(tmp_path)
    with pytest.raises(
        OutputError,
        match=r"no run '0002-mnist-bug'\. Runs in .*: 0001-digits, 0002-mnist-big, .*Did you mean '0002-mnist-big'",
    ):
        RunDir.find("0002-mnist-bug", tmp_path)


def test_every_file_of_a_run_lies_in_its_folder_under_its_own_name() -> None:
    run = RunDir(Path("runs/0001-a"))
    places = [getattr(run, name) for name, kind in vars(RunDir).items() if isinstance(kind, property)]
    assert len(set(places)) == len(places) == 9
    assert all(place.parent == run.path for place in places)


def test_latest_is_the_newest_run_by_its_word_and_by_its_path(tmp_path: Path) -> None:
    made = [RunDir.create(tmp_path / "runs", name) for name in ("one", "two")]
    assert RunDir.find("latest", tmp_path / "runs") == RunDir.find(tmp_path / "runs" / "latest") == made[-1]
    with pytest.raises(OutputError, match="there is no run 'latest'"):
        RunDir.find("latest", tmp_path / "none")


def test_a_run_killed_in_its_first_moment_can_be_gone_on_with(tmp_path: Path) -> None:
    """Its folder was there, and the folder of its checkpoints not yet."""
    (tmp_path / "0001-net").mkdir()
    place, resumed = RunDir.choose(tmp_path, "net", "net", resume=True)
    assert place is not None
    assert (place.path.name, resumed) == ("0001-net", True)
    os.close(place.held())
    assert list(place.checkpoints.iterdir()) == []
