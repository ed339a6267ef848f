"""What may make a step faster without changing it. Each is applied to a training, or to a shadow of one, and undone.

None of them is believed: `choosing` verifies each on a shadow in float64, and measures it.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gradstep import graphs
from gradstep.data import Feed
from gradstep.data.decoding import own_cores
from gradstep.errors import RecipeError
from gradstep.module_state import layouts
from gradstep.optim import SGD
from gradstep.plan.layout import images_of, lay_out_slots, put_back, put_channels_last
from gradstep.step import step
from gradstep.update.denominators import is_mean
from gradstep.update.update import Found

if TYPE_CHECKING:
    from gradstep.setup import Training

Undo = Callable[[], None]
_FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad, SGD)
_FEWEST = 32  # samples in a micro-batch: in smaller ones kernels have too little to do


@dataclass(frozen=True, slots=True)
class Proposal:
    """A switch, what it may be worth setting it to, and how that is done.

    `values` gives what to try on a training, the most promising first, nothing where there is nothing in it for it.
    `apply` sets the switch and returns what undoes that; it may raise. `seconds` is what it costs beside steps.
    `samples` is how many of a batch show whether a value changes what is computed; None: all of them; `times` is how
    often each batch must be taken for that. With `evaluates` it is a pass without gradients that it may make faster,
    and not a step; with `feeds` it is the step with the making of its batch.
    """

    switch: str
    values: Callable[[Training], list[Any]]
    apply: Callable[[Training, Any], Undo]
    seconds: Callable[[Training], float] = lambda training: 0.0  # noqa: ARG005
    samples: Callable[[Any], int | None] = lambda value: 16  # noqa: ARG005
    times: int = 1
    evaluates: bool = False
    feeds: bool = False


def apply(training: Training, choices: Mapping[str, Any], proposals: Sequence[Proposal] | None = None) -> Undo:
    """Sets all switches of `choices`, and returns what undoes them. RecipeError for one that can't be set here."""
    known = {proposal.switch: proposal for proposal in (PROPOSALS if proposals is None else proposals)}
    undoing = ExitStack()
    for switch, value in choices.items():
        try:
            undoing.callback(known[switch].apply(training, value))
        except Exception as error:
            undoing.close()
            what = str(error).splitlines()[0] if str(error) else ""
            raise RecipeError(
                f"plan.{switch}: {value} can't be had here ({type(error).__name__}: {what}). Write off."
            ) from error
    return undoing.close


def _roots(training: Training) -> Iterator[nn.Module]:
    state = training.state
    yield state.model
    if state.ema is not None:
        yield state.ema.module


def _with_images(training: Training) -> list[Any]:
    """Where there are convolutions, and nobody else has their memory: flat vectors, other processes, tied weights."""
    model = training.state.model
    if layouts(model) or not any(isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)) for m in model.modules()):
        return []
    images = images_of(model)
    alone = all(each.untyped_storage().nbytes() == each.nbytes and not each.is_shared() for each in images)
    return ["channels_last"] if alone and len({each.data_ptr() for each in images}) == len(images) else []


def _to_channels_last(training: Training, value: Any) -> Undo:  # noqa: ARG001
    kept: list[tuple[Tensor, Tensor]] = []

    def undo() -> None:
        put_back(kept)
        lay_out_slots(training)

    try:
        put_channels_last(_roots(training), kept)
        lay_out_slots(training)
    except BaseException:
        undo()
        raise
    return undo


def _pieces(training: Training) -> list[Any]:
    """Parts of a large batch: what the forward leaves for the backward may then still be in the cache.

    Where there is BatchNorm, frozen for now or not, what its statistics are of is the user's to say.
    """
    update, feed = training.update, training.feed
    said = update.stat_group is not None or any(isinstance(m, _BatchNorm) for m in training.state.model.modules())
    if said or not isinstance(feed, Feed) or training.device.type != "cpu":
        return []
    return [part for part in (feed.batch_size // 4, feed.batch_size // 16) if part >= _FEWEST]


def take_apart(training: Training, chosen: int | None) -> None:
    """Has the update accumulate its batches from micro-batches that the plan chose, and in no other way: where that is
    not exact, it raises. None: it takes them as the user says."""
    update, chosen_now = training.update, training.update.micro_batch != training.micro_batch
    if chosen is not None and (update.micro_batch, update.method) != (chosen, "accumulate"):
        update.micro_batch, update.method, update.found = chosen, "accumulate", Found()
    elif chosen is None and chosen_now:
        update.micro_batch, update.method, update.found = training.micro_batch, "auto", Found()


def _take_apart(training: Training, value: Any) -> Undo:
    """Undone in a shadow alone: the run's own update is as `Training.decide` left it, which knows the choices."""
    if training.update.micro_batch == value:
        return lambda: None
    take_apart(training, value)
    return lambda: take_apart(training, None)


def _with_a_kernel_for_all(training: Training) -> list[Any]:
    """`fused` goes through all parameters in one kernel; where there is none, `foreach` at least in one call."""
    optimizer = training.state.optimizer
    groups = optimizer.param_groups
    if any(group.get(each) for group in groups for each in ("fused", "foreach", "differentiable")):
        return []
    held = [parameter for group in groups for parameter in group["params"]]
    if not all(p.is_floating_point() and p.device.type in ("cpu", "cuda", "mps") for p in held):
        return []
    if type(optimizer) in _FUSED:
        return ["fused"]
    own = type(optimizer).__module__.startswith("torch.optim.")  # of a class of the user's, `foreach` may be anything
    return ["foreach"] if own and all("foreach" in group for group in groups) else []


def _take_all_at_once(training: Training, value: Any) -> Undo:
    groups = training.state.optimizer.param_groups
    before = [(group, group[value]) for group in groups]
    for group in groups:
        group[value] = True
    if value == "fused":
        _put_counts(training, there=True)

    def undo() -> None:
        for group, was in before:
            group[value] = was
        if value == "fused" and not all(was for _, was in before):
            _put_counts(training, there=False)

    return undo


def _put_counts(training: Training, *, there: bool) -> None:
    """Adam's count of steps lies on the device for a fused kernel, and else on the host, where reading it waits for
    nobody."""
    for parameter, slots in training.state.optimizer.state.items():
        count = slots.get("step") if isinstance(parameter, Tensor) and isinstance(slots, dict) else None
        if isinstance(count, Tensor) and parameter.device.type == "cuda":
            slots["step"] = count.to(parameter.device if there else "cpu", torch.float32)


def _replayable(training: Training) -> list[Any]:
    """Where a device keeps graphs, and the user has not said how the optimizer is to go through the parameters."""
    state, groups = training.state, training.state.optimizer.param_groups
    said = any(group.get(each) for group in groups for each in ("foreach", "differentiable"))
    why = graphs.why_not(state, training.update, training.guard, training.device)
    return ["step"] if training.take_step is step and not said and why is None else []


def _replay(training: Training, value: Any) -> Undo:  # noqa: ARG001
    """Steps by a graph of their kernels, in which the fused optimizer's are: they read the rate from memory."""
    before, state, make = training.take_step, training.state, graphs.keeper_of(training.device)
    why = graphs.why_not(state, training.update, training.guard, training.device)
    if not training.trial and any(parameter.dtype == torch.float64 for parameter in state.trained()):
        why = "a rate is read as float32, which is too coarse for parameters in float64"
    if why is not None or make is None:
        raise RuntimeError(why)
    undo_fused = _take_all_at_once(training, "fused")
    training.take_step = graphs.GraphedSteps(make(training.device), strict=training.trial)

    def undo() -> None:
        training.take_step = before
        undo_fused()

    return undo


def _fewer_threads(training: Training) -> list[Any]:
    """One, where there are more: never more than torch was given."""
    return [1] if training.device.type == "cpu" and torch.get_num_threads() > 1 else []


def _set_threads(training: Training, value: Any) -> Undo:
    before, training.threads = training.threads, value

    def undo() -> None:
        training.threads = before

    return undo


@contextmanager
def threads_of(training: Training) -> Iterator[None]:
    """Inside, torch computes by as many threads as the training's plan says."""
    before = torch.get_num_threads()
    if training.threads in (None, before):
        yield
        return
    torch.set_num_threads(training.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _kept_or_ahead(training: Training) -> list[Any]:
    """Data in memory: on a CUDA device with room for all of them four times; else, or on a CPU, made by a thread."""
    feed, device = training.feed, training.device
    if not isinstance(feed, Feed) or not feed.is_pure:
        return []
    cuda = device.type == "cuda"
    beside = cuda or (device.type == "cpu" and own_cores() > 1 and not feed.pipeline.empty)
    return ["resident"] * (cuda and _has_room(feed)) + ["ahead"] * beside


def _has_room(feed: Feed) -> bool:
    return feed.device.type == "cuda" and 4 * feed.nbytes <= torch.cuda.mem_get_info(feed.device)[0]


def _copying(training: Training) -> float:
    """Seconds that putting all samples on a device takes, for the trial and for the run."""
    feed = training.feed
    return 2e-9 * feed.nbytes if isinstance(feed, Feed) and training.device.type == "cuda" else 0.0


def _feed_by(training: Training, value: Any) -> Undo:
    before = training.feed
    if not isinstance(before, Feed):
        raise TypeError("whole batches come as their owner makes them")
    if before.device.type not in ("cpu", "cuda"):
        raise RuntimeError(f"{before.device.type} is not to be asked by two threads, nor for its free memory")
    if value == "ahead":
        training.feed = before.ahead()
    elif before.device.type == "cuda":  # in a CPU's memory they are already
        if not before.is_there and not _has_room(before):
            raise RuntimeError(f"{4 * before.nbytes / 1e9:.1f} GB, four times the data, are not free")
        training.feed = before.resident()

    def undo() -> None:
        training.feed = before

    return undo


def _lay_out_for_evaluations(training: Training, value: Any) -> Undo:
    before, training.evaluation_format = training.evaluation_format, value

    def undo() -> None:
        training.evaluation_format = before

    return undo


def _joined(training: Training) -> list[Any]:
    """Four batches of an evaluation at once, where they are no larger than a step's: they leave no graph in memory."""
    evaluated, feed = training.evaluated, training.feed
    if evaluated is None or training.micro_batch is not None or not isinstance(feed, Feed):
        return []
    fits = evaluated.feed.batch_size <= feed.batch_size and evaluated.feed.steps_per_epoch >= 4
    means = evaluated.counts and is_mean(training.state.criterion)
    return [4 * evaluated.feed.batch_size] if fits and means else []


def _evaluate_at_once(training: Training, value: Any) -> Undo:
    before, training.evaluation_batch = training.evaluation_batch, value

    def undo() -> None:
        training.evaluation_batch = before

    return undo


def _compilable(training: Training) -> list[Any]:  # noqa: ARG001
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    return ["model"] if compiler is not None else []


def _compiling(training: Training) -> float:  # noqa: ARG001
    """Seconds that a small net's compilation takes on two cores, its verification's included."""
    return 60.0


def _compile(training: Training, value: Any) -> Undo:  # noqa: ARG001
    update, model = training.update, training.state.model
    before, given = update.forward, update.forward
    run: Any = torch.compile(model if given is None else functools.partial(given, model))

    def forward(asked: nn.Module, inputs: Any) -> Any:
        """Compiled where it trains; an evaluation may be of another model, such as an average."""
        nonlocal run
        if run is not None and asked is model and model.training:
            try:
                return run(inputs)
            except Exception:  # a batch that it can't take, or a compiler that is gone: from here on plainly
                run = None
        return asked(inputs) if given is None else given(asked, inputs)

    update.forward = forward

    def undo() -> None:
        update.forward = before

    return undo


# Cheap and promising ones first: what is left when the time for measuring is over is not tried.
PROPOSALS = (
    Proposal("memory_format", _with_images, _to_channels_last),
    Proposal("micro_batch", _pieces, _take_apart, samples=lambda value: 2 * value + value // 2),
    Proposal("optimizer", _with_a_kernel_for_all, _take_all_at_once),
    Proposal("threads", _fewer_threads, _set_threads),
    Proposal("graph", _replayable, _replay, times=4),
    Proposal("data", _kept_or_ahead, _feed_by, seconds=_copying, feeds=True),
    Proposal("evaluation", _with_images, _lay_out_for_evaluations, evaluates=True),
    Proposal("evaluation_batch", _joined, _evaluate_at_once, evaluates=True),
    Proposal("compile", _compilable, _compile, seconds=_compiling, samples=lambda value: None),  # noqa: ARG005
)
