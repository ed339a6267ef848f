"""Which proposals a run takes up: each verified in float64 on a shadow of the state, then measured against plain.

All of it may take 2 % of the time that the run is predicted to take, or it is not begun. The run's own objects are not
touched: what is chosen is applied to them when the steps begin, and undone when they end.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gradstep.data import Feed
from gradstep.errors import RecipeError
from gradstep.keys import kept_streams
from gradstep.plan import verdicts
from gradstep.plan.asked import MEASURED, ON_REQUEST
from gradstep.plan.document import Verdict
from gradstep.plan.memory import LOOKS, growth
from gradstep.plan.passes import PASS, Few, passes_apart, take_passes
from gradstep.plan.proposals import PROPOSALS, Proposal, apply
from gradstep.plan.shadow import DeclinedError, Trace, batches_apart, shadow_of, still, take_fed_steps, take_steps
from gradstep.plan.timing import BLOCK, ENOUGH, Raced, race, time_boxed
from gradstep.plan.unfit import is_short, why_no_copies, why_not
from gradstep.plan.verdicts import Remembered

if TYPE_CHECKING:
    from gradstep.setup import Training

SHARE = 0.02  # of the predicted run
_VERIFYING = 6  # steps' time that a verification takes: a few samples, but in float64
_RACING = 20 + 2 * LOOKS  # steps' time that a race takes at least, with the looks at what was found faster
_TIMES, _GRACE = 5, 1.0  # times what a trial was to take, and seconds at least, after which it hangs
_YOURS = ("threads", "graph", "data")  # in a loop of your own
_LEAK = 1000  # bytes a step: a hundred MB in a run of 100,000
_RUN = 8  # steps with their batches that are timed as one: what is begun for them is a part of it
_FIRST = 3  # steps that the first prediction rests on


def choose(
    training: Training,
    known: Sequence[Proposal] = PROPOSALS,
    now: Callable[[], float] = time.perf_counter,
    own_loop: bool = False,
) -> None:
    """Puts what is chosen into `training.plan`, with the reasons. Nothing else of the training is changed.

    In an `own_loop` what is between two steps is the user's. Whatever happens here, the run goes on: at worst plainly.
    """
    asked, plan = training.asked, training.plan
    _refuse_what_is_yours(asked.given, own_loop)
    prove(training, known)
    if MEASURED not in asked.switches.values():
        return
    if (why := why_not(training)) is not None:
        training.plan = plan.chosen(plan.choices, (), "" if is_short(training) else f"nothing was measured: {why}")
        return
    evaluates = training.evaluated is not None
    hidden = _YOURS if own_loop else ()
    fit_for = [p for p in known if (evaluates or not p.evaluates) and p.switch not in hidden]
    try:
        # In the mode that it trains in, whatever mode it was given in: what couples the samples shows there.
        with training.training_mode(), kept_streams(training.device), _unharmed(training):
            key = verdicts.key_of(training, [each.switch for each in fit_for])
            search = _Search(training, fit_for, verdicts.read(key), now)
            found = search.found()
            verdicts.write(key, search.step, found)
        adopted = {verdict.switch: verdict.value for verdict in found if verdict.adopted}
        training.plan = plan.chosen({**plan.choices, **adopted}, found)
        if "micro_batch" in adopted:
            training.decide()  # how batches are taken is another thing now
    except Exception as error:
        told = str(error) if isinstance(error, DeclinedError) else f"{type(error).__name__}: {_first_line(error)}"
        training.plan = plan.chosen(plan.choices, (), f"nothing was measured: {told}")
        training.decide()


class _Search:
    """One search, within its time. What was found in an earlier one is not looked for again."""

    def __init__(
        self, training: Training, known: Sequence[Proposal], before: Remembered, now: Callable[[], float]
    ) -> None:
        self._training, self._known, self._before, self._now = training, known, before, now
        self._left = training.clock.total - training.state.step
        self._began, self.step = now(), before.step  # seconds of a step, as the plan is so far
        self.fetching = 0.0  # seconds that making its batch takes
        self._plain = training  # what a proposal is measured against: a shadow with what is chosen so far

    def found(self) -> list[Verdict]:
        """The verdicts, in the order of the proposals."""
        if self._before.step and not self._worth_it:
            return self._before.verdicts
        self._prepare()
        choices, found = dict(self._training.plan.choices), []
        for proposal in self._open():
            for value in proposal.values(self._plain):
                verdict = self._judged(proposal, value, choices)
                found.append(verdict)
                if verdict.adopted:
                    choices[proposal.switch] = value
                    break
        return found

    @property
    def _worth_it(self) -> bool:
        """Whether anything was adopted, which is verified again in each run, or there is time for what is not known."""
        return any(verdict.adopted for verdict in self._before.verdicts) or any(
            self._before.of(proposal.switch, value) is None and self._needed(proposal) <= self._time
            for proposal in self._open()
            for value in proposal.values(self._training)
        )

    def _open(self) -> list[Proposal]:
        switches = self._training.asked.switches
        return [proposal for proposal in self._known if switches.get(proposal.switch, MEASURED) == MEASURED]

    def _needed(self, proposal: Proposal) -> float:
        """Seconds that a trial takes at least."""
        each = self.step * self._pass if proposal.evaluates else self.step
        if proposal.feeds:
            each = _RUN * (self.step + self.fetching)
        verifying = _VERIFYING * proposal.times * self.step
        return proposal.seconds(self._training) + verifying + _RACING * max(each, BLOCK)

    @property
    def _pass(self) -> float:
        """How many steps an evaluation that is timed takes, at most: its batches may be larger than a step's."""
        evaluated, feed = self._training.evaluated, self._training.feed
        assert evaluated is not None
        assert isinstance(feed, Feed)
        return PASS * max(1.0, evaluated.feed.batch_size / feed.batch_size)

    @property
    def _time(self) -> float:
        """Seconds that are left for measuring."""
        return SHARE * self._left * self.step - (self._now() - self._began)

    def _prepare(self) -> None:
        feed = self._training.feed
        assert isinstance(feed, Feed)
        last = feed.steps_per_epoch - 1  # which may be smaller
        self._batches = [feed[0], feed[last]]
        began = self._now()
        for number in range(1, 1 + _FIRST):
            feed[number]
        self.fetching = (self._now() - began) / _FIRST
        self._timed = self._batches[:1]
        self._traces: dict[tuple[int | None, int], Trace] = {}  # by what they are of, made when they are needed
        self._plain = self._shadow(self._training.plan.choices)
        take_steps(self._plain, self._timed)  # the first one allocates and tunes
        began = self._now()
        take_steps(self._plain, self._timed, _FIRST)
        self.step = (self._now() - began) / _FIRST

    def _judged(self, proposal: Proposal, value: Any, choices: Mapping[str, Any]) -> Verdict:
        """What is remembered is not measured again, but what is adopted is verified beside what is adopted now."""
        known, needed = self._before.of(proposal.switch, value), self._needed(proposal)
        if known is not None and not known.adopted:
            return known
        if proposal.feeds and (share := self.fetching / (self.step + self.fetching)) <= 1 - ENOUGH:
            why = f"making the batch is {share:.0%} of a step's time"
            return Verdict(proposal.switch, value, "declined", why, final=True)
        if known is None and needed > self._time:
            why = f"it takes {needed:.2g} s, and of 2 % of the run {max(self._time, 0.0):.2g} s are left"
            return Verdict(proposal.switch, value, "not tried", why)
        try:
            with time_boxed(max(_TIMES * needed, _GRACE)):
                return self._tried(proposal, value, {**choices, proposal.switch: value}, known)
        except DeclinedError as error:
            return Verdict(proposal.switch, value, "declined", str(error), final=True)
        except Exception as error:  # of a busy machine, perhaps: it is tried again another time
            return Verdict(proposal.switch, value, "declined", f"{type(error).__name__}: {_first_line(error)}")

    def _tried(self, proposal: Proposal, value: Any, with_it: dict[str, Any], known: Verdict | None) -> Verdict:
        other = self._shadow(with_it)
        apart = self._verified(with_it, proposal, other)
        if known is not None:
            self._plain = other
            return known
        raced = self._raced(other, proposal)
        if not (proposal.evaluates or proposal.feeds):
            self.step = min(self.step, raced.seconds)  # what was predicted may have been disturbed, and is shorter now
        ratio = (raced.ratio, raced.low, raced.high)
        if not raced.faster:
            return Verdict(proposal.switch, value, "declined", raced.words(), ratio, final=raced.low > ENOUGH)
        if (leak := self._leak(other, proposal)) > _LEAK:
            why = f"it leaks: memory grows by {leak / 1000:,.0f} KB each time it is taken"
            return Verdict(proposal.switch, value, "declined", why, ratio)
        self._plain = other  # what comes is measured against what is chosen
        why = f"{raced.words()}, {'the same bits' if proposal.feeds else f'{apart:.0e} apart in float64'}"
        return Verdict(proposal.switch, value, "adopted", why, ratio, final=True)

    def _verified(self, choices: Mapping[str, Any], proposal: Proposal, other: Training) -> float:
        kind = proposal.samples(choices[proposal.switch]), proposal.times
        if proposal.feeds:
            return batches_apart(self._training.feed, other.feed)
        if proposal.evaluates:
            return passes_apart(self._training, lambda shadow: apply(shadow, choices, self._known))
        if kind not in self._traces:
            self._traces[kind] = Trace(self._training, self._batches, *kind)
        return self._traces[kind].deviation(lambda shadow: apply(shadow, choices, self._known))

    def _raced(self, other: Training, proposal: Proposal) -> Raced:
        take, plain = self._taking(proposal), self._plain
        began = self._now()
        for shadow in (other, plain):
            take(shadow, 1)
        left = self._time - LOOKS * (self._now() - began)  # which is what the looks for leaks may take
        # Half of it: what is hard to tell leaves some for those that come.
        return race(lambda count: take(other, count), lambda count: take(plain, count), left / 2, self._now)

    def _leak(self, other: Training, proposal: Proposal) -> int:
        """Bytes that it leaves more than plain does: the user's own may grow too."""
        take, plain, device = self._taking(proposal), self._plain, self._training.device
        more = growth(lambda count: take(other, count), device)
        return more - growth(lambda count: take(plain, count), device) if more > _LEAK else 0

    def _taking(self, proposal: Proposal) -> Callable[[Training, int], None]:
        """What is timed, and how often."""
        if proposal.evaluates:
            return lambda shadow, count: take_passes(shadow, self._few, count)
        if proposal.feeds:
            return lambda shadow, count: take_fed_steps(shadow, _RUN * count)
        return lambda shadow, count: take_steps(shadow, self._timed, count)

    @functools.cached_property
    def _few(self) -> Few:
        """What is evaluated, read when it is first needed."""
        assert self._training.evaluated is not None
        return Few(self._training.evaluated)

    def _shadow(self, choices: Mapping[str, Any]) -> Training:
        shadow = still(shadow_of(self._training))
        apply(shadow, choices, self._known)
        return shadow


def _refuse_what_is_yours(given: Mapping[str, Any], own_loop: bool) -> None:
    """RecipeError for a switch by hand that would take from the user what is his between two steps of his own loop."""
    if own_loop and "threads" in given:
        raise RecipeError("plan.threads: between two steps of your own loop they are yours: torch.set_num_threads(1).")
    if own_loop and "graph" in given:
        raise RecipeError(
            "plan.graph: between two steps of your own loop all is yours to change, which a graph would "
            "not see. Write off, or take fit."
        )


def prove(training: Training, known: Sequence[Proposal] = PROPOSALS) -> None:
    """RecipeError for a switch by hand that is not the same step, where that would fail silently: a graph's."""
    for proposal in known:
        if proposal.switch in ON_REQUEST and proposal.switch in training.asked.given:
            _prove(training, proposal, known)


def _prove(training: Training, proposal: Proposal, known: Sequence[Proposal]) -> None:
    given, feed = training.asked.given, training.feed
    why = why_no_copies(training)
    try:
        with training.training_mode(), kept_streams(training.device), _unharmed(training):
            if why is None and isinstance(feed, Feed):
                batches = [feed[0], feed[feed.steps_per_epoch - 1]]
                trace = Trace(training, batches, proposal.samples(given[proposal.switch]), proposal.times)
                trace.deviation(lambda shadow: apply(shadow, given, known))
    except RecipeError:
        raise
    except Exception as error:
        why = _first_line(error)
    if why is not None:
        raise RecipeError(f"plan.{proposal.switch}: {given[proposal.switch]} can't be had here ({why}). Write off.")


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
    changed = False
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, version, copy, gradient in kept:
                if tensor._version != version:
                    tensor.copy_(copy)
                    changed = True
                if tensor.grad is not gradient:
                    tensor.grad, changed = gradient, True
    if changed:
        raise DeclinedError("a function of yours holds the model itself, so that no copy of it can be tried")
