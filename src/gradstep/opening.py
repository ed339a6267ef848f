"""What a run has before its first step: what keeps it, and its records, new or gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gradstep import changes, checkpoint, disk, facts, failure, retention
from gradstep.changes import Change
from gradstep.data import Feed
from gradstep.errors import CheckpointError, RecipeError
from gradstep.keeper import Keeper, Policy, Progress
from gradstep.meaning import meaning
from gradstep.plan.choosing import choose, prove
from gradstep.plan.passes import Evaluated
from gradstep.record import Console, Journal, Ledger, Recorder, Stopwatch
from gradstep.rundir import RunDir
from gradstep.scheduling import rates_at
from gradstep.setup import Training
from gradstep.tensorfile import object_of
from gradstep.update import Sharing
from gradstep.watching import Watching

_PLAN_LIMIT = 1_000_000  # bytes


def place_of(
    out: str | Path | None, name: str | None, otherwise: str, resume: bool | str | Path
) -> tuple[RunDir | None, bool, int | None]:
    """`(the run's folder, whether it is an earlier run's, the step of the checkpoint that was named)`."""
    named = RunDir.at_checkpoint(resume)
    if named is not None:
        return named[0], True, named[1]
    return *RunDir.choose(out, name, otherwise, resume), None


def room(place: RunDir, training: Training, policy: Policy) -> list[tuple[str, str]]:
    """A note where the disk may not hold what will be kept; each save looks for itself."""
    model = sum(value.nbytes for value in training.state.tensors()["model"].values())
    needed = (policy.keep + 2) * 3 * model  # the best and the one being written; Adam keeps two numbers for each weight
    free = disk.free(place.path)
    if free > needed:
        return []
    return [("note", f"the disk has {free / 1e6:,.0f} MB free, and the checkpoints may need {needed / 1e6:,.0f} MB")]


def keeper_of(training: Training, watching: Watching, place: RunDir | None) -> Keeper:
    """What keeps the run, with all that its checkpoints say beside the state; without a place nobody asks for that."""
    if place is None:
        if training.guard.rule.policy == "rewind":
            raise RecipeError(
                "on_nonfinite: rewind goes back to the last checkpoint, and without out= there are none. Write "
                "out='runs', or on_nonfinite='skip'."
            )
        return Keeper(None, watching.policy, training.clock, {}, {}, {})
    clock = training.clock
    source, valid = (
        feed.source if isinstance(feed, Feed) else None for feed in (training.feed, watching.others.get("valid"))
    )
    about = facts.about_data(source)  # hashes what it holds
    own = meaning(training, about, valid, watching.record(clock))
    update, metrics = training.update, watching.metrics.metrics.values()
    here = {"device": str(training.device), "micro_batch": training.micro_batch}
    here["on_nonfinite"] = training.guard.rule.policy
    data = [part for each in (training.feed, *watching.others.values()) for part in facts.behind_data(each)]
    user_s = [training.state.model, training.state.criterion, training.state.optimizer, update.forward, update.unpack]
    code = facts.code([*user_s, *metrics, *data])
    return Keeper(place, watching.policy, clock, about, own, facts.environment() | here | {"code": code})


def chosen(
    training: Training, watching: Watching, place: RunDir | None, lines: list[tuple[str, str]]
) -> list[tuple[str, str]]:
    """The lines for people, with the plan's as it is chosen now; an earlier process of the run may have chosen it."""
    before = training.plan.facts()
    if place is None or not place.plan.exists():
        training.evaluated = Evaluated.of(watching.others.values(), watching.metrics)
        choose(training)
    else:
        prove(training)
    at = lines.index(before[0]) if before[0] in lines else len(lines)
    return [*lines[:at], *training.plan.facts(), *lines[at + len(before) :]]


def leave_documents(keeper: Keeper, training: Training) -> None:
    """environment.json and plan.json, of the process that the run began in."""
    place = keeper.place
    if place is not None and not place.environment.exists():
        disk.replace(place.environment, checkpoint.to_json(keeper.environment))
    if place is not None and not place.plan.exists():  # a kill may have come between the two
        disk.replace(place.plan, checkpoint.to_json(training.plan.document()))


def taken_up(
    place: RunDir | None, training: Training, keeper: Keeper, allow: bool, at: int | None
) -> tuple[Progress | None, list[Change], list[tuple[str, str]]]:
    """Where an earlier run was, what is another than it was, and lines that say so; nothing without a place.

    Its folder is made ready to be gone on from: what a killed process left is cleared away.
    """
    if place is None:
        return None, [], []
    if not allow:
        failure.refuse_a_fourth(place, training.micro_batch, training.guard.rule.policy != "stop")
    retention.sweep(place.checkpoints)
    plan = _plan_of(place) if place.plan.exists() else {}
    departures = training.follow(plan) if plan else []
    progress, found, notes = keeper.restore(training.state, allow, at)
    if plan.get("choices"):  # a checkpoint lays out what it restores as its plan had it: what holds now is applied anew
        training.given.give_back(training)
    notes += departures
    return progress, found, [("note", note) for note in notes] + [("changed", line) for line in changes.lines(found)]


def _plan_of(place: RunDir) -> dict[str, Any]:
    """What plan.json says. CheckpointError where that is not what was written."""
    try:
        return object_of(disk.read(place.plan, _PLAN_LIMIT))
    except (OSError, ValueError) as error:
        why = disk.reason(error) if isinstance(error, OSError) else error
        raise CheckpointError(f"{place.plan}: can't be read ({why}). Restore it from a copy, or remove it.") from error


def open_records(
    training: Training,
    watching: Watching,
    place: RunDir | None,
    progress: Progress | None,
    whole: bool,
    console: Console,
    watch: Stopwatch,
) -> Recorder:
    """The records, as they were at `progress`; `whole` leaves what stands behind it, of a run that is at its end."""
    clock, events = training.clock, watching.events
    since = progress.mark if progress else None
    journal = Journal(place.metrics, place.timing, since, whole) if place else Journal()
    every = clock.steps(watching.evaluate_every)

    def evaluations_left(step: int) -> int:
        evaluated = {"valid", "train_clean"} & set(watching.others)
        return -(-clock.total // every) - step // every if evaluated else 0

    recorder = Recorder(
        clock,
        Ledger(Sharing(training.state.criterion), clock.steps(watching.log_every), clock.steps_per_epoch),
        watching.metrics.fresh(training.device) if watching.metrics.metrics else None,
        journal,
        console,
        watch,
        evaluations_left=evaluations_left,
        listeners=(lambda row: events.announce("on_row", row),) if events.calls["on_row"] else (),
        advice=lambda share: facts.of_waiting(training.feed, share),
    )
    if progress is not None:
        recorder.go_on(progress.tensors, progress.numbers, training.device)
    return recorder


def first_rows(recorder: Recorder, training: Training, found: list[Change], rest: bool) -> bool:
    """The rows that a process begins with, if any: what was allowed to change, and an epoch's start.

    With `rest` the end of a step is still to come, and an epoch's start with it.
    """
    step, rows = training.state.step, len(recorder.journal.rows)
    for change in found:
        if change.breaks:  # the record says from where on it is another run's
            recorder.changed(step, change.what, change.then, change.now)
    begun = any(row["kind"] == "start" and row["step"] == step for row in recorder.journal.rows)
    if training.clock.batch(step) == 0 and not begun and not rest:
        recorder.begin_epoch(step, rates_at(training.state, training.scheduled))
    return len(recorder.journal.rows) > rows
