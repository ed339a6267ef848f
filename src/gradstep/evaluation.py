"""A pass over data without gradients, which leaves everything as it found it: modes, buffers, random streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gradstep import heap, tree
from gradstep import metrics as metrics_room
from gradstep.data import Feed, OwnOrder, adapt
from gradstep.errors import DataError
from gradstep.keys import kept_streams, key, seed_model
from gradstep.metrics import MetricSet, Value
from gradstep.update import Sharing, read_loss, units_of
from gradstep.update.update import pair


class Pass(Protocol):
    """A feed that can go once through its data."""

    @property
    def device(self) -> torch.device: ...

    def once(self) -> Iterator[Any]: ...


@contextmanager
def untouched(*modules: Any) -> Iterator[None]:
    """Inside, the modules are in evaluation mode; afterwards each is in the mode it was in, with the buffers it had."""
    own = [module for module in modules if isinstance(module, nn.Module)]
    modes = [(each, each.training) for module in own for each in module.modules()]
    buffers = [
        (each, name, buffer, buffer.clone(), buffer._version)
        for module in own
        for each in module.modules()
        for name, buffer in each._buffers.items()
        if buffer is not None
    ]
    try:
        for module in own:
            module.eval()
        yield
    finally:
        for each, training in modes:
            each.training = training
        with torch.no_grad():
            for each, name, buffer, copy, version in buffers:
                each._buffers[name] = buffer  # a forward may have put another tensor there
                if buffer._version != version:
                    buffer.copy_(copy)


def measure(
    model: nn.Module,
    criterion: Any,
    feed: Pass,
    metrics: MetricSet,
    *,
    seed: int = 0,
    unpack: Callable[[Any], tuple[Any, Any]] | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> dict[str, Value]:
    """`loss`, the criterion's terms if it names any, and the metrics over all of a feed's data, each sample once."""
    unpack, sharing = unpack or pair, Sharing(criterion)
    metrics = metrics.fresh(feed.device)
    sums: dict[str, Any] = {}
    counts: dict[str, Any] = {}
    with untouched(model, criterion), kept_streams(feed.device), torch.no_grad():
        for number, batch in enumerate(feed.once()):
            seed_model(feed.device, key(seed, "evaluate", index=number))
            inputs, targets = unpack(batch)
            outputs = model(inputs) if forward is None else forward(model, inputs)
            samples = tree.samples(inputs) or 1
            value = criterion(outputs, targets)
            loss, terms = read_loss(value, samples)
            shares = sharing.shares(loss, terms, targets, samples, units_of(value))
            for name, (part, weight) in shares.items():
                exact = part if part.device.type == "mps" else part.double()
                # A batch with nothing to count has 0/0 for its loss, and no say in the mean.
                product = torch.where(weight > 0, exact * weight, 0.0) if isinstance(weight, Tensor) else exact * weight
                sums[name] = sums.get(name, 0.0) + product
                counts[name] = counts.get(name, 0) + weight
            metrics.update(outputs, targets)
        # The one place that waits for the device.
        means = sharing.means({name: float(total / counts[name]) for name, total in sums.items()})
        return {**means, **metrics.compute()}


def evaluate(
    model: nn.Module,
    criterion: Any,
    data: Any,
    *,
    batch_size: int | None = None,
    metrics: Any = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    workers: int = 0,
    unpack: Callable[[Any], tuple[Any, Any]] | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> dict[str, Value]:
    """Loss and metrics of a model over data: whatever `fit` takes as `valid`.

    The mean is over all samples, whatever `batch_size` (256 unless given) and however ragged the last batch. Model,
    criterion and random streams are afterwards as they were, but for having been moved to `device`.
    """
    place = choose_device(device, model)
    heap.keep_freed()
    model.to(place)
    if isinstance(criterion, nn.Module):
        criterion.to(place)
    feed = evaluation_feed(data, "data", batch_size, place, workers, seed)
    measured = metrics_room.resolve(metrics)
    measured.refuse(["loss"])
    return measure(model, criterion, feed, measured, seed=seed, unpack=unpack, forward=forward)


def evaluation_feed(
    data: Any, what: str, batch_size: int | None, device: torch.device, workers: int = 0, seed: int = 0
) -> Feed | OwnOrder:
    """The data in its own order, every sample once."""
    if OwnOrder.opens(data):
        return OwnOrder(data, device, what)
    given = adapt(data, what)
    size = batch_size or given.batch_size or 256
    return Feed(
        given.source, size, shuffle=False, seed=seed, workers=workers or given.workers or 0, device=device, what=what
    )


def outputs_of(
    model: nn.Module,
    feed: Pass,
    *,
    seed: int = 0,
    unpack: Callable[[Any], tuple[Any, Any]] | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> Any:
    """The model's outputs for every sample, in order, on the CPU: a tensor `[N, ...]` or a nest of them."""
    outputs = []
    with untouched(model), kept_streams(feed.device), torch.no_grad():
        for number, batch in enumerate(feed.once()):
            seed_model(feed.device, key(seed, "evaluate", index=number))
            inputs, _ = (unpack or pair)(batch)
            each = model(inputs) if forward is None else forward(model, inputs)
            outputs.append(tree.to_device(each, torch.device("cpu")))
    return tree.concatenate(outputs)


def choose_device(given: str | torch.device, model: nn.Module) -> torch.device:
    """`auto` is where the model is if that is no CPU, else CUDA, else MPS, else the CPU."""
    if str(given) != "auto":
        try:
            device = torch.device(given)
        except RuntimeError:
            raise DataError(
                f"device: '{given}' is not the name of a device. Write auto, cpu, cuda, cuda:1 or mps."
            ) from None
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise DataError(
                f"device: '{given}' is not here ({str(error).splitlines()[0]}). Write auto or cpu."
            ) from None
        return device
    own = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    if own.type != "cpu":
        return own
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
