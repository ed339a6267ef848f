"""The moving average of the weights (EMA): torch's AveragedModel, begun and used as one word says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gradstep.clock import Clock, Duration
from gradstep.errors import RecipeError, nearest

_KEYS = ("decay", "start", "evaluate")
_AT_ONCE = Duration(0, "step")


@dataclass(frozen=True, slots=True)
class Averaging:
    """After each step: average ← decay · average + (1 − decay) · weights.

    It begins with the weights after the first step past `start`. Where `evaluate` is true the averaged weights are
    those that are validated, tested, chosen and written as the weights to use; else they are only kept in checkpoints.
    """

    decay: float
    start: Duration = _AT_ONCE
    evaluate: bool = True

    @classmethod
    def parse(cls, given: Any) -> Averaging | None:
        """`0.999`, `{"decay": 0.999, "start": "1 epoch", "evaluate": True}`, or None. RecipeError for anything else."""
        if given is None or isinstance(given, Averaging):
            return given
        options = dict(given) if isinstance(given, Mapping) else {"decay": given}
        for key in options:
            if key not in _KEYS:
                hint = nearest(str(key), _KEYS)
                raise RecipeError(f"ema: there is no '{key}'; there are decay, start, evaluate.{hint}")
        decay = options.get("decay", 0.999)
        if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0 < decay < 1:
            raise RecipeError(f"ema.decay: {decay!r} is not between 0 and 1, as 0.999 is.")
        evaluate = options.get("evaluate", True)
        if not isinstance(evaluate, bool):
            raise RecipeError(f"ema.evaluate: {evaluate!r} is neither True nor False.")
        return cls(float(decay), Duration.parse(options.get("start", "0 steps"), "ema.start"), evaluate)

    def of(self, model: nn.Module, clock: Clock) -> Average:
        """The average of a model's weights, not begun yet."""
        averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(self.decay))
        averaged.requires_grad_(False)
        return Average(averaged, self.decay, clock.steps(self.start), self.evaluate)


@dataclass(slots=True)
class Average:
    """A model's averaged twin. Its buffers are the model's latest: they are statistics, and are not averaged."""

    averaged: AveragedModel
    decay: float
    start: int  # steps
    evaluate: bool

    @property
    def module(self) -> nn.Module:
        module: nn.Module = self.averaged.module
        return module

    def update(self, model: nn.Module, step: int) -> None:
        """Takes in the weights after `step` steps."""
        if self.begun(step):
            self.averaged.update_parameters(model)

    def begun(self, step: int) -> bool:
        """Whether there is an average after `step` steps."""
        return step > self.start

    def resume(self, step: int) -> None:
        """The module's weights were loaded as they were after `step` steps: how many it is of is a function of that."""
        self.averaged.n_averaged.fill_(max(step - self.start, 0))
