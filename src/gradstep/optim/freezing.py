"""Frozen groups: what a group's `freeze` says, as a pure function of the step.

A frozen parameter has `requires_grad` False and `.grad` None. Every optimizer of torch passes it by then, so that
neither weight decay nor momentum moves it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gradstep.clock import Clock, Duration
from gradstep.errors import RecipeError


def frozen_at(group: Mapping[str, Any], step: int, clock: Clock | None = None) -> bool:
    """Whether a group is frozen in step number `step`, 0 being the first.

    `freeze: True` is for good, `freeze: "500 steps"` holds in the steps 0 to 499. RecipeError: a duration in epochs
    and no clock to count them.
    """
    freeze = group.get("freeze", False)
    if isinstance(freeze, bool):
        return freeze
    duration = Duration.parse(freeze, f"groups['{group.get('name', '')}']: freeze")
    if clock is not None:
        return step < clock.steps(duration)
    if duration.unit == "epoch" and duration.amount > 0:
        raise RecipeError(
            f"freeze: '{duration}' needs a clock that knows how many steps an epoch has: give "
            "Clock(steps_per_epoch=len(loader), total=...), or write the duration in steps."
        )
    return step < duration.amount


def apply_freezing(groups: Iterable[Mapping[str, Any]], step: int, clock: Clock | None = None) -> list[str]:
    """Puts every group that has a `freeze` into the state it has in step number `step`; the others are left alone.

    Call it before the forward of each step, in any loop; calling it again changes nothing, and a step that was
    rewound or resumed finds what it had. Returns the names of the groups that it changed.
    """
    return [str(group.get("name", "")) for group in groups if "freeze" in group and _set(group, step, clock)]


def _set(group: Mapping[str, Any], step: int, clock: Clock | None) -> bool:
    frozen = frozen_at(group, step, clock)
    learning = (p for p in group["params"] if p.is_floating_point() or p.is_complex())  # whole numbers never do
    changed = [parameter for parameter in learning if parameter.requires_grad == frozen]
    for parameter in changed:
        parameter.requires_grad_(not frozen)
    if frozen:
        for parameter in group["params"]:
            parameter.grad = None
    return bool(changed)
