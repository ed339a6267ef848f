"""Options of parameter groups: which there are, what they are called, and what they may be."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Mapping
from functools import cache
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradstep.clock import Duration
from gradstep.errors import RecipeError, listed, nearest
from gradstep.optim.descent import SGD

# Options of a group that no optimizer has.
OURS = ("freeze", "lr_scale", "schedule")

# What a group holds beside options: its parameters and names, and what torch's schedulers leave in it.
_BESIDE = {"params", "param_names", "name", "initial_lr", "max_lr", "min_lr", "swa_lr", "base_momentum", "max_momentum"}

_NUMBERS = {"lr", "lr_scale", "lr_decay", "weight_decay", "weight_decay_l1", "momentum"}  # finite, at least 0
_MAY_BE_TENSORS = {"lr", "weight_decay"}  # of one element, as torch takes them

# What others call them, in small letters and without underscores: used only to answer.
_SYNONYMS = {
    **dict.fromkeys(("learningrate", "rate", "lrate", "baselr", "eta", "alpha0"), "lr"),
    **dict.fromkeys(("weightdecay", "wd", "decay", "l2", "weightdecayrate"), "weight_decay"),
    **dict.fromkeys(("learningratedecay",), "lr_decay"),
    **dict.fromkeys(("mom", "mu"), "momentum"),
    **dict.fromkeys(("l1", "l1decay"), "weight_decay_l1"),
    **dict.fromkeys(("epsilon",), "eps"),
    **dict.fromkeys(("lrmult", "lrmultiplier", "lrfactor", "scale"), "lr_scale"),
    **dict.fromkeys(("frozen", "freezeuntil", "requiresgrad", "trainable"), "freeze"),
    **dict.fromkeys(("scheduler", "lrscheduler", "sched"), "schedule"),
}


@cache
def known_options() -> frozenset[str]:
    """Every option that an optimizer of torch.optim, or gradstep's SGD, takes."""
    classes = [each for each in vars(torch.optim).values() if isinstance(each, type) and issubclass(each, Optimizer)]
    taken = {name for each in [*classes, SGD] for name in inspect.signature(each).parameters}
    return frozenset(taken - {"params", "defaults"})


def check_defaults(defaults: Mapping[str, Any]) -> None:
    """RecipeError for what can't be an option of every group. A name that is far from any known one passes: it may
    be an option of the user's own optimizer."""
    for option, value in defaults.items():
        if option in OURS:
            raise RecipeError(
                f"param_groups: {option} belongs to a group, as in {{'features': {{'{option}': ...}}}}; "
                "'*', written last, is everything that is left."
            )
        if option in _BESIDE:
            raise RecipeError(f"param_groups: '{option}' is no option; each group gets its own.")
        if option not in known_options() and (called := _called(option) or _typo(option)):
            raise RecipeError(
                f"param_groups: there is no option '{option}'. Did you mean '{called}'? "
                "If your own optimizer calls it so, give it to the optimizer instead."
            )
        check_value(option, value, "param_groups")


def read_groups(groups: Any, defaults: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The groups as given, each looked at: known options, right types, `freeze` as True or a duration's text."""
    if not isinstance(groups, Mapping):
        raise RecipeError(
            f"groups: {type(groups).__name__} is not a mapping. Write patterns with their options, as in "
            "{'features': {'lr': 1e-5}, 'classifier.*': {'lr': 1e-2}}."
        )
    return {pattern: _read(pattern, options, defaults) for pattern, options in groups.items()}


def _read(pattern: Any, options: Any, defaults: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(pattern, str) or not pattern:
        raise RecipeError(f"groups: {pattern!r} is no pattern. Write the name of a module or parameter, as 'features'.")
    where = f"groups['{pattern}']"
    if not isinstance(options, Mapping):
        given = repr(options) if isinstance(options, (int, float, str)) else "..."
        raise RecipeError(f"{where}: write its options as a mapping, as in {{'{pattern}': {{'lr': {given}}}}}.")
    for option, value in options.items():
        if isinstance(value, Mapping) and option != "schedule":
            raise RecipeError(
                f"{where}: '{option}' is a mapping. For a part of it write the pattern '{pattern}.{option}'."
            )
        _check_known(where, option, defaults)
        check_value(option, value, where)
    if "lr_scale" in options and "lr" in options:
        raise RecipeError(f"{where}: lr and lr_scale are both given. lr_scale multiplies the default lr; keep one.")
    if "lr_scale" in options and "lr" not in defaults:
        raise RecipeError(
            f"{where}: lr_scale multiplies the default lr, and there is none: param_groups(..., lr=1e-3)."
        )
    freeze = options.get("freeze", False)
    if freeze is False:
        return {option: value for option, value in options.items() if option != "freeze"}
    return {**options, "freeze": True if freeze is True else str(Duration.parse(freeze, f"{where}: freeze"))}


def _check_known(where: str, option: Any, defaults: Mapping[str, Any]) -> None:
    known = {*known_options(), *OURS, *defaults}
    if option in known:
        return
    if option in _BESIDE:
        raise RecipeError(f"{where}: '{option}' is no option; a group has the name of its pattern.")
    called = _called(str(option))
    hint = f" It is called '{called}' here." if called else nearest(str(option), known)
    hint = hint or f" If it is one of your own optimizer, give its default: param_groups(..., {option}=...)."
    raise RecipeError(f"{where}: there is no option '{option}'.{hint}")


def _called(option: str) -> str | None:
    bare = option.lower().replace("_", "")
    near = difflib.get_close_matches(bare, _SYNONYMS, n=1, cutoff=0.85) if len(bare) > 4 else []
    return _SYNONYMS.get(bare) or (_SYNONYMS[near[0]] if near and not _typo(option) else None)


def _typo(option: str) -> str | None:
    """Stricter than `nearest`: a name of the user's own must not be taken for a slip of the pen."""
    return next(iter(difflib.get_close_matches(option.lower(), known_options(), n=1, cutoff=0.85)), None)


def check_value(option: str, value: Any, where: str) -> None:
    """RecipeError for a rate, a decay or a momentum that is no finite number of at least 0. True is no number."""
    if option not in _NUMBERS:
        return
    is_one = isinstance(value, Tensor) and option in _MAY_BE_TENSORS and value.numel() == 1
    number = value.item() if is_one else value
    if isinstance(number, bool) or not isinstance(number, Real) or not math.isfinite(number) or number < 0:
        raise RecipeError(f"{where}: {option} is {value!r}, not a finite number of at least 0.")


def check_groups(optimizer: Optimizer) -> None:
    """RecipeError where a named group holds an option of other optimizers that this one does not take.

    torch keeps such an option and never reads it: `momentum` under Adam would do nothing, silently. A key that is
    like none of any optimizer's is somebody else's; but for `lr_scale`, which only `param_groups` reads.
    """
    kind, taken = type(optimizer).__name__, list(optimizer.defaults)
    for number, group in enumerate(optimizer.param_groups):
        if "lr_scale" in group and "lr_scale" not in taken:
            raise RecipeError(
                f"group {group.get('name', number)}: {kind} never reads lr_scale. Let gradstep.param_groups(model, "
                "{...}, lr=...) make the groups, or multiply lr yourself."
            )
        for option in group:
            hint = nearest(option, taken)
            foreign = option not in {*taken, *OURS, *_BESIDE} and (option in known_options() or hint)
            if "name" in group and foreign:
                hint = hint or f" It takes {listed(taken, 20)}."
                raise RecipeError(f"groups['{group['name']}']: {kind} takes no '{option}'.{hint}")
