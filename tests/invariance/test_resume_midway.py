"""A run that pauses at every step, or hears a signal in every evaluation, ends as one that ran through: bit for bit.

Nothing is killed here, so each place that a run can be gone on from is met for certain, and quickly.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import gradstep
from gradstep import Request
from tests.killing import RECIPE, SCENARIOS, train, what_is_left

BRIEF = {"plateau, best, early stop": {"epochs": 4}, "the end within an epoch, groups that thaw": {"steps": 12}}
CASES = [(name, BRIEF.get(name, {"epochs": 2})) for name in SCENARIOS]
CASES += [("Adam, average, cosine", {"epochs": 2, "dropout": "stream"})]


def until_its_end(go: Callable[[], gradstep.Run]) -> tuple[gradstep.Run, int]:
    """The run at its end, and how often it was paused."""
    for pauses in range(60):
        run = go()
        if run.paused is None:
            return run, pauses
    pytest.fail("it comes to no end")


class PauseAtEveryStep:
    def on_train_batch_end(self, state: Any, outcome: Any) -> Request:
        return Request.PAUSE


@pytest.mark.parametrize(("scenario", "changes"), CASES)
def test_paused_at_every_step_and_resumed_is_as_never_paused(
    tmp_path: Path, scenario: str, changes: dict[str, Any]
) -> None:
    whole = train(scenario, tmp_path / "whole", **changes)
    run, pauses = until_its_end(lambda: train(scenario, tmp_path / "cut", (PauseAtEveryStep(),), **changes))
    assert pauses >= whole.state.step - 1
    expected, left = what_is_left(whole.path), what_is_left(run.path)
    assert {name: value for name, value in left.items() if expected.get(name) != value} == {}
    assert left.keys() == expected.keys()
    assert (run.best, run.stopped, run.state.left_out) == (whole.best, whole.stopped, whole.state.left_out)


class SignalWhileEvaluating:
    """Two of three evaluations send their own process a SIGTERM while they are under way.

    So the end of a step is cut short, cut short once more where the run comes by it again, and then goes through.
    """

    def __init__(self) -> None:
        self.begun, self.evaluated = 0, -1  # evaluations; the step of the last one
        self.state: Any = None  # nobody listens before there is one, while the metrics are tried out

    def on_train_start(self, state: Any, about: Any) -> None:
        self.state, self.evaluated = state, -1

    def mean(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """A metric."""
        if self.state is not None and not self.state.model.training and self.evaluated != self.state.step:
            self.evaluated, self.begun = self.state.step, self.begun + 1
            if self.begun % 3:
                self.state = None
                os.kill(os.getpid(), signal.SIGTERM)
        return outputs.mean()


@pytest.mark.parametrize("every", ["2 steps", "1 epoch"])
def test_a_signal_in_any_evaluation_leaves_the_rest_of_its_step_to_the_resume(tmp_path: Path, every: str) -> None:
    """The evaluations are within epochs, at an epoch's end, and after the last step."""
    document = {**RECIPE, **SCENARIOS["momentum, dropout, augmentation"], "epochs": None, "steps": 7}

    def go(out: Path, hooks: tuple[Any, ...], mean: Any) -> gradstep.Run:
        arguments = gradstep.build(gradstep.Recipe.parse({**document, "evaluate_every": every})).arguments
        # A function of its own, because metrics are copied, and a copied method has a copy of its object.
        own = {"metrics": {"mean": lambda *given: mean(*given)}, "monitor": "valid/loss", "hooks": hooks}
        return gradstep.fit(**{**arguments, **own}, out=out, name="run", resume=True)

    whole = go(tmp_path / "whole", (), lambda outputs, targets: outputs.mean())
    hook = SignalWhileEvaluating()
    run, pauses = until_its_end(lambda: go(tmp_path / "cut", (hook,), hook.mean))
    assert pauses == 2 * [row["kind"] for row in whole.history].count("valid")
    assert what_is_left(run.path) == what_is_left(whole.path)
