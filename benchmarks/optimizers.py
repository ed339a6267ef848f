"""`python -m benchmarks.optimizers`: what gradstep's SGD costs beside others. Record: records/optimizers.json.

`optimizer.step()` alone, on LeNet (62,006 parameters in 10 tensors) and on an MLP of 3.8 million in 6, on one thread:

- gradstep's against torch's, with options that torch has too: the two give the same bits;
- gradstep's with L1 and L2 decay against the class of the document, written for today's torch;
- torch's against itself: how far from 1 a ratio is here without any reason.

Both step the same parameters, so that neither lies better in memory, and take turns as in benchmarks/updates.py. The
document's class adds the decays into `.grad`: its `gradients_apart` shows that. A ratio below 1 is in our favour.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from benchmarks.updates import Step, ratio
from gradstep.models import MLP, LeNet
from gradstep.optim.descent import SGD

RECORD = Path(__file__).parent / "records" / "optimizers.json"


class DocumentSGD(Optimizer):
    """The document's own optimizer with L1 and L2 decay, as its author would write it for today's torch."""

    def __init__(
        self,
        params: Any,
        lr: float,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay1: float = 0,
        weight_decay2: float = 0,
        nesterov: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay1": weight_decay1,
            "weight_decay2": weight_decay2,
            "nesterov": nesterov,
        }
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            momentum = group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                d_p = p.grad
                if group["weight_decay1"] != 0:
                    d_p.add_(torch.sign(p), alpha=group["weight_decay1"])
                if group["weight_decay2"] != 0:
                    d_p.add_(p, alpha=group["weight_decay2"])
                if momentum != 0:
                    state = self.state[p]
                    if "momentum_buffer" not in state:
                        buf = state["momentum_buffer"] = torch.zeros_like(p)
                        buf.mul_(momentum).add_(d_p)
                    else:
                        buf = state["momentum_buffer"]
                        buf.mul_(momentum).add_(d_p, alpha=1 - group["dampening"])
                    d_p = d_p.add(buf, alpha=momentum) if group["nesterov"] else buf
                p.add_(d_p, alpha=-group["lr"])
        return loss


def contest(
    model: Callable[[], nn.Module], contenders: Mapping[str, Callable[[Any], Optimizer]]
) -> Callable[[str], tuple[Step, nn.Module]]:
    torch.manual_seed(0)
    net = model()
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)

    def make(name: str) -> tuple[Step, nn.Module]:
        return contenders[name](net.parameters()).step, net

    return make


def against_torch(**options: Any) -> dict[str, Callable[[Any], Optimizer]]:
    return {
        "gradstep": lambda params: SGD(params, 1e-7, **options),
        "torch": lambda params: torch.optim.SGD(params, 1e-7, **options),
    }


def torch_against_itself() -> dict[str, Callable[[Any], Optimizer]]:
    """What this machine makes of no difference at all: the two velocities lie at different places."""
    return {name: lambda params: torch.optim.SGD(params, 1e-7, momentum=0.9) for name in ("torch, first", "torch")}


def against_the_document(momentum: float) -> dict[str, Callable[[Any], Optimizer]]:
    return {
        "gradstep": lambda params: SGD(params, 1e-7, momentum=momentum, weight_decay_l1=1e-6, weight_decay=1e-6),
        "document": lambda params: DocumentSGD(params, 1e-7, momentum=momentum, weight_decay1=1e-6, weight_decay2=1e-6),
    }


CONTESTS = {
    "torch by torch, momentum": torch_against_itself(),
    "gradstep by torch, plain": against_torch(),
    "gradstep by torch, momentum": against_torch(momentum=0.9),
    "gradstep by torch, Nesterov and L2": against_torch(momentum=0.9, nesterov=True, weight_decay=1e-6),
    "gradstep by torch, momentum, foreach": against_torch(momentum=0.9, foreach=True),
    "gradstep by document, L1 and L2": against_the_document(0.0),
    "gradstep by document, L1, L2 and momentum": against_the_document(0.9),
}
MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {  # steps in a block
    "LeNet": (LeNet, 40),
    "MLP of 3.8 million": (lambda: MLP(1024, hidden=1500), 2),
}


def main() -> None:
    torch.set_num_threads(1)
    results = {}
    for net, (model, block) in MODELS.items():
        for title, contenders in CONTESTS.items():
            name = f"{net}: {title}"
            first, second = contenders
            results[name] = ratio(contest(model, contenders), (first, second), 100, block)
            print(name, json.dumps(results[name]), flush=True)
    machine = {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "torch": str(torch.__version__),
        "threads": 1,
    }
    RECORD.write_text(json.dumps({"machine": machine, "ratios": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
