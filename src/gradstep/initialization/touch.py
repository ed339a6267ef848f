"""What an initialisation does to a model, as rows: one for each parameter, one for each running statistic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gradstep.errors import listed

LEFT = "left as it was"


@dataclass(frozen=True, slots=True)
class Touch:
    """What happens to one parameter or buffer.

    `distribution` says it in words: "uniform", "normal", "truncated normal", "orthogonal", "zero", "one", or "left as
    it was" with the reason in `note`. Fans, gain and `std`, which is that of the numbers drawn, are None where nothing
    is drawn. `blocks` are the equal parts along the first dimension that the fans count for: gates, groups,
    projections.
    """

    name: str  # as in model.named_parameters() or named_buffers(): the first, where it has several
    layer: str  # the class of the layer that it belongs to
    kind: Literal["weight", "bias", "scale", "statistic", "left"]
    distribution: str
    formula: str | None = None
    fan_in: int | None = None
    fan_out: int | None = None
    blocks: int = 1
    gain: float | None = None
    gain_told: bool = True  # False where gain="auto" found no answer, and the formula's own stayed
    std: float | None = None
    zero_row: int | None = None  # an embedding's padding
    forget_bias: float = 0.0  # of the second of an LSTM's four gates
    note: str = ""


def describe(rows: Sequence[Touch]) -> str:
    """The rows as a table for people, with a heading; a row that is drawn shows its fans, gain and deviation."""
    lines = [_HEADING, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADING))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if title in _NUMBERS else cell.ljust(width)
            for title, cell, width in zip(_HEADING, line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


_HEADING = ("parameter", "layer", "fan-in", "fan-out", "gain", "std", "set to")
_NUMBERS = _HEADING[2:6]


def _cells(row: Touch) -> tuple[str, ...]:
    numbers = [row.fan_in, row.fan_out, row.gain, row.std]
    shown = ["" if n is None else str(n) if isinstance(n, int) else f"{n:.4g}" for n in numbers]
    return row.name, row.layer, *shown, f"{row.distribution}: {row.note}" if row.note else row.distribution


def summary(rows: Sequence[Touch]) -> str:
    """One line: `xavier uniform: 10 weights set, 10 biases zero, 2 parameters left as they were (scale, shift)`."""
    count = Counter(row.kind for row in rows)
    drawn = [row for row in rows if row.kind == "weight"]
    untold = [row.name for row in drawn if not row.gain_told]
    forgetful = [row for row in rows if row.forget_bias]
    left = [row.name for row in rows if row.kind == "left"]
    norms = {row.name.rpartition(".")[0] for row in rows if row.kind == "statistic"}
    parts = [
        f"{_many(count['weight'], 'weight')} set",
        f"{_many(count['bias'], 'bias', 'biases')} zero" if count["bias"] else "",
        f"forget gates at {forgetful[0].forget_bias:g} in {len(forgetful)} of them" if forgetful else "",
        f"{_many(count['scale'], 'norm weight')} one" if count["scale"] else "",
        f"statistics of {_many(len(norms), 'norm')} reset" if norms else "",
        f"built-in gain kept where what follows can't be told ({listed(untold, 6)})" if untold else "",
        f"{_many(len(left), 'parameter')} left as {'it was' if len(left) == 1 else 'they were'} ({listed(left, 6)})"
        if left
        else "",
    ]
    return f"{_title(drawn)}: {', '.join(part for part in parts if part)}"


def _title(drawn: Sequence[Touch]) -> str:
    """`xavier uniform`, or `orthogonal`, whose distribution is its name."""
    titles = dict.fromkeys(
        str(row.formula) if row.formula == row.distribution.replace(" ", "_") else f"{row.formula} {row.distribution}"
        for row in drawn
    )
    return " and ".join(titles) or "nothing drawn"


def _many(count: int, one: str, more: str | None = None) -> str:
    return f"{count} {one if count == 1 else more or one + 's'}"
