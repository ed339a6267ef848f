"""What a step that raises leaves in its run's folder: which samples it died on, where, and how often by now.

    failure.json   step, epoch, batch, samples, error, message, where, checkpoint, times

`step` is the failed step's number, counted from 1 as in metrics.jsonl; epochs count from 1, batches in one from 0, as
the clock counts. A run is a function of its step: one that died of its data or its numbers dies there again. So what
starts runs again by itself must be stopped, and after three times it is.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from gradstep import checkpoint, disk
from gradstep.clock import Clock
from gradstep.data import Feed, original
from gradstep.data.workers import lost
from gradstep.errors import DivergedError, GradstepError, OutOfMemoryError, user_frames
from gradstep.rundir import RunDir
from gradstep.setup import Training

_ENOUGH = 3
_SAMPLES = 1000  # as many numbers are kept
_SHOWN = 12  # and as many are shown
_LIMIT = 1_000_000  # bytes of the file
_LETTERS = 2000  # of a message; some hold a whole tensor


def note(
    place: RunDir,
    step: int,
    clock: Clock,
    feed: Any,
    error: BaseException,
    checkpoint_step: int | None,
    micro_batch: int | None = None,
) -> str:
    """Writes failure.json and returns a line to be shown under the error's own traceback.

    Raises nothing itself, whatever the disk does: the error that brought us here must be seen.
    """
    what = f"gradstep: step {step + 1} (epoch {clock.epoch(step)}, batch {clock.batch(step)}) failed"
    before = f" and the checkpoint before it (step {checkpoint_step})" if checkpoint_step is not None else ""
    try:
        samples = _samples(feed, step)
        content = {
            "step": step + 1,
            "epoch": clock.epoch(step),
            "batch": clock.batch(step),
            "samples": samples,
            "error": type(error).__qualname__,
            "message": _said(error),
            # A batch can be left out; a state that has become infinite can't.
            "of_a_batch": isinstance(error, DivergedError) and error.step is not None and not error.in_state,
            "where": _where(error),
            "checkpoint": checkpoint_step,
            "micro_batch": micro_batch,
            "times": _times(place, step + 1, error, micro_batch) + 1,
        }
        disk.replace(place.failure, checkpoint.to_json(content))
    except Exception as another:
        return f"{what}; {place.failure} could not be written ({type(another).__name__}: {another})"
    return f"{what}; its {'details' if samples is None else 'samples'}{before} are in {place.failure}"


def of_run(place: RunDir, training: Training, error: BaseException, ending: bool, checkpoint_step: int | None) -> str:
    """The same for what a run died of: a step, or where `ending` the end of one, which has no samples."""
    diverged = error.step if isinstance(error, DivergedError) else None  # an evaluation or a hook has no samples either
    at = diverged - 1 if diverged else training.state.step - ending
    feed = training.feed if diverged or not ending else None
    return note(place, at, training.clock, feed, error, checkpoint_step, training.micro_batch)


def plainly(error: BaseException, feed: Any, micro_batch: int | None) -> GradstepError | None:
    """What an error of torch's means, where it says that a worker was lost or memory is full; None for any other."""
    return lost(error) or _out_of_memory(error, feed, micro_batch)


def _out_of_memory(error: BaseException, feed: Any, micro_batch: int | None) -> OutOfMemoryError | None:
    full = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
    if not full:
        return None
    size = micro_batch or getattr(feed, "batch_size", None)
    less = f"micro_batch={max(size // 2, 1)} takes less at once and changes no result" if size else "Take less at once"
    said = _said(error).splitlines()
    return OutOfMemoryError(f"out of memory ({said[0] if said else type(error).__name__}). {less}.")


def refuse_a_fourth(place: RunDir, micro_batch: int | None = None, leaves_out: bool = False) -> None:
    """Before a resumed run trains: raises where it died three times at one step of one error.

    One that `leaves_out` steps without a finite gradient goes on where it died of such a step, and one with another
    `micro_batch` where memory was full.
    """
    found = _read(place)
    if found is None or found["times"] < _ENOUGH:
        return
    kind, what_to_do = _ADVICE.get(found["error"], (GradstepError, "Look at those samples and at that line"))
    if (leaves_out and found.get("of_a_batch")) or (
        kind is OutOfMemoryError and found.get("micro_batch") != micro_batch
    ):
        return
    raise kind(
        f"{place.path}: step {found['step']} (epoch {found['epoch']}, batch {found['batch']}) failed {found['times']} "
        f"times with {found['error']}: {found['message']}\n"
        f"  where     {found['where'] or 'not in code of yours'}\n"
        f"  samples   {_shown(found['samples'])}\n"
        f"It would fail again. {what_to_do}. To try again as it is, remove {place.failure}."
    )


_ADVICE: dict[str, tuple[type[GradstepError], str]] = {
    DivergedError.__name__: (
        DivergedError,
        "Look at those samples and at the learning rate (optimizer.lr); on_nonfinite=skip leaves the step out",
    ),
    OutOfMemoryError.__name__: (OutOfMemoryError, "Give it a smaller micro_batch, which changes no result"),
}


def forget(place: RunDir, saved: int) -> None:
    """Removes failure.json once the checkpoint of step `saved` is there for good, if that step is done by then."""
    found = _read(place)
    if found is not None and saved >= found["step"]:
        with suppress(OSError):  # the next checkpoint asks again
            disk.remove(place.failure)


def _samples(feed: Any, step: int) -> list[int] | None:
    """The numbers of the batch's samples as the user knows them; None where a feed does not know them."""
    if not isinstance(feed, Feed):
        return None
    try:
        numbers: list[int] = original(feed.source, feed.indices(step)[1])[:_SAMPLES].tolist()
    except Exception:  # a source of the user's own may be what failed
        return None
    return numbers


def _said(error: BaseException) -> str:
    try:
        return str(error)[:_LETTERS]
    except Exception:  # an exception of the user's own, whose words can't be had
        return ""


def _where(error: BaseException) -> str | None:
    """The innermost line of the user's own code, as `nets.py:12`."""
    frames = user_frames(error)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else None


def _times(place: RunDir, step: int, error: BaseException, micro_batch: int | None) -> int:
    """How often this error came at this step so far; another one, or another step, begins anew."""
    found = _read(place)
    if found is None or (found["step"], found["error"]) != (step, type(error).__qualname__):
        return 0
    return found["times"] if found.get("micro_batch") == micro_batch else 0


def _read(place: RunDir) -> dict[str, Any] | None:
    """failure.json, or None where there is none; one that is no longer what was written says nothing either."""
    try:
        found = json.loads(disk.read(place.failure, _LIMIT))
        whole = all(type(found[name]) is int for name in ("step", "epoch", "batch", "times"))
        known = whole and {"samples", "error", "message", "where"} <= found.keys()
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return found if known else None


def _shown(samples: Any) -> str:
    if not isinstance(samples, list) or not samples:
        return "not known: the data came in batches of its own"
    more = f" and {len(samples) - _SHOWN} more in failure.json" if len(samples) > _SHOWN else ""
    return ", ".join(map(str, samples[:_SHOWN])) + more
