"""What changed between a checkpoint and whoever resumes it, and what each change means.

Two things are compared. The meaning of a run: where it changed, the run would not be the one that it began as, and a
resume is refused. And its environment: there the steps to come are the same mathematics, perhaps in other bits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradstep.errors import ChangedError
from gradstep.meaning import EPOCH, LENGTH, SCHEDULE

_WIDTH = 60  # characters that a value is shown in

_ORDER = "the order of the data is another"
_BATCH = "every batch is another"
_STEP = "every step is another"
_RECORD = "the metrics file is another"
_MEANS = {
    "the order's algorithm": _ORDER,
    "seed": "every random draw is another: the order, the augmentation, the masks of dropout",
    "the number of training samples": _BATCH,
    "the content of the data behind the training part": _BATCH,
    "the content of the data behind the validation part": "what is evaluated is another, and so may the best be",
    "the augmentation": _BATCH,
    "batch_size": _BATCH,
    "shuffle": _ORDER,
    EPOCH: "epochs begin elsewhere",
    "dropout": "the masks of dropout are others",
    "precision": _STEP,
    "stat_group": "BatchNorm's statistics are others",
    "the model": "another function is trained",
    "what is not trained": "other parameters are trained",
    "the criterion": "the loss is another",
    "the criterion's options": "the loss is another",
    "the transforms": _BATCH,
    "the learning rate": _STEP,
    "freeze": "other parameters are trained",
    "the schedule by a metric": "the rate falls by another rule",
    "clip": _STEP,
    "ema": "the averaged weights are others",
    "log_every": _RECORD,
    "evaluate_every": f"{_RECORD}, and so may the best be",
    "evaluate_train": _RECORD,
    "metrics": _RECORD,
    "monitor": "the best is chosen by another rule",
    "patience": "the run may end at another step",
    "valid": _RECORD,
    "test": _RECORD,
}

_BITS = "the same to rounding, not bit for bit"
_KERNELS = f"other kernels: {_BITS}"
_OF_ENVIRONMENT = {  # what is not here changes no bit, and is kept for people
    "gradstep": "see CHANGELOG.md",
    "torch": _KERNELS,
    "numpy": f"what the data is computed with: {_BITS}",
    "python": "what your own code asks of it may be another",
    "libc": f"exp, log and the like: {_BITS}",
    "processor": _KERNELS,
    "cpu": _KERNELS,
    "vector": _KERNELS,
    "device": _KERNELS,
    "micro_batch": f"sums are added in another order: {_BITS}",
    "threads": f"sums are added in another order: {_BITS}",
    "gpu": _KERNELS,
    "cuda": _KERNELS,
    "cudnn": _KERNELS,
    "driver": _KERNELS,
    "deterministic": _KERNELS,
    "cudnn deterministic": _KERNELS,
    "cudnn benchmark": f"kernels are chosen by their speed: {_BITS}",
    "tf32": f"products are rounded otherwise: {_BITS}",
    "variables": _KERNELS,
    "on_nonfinite": "another rule for steps to come whose loss or gradient is not finite",
    "code": "changed since: gradstep can't tell whether a step is another",
}


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that is another now. `breaks`: the run would not be the run that it began as."""

    what: str
    then: Any
    now: Any
    breaks: bool
    means: str


def compare(then: Mapping[str, Any], now: Mapping[str, Any], step: int) -> list[Change]:
    """What changed between the meaning in the checkpoint of `step` and the one now.

    Everything breaks the run, but another length that nothing done so far depends on. A label that one side alone has
    is another version's, and left out.
    """
    changes = []
    for what in now:
        if what in then and what not in (SCHEDULE, LENGTH):
            means = _MEANS.get(what, _STEP if what.startswith("what ") else "the run is another")
            changes += [Change(*found, breaks=True, means=means) for found in _differences(what, then[what], now[what])]
    return [*changes, *_of_schedule(then, now, step), *_of_length(then, now, step)]


def compare_environment(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """What changed between two environments and may change bits. Nothing of it breaks a run."""
    return [
        Change(*found, breaks=False, means=means)
        for what, means in _OF_ENVIRONMENT.items()
        if what in then and what in now
        for found in _of_machine(what, then[what], now[what])
    ]


def refusal(changes: Iterable[Change], path: Path) -> ChangedError:
    """The error that names what breaks the run at `path`, and what to do."""
    return ChangedError(
        f"{path} can't go on as the run that it began as:\n  "
        + "\n  ".join(lines(change for change in changes if change.breaks))
        + "\nGive what it began with; or, where what is saved still fits, go on as another run with --allow-changes "
        "(from Python: allow_changes=True); or begin a new run, under another name=."
    )


def lines(changes: Iterable[Change]) -> list[str]:
    """A line for each, as `torch: 2.12.0 -> 2.13.0 (other kernels: the same to rounding, not bit for bit)`."""
    return [f"{each.what}: {_shown(each.then)} -> {_shown(each.now)} ({each.means})" for each in changes]


def _of_schedule(then: Mapping[str, Any], now: Mapping[str, Any], step: int) -> list[Change]:
    """The first step at which the schedules give something else, if both sides know one."""
    if SCHEDULE not in then or SCHEDULE not in now:
        return []
    was, is_now = then[SCHEDULE], now[SCHEDULE]
    known = was.keys() & is_now.keys() if was and is_now else was.keys() | is_now.keys()
    for at in sorted(known, key=int):
        if not _same_values(was.get(at), is_now.get(at)):
            done = int(at) < step
            means = "the steps done were made with other values" if done else "the steps to come get other values"
            return [Change(f"{SCHEDULE} at step {at}", was.get(at), is_now.get(at), True, means)]
    return []


def _same_values(was: list[float | None] | None, is_now: list[float | None] | None) -> bool:
    """Where a schedule gives nothing, as one of torch's does after its end, it was never asked."""
    if was is None or is_now is None or len(was) != len(is_now):
        return False
    return all(a == b or a is None or b is None for a, b in zip(was, is_now, strict=True))


def _of_length(then: Mapping[str, Any], now: Mapping[str, Any], step: int) -> list[Change]:
    """A longer run, or a shorter one, is the same run only where its first steps and its record are the same so far."""
    was, is_now = then.get(LENGTH), now.get(LENGTH)
    if was is None or is_now is None or was == is_now:
        return []
    made, other = ("longer", "shorter") if is_now > was else ("shorter", "longer")
    why = None
    if is_now < step:
        why = f"{step} steps are done"
    elif is_now == step:
        why = "the record goes on after this step, and would end at it"
    elif was == step and step % then.get(EPOCH, 1):
        why = "the record has an end within an epoch, which a longer run does not have"
    elif was == step and _evaluated_because_it_was_the_end(then, step):
        why = "the record has an evaluation at the end, where a longer run has none"
    elif _of_schedule(then, now, step):
        why = f"a schedule depends on the run's length: the steps done were made with the {other} run's rates"
    return [Change(LENGTH, was, is_now, why is not None, why or _same_so_far(made))]


def _same_so_far(made: str) -> str:
    return f"the run is made {made}; no schedule depends on its length"


def _evaluated_because_it_was_the_end(then: Mapping[str, Any], step: int) -> bool:
    evaluates = then.get("valid") or then.get("evaluate_train")
    return bool(evaluates and step % then.get("evaluate_every", 1))


def _of_machine(what: str, was: Any, is_now: Any) -> Iterator[tuple[str, Any, Any]]:
    """The same as for a meaning, but each variable and each file has a name of its own."""
    if what in ("variables", "code") and isinstance(was, Mapping) and isinstance(is_now, Mapping):
        for name in sorted(was.keys() | is_now.keys()):
            if was.get(name) != is_now.get(name):
                yield name, was.get(name), is_now.get(name)
    else:
        yield from _differences(what, was, is_now)


def _differences(what: str, was: Any, is_now: Any) -> Iterator[tuple[str, Any, Any]]:
    """`(what, then, now)` of each part that differs: the option that is another, and not all the options."""
    if was == is_now:
        return
    if isinstance(was, Mapping) and isinstance(is_now, Mapping):
        for name in [*was, *(name for name in is_now if name not in was)]:
            yield from _differences(f"{what}, {name}", was.get(name), is_now.get(name))
    elif _of_parts(was) and _of_parts(is_now) and len(was) == len(is_now):
        for number, (one, other) in enumerate(zip(was, is_now, strict=True)):
            yield from _differences(f"{what}, group {number}" if len(was) > 1 else what, one, other)
    else:
        yield what, was, is_now


def _of_parts(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(each, Mapping) for each in value)


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _WIDTH else text[: _WIDTH - 3] + "..."
