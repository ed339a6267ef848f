"""What surrounds the steps of `fit`: records, evaluations, hooks, checkpoints, and the run that comes of them.

The order in which these happen is `fit`'s; here is only what each of them is.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from gradstep import checkpoint, facts
from gradstep import metrics as metrics_room
from gradstep.check import last_batch_of_one, look
from gradstep.clock import Duration
from gradstep.data import Feed, OwnOrder
from gradstep.errors import RecipeError
from gradstep.evaluation import evaluation_feed, measure
from gradstep.hooks import About, Events, Request
from gradstep.interrupt import Interruption
from gradstep.keeper import Keeper, Policy
from gradstep.keys import kept_streams
from gradstep.meaning import meaning
from gradstep.record import Console, Journal, Ledger, Recorder, Stopwatch
from gradstep.run import Best, Run
from gradstep.rundir import RunDir
from gradstep.scheduling import rates_at
from gradstep.setup import Training, yes_or_no
from gradstep.stopping import Monitor, Patience, gone_by, judge
from gradstep.update import Outcome, Sharing


class Session:
    """One call of `fit`, between its keywords and its run. Making it checks everything and writes nothing."""

    def __init__(
        self,
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
        out: str | Path | None,
        name: str | None,
        resume: bool | str | Path,
        quiet: bool,
    ) -> None:
        yes_or_no("quiet", quiet)
        self.training, self.state, self.clock = training, training.state, training.clock
        self.metrics = metrics_room.resolve(metrics)
        self._feeds: dict[str, Any] = {
            what: evaluation_feed(data, what, batch_size, training.device, workers, training.state.seed)
            for what, data in others.items()
            if data is not None
        }
        if isinstance(training.feed, OwnOrder) and any(
            isinstance(feed, OwnOrder) and feed.batches is training.feed.batches for feed in self._feeds.values()
        ):
            raise RecipeError(
                "train gives whole batches in its own order, and can't be read for an evaluation meanwhile."
            )
        if isinstance(training.feed, Feed) and self.clock.total >= training.feed.steps_per_epoch:
            last_batch_of_one(training.update, training.feed)
        self.feeds = {"train": training.feed, **self._feeds}
        terms = look(training.update, self.metrics, self.feeds)
        training.decide()
        self.metrics.refuse(["loss", *terms])
        self.state.tensors()  # what can't be saved is refused now, and not at the first checkpoint
        names = ["loss", *terms, *self.metrics.metrics]
        self._monitor = Monitor.parse(monitor, names, self.metrics.higher_is_better) if "valid" in self._feeds else None
        self._patience = Patience.parse(patience)
        plateaus = training.scheduled.plateaus
        self._watched = [(p, gone_by(p, self._monitor, names, self.metrics.higher_is_better)) for p in plateaus]
        if self._monitor is None and (monitor is not None or patience is not None):
            raise RecipeError("monitor and patience look at the validation, and there is no valid= data.")
        self._every = Duration.positive(evaluate_every, "evaluate_every")
        self._log_every = self.clock.steps(Duration.positive(log_every, "log_every"))
        self._policy = Policy.parse(checkpoint)
        self._events, self._interruption = Events.of(hooks), Interruption()
        self._console = Console(quiet)
        self._out, self._name, self._resume = out, name, resume
        self._done = self._improved = self._improved_since_line = False
        self._wants_pause: str | None = None
        self._save_asked = False

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Inside, the run has its folder, its records are open, the model trains and the signals are heard."""
        lines = self.facts()  # made before there is a folder, should anything in them fail
        place, resumed = RunDir.choose(self._out, self._name, type(self.state.model).__name__.lower(), self._resume)
        held = place.held() if place else None
        try:
            with self._started(place, resumed, lines):
                yield
        finally:
            if held is not None:
                os.close(held)

    @contextmanager
    def _started(self, place: RunDir | None, resumed: bool, lines: list[tuple[str, str]]) -> Iterator[None]:
        training, self._place = self.training, place
        source, valid = (
            feed.source if isinstance(feed, Feed) else None for feed in (training.feed, self.feeds.get("valid"))
        )
        about = facts.about_data(source) if place else {}  # hashes what it holds; without a place nobody asks again
        self._keeper = Keeper(place, self._policy, about, meaning(training, about, valid) if place else {})
        if resumed and place:
            checkpoint.sweep(place.checkpoints)
            if place.plan.exists():
                training.follow(json.loads(place.plan.read_text()))
        offset, notes = self._keeper.restore(self.state, self.clock) if resumed else (0, [])
        lines += [("note", note) for note in notes] + ([("run", str(place.path))] if place else [])
        if resumed:
            after = f"after step {self.state.step}, epoch {self.clock.epoch(self.state.step - 1)}"
            lines += [("resumed", after if self.state.step else "from the very start: no epoch had ended")]
        self._console.facts(lines)
        self._console.line()
        if place and self.finished_before and place.weights.exists():
            offset = place.metrics.stat().st_size  # the rows after the last checkpoint are the test's
        elif place:
            place.weights.unlink(missing_ok=True)  # of a shorter run: where weights to use are, a run is at its end
        journal = Journal(place.metrics, place.timing, offset) if place else Journal()
        watch = Stopwatch()
        self._recorder = Recorder(
            self.clock,
            Ledger(Sharing(self.state.criterion), self._log_every, self.clock.steps_per_epoch),
            self.metrics.fresh(training.device) if self.metrics.metrics else None,
            journal,
            self._console,
            watch,
            evaluations_left=self._evaluations_left,
            listeners=(self._tell_row,) if self._events.calls["on_row"] else (),
        )
        try:
            with training.training_mode(), kept_streams(training.device), self._interruption:
                samples = training.feed.samples if isinstance(training.feed, Feed) else None
                self._begin(About(place.path if place else None, self.clock, watch, samples), fresh=not offset)
                yield
        except BaseException as error:
            try:
                self._events.tell("on_exception", self.state, error)
            except Exception as another:
                error.add_note(f"a hook that was told of it raised {type(another).__name__}: {another}")
            raise
        finally:
            self._console.close()
            journal.close()

    @property
    def finished_before(self) -> bool:
        """Whether the run that was to be resumed had nothing left to do."""
        return bool(self.state.step >= self.clock.total or self.state.standing.stopped)

    def note(self, outcome: Outcome) -> None:
        """A step was done. Waits for the device only when it is time to show something."""
        self._recorder.step(outcome, self.state.samples, self._rates)
        self._events.tell("on_train_batch_end", self.state, outcome)
        self._done = self.state.step >= self.clock.total
        self._improved = False
        if self._interruption.heard is not None:
            self._wants_pause = signal.Signals(self._interruption.heard).name
        if self._events.requested:
            self._heed()

    def end_epoch(self) -> None:
        """The epoch's loss and metrics, taken while training."""
        row = self._recorder.end_epoch(self.state.step, self.state.samples, self._rates())
        self._events.tell("on_train_epoch_end", self.state, row)

    @property
    def evaluation_due(self) -> bool:
        """Every so often, and after the last step."""
        last = self.over and self._paused is None
        return bool(self._feeds) and (last or self.clock.due(self.state.step, self._every))

    @property
    def _paused(self) -> str | None:
        """Who asked for a pause, unless there is nothing left to come back to."""
        return None if self._done or self.state.standing.stopped else self._wants_pause

    def evaluate(self) -> None:
        """Validates, and judges: the best is updated and patience counted before any hook hears of it."""
        step = self.state.step
        self._recorder.read(step)  # a loss that is no number ends the run here, not after the evaluation
        with self._recorder.stopwatch.away(evaluation=True):
            parts = [what for what in ("train_clean", "valid") if what in self._feeds]
            measured = {what: self._score(what, self.state.judged) for what in parts}
        if "train_clean" in measured:
            self._recorder.measured("train_clean", step, measured["train_clean"])
        if "valid" in measured and self._monitor is not None:
            value = measured["valid"][self._monitor.short]
            if not isinstance(value, (int, float)):
                raise RecipeError(f"monitor: {self._monitor.name} is {value}, and one number is needed to compare.")
            self._improved = judge(self.state.standing, self._monitor, self._patience, float(value), step, self.clock)
            self._improved_since_line |= self._improved
            for plateau, its in self._watched:
                plateau.observe(float(measured["valid"][its.short]), its.higher)
            row = self._recorder.measured("valid", step, measured["valid"], best=self._improved)
            self._events.tell("on_validation_end", self.state, row)
        self._heed()

    def close_epoch(self) -> None:
        """The epoch's line, its hooks, and the start of the next."""
        self._show_epoch()
        self._events.tell("on_epoch_end", self.state)
        self._heed()
        if self.state.step < self.clock.total and not self.state.standing.stopped:
            self._recorder.begin_epoch(self.state.step, rates_at(self.state, self.training.scheduled))

    def cut_epoch(self) -> None:
        """The last epoch need not be a whole one: what there is of it gets its row and its line."""
        if self.over and self._paused is None:
            self.end_epoch()
            self._show_epoch()

    @property
    def over(self) -> bool:
        """Whether this was the last step of this process."""
        return self._done or self.state.standing.stopped is not None or self._paused is not None

    @property
    def save_due(self) -> bool:
        """Every so often, when the best is new, when somebody asked, and at the end.

        Where steps are counted, at an epoch's end too: this version goes on from there only.
        """
        every = self.clock.due(self.state.step, self._policy.every)
        goes_on = self._policy.every.unit == "step" and self.clock.ends_epoch(self.state.step)
        return every or goes_on or self._improved or self._save_asked or self.over

    def save(self) -> None:
        """The last act of a step: nothing of the state changes after it."""
        self._recorder.read(self.state.step)
        self._save_asked = False
        with self._recorder.stopwatch.away():
            path = self._keeper.save(self.state, self.clock, self._recorder.journal)
        if path is not None:
            self._events.tell("on_save_checkpoint", self.state, path)

    def finish(self) -> None:
        """The test, with the weights that were chosen; those weights where they can be found; the last lines.

        A run that is only paused gets neither test nor weights: both belong to its end.
        """
        state = self.state
        self._recorder.read(state.step)
        self._console.close()
        if "test" in self._feeds and self._paused is None:
            with self.run().chosen():
                values = self._score("test", state.model)
            self._recorder.measured("test", state.step, values)
            self._console.line("test      " + "  ".join(shown(values)))
        if self._paused is None:
            self._keeper.publish(state)  # the last thing: weights to use are there when the run is at its end
        self._events.tell("on_train_end", state)
        self._closing_lines()

    def already_finished(self) -> None:
        """A finished run was resumed: says so and does nothing."""
        why = f" ({self.state.standing.stopped})" if self.state.standing.stopped else ""
        self._console.line(f"already finished at step {self.state.step}{why}; nothing to do.")
        if self._place is not None and not self._place.weights.exists():
            self.finish()  # it was killed between its last checkpoint and its end
        else:
            self._events.tell("on_train_end", self.state)

    def _begin(self, about: About, fresh: bool) -> None:
        if self._place is not None and not self._place.environment.exists():
            checkpoint.replace_durably(self._place.environment, checkpoint.to_json(facts.environment()))
            checkpoint.replace_durably(self._place.plan, checkpoint.to_json(self.training.plan.document()))
        self._events.tell("on_train_start", self.state, about)
        step, rows = self.state.step, self._recorder.journal.rows
        begun = any(row["kind"] == "start" and row["step"] == step for row in rows)
        if not begun and not self.finished_before:  # a run that is made longer had no next epoch to begin
            self._recorder.begin_epoch(step, rates_at(self.state, self.training.scheduled))
        if fresh and self._place is not None:
            self.save()  # step 0: no run dies at its first checkpoint

    def facts(self) -> list[tuple[str, str]]:
        """What a person should know before training, as labels and texts."""
        training = self.training
        lines = facts.of_data({"train": training.feed, **self._feeds})
        lines += facts.of_model(training)
        lines += facts.of_groups(training)
        lines += facts.of_rates(training)
        lines += training.plan.facts()
        if self._monitor is not None:
            better = "higher" if self._monitor.higher else "lower"
            lines += [("monitor", f"{self._monitor.name}, {better} is better")]
        while_training = ["train/ is taken while training, as the weights move; evaluate_train adds a clean pass."]
        return lines + [("note", note) for note in (*training.notes, *while_training)]

    def _show_epoch(self) -> None:
        self._recorder.show_epoch(self._improved_since_line)
        self._improved_since_line = False

    def _closing_lines(self) -> None:
        state, best = self.state, self.run().best
        if self._paused is not None:
            self._console.line(f"paused    after step {state.step} of {self.clock.total}: {self._paused}")
        if state.standing.stopped:
            self._console.line(f"stopped   early after step {state.step}: {state.standing.stopped}")
        if best is not None:
            where = f"epoch {self.clock.epoch(best.step - 1)}, step {best.step}"
            self._console.line(f"best      {best.metric} {best.value:.4f} at {where}")
        if self._place is not None:
            if self._paused is None:
                self._console.line(f"saved     {self._place.weights}  (the {'best' if best else 'last'} weights)")
            label = "saved" if self._paused else ""
            self._console.line(f"{label:<10}{self._place.checkpoints}/  {self._place.metrics}")

    def _tell_row(self, row: dict[str, Any]) -> None:
        """Rows are written when they are read, which is a matter of time: nothing can be asked for there."""
        before = len(self._events.requested)
        self._events.tell("on_row", row)
        if len(self._events.requested) > before:
            raise RecipeError("hooks: on_row can't ask for anything, because when a row is read is a matter of time.")

    def _heed(self) -> None:
        """Takes up what hooks asked for. A pause leaves no row, or a run that is resumed would have another record."""
        requested, self._events.requested = self._events.requested, []
        for wish, who in requested:
            if Request.PAUSE in wish:
                self._wants_pause = self._wants_pause or who
            if Request.SAVE in wish:
                self._save_asked = True
                self._recorder.read(self.state.step)  # first what was before, whenever it is read
                self._recorder.request(self.state.step, "save", who)
            if Request.STOP in wish:
                self._recorder.read(self.state.step)
                self._recorder.request(self.state.step, "stop", who)
                self.state.standing.stopped = f"{who} asked to stop"

    def _score(self, what: str, model: nn.Module) -> dict[str, Any]:
        update = self.training.update
        return measure(
            model,
            self.state.criterion,
            self._feeds[what],
            self.metrics,
            seed=self.state.seed,
            unpack=update.unpack,
            forward=update.forward,
        )

    def _rates(self) -> list[float]:
        return rates_at(self.state)  # those the optimizer holds: of the step just done

    def _evaluations_left(self, step: int) -> int:
        if not {"valid", "train_clean"} & set(self._feeds):
            return 0
        every = self.clock.steps(self._every)
        return -(-self.clock.total // every) - step // every

    def run(self) -> Run:
        """What `fit` returns."""
        state, training = self.state, self.training
        standing, source = state.standing, getattr(training.feed, "source", None)
        best = None
        if self._monitor is not None and standing.best is not None and standing.best_step is not None:
            best = Best(self._monitor.name, standing.best, standing.best_step)
        return Run(
            model=state.model,
            history=self._recorder.journal.rows,
            best=best,
            state=state,
            path=self._place.path if self._place else None,
            stopped=standing.stopped,
            paused=self._paused,
            classes=source.classes if source is not None else None,
            transforms=source.transforms if source is not None else (),
            unpack=training.update.unpack,
            forward=training.update.forward,
            chosen_weights=self._keeper.chosen(state),
        )


def shown(values: dict[str, Any]) -> list[str]:
    """The numbers of an evaluation for people; a matrix is left out."""
    return [f"{name} {value:.4f}" for name, value in values.items() if isinstance(value, float)]
