"""What a person should know before training: the data, the model, the plan, the machine."""

from __future__ import annotations

import os
import platform
import sys
from typing import Any

import numpy as np
import torch

from gradstep import tree
from gradstep.data import Feed, Source, Transform, class_names, fingerprint, targets_in_memory
from gradstep.optim.showing import table
from gradstep.setup import Training
from gradstep.update.criterion import describe

_LAYERS = 8


def of_data(feeds: dict[str, Any]) -> list[tuple[str, str]]:
    """One line per part: how many samples, what a sample is, how many of each class."""
    lines = []
    for what, feed in feeds.items():
        if not isinstance(feed, Feed):
            lines.append((what, f"{feed.steps_per_epoch} batches in their own order"))
            continue
        batch = feed.sample()
        inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
        one = tree.describe(tree.map_tensors(lambda tensor: tensor[0], inputs))
        text = f"{feed.samples:,} samples of {one}, {feed.steps_per_epoch:,} batches of {feed.batch_size}"
        lines.append((what, text + _classes(feed.source)))
    return lines


def _classes(source: Source) -> str:
    targets = targets_in_memory(source)
    if not isinstance(targets, torch.Tensor) or targets.dim() != 1 or targets.is_floating_point():
        return ""
    counts = targets.unique(return_counts=True)[1].tolist()
    if not 0 < len(counts) <= 1000:
        return ""
    fewest, most = min(counts), max(counts)
    return f", {len(counts)} classes of {fewest:,}" + (f" to {most:,}" if most != fewest else "")


def of_model(training: Training) -> list[tuple[str, str]]:
    """The model's size and its first parts, the criterion, the optimizer with its options, clipping, averaging."""
    state = training.state
    model, optimizer = state.model, state.optimizer
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = f", {total - trained:,} of them frozen" if trained != total else ""
    lines = [("model", f"{type(model).__name__}, {total:,} parameters{frozen}")]
    parts = list(model.named_children())
    for name, part in parts[:_LAYERS]:
        size = sum(parameter.numel() for parameter in part.parameters())
        lines.append(("", f"{name}: {type(part).__name__}, {size:,}"))
    if len(parts) > _LAYERS:
        lines.append(("", f"... and {len(parts) - _LAYERS} more"))
    # A resumed run's groups hold the rates of its last step. What differs between groups is in their table.
    first = {option: value for option, value in state.bases[0].items() if option in optimizer.param_groups[0]}
    shared = {o: v for o, v in first.items() if all(base.get(o) == v for base in state.bases)}
    options = [f"{name} {value:g}" for name, value in shared.items() if value or name == "lr"]
    more = f", {len(optimizer.param_groups)} groups" if len(optimizer.param_groups) > 1 else ""
    lines.append(("training", f"{describe(state.criterion)}, {type(optimizer).__name__} {' '.join(options)}{more}"))
    if training.clip is not None:
        clip = training.clip
        kind = f"their norm at most {clip.norm:g}" if clip.norm else f"each element at most ±{clip.value:g}"
        lines.append(("", f"gradients clipped: {kind}"))
    if state.ema is not None:
        used = "evaluated, chosen and saved" if state.ema.evaluate else "kept in the checkpoints"
        begins = f" from step {state.ema.start}" if state.ema.start else ""
        lines.append(("", f"weights averaged{begins}, decay {state.ema.decay:g}; the average is {used}"))
    return lines


def of_groups(training: Training) -> list[tuple[str, str]]:
    """The table of the optimizer's groups, where there are several."""
    groups = training.state.optimizer.param_groups
    if len(groups) == 1 and "freeze" not in groups[0]:
        return []
    # A resumed run's groups hold the rates of its last step.
    given = [{**group, **base} for group, base in zip(groups, training.state.bases, strict=True)]
    return [("groups" if not n else "", line) for n, line in enumerate(table(given).splitlines())]


def of_rates(training: Training) -> list[tuple[str, str]]:
    """Where schedules take each option: a mistake in their lengths is seen before it is trained."""
    clock, bases = training.clock, training.state.bases
    some = sorted({0, clock.total - 1, *range(0, clock.total, max(clock.total // 500, 1))})
    lines: dict[str, None] = {}  # groups that go the same way are said once
    for number, (own, base) in enumerate(zip(training.scheduled.functions, bases, strict=True)):
        for option, value in own.items():
            values = [value(step, base[option]) for step in some]
            which = "" if option == "lr" else f"{option} "
            name = training.state.optimizer.param_groups[number].get("name", number)
            group = f" (group {name})" if len(bases) > 1 else ""
            text = f"{values[0]:.3g} at the first step, {max(values):.3g} at most, {values[-1]:.3g} at the last"
            lines[f"{which}{text}{group}"] = None
    return [("rate" if not number else "", line) for number, line in enumerate(lines)]


def about_data(source: Source | None) -> dict[str, Any]:
    """What a checkpoint keeps of the training data: enough to use the weights and to know the data again."""
    if source is None:
        return {}
    transforms: tuple[Transform, ...] = source.transforms
    return {
        "samples": len(source),
        "classes": list(names) if (names := class_names(source)) else None,
        "transforms": [transform.document() for transform in transforms],
        "files": fingerprint(source),
    }


def environment() -> dict[str, Any]:
    """Versions and machine, for environment.json."""
    return {
        "python": sys.version.split()[0],
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
