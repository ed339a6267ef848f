"""`initialize`, and the plan that it carries out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Integral
from typing import TypeVar

import torch
from torch import Tensor, nn

from gradstep.errors import ModelError, RecipeError, listed
from gradstep.initialization.draws import draw
from gradstep.initialization.formulas import Scheme
from gradstep.initialization.gains import UNKNOWN, Follower, followers, gain_of, read_gain
from gradstep.initialization.held import (
    Held,
    Place,
    hold_ready,
    overlap,
    parameters,
    running_statistics,
    unfit,
    why_left,
)
from gradstep.initialization.layers import Constant, Role, Weight
from gradstep.initialization.touch import LEFT, Touch

M = TypeVar("M", bound=nn.Module)


def initialize(
    model: M,
    name: str,
    seed: int = 0,
    *,
    distribution: str | None = None,
    gain: float | str | None = None,
    std: float | None = None,
    forget_bias: float = 0.0,
    keep_frozen: bool = False,
) -> M:
    """Sets the weights of all known layers of a model by a formula, at any depth and in place; returns the model.

    `name`: heuristic, xavier, xavier_caffe, kaiming, kaiming_doc, orthogonal or truncated_normal (see
    `gradstep.initialization.formulas` for the formulas and their sources, `.layers` for the layers and their fans).
    Biases become zero, norms' weights one, their running statistics what they are in a new model. All else is left as
    it was, and `plan_initialization` with the same options names it.

    `distribution` is "uniform" (the default, on ±√3·std, as Torch7 draws) or "normal", for the first five names.
    `gain` takes the place of the formula's built-in gain, √2 in both kaimings and 1 in the others: a number, a
    nonlinearity's name as `torch.nn.init.calculate_gain` has it, or "auto", the gain of what follows each layer in its
    Sequential; where that can't be told, the built-in gain stays. So "auto" never counts ReLU twice.
    `std` is truncated_normal's σ, 0.02 by default; the numbers are cut at ±2σ, so their own deviation is 0.8796·σ.
    `forget_bias` goes into one of the two biases of every LSTM's forget gate. With `keep_frozen`, parameters that
    don't require gradients stay as they are; without, they are set like the others.

    A parameter's numbers are a function of `seed`, its name and its shape, drawn on the CPU in float64 and rounded to
    its dtype: other layers, devices and global random streams change nothing, and none of them is changed. A tied
    weight is set once, under its first name and as the first known layer that holds it. An embedding's padding row
    is zero.

    RecipeError: an option is wrong. ModelError: nothing to set, or parameters without shape or memory. Either is
    raised before anything is written.
    """
    if not isinstance(seed, Integral) or isinstance(seed, bool) or seed < 0:
        raise RecipeError(f"seed: {seed!r} is not a whole number from 0 up.")
    rows = plan_initialization(
        model, name, distribution=distribution, gain=gain, std=std, forget_bias=forget_bias, keep_frozen=keep_frozen
    )
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers(remove_duplicate=False))}
    with torch.no_grad():
        for row in rows:
            _carry_out(row, tensors[row.name], seed)
    return model


def plan_initialization(
    model: nn.Module,
    name: str,
    *,
    distribution: str | None = None,
    gain: float | str | None = None,
    std: float | None = None,
    forget_bias: float = 0.0,
    keep_frozen: bool = False,
) -> list[Touch]:
    """What `initialize` would do: one row for every parameter, in the model's order, then the running statistics.

    Nothing is drawn and nothing is changed. Options and errors are those of `initialize`.
    """
    scheme, gain = Scheme.read(name, distribution, std), read_gain(gain)
    if isinstance(forget_bias, bool) or not isinstance(forget_bias, (int, float)) or not math.isfinite(forget_bias):
        raise RecipeError(f"forget_bias: {forget_bias!r} is not a finite number.")
    hold_ready(model)
    planner = _Planner(scheme, gain, float(forget_bias), keep_frozen, followers(model))
    rows = [planner.parameter(held) for held in parameters(model)]
    rows += [planner.row(place, role) for place, role in running_statistics(model, keep_frozen)]
    if not any(row.kind == "weight" for row in rows):
        left = [f"{row.name} ({row.note})" for row in rows if row.kind == "left"]
        raise ModelError(
            f"initialize: the model has no weight that {name} could set. "
            + (f"Left as they were: {listed(left, 4)}." if left else "It has no parameters of layers that have one.")
        )
    if forget_bias and not any(row.forget_bias for row in rows):
        raise RecipeError("forget_bias: the model has no LSTM with biases to set. Leave it out.")
    return rows


@dataclass(frozen=True, slots=True)
class _Planner:
    """The options of one initialisation, what follows each layer, and which memory is planned for already."""

    scheme: Scheme
    gain: float | str | None
    forget_bias: float
    keep_frozen: bool
    following: dict[nn.Module, Follower]
    planned: dict[int, list[Held]] = field(default_factory=dict)  # by storage

    def parameter(self, held: Held) -> Touch:
        """The row of one parameter."""
        known = held.known()
        reason = unfit(held.parameter) or self._frozen(held)
        if reason or known is None:
            return self._left(held, known, reason or why_left(held))
        beside = self.planned.setdefault(held.parameter.untyped_storage().data_ptr(), [])
        first = next((other.name for other in beside if overlap(held.parameter, other.parameter)), None)
        if first is not None:
            return self._left(held, known, f"it shares its memory with {first}, which is set")
        beside.append(held)
        return self.row(Place(known[0].layer, known[0].local, held.name), known[1], _also(held))

    def row(self, place: Place, role: Role, also: str = "") -> Touch:
        """The row of a tensor with a known role."""
        layer = type(place.layer).__name__
        if isinstance(role, Constant):
            forget = self.forget_bias if role.forget else 0.0
            note = f"but {forget:g} in the forget gate" if forget else ""
            word = "one" if role.value else "zero"
            return Touch(place.name, layer, role.kind, word, forget_bias=forget, note=_joined(note, also))
        gain, told, note = self._gain(place.layer, role)
        return Touch(
            place.name,
            layer,
            "weight",
            distribution=self.scheme.distribution,
            formula=self.scheme.name,
            fan_in=role.fan_in,
            fan_out=role.fan_out,
            blocks=role.blocks,
            gain=gain,
            gain_told=told,
            std=self.scheme.std(role, gain),
            zero_row=role.zero_row,
            note=_joined(
                self.scheme.remark(gain), note, "" if role.zero_row is None else f"row {role.zero_row} zero", also
            ),
        )

    def _gain(self, layer: nn.Module, weight: Weight) -> tuple[float, bool, str]:
        """The gain, whether it could be told, and why it is what it is."""
        built_in = self.scheme.formula.gain
        if not isinstance(self.gain, str):  # so it is not "auto"
            return (built_in if self.gain is None else self.gain), True, ""
        if weight.inside is not None:
            return gain_of(weight.inside), True, f"{weight.inside} follows inside the layer"
        follower = self.following.get(layer, UNKNOWN)
        told = follower.gain is not None
        return (built_in if follower.gain is None else follower.gain), told, follower.why

    def _frozen(self, held: Held) -> str:
        return "frozen" if self.keep_frozen and not held.parameter.requires_grad else ""

    def _left(self, held: Held, known: tuple[Place, Role] | None, why: str) -> Touch:
        layer = known[0].layer if known is not None else held.places[0].layer
        return Touch(held.name, type(layer).__name__, "left", LEFT, note=_joined(why, _also(held)))


def _also(held: Held) -> str:
    others = [place.name for place in held.places[1:]]
    return f"also {listed(others)}" if others else ""


def _joined(*notes: str) -> str:
    return ", ".join(note for note in notes if note)


def _carry_out(row: Touch, values: Tensor, seed: int) -> None:
    """Writes what a row says. Numbers narrower than float32 are those of a float32 model, rounded once more."""
    if row.std is not None:
        drawn = draw(seed, row.name, tuple(values.shape), row.blocks, row.distribution).mul_(row.std)
        if row.zero_row is not None:
            drawn[row.zero_row] = 0.0
        values.copy_((drawn if values.dtype == torch.float64 else drawn.float()).to(values.dtype))
    elif row.kind != "left":
        values.fill_(1.0 if row.distribution == "one" else 0.0)
        if row.forget_bias:
            values.chunk(4)[1].fill_(row.forget_bias)
