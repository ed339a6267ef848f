"""An optimizer replaced in mid-run: what the new one takes over, and what is forgotten."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradstep.errors import ModelError

# These may differ without a slot meaning something else: rates, decays, what is made of a velocity, and how.
_FREE = {
    *("lr", "lr_decay", "steps", "weight_decay", "weight_decay_l1", "decoupled_weight_decay", "eps", "nesterov"),
    *("foreach", "differentiable"),
}
_BESIDE = {"params", "param_names", "name", "freeze", "schedule", "initial_lr"}


@dataclass(frozen=True, slots=True)
class Replaced:
    """What a replacement did. `str` says it in sentences.

    `kept` and `forgotten` count parameters by slot, such as {"momentum_buffer": 10}; `reasons` say why the forgotten
    ones mean nothing to the new optimizer. `dropped` are the parameters that are no longer trained, `added` those that
    were not trained before: by name where one is known, else by shape.
    """

    old: str
    new: str
    kept: Mapping[str, int]
    forgotten: Mapping[str, int]
    reasons: tuple[str, ...]
    dropped: tuple[str, ...]
    added: tuple[str, ...]

    def __str__(self) -> str:
        because = f" ({'; '.join(self.reasons)})" if self.reasons else ""
        sentences = [f"{self.new} replaces {self.old}."]
        sentences += [f"It keeps {_slots(self.kept)}."] if self.kept else []
        sentences += [f"Forgotten: {_slots(self.forgotten)}{because}."] if self.forgotten else ["Nothing is forgotten."]
        sentences += [f"No longer trained: {', '.join(self.dropped)}."] if self.dropped else []
        sentences += [f"New: {', '.join(self.added)}."] if self.added else []
        return " ".join(sentences)


def replace(old: Optimizer, new: Optimizer, model: nn.Module | None = None) -> Replaced:
    """Hands the state of `old` over to `new`, a fresh optimizer over some of the same parameters.

    Handed over is what means the same: `new` is of `old`'s class or a subclass of it, and for the parameter in
    question no option differs but rates, decays, eps and how it is computed; a number such as momentum may differ, but
    neither begin nor cease to be 0. LBFGS's state belongs to all its parameters at once, so they must be the same
    ones. What a group counts, such as `steps` for the lr_decay of gradstep's SGD, begins anew. The state moves: `old`
    is empty afterwards. `model` gives the parameters their names in what is returned.

    To change only a rate, write `group["lr"] = ...` and keep the optimizer: nothing is forgotten then.
    ModelError: the two have no parameter in common, or are one; nothing has been changed then.
    """
    if old is new:
        raise ModelError("replace: old and new are the same optimizer. Make a new one over the model's parameters.")
    before, after = _group_of(old), _group_of(new)
    if not set(before) & set(after):
        raise ModelError(
            f"replace: the new {type(new).__name__} holds no parameter of the old {type(old).__name__}. "
            "Was it made for another model, or for a copy?"
        )
    kept, forgotten, reasons = Counter[str](), Counter[str](), dict[str, None]()
    whole = _why_as_a_whole(old, new)
    for parameter, slots in list(old.state.items()):
        count = Counter({slot: 1 for slot, value in slots.items() if value is not None})
        if parameter not in after:
            forgotten += count
            reasons |= {"parameters that are no longer trained": None}
        elif why := whole or _why(before[parameter], after[parameter]):
            forgotten += count
            reasons |= dict.fromkeys(why)
        else:
            kept += count
            new.state[parameter] = slots
    if counted := sum(bool(group.get("lr_decay") and group.get("steps")) for group in before.values()):
        forgotten["steps"] = counted  # of gradstep's SGD, whose lr_decay goes by it
    old.state.clear()
    return Replaced(
        old=type(old).__name__,
        new=type(new).__name__,
        kept=dict(kept),
        forgotten=dict(forgotten),
        reasons=tuple(reasons),
        dropped=tuple(_names(before, after, model)),
        added=tuple(_names(after, before, model)),
    )


def _group_of(optimizer: Optimizer) -> dict[Tensor, dict[str, Any]]:
    return {parameter: group for group in optimizer.param_groups for parameter in group["params"]}


def _why_as_a_whole(old: Optimizer, new: Optimizer) -> list[str]:
    if not isinstance(new, type(old)):
        return [f"{type(new).__name__} is no {type(old).__name__}"]
    if isinstance(old, torch.optim.LBFGS) and list(map(id, _group_of(old))) != list(map(id, _group_of(new))):
        return ["LBFGS remembers all its parameters at once, and they are others"]
    return []


def _why(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    options = sorted((before.keys() | after.keys()) - _FREE - _BESIDE)
    return [
        f"{option} was {before.get(option)} and is {after.get(option)}"
        for option in options
        if not _alike(before.get(option), after.get(option))
    ]


def _alike(one: Any, other: Any) -> bool:
    """Equal, or numbers of which both or none are 0, or tuples of such."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(_alike(a, b) for a, b in zip(one, other, strict=True))
    if _is_number(one) and _is_number(other):
        return bool(one == 0) == bool(other == 0)
    return type(one) is type(other) and bool(one == other)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, Tensor)) and not isinstance(value, bool)


def _slots(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{slot} of {count} parameter{'' if count == 1 else 's'}" for slot, count in counts.items())


def _names(
    those: Mapping[Tensor, Mapping[str, Any]], others: Mapping[Tensor, Any], model: nn.Module | None
) -> Iterable[str]:
    names = {id(p): name for name, p in model.named_parameters()} if model is not None else {}
    for parameter, group in those.items():
        if parameter not in others:
            own = dict(zip(map(id, group["params"]), group.get("param_names", ()), strict=False))
            shape = "×".join(map(str, parameter.shape)) or "a scalar"
            yield names.get(id(parameter)) or own.get(id(parameter)) or shape
