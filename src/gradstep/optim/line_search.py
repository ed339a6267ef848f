"""A line search for the strong Wolfe conditions (Nocedal and Wright 2006, algorithms 3.5 and 3.6)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Point:
    """A place on the line: the step `t` along the direction, f there, its slope along the line and its gradient."""

    t: float
    f: float
    slope: float
    gradient: Tensor


@dataclass(frozen=True, slots=True)
class Wolfe:
    """The two conditions on a point, seen from `start`, whose slope is negative.

    f must fall by at least c1 of what the slope promised, and the slope's size to at most c2 of what it was.
    """

    start: Point
    c1: float
    c2: float

    def falls(self, point: Point) -> bool:
        """False for an f that is no number."""
        return point.f <= self.start.f + self.c1 * point.t * self.start.slope

    def flat(self, point: Point) -> bool:
        return abs(point.slope) <= self.c2 * abs(self.start.slope)


def strong_wolfe(at: Callable[[float], Point], wolfe: Wolfe, t: float, limit: int) -> Point:
    """A point that meets both conditions, beginning with step `t`, in at most `limit` (1 or more) evaluations.

    Where there are too few evaluations, or rounding hides the minimum: the lowest point found that falls, which may be
    `wolfe.start` itself.
    """
    before = wolfe.start
    while limit > 0:
        point, limit = at(t), limit - 1
        if not wolfe.falls(point) or (before.t > 0 and point.f >= before.f):
            return _zoom(at, wolfe, before, point, limit)
        if wolfe.flat(point):
            return point
        if point.slope >= 0:
            return _zoom(at, wolfe, point, before, limit)
        # The minimum lies further out: where a cubic says, but clearly further and not beyond ten times as far.
        t = _within(_cubic_minimum(before, point), 1.1 * t, 10 * t)
        before = point
    return before


def _zoom(at: Callable[[float], Point], wolfe: Wolfe, low: Point, high: Point, limit: int) -> Point:
    """Narrows the bracket. `low` falls, is the lowest so far, and descends towards `high`."""
    for _ in range(limit):
        width = high.t - low.t
        ends = sorted((low.t + 0.1 * width, high.t - 0.1 * width))
        t = _within(_cubic_minimum(low, high), *ends)
        if t in (low.t, high.t):
            break  # no number lies between them
        point = at(t)
        if not wolfe.falls(point) or point.f >= low.f:
            high = point
            continue
        if wolfe.flat(point):
            return point
        if point.slope * width >= 0:
            high = low
        low = point
    return low


def _cubic_minimum(a: Point, b: Point) -> float:
    """Where the cubic through both points and slopes is least; nan if nowhere (Nocedal and Wright 2006, eq. 3.59)."""
    if not (math.isfinite(b.f) and math.isfinite(b.slope)):
        return math.nan
    d1 = a.slope + b.slope - 3 * (a.f - b.f) / (a.t - b.t)
    inside = d1 * d1 - a.slope * b.slope
    if inside < 0:
        return math.nan
    d2 = math.copysign(math.sqrt(inside), b.t - a.t)
    below = b.slope - a.slope + 2 * d2
    return b.t - (b.t - a.t) * (b.slope + d2 - d1) / below if below else math.nan


def _within(t: float, low: float, high: float) -> float:
    """`t` held between the two; their middle if it is no number."""
    return (low + high) / 2 if math.isnan(t) else min(max(t, low), high)
