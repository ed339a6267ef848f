"""A run's folder: numbered, never another run's, and found again by what a person would type."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gradstep
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
    assert len(set(places)) == len(places) == 10
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


# A checkpoint's own path.


def test_a_checkpoint_s_path_names_its_run_and_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir.create(tmp_path / "runs", "digits")
    for step in (0, 360, 123456789):
        path = run.checkpoints / f"step-{step:08d}"
        path.mkdir()
        assert RunDir.at_checkpoint(path) == RunDir.at_checkpoint(f"{path}/") == (run, step)
        assert RunDir.find(path, "elsewhere") == run
        monkeypatch.chdir(path.parent)
        found = RunDir.at_checkpoint(path.name)
        assert found is not None
        assert (found[0].path.resolve(), found[1]) == (run.path.resolve(), step)
    through = tmp_path / "runs" / "latest" / "checkpoints" / "step-00000360"
    assert RunDir.at_checkpoint(through) == (RunDir(run.path.resolve()), 360)


def test_what_is_no_checkpoint_s_path_is_left_to_be_found_otherwise(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "digits")
    (run.path / "step-00000360").mkdir()
    for word in (None, True, run.path, run.checkpoints, run.path / "step-00000360", "step-00000360", "digits", "1"):
        assert RunDir.at_checkpoint(word) is None


def test_a_checkpoint_that_is_not_there_is_an_error_that_says_which_are(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "digits")
    with pytest.raises(OutputError, match=r"0001-digits has no checkpoint of step 7\. There are none\."):
        RunDir.find(run.checkpoints / "step-00000007")
    for step in (360, 20):
        (run.checkpoints / f"step-{step:08d}").mkdir()
    with pytest.raises(OutputError, match=r"no checkpoint of step 7\. There are those of steps 20, 360\."):
        RunDir.at_checkpoint(run.checkpoints / "step-00000007")


# Places where a run can or can't be. Whatever is wrong with one is said before training.


def train(out: Path, seen: list[int] | None = None, **more: Any) -> gradstep.Run:
    class Seen:
        def on_train_batch_end(self, state: Any, outcome: Any) -> None:
            if seen is not None:
                seen.append(state.step)

    torch.manual_seed(0)
    data = torch.randn(16, 3), torch.randint(0, 2, (16,))
    return gradstep.fit(
        torch.nn.Linear(3, 2),
        torch.nn.CrossEntropyLoss(),
        data,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        batch_size=8,
        hooks=[Seen()],
        out=out,
        quiet=True,
        **{"epochs": 2} | more,
    )


def trained_and_resumed(out: Path, name: str) -> bytes:
    train(out, name=name, epochs=1)
    run = train(out, name=name, resume=True)
    assert run.state.step == 4
    assert run.path is not None
    return (run.path / "metrics.jsonl").read_bytes() + (run.path / "model.safetensors").read_bytes()


def long_path(root: Path, length: int) -> Path:
    """A path of so many bytes, whose folders have names of 200."""
    while len(os.fsencode(root)) + 201 < length:
        root /= "d" * 200
    root /= "e" * (length - len(os.fsencode(root)) - 1)
    assert len(os.fsencode(root)) == length
    return root


LONGEST = os.pathconf("/", "PC_PATH_MAX") - 160 - len("net")


def test_a_run_is_the_same_under_any_path(tmp_path: Path) -> None:
    plain = trained_and_resumed(tmp_path / "plain", "net")
    long_name = "net-" + "é" * ((255 - len("0001-net-")) // 2)  # as many bytes as a file system takes
    places = [("with spaces  in it", "net"), ("путь/到/é", "übung.+-"), ("-", "-net"), ("n" * 255, long_name)]
    for out, name in places:
        assert trained_and_resumed(tmp_path / out, name) == plain, out
    assert trained_and_resumed(long_path(tmp_path, LONGEST), "net") == plain


@pytest.mark.parametrize(
    ("out", "name", "said"),
    [
        ("n" * 256, "net", "longer than the disk takes: choose a shorter out or name"),
        ("runs", "n" * 251, "longer than the disk takes: choose a shorter out or name"),
        ("long", "net", "is too long for what goes into it. Choose a shorter one"),
    ],
)
def test_a_path_over_the_system_s_limit_is_refused_before_training(
    out: str, name: str, said: str, tmp_path: Path
) -> None:
    seen: list[int] = []
    place = long_path(tmp_path, LONGEST + 1) if out == "long" else tmp_path / out
    with pytest.raises(OutputError, match=said):
        train(place, seen, name=name)
    assert seen == []
    with pytest.raises(OutputError, match="there is no run"):
        RunDir.find("x" * 5000, tmp_path)


@contextmanager
def without_rights() -> Iterator[Path]:
    """A folder for a user whom permissions bind, which root is not."""
    folder = Path(tempfile.mkdtemp())
    root = os.geteuid() == 0
    try:
        if root:
            shutil.chown(folder, 65534)
            os.seteuid(65534)
        yield folder
    finally:
        if root:
            os.seteuid(0)
        for path, _, _ in os.walk(folder):
            Path(path).chmod(0o700)
        shutil.rmtree(folder)


def test_a_folder_without_permission_is_refused_before_training() -> None:
    seen: list[int] = []
    with without_rights() as folder:
        run = train(folder / "runs", epochs=1)
        assert run.path is not None
        before = {path.name for path in run.path.rglob("*")}
        for closed, resume, said in [
            (folder / "runs", False, r"out: the folder .*runs' can't be written \(Permission denied\)"),
            (run.path, True, r"0001-linear can't be written\. Make it writable"),
            (run.path / "checkpoints", True, r"0001-linear can't be written\. Make it writable"),
        ]:
            closed.chmod(0o500)
            with pytest.raises(OutputError, match=said):
                train(folder / "runs", seen, resume=resume)
            closed.chmod(0o700)
        folder.chmod(0o500)
        with pytest.raises(OutputError, match=r"out: the folder .*new' can't be written \(Permission denied\)"):
            train(folder / "new", seen)
        assert {path.name for path in run.path.rglob("*")} == before
        assert train(folder / "runs", seen, resume=True).state.step == 4
    assert seen == [3, 4]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EROFS, r"Read-only file system\)\. Choose another"),
        (errno.ENOSPC, r"No space left on device\)\. Make room there"),
        (errno.EDQUOT, r"Disk quota exceeded\)\. Make room there"),
        (errno.EIO, r"Input/output error\)\. Choose another"),
    ],
)
def test_a_disk_that_takes_no_folder_is_refused_before_training(
    number: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), str(path))

    seen: list[int] = []
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OutputError, match=rf"out: the folder .* can't be written \({said}"):
        train(tmp_path / "runs", seen)
    assert seen == []


def test_a_file_where_a_folder_should_be_is_refused_before_training(tmp_path: Path) -> None:
    seen: list[int] = []
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match=r"out: the folder .*file' can't be written"):
        train(tmp_path / "file", seen)
    with pytest.raises(OutputError, match=r"out: the folder .*/proc/nowhere.* can't be written"):
        train(Path("/proc/nowhere"), seen)  # where nobody can make a folder
    run = train(tmp_path / "runs", epochs=1)
    assert run.path is not None
    shutil.rmtree(run.path / "checkpoints")
    (run.path / "checkpoints").write_text("mine")
    with pytest.raises(OutputError, match=r"checkpoints can't be used as a folder \(File exists\)"):
        RunDir(run.path).held()
    assert (tmp_path / "file").read_text() == (run.path / "checkpoints").read_text() == "mine"
    assert seen == []


def test_a_run_that_another_process_has_is_refused_with_what_to_do(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "net")
    held = run.held()
    with pytest.raises(OutputError, match=r"is being trained by another process\. Wait for it; or stop it"):
        run.held()
    os.close(held)
    os.close(run.held())
