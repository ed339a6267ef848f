"""The plan: what will be done and why, decided before the first step, printed, and kept as plan.json.

So far there is one plan, `plain`: the textbook loop.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from gradstep.errors import RecipeError


@dataclass(frozen=True, slots=True)
class Plan:
    """`plan` is the name it was asked for by; `threads` are torch's own on the CPU when the run began."""

    plan: str
    update: str
    dropout: str
    device: str
    threads: int

    @classmethod
    def decide(cls, plan: str, dropout: str, device: torch.device) -> Plan:
        """RecipeError for a plan or a dropout that this version does not have."""
        if plan != "plain":
            raise RecipeError(f"plan: {plan!r} is not there; this version runs plan='plain', the textbook loop.")
        if dropout != "stream":
            raise RecipeError(f"dropout: {dropout!r} is not there; this version has dropout='stream', torch's own.")
        return cls(plan, "one_pass", dropout, str(device), torch.get_num_threads())

    def document(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.plan}: update {self.update}, dropout {self.dropout}, {self.device}, {self.threads} threads"
