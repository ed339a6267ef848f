"""Every error that gradstep raises on purpose.

    GradstepError                 exit 1
    ├── UsageError                exit 2   something given to gradstep is wrong
    │   ├── RecipeError                    a recipe, a command line, a keyword
    │   ├── DataError                      samples, files, labels, shapes
    │   ├── ModelError                     model, criterion or optimizer do not fit together
    │   │   └── MismatchError              a gradient went through a graph that it was not computed from
    │   ├── OutputError                    the place for the run can't be used
    │   ├── ChangedError                   a run that is resumed with something else than it began with
    │   └── UserCodeError                  the user's own code raised before training began
    ├── CheckpointError           exit 4   checkpoints exist, none is valid
    ├── DivergedError             exit 5   the loss or a gradient is no longer a number
    ├── OutOfMemoryError          exit 6   a step needs more memory than there is
    ├── StorageError              exit 7   a checkpoint or record could not be written
    └── ProcessLostError          exit 8   a worker process died or no longer answers

A message says what was wrong, where, and what to type instead.
"""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable
from pathlib import Path


class GradstepError(Exception):
    """The root of the tree above. `exit_code` is what the command line ends with."""

    exit_code = 1


class UsageError(GradstepError):
    exit_code = 2


class RecipeError(UsageError):
    pass


class DataError(UsageError):
    pass


class ModelError(UsageError):
    pass


class MismatchError(ModelError):
    """What `check_backward` raises. `kind` names which mistake it is."""

    def __init__(self, message: str, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind


class OutputError(UsageError):
    pass


class ChangedError(UsageError):
    pass


class UserCodeError(UsageError):
    """Wraps an exception out of the user's code, kept as `__cause__` with its own traceback."""


class CheckpointError(GradstepError):
    exit_code = 4


class DivergedError(GradstepError):
    """`step` is the step that can't be made, counted from 1, where it is known.

    With `in_state` it was made, and the state after it can't be saved: which step spoilt that is not known.
    """

    exit_code = 5

    def __init__(self, message: str, step: int | None = None, *, in_state: bool = False) -> None:
        super().__init__(message)
        self.step, self.in_state = step, in_state


class OutOfMemoryError(GradstepError):
    exit_code = 6


class StorageError(GradstepError):
    exit_code = 7


class ProcessLostError(GradstepError):
    exit_code = 8


def nearest(word: str, options: Iterable[str]) -> str:
    """` Did you mean 'epochs'?`, or nothing when no option is near. Ready to end a message with."""
    known = list(options)
    lowered = {option.lower(): option for option in known}
    matches = difflib.get_close_matches(word.lower(), list(lowered), n=1, cutoff=0.6)
    return f" Did you mean '{lowered[matches[0]]}'?" if matches else ""


def listed(options: Iterable[str], limit: int = 12) -> str:
    """`a, b, c`, cut with an ellipsis after `limit` names."""
    names = list(options)
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def user_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """The frames of a traceback that are neither torch's nor gradstep's: the user's own code."""
    own = Path(__file__).parent
    return [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if own not in Path(frame.filename).parents
        and not {"torch", "importlib", "typer", "click"} & set(Path(frame.filename).parts)
        and not frame.filename.startswith("<frozen")
    ]


def raised_at(error: BaseException) -> str:
    """` (nets.py, line 12: x = self.fc(x))` for the innermost line of the user's code, or nothing."""
    frames = user_frames(error)
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno}: {frames[-1].line})" if frames else ""
