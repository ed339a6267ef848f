"""Which proposals a run takes up: each verified in float64 on a shadow of the state, then measured against plain.

All of it may take 2 % of the time that the run is predicted to take, or it is not begun. The run's own objects are not
touched: what is chosen is applied to them when the steps begin, and undone when they end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gradstep.data import Feed
from gradstep.keys import kept_streams
from gradstep.plan import proposals, verdicts
from gradstep.plan.asked import MEASURED
from gradstep.plan.document import Verdict
from gradstep.plan.proposals import PROPOSALS, Proposal
from gradstep.plan.shadow import DeclinedError, Trace, shadow_of, still, take_steps
from gradstep.plan.timing import Raced, race

if TYPE_CHECKING:
    from gradstep.setup import Training

SHARE = 0.02  # of the predicted run
_FEWEST = 1000  # steps: a shorter run is over before anything could be found out in 2 % of it
_VERIFYING = 6  # steps' time that a verification takes: a few samples, but in float64
_RACING = 20  # steps' time that a race takes at least
_TWICE = 3  # steps that the first prediction rests on


def choose(
    training: Training, known: tuple[Proposal, ...] = PROPOSALS, now: Callable[[], float] = time.perf_counter
) -> None:
    """Puts what is chosen into `training.plan`, with the reasons. Nothing else of the training is changed."""
    asked, plan = training.asked, training.plan
    if MEASURED not in asked.switches.values():
        return
    left = training.clock.total - training.state.step
    why_not = _why_not(training, left)
    if why_not is not None:
        training.plan = plan.chosen(plan.choices, (), f"nothing was measured: {why_not}")
        return
    key = verdicts.key_of(training)
    before = verdicts.read(key)
    if before is not None:
        training.plan = plan.chosen(
            {**plan.choices, **_adopted(before)}, before, "measured in an earlier run of the same"
        )
        return
    try:
        with kept_streams(training.device), _unharmed(training):
            found, whole = _Search(training, known, left, now).found()
    except DeclinedError as error:
        training.plan = plan.chosen(plan.choices, (), f"nothing was measured: {error}")
        return
    training.plan = plan.chosen({**plan.choices, **_adopted(found)}, found)
    if whole:
        verdicts.write(key, found)


def _adopted(found: list[Verdict]) -> dict[str, Any]:
    return {verdict.switch: verdict.value for verdict in found if verdict.adopted}


def _why_not(training: Training, left: int) -> str | None:
    if left < _FEWEST:
        return f"in 2 % of {left} steps nothing can be found out"
    if not isinstance(training.feed, Feed):
        return "the batches can't be asked for twice"
    for root in (training.state.model, training.state.criterion):
        for name, module in root.named_modules() if isinstance(root, nn.Module) else ():
            if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
                return f"'{name or 'the model'}' has hooks, which would be called for steps that are none"
    return None


class _Search:
    """One search, within its time."""

    def __init__(self, training: Training, known: tuple[Proposal, ...], left: int, now: Callable[[], float]) -> None:
        self._training, self._known, self._now, self._began = training, known, now, now()
        feed = training.feed
        assert isinstance(feed, Feed)
        numbers = {0: None, feed.steps_per_epoch - 1: None}  # the last one of an epoch may be smaller
        self._batches = [feed[number] for number in numbers]
        self._timed = self._batches[:1]
        plain = self._shadow(training.plan.choices)
        take_steps(plain, self._timed)  # the first one allocates and tunes
        began = now()
        take_steps(plain, self._timed, _TWICE)
        self._step = (now() - began) / _TWICE
        self._left = left
        self._plain = plain
        self._traces: dict[int | None, Trace] = {}  # by the samples that they are of, made when they are needed
        self._whole = True  # whether all was tried: only then is it worth remembering

    def found(self) -> tuple[list[Verdict], bool]:
        """The verdicts in the order of the proposals, and whether there was time for all of them."""
        choices, found = dict(self._training.plan.choices), []
        for proposal in self._known:
            if self._training.asked.switches.get(proposal.switch, MEASURED) != MEASURED:
                continue
            for value in proposal.values(self._plain):
                verdict = self._tried(proposal, value, choices)
                found.append(verdict)
                if verdict.adopted:
                    choices[proposal.switch] = value
                    break
        return found, self._whole

    def _tried(self, proposal: Proposal, value: Any, choices: Mapping[str, Any]) -> Verdict:
        needed = proposal.seconds + (_VERIFYING + _RACING) * self._step
        left = SHARE * self._left * self._step - (self._now() - self._began)
        if needed > left:
            self._whole = False
            why = f"not tried: it takes {needed:.2g} s, and of 2 % of the run {max(left, 0.0):.2g} s are left"
            return Verdict(proposal.switch, value, False, why)
        with_it = {**choices, proposal.switch: value}
        try:
            apart = self._verified(with_it, proposal.samples)
            raced, other = self._raced(with_it, left)
        except Exception as error:  # whatever a proposal does, the run goes on as it would have gone without it
            why = str(error) if isinstance(error, DeclinedError) else f"{type(error).__name__}: {_first_line(error)}"
            return Verdict(proposal.switch, value, False, why)
        self._step = min(self._step, raced.seconds)  # what was predicted may have been disturbed, and is shorter now
        ratio = (raced.ratio, raced.low, raced.high)
        if not raced.faster:
            return Verdict(proposal.switch, value, False, raced.words(), ratio)
        self._plain = other  # what comes is measured against what is chosen
        return Verdict(proposal.switch, value, True, f"{raced.words()}, {apart:.0e} apart in float64", ratio)

    def _verified(self, choices: Mapping[str, Any], samples: int | None) -> float:
        if samples not in self._traces:
            self._traces[samples] = Trace(self._training, self._batches, samples)
        return self._traces[samples].deviation(lambda shadow: proposals.apply(shadow, choices, self._known))

    def _raced(self, choices: Mapping[str, Any], left: float) -> tuple[Raced, Training]:
        other = self._shadow(choices)
        take_steps(other, self._timed, 2)
        raced = race(
            lambda count: take_steps(other, self._timed, count),
            lambda count: take_steps(self._plain, self._timed, count),
            left,
            self._now,
        )
        return raced, other

    def _shadow(self, choices: Mapping[str, Any]) -> Training:
        shadow = still(shadow_of(self._training))
        proposals.apply(shadow, choices, self._known)
        return shadow


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else "without a word"


@contextmanager
def _unharmed(training: Training) -> Iterator[None]:
    """DeclinedError where what was tried on shadows has changed the training itself, which is put back.

    A function of the user's may hold the model itself, and not the one it is given.
    """
    state = training.state
    roots = [root for root in (state.model, state.criterion) if isinstance(root, nn.Module)]
    own: list[Tensor] = [t for root in roots for t in (*root.parameters(), *root.buffers())]
    kept = [(tensor, tensor._version, tensor.detach().clone(), tensor.grad) for tensor in own]
    yield
    changed = False
    with torch.no_grad():
        for tensor, version, copy, gradient in kept:
            if tensor._version != version:
                tensor.copy_(copy)
                changed = True
            if tensor.grad is not gradient:
                tensor.grad, changed = gradient, True
    if changed:
        raise DeclinedError("a function of yours holds the model itself, so that no copy of it can be tried")
