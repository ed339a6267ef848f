"""Which evaluation is the best so far, and whether it is time to stop: pure rules over a few numbers of the state."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gradstep.clock import Clock, Duration
from gradstep.errors import RecipeError, nearest
from gradstep.schedules import Plateau
from gradstep.state import Standing


@dataclass(frozen=True, slots=True)
class Patience:
    """When to give up: after `without_best` without a new best, or after more than `falls` falls in a row."""

    without_best: Duration | None = None
    falls: int | None = None

    @classmethod
    def parse(cls, given: Any) -> Patience | None:
        """`"3 epochs"`, or `{"falls": 1}`: stop at the second evaluation in a row worse than the one before it."""
        if given is None or isinstance(given, Patience):
            return given
        if isinstance(given, Mapping) and set(given) == {"falls"} and type(given["falls"]) is int:
            if given["falls"] < 0:
                raise RecipeError(f"patience: {given['falls']} falls can't be waited for; 0 stops at the first.")
            return cls(falls=given["falls"])
        if isinstance(given, (str, Duration)):
            return cls(without_best=Duration.positive(given, "patience"))
        raise RecipeError(f"patience: {given!r} is neither a duration such as '3 epochs' nor {{falls: 1}}.")


@dataclass(frozen=True, slots=True)
class Monitor:
    """The metric that chooses the best, under its full name such as `valid/accuracy`."""

    name: str
    higher: bool

    @classmethod
    def parse(
        cls, given: Any, metrics: list[str], higher_is_better: Callable[[str], bool | None], where: str = "monitor"
    ) -> Monitor:
        """A name, or `{"name": ..., "mode": "min" | "max"}`; nothing is the first metric that knows, else the loss.

        `metrics` are the names that an evaluation gives, `loss` among them, without `valid/`.
        """
        if isinstance(given, Mapping):
            for part in given:
                if part not in ("name", "mode"):
                    hint = nearest(str(part), ["name", "mode"])
                    raise RecipeError(f"monitor: there is no '{part}'; there are name and mode.{hint}")
            if "name" not in given:
                raise RecipeError("monitor: say the name too, as in {name: valid/loss, mode: min}.")
        name, mode = (given["name"], given.get("mode")) if isinstance(given, Mapping) else (given, None)
        if name is None:
            name = next((n for n in metrics if higher_is_better(n) is not None), "loss")
        short = str(name).removeprefix("valid/")
        if short not in metrics:
            names = [f"valid/{n}" for n in metrics]
            raise RecipeError(
                f"{where}: there is no '{name}'; there are {', '.join(names)}.{nearest(str(name), names)}"
            )
        if mode not in (None, "min", "max"):
            raise RecipeError(f"monitor.mode: {mode!r} is neither min nor max.")
        higher = {"min": False, "max": True, None: False if short == "loss" else higher_is_better(short)}[mode]
        if higher is None:
            raise RecipeError(
                f"{where}: whether more or less of '{short}' is better can't be told from it. "
                f"Write {{name: valid/{short}, mode: min}} or mode: max."
            )
        return cls(f"valid/{short}", higher)

    @property
    def short(self) -> str:
        return self.name.removeprefix("valid/")


def gone_by(
    plateau: Plateau, monitor: Monitor | None, metrics: list[str], higher: Callable[[str], bool | None]
) -> Monitor:
    """The metric that a schedule goes by: its own, else the one that chooses the best."""
    if monitor is None:
        raise RecipeError("schedule: it goes by the validation, and there is no valid= data.")
    if plateau.metric is None and plateau.mode is None:
        return monitor
    named = {"name": plateau.metric or monitor.name, "mode": plateau.mode}
    return Monitor.parse(named, metrics, higher, where="schedule.metric")


def judge(
    standing: Standing, monitor: Monitor, patience: Patience | None, value: float, step: int, clock: Clock
) -> bool:
    """Takes in one evaluation and says whether it is the best so far: strictly better, and never a nan.

    When patience has run out, `standing.stopped` says so.
    """
    sign = 1 if monitor.higher else -1
    improved = not math.isnan(value) and (standing.best is None or sign * value > sign * standing.best)
    if improved:
        standing.best, standing.best_step = value, step
    fell = standing.previous is not None and sign * value < sign * standing.previous
    standing.falls = standing.falls + 1 if fell else 0
    standing.previous = None if math.isnan(value) else value
    if patience is None:
        return improved
    if patience.falls is not None and standing.falls > patience.falls:
        standing.stopped = f"{monitor.name} fell {standing.falls} times in a row"
    if patience.without_best is not None:
        since = step - (standing.best_step or 0)
        if since >= clock.steps(patience.without_best):
            standing.stopped = f"{monitor.name} has not improved for {patience.without_best}"
    return improved
