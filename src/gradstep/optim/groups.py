"""Parameter groups by pattern, for any torch optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gradstep.clock import Clock
from gradstep.errors import RecipeError
from gradstep.optim.freezing import apply_freezing
from gradstep.optim.matching import Named, divide, named
from gradstep.optim.options import check_defaults, read_groups

REST = "rest"

_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


@dataclass(frozen=True, slots=True)
class _Group:
    """A group in the making. `options` are complete; `own_rate` says that its pattern set the rate."""

    name: str
    members: Sequence[Named]
    options: Mapping[str, Any]
    own_rate: bool = False

    @property
    def is_left_whole(self) -> bool:
        """What never moves has neither rate nor decay to differ in."""
        return self.options.get("freeze") is True

    def part(self, name: str, members: Sequence[Named], **options: Any) -> list[_Group]:
        """Some of its members under another name, or nothing where there are none."""
        return [_Group(name, members, {**self.options, **options}, self.own_rate)] if members else []

    def as_torch_has_it(self) -> dict[str, Any]:
        """A tensor among the options is copied, so that no two groups share a rate that is written in place."""
        options = {name: value.clone() if isinstance(value, Tensor) else value for name, value in self.options.items()}
        return {"params": [each.parameter for each in self.members], "name": self.name, **options}


def param_groups(
    model: nn.Module,
    groups: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    no_decay: bool = False,
    layer_decay: float | None = None,
    **defaults: Any,
) -> list[dict[str, Any]]:
    """Groups for any torch optimizer: `SGD(param_groups(model, {"features": {"lr": 1e-5}}, lr=1e-3))`.

    `groups` maps patterns to options. A pattern is the name of modules or parameters, with globs (`features`,
    `classifier.*`, `*.bias`, `blocks.[0-3]`); a `*` goes over dots too. It matches a parameter by any of its names,
    or by any module that the parameter lies in. The first that matches has the parameter; what none matches is the
    group "rest". `defaults` are options of every group. Parameters stay in the model's order, a tied one is there
    once.

    Options are the optimizer's, and three more. `lr_scale` multiplies the default rate. `freeze` is True for good, or
    a duration such as "2 epochs": the group's parameters stop requiring a gradient now, and `apply_freezing` lets them
    go when it is time. `schedule` is kept for `gradstep.fit`.

    `no_decay`: biases, whatever has one dimension or less, and the parameters of torch's norm layers get
    `weight_decay` 0, and no L1 decay either, in a group of their own named "... (no decay)"; also where the pattern set
    `weight_decay` itself, and not where it is 0 anyway.

    `layer_decay`: a rate is multiplied by `layer_decay` once for each layer above (Howard & Ruder 2018, section 3.2,
    with the factor 1/2.6), so the top layer keeps it; a rate that a pattern sets itself stays as written. Layers are
    the model's children that have parameters of their own, those of Sequential, ModuleList and ModuleDict in their
    place; a tied parameter belongs to the lowest layer that has it, and one of the model itself to the lowest of all.

    RecipeError for patterns without parameters and for options that are unknown or of the wrong type; ModelError for a
    model without parameters. Nothing has been changed then.
    """
    check_defaults(defaults)
    given = read_groups({} if groups is None else groups, defaults)
    if not isinstance(no_decay, bool):
        raise RecipeError(f"no_decay: {no_decay!r} is neither True nor False.")
    everything = named(model)
    *shares, rest = divide(model, everything, list(given))
    parts = [_of_pattern(*each, defaults) for each in zip(given, shares, given.values(), strict=True)]
    parts += [_Group(REST, rest, defaults)] if rest else []
    if layer_decay is not None:
        parts = _by_layer(model, parts, layer_decay)
    if no_decay:
        parts = _by_decay(model, parts)
    made = [part.as_torch_has_it() for part in parts]
    apply_freezing(made, step=0, clock=Clock(steps_per_epoch=1, total=0))  # before the first step, any clock will do
    return made


def _of_pattern(
    pattern: str, members: Sequence[Named], options: Mapping[str, Any], defaults: Mapping[str, Any]
) -> _Group:
    merged = {**defaults, **options}
    own_rate = "lr" in options or "lr_scale" in options
    if "lr_scale" in merged:
        merged["lr"] = defaults["lr"] * merged.pop("lr_scale")
    return _Group(pattern, members, merged, own_rate)


def _by_decay(model: nn.Module, groups: Sequence[_Group]) -> list[_Group]:
    norms = {p for module in model.modules() if isinstance(module, _NORMS) for p in module.parameters(recurse=False)}
    parts: list[_Group] = []
    for group in groups:
        decays = {name: group.options[name] for name in ("weight_decay", "weight_decay_l1") if name in group.options}
        # A decay that nobody gave is the optimizer's own default, which need not be 0: AdamW's is 0.01.
        nothing = "weight_decay" in decays and not any(float(value) for value in decays.values())
        if nothing or group.is_left_whole:
            parts.append(group)
            continue
        free = [each for each in group.members if _is_free(each, norms)]
        kept = [each for each in group.members if not _is_free(each, norms)]
        parts += group.part(group.name, kept)
        parts += group.part(f"{group.name} (no decay)", free, **{"weight_decay": 0.0, **dict.fromkeys(decays, 0.0)})
    return parts


def _is_free(each: Named, norms: set[nn.Parameter]) -> bool:
    last = [name.rpartition(".")[2] for name in each.names]
    is_bias = any(part.startswith("bias") or part.endswith("bias") for part in last)
    return is_bias or each.parameter.dim() <= 1 or each.parameter in norms


def _by_layer(model: nn.Module, groups: Sequence[_Group], decay: float) -> list[_Group]:
    if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0 < decay <= 1:
        raise RecipeError(f"layer_decay: {decay!r} is not a number above 0 and at most 1, as 0.75 is.")
    layers, layer_of = _layers(model)
    if len(layers) < 2:
        raise RecipeError(
            f"layer_decay: {type(model).__name__} has fewer than two layers, so there is nothing to decay. "
            "If it wraps the model, give the model inside."
        )
    parts: list[_Group] = []
    for group in groups:
        if group.own_rate or group.is_left_whole:
            parts.append(group)
            continue
        if "lr" not in group.options:
            raise RecipeError("layer_decay multiplies the default lr, and there is none: param_groups(..., lr=1e-3).")
        for number, name in enumerate(layers):
            members = [each for each in group.members if layer_of.get(each.parameter, 0) == number]
            rate = group.options["lr"] * decay ** (len(layers) - 1 - number)
            parts += group.part(f"{group.name} [{name}]", members, lr=rate)
    return parts


def _layers(model: nn.Module) -> tuple[list[str], dict[nn.Parameter, int]]:
    """The names of the layers from the bottom up, and the number of the lowest layer that has a parameter.

    What has no parameter of its own is no layer: neither a ReLU nor a head that is tied to the embedding.
    """
    names: list[str] = []
    layer_of: dict[nn.Parameter, int] = {}
    for name, layer in _expanded(model):
        if own := [parameter for parameter in layer.parameters() if parameter not in layer_of]:
            layer_of |= dict.fromkeys(own, len(names))
            names.append(name)
    return names, layer_of


def _expanded(module: nn.Module, inside: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if isinstance(child, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            yield from _expanded(child, f"{inside}{name}.")
        else:
            yield f"{inside}{name}", child
