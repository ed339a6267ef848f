"""What the functional optimizers read from `config` and `state`: names in both spellings, checked numbers, slots.

The spelling used inside and in messages is torch's (`lr`, `weight_decay`); Torch7's (`learningRate`, `weightDecay`) is
understood everywhere. Numbers that torch puts in pairs have a name each, as in Torch7.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from torch import Tensor

from gradstep import tree
from gradstep.errors import ModelError, RecipeError, listed, nearest

SYNONYMS: Mapping[str, str] = {
    "learningRate": "lr",
    "learningRates": "lrs",
    "learningRateDecay": "lr_decay",
    "weightDecay": "weight_decay",
    "weightDecays": "weight_decays",
    "epsilon": "eps",
    "lambda": "lambd",
    "eta_minus": "etaminus",
    "eta_plus": "etaplus",
    "maxIter": "max_iter",
    "maxEval": "max_eval",
    "tolFun": "tolerance_grad",
    "tolX": "tolerance_change",
    "nCorrection": "history_size",
    "lineSearch": "line_search_fn",
}

PAIRS: Mapping[str, tuple[str, str]] = {
    "betas": ("beta1", "beta2"),
    "etas": ("etaminus", "etaplus"),
    "step_sizes": ("stepsizemin", "stepsizemax"),
}

_COUNTS = ("evalCounter", "func_evals", "n_iter")  # slots that are whole numbers
_SINGLE = ("step", "eta", "mu")  # slots that are tensors of one number; torch chooses their dtype


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of one method with their defaults, and the names of what it remembers between calls.

    An option whose default is None is one that may be left out; all others are numbers, flags or names.
    """

    method: str
    defaults: Mapping[str, Any]
    slots: tuple[str, ...]
    synonyms: Mapping[str, str] = field(default_factory=dict)  # of this method alone

    def read(
        self, config: MutableMapping[str, Any] | None, state: MutableMapping[str, Any] | None
    ) -> tuple[dict[str, Any], MutableMapping[str, Any]]:
        """`(options, memory)`: all options by their inner names, and the dict that slots are read from and written to.

        That dict is `state`, or `config` where no state is given, as in Torch7. An option that is None is not given.

        Raises RecipeError for unknown names, options given twice, and values that can't be; ModelError for a count in
        the state that is none.
        """
        config = {} if config is None else config
        options = dict(self.defaults)
        given: dict[str, str] = {}
        for key, value in config.items():
            if key in self.slots or value is None:
                continue
            for name, part in self._named(key, value).items():
                if name in given:
                    raise RecipeError(f"{self.method}: '{given[name]}' and '{key}' are one option. Give one of them.")
                given[name] = key
                options[name] = self._checked(key, name, part)
        for key in state or ():
            if key not in self.slots:
                raise RecipeError(self._not_a_slot(key))
        memory = config if state is None else state
        for name in _COUNTS:
            count = memory.get(name, 0)
            if isinstance(count, bool) or not isinstance(count, Integral) or count < 0:
                raise ModelError(
                    f"{self.method}: '{name}' in the state is {count!r}, which is no count. Start with an empty state."
                )
        return options, memory

    def _named(self, key: str, value: Any) -> dict[str, Any]:
        names = {**SYNONYMS, **self.synonyms}
        name = names.get(key, key)
        if name in self.defaults:
            return {name: value}
        parts = PAIRS.get(name, ())
        if not parts or parts[0] not in self.defaults:
            known = [*self.defaults, *(other for other, own in names.items() if own in self.defaults)]
            raise RecipeError(
                f"{self.method} has no option '{key}'.{nearest(key, known)} It has {listed(self.defaults)}."
            )
        if not isinstance(value, (tuple, list)) or len(value) != len(parts):
            raise RecipeError(f"{self.method}: {key} = {value!r} is not a pair of {parts[0]} and {parts[1]}.")
        return dict(zip(parts, value, strict=True))

    def _checked(self, key: str, name: str, value: Any) -> Any:
        default = self.defaults[name]
        if isinstance(default, bool):
            if not isinstance(value, bool):
                raise RecipeError(f"{self.method}: {key} = {value!r} is neither True nor False.")
        elif isinstance(default, (int, float)) or isinstance(value, Real):
            if not as_number(value) >= 0:
                raise RecipeError(f"{self.method}: {key} = {value!r} is not a finite number of 0 or more.")
            return int(value) if isinstance(value, Integral) else float(value)  # NumPy's become Python's
        return value

    def _not_a_slot(self, key: str) -> str:
        if SYNONYMS.get(key, key) in self.defaults or key in PAIRS:
            return f"{self.method}: '{key}' is an option. It goes into config, not into state."
        return (
            f"{self.method} keeps no '{key}' in its state; it keeps {listed(self.slots)}."
            f"{nearest(key, self.slots)} If another method left it there, start with an empty state."
        )


def check_slot(method: str, name: str, value: Any, params: Tensor) -> None:
    """Raises ModelError unless a tensor from the state has the shape and dtype of `params`, or is a single number where
    torch keeps one."""
    if isinstance(value, Tensor):
        fits = value.dim() == 0 if name in _SINGLE else (value.shape, value.dtype) == (params.shape, params.dtype)
    else:
        fits = False
    if not fits:
        raise ModelError(
            f"{method}: '{name}' in the state is {tree.describe(value)}, and params is {tree.describe(params)}. "
            "A state belongs to one vector: start with an empty one."
        )


def as_number(value: Any) -> float:
    """A finite number as a float, NumPy's too; nan for all else, as booleans, tensors, and 10**400."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    try:
        number = float(value)
    except OverflowError:
        return math.nan
    return number if math.isfinite(number) else math.nan
