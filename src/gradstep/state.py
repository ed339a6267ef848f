"""TrainState: all that a run is. What is not in it is not saved, and what can be derived is not in it.

There is no random state among it (streams are functions of seed and step), no position in the data (a function of
the step), and no schedule (a function of the step too, but for the few numbers of one that goes by a metric).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from gradstep import module_state, optimizer_state
from gradstep.errors import ChangedError, CheckpointError
from gradstep.module_state import load_module as load_module
from gradstep.module_state import module_tensors as module_tensors
from gradstep.optim import values
from gradstep.optim.averaging import Average
from gradstep.precision import LossScale
from gradstep.schedules import PlateauNumbers
from gradstep.snapshot import non_finite as non_finite
from gradstep.snapshot import on_host

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
    left_out: list[int] = field(default_factory=list)  # steps that changed nothing: no finite loss or gradient
    scale: LossScale | None = None  # of the loss, in fp16

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
        """What is saved as tensors, by the file it goes to: the run's own, which go on changing."""
        files = {name: module_tensors(module) for name, module in self._modules()}
        files["optimizer"] = optimizer_state.save(self.optimizer, _names(self))[0]
        return files

    def numbers(self) -> dict[str, Any]:
        """What is saved as JSON."""
        return {
            "step": self.step,
            "samples": self.samples,
            "seed": self.seed,
            "bases": [dict(base) for base in self.bases],
            "plateaus": [_spelled_out(numbers) for numbers in self.plateaus],
            "standing": _spelled_out(self.standing),
            "left_out": list(self.left_out),
            "scale": None if self.scale is None else asdict(self.scale),
            "layouts": {file: module_state.layouts(module) for file, module in self._modules()},
            "ties": {file: module_state.ties(module) for file, module in self._modules()},
            "optimizer": optimizer_state.save(self.optimizer, _names(self))[1],
        }

    def snapshot(self) -> tuple[dict[str, Tensors], dict[str, Any]]:
        """`tensors()` and `numbers()` as they are now, each tensor a copy on the CPU: a writer may take its time.

        Waits for the device.
        """
        return {file: on_host(tensors) for file, tensors in self.tensors().items()}, self.numbers()

    def load(
        self, files: Mapping[str, Mapping[str, Tensor]], numbers: Mapping[str, Any], *, keep_options: bool = False
    ) -> None:
        """Becomes what was saved, in place: the user's model and optimizer stay the objects they are.

        With `keep_options` the optimizer's options, what schedules start from and the seed stay those given now.
        Everything is looked at before anything is changed.
        """
        if missing := _SAVED - set(numbers):
            raise CheckpointError(f"the checkpoint's state.json lacks {', '.join(sorted(missing))}.")
        if "criterion" in files and not isinstance(self.criterion, nn.Module):
            raise CheckpointError("the checkpoint holds tensors of a criterion, and this one is a function.")
        if ("ema" in files) != (self.ema is not None) or len(numbers["plateaus"]) != len(self.plateaus):
            raise ChangedError(
                "the checkpoint is of a run with another ema, or another schedule. Resume with those it began with."
            )
        modules = [(file, module) for file, module in self._modules() if file in files]
        for file, module in modules:
            module_state.check_ties(module, numbers["ties"][file])
            module_state.check(module, files[file])
            module_state.check_types(module, files[file])
        optimizer = optimizer_state.read(self.optimizer, _names(self), files["optimizer"], numbers["optimizer"])
        # From here on nothing fails. Layouts come first: tensors are then copied into memory that lies as it lay.
        for file, module in modules:
            module_state.lay_out(module, numbers["layouts"][file])
            load_module(module, files[file])
        optimizer_state.load(self.optimizer, optimizer, keep_options)
        self.step, self.samples, self.left_out = numbers["step"], numbers["samples"], list(numbers["left_out"])
        if not keep_options:
            self.seed, self.bases = numbers["seed"], [dict(base) for base in numbers["bases"]]
        if self.scale is not None and numbers.get("scale"):
            self.scale = LossScale(**numbers["scale"])
        for own, given in zip(self.plateaus, numbers["plateaus"], strict=True):
            for name, value in given.items():
                setattr(own, name, float(value) if name == "best" and value is not None else value)
        if self.ema is not None:
            self.ema.resume(self.step)
        saved = numbers["standing"]
        self.standing = Standing(**{**saved, **{n: None if saved[n] is None else float(saved[n]) for n in _FLOATS}})

    def _modules(self) -> Iterator[tuple[str, nn.Module]]:
        """What has tensors to be saved, by the file they go to."""
        yield "model", self.model
        if isinstance(self.criterion, nn.Module) and module_tensors(self.criterion):
            yield "criterion", self.criterion
        if self.ema is not None:
            yield "ema", self.ema.module


_SAVED = {"step", "samples", "seed", "bases", "plateaus", "standing", "left_out", "layouts", "ties", "optimizer"}
_FLOATS = ("best", "previous")


def bases_of(optimizer: Optimizer) -> list[dict[str, float]]:
    """The numbers among each group's options."""
    return [values.numbers(group) for group in optimizer.param_groups]


def _spelled_out(numbers: Standing | PlateauNumbers) -> dict[str, Any]:
    """JSON has no infinity; a metric may."""
    return {n: repr(v) if isinstance(v, float) and not math.isfinite(v) else v for n, v in asdict(numbers).items()}


def _named_parameters(state: TrainState) -> Iterator[tuple[str, nn.Parameter]]:
    yield from state.model.named_parameters()
    if isinstance(state.criterion, nn.Module):
        yield from (("criterion/" + name, parameter) for name, parameter in state.criterion.named_parameters())


def _names(state: TrainState) -> dict[Tensor, str]:
    """The name of each parameter the optimizer holds; one that belongs to neither model nor criterion has its place."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in reversed(list(_named_parameters(state)))}
    for number, group in enumerate(state.optimizer.param_groups):
        for place, parameter in enumerate(group["params"]):
            names.setdefault(parameter, f"group{number}.{place}")
    return names
