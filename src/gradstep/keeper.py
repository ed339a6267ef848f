"""Keeps what must outlast a step: checkpoints on disk where the run has a place, else the best weights in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gradstep import checkpoint
from gradstep.clock import Clock, Duration
from gradstep.errors import CheckpointError, DivergedError, RecipeError, nearest
from gradstep.meaning import changed
from gradstep.record import Journal
from gradstep.rundir import RunDir
from gradstep.state import Tensors, TrainState, module_tensors


@dataclass(frozen=True, slots=True)
class Policy:
    """How often a checkpoint is written, and how many of the newest are kept beside the best."""

    every: Duration
    keep: int

    @classmethod
    def parse(cls, given: Any) -> Policy:
        """`{"every": "1 epoch", "keep": 2}`, either of which may be left out, or a duration alone."""
        given = {"every": given} if isinstance(given, (str, Duration)) else given or {}
        if not isinstance(given, Mapping):
            raise RecipeError(f"checkpoint: {given!r} is not like {{'every': '1 epoch', 'keep': 2}}.")
        for name in given:
            if name not in ("every", "keep"):
                raise RecipeError(
                    f"checkpoint: there is no '{name}'; there are every, keep.{nearest(name, ['every', 'keep'])}"
                )
        keep = given.get("keep", 2)
        if type(keep) is not int or keep < 1:
            raise RecipeError(f"checkpoint.keep: {keep!r} is no positive number; the newest is always kept.")
        return cls(Duration.positive(given.get("every", "1 epoch"), "checkpoint.every"), keep)


@dataclass(slots=True)
class Keeper:
    """`about` is what a checkpoint says of the data: class names and transforms.

    `meaning` is what makes the run this run and no other: a resume must not find it changed.
    """

    place: RunDir | None
    policy: Policy
    about: Mapping[str, Any]
    meaning: Mapping[str, Any]
    best: Tensors = field(default_factory=dict)  # in memory, only where there is no place

    def save(self, state: TrainState, clock: Clock, journal: Journal) -> Path | None:
        """The last act of a step. Refuses parameters that are not numbers."""
        for name, parameter in state.model.named_parameters():
            # Waits for the device, as saving does anyway. What is frozen may hold what it likes.
            if parameter.requires_grad and not bool(parameter.isfinite().all()):
                raise DivergedError(
                    f"after step {state.step}, '{name}' is no longer all numbers: the training has diverged and this "
                    "state was not saved. Try a smaller learning rate (optimizer.lr)."
                )
        if self.place is None:
            if state.standing.best_step == state.step:
                self.best = {name: value.clone() for name, value in module_tensors(state.judged).items()}
            return None
        numbers = state.numbers() | {"log_offset": journal.offset(), "data": dict(self.about)}
        numbers |= {"meaning": dict(self.meaning)}
        folder = self.place.checkpoints
        path = checkpoint.write(folder, state.step, state.tensors(), numbers)
        goes_on = max((step for step in checkpoint.steps(folder) if self._resumable(step, clock)), default=None)
        kept = {*checkpoint.steps(folder)[-self.policy.keep :], goes_on}
        # A checkpoint that may be gone on from needs the best that it knows of, which need not be the best by now.
        bests = [checkpoint.numbers(folder, step)["standing"]["best_step"] for step in kept if step is not None]
        checkpoint.prune(folder, self.policy.keep, [*bests, goes_on])
        return path

    def _refuse_another_run(self, numbers: Mapping[str, Any]) -> None:
        assert self.place is not None
        if (found := changed(numbers["meaning"], self.meaning, numbers["step"])) is not None:
            what, then, now = found
            raise CheckpointError(
                f"{self.place.path}: {what} was {then} and is {now}: the run can't go on as it began."
            )

    @staticmethod
    def _resumable(step: int, clock: Clock) -> bool:
        """Between two epochs nothing is half counted; within one, the epoch's metrics would be lost."""
        return step % clock.steps_per_epoch == 0 or step == clock.total

    def restore(self, state: TrainState, clock: Clock) -> tuple[int, list[str]]:
        """Puts the newest valid checkpoint at an epoch's end into `state`: `(bytes of metrics.jsonl then, notes)`.

        With no checkpoint at all the run begins at step 0. CheckpointError when there are some and none will do, or
        when they are of another `meaning`; nothing of `state` has changed then.
        """
        assert self.place is not None

        def goes_on(numbers: Mapping[str, Any]) -> bool:
            self._refuse_another_run(numbers)
            return self._resumable(numbers["step"], clock) or numbers["standing"]["stopped"] is not None

        path, rejected = checkpoint.newest(self.place.checkpoints, goes_on)
        notes = [f"passed over {reason}" for reason in rejected]
        if path is None:
            return 0, notes
        tensors, numbers = checkpoint.read(path)
        then, now = numbers["data"].get("files"), self.about.get("files")
        if then and now and then["modified"] != now["modified"]:
            notes.append("the training data's files have another time than when the run began, but the same sizes")
        state.load(tensors, numbers)
        checkpoint.set_aside(self.place.checkpoints, state.step)
        return numbers["log_offset"], notes

    def chosen(self, state: TrainState) -> Tensors:
        """The weights to use: the best by the monitored metric, else the last, averaged where averages are judged.

        Empty when those are the model's own as it is.
        """
        best = state.standing.best_step
        if best is None or best == state.step:
            return {} if state.judged is state.model else module_tensors(state.judged)
        if self.place is None:
            return self.best
        averaged = state.ema is not None and state.ema.evaluate and state.ema.begun(best)
        return checkpoint.read(checkpoint.at(self.place.checkpoints, best))[0]["ema" if averaged else "model"]

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
        checkpoint.replace_durably(self.place.weights, checkpoint.to_safetensors(tensors, header))
