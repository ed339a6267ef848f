"""Keeps what must outlast a step: checkpoints on disk where the run has a place, else the best weights in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gradstep import changes, checkpoint, disk, failure, retention, tensorfile
from gradstep.changes import Change
from gradstep.checkpoint import Saved
from gradstep.clock import Clock, Duration
from gradstep.errors import ChangedError, CheckpointError, DivergedError, RecipeError, StorageError, nearest
from gradstep.record import Journal, Mark
from gradstep.record.journal import before, tells_of_steps
from gradstep.rundir import RunDir
from gradstep.saver import Saver
from gradstep.state import Standing, Tensors, TrainState, module_tensors, non_finite
from gradstep.tensorfile import cut

_KEYS = ("every", "keep", "keep_every")
_OPTIONS = ("the learning rate", "what ", "seed", "freeze")  # changes that the optimizer's own groups bring along
_BEST = "the best checkpoint"
_KEPT = ("progress", "log", "data", "meaning", "environment")  # what `save` adds to the state's own


@dataclass(frozen=True, slots=True)
class Policy:
    """How often a checkpoint is written, how many of the newest are kept beside the best, and which for good."""

    every: Duration
    keep: int
    keep_every: Duration | None = None

    @classmethod
    def parse(cls, given: Any) -> Policy:
        """`{"every": "1 epoch", "keep": 2, "keep_every": "10 epochs"}`, any left out, or a duration alone."""
        given = {"every": given} if isinstance(given, (str, Duration)) else given or {}
        if not isinstance(given, Mapping):
            raise RecipeError(f"checkpoint: {given!r} is not like {{'every': '1 epoch', 'keep': 2}}.")
        for name in given:
            if name not in _KEYS:
                raise RecipeError(
                    f"checkpoint: there is no '{name}'; there are {', '.join(_KEYS)}.{nearest(name, _KEYS)}"
                )
        keep, for_good = given.get("keep", 2), given.get("keep_every")
        if type(keep) is not int or keep < 1:
            raise RecipeError(f"checkpoint.keep: {keep!r} is no positive number; the newest is always kept.")
        return cls(
            Duration.positive(given.get("every", "1 epoch"), "checkpoint.every"),
            keep,
            None if for_good is None else Duration.positive(for_good, "checkpoint.keep_every"),
        )


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run is within its epoch and its record.

    `rest` says that the end of the step, its evaluation and what follows, is still to come.
    """

    tensors: Tensors
    numbers: Mapping[str, Any]
    mark: Mark
    rest: bool = False


@dataclass(slots=True)
class Keeper:
    """`about` is what a checkpoint says of the data: class names and transforms.

    `meaning` is what makes the run this run and no other, `environment` what may change its bits: both are held against
    what a checkpoint says when it is gone on from.
    """

    place: RunDir | None
    policy: Policy
    clock: Clock
    about: Mapping[str, Any]
    meaning: Mapping[str, Any]
    environment: Mapping[str, Any]
    saver: Saver = field(default_factory=Saver)
    newest: int | None = None  # the step of the checkpoint that was read last, or is there for good since
    best: Tensors = field(default_factory=dict)  # in memory, only where there is no place
    _chosen: tuple[int | None, Tensors] = (None, {})  # the best, once it has been read
    _resumed: int | None = None  # this one stays while the process lives: what came after it may be worse
    _odd: frozenset[str] = frozenset()  # what held infinities before the first step may go on to

    def begin(self, state: TrainState) -> None:
        """Looks at what there is before the first step. Waits for the device."""
        self._odd = frozenset(non_finite(state.tensors()))

    def save(self, state: TrainState, journal: Journal, progress: Progress) -> Path | None:
        """The last act of a step. Copies the state, which waits for the device, and writes it beside the training.

        Returns a checkpoint that is there for good since somebody asked last, which is an earlier one. Raises what
        writing that one raised.
        """
        if self.place is None:
            self._refuse_non_finite(state.step, state.tensors())
            if state.standing.best_step == state.step:
                self.best = {name: value.clone() for name, value in module_tensors(state.judged).items()}
            return None
        tensors, numbers = state.snapshot()
        numbers |= {
            "progress": {"rest": progress.rest, **progress.numbers},
            "log": {"offset": progress.mark.offset, "sha256": progress.mark.sha256},
            "data": dict(self.about),
            "meaning": dict(self.meaning),
            "environment": dict(self.environment),
        }
        if progress.tensors:
            tensors["metrics"] = progress.tensors
        folder, step = self.place.checkpoints, state.step

        def write() -> Path:
            self._refuse_non_finite(step, {name: part for name, part in tensors.items() if name != "metrics"})
            # The log is on the disk before a checkpoint that counts on it; older ones go when the new one is there.
            path = checkpoint.write(folder, step, tensors, numbers, before_commit=journal.sync)
            self.newest = step  # not before: one that was refused or failed is nothing to go back to
            self._prune(folder)
            return path

        return self.saver.start(write)

    def prove(self, state: TrainState) -> None:
        """Reads the first checkpoint back and compares, so that what can't be gone on from is known at once."""
        assert self.place is not None
        try:
            saved = checkpoint.read(checkpoint.at(self.place.checkpoints, state.step))
        except CheckpointError as error:
            raise StorageError(f"the first checkpoint was written and can't be read back: {error}") from error
        held_against(state, saved)

    def restore(
        self, state: TrainState, allow: bool, at: int | None = None
    ) -> tuple[Progress | None, list[Change], list[str]]:
        """Puts the newest valid checkpoint into `state`, or that of step `at`: `(progress, what changed, notes)`.

        With no checkpoint at all the run begins at step 0, without progress. CheckpointError when there are some and
        none will do, ChangedError when the run would be another and that is not allowed: nothing has changed then.
        """
        assert self.place is not None
        folder = self.place.checkpoints
        if at is None:
            saved, rejected = checkpoint.newest(folder)
        else:
            saved, rejected = checkpoint.read(checkpoint.at(folder, at)), []  # what was named is never replaced
        notes = [f"passed over {reason}" for reason in rejected]
        if saved is None:
            self._refuse_to_begin_anew()
            return None, [], notes
        if rejected and self.place.weights.exists():
            raise CheckpointError(
                f"{self.place.path} is at its end, and its last checkpoint is not whole:\n  {'; '.join(rejected)}\n"
                f"{self.place.weights.name} was left as it is. To train again from an earlier checkpoint, name it: "
                f"gradstep resume {saved.path}"
            )
        with _believed(saved):
            found = self._changes(saved, allow)
            then, now = saved.values["data"].get("files"), self.about.get("files")
            if then and now and then["modified"] != now["modified"]:
                notes.append("the training data's files have another time than when the run began, but the same sizes")
            progress, broken = _progress(saved), {change.what for change in found if change.breaks}
            before(self.place.metrics, progress.mark)  # looked at before anything is changed, be it a checkpoint's name
            options = any(what.startswith(_OPTIONS) for what in broken)
            state.load(saved.tensors, saved.values, keep_options=options)
            _judge_anew(state.standing, broken)
        if aside := retention.set_aside(folder, saved.step, self.place.metrics):
            notes.append(f"later checkpoints were set aside: {', '.join(aside)} in {folder}")
        self.newest = self._resumed = saved.step
        return progress, found, notes

    def _changes(self, saved: Saved, allow: bool) -> list[Change]:
        """What is another now than in the checkpoint; ChangedError where that is not allowed."""
        assert self.place is not None
        found = changes.compare(saved.values["meaning"], self.meaning, saved.step)
        if not allow and any(change.breaks for change in found):
            raise changes.refusal(found, self.place.path)
        if saved.step > self.clock.total:  # nothing that could be allowed makes sense of that
            raise ChangedError(
                f"{self.place.path}: {saved.step} steps are done, and the run is to have {self.clock.total}. Give it "
                "more epochs or steps; or go on from an earlier checkpoint, by its path."
            )
        if (lost := self._lost_best(saved)) is not None:
            if not allow:
                raise CheckpointError(
                    f"{lost[1]}\nIt is the best of {self.place.path}. Put it back from a copy; or go on without it, by "
                    "--allow-changes (from Python: allow_changes=True): the best is then one of those to come."
                )
            found.append(Change(_BEST, f"of step {lost[0]}", None, True, "the best is one of those to come"))
        return found + changes.compare_environment(saved.values["environment"], self.environment)

    def _refuse_to_begin_anew(self) -> None:
        """A run without any checkpoint begins at step 0, unless it was further: that would write over what it did."""
        assert self.place is not None
        if self.place.weights.exists() or tells_of_steps(self.place.metrics):
            raise CheckpointError(
                f"{self.place.path} has made steps and has no checkpoint any more: it can't be gone on from, and stays "
                "as it is. Put a checkpoint back from a copy, or begin a new run, under another name=."
            )

    def _lost_best(self, saved: Saved) -> tuple[int, str] | None:
        """`(its step, why)` where the best that a checkpoint knows of can't be read and is still needed."""
        assert self.place is not None
        standing = saved.values["standing"]
        best = standing["best_step"]
        ended = saved.step >= self.clock.total or standing["stopped"] is not None
        if best is None or best == saved.step or (ended and self.place.weights.exists()):
            return None
        try:
            checkpoint.read(checkpoint.at(self.place.checkpoints, best))
        except CheckpointError as error:
            return best, str(error)
        return None

    def back(self, state: TrainState) -> Progress:
        """Puts the last checkpoint into the state of the run that wrote it, which goes on from there."""
        assert self.place is not None
        assert self.newest is not None
        self.saver.wait()
        saved = checkpoint.read(checkpoint.at(self.place.checkpoints, self.newest))
        left_out = list(state.left_out)
        state.load(saved.tensors, saved.values)
        state.left_out = left_out
        return _progress(saved)

    def chosen(self, state: TrainState) -> Tensors:
        """The weights to use: the best by the monitored metric, else the last, averaged where averages are judged.

        Empty when those are the model's own as it is.
        """
        best = state.standing.best_step
        if best is None or best == state.step:
            return {} if state.judged is state.model else module_tensors(state.judged)
        if self.place is None:
            return self.best
        if self._chosen[0] != best:
            averaged = state.ema is not None and state.ema.evaluate and state.ema.begun(best)
            try:
                saved = checkpoint.read(checkpoint.at(self.place.checkpoints, best))
            except CheckpointError:
                if not self.place.weights.exists():
                    raise
                self._chosen = best, dict(tensorfile.opened(self.place.weights))  # a run at its end left them there
            else:
                self._chosen = best, dict(saved.tensors["ema" if averaged else "model"])
        return self._chosen[1]

    @torch.no_grad()
    def publish(self, state: TrainState) -> None:
        """Writes model.safetensors, the weights to use, with what a user of them must know in its header."""
        if self.place is None:
            return
        tensors = self.chosen(state) or module_tensors(state.model)
        step = state.step if state.standing.best_step is None else state.standing.best_step
        # One entry: safetensors writes several in any order, and equal runs are to leave equal files.
        about = {name: value for name, value in self.about.items() if name != "files"}
        header = {"gradstep": json.dumps({**about, "step": step})}
        size, parts = tensorfile.parts(tensors, header)
        disk.replace_parts(self.place.weights, parts, size)

    def withdraw(self) -> None:
        """Removes the weights to use, of a shorter run: where they are, a run is at its end."""
        assert self.place is not None
        try:
            disk.remove(self.place.weights)
        except OSError as error:
            raise StorageError(f"'{self.place.weights}' could not be removed ({disk.reason(error)}).") from error

    def _refuse_non_finite(self, step: int, tensors: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        for name in non_finite(tensors):
            if name not in self._odd:
                raise DivergedError(
                    f"after step {step}, '{name}' is no longer all numbers: the training has diverged and this "
                    "state was not saved. Try a smaller learning rate (optimizer.lr).",
                    step,
                    in_state=True,
                )

    def _prune(self, folder: Path) -> None:
        steps = checkpoint.steps(folder)
        protected = {step for step in steps if step == self._resumed or self.clock.due(step, self.policy.keep_every)}
        kept = retention.kept(folder, self.policy.keep, protected)
        # A checkpoint that may be gone on from needs the best that it knows of, which need not be the best by now.
        bests = {best for step in kept if (best := _best_of(folder, step)) is not None}
        retention.prune(folder, kept | bests)
        assert self.place is not None
        failure.forget(self.place, steps[-1])


@contextmanager
def _believed(saved: Saved) -> Iterator[None]:
    """Its hashes hold. So where its state.json says something else than gradstep writes, somebody wrote it so."""
    if missing := [name for name in _KEPT if name not in saved.values]:
        raise CheckpointError(f"{saved.path}: its state.json has no {', '.join(missing)}: it is of no run of fit's.")
    if saved.values.get("step") != saved.step:
        raise CheckpointError(f"{saved.path}: its state.json is of step {cut(saved.values.get('step'))}.")
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{saved.path}: its state.json is not one of gradstep's ({cut(what)}).") from error


def _judge_anew(standing: Standing, changed: set[str]) -> None:
    """What a standing says of a metric, of data or of a patience that is another now says nothing."""
    if changed & {_BEST, "monitor", "the content of the data behind the validation part"}:
        standing.best = standing.best_step = None
    if changed & {"monitor", "the content of the data behind the validation part"}:
        standing.previous = None
    if changed & {"monitor", "patience"}:
        standing.falls, standing.stopped = 0, None


def held_against(state: TrainState, saved: Saved) -> None:
    """StorageError if what was read is not what the state holds."""
    for name, group in state.tensors().items():
        for tensor, value in group.items():
            same = saved.tensors[name][tensor]
            if same.dtype != value.dtype or not torch.equal(_bits(same), _bits(value.cpu())):
                raise StorageError(f"'{tensor}' came back from a checkpoint as something else than it went in.")


def _bits(value: torch.Tensor) -> torch.Tensor:
    return value.contiguous().flatten().view(torch.uint8)  # nan is unlike itself, its bits are not


def _best_of(folder: Path, step: int) -> int | None:
    """The best that a checkpoint knows of; None too for one that is damaged, which nobody goes on from."""
    try:
        best = checkpoint.numbers(folder, step)["standing"]["best_step"]
    except (KeyError, TypeError, CheckpointError):
        return None
    return best if isinstance(best, int) else None


def _progress(saved: Saved) -> Progress:
    numbers = dict(saved.values["progress"])
    rest = bool(numbers.pop("rest"))
    log = saved.values["log"]
    return Progress(dict(saved.tensors.get("metrics", {})), numbers, Mark(log["offset"], log["sha256"]), rest)
