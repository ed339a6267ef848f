"""TrainState: all that a run is. What is not in it is not saved, and what can be derived is not in it.

There is no random state among it (streams are functions of seed and step), no position in the data (a function of
the step), and no schedule (a function of the step too, but for the few numbers of one that goes by a metric).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradstep.errors import CheckpointError, ModelError
from gradstep.optim import values
from gradstep.optim.averaging import Average
from gradstep.schedules import PlateauNumbers

Tensors = dict[str, Tensor]


@dataclass(slots=True)
class Standing:
    """What the monitored metric has been: enough to choose the best and to stop early."""

    best: float | None = None
    best_step: int | None = None
    previous: float | None = None  # at the last evaluation
    falls: int = 0  # evaluations in a row that were worse than the one before
    stopped: str | None = None  # why the run ended before its last step, if it did


@dataclass(slots=True)
class TrainState:
    """The model, the optimizer, how far it is, and how it stands.

    `bases` are the numbers among the optimizer's options as given, for each group: what schedules start from.
    """

    model: nn.Module
    optimizer: Optimizer
    criterion: Any
    seed: int
    step: int = 0
    samples: int = 0  # trained on so far; a source of whole batches need not have them all of one size
    bases: list[dict[str, float]] = field(default_factory=list)
    standing: Standing = field(default_factory=Standing)
    ema: Average | None = None
    plateaus: list[PlateauNumbers] = field(default_factory=list)  # of schedules that go by a metric

    def __post_init__(self) -> None:
        if not self.bases:
            self.bases = bases_of(self.optimizer)

    @property
    def base_rates(self) -> list[float]:
        """The learning rates as given, one per group."""
        return [base["lr"] for base in self.bases if "lr" in base]

    @property
    def judged(self) -> nn.Module:
        """The model to evaluate, to choose by and to use: the average where there is one for that, else the model."""
        average = self.ema
        return average.module if average is not None and average.evaluate and average.begun(self.step) else self.model

    def trained(self) -> list[nn.Parameter]:
        """The parameters that the optimizer holds, in the model's order, whatever groups they are in."""
        held = dict.fromkeys(parameter for group in self.optimizer.param_groups for parameter in group["params"])
        own = [parameter for _, parameter in _named_parameters(self) if parameter in held]
        return list(dict.fromkeys([*own, *held]))  # a sum over them then rounds as in a textbook loop

    def tensors(self) -> dict[str, Tensors]:
        """What is saved as tensors, by the file it goes to."""
        files = {"model": module_tensors(self.model), "optimizer": _optimizer_state(self)[0]}
        if isinstance(self.criterion, nn.Module) and (own := module_tensors(self.criterion)):
            files["criterion"] = own
        if self.ema is not None:
            files["ema"] = module_tensors(self.ema.module)
        return files

    def numbers(self) -> dict[str, Any]:
        """What is saved as JSON."""
        return {
            "step": self.step,
            "samples": self.samples,
            "seed": self.seed,
            "bases": self.bases,
            "plateaus": [_spelled_out(numbers) for numbers in self.plateaus],
            "standing": _spelled_out(self.standing),
            "optimizer": _optimizer_state(self)[1],
        }

    def load(self, files: Mapping[str, Tensors], numbers: Mapping[str, Any]) -> None:
        """Becomes what was saved, in place: the user's model and optimizer stay the objects they are.

        Everything is looked at before anything is changed.
        """
        if "criterion" in files and not isinstance(self.criterion, nn.Module):
            raise CheckpointError("the checkpoint holds tensors of a criterion, and this one is a function.")
        if ("ema" in files) != (self.ema is not None) or len(numbers["plateaus"]) != len(self.plateaus):
            raise CheckpointError(
                "the checkpoint is of a run with another ema, or another schedule. Resume with those it began with."
            )
        modules = [(self.model, files["model"])]
        modules += [(self.ema.module, files["ema"])] if self.ema is not None else []
        modules += [(self.criterion, files["criterion"])] if "criterion" in files else []
        _check_optimizer(self, numbers["optimizer"])
        for module, tensors in modules:
            _check_module(module, tensors)
        for module, tensors in modules:
            load_module(module, tensors)
        _load_optimizer(self, files["optimizer"], numbers["optimizer"])
        self.step, self.samples, self.seed = numbers["step"], numbers["samples"], numbers["seed"]
        self.bases = [dict(base) for base in numbers["bases"]]
        for own, given in zip(self.plateaus, numbers["plateaus"], strict=True):
            for name, value in given.items():
                setattr(own, name, float(value) if name == "best" and value is not None else value)
        if self.ema is not None:
            self.ema.resume(self.step)
        saved = numbers["standing"]
        self.standing = Standing(**{**saved, **{n: None if saved[n] is None else float(saved[n]) for n in _FLOATS}})


_FLOATS = ("best", "previous")
_NOT_SAVED = ("params", "schedule", "freeze")  # what a group is to do is meaning, as the run's schedule is


def bases_of(optimizer: Optimizer) -> list[dict[str, float]]:
    """The numbers among each group's options."""
    return [values.numbers(group) for group in optimizer.param_groups]


def _spelled_out(numbers: Standing | PlateauNumbers) -> dict[str, Any]:
    """JSON has no infinity; a metric may."""
    return {n: repr(v) if isinstance(v, float) and not math.isfinite(v) else v for n, v in asdict(numbers).items()}


def module_tensors(module: nn.Module) -> Tensors:
    """Parameters and persistent buffers by name. A tensor that has several names is there under the first only."""
    tensors: Tensors = {}
    seen: set[tuple[Any, ...]] = set()
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor) or name.rpartition(".")[2] == "_extra_state":
            raise ModelError(
                f"{type(module).__name__} keeps '{name}' in its state, a {type(value).__name__}. gradstep saves "
                "parameters and buffers, never pickles: register it as a buffer, or leave out get_extra_state()."
            )
        place = (value.data_ptr(), value.shape, value.stride(), value.dtype, value.device)
        if value.numel() == 0 or place not in seen:
            tensors[name] = value.detach()
            seen.add(place)
    return tensors


@torch.no_grad()
def load_module(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copies saved tensors into a module's own, by name. ModelError names what does not fit, and nothing is copied."""
    _check_module(module, tensors)
    own = module.state_dict()
    for name, value in tensors.items():
        own[name].copy_(value)  # into the tensor that is there: identity, memory format and ties stay


def _check_module(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    own, expected = module.state_dict(), module_tensors(module)
    for name, value in tensors.items():
        if name not in own:
            raise ModelError(f"the saved weights hold '{name}', which {type(module).__name__} does not have.")
        if own[name].shape != value.shape:
            raise ModelError(f"'{name}' is {list(own[name].shape)} in the model, {list(value.shape)} in the weights.")
    if missing := sorted(set(expected) - set(tensors)):
        raise ModelError(f"the saved weights lack {', '.join(missing[:5])}, which {type(module).__name__} has.")


def _named_parameters(state: TrainState) -> Iterator[tuple[str, nn.Parameter]]:
    yield from state.model.named_parameters()
    if isinstance(state.criterion, nn.Module):
        yield from (("criterion." + name, parameter) for name, parameter in state.criterion.named_parameters())


def _names(state: TrainState) -> dict[Tensor, str]:
    """The name of each parameter the optimizer holds; one that belongs to neither model nor criterion has its place."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in reversed(list(_named_parameters(state)))}
    for number, group in enumerate(state.optimizer.param_groups):
        for place, parameter in enumerate(group["params"]):
            names.setdefault(parameter, f"group{number}.{place}")
    return names


def _optimizer_state(state: TrainState) -> tuple[Tensors, dict[str, Any]]:
    """`(tensors, numbers)`: what each parameter's slots hold is written in the numbers, naming the tensors."""
    names, tensors = _names(state), Tensors()
    groups = [
        {
            "params": [names[parameter] for parameter in group["params"]],
            "options": {
                option: value.item() if isinstance(value, Tensor) else value
                for option, value in group.items()
                if option not in _NOT_SAVED
            },
        }
        for group in state.optimizer.param_groups
    ]
    held = state.optimizer.state
    slots = {
        name: {slot: _put(f"{name}/{slot}", value, tensors) for slot, value in held[parameter].items()}
        for parameter, name in sorted(names.items(), key=lambda item: item[1])  # not in the order that they came to it
        if parameter in held
    }
    return tensors, {"class": type(state.optimizer).__name__, "groups": groups, "slots": slots}


def _put(path: str, value: Any, tensors: Tensors) -> dict[str, Any]:
    if isinstance(value, Tensor):
        tensors[path] = value.detach()
        # Adam keeps its step count on the CPU beside moments on the device; a tensor goes back to where it was.
        return {"tensor": path, "on_host": value.device.type == "cpu"}
    if isinstance(value, (list, tuple)):
        return {"list": [_put(f"{path}/{place}", each, tensors) for place, each in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise ModelError(
        f"the optimizer keeps '{path}', a {type(value).__name__}. gradstep saves tensors and numbers only."
    )


def _get(saved: Mapping[str, Any], tensors: Tensors, device: torch.device) -> Any:
    if "tensor" in saved:
        value = tensors[saved["tensor"]]
        return value if saved["on_host"] else value.to(device)
    if "list" in saved:
        return [_get(each, tensors, device) for each in saved["list"]]
    return saved["value"]


def _check_optimizer(state: TrainState, numbers: Mapping[str, Any]) -> None:
    names = _names(state)
    own = [[names[parameter] for parameter in group["params"]] for group in state.optimizer.param_groups]
    now, same = type(state.optimizer).__name__, own == [group["params"] for group in numbers["groups"]]
    if numbers["class"] != now or not same:
        slots = Counter(slot for each in numbers["slots"].values() for slot in each)
        lost = ", ".join(f"{slot} of {count} parameters" for slot, count in slots.items()) or "nothing"
        raise CheckpointError(
            f"the checkpoint is of {numbers['class']}{'' if same else ' over other parameters or groups'}, and this is "
            f"{now}. Resume with the optimizer that the run was started with; or begin another run from its weights, "
            f"in a recipe by model.weights, which forgets {lost}."
        )


def _load_optimizer(state: TrainState, tensors: Tensors, numbers: Mapping[str, Any]) -> None:
    """By parameter name and in the saved dtype; `Optimizer.load_state_dict` would cast to the parameter's."""
    names = _names(state)
    for group, saved in zip(state.optimizer.param_groups, numbers["groups"], strict=True):
        for option, value in saved["options"].items():
            if isinstance(group.get(option), Tensor):
                group[option].fill_(value)
            else:
                group[option] = tuple(value) if isinstance(group.get(option), tuple) else value
    state.optimizer.state.clear()
    for parameter, name in names.items():
        if name in numbers["slots"]:
            slots = numbers["slots"][name].items()
            state.optimizer.state[parameter] = {slot: _get(saved, tensors, parameter.device) for slot, saved in slots}
