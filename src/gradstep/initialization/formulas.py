"""The names that `initialize` knows, and the standard deviation that each gives a weight.

A formula is a base times a gain; the bases and built-in gains multiply to the formula as it is usually written:

| name | standard deviation as written | built-in gain | source |
|---|---|---|---|
| heuristic | √(1/(3·fan_in)) | 1 | that of uniform numbers on ±√(1/fan_in); after LeCun et al. 1998, section 4.6 |
| xavier | √(2/(fan_in + fan_out)) | 1 | Glorot & Bengio 2010, eq. 12 |
| xavier_caffe | √(1/fan_in) | 1 | Caffe's XavierFiller |
| kaiming | √(2/fan_in) | √2 | He et al. 2015, eq. 10 |
| kaiming_doc | √(4/(fan_in + fan_out)) | √2 | a Torch7 weight-init.lua: kaiming with the mean of both fans |
| orthogonal | rows or columns orthonormal | 1 | Saxe et al. 2014 |
| truncated_normal | 0.8796·σ: σ = 0.02, cut at ±2σ | 1 | BERT's code, Devlin et al. 2018 |

The document of the first five calls √(1/(3·fan_in)) LeCun's; his own section 4.6 has √(1/fan_in), xavier_caffe here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from gradstep.errors import RecipeError, listed, nearest
from gradstep.initialization.draws import TRUNCATED
from gradstep.initialization.layers import Weight

_FREE = ("uniform", "normal")


@dataclass(frozen=True, slots=True)
class Formula:
    """The standard deviation of a weight for gain 1, the built-in gain, and what the numbers may be drawn from."""

    base: Callable[[Weight], float]
    gain: float = 1.0
    distributions: tuple[str, ...] = _FREE


FORMULAS = {
    "heuristic": Formula(lambda weight: math.sqrt(1 / (3 * weight.fan_in))),
    "xavier": Formula(lambda weight: math.sqrt(2 / (weight.fan_in + weight.fan_out))),
    "xavier_caffe": Formula(lambda weight: math.sqrt(1 / weight.fan_in)),
    "kaiming": Formula(lambda weight: math.sqrt(1 / weight.fan_in), gain=math.sqrt(2)),
    "kaiming_doc": Formula(lambda weight: math.sqrt(2 / (weight.fan_in + weight.fan_out)), gain=math.sqrt(2)),
    "orthogonal": Formula(lambda weight: math.sqrt(1 / max(weight.block)), distributions=("orthogonal",)),
    "truncated_normal": Formula(lambda _weight: TRUNCATED, distributions=("truncated normal",)),  # times σ
}


@dataclass(frozen=True, slots=True)
class Scheme:
    """A formula with the choices made for it. `sigma` is a truncated normal's before it is cut; 1 for the others."""

    name: str
    formula: Formula
    distribution: str
    sigma: float

    @classmethod
    def read(cls, name: str, distribution: str | None, std: float | None) -> Scheme:
        """RecipeError: an unknown name or distribution, or one that this name does not take."""
        if not isinstance(name, str) or name not in FORMULAS:
            hint = nearest(name, FORMULAS) if isinstance(name, str) else ""
            raise RecipeError(f"initialize: there is no {name!r}.{hint} There are {listed(FORMULAS)}.")
        formula = FORMULAS[name]
        chosen = formula.distributions[0] if distribution is None else distribution
        if distribution is not None and formula.distributions != _FREE:
            raise RecipeError(f"distribution: {name} has its own. Leave {distribution!r} out.")
        if chosen not in formula.distributions:
            hint = nearest(chosen, _FREE) if isinstance(chosen, str) else ""
            raise RecipeError(f"distribution: there is no {chosen!r}.{hint} There are {listed(_FREE)}.")
        if std is not None and name != "truncated_normal":
            raise RecipeError(
                f"std: {name} computes it for each layer. Leave it out, or take truncated_normal; "
                "`gain` multiplies what is computed."
            )
        if std is not None and not positive(std):
            raise RecipeError(f"std: {std!r} is not a number above zero.")
        sigma = 1.0 if name != "truncated_normal" else 0.02 if std is None else float(std)
        return cls(name, formula, chosen, sigma)

    def std(self, weight: Weight, gain: float) -> float:
        """The standard deviation of what will be drawn for this weight."""
        return gain * self.sigma * self.formula.base(weight)

    def remark(self, gain: float) -> str:
        """What the standard deviation of a truncated normal does not say."""
        return f"σ = {gain * self.sigma:.4g} cut at ±2σ" if self.name == "truncated_normal" else ""


def positive(value: object) -> bool:
    """Whether this is a finite number above zero; True is no number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf
