"""What the settings of schedules may be. Each is refused where it is written, by its name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral, Real

from gradstep.clock import Clock, Duration
from gradstep.errors import RecipeError, nearest


def number(value: object, name: str) -> None:
    """RecipeError unless `value` is a finite number of at least 0."""
    if not _is_number(value) or not value >= 0:  # type: ignore[operator]
        raise RecipeError(f"schedule.{name}: {value!r} is not a finite number of at least 0.")


def share(value: object, name: str) -> None:
    """RecipeError unless `value` is a number between 0 and 1."""
    if not _is_number(value) or not 0 <= value <= 1:  # type: ignore[operator]
        raise RecipeError(f"schedule.{name}: {value!r} is not a share of the rate, between 0 and 1.")


def whole(value: object, name: str, least: int) -> None:
    """RecipeError unless `value` is a whole number of at least `least`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < least:
        raise RecipeError(f"schedule.{name}: {value!r} is not a whole number of at least {least}.")


def one_of(value: object, name: str, words: Sequence[str]) -> None:
    """RecipeError unless `value` is one of the words."""
    if value not in words:
        hint = nearest(value, words) if isinstance(value, str) else ""
        raise RecipeError(f"schedule.{name}: {value!r} is none of {', '.join(words)}.{hint}")


def yes_or_no(value: object, name: str) -> None:
    """RecipeError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise RecipeError(f"schedule.{name}: {value!r} is neither true nor false.")


def ascending(durations: Sequence[Duration], name: str, clock: Clock | None = None) -> None:
    """RecipeError unless each duration is longer than the one before. Steps and epochs compare with a clock only."""
    for before, after in pairwise(durations):
        if clock is not None:
            ordered = clock.steps(before) < clock.steps(after)
        else:
            ordered = before.unit != after.unit or before.amount < after.amount
        if not ordered:
            raise RecipeError(
                f"schedule.{name}: '{after}' comes after '{before}' and is not later. Write them in order."
            )


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
