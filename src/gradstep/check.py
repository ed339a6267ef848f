"""A look before the run: two samples through model, criterion and metrics, and every label held against the outputs.

A mistake costs seconds here; later it would cost the run.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from gradstep import tree
from gradstep.data import Feed, Source, targets_in_memory
from gradstep.errors import DataError, ModelError, UsageError, UserCodeError, raised_at
from gradstep.evaluation import untouched
from gradstep.keys import kept_streams
from gradstep.metrics import MetricSet
from gradstep.update import Terms, Update, read_loss

_ELEMENTWISE = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)
_FEW = 1000  # samples; reading so many takes a moment, whatever they are
_CLASSES = (nn.CrossEntropyLoss, nn.NLLLoss)


def look(update: Update, metrics: MetricSet, feeds: dict[str, Any]) -> list[str]:
    """Raises what would go wrong in the first step, or in the first evaluation, of these feeds.

    Returns the names of the criterion's terms, as far as a look could tell.

    Nothing changes: the forward runs in evaluation mode, and buffers and random streams are put back.
    """
    terms: list[str] = []
    for what, feed in feeds.items():
        if not isinstance(feed, Feed):
            continue  # a source of whole batches can't be asked for one without using it up
        with untouched(update.model, update.criterion), kept_streams(feed.device), torch.no_grad():
            inputs, targets = _unpacked(update, _two_samples(feed))
            outputs = _outputs(update, inputs, what)
            _hold_all_labels(update, feed, outputs)
            terms = _loss(update.criterion, outputs, targets, tree.samples(inputs) or 1, what)
            _metrics(metrics.fresh(feed.device), outputs, targets)
            if feed.checks and len(feed.source) <= _FEW:
                _read_all(feed)
    return terms


def _read_all(feed: Feed) -> None:
    """A few samples that don't lie in memory are all read, for what is wrong with them."""
    try:
        for _ in feed.once():
            pass
    except UsageError:
        raise
    except Exception as error:
        raise UserCodeError(f"{feed.what}: reading it raised {_named(error)}{raised_at(error)}.") from error


def _hold_all_labels(update: Update, feed: Feed, outputs: Any) -> None:
    for criterion in _criteria(update.criterion):
        if isinstance(criterion, _CLASSES) and isinstance(outputs, Tensor) and outputs.dim() > 1:
            _hold_labels(feed, outputs.shape[1], criterion.ignore_index, update)


def _two_samples(feed: Feed) -> Any:
    try:
        return feed.sample()
    except UsageError:
        raise
    except Exception as error:
        raise UserCodeError(f"{feed.what}: reading a batch raised {_named(error)}{raised_at(error)}.") from error


def _unpacked(update: Update, batch: Any) -> tuple[Any, Any]:
    try:
        return update.unpack(batch)
    except UsageError:
        raise
    except Exception as error:
        raise UserCodeError(f"unpack raised {_named(error)} on a batch of {tree.describe(batch)}.") from error


def _outputs(update: Update, inputs: Any, what: str) -> Any:
    model = update.model
    try:
        return model(inputs) if update.forward is None else update.forward(model, inputs)
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"the model does not take the inputs of {what}, {tree.describe(inputs)} for two samples: "
            f"{str(error).splitlines()[0]}{raised_at(error)}.{_expectation(model, inputs)}"
        ) from error
    except Exception as error:
        raise UserCodeError(f"the model's forward raised {_named(error)}{raised_at(error)}.") from error


def _expectation(model: nn.Module, inputs: Any) -> str:
    """What the model's first layer asks for, in the words of the inputs."""
    first = next((m for m in model.modules() if next(m.parameters(recurse=False), None) is not None), None)
    if first is None or not isinstance(inputs, Tensor):
        return ""
    weight = next(first.parameters(recurse=False))
    if not inputs.is_floating_point() and weight.is_floating_point() and not isinstance(first, nn.Embedding):
        return f" The inputs are {inputs.dtype}: add 'float' to data.transforms, or give them as float32."
    if inputs.dtype != weight.dtype and inputs.is_floating_point():
        return f" The inputs are {inputs.dtype} and the model {weight.dtype}: convert one, as in inputs.float()."
    wanted = {
        nn.Linear: lambda m: f"[N, {m.in_features}]",
        nn.Conv2d: lambda m: f"[N, {m.in_channels}, H, W]",
        nn.Conv1d: lambda m: f"[N, {m.in_channels}, L]",
    }.get(type(first))
    return f" Its first layer, {first}, takes {wanted(first)}." if wanted else f" Its first layer is {first}."


def _loss(criterion: Any, outputs: Any, targets: Any, samples: int, what: str) -> list[str]:
    shapes = f"outputs {tree.describe(outputs)} and targets {tree.describe(targets)} of {what}"
    for each in _criteria(criterion):
        if isinstance(each, _ELEMENTWISE) and isinstance(targets, Tensor) and outputs.shape != targets.shape:
            way_out = (
                f"Give both one shape: targets.reshape({list(outputs.shape)})."
                if outputs.numel() == targets.numel()
                else "It compares element by element; class numbers are for CrossEntropyLoss."
            )
            raise ModelError(
                f"{type(each).__name__} would broadcast the {shapes} against each other, which is hardly meant. "
                + way_out
            )
    try:
        value = criterion(outputs, targets)
    except IndexError as error:
        raise DataError(f"a target of {what} is out of the range of the model's outputs: {error}.") from error
    except (RuntimeError, ValueError, TypeError) as error:
        raise ModelError(
            f"the criterion does not take {shapes}: {str(error).splitlines()[0]}.{_target_hint(criterion, targets)}"
        ) from error
    except Exception as error:
        raise UserCodeError(f"the criterion raised {_named(error)}{raised_at(error)} on {shapes}.") from error
    return list(read_loss(value, samples)[1])


def _target_hint(criterion: Any, targets: Any) -> str:
    if not isinstance(targets, Tensor):
        return ""
    if any(isinstance(each, _CLASSES) for each in _criteria(criterion)):
        if targets.is_floating_point() and targets.dim() > 1:
            return " Probabilities, as mixing makes them, are for CrossEntropyLoss."
        if targets.dtype != torch.int64:
            return f" It takes class numbers as int64, and these are {targets.dtype}: targets.long()."
        return " It takes one class number per sample: targets.squeeze(1)." if targets.dim() == 2 else ""
    if not targets.is_floating_point() and str(type(criterion).__name__).endswith("Loss"):
        return f" It takes floats, and the targets are {targets.dtype}: targets.float()."
    return ""


def _metrics(metrics: MetricSet, outputs: Any, targets: Any) -> None:
    for name, metric in metrics.metrics.items():
        try:
            metric.update(outputs, targets)
            metric.compute()
        except UsageError:
            raise
        except Exception as error:
            raise UserCodeError(f"metrics: '{name}' raised {_named(error)}{raised_at(error)}.") from error


def _hold_labels(feed: Feed, classes: int, ignored: int, update: Update) -> None:
    """Now for all labels if they lie in memory, else batch by batch, before they reach the device."""

    def refuse(targets: Any, numbers: Tensor | None, what: str) -> None:
        if not isinstance(targets, Tensor) or targets.is_floating_point():
            return
        outside = ((targets < 0) | (targets >= classes)) & (targets != ignored)
        if bool(outside.any()):
            place = int(outside.reshape(len(targets), -1).any(1).nonzero()[0])
            label, sample = int(targets[outside][0]), int(numbers[place]) if numbers is not None else place
            raise DataError(
                f"{what}: sample {sample} has the label {label}, and the model has {classes} outputs, for labels 0 to "
                f"{classes - 1}. Give the model more classes, or count labels from 0."
            )

    known = _labels(feed.source, update)
    if known is not None:
        refuse(known, None, feed.what)
    else:
        feed.checks.append(lambda batch, numbers, what: refuse(update.unpack(batch)[1], numbers, what))


def _labels(source: Source, update: Update) -> Any:
    return targets_in_memory(source) if update.unpack.__module__.startswith("gradstep.") else None


def last_batch_of_one(update: Update, feed: Feed) -> None:
    """BatchNorm can't train on one value per channel, and would say so at the end of the first epoch."""
    alone = feed.samples % feed.batch_size == 1 or feed.batch_size == 1
    if not alone or not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in update.model.modules()):
        return
    with kept_streams(feed.device), torch.no_grad():
        inputs = tree.map_tensors(lambda tensor: tensor[:1], update.unpack(feed.sample())[0])
        twin = copy.deepcopy(update.model)  # BatchNorm's training mode changes buffers: not the model's own
        try:
            twin(inputs) if update.forward is None else update.forward(twin, inputs)
        except ValueError as error:
            raise ModelError(
                f"the last batch of an epoch holds one sample, and BatchNorm can't train on it ({error}). "
                f"Take another batch_size than {feed.batch_size}, or drop_last=True."
            ) from error


def _criteria(criterion: Any) -> list[Any]:
    return list(criterion.criteria.values()) if isinstance(criterion, Terms) else [criterion]


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
