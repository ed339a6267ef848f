"""What surrounds the steps of `fit`: records, evaluations, hooks, checkpoints, and the run that comes of them.

The order in which these happen is `fit`'s; here is only what each of them is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from gradstep import failure
from gradstep.changes import Change
from gradstep.closing import closing_lines, run_of, shown, where
from gradstep.errors import DivergedError, ProcessLostError, StorageError
from gradstep.hooks import About, Request
from gradstep.interrupt import Interrupted, Interruption
from gradstep.keeper import Progress
from gradstep.keys import kept_streams
from gradstep.opening import chosen, first_rows, keeper_of, leave_documents, open_records, place_of, room, taken_up
from gradstep.record import Console, Stopwatch
from gradstep.run import Run
from gradstep.rundir import RunDir
from gradstep.scheduling import rates_at
from gradstep.setup import Training, yes_or_no
from gradstep.unsaved import noticed
from gradstep.update import Outcome
from gradstep.watching import Watching

NOTHING: AbstractContextManager[None] = nullcontext()


class Session:
    """One call of `fit`, between its keywords and its run."""

    def __init__(
        self,
        training: Training,
        watching: Watching,
        *,
        out: str | Path | None,
        name: str | None,
        resume: bool | str | Path,
        allow_changes: bool,
        quiet: bool,
    ) -> None:
        self.training, self.watching = training, watching
        self.state, self.clock = training.state, training.clock
        self._feeds, self._events = watching.others, watching.events
        self._interruption = Interruption(quiet=yes_or_no("quiet", quiet))
        self._console = Console(quiet)
        self._out, self._name, self._resume = out, name, resume
        self._allow = yes_or_no("allow_changes", allow_changes)
        self._improved = self._save_asked = False
        self._half = False  # whether a step is being made that may be cut short: then it is made again as a whole
        self._wants_pause: str | None = None
        self._ending = False  # whether the end of a step is being made, which a signal may cut short
        self._rest: Progress | None = None  # where it began, for who has a place to come back to
        self._cut = False  # whether something of the end of a step or of the run is left to do
        self._look: AbstractContextManager[None] = NOTHING  # at what the first step changes that is not saved
        self._due = 0  # the step up to which nothing ends but steps
        self._rates = partial(rates_at, self.state)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Inside, the run has its folder, its records are open, the model trains and the signals are heard."""
        lines = self.watching.facts(self.training)  # made before there is a folder, should anything in them fail
        if self._out is not None or self._resume:
            self.watching.refuse_unsaved()
        place, resumed, at = place_of(self._out, self._name, type(self.state.model).__name__.lower(), self._resume)
        held = place.held() if place else None
        try:
            with self._started(place, resumed, lines, at):
                yield
        finally:
            if held is not None:
                os.close(held)

    @contextmanager
    def _started(
        self, place: RunDir | None, resumed: bool, lines: list[tuple[str, str]], at: int | None
    ) -> Iterator[None]:
        training, self._place = self.training, place
        self._keeper = keeper_of(training, self.watching, place)
        progress, found, more = taken_up(place if resumed else None, training, self._keeper, self._allow, at)
        lines = [*chosen(training, self.watching, place, lines), *more]
        lines += [("run", str(place.path)), *room(place, self.training, self.watching.policy)] if place else []
        lines += [("resumed", where(self.state.step, self.clock))] if resumed else []
        self._console.facts([*lines, ("", "")])
        self._cut = progress.rest if progress else False
        self._watch = Stopwatch()
        whole = bool(place and progress and self.finished_before and place.weights.exists())
        if place and not whole:
            self._keeper.withdraw()
        self._open_records(progress, whole)
        try:
            with training.training_mode(), training.planned(), kept_streams(training.device), self._interruption:
                self._begin(found)
                yield
            self._settle()
        except BaseException as error:
            self._events.tell_of(self.state, error)
            raise
        finally:
            self._keeper.saver.close()  # waits: what was begun is finished
            self._console.close()
            self._recorder.journal.close()

    def _open_records(self, progress: Progress | None, whole: bool = False) -> None:
        self._recorder = open_records(
            self.training, self.watching, self._place, progress, whole, self._console, self._watch
        )

    def _begin(self, found: list[Change]) -> None:
        place = self._place
        leave_documents(self._keeper, self.training)
        path, samples = place.path if place else None, getattr(self.training.feed, "samples", None)
        about = About(path, self.clock, self._watch, samples, self.training.plan)
        self._events.tell("on_train_start", self.state, about)
        self._keeper.begin(self.state)
        self._look = noticed(self.state, self._console.line) if place else nullcontext()
        if self.finished_before:
            return
        written = first_rows(self._recorder, self.training, found, rest=self._cut)
        if place is not None and written:
            # Step 0, so that no run dies at its first checkpoint; or what the run has become by going on otherwise,
            # so that nothing goes back to what it was before.
            self._write(self._progress(rest=self._cut))
            self._settle()
            self._keeper.prove(self.state)

    @property
    def _ended(self) -> bool:
        """Whether there is no step left to make, nor the end of one."""
        return (self.state.step >= self.clock.total or self.state.standing.stopped is not None) and not self._cut

    finished_before = _ended  # said of a run that was to be resumed

    @contextmanager
    def kept_whole(self) -> Iterator[None]:
        """What ends the steps inside leaves a run that can be gone on from: a signal, a loss of nan, an error."""
        try:
            try:
                yield
            except (Interrupted, ProcessLostError):  # a signal to the whole group may take a worker, in a wait
                if self._interruption.heard is None:
                    raise
                self._cut_short()
        except DivergedError as error:
            self._diverged(error)
        except StorageError:
            raise
        except Exception as error:
            plain = failure.plainly(error, self.training.feed, self.training.update.micro_batch)
            self._note_failure(plain or error)
            if plain is not None and plain is not error:
                raise plain from error
            raise

    def waiting(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches; a signal cuts the wait for one short, since between two steps nothing is half done."""
        watch = self._watch
        while True:
            self._ending, self._half, self._rest = False, False, None  # the step before this wait is done as a whole
            began = watch.now()
            with self._interruption.cuts():
                try:
                    batch = next(batches)
                except StopIteration:
                    return
            watch.waited += watch.now() - began
            yield batch

    def stepping(self) -> AbstractContextManager[None]:
        """A step that begins where a checkpoint lies may be cut short too: the first, which may compile for minutes."""
        return self._stepping_off() if self._keeper.newest == self.state.step else NOTHING

    @contextmanager
    def _stepping_off(self) -> Iterator[None]:
        look, self._look, self._half = self._look, NOTHING, True
        with look, self._interruption.cuts():
            yield
        self._half = False

    def rest(self, outcomes: Iterator[Outcome]) -> Iterator[Outcome | None]:
        """The outcomes; before them None where the end of a step that was made before is still to come."""
        begun: list[None] = [None] if self._cut else []
        self._cut = False
        return chain(begun, outcomes)

    def note(self, outcome: Outcome | None) -> bool:
        """A step was done: is there anything to be done at its end? Waits for the device only when it is time to."""
        self._ending, self._improved = True, False
        if outcome is None:
            return True
        state, step = self.state, self.state.step
        self._recorder.step(outcome, state.samples, self._rates)  # the rates of the step just done
        self._events.tell("on_train_batch_end", state, outcome)
        if step == 1:
            state.tensors()  # an optimizer shows what it keeps in its first step: refused now, not in a save
        self._tell_saved(self._keeper.saver.finished())  # raises what went wrong with it
        self._wants_pause = self._interruption.name or self._wants_pause
        if self._interruption.save_asked:
            self._interruption.save_asked, self._save_asked = False, True
        if self._events.requested:
            self._heed()
        if step >= self._due:
            self._due = self.clock.next_due(step, self.watching.evaluate_every, self.watching.policy.every)
            return True
        return bool(self._wants_pause or self._save_asked or state.standing.stopped)

    def end_epoch(self) -> None:
        """The epoch's loss and metrics, taken while training."""
        self._remember()
        row = self._recorder.end_epoch(self.state.step, self.state.samples, self._rates())
        self._events.tell("on_train_epoch_end", self.state, row)

    @property
    def evaluation_due(self) -> bool:
        """Every so often, and after the last step."""
        last = self.over and self._paused is None
        return bool(self._feeds) and (last or self.clock.due(self.state.step, self.watching.evaluate_every))

    @property
    def _paused(self) -> str | None:
        """Who asked for a pause, unless there is nothing left to come back to."""
        return None if self._ended else self._wants_pause

    def evaluate(self) -> None:
        """Validates, and judges: the best is updated and patience counted before any hook hears of it."""
        state, step, watching = self.state, self.state.step, self.watching
        self._remember()  # a loss that is no number ends the run here, not after the evaluation
        # A signal may come while it puts back modes and buffers: this puts back what it could not.
        kept = self.training.evaluating(state.judged)
        with self._recorder.stopwatch.away(evaluation=True), kept, self._interruption.cuts():
            parts = [what for what in ("train_clean", "valid") if what in self._feeds]
            measured = {what: watching.score(self.training, what, state.judged) for what in parts}
        if "train_clean" in measured:
            self._recorder.measured("train_clean", step, measured["train_clean"])
        if "valid" in measured:
            self._improved = watching.judged(measured["valid"], state.standing, step, self.clock)
            row = self._recorder.measured("valid", step, measured["valid"], best=self._improved)
            self._events.tell("on_validation_end", state, row)
        self._heed()

    def close_epoch(self, whole: bool) -> None:
        """The epoch's line, its hooks, the start of the next. The last need not be whole: its row is what there is."""
        if not whole:
            if self.over and self._paused is None:
                self.end_epoch()
                self._recorder.show_epoch()
            return
        self._recorder.show_epoch()
        self._events.tell("on_epoch_end", self.state)
        self._heed()
        if self.state.step < self.clock.total and not self.state.standing.stopped:
            self._recorder.begin_epoch(self.state.step, rates_at(self.state, self.training.scheduled))

    @property
    def over(self) -> bool:
        """Whether this was the last step of this process."""
        return self._ended or self._paused is not None

    @property
    def save_due(self) -> bool:
        """Every so often, when the best is new, when somebody asked, and at the end."""
        every = self.clock.due(self.state.step, self.watching.policy.every)
        return every or self._improved or self._save_asked or self.over

    def save(self) -> None:
        """The last act of a step: nothing of the state changes after it."""
        self._save_asked = False
        self._write(self._progress(rest=False))
        if self.over:
            self._settle()  # of the last one too, what goes wrong is heard where it is noted

    def finish(self) -> None:
        """The test, with the weights that were chosen; those weights where they can be found; the last lines.

        A run that is only paused gets neither test nor weights: both belong to its end.
        """
        self._settle()
        self._recorder.read(self.state.step)
        self._console.close()
        if "test" in self._feeds and self._paused is None:
            self._test()
        if self._paused is None:
            self._recorder.journal.sync()  # first the record, since where weights to use are, a run is at its end
            self._keeper.publish(self.state)
        self._events.tell("on_train_end", self.state)
        for line in closing_lines(self.run(), self.clock, self._place):
            self._console.line(line)

    def already_finished(self) -> Run:
        """A finished run was resumed: says so and does nothing."""
        why = f" ({self.state.standing.stopped})" if self.state.standing.stopped else ""
        if self._place is not None and not self._place.weights.exists():
            self._console.line(f"already trained to step {self.state.step}{why}; what came after is made now.")
            self.finish()  # it was ended between its last checkpoint and its end
        else:
            self._console.line(f"already finished at step {self.state.step}{why}; nothing to do.")
            self._events.tell("on_train_end", self.state)
        return self.run()

    def _progress(self, rest: bool) -> Progress:
        """Where the run is in its epoch and its record. Waits for the device."""
        self._recorder.read(self.state.step)
        tensors, numbers = self._recorder.progress()
        return Progress(tensors, numbers, self._recorder.journal.mark(), rest)

    def _remember(self) -> None:
        """Before the end of a step begins to change anything: a signal in its evaluation takes us back to here."""
        self._recorder.read(self.state.step)  # without a place too: rows come in this order
        if self._place is not None and self._rest is None:
            self._rest = self._progress(rest=True)

    def _write(self, progress: Progress) -> None:
        with self._recorder.stopwatch.away():
            self._tell_saved(self._keeper.save(self.state, self._recorder.journal, progress))

    def _settle(self) -> None:  # waits for the checkpoint that is being written
        self._tell_saved(self._keeper.saver.wait())

    def _cut_short(self) -> None:
        """A signal came while nothing of the state was changing, or in a step that a checkpoint lies before."""
        self._wants_pause = self._interruption.name
        self._settle()  # then it is known whether this step is saved
        if self._ending:
            self._cut = True
            if self._rest is not None:
                self._write(self._rest)
        elif self._half:
            self._keeper.back(self.state)
        elif self._place is not None and self._keeper.newest != self.state.step:
            self.save()

    def _diverged(self, error: DivergedError) -> None:
        try:
            if self.training.guard.rule.policy != "rewind" or error.step is None or error.in_state:
                raise error
            self._rewind(error.step - 1)  # may find that it is one too many, or that the last checkpoint failed
        except DivergedError as last:
            self._note_failure(last)
            raise

    def _rewind(self, at: int) -> None:
        """Back to the last checkpoint, from where the run comes by step number `at` again and leaves it out."""
        progress = self._keeper.back(self.state)
        self.training.scheduled.forget()
        self.training.guard.leave_out(self.state, at)
        self._recorder.journal.close()
        self._open_records(progress)
        self._cut, self._due = progress.rest, 0
        self._console.line(f"rewind    step {at + 1} is left out: back to step {self.state.step}")

    def _test(self) -> None:
        try:
            with self.run().chosen(), self.training.evaluating(self.state.model), self._interruption.cuts():
                values = self.watching.score(self.training, "test", self.state.model)
        except Interrupted:  # everything is saved but the test, which a resume makes
            self._wants_pause, self._cut = self._interruption.name, True
            return
        self._recorder.measured("test", self.state.step, values)
        self._console.line("test      " + "  ".join(shown(values)))

    def _note_failure(self, error: Exception) -> None:
        with suppress(Exception):  # the rows of the steps before it, as far as they can be had
            self._recorder.read(self.state.step)
        self._keeper.saver.close()  # waits: then it is known which checkpoint is the last
        if self._place is None:
            return
        error.add_note(failure.of_run(self._place, self.training, error, self._ending, self._keeper.newest))

    def _tell_saved(self, path: Path | None) -> None:
        if path is not None:
            self._events.announce("on_save_checkpoint", self.state, path)

    def _heed(self) -> None:
        """Takes up what hooks asked for. A pause leaves no row, or a run that is resumed would have another record."""
        requested, self._events.requested = self._events.requested, []
        for wish, who in requested:
            self._recorder.read(self.state.step)  # first what was before, whenever it is read
            if Request.PAUSE in wish:
                self._wants_pause = self._wants_pause or who
            if Request.SAVE in wish:
                self._save_asked = True
                self._recorder.request(self.state.step, "save", who)
            if Request.STOP in wish:
                self._recorder.request(self.state.step, "stop", who)
                self.state.standing.stopped = f"{who} asked to stop"

    def run(self) -> Run:
        """What `fit` returns."""
        return run_of(self.training, self.watching, self._place, self._recorder.journal, self._paused, self._keeper)
