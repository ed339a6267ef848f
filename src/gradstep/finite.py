"""A loss or gradient that is no number is found before the update, and what is done then is a word of the recipe.

    stop      the run ends before the update: the weights are those of the step before
    skip      the step is counted and changes nothing
    rewind    the run goes back to its last checkpoint and comes by again, this step changing nothing

What `skip` and `rewind` left out is in the state and in metrics.jsonl, and there may be ten such steps in a run
unless another number is given: `{"skip": 3}`. In fp16 a gradient that overflows under its scale makes no such step: no
weight, slot or buffer changes, the scale is halved, and the row is in metrics.jsonl alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gradstep.errors import DivergedError, RecipeError, nearest
from gradstep.state import TrainState
from gradstep.update import Outcome, Sharing

POLICIES = ("stop", "skip", "rewind")
_MOST = 10


@dataclass(frozen=True, slots=True)
class OnNonfinite:
    """What is done about such a step, and about how many of them at most."""

    policy: str = "stop"
    most: int = _MOST

    @classmethod
    def parse(cls, given: Any) -> OnNonfinite:
        """`"stop"`, `"skip"`, `"rewind"`, or with a bound: `{"skip": 3}`. RecipeError for anything else."""
        if isinstance(given, OnNonfinite):
            return given
        policy, most = next(iter(given.items())) if isinstance(given, Mapping) and len(given) == 1 else (given, _MOST)
        if policy not in POLICIES or (policy == "stop" and isinstance(given, Mapping)):
            hint = nearest(str(policy), POLICIES)
            raise RecipeError(f"on_nonfinite: {given!r} is none of stop, skip, rewind, {{skip: 10}}.{hint}")
        if type(most) is not int or most < 1:
            raise RecipeError(f"on_nonfinite.{policy}: {most!r} is no number of steps; at least 1 may be left out.")
        return cls(str(policy), most)


@dataclass(slots=True)
class Guard:
    """Stands between the gradient and the update."""

    rule: OnNonfinite
    _buffers: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _holders: list[nn.Module] | None = None  # found once: a walk through a large model takes longer than the copies
    # Above 0 while a gradient on the CPU is not finite: one for all steps, since making one takes longer than the look.
    _flag: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float32, device="cpu"))

    def before(self, state: TrainState) -> None:
        """Notes what a forward may spoil: a step that is not made is to be as if it had not been.

        Where `lets` does not wait for the device, `stop` comes too late for that.
        """
        if self._holders is None:
            roots = [root for root in (state.model, state.criterion) if isinstance(root, nn.Module)]
            self._holders = [module for root in roots for module in root.modules() if module._buffers]
        if not self._holders:
            return
        held = (buffer for module in self._holders for buffer in module.buffers(recurse=False))
        waits = self.rule.policy != "stop" or state.scale is not None
        self._buffers = [(buffer, buffer.clone()) for buffer in held if waits or buffer.device.type == "cpu"]

    def lets(self, state: TrainState, outcome: Outcome) -> bool:
        """Whether the update may be made. Raises DivergedError where the run can't go on from here.

        On the CPU the answer is there. On a device waiting for it would cost what the step gains, so under `stop` and
        `rewind` it goes along with the outcome and is read with the loss, before anything is saved; `skip` waits, and
        so does fp16, whose gradients are divided by the scale here.
        """
        step = state.step + 1
        known = state.step in state.left_out  # found when the run came by here before
        groups = state.optimizer.param_groups
        gradients = [own for group in groups for parameter in group["params"] if (own := parameter.grad) is not None]
        scale = state.scale
        if scale is not None and gradients:
            torch._foreach_mul_(gradients, 1.0 / scale.value)
        gradient = self._finite(gradients) if at_hand(outcome.loss) else None
        if gradient is None:
            outcome.spoiled = spoiled(gradients)
            if not at_hand(outcome.loss) and self.rule.policy != "skip" and not known and scale is None:
                return True
            gradient = not bool(outcome.spoiled)  # this line and the next one wait for a device
            outcome.spoiled = None  # it is read
        loss = float(outcome.loss)
        fine = math.isfinite(loss) or not says_something(state.criterion, outcome)
        if fine and gradient and not known:
            if scale is not None:
                scale.keep()
            return True
        with torch.no_grad():
            for buffer, before in self._buffers:
                buffer.copy_(before)
        if scale is not None and fine and not known and not scale.at_its_end:
            scale.halve()
            outcome.left_out = True
            return False
        if self.rule.policy == "stop" or (self.rule.policy == "rewind" and not known):
            raise DivergedError(_diverged(step, None if fine else loss), step)
        self.leave_out(state, state.step)
        outcome.left_out = True
        return False

    def _finite(self, gradients: list[Tensor]) -> bool | None:
        """Whether all numbers are finite, by one call for all gradients, whatever their dtypes; None where it can't.

        To ask first whether it can would take longer than the look.
        """
        if not gradients or not gradients[0].is_cpu:
            return None
        try:
            torch._amp_foreach_non_finite_check_and_unscale_(gradients, self._flag, _ONE)
        except RuntimeError:  # something among them is not dense, or can't be written; others may have set it before
            self._flag.zero_()
            return None
        if self._flag.item() == 0:
            return True
        self._flag.zero_()
        return False

    def leave_out(self, state: TrainState, at: int) -> None:
        """Notes that step number `at` (0 is the first) is to change nothing. DivergedError when there are too many."""
        if at not in state.left_out:
            state.left_out.append(at)
        if len(state.left_out) > self.rule.most:
            raise DivergedError(
                f"step {at + 1} is the {len(state.left_out)}th whose loss or gradient is no finite number, and "
                f"on_nonfinite leaves out {self.rule.most} at most. Try a smaller learning rate (optimizer.lr), or "
                "look at the data.",
                at + 1,
            )


def at_hand(tensor: Tensor) -> bool:
    """Whether its numbers can be read without waiting for a device."""
    return tensor.is_cpu


def _diverged(step: int, loss: float | None) -> str:
    what = f"a gradient of step {step} is no finite number" if loss is None else f"the loss of step {step} is {loss}"
    return (
        f"{what}: the training has diverged, and this step was not made. Try a smaller learning rate (optimizer.lr), "
        "clip, a warm-up (schedule.warmup), or look at the data of that batch; on_nonfinite=skip leaves it out."
    )


def says_something(criterion: Any, outcome: Outcome) -> bool:
    """False for a batch in which every target is ignored: its loss is 0/0, its gradient 0."""
    shares = Sharing(criterion).shares(outcome.loss, outcome.terms, outcome.targets, outcome.samples, outcome.units)
    return all(bool(weight) for _, weight in shares.values())


def spoiled(gradients: Iterable[Tensor | None]) -> Tensor:
    """Above 0 if any number among the gradients is not finite: a tensor on their device, for which nobody waits.

    The kernel is the one that torch's GradScaler looks for overflows by. It multiplies by 1 as it looks, so every
    gradient stays as it is, bit for bit. Where it can't write it is not used: complex numbers, and elements that
    share their memory.
    """
    dense = [_numbers(gradient) for gradient in gradients if gradient is not None]
    by_kind: dict[tuple[torch.device, torch.dtype, bool], list[Tensor]] = {}
    for gradient in dense:
        read_only = gradient.is_complex() or 0 in gradient.stride()
        by_kind.setdefault((gradient.device, gradient.dtype, read_only), []).append(gradient)
    found = []
    for (device, _, read_only), some in by_kind.items():
        flag = torch.zeros((), dtype=torch.float32, device=device)  # whatever the default is
        if read_only:
            flag = torch.stack([~each.isfinite().all() for each in some]).any().float()
        else:
            torch._amp_foreach_non_finite_check_and_unscale_(some, flag, torch.ones_like(flag))
        found.append(flag)
    if len(found) == 1:
        return found[0]
    return torch.stack([flag.to(found[0].device) for flag in found]).amax() if found else torch.zeros(())


_ONE = torch.ones((), dtype=torch.float32, device="cpu")
_COMPRESSED = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)


def _numbers(gradient: Tensor) -> Tensor:
    """The numbers that a gradient holds: all of a dense one, those that are written down of a sparse one."""
    if gradient.is_sparse:
        return gradient._values()
    return gradient.values() if gradient.layout in _COMPRESSED else gradient
