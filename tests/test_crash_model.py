"""After a power loss at any operation, whatever the disk kept, a run finds its last acknowledged checkpoint.

The code that writes and the code that reads are gradstep's own; only the disk between them is a model
(`crash_model.py`). That the model can see a mistake is shown by protocols with one planted in them.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from gradstep import checkpoint, disk, retention
from gradstep.errors import CheckpointError
from tests.crash_model import Disk, Recording, Tree, build

NONE = 0  # the number of the save that is found where there is none
OUTCOMES = 30  # random ones, at each operation of a scenario
SHARED_MEMORY = Path("/dev/shm")


@dataclass
class Moment:
    """The disk after one operation, and which saves a resume may then find: by number, since steps may repeat."""

    disk: Disk
    allowed: frozenset[int]
    best: int | None  # the step whose checkpoint must be there too


@dataclass
class Run:
    """Does what a run does to its folder, and writes down what was acknowledged when."""

    folder: Path
    keep: int
    lose: frozenset[str] = frozenset()
    moments: list[Moment] = field(default_factory=list)
    logs: dict[int, bytes] = field(default_factory=dict)  # the log up to each save
    at_step: dict[int, int] = field(default_factory=dict)  # the last save of each step
    allowed: frozenset[int] = frozenset({NONE})
    best: int | None = None
    saves: int = 0

    @property
    def log_path(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """The run's folder is there for good when the first operation is recorded."""
        model = Disk(self.folder)
        disk.os = Recording(model, self._watch, self.lose)  # type: ignore[assignment]
        try:
            disk.make_folder(self.checkpoints)
            disk.sync_folder(self.folder)
            model.top.sync()  # though a planted mistake may lose that: it is not what is tested
            self.moments.clear()
            yield
        finally:
            disk.os = os_of_python

    def _watch(self, model: Disk) -> None:
        self.moments.append(Moment(model.copy(), self.allowed, self.best))

    def log(self, *steps: int) -> None:
        for step in steps:
            disk.write_all(self.descriptor, b'{"step": %d, "save": %d}\n' % (step, self.saves))

    def open_log(self, keep: int) -> None:
        self.descriptor = disk.log_open(self.log_path, keep)

    def save(self, step: int, best: int | None = None, before_commit: Callable[[], None] | None = None) -> None:
        self.saves += 1
        number, before = self.saves, self.allowed
        self.logs[number] = self.log_path.read_bytes()
        self.allowed = before | {number}
        if before_commit is None:

            def before_commit() -> None:
                disk.sync(self.descriptor)

        checkpoint.write(self.checkpoints, step, *content(number, step, len(self.logs[number])), before_commit)
        self.allowed = frozenset({number})  # acknowledged: from now on nothing older will do
        self.at_step[step] = number
        self.best = best if best in self.at_step else None
        protected = [] if best is None else [best]
        retention.prune(self.checkpoints, retention.kept(self.checkpoints, self.keep, protected))

    def go_back(self, step: int) -> None:
        """A resume from an earlier checkpoint: later ones are set aside, and only then is the log cut."""
        disk.close(self.descriptor)
        number = self.at_step[step]
        later = {found for other, found in self.at_step.items() if other >= step}
        self.allowed = self.allowed | later
        retention.set_aside(self.checkpoints, step)
        self.allowed = frozenset({number})
        self.open_log(len(self.logs[number]))


os_of_python = disk.os


def content(number: int, step: int, offset: int) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, int]]:
    tensors = {"model": {"w": torch.full((3,), float(number))}, "optimizer": {"m": torch.full((2,), 0.5 * number)}}
    return tensors, {"number": number, "step": step, "log_offset": offset}


def plain(run: Run) -> None:
    """A few saves, each pruning what is older."""
    run.open_log(0)
    run.save(0)
    for step in (1, 2, 3, 4):
        run.log(step)
        run.save(step)


def best_kept(run: Run) -> None:
    """The best is older than the newest."""
    run.open_log(0)
    for step in (0, 1, 2, 3, 4):
        run.log(step, step)
        run.save(step, best=1)


def saved_twice(run: Run) -> None:
    """One step is saved a second time, by a run that was resumed there or by a signal at the end of an epoch."""
    run.open_log(0)
    for step in (1, 1, 2, 2, 2):
        run.log(step)
        run.save(step)


class Killed(BaseException):
    """The process ends here."""


def swept(run: Run) -> None:
    """Killed between the rename of a step that is saved again and its fsync; then a resume clears up; and the power
    fails."""
    run.open_log(0)
    run.log(1)
    run.save(1)
    run.log(1)
    real = disk.sync_folder

    def dying(path: Path) -> None:
        if path == run.checkpoints:
            raise Killed
        real(path)

    disk.sync_folder = dying
    try:
        with suppress(Killed):
            run.save(1)
    finally:
        disk.sync_folder = real
    retention.sweep(run.checkpoints)


def best_pruned(run: Run) -> None:
    """A planted mistake: nothing protects the best."""
    run.open_log(0)
    for step in (1, 2, 3, 4):
        run.log(step)
        run.save(step)
        run.best = 1


def gone_back(run: Run) -> None:
    """The run is resumed from further back and goes another way."""
    run.open_log(0)
    for step in (1, 2, 3):
        run.log(step)
        run.save(step, best=1)
    run.go_back(1)
    for step in (2, 3):
        run.log(step)
        run.save(step)


def pruned_too_early(run: Run) -> None:
    """A planted mistake: what is older is removed before the new one has its name."""

    def before_commit() -> None:
        disk.sync(run.descriptor)
        for step in checkpoint.steps(run.checkpoints):
            disk.rename(checkpoint.at(run.checkpoints, step), run.checkpoints / f".trash-{step:08d}")
        disk.sync_folder(run.checkpoints)

    run.open_log(0)
    for step in (1, 2, 3):
        run.log(step)
        run.save(step, before_commit=before_commit)


def log_not_forced(run: Run) -> None:
    """A planted mistake: the checkpoint speaks of rows that may not be on the disk."""
    run.open_log(0)
    for step in (1, 2, 3):
        run.log(step)
        run.save(step, before_commit=lambda: None)


def log_cut_too_early(run: Run) -> None:
    """A planted mistake: the log is cut back while checkpoints that need it are still there."""
    run.open_log(0)
    for step in (1, 2, 3):
        run.log(step)
        run.save(step)
    disk.close(run.descriptor)
    run.allowed = frozenset({2, 3})
    run.open_log(len(run.logs[2]))
    retention.set_aside(run.checkpoints, 2)


def fault(folder: Path, run: Run, allowed: frozenset[int], best: int | None) -> str | None:
    """What is wrong with what a resume finds in a folder; None when it is as it was acknowledged."""
    retention.sweep(folder / "checkpoints")  # as a resume does first
    try:
        saved, _ = checkpoint.newest(folder / "checkpoints")
    except CheckpointError as error:
        return str(error)
    if saved is None:
        return None if NONE in allowed else f"there is none, and there had to be one of {sorted(allowed)}"
    number = saved.values["number"]
    tensors, values = content(number, saved.step, len(run.logs[number]))
    if number not in allowed:
        return f"save {number} was found, and it had to be one of {sorted(allowed)}"
    if saved.values != values or any(
        not torch.equal(saved.tensors[stem][name], tensor) for stem in tensors for name, tensor in tensors[stem].items()
    ):
        return f"save {number} is not what was written"
    if best is not None and best not in checkpoint.steps(folder / "checkpoints"):
        return f"the best, of step {best}, is gone"
    for step in checkpoint.steps(folder / "checkpoints"):  # older ones too: the newest may be damaged later
        if len(list(checkpoint.at(folder / "checkpoints", step).iterdir())) != 4:
            return f"step {step} has lost files"
    log = folder / "metrics.jsonl"
    if not log.exists() or log.read_bytes()[: len(run.logs[number])] != run.logs[number]:
        return f"the log of save {number} is damaged"
    return None


@dataclass(frozen=True)
class Found:
    """`states` that were drawn, how many of them were `distinct`, and what was wrong with the `bad`."""

    operations: int
    states: int
    distinct: int
    bad: list[str]


def explored(scenario: Callable[[Run], None], keep: int, outcomes: int, lose: frozenset[str] = frozenset()) -> Found:
    """Runs the scenario once, and looks at `outcomes` states of the disk after each of its operations."""
    place = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
    draw = random.Random(0)
    with tempfile.TemporaryDirectory(dir=place) as base:
        (Path(base) / "run").mkdir()
        run = Run(Path(base) / "run", keep, lose)
        with run.recorded():
            scenario(run)
        disk.close(run.descriptor)
        seen = dict[tuple[Any, ...], str | None]()
        bad: list[str] = []
        states = 0
        for moment in run.moments:
            trees: list[Tree] = [moment.disk.top.seen()]  # the process alone was killed
            trees += [moment.disk.after_a_crash(draw) for _ in range(outcomes)]
            for tree in trees:
                states += 1
                key = repr(tree), moment.allowed, moment.best
                if key not in seen:
                    build(tree, Path(base) / "state")
                    seen[key] = fault(Path(base) / "state", run, moment.allowed, moment.best)
                    shutil.rmtree(Path(base) / "state")
                if (said := seen[key]) is not None:
                    bad.append(said)
    return Found(len(run.moments), states, len(seen), bad)


SCENARIOS = [(plain, 1), (plain, 2), (best_kept, 1), (best_kept, 2), (saved_twice, 1), (saved_twice, 2), (gone_back, 2),
             (swept, 1)]  # fmt: skip


def test_no_crash_at_any_operation_loses_what_was_acknowledged() -> None:
    total = distinct = 0
    for scenario, keep in SCENARIOS:
        found = explored(scenario, keep, OUTCOMES)
        assert found.bad == [], f"{scenario.__name__}, keep={keep}: {len(found.bad)}, such as: {found.bad[0]}"
        total, distinct = total + found.states, distinct + found.distinct
        print(f"{scenario.__name__} keep={keep}: {found.operations} operations, {found.states} states, "
              f"{found.distinct} distinct, 0 bad")  # fmt: skip
    print(f"{total} states, {distinct} distinct, 0 bad")
    assert total >= 20_000


@pytest.mark.parametrize(
    ("scenario", "lose"),
    [
        (plain, "fsync of files"),
        (plain, "fsync of folders"),
        (pruned_too_early, ""),
        (log_not_forced, ""),
        (log_cut_too_early, ""),
        (best_pruned, ""),
    ],
    ids=[
        "no fsync of files",
        "no fsync of folders",
        "pruned too early",
        "log not forced",
        "log cut too early",
        "best pruned",
    ],
)
def test_the_model_sees_a_planted_mistake(scenario: Callable[[Run], None], lose: str) -> None:
    found = explored(scenario, keep=1, outcomes=8, lose=frozenset({lose}))
    assert len(found.bad) > 0
    print(f"{len(found.bad)} of {found.states} states are bad, such as: {found.bad[0]}")
