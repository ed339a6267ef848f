"""What makes a run this run and no other: kept in its checkpoints, and held against whoever resumes it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from gradstep.data import Feed, Source, augmentations, fingerprint
from gradstep.data.order import VERSION
from gradstep.errors import RecipeError
from gradstep.schedules import Rate
from gradstep.setup import Training
from gradstep.update.criterion import describe

# The labels that a comparison asks for by name.
SCHEDULE = "the schedule"
LENGTH = "the number of steps in all"
EPOCH = "the number of steps in an epoch"

_EPOCHS = 64  # as many starts of epochs a schedule is known by
_ELSEWHERE = {
    *("params", "param_names", "name", "lr", "initial_lr", "schedule", "freeze", "steps"),
    *("foreach", "fused", "capturable", "differentiable"),  # how it is computed
}


def meaning(
    training: Training, about: Mapping[str, Any], valid: Source | None, record: Mapping[str, Any]
) -> dict[str, Any]:
    """What a resume must find as it was, by a label in the user's words, as values that JSON has.

    `about` is `about_data`'s. `record` is what makes metrics.jsonl what it is, by `fit`'s keywords: durations in steps,
    metrics by name, `valid` and `test` by whether there are any. A step means more: code is not looked at here.
    """
    state, feed = training.state, training.feed
    source = feed if isinstance(feed, Feed) else None
    groups = state.optimizer.param_groups
    return {
        "the order's algorithm": VERSION,
        "seed": state.seed,
        "the number of training samples": len(source.source) if source else None,
        "the content of the data behind the training part": _in_short(about.get("files")),
        "the content of the data behind the validation part": _in_short(fingerprint(valid)) if valid else None,
        "the augmentation": [repr(each) for each in augmentations(source.source)] if source else None,
        "batch_size": source.batch_size if source else None,
        "shuffle": source.shuffle if source else None,
        EPOCH: training.clock.steps_per_epoch,
        LENGTH: training.clock.total,
        "dropout": training.update.dropout,
        "precision": training.precision,
        "stat_group": training.update.stat_group,
        "the model": _parts(state.model),
        "what is not trained": [name for name, each in state.model.named_parameters() if not each.requires_grad],
        "the criterion": describe(state.criterion),
        "the criterion's options": _attributes(state.criterion),
        "the transforms": about.get("transforms"),
        "the learning rate": list(state.base_rates),
        f"what {type(state.optimizer).__name__} is given": [_options(group) for group in groups],
        "freeze": [group.get("freeze", False) for group in groups],
        SCHEDULE: _values(training),
        "the schedule by a metric": [asdict(plateau.rule) for plateau in training.scheduled.plateaus],
        "clip": _plain(asdict(training.clip)) if training.clip else None,
        "ema": [state.ema.decay, state.ema.start, state.ema.evaluate] if state.ema else None,
        **_plain(record),
    }


def _parts(model: nn.Module) -> dict[str, str]:
    """Each module of the model by its name, as it prints itself: Dropout(p=0.2), ReLU(), a class of the user's."""
    return {name or "itself": f"{type(part).__name__}({_said(part)})" for name, part in model.named_modules()}


def _said(part: nn.Module) -> str:
    try:
        return re.sub(r" at 0x[0-9a-f]+", "", part.extra_repr())
    except Exception:  # the user's own words, which nobody may have asked for before
        return ""


def _attributes(criterion: Any) -> dict[str, Any]:
    """A criterion's own settings, as `label_smoothing`, which not every loss prints."""
    if not isinstance(criterion, nn.Module):
        return {}
    return {
        f"{name}.{option}" if name else option: value
        for name, part in criterion.named_modules()
        for option, value in vars(part).items()
        if not option.startswith("_")
        and option != "training"
        and isinstance(value, (bool, int, float, str, type(None)))
    }


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group's options as given, but for the rate, which has its own line, and for what changes no step."""
    return {option: _plain(value) for option, value in group.items() if option not in _ELSEWHERE}


def _plain(value: Any) -> Any:
    """As JSON has it, which knows no tuples, tensors or infinities; of another object, what it is."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    return type(value).__qualname__  # an object's own words may hold its address


def _values(training: Training) -> dict[str, list[float | None]]:
    """What the schedules give at some steps, by step: all groups and options in a row.

    At the starts of epochs, and at powers of two: a schedule over a run's length is another in another length's first
    steps too, which are all that there may be before the first epoch's end.
    """
    bases, clock = training.state.bases, training.clock
    end = max(clock.total, clock.steps_per_epoch)
    starts = {epoch * clock.steps_per_epoch for epoch in range(_EPOCHS)}
    powers = {2**power for power in range(end.bit_length())}
    return {
        str(step): [
            _asked(value, step, base[option])
            for own, base in zip(training.scheduled.functions, bases, strict=True)
            for option, value in own.items()
        ]
        for step in sorted(starts | powers)
        if step <= end and training.scheduled
    }


def _asked(value: Rate, step: int, base: float) -> float | None:
    """What a schedule gives; nothing where it is one of torch's that ends before this step."""
    try:
        return value(step, base)
    except RecipeError:
        return None


def _in_short(files: Mapping[str, Any] | None) -> str | None:
    return f"{files['bytes']:,} bytes ({files['content'][:12]})" if files else None
