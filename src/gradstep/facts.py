"""What a person should know before training: the data, the model, the plan, the machine."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import nn

from gradstep import __version__, tree
from gradstep.data import Feed, Source, Transform, class_names, fingerprint, targets_in_memory
from gradstep.optim.showing import table
from gradstep.setup import Training
from gradstep.update.criterion import describe

_LAYERS = 8
_PARTS_OF_DATA = 50  # as many are looked at; an object may answer with another of itself for ever

# Variables by which libraries choose other kernels, or sum in another order.
_VARIABLES = (
    *("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"),
    *("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "MKL_NUM_THREADS", "MKL_DYNAMIC", "OMP_DYNAMIC"),
    *("OPENBLAS_CORETYPE", "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE"),
)

# Code that has versions of its own.
_OTHERS = (Path(__file__).parent, Path(torch.__file__).parent, Path(sysconfig.get_path("stdlib")))
_INSTALLED = {"site-packages", "dist-packages"}


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


def of_waiting(feed: Any, share: float) -> str:
    """What to do where so much of an epoch's time goes by in waiting for its batches."""
    what = f"{share:.0%} of the epoch went by in waiting for batches"
    if not isinstance(feed, Feed):
        return f"{what}, which are made as you make them"
    if feed.source.in_memory:
        return f"{what}, made of data in memory: look at data.transforms and data.augment, or take plan.data=ahead"
    if feed.workers:
        return f"{what}: more than workers={feed.workers} may be quicker, or a cheaper __getitem__"
    return f"{what}: try workers={os.cpu_count() or 1}, or give data that fits into memory as tensors"


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
    """Versions and machine, for environment.json: what may change bits, and what helps a person."""
    gpu = torch.cuda.is_available()
    return {
        "gradstep": __version__,
        "python": sys.version.split()[0],
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "kernel": platform.release(),
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "processor": platform.machine(),
        "cpu": _found("/proc/cpuinfo", r"model name\s*:\s*(.+)"),
        "vector": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "driver": _found("/proc/driver/nvidia/version", r"Kernel Module.*?\s([\d.]+)\s"),
        "cudnn": torch.backends.cudnn.version() if gpu else None,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn deterministic": torch.backends.cudnn.deterministic,
        "cudnn benchmark": torch.backends.cudnn.benchmark,
        "tf32": {  # the getters that take either of torch's two ways of setting it
            "matmul": torch.backends.cuda.matmul.fp32_precision,
            "conv": torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
        },
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def code(objects: Iterable[Any]) -> dict[str, str]:
    """The user's files that define these objects, by name: the first letters of each one's SHA-256.

    A file goes by its name and not by its path, so that a run that was moved finds it again; files of one name are
    taken together. Best effort: what has no file, as in a notebook, is left out.
    """
    sums: dict[str, set[str]] = {}
    for file in filter(None, {_file_of(each) for each in _definitions(objects)}):
        if not any(file.is_relative_to(folder) for folder in _OTHERS) and not _INSTALLED & set(file.parts):
            with suppress(OSError):  # there is none, as where code was typed in
                content = file.read_bytes()
                sums.setdefault(file.name, set()).add(hashlib.sha256(content).hexdigest()[:12])
    return {name: " ".join(sorted(found)) for name, found in sorted(sums.items())}


def behind_data(feed: Any) -> Iterator[Any]:
    """The objects that a feed's samples come from: sources over each other, a data set of the user's, functions."""
    left = [feed.source if isinstance(feed, Feed) else feed]
    for each in left:  # which grows meanwhile
        yield each
        for name in ("whole", "dataset", "collate", "worker_init", "transform", "target_transform", "augment"):
            with suppress(Exception):  # an object of the user's may answer anything with an exception
                left += (
                    [found] if len(left) < _PARTS_OF_DATA and (found := getattr(each, name, None)) is not None else []
                )


def _definitions(objects: Iterable[Any]) -> set[Any]:
    """The classes and code objects behind some objects: of modules their submodules', of classes their bases."""
    found: set[Any] = set()
    left, seen = list(objects), set[int]()
    for each in left:  # which grows meanwhile
        if id(each) not in seen:
            seen.add(id(each))
            with suppress(Exception):  # an object of the user's may answer anything with an exception
                left += _behind(each, found)
    return found


def _behind(each: Any, found: set[Any]) -> list[Any]:
    """Adds what defines an object to `found`, and returns the objects that it is made of."""
    if isinstance(each, functools.partial):
        return [each.func, *each.args, *each.keywords.values()]
    if isinstance(each, Mapping):
        return list(each.values())
    if isinstance(each, (list, tuple)):
        return list(each)
    if isinstance(each, MethodType):
        return [each.__func__, each.__self__]
    if isinstance(each, FunctionType):
        found.add(each.__code__)
        return [getattr(each, "__wrapped__", None)]
    modules = each.modules() if isinstance(each, nn.Module) else [each]
    for kind in {module if isinstance(module, type) else type(module) for module in modules}:
        found.update(kind.__mro__)
    ours = type(each).__module__.startswith("gradstep.")  # it may hold a function of the user's
    return [held for held in vars(each).values() if callable(held) or isinstance(held, dict)] if ours else []


def _file_of(definition: Any) -> Path | None:
    """The source file, which is not read here; None for what came out of a compiler or a notebook."""
    module = sys.modules.get(definition.__module__) if isinstance(definition, type) else None
    name = definition.co_filename if isinstance(definition, CodeType) else getattr(module, "__file__", None)
    return Path(name) if name else None


def _found(file: str, pattern: str) -> str | None:
    """What a pattern finds in one of the kernel's files, where there is one."""
    try:
        found = re.search(pattern, Path(file).read_text(errors="replace"))
    except OSError:
        return None
    return found[1].strip() if found else None
