"""The user's own objects: found by `module:object`, called with what a recipe gives them."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gradstep.errors import GradstepError, RecipeError, UserCodeError, listed, nearest, raised_at
from gradstep.words import SYNONYMS


def find_object(name: str, where: str) -> Any:
    """What `module:object` names, looked for where Python looks; commands put the current folder first."""
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise RecipeError(f"{where}: '{name}' is not module:object, as in mypackage.nets:Net.")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise RecipeError(f"{where}: there is no module '{error.name}' here ({Path.cwd()}).") from None
        raise UserCodeError(f"{where}: importing '{module_name}' raised {error}{raised_at(error)}.") from error
    except Exception as error:
        what = f"{type(error).__name__}: {error}{raised_at(error)}"
        raise UserCodeError(f"{where}: importing '{module_name}' raised {what}.") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            known = [each for each in dir(found) if not each.startswith("_")]
            hint = nearest(part, known) or f" It has {listed(known)}."
            raise RecipeError(f"{where}: there is no '{part}' in '{module_name}'.{hint}")
        found = getattr(found, part)
    return found


def optional(name: str | None, where: str) -> Any:
    """The same, or None where nothing is named."""
    return None if name is None else find_object(name, where)


def call(make: Callable[..., Any], options: Mapping[str, Any], where: str, name: str, *first: Any) -> Any:
    """`make(*first, **options)`; an option that it does not take is an error that names the nearest it does."""
    try:
        parameters = inspect.signature(make).parameters
    except (TypeError, ValueError):
        parameters = {}  # type: ignore[assignment]  # a builtin without a signature: let it speak for itself
    taken = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)][len(first) :]
    anything = not parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for option in options:
        if option not in taken and not anything:
            called = SYNONYMS.get(option, "").rpartition(".")[2]
            hint = f" It is called '{called}' here." if called in taken else nearest(option, taken)
            hint = hint or (f" It takes {listed(taken, 20)}." if taken else " It takes none.")
            raise RecipeError(f"{where}: '{name}' takes no '{option}'.{hint}")
    try:
        return make(*first, **options)
    except GradstepError:
        raise
    except Exception as error:
        shown = ", ".join(f"{n}={v!r}" for n, v in options.items())
        what = f"{where}: {name}({shown}) raised {type(error).__name__}: {error}{raised_at(error)}"
        # torch speaks about the user's values; anybody else's code is the user's own, and its traceback tells more.
        own = getattr(make, "__module__", "").startswith(("torch.", "gradstep."))
        raise (RecipeError if own else UserCodeError)(what) from error
