"""What surrounds the steps of `fit`, in its final form: evaluations, records, rules and hooks, checked before anything
is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from gradstep import facts
from gradstep import metrics as metrics_room
from gradstep.check import last_batch_of_one, look
from gradstep.clock import Clock, Duration
from gradstep.counted import counts
from gradstep.data import Feed, OwnOrder
from gradstep.encoding import put
from gradstep.errors import RecipeError
from gradstep.evaluation import evaluation_feed, measure
from gradstep.hooks import Events
from gradstep.keeper import Policy
from gradstep.metrics import MetricSet
from gradstep.schedules import Plateau
from gradstep.setup import Training
from gradstep.state import Standing
from gradstep.stopping import Monitor, Patience, gone_by, judge


@dataclass(slots=True)
class Watching:
    """`others` are the feeds that are evaluated, by what they are called; `plateaus` go by a metric each."""

    others: dict[str, Any]
    metrics: MetricSet
    terms: list[str]  # what the criterion names beside the loss
    monitor: Monitor | None
    patience: Patience | None
    plateaus: list[tuple[Plateau, Monitor]]
    evaluate_every: Duration
    log_every: Duration
    policy: Policy
    events: Events

    @classmethod
    def of(
        cls,
        training: Training,
        others: dict[str, Any],
        *,
        batch_size: int | None,
        workers: int,
        metrics: Any,
        monitor: Any,
        patience: Any,
        evaluate_every: str,
        log_every: str,
        checkpoint: Any,
        hooks: Sequence[Any],
    ) -> Watching:
        """Every keyword means what it means in `fit`; `others` are data sets or None. UsageError for what can't be."""
        resolved = metrics_room.resolve(metrics)
        feeds: dict[str, Any] = {
            what: evaluation_feed(data, what, batch_size, training.device, workers, training.state.seed)
            for what, data in others.items()
            if data is not None
        }
        _refuse_shared_batches(training, feeds)
        if isinstance(training.feed, Feed) and training.clock.total >= training.feed.steps_per_epoch:
            last_batch_of_one(training.update, training.feed)
        terms = look(training.update, resolved, {"train": training.feed, **feeds})
        training.decide()
        resolved.refuse(["loss", *terms])
        training.state.tensors()  # what can't be saved is refused now, and not at the first checkpoint
        names, higher = ["loss", *terms, *resolved.metrics], resolved.higher_is_better
        monitored = Monitor.parse(monitor, names, higher) if "valid" in feeds else None
        waiting = Patience.parse(patience)
        plateaus = training.scheduled.plateaus
        watched = [(plateau, gone_by(plateau, monitored, names, higher)) for plateau in plateaus]
        if monitored is None and (monitor is not None or patience is not None):
            raise RecipeError("monitor and patience look at the validation, and there is no valid= data.")
        return cls(
            others=feeds,
            metrics=resolved,
            terms=list(terms),
            monitor=monitored,
            patience=waiting,
            plateaus=watched,
            evaluate_every=Duration.positive(evaluate_every, "evaluate_every"),
            log_every=Duration.positive(log_every, "log_every"),
            policy=Policy.parse(checkpoint),
            events=Events.of(hooks),
        )

    def refuse_unsaved(self) -> None:
        """ModelError for a metric whose counts can't be saved in mid-epoch, before there is a run."""
        for name, metric in self.metrics.metrics.items():
            put(name, counts(metric), {}, keeper="the metric")

    def record(self, clock: Clock) -> dict[str, Any]:
        """What makes metrics.jsonl what it is, beside the training itself: a resume must find it as it was."""
        monitor, patience = self.monitor, self.patience
        waits = patience.without_best if patience else None
        return {
            "metrics": [*self.terms, *self.metrics.metrics],
            "monitor": [monitor.name, "max" if monitor.higher else "min"] if monitor else None,
            "patience": [clock.steps(waits) if waits else None, patience.falls] if patience else None,
            "log_every": clock.steps(self.log_every),
            "evaluate_every": clock.steps(self.evaluate_every),
            "evaluate_train": "train_clean" in self.others,
            "valid": "valid" in self.others,
            "test": "test" in self.others,
        }

    def score(self, training: Training, what: str, model: nn.Module) -> dict[str, Any]:
        """Loss and metrics of a model on one of the parts."""
        state, update, feed = training.state, training.update, self.others[what]
        if training.evaluation_batch is not None and isinstance(feed, Feed):
            feed = feed.in_batches_of(training.evaluation_batch)
        return measure(
            model,
            state.criterion,
            feed,
            self.metrics,
            seed=state.seed,
            unpack=update.unpack,
            forward=update.forward,
        )

    def judged(self, values: Mapping[str, Any], standing: Standing, step: int, clock: Clock) -> bool:
        """Takes in a validation: the best, patience, schedules that go by a metric. True if it is the best so far."""
        assert self.monitor is not None  # as it is wherever there is a validation
        value = values[self.monitor.short]
        if not isinstance(value, (int, float)):
            raise RecipeError(f"monitor: {self.monitor.name} is {value}, and one number is needed to compare.")
        improved = judge(standing, self.monitor, self.patience, float(value), step, clock)
        for plateau, its in self.plateaus:
            plateau.observe(float(values[its.short]), its.higher)
        return improved

    def facts(self, training: Training) -> list[tuple[str, str]]:
        """What a person should know before training, as labels and texts."""
        lines = facts.of_data({"train": training.feed, **self.others})
        lines += facts.of_model(training)
        lines += facts.of_groups(training)
        lines += facts.of_rates(training)
        lines += training.plan.facts()
        if self.monitor is not None:
            better = "higher" if self.monitor.higher else "lower"
            lines += [("monitor", f"{self.monitor.name}, {better} is better")]
        while_training = ["train/ is taken while training, as the weights move; evaluate_train adds a clean pass."]
        return lines + [("note", note) for note in (*training.notes, *while_training)]


def _refuse_shared_batches(training: Training, feeds: dict[str, Any]) -> None:
    train = training.feed
    if isinstance(train, OwnOrder) and any(
        isinstance(feed, OwnOrder) and feed.batches is train.batches for feed in feeds.values()
    ):
        raise RecipeError("train gives whole batches in its own order, and can't be read for an evaluation meanwhile.")
