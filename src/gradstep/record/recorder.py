"""Joins ledger, journal, stopwatch and console: what happened in training, told to each in its own form.

Records are made by step and read by time, so that how often somebody looks changes no byte of metrics.jsonl.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from gradstep.clock import Clock
from gradstep.counted import counts, set_counts
from gradstep.encoding import get, put
from gradstep.record.console import Console
from gradstep.record.journal import Journal, Row
from gradstep.record.ledger import Ledger, Outcome
from gradstep.record.stopwatch import Stopwatch
from gradstep.snapshot import on_host

_READ_EVERY = 0.5  # seconds between two looks at the device
_MUCH, _FELT = 0.1, 0.5  # of an epoch's time, and seconds of it: waiting for batches beyond both is worth a word


class Metrics(Protocol):
    """What the recorder needs of the training metrics."""

    metrics: dict[str, Any]

    def update(self, outputs: Any, targets: Any) -> None: ...

    def compute(self) -> Mapping[str, Any]: ...

    def reset(self) -> None: ...


class Recorder:
    """`listeners` are told of every row as it is written; `advice` is what to do where so much of a time is waiting."""

    def __init__(
        self,
        clock: Clock,
        ledger: Ledger,
        metrics: Metrics | None,
        journal: Journal,
        console: Console,
        stopwatch: Stopwatch,
        evaluations_left: Callable[[int], int] = lambda _: 0,
        listeners: tuple[Callable[[Row], Any], ...] = (),
        advice: Callable[[float], str] = str,
    ) -> None:
        self.clock, self.journal, self.console, self.stopwatch = clock, journal, console, stopwatch
        self._ledger, self._metrics, self._listeners = ledger, metrics, listeners
        self._evaluations_left, self._advice = evaluations_left, advice
        self._advised = False
        self._marks: dict[int, tuple[int, list[float]]] = {}  # step -> (samples so far, rates), until it is read
        self._samples = 0  # since the last record
        self._epoch_samples = 0
        self._speed = 0.0
        self._read_at = stopwatch.now() + _READ_EVERY
        self._epoch: Row = {}
        self._measured: Row = {}  # by the latest evaluation since the last line
        self._best = False  # whether any since was the best so far

    def begin_epoch(self, step: int, rates: list[float]) -> None:
        """A row at each epoch's start, with the learning rate that it starts at."""
        self._write({"step": step, "epoch": self.clock.epoch(step), "kind": "start", **_rates(rates)})

    def step(self, outcome: Outcome, samples: int, rates: Callable[[], list[float]]) -> None:
        """Notes a step after which `samples` have been trained in all. Waits for the device only when it is time."""
        step = outcome.step
        assert step is not None
        if outcome.left_out:
            self._leave_out(outcome)
        elif self._metrics is not None:
            self._metrics.update(outcome.outputs, outcome.targets)
        self._ledger.add(outcome)
        self._samples += outcome.samples
        self._epoch_samples += outcome.samples
        if self._ledger.ends_interval(step):
            self._marks[step] = (samples, rates())
            self._speed, self._samples = self.stopwatch.record(step, self._samples), 0
            speed = {"step": step, "kind": "speed", "samples_per_s": self._speed}
            self.journal.time(speed | {"training_s": self.stopwatch.training()})
        if self.stopwatch.now() >= self._read_at:
            self.read(step)

    def _leave_out(self, outcome: Outcome) -> None:
        """A row for a step that changed nothing, after the rows of the steps before it, whenever those are read."""
        assert outcome.step is not None
        self.read(outcome.step - 1)
        row = {"step": outcome.step, "epoch": self.clock.epoch(outcome.step - 1), "kind": "left_out"}
        self._write(row | {"train/loss": outcome.loss.item()})  # waits for the device, in a step that is rare

    def read(self, step: int) -> None:
        """Reads the losses so far, which waits for the device, and writes the rows that are complete."""
        for at, loss in self._ledger.read():
            samples, rates = self._marks.pop(at)
            row = {"step": at, "epoch": self.clock.epoch(at - 1), "kind": "train", "samples": samples}
            self._write(row | _rates(rates) | {"train/running_loss": loss})
        left = self.stopwatch.left(self.clock.total - step, self._evaluations_left(step))
        self.console.progress(
            step, self.clock.total, self.clock.epoch(step - 1), self._ledger.running, self._speed, left
        )
        self._read_at = self.stopwatch.now() + _READ_EVERY

    def end_epoch(self, step: int, samples: int, rates: list[float]) -> Row:
        """Reads everything and writes the epoch's row: loss and metrics over it, taken while training."""
        self.read(step)
        measured = self._metrics.compute() if self._metrics is not None else {}
        if self._metrics is not None:
            self._metrics.reset()
        values = {f"train/{name}": value for name, value in {**self._ledger.close_epoch(), **measured}.items()}
        row = {"step": step, "epoch": self.clock.epoch(step - 1), "kind": "epoch", "samples": samples}
        self._write(row | _rates(rates) | values)
        seconds, waited = self.stopwatch.end_epoch(step)
        took = {"training_s": seconds, "waiting_s": waited}
        self.journal.time({"step": step, "epoch": row["epoch"], "kind": "epoch"} | took)
        if waited > max(_MUCH * seconds, _FELT) and not self._advised:
            self._advised = True
            self.console.line(f"note      {self._advice(waited / seconds)}")
        self._epoch = {"epoch": row["epoch"], **_scalars(values)}
        speed = self._epoch_samples / seconds if seconds else 0.0
        self._epoch_ends = {"lr": rates[0] if rates else None, "samples/s": speed, "time": seconds}
        self._epoch_samples = 0
        return row | values

    def progress(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """`(tensors, numbers)`: all that rows still to come depend on, between two steps and after `read`.

        The tensors are copies on the CPU. Waits for the device. ModelError for a metric that can't be saved.
        """
        assert not self._marks, "read() comes before progress(): a complete row is not written yet"
        tensors: dict[str, Tensor] = {}
        counted = {
            name: put(name, counts(metric), tensors, keeper="the metric")
            for name, metric in (self._metrics.metrics if self._metrics is not None else {}).items()
        }
        return on_host(tensors), {"ledger": self._ledger.numbers(), "metrics": counted}

    def go_on(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], device: torch.device) -> None:
        """Goes on where `progress` was taken, with metrics on `device`; one that was not there then begins now."""
        self._ledger.restore(numbers["ledger"])
        for name, metric in (self._metrics.metrics if self._metrics is not None else {}).items():
            if name in numbers["metrics"]:
                set_counts(metric, get(numbers["metrics"][name], tensors, device))

    def measured(self, kind: str, step: int, values: Mapping[str, Any], **more: Any) -> Row:
        """A row of an evaluation: `kind` is "valid", "test" or another name of data, and stands before each value."""
        row = {"step": step, "epoch": self.clock.epoch(step - 1) if step else 0, "kind": kind}
        row |= {f"{kind}/{name}": value for name, value in values.items()} | more
        self._write(row)
        self._best = self._best or bool(more.get("best"))
        self._measured |= _scalars({name: value for name, value in row.items() if name.startswith(f"{kind}/")})
        return row

    def request(self, step: int, what: str, who: str) -> None:
        """A row for a hook's request."""
        row = {"step": step, "epoch": self.clock.epoch(step - 1), "kind": "request", "request": what, "by": who}
        self._write(row)

    def changed(self, step: int, what: str, then: Any, now: Any) -> None:
        """A row for what made the run another from here on, somebody having allowed it."""
        row = {"step": step, "epoch": self.clock.epoch(step - 1) if step else 0, "kind": "changed"}
        self._write(row | {"what": what, "then": then, "now": now})

    def show_epoch(self) -> None:
        """The epoch's line on the console, with what was measured last, marked if any of its evaluations was best."""
        self.console.epoch({**self._epoch, **self._measured, **self._epoch_ends}, "* best" if self._best else "")
        self._measured, self._best = {}, False

    def _write(self, row: Row) -> None:
        self.journal.write(row)
        for listener in self._listeners:
            listener(row)


def _rates(rates: list[float]) -> Row:
    return {"lr" if number == 0 else f"lr/{number}": rate for number, rate in enumerate(rates)}


def _scalars(values: Mapping[str, Any]) -> Row:
    return {name: value for name, value in values.items() if isinstance(value, (int, float))}
