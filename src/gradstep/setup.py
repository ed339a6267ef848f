"""From `fit`'s keywords to the parts of a training: everything chosen and checked, nothing run yet."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from gradstep import heap
from gradstep.clock import Clock
from gradstep.data import BatchFeed, Feed, OwnFeed, OwnOrder, adapt, augmentations
from gradstep.data.workers import shared_memory_note
from gradstep.errors import GradstepError, ModelError, RecipeError, UserCodeError, raised_at
from gradstep.evaluation import choose_device, untouched
from gradstep.finite import Guard, OnNonfinite
from gradstep.keys import kept_streams, key, seed_model
from gradstep.optim.averaging import Average, Averaging
from gradstep.optim.clipping import Clip
from gradstep.optim.freezing import apply_freezing, frozen_at
from gradstep.optim.options import check_groups
from gradstep.optim.replacing import Replaced, replace
from gradstep.plan.asked import Asked
from gradstep.plan.document import Plan
from gradstep.plan.layout import Given, laid_out
from gradstep.plan.proposals import apply, take_apart, threads_of
from gradstep.precision import forward_in, scale_of
from gradstep.scheduling import Scheduled, bind
from gradstep.state import TrainState, bases_of
from gradstep.step import closure_step, step
from gradstep.update import Update

if TYPE_CHECKING:
    from gradstep.plan.passes import Evaluated


@dataclass(slots=True)
class Training:
    """The parts that a loop needs, each in its final form."""

    state: TrainState
    feed: BatchFeed
    update: Update
    schedule: Any  # as given: what an optimizer that takes over is bound to as well
    scheduled: Scheduled
    clip: Clip | None
    guard: Guard
    clock: Clock
    device: torch.device
    precision: str
    asked: Asked
    plan: Plan
    given: Given
    take_step: Callable[..., Any]
    notes: list[str]  # what the user should know, said once
    micro_batch: int | None = None  # as the user says; the plan may choose one for the update
    threads: int | None = None  # that torch computes by on the CPU; None leaves them alone
    evaluated: Evaluated | None = None  # what is evaluated meanwhile, where the plan may look at it
    evaluation_format: str | None = None  # how the weights lie in an evaluation; None: as they do in training
    evaluation_batch: int | None = None  # samples at once in an evaluation; None: as the user says
    trial: bool = False  # whether it is a copy on which a proposal is tried

    def decide(self) -> None:
        """Decides how the batches are taken, on the epoch's first batch and on its last, which may be smaller.

        Always on these, so that a run decides the same when it is resumed.
        """
        feed, update, chosen = self.feed, self.update, self.plan.choices.get("micro_batch")
        take_apart(self, chosen)
        if not isinstance(feed, Feed):
            return
        whole = update.micro_batch is None and update.stat_group is None  # nothing depends on the batch's size then
        numbers = sorted({0, feed.steps_per_epoch - 1})
        with self.training_mode(), kept_streams(self.device):
            for batch in [feed.sample()] if whole else (feed[number] for number in numbers):
                seed_model(self.device, key(self.state.seed, "model"))
                update.decide(*update.unpack(batch))
        self.plan = self.plan.decided(self.update)
        self.notes += [note for note in self.update.notes if note not in self.notes]

    def follow(self, plan: Mapping[str, Any]) -> list[str]:
        """A resumed run takes its steps as its plan.json says, but for what is said by hand: a line for each such."""
        self.plan = self.plan.kept(plan, self.asked)
        method = plan.get("update")
        if "micro_batch" in self.plan.choices:
            self.decide()
        elif self.plan.micro_batches and method in ("accumulate", "two_pass") and method != self.plan.update:
            self.update.method = method
            self.update.found.ways.clear()
            self.decide()
        return [f"plan: {line}, the same to rounding, not bit for bit" for line in self.plan.departures(plan)]

    @contextmanager
    def training_mode(self) -> Iterator[None]:
        """Inside, the model trains; modules that the user froze in evaluation mode stay so. Then all is as it was.

        A model that is as a whole in evaluation mode was left there by an evaluation: all of it trains.
        """
        modules = [
            m
            for each in (self.state.model, self.state.criterion)
            if isinstance(each, nn.Module)
            for m in each.modules()
        ]
        modes = [(module, module.training) for module in modules]
        for root in (self.state.model, self.state.criterion):
            if isinstance(root, nn.Module) and not root.training:
                root.train()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
            self.scheduled.undo(self.state)

    @contextmanager
    def planned(self, own_loop: bool = False) -> Iterator[None]:
        """Inside, what the plan chose is done to the user's objects; afterwards they are as he gave them.

        In an `own_loop` torch's threads are the user's. RecipeError for a switch set by hand that can't be had.
        """
        try:
            undo = apply(self, self.plan.choices)
        except RecipeError as error:
            if self.plan.choices.keys() <= self.asked.given.keys():
                raise
            self.plan = self.plan.chosen(self.asked.given, (), f"what was chosen can't be had any more: {error}")
            self.decide()
            undo = apply(self, self.plan.choices)
        try:
            with nullcontext() if own_loop else threads_of(self):
                yield
        finally:
            undo()
            if self.plan.choices:
                self.given.give_back(self)

    @contextmanager
    def evaluating(self, model: nn.Module) -> Iterator[None]:
        """Inside, this model and the criterion are evaluated; then they are as they were. No place for a signal."""
        with untouched(model, self.state.criterion), laid_out(model, self.evaluation_format):
            yield

    def before_step(self) -> None:
        """What the coming step is made with: the options that are scheduled, and what is frozen until then."""
        if self.scheduled:
            self.scheduled.apply(self.state)
        for group in self.state.optimizer.param_groups:
            if "freeze" in group:
                apply_freezing([group], self.state.step, self.clock)

    def replace_optimizer(self, new: Any) -> Replaced:
        """Goes on with another optimizer, under the same schedule. What it is told of the old one is returned."""
        state, old = self.state, self.state.optimizer
        self.scheduled.undo(state)
        made = _optimizer(new, state.model, state.criterion, [])
        take_step = _taking(made, self.guard, state)
        scheduled = bind(self.schedule, made, self.clock)  # raises before anything has changed
        replaced = replace(old, made, state.model)
        known = list(self.scheduled.plateaus)
        for plateau in scheduled.plateaus:  # one of a rule that was there goes on with what that has seen
            if (same := next((one for one in known if one.rule == plateau.rule), None)) is not None:
                plateau.numbers = known.pop(known.index(same)).numbers
        for group in old.param_groups:  # what was frozen for a time is the new groups' to keep so
            if isinstance(group.get("freeze"), str):
                for parameter in group["params"]:
                    parameter.requires_grad_()
        apply_freezing(made.param_groups, state.step, self.clock)
        state.plateaus = [plateau.numbers for plateau in scheduled.plateaus]
        state.optimizer, state.bases, self.scheduled = made, bases_of(made), scheduled
        self.take_step = take_step
        return replaced


def assemble(
    model: nn.Module,
    criterion: Any,
    train: Any,
    *,
    optimizer: Any,
    epochs: int | None,
    steps: int | None,
    batch_size: int | None,
    drop_last: bool,
    schedule: Any,
    seed: int,
    dropout: str,
    device: str | torch.device,
    precision: str,
    workers: int,
    plan: Any,
    micro_batch: int | None,
    stat_group: int | None,
    clip: Any,
    ema: Any,
    on_nonfinite: Any,
    unpack: Callable[[Any], tuple[Any, Any]] | None,
    forward: Callable[[nn.Module, Any], Any] | None,
) -> Training:
    """Every keyword means what it means in `fit`. Raises UsageError for what can't be trained."""
    asked = Asked.parse(plan)
    for name, value in (("batch_size", batch_size), ("epochs", epochs), ("steps", steps)):
        _whole(name, value, 1)
    _whole("workers", workers, 0)
    _whole("seed", seed, 0)
    yes_or_no("drop_last", drop_last)
    if (epochs is None) == (steps is None):
        raise RecipeError("say how long to train: either epochs or steps" + (", not both." if epochs else "."))
    place = choose_device(device, model)
    heap.keep_freed()
    model.to(place)
    if isinstance(criterion, nn.Module):
        criterion.to(place)
    feed, notes = _feed(train, batch_size, drop_last, seed, workers, place)
    if micro_batch is not None:  # what is to be in memory is said
        if "micro_batch" in asked.given:
            notes.append(f"plan.micro_batch: not used, since micro_batch={micro_batch}.")
        asked = asked.without("micro_batch")
    clock = Clock(feed.steps_per_epoch, steps or (epochs or 0) * feed.steps_per_epoch)
    clipping, averaging = Clip.parse(clip), Averaging.parse(ema)
    made = _optimizer(optimizer, model, criterion, notes)
    scheduled = bind(schedule, made, clock)
    average = _average(averaging, model, clock, notes)
    plateaus = [plateau.numbers for plateau in scheduled.plateaus]
    state = TrainState(model, made, criterion, seed, ema=average, plateaus=plateaus, scale=scale_of(precision, model))
    apply_freezing(made.param_groups, 0, clock)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        frozen = " in its first step" if any("freeze" in group for group in made.param_groups) else ""
        raise ModelError(f"the model has no parameter that requires a gradient{frozen}: there is nothing to train.")
    notes += scheduled.notes + _never_thawed(made, clock)
    guard = Guard(OnNonfinite.parse(on_nonfinite))
    take_step = _taking(made, guard, state)
    update = Update(
        model,
        criterion,
        micro_batch=micro_batch,
        stat_group=stat_group,
        dropout=dropout,
        seed=seed,
        unpack=unpack,
        forward=forward_in(precision, place, forward),
    )
    update.refuses_non_finite = False  # the guard looks at every batch, however it is taken
    return Training(
        state=state,
        feed=feed,
        update=update,
        schedule=schedule,
        scheduled=scheduled,
        clip=clipping,
        guard=guard,
        clock=clock,
        device=place,
        precision=precision,
        asked=asked,
        given=Given(model, made.param_groups),
        plan=Plan.decide(asked, update, place),
        take_step=take_step,
        notes=notes,
        micro_batch=micro_batch,
    )


def _taking(optimizer: Optimizer, guard: Guard, state: TrainState) -> Callable[..., Any]:
    """How the optimizer takes a step: some ask for a closure, as LBFGS does. RecipeError for what that excludes."""
    closure, name = inspect.signature(optimizer.step).parameters.get("closure"), type(optimizer).__name__
    if closure is None or closure.default is not inspect.Parameter.empty:
        return step
    if guard.rule.policy != "stop":
        raise RecipeError(
            f"on_nonfinite: {name} asks for the loss several times in a step, which can't be left out. Write stop."
        )
    if state.scale is not None:
        raise RecipeError(f"precision: {name} searches along a loss that fp16 is too coarse for. Write fp32.")
    return closure_step


def _never_thawed(optimizer: Optimizer, clock: Clock) -> list[str]:
    return [
        f"groups: '{group['name']}' is frozen for {group['freeze']}, and the run has {clock.total} steps: not trained."
        for group in optimizer.param_groups
        if isinstance(group.get("freeze"), str) and frozen_at(group, clock.total - 1, clock)
    ]


def _average(averaging: Averaging | None, model: nn.Module, clock: Clock, notes: list[str]) -> Average | None:
    if averaging is None:
        return None
    if clock.steps(averaging.start) >= clock.total:
        notes.append(
            f"ema: it begins after {averaging.start}, and the run has {clock.total} steps: nothing is averaged."
        )
    try:
        return averaging.of(model, clock)
    except Exception as error:
        what = f"{type(error).__name__}: {error}{raised_at(error)}"
        raise ModelError(f"ema: the model can't be copied for its average: copy.deepcopy raised {what}.") from error


def _whole(name: str, value: Any, least: int) -> None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
        raise RecipeError(f"{name}: {value!r} is not a whole number of at least {least}.")


def yes_or_no(name: str, value: Any) -> bool:
    """The value. RecipeError for what is neither True nor False."""
    if not isinstance(value, bool):
        raise RecipeError(f"{name}: {value!r} is neither True nor False.")
    return value


def _feed(
    train: Any, batch_size: int | None, drop_last: bool, seed: int, workers: int, device: torch.device
) -> tuple[BatchFeed, list[str]]:
    own = OwnFeed.opens(train) or OwnOrder.opens(train)
    if own and (batch_size or drop_last or workers):
        raise RecipeError(
            "batch_size, drop_last and workers are train's own where it gives whole batches: leave them out."
        )
    if OwnFeed.opens(train):
        return OwnFeed(train, device), []
    if own:
        note = "train: whole batches come in their own order; gradstep vouches for its own only."
        return OwnOrder(train, device), [note]
    given = adapt(train, "train")
    if batch_size and given.batch_size and batch_size != given.batch_size:
        raise RecipeError(
            f"batch_size: {batch_size} is asked for, and the DataLoader has {given.batch_size}. Leave one of them out."
        )
    size = batch_size or given.batch_size
    if size is None:
        raise RecipeError("batch_size: say how many samples form one optimizer step, for instance batch_size=64.")
    notes = [given.note] if given.note else []
    processes = workers or given.workers or 0
    if processes and given.source.in_memory:
        notes.append("workers: not used, because the data lies in memory and a batch is one gather.")
    shuffle = True if given.shuffle is None else given.shuffle
    feed = Feed(
        given.source,
        size,
        shuffle=shuffle,
        drop_last=drop_last or bool(given.drop_last),
        seed=seed,
        workers=processes,
        device=device,
        augment=augmentations(given.source),
    )
    if (small := shared_memory_note(feed.source, size, feed.workers)) is not None:
        notes.append(small)
    return feed, notes


def _optimizer(given: Any, model: nn.Module, criterion: Any, notes: list[str]) -> Optimizer:
    """The instance, or what the callable makes of the parameters: the model's, and the criterion's if it has any."""
    own: dict[int, nn.Parameter] = {id(p): p for p in _parameters(model, criterion)}
    if isinstance(given, Optimizer):
        made = given
    elif callable(given):
        try:
            made = given(list(own.values()))
        except GradstepError:
            raise
        except Exception as error:
            raise UserCodeError(
                f"optimizer: making it raised {type(error).__name__}: {error}{raised_at(error)}."
            ) from error
    else:
        made = None
    if not isinstance(made, Optimizer):
        raise RecipeError(
            f"optimizer: {type(given).__name__} is neither a torch optimizer nor a function of the parameters that "
            "makes one, such as lambda parameters: torch.optim.SGD(parameters, lr=0.1)."
        )
    check_groups(made)
    for number, base in enumerate(bases_of(made)):
        for option in ("lr", "momentum", "weight_decay"):  # torch's classes let nan through
            if not 0 <= base.get(option, 0.0) < math.inf:
                raise RecipeError(f"optimizer: the {option} of its group {number} is {base[option]}, no finite number.")
    held = {id(p) for group in made.param_groups for p in group["params"]}
    if not held & set(own):
        raise ModelError("optimizer: it holds no parameter of this model. Was it made for another one, or a copy?")
    if foreign := held - set(own):
        notes.append(f"optimizer: {len(foreign)} of its parameters are neither the model's nor the criterion's.")
    left_out = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in held]
    if left_out:
        notes.append(
            f"optimizer: {len(left_out)} parameters are not in it and stay as they are: {', '.join(left_out[:4])}."
        )
    return made


def _parameters(model: nn.Module, criterion: Any) -> Iterable[nn.Parameter]:
    return chain(model.parameters(), criterion.parameters() if isinstance(criterion, nn.Module) else ())
