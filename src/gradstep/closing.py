"""A run at its end: what is handed back, and what is said of it."""

from __future__ import annotations

from typing import Any

from gradstep.clock import Clock
from gradstep.keeper import Keeper
from gradstep.record import Journal
from gradstep.run import Best, Run
from gradstep.rundir import RunDir
from gradstep.setup import Training
from gradstep.watching import Watching


def run_of(
    training: Training, watching: Watching, place: RunDir | None, journal: Journal, paused: str | None, keeper: Keeper
) -> Run:
    """The run as it is handed back."""
    state, monitor = training.state, watching.monitor
    standing, source = state.standing, getattr(training.feed, "source", None)
    best = None
    if monitor is not None and standing.best is not None and standing.best_step is not None:
        best = Best(monitor.name, standing.best, standing.best_step)
    return Run(
        model=state.model,
        history=journal.rows,
        best=best,
        state=state,
        path=place.path if place else None,
        stopped=standing.stopped,
        paused=paused,
        classes=source.classes if source is not None else None,
        transforms=source.transforms if source is not None else (),
        unpack=training.update.unpack,
        forward=training.update.forward,
        chosen_weights={} if paused else keeper.chosen(state),
    )


def closing_lines(run: Run, clock: Clock, place: RunDir | None) -> list[str]:
    """The last lines on the console."""
    lines, best = [], run.best
    assert run.state is not None
    step = run.state.step
    if run.paused is not None:
        lines.append(f"paused    after step {step} of {clock.total}: {run.paused}")
    if run.state.left_out:
        some = ", ".join(str(at + 1) for at in run.state.left_out[:5])
        lines.append(f"left out  {len(run.state.left_out)} steps whose loss or gradient was no number: {some}")
    if run.stopped:
        lines.append(f"stopped   early after step {step}: {run.stopped}")
    if best is not None:
        at = f"epoch {clock.epoch(best.step - 1)}, step {best.step}"
        lines.append(f"best      {best.metric} {best.value:.4f} at {at}")
    if place is not None:
        if run.paused is None:
            lines.append(f"saved     {place.weights}  (the {'best' if best else 'last'} weights)")
        label = "saved" if run.paused else ""
        lines.append(f"{label:<10}{place.checkpoints}/  {place.metrics}")
    return lines


def where(step: int, clock: Clock) -> str:
    """Where in the run `step` finished steps are."""
    if not step:
        return "from the very start: no step had been made"
    batch = clock.batch(step)
    within = f", batch {batch} of {clock.steps_per_epoch}" if batch else ""
    return f"after step {step}, epoch {clock.epoch(step - 1)}{within}"


def shown(values: dict[str, Any]) -> list[str]:
    """The numbers of an evaluation for people; a matrix is left out."""
    return [f"{name} {value:.4f}" for name, value in values.items() if isinstance(value, float)]
