"""The plan: what will be done and why, decided before the first step, printed, and kept as plan.json.

So far there is one plan, `plain`: the textbook loop, in micro-batches where they are asked for.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from gradstep.errors import RecipeError
from gradstep.update import Update, Way


@dataclass(frozen=True, slots=True)
class Plan:
    """`plan` is the name it was asked for by; `threads` are torch's own on the CPU when the run began."""

    plan: str
    update: str  # the method that fills .grad
    proof: str  # why it is right
    micro_batches: dict[str, list[int]]  # for each size of batch there is, the sizes of its micro-batches
    stat_group: int | None
    dropout: str
    device: str
    threads: int

    @classmethod
    def decide(cls, plan: str, update: Update, device: torch.device) -> Plan:
        """The plan for an update as far as it has decided. RecipeError for a plan that this version does not have."""
        if plan != "plain":
            raise RecipeError(f"plan: {plan!r} is not there; this version runs plan='plain', the textbook loop.")
        apart: dict[int, Way] = {samples: way for samples, way in update.ways.items() if len(way.sizes) > 1}
        method, proof = "one_pass", ""
        if update.micro_batch is not None and not update.ways:
            method, proof = "auto", "decided on the first batch, which can't be seen before"
        elif apart:
            way = apart[max(apart)]
            method, proof = way.method, way.proof
        return cls(
            plan=plan,
            update=method,
            proof=proof,
            micro_batches={str(samples): list(way.sizes) for samples, way in apart.items()},
            stat_group=update.stat_group,
            dropout=update.dropout,
            device=str(device),
            threads=torch.get_num_threads(),
        )

    def document(self) -> dict[str, Any]:
        return asdict(self)

    def facts(self) -> list[tuple[str, str]]:
        """Lines for people: the plan, and why a batch taken apart gives the same gradient."""
        sizes = max(self.micro_batches.values(), key=sum, default=[])
        least, most = min(sizes, default=0), max(sizes, default=0)
        each = f" in {len(sizes)} micro-batches of {most if least == most else f'{least} to {most}'}" if sizes else ""
        groups = f", BatchNorm over groups of {self.stat_group}" if self.stat_group else ""
        machine = f"{self.device}, {self.threads} threads"
        text = f"{self.plan}: update {self.update}{each}{groups}, dropout {self.dropout}, {machine}"
        return [("plan", text)] + ([("", f"{self.update}: {self.proof}")] if self.proof else [])
