"""The parity gate: two contenders that do not take the same steps are not compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from benchmarks.speed.processes import Block, Void

STEPS = 50
LAG = 2  # a tool that fetches batches ahead has so many steps still before it when the block ends
SAME = 1e-6  # relative; the same arithmetic in the same order
REARRANGED = 1e-4  # another order of the same sums: other kernels, another criterion's code

_OTHER_SUMS = {
    "keras": "its own criteria and optimizers",
    "channels_last": "another memory format",
    "fused": "a fused optimizer",
    "measured": "a measured plan",
    "raw_best data": "bytes normalised in one expression",
}


class Recorded(Protocol):
    def run(self, steps: int, losses: bool = False) -> Block: ...


def tolerance(tool: str, kind: str, options: dict[str, object]) -> tuple[float, str]:
    """How far apart losses may be, relatively, and why more than rounding's last bits if more."""
    given = {**options, **(options.get("optimizer") or {})}  # type: ignore[dict-item]
    fused = given.get("fused", tool == "raw_best")
    words = {
        tool,
        f"{tool} {kind}",
        str(given.get("plan")),
        *(["fused"] if fused else []),
        *(["channels_last"] if given.get("channels_last") else []),
    }
    why = [reason for word, reason in _OTHER_SUMS.items() if word in words]
    return (REARRANGED, ", ".join(why)) if why else (SAME, "")


def losses(contender: Recorded, kind: str) -> list[float]:
    """Its first losses: of steps, or of one pass where it evaluates."""
    found = contender.run(1 if kind == "evaluate" else STEPS, losses=True).losses
    return found or []


def gate(name: str, found: Sequence[float], expected: Sequence[float], allowed: float) -> float:
    """The largest relative distance; Void if it is more than allowed, or if steps are missing."""
    if len(found) < max(1, len(expected) - LAG):
        raise Void(f"{name}: {len(found)} losses were seen, and {len(expected)} steps were made")
    apart = 0.0
    for number, (ours, theirs) in enumerate(zip(found, expected, strict=False), start=1):
        distance = abs(ours - theirs) / max(abs(theirs), 1e-30)
        if not distance <= allowed:
            raise Void(
                f"{name} does not take the same steps: the loss of step {number} is {ours:.7g}, of the reference "
                f"{theirs:.7g} ({distance:.1e} apart, {allowed:.0e} are allowed)"
            )
        apart = max(apart, distance)
    return apart
