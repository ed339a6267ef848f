"""Names and places in a run's folder. Nothing that lies in one is ever written over by another run."""

from __future__ import annotations

import fcntl
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gradstep.errors import OutputError, nearest

_RUN = re.compile(r"(\d{4,})-(.+)")


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
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @classmethod
    def create(cls, out: str | Path, name: str) -> RunDir:
        """A new folder under `out`, numbered after the highest there; `out/latest` then points at it."""
        out = Path(out)
        if not isinstance(name, str) or not re.fullmatch(r"[\w.+-]+", name):
            raise OutputError(f"name: '{name}' is no name for a folder. Use letters, digits, and any of . _ + -")
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
            _point(out / "latest", path.name)
        except OSError as error:
            raise OutputError(
                f"out: the folder '{out}' can't be written ({error.strerror}). Choose another."
            ) from error
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
        if resume:
            with suppress(OutputError):
                return cls.find(name, out), True
        return cls.create(out, name or otherwise), False

    def held(self) -> int:
        """A lock that this process has until it closes the descriptor or ends. OutputError if another has it.

        The lock is on the folder of checkpoints itself, so that no file of it is left anywhere.
        """
        self.checkpoints.mkdir(exist_ok=True)  # a kill in a run's first moment may have come before it
        descriptor = os.open(self.checkpoints, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise OutputError(f"{self.path} is being trained by another process. Wait for it, or stop it.") from None
        return descriptor

    @classmethod
    def find(cls, given: str | Path | None, out: str | Path = "runs") -> RunDir:
        """The run at a path, or the newest of a name or number under `out`; the newest of all for `latest` or None."""
        out = Path(out)
        runs = sorted((p for p in _entries(out) if _RUN.fullmatch(p.name)), key=lambda p: int(p.name.split("-")[0]))
        if given is None or (given == "latest" and runs):
            if not runs:
                raise OutputError(f"there is no run in '{out}' yet. Start one: gradstep train digits")
            return cls(runs[-1])
        if (Path(given) / "checkpoints").is_dir():
            return cls(Path(given).resolve() if Path(given).is_symlink() else Path(given))
        word = str(given).zfill(4) if str(given).isdigit() else str(given)
        matching = [p for p in runs if word in (p.name, *p.name.split("-", 1))]
        if matching:
            return cls(matching[-1])
        known = [p.name for p in runs]
        shown = f" Runs in '{out}': {', '.join(known[-5:])}." if known else f" There are no runs in '{out}'."
        raise OutputError(f"there is no run '{given}'.{shown}{nearest(str(given), known)}")


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _point(link: Path, target: str) -> None:
    """A hint for people, replaced whole so that it never points at nothing."""
    beside = link.with_name(f".{link.name}-{os.getpid()}")
    beside.unlink(missing_ok=True)
    beside.symlink_to(target)
    beside.replace(link)
