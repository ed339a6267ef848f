"""gradstep as its users have it: `fit` and `evaluate`, on the feed, the session and the guard of the product."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import signature
from itertools import count
from typing import Any

import gradstep
from benchmarks.speed.clock import Clock
from benchmarks.speed.problems import BATCH, Data, Job
from benchmarks.speed.raw import PASS, Passes
from gradstep.data import Feed, Normalize, Tensors, ToFloat
from gradstep.plan.choosing import choose
from gradstep.plan.passes import Evaluated
from gradstep.session import Session
from gradstep.setup import Training, assemble
from gradstep.update import Outcome
from gradstep.watching import Watching

ENDLESS = 100_000  # steps: more than are made, and no more than a plan may be measured for


def train(job: Job, data: Data, clock: Clock) -> None:
    """`plan` and `optimizer` (settings such as fused) are options of the job."""
    model, criterion = job.model(), job.what.criterion()
    clock.witness = _Outcomes()
    _put_into_the_feed(clock)
    gradstep.fit(
        model,
        criterion,
        train=_source(job, data),
        optimizer=lambda parameters: job.optimizer(parameters, **job.options.get("optimizer", {})),
        steps=ENDLESS,
        batch_size=BATCH,
        plan=job.options.get("plan", "plain"),
        device="cpu",
        quiet=True,
        log_every="1000 steps",
    )


def _source(job: Job, data: Data) -> Any:
    if job.kind != "data":
        return data.read("inputs"), data.read("targets")
    mean, std = data.moments
    return Tensors((data.read("bytes"), data.read("targets"))).transformed((ToFloat(), Normalize((mean,), (std,))))


def _put_into_the_feed(clock: Clock) -> None:
    """Lets the clock pace the endless iterator that the loop takes from the feed; nothing else of gradstep changes."""
    start = Feed.start

    def paced(self: Feed, step: int, stop: int | None = None) -> Iterator[Any]:
        batches = start(self, step, stop)
        return clock.paced(batches) if stop is None and self.what == "train" else batches

    Feed.start = paced  # type: ignore[method-assign]


class _Outcomes:
    """Reads the losses off the outcomes that the session is told of: the criterion stays as it is, compiled or not."""

    def begin(self) -> None:
        self._note, self._losses = Session.note, list[float]()
        note, losses = self._note, self._losses

        def noted(session: Session, outcome: Outcome | None) -> bool:
            if outcome is not None:
                losses.append(float(outcome.loss))
            return note(session, outcome)

        Session.note = noted  # type: ignore[method-assign]

    def end(self) -> list[float]:
        Session.note = self._note  # type: ignore[method-assign]
        return self._losses


def evaluate(job: Job, data: Data, clock: Clock) -> None:
    """A validation as `fit` makes it, a time, under the plan that its training has."""
    source = (data.read("inputs"), data.read("targets"))
    test = (data.read("test_inputs"), data.read("test_targets"))
    parts: dict[str, Any] = {"train": source, "valid": test, "batch_size": PASS, "epochs": None, "steps": ENDLESS}
    parts |= {"optimizer": job.optimizer, "plan": job.options.get("plan", "plain"), "device": "cpu"}
    training, watching = assembled(job.model(), job.what.criterion(), **parts)
    training.evaluated = Evaluated.of(watching.others.values(), watching.metrics)
    choose(training)
    clock.witness = witness = Passes()
    with training.training_mode(), training.planned():
        for _ in clock.paced(count()):
            with training.evaluating(training.state.model):
                found = watching.score(training, "valid", training.state.model)
            witness.losses.append(float(found["loss"]))


def assembled(model: Any, criterion: Any, *, valid: Any, **options: Any) -> tuple[Training, Watching]:
    """What `fit` makes of its keywords, those that are not given being its defaults."""
    given = {name: each.default for name, each in signature(gradstep.fit).parameters.items()} | options
    training = assemble(model, criterion, given["train"], **_of(assemble, given))
    return training, Watching.of(
        training, {"valid": valid, "test": None, "train_clean": None}, **_of(Watching.of, given)
    )


def _of(function: Any, given: dict[str, Any]) -> dict[str, Any]:
    own = signature(function).parameters.values()
    return {each.name: given[each.name] for each in own if each.kind is each.KEYWORD_ONLY}
