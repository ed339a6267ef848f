"""Names and places in a run's folder. Nothing that lies in one is ever written over by another run."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gradstep import disk
from gradstep.errors import OutputError, nearest

_RUN = re.compile(r"(\d{4,})-(.+)")
_CHECKPOINT = re.compile(r"step-(\d{8,})")
_DEEPEST = 160  # bytes that the longest path inside a run's folder adds to the folder's own
_INSTEAD = {
    errno.ENAMETOOLONG: "A name in it is longer than the disk takes: choose a shorter out or name.",
    errno.ENOSPC: "Make room there, or choose another.",
    errno.EDQUOT: "Make room there, or choose another.",
}  # what to do, where it is not to choose another folder


@dataclass(frozen=True, slots=True)
class RunDir:
    """One run's folder: `runs/0001-digits`."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def command(self) -> Path:
        return self.path / "command.txt"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def timing(self) -> Path:
        return self.path / "timing.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def weights(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def failure(self) -> Path:
        return self.path / "failure.json"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @classmethod
    def create(cls, out: str | Path, name: str) -> RunDir:
        """A new folder under `out`, numbered after the highest there; `out/latest` then points at it."""
        out = Path(out)
        if not isinstance(name, str) or not re.fullmatch(r"[\w.+-]+", name):
            raise OutputError(f"name: '{name}' is no name for a folder. Use letters, digits, and any of . _ + -")
        if len(os.fsencode(out)) + len(os.fsencode(name)) + _DEEPEST > os.pathconf("/", "PC_PATH_MAX"):
            raise OutputError(f"out: the path '{out}' is too long for what goes into it. Choose a shorter one.")
        try:
            out.mkdir(parents=True, exist_ok=True)
            number = max((int(found[1]) for path in out.iterdir() if (found := _RUN.fullmatch(path.name))), default=0)
            while True:  # two runs that start at once: the folder belongs to whoever made it
                number += 1
                with suppress(FileExistsError):
                    path = out / f"{number:04d}-{name}"
                    path.mkdir()
                    break
            (path / "checkpoints").mkdir()
            for folder in (path, out):  # a checkpoint is not there for good before the folders that it is in
                disk.sync_folder(folder)
            _point(out / "latest", path.name)
        except OSError as error:
            instead = _INSTEAD.get(error.errno or 0, "Choose another.")
            raise OutputError(f"out: the folder '{out}' can't be written ({error.strerror}). {instead}") from error
        return cls(path)

    @classmethod
    def choose(
        cls, out: str | Path | None, name: str | None, otherwise: str, resume: bool | str | Path
    ) -> tuple[RunDir | None, bool]:
        """`(the folder of a run, whether it is an earlier run's)`; None where it is to leave nothing.

        A new one is called `name`, or `otherwise`. To resume is to take the run at a path, or the newest in `out` (of
        `name`, if that is given); where there is none yet, it begins.
        """
        if isinstance(resume, (str, Path)):
            return cls.find(resume, out or "runs"), True
        if out is None and not resume:
            return None, False
        if not isinstance(out, (str, Path)):
            raise OutputError(f"out: {out!r} is not the path of a folder that holds runs.")
        if os.path.isdir(Path(out) / "checkpoints") and os.path.exists(Path(out) / "metrics.jsonl"):
            raise OutputError(
                f"out: '{out}' is itself a run, and runs are made beside each other. To go on with it, write "
                f"resume='{out}'; for another, out='{Path(out).parent}'."
            )
        if resume:
            earlier = [path for path in _runs(Path(out)) if name is None or _name(path) == name]
            if earlier:
                return cls(earlier[-1]), True
        return cls.create(out, name or otherwise), False

    def held(self) -> int:
        """A lock that this process has until it closes the descriptor or ends. OutputError if another has it.

        The lock is on the folder of checkpoints itself, so that no file of it is left anywhere.
        """
        try:
            self.checkpoints.mkdir(exist_ok=True)  # a kill in a run's first moment may have come before it
            descriptor = os.open(self.checkpoints, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise OutputError(f"{self.checkpoints} can't be used as a folder ({error.strerror}).") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if not isinstance(error, BlockingIOError):
                raise OutputError(f"{self.checkpoints} can't be locked ({error.strerror}).") from error
            raise OutputError(
                f"{self.path} is being trained by another process. Wait for it; or stop it by Ctrl-C or SIGTERM, so "
                "that it saves first, and resume again."
            ) from None
        if not all(os.access(folder, os.W_OK, effective_ids=True) for folder in (self.path, self.checkpoints)):
            os.close(descriptor)
            raise OutputError(
                f"{self.path} can't be written. Make it writable; or copy it to where one can write, and resume that."
            )
        return descriptor

    @classmethod
    def at_checkpoint(cls, given: object) -> tuple[RunDir, int] | None:
        """`(run, step)` where a path is a checkpoint's own, as `runs/0001-x/checkpoints/step-00000360`; else None.

        OutputError where it is, and that run has none of this step.
        """
        if not isinstance(given, (str, Path)):
            return None
        path = Path(given) if len(Path(given).parts) > 2 else Path(given).absolute()
        found = _CHECKPOINT.fullmatch(path.name)
        if found is None or path.parent.name != "checkpoints" or not os.path.isdir(path.parent):
            return None
        if not os.path.isdir(path):
            there = sorted(int(each[1]) for p in _entries(path.parent) if (each := _CHECKPOINT.fullmatch(p.name)))
            known = f"There are those of steps {', '.join(map(str, there))}." if there else "There are none."
            raise OutputError(f"{path.parent.parent} has no checkpoint of step {int(found[1])}. {known}")
        return cls.find(path.parent.parent), int(found[1])

    @classmethod
    def find(cls, given: str | Path | None, out: str | Path = "runs", begun: bool = False) -> RunDir:
        """The run at a path, or the newest of a name or number under `out`; the newest of all for `latest` or None.

        The path may be that of a checkpoint in it. With `begun`, the newest of all is the newest that began to train:
        one that was ended before that is an empty folder.
        """
        if (checkpoint := cls.at_checkpoint(given)) is not None:
            return checkpoint[0]
        out = Path(out)
        runs = _runs(out)
        if given is None or (given == "latest" and runs):
            if not runs:
                raise OutputError(f"there is no run in '{out}' yet. Start one: gradstep train digits")
            trained = [p for p in runs if (p / "recipe.yaml").exists() or _entries(p / "checkpoints")]
            return cls((trained or runs)[-1] if begun else runs[-1])
        if os.path.isdir(Path(given) / "checkpoints"):  # where Path.is_dir would raise for a long name
            return cls(Path(given).resolve() if Path(given).is_symlink() else Path(given))
        word = str(given).zfill(4) if str(given).isdigit() else str(given)
        matching = [p for p in runs if word in (p.name, *p.name.split("-", 1))]
        if matching:
            return cls(matching[-1])
        known = [p.name for p in runs]
        shown = f" Runs in '{out}': {', '.join(known[-5:])}." if known else f" There are no runs in '{out}'."
        raise OutputError(f"there is no run '{given}'.{shown}{nearest(str(given), known)}")


def _runs(out: Path) -> list[Path]:
    """The runs in a folder, the newest last."""
    return sorted((p for p in _entries(out) if _RUN.fullmatch(p.name)), key=lambda p: int(p.name.split("-")[0]))


def _name(run: Path) -> str:
    return run.name.split("-", 1)[1]


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _point(link: Path, target: str) -> None:
    """A hint for people, replaced whole so that it never points at nothing."""
    beside = link.with_name(f".{link.name}-{os.getpid()}")
    beside.unlink(missing_ok=True)
    beside.symlink_to(target)
    beside.replace(link)
