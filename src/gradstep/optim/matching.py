"""Which parameters a pattern means: names with globs, over every name that a parameter has."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parameter import is_lazy

from gradstep.errors import ModelError, RecipeError, listed


@dataclass(frozen=True, slots=True, eq=False)
class Named:
    """A parameter with its names in the model: one, or several where it is tied. It is shown by the first."""

    parameter: nn.Parameter
    names: tuple[str, ...]

    def matches(self, pattern: str) -> bool:
        """Whether `pattern` matches a name of it, or a module it lies in: any dotted prefix. Case counts."""
        return any(fnmatchcase(prefix, pattern) for name in self.names for prefix in prefixes(name))


def prefixes(name: str) -> list[str]:
    """`features`, `features.0` and `features.0.weight` of `features.0.weight`."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]


def named(model: nn.Module) -> list[Named]:
    """The model's parameters in its own order, each once.

    ModelError: not a module, no parameter at all, or parameters that have no shape before the first forward.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"param_groups: give the model itself, a torch.nn.Module; this is {type(model).__name__}.")
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    if not names:
        raise ModelError(f"param_groups: {type(model).__name__} has no parameters.")
    if lazy := [own[0] for parameter, own in names.items() if is_lazy(parameter)]:
        raise ModelError(f"param_groups: {listed(lazy, 4)} have no shape yet. Call the model once on a batch before.")
    return [Named(parameter, tuple(own)) for parameter, own in names.items()]


def divide(model: nn.Module, everything: Sequence[Named], patterns: Sequence[str]) -> list[list[Named]]:
    """One list per pattern, and the rest at the end; the first pattern that matches a parameter has it.

    RecipeError for a pattern that is left without parameters, with the reason.
    """
    shares: list[list[Named]] = [[] for _ in range(len(patterns) + 1)]
    for each in everything:
        taker = next((n for n, pattern in enumerate(patterns) if each.matches(pattern)), len(patterns))
        shares[taker].append(each)
    for pattern, share in zip(patterns, shares, strict=False):
        if not share:
            raise RecipeError(f"groups: {_why_empty(model, everything, patterns, pattern)}")
    return shares


def _why_empty(model: nn.Module, everything: Sequence[Named], patterns: Sequence[str], pattern: str) -> str:
    modules = dict(model.named_modules(remove_duplicate=False))
    useful = [name for name, module in modules.items() if name and any(True for _ in module.parameters())]
    useful += [name for each in everything for name in each.names]
    if matched := [each for each in everything if each.matches(pattern)]:
        earlier = patterns[: patterns.index(pattern)]
        takers = [other for other in earlier if any(each.matches(other) for each in matched)]
        return (
            f"'{pattern}' is left empty: {listed((each.names[0] for each in matched), 4)} went to "
            f"{listed((repr(other) for other in takers), 4)}, written before it. The first match wins, so write the "
            "narrower pattern first."
        )
    if bare := [
        f"'{name}' is a {type(modules[name]).__name__}" for name in modules if name and fnmatchcase(name, pattern)
    ]:
        return (
            f"'{pattern}' matches only modules without parameters: {listed(bare, 4)}. "
            f"Near it, with parameters: {listed(sorted(_near(pattern, useful), key=useful.index) or useful, 4)}."
        )
    dotted = pattern.replace("[", ".").replace("]", "")
    if dotted != pattern and dotted in modules:
        return f"'{pattern}' matches nothing in {type(model).__name__}. A layer's number follows a dot: '{dotted}'."
    near = [f"'{name}'" for name in _near(pattern, useful)]
    hint = f"Did you mean {' or '.join(near)}?" if near else f"It has {listed(useful)}."
    return f"'{pattern}' matches no module and no parameter of {type(model).__name__}. {hint}"


def _near(pattern: str, names: Iterable[str]) -> list[str]:
    lowered = {name.lower(): name for name in names}
    return [lowered[match] for match in difflib.get_close_matches(pattern.lower(), list(lowered), n=3, cutoff=0.6)]
