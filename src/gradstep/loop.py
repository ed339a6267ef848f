"""The loop: `steps` for those who want it in their own hands, `fit` for the whole of a run.

If you read one file of gradstep, read this one; then `step.py` for what happens to a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradstep.check import look
from gradstep.errors import RecipeError
from gradstep.metrics import MetricSet
from gradstep.optim.replacing import Replaced
from gradstep.plan.choosing import choose
from gradstep.run import Run
from gradstep.session import NOTHING, Session
from gradstep.setup import Training, assemble, yes_or_no
from gradstep.state import TrainState
from gradstep.update import Outcome
from gradstep.watching import Watching


def steps(
    model: nn.Module,
    criterion: Any,
    train: Any,
    *,
    optimizer: Any,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    drop_last: bool = False,
    micro_batch: int | None = None,
    stat_group: int | None = None,
    schedule: Any = None,
    clip: Any = None,
    ema: Any = None,
    on_nonfinite: Any = "stop",
    seed: int = 0,
    dropout: str = "keyed",
    device: str | torch.device = "auto",
    precision: str = "fp32",
    workers: int = 0,
    plan: Any = "measured",
    unpack: Callable[[Any], tuple[Any, Any]] | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> Steps:
    """The steps of a training, one at a time: own the loop, `break` to stop.

    Each keyword means what it means in `fit`, and so the same steps come of them. What an outcome holds is on the
    device; reading a number of it waits for the step. Between two steps the optimizer is yours: a rate that no
    schedule sets may be changed in its `param_groups`.
    """
    training = assemble(
        model,
        criterion,
        train,
        optimizer=optimizer,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        drop_last=drop_last,
        schedule=schedule,
        seed=seed,
        dropout=dropout,
        device=device,
        precision=precision,
        workers=workers,
        plan=plan,
        micro_batch=micro_batch,
        stat_group=stat_group,
        clip=clip,
        ema=ema,
        on_nonfinite=on_nonfinite,
        unpack=unpack,
        forward=forward,
    )
    if training.guard.rule.policy == "rewind":
        raise RecipeError("on_nonfinite: rewind goes back to a checkpoint, and steps() has no checkpoints. Write skip.")
    look(training.update, MetricSet({}), {"train": training.feed})
    training.decide()
    choose(training, own_loop=True)
    return Steps(training)


class Steps:
    """What `steps` gives: an iterator over outcomes. `state` is the training's, its average of the weights included."""

    def __init__(self, training: Training) -> None:
        self._training, self._each = training, _owned(training)
        training.scheduled.expect(training.state)

    def __iter__(self) -> Steps:
        return self

    def __next__(self) -> Outcome:
        return next(self._each)

    def close(self) -> None:
        """Ends it here: the model gets its modes back, the optimizer its options, as at the last step."""
        self._each.close()

    @property
    def state(self) -> TrainState:
        return self._training.state

    def observe(self, value: float, higher: bool = False, metric: str | None = None) -> bool:
        """Tells a schedule that goes by a metric what it is now, and whether higher is better; True if it acted.

        `metric` says which, where schedules go by several. RecipeError where none goes by it.
        """
        return self._training.scheduled.observe(value, higher, metric)

    def replace_optimizer(self, optimizer: Any) -> Replaced:
        """Goes on with another optimizer. What comes back says which state was handed over, and what is forgotten."""
        return self._training.replace_optimizer(optimizer)


def _owned(training: Training) -> Generator[Outcome]:
    with training.training_mode(), training.planned(own_loop=True):
        yield from _steps(training, _Alone())


class _Alone:
    """Steps that nobody watches: the user's own loop hears the signals itself."""

    def waiting(self, batches: Iterator[Any]) -> Iterator[Any]:
        return batches

    def stepping(self) -> AbstractContextManager[Any]:
        return NOTHING


def _steps(training: Training, watched: Session | _Alone) -> Iterator[Outcome]:
    state, last = training.state, training.clock.total
    while state.step < last:
        for batch in watched.waiting(training.feed.start(state.step)):
            training.before_step()
            with watched.stepping():
                outcome = training.take_step(
                    state, batch, training.update, training.clip, training.guard, training.device
                )
            yield outcome
            if state.step >= last:
                return


def fit(
    model: nn.Module,
    criterion: Any,
    train: Any,
    valid: Any = None,
    test: Any = None,
    *,
    optimizer: Any,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    drop_last: bool = False,
    micro_batch: int | None = None,
    stat_group: int | None = None,
    schedule: Any = None,
    metrics: Any = None,
    monitor: Any = None,
    patience: Any = None,
    clip: Any = None,
    ema: Any = None,
    on_nonfinite: Any = "stop",
    seed: int = 0,
    dropout: str = "keyed",
    device: str | torch.device = "auto",
    precision: str = "fp32",
    workers: int = 0,
    evaluate_every: str = "1 epoch",
    evaluate_train: bool = False,
    log_every: str = "50 steps",
    checkpoint: Any = None,
    hooks: Sequence[Any] = (),
    plan: Any = "measured",
    out: str | Path | None = None,
    name: str | None = None,
    resume: bool | str | Path = False,
    allow_changes: bool = False,
    quiet: bool = False,
    unpack: Callable[[Any], tuple[Any, Any]] | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> Run:
    """Trains `model` and returns the run.

    The result depends on model, criterion, data, optimizer, schedule, clip, ema, batch_size, drop_last, stat_group,
    epochs or steps, on_nonfinite, seed, dropout and precision; on where patience or a hook stops it; and on nothing
    else here.

    Args:
        criterion: `(outputs, targets)` to a scalar, one loss per sample (averaged), or a dict of named terms (summed).
        train: `(inputs, targets)` of tensors or arrays, a map-style data set, a DataLoader with a plain sampler, a
            source of `gradstep.data`, an iterable of whole batches with a length, or a feed.
        valid: the same but for a feed; evaluated every `evaluate_every`, and after the last step.
        test: the same; evaluated once, at the end, with the weights that validation chose.
        optimizer: a torch optimizer, or a function of the parameters that makes one; `gradstep.param_groups` makes
            groups for it by pattern, frozen ones and ones with a schedule of their own among them.
        epochs, steps: how long; one of the two.
        batch_size: the samples of one optimizer step. The last batch of an epoch is smaller unless `drop_last`.
        micro_batch: how many samples of a batch are in memory at once, at most; the gradient is the whole batch's.
        stat_group: BatchNorm's statistics are those of each so many consecutive samples; needed with `micro_batch`.
        schedule: a function `(step, base) -> rate`, or one of `gradstep.schedules`; nothing leaves the rate alone.
            A mapping sets other options too: `{"lr": ..., "momentum": ..., "weight_decay": ...}`.
        clip: the largest norm of all gradients together, as `1.0`; or `{"value": 0.5}` for each element.
        ema: the decay of a moving average of the weights, as `0.999`, or `{"decay": 0.999, "start": "1 epoch",
            "evaluate": True}`; the averaged weights are then those that are evaluated, chosen and saved as the model.
        metrics: names, functions of `(outputs, targets)`, objects with update, compute and reset; or a dict of them.
        monitor: the metric that chooses the best, as `"valid/loss"` or `{"name": ..., "mode": "min"}`; unless given,
            the first of `metrics` that knows whether higher is better, else the loss. It is printed before training.
        patience: `"3 epochs"` without a new best, or `{"falls": 1}`, ends the training.
        dropout: `keyed`: a mask is a function of seed, step, layer call, sample and element, whatever the micro-batch;
            or `stream`, torch's own, as a textbook loop draws them.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        precision: `fp32`; or `bf16`, or `fp16` with its loss scaled: the forward under autocast; weights, loss and
            update stay float32. Refused where the machine would be slower by it.
        workers: processes that load a map-style data set; every batch is the same for any number of them.
        evaluate_train: also evaluate on the training set, for numbers not taken while training.
        log_every: how often the running loss and the rate are recorded.
        checkpoint: `{"every": "1 epoch", "keep": 2}`; the best is kept besides, and for good what `keep_every` counts.
            Only with `out`.
        on_nonfinite: `stop` where a loss or gradient is no number, before the update; `skip` leaves the step out;
            `rewind` goes back to the last checkpoint and leaves it out then. `{"skip": 3}`: three of the run at most.
        hooks: objects that watch; see `gradstep.hooks`.
        plan: `measured` finds what makes a step faster, proves that it computes the same and keeps to it; `plain` is
            the textbook loop; or by switches, as `{"compile": "off", "threads": 1}`. See docs/PLAN.md.
        out: the folder that holds runs; this one gets a folder of its own in it, called number-`name`.
        resume: True goes on with the newest run in `out` (of `name`, if given), or starts the first; a path goes on
            with that run, or from that checkpoint of it.
        allow_changes: a run that is resumed may be another from here on than it was; else what changed is refused.
        unpack: `batch -> (inputs, targets)`, where a batch is not that pair.
        forward: `(model, inputs) -> outputs`, where that is not `model(inputs)`.

    Returns:
        The run. Its `model` is the one given, with the weights of the last step.

    Raises:
        UsageError: something given can't work; nothing was trained or written.
        ChangedError: a run that is resumed with something else than it began with.
        DivergedError: a loss or gradient is no number. CheckpointError, StorageError: the run's folder.
    """
    training = assemble(
        model,
        criterion,
        train,
        optimizer=optimizer,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        drop_last=drop_last,
        schedule=schedule,
        seed=seed,
        dropout=dropout,
        device=device,
        precision=precision,
        workers=workers,
        plan=plan,
        micro_batch=micro_batch,
        stat_group=stat_group,
        clip=clip,
        ema=ema,
        on_nonfinite=on_nonfinite,
        unpack=unpack,
        forward=forward,
    )
    watching = Watching.of(
        training,
        {"valid": valid, "test": test, "train_clean": train if yes_or_no("evaluate_train", evaluate_train) else None},
        batch_size=batch_size,
        workers=workers,
        metrics=metrics,
        monitor=monitor,
        patience=patience,
        evaluate_every=evaluate_every,
        log_every=log_every,
        checkpoint=checkpoint,
        hooks=hooks,
    )
    session = Session(training, watching, out=out, name=name, resume=resume, allow_changes=allow_changes, quiet=quiet)
    with session.opened():
        if session.finished_before:
            return session.already_finished()
        while not session.over:
            with session.kept_whole():
                # The order of these lines is the contract's: best and patience before hooks, saving last.
                for outcome in session.rest(_steps(training, session)):
                    if not session.note(outcome):
                        continue
                    ends_epoch = training.clock.ends_epoch(training.state.step)
                    if ends_epoch:
                        session.end_epoch()
                    if session.evaluation_due:
                        session.evaluate()
                    session.close_epoch(ends_epoch)
                    if session.save_due:
                        session.save()
                    if session.over:
                        break
        session.finish()
    return session.run()
