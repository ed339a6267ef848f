"""The plan as a document: what was asked for, what was chosen, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from gradstep.plan.asked import OFF, SWITCHES, Asked
from gradstep.update import Update, Way


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found about one proposal. `ratio` is its time over plain: the median, with a 95 % interval."""

    switch: str
    value: Any
    found: str  # adopted, declined, or not tried
    why: str
    ratio: tuple[float, float, float] | None = None  # (median, low, high)
    final: bool = False  # whether another look would find the same; what noise has hidden is looked at again

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Verdict:
        """A verdict as JSON has it."""
        return cls(**{**document, "ratio": document["ratio"] and tuple(document["ratio"])})

    @property
    def adopted(self) -> bool:
        return self.found == "adopted"

    def words(self) -> str:
        """`memory_format=channels_last: adopted, 0.51 of plain (0.50 to 0.53)`."""
        return f"{self.switch}={self.value}: {self.found}, {self.why}"


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
    choices: Mapping[str, Any] = field(default_factory=dict)  # the switches that are on, and what they are set to
    verdicts: Sequence[Verdict] = ()
    note: str = ""  # why nothing was measured, where that was asked for

    @classmethod
    def decide(cls, asked: Asked, update: Update, device: torch.device) -> Plan:
        """The plan for an update as far as it has decided, with what is set by hand."""
        begun = cls(
            plan=asked.name,
            update="one_pass",
            proof="",
            micro_batches={},
            stat_group=update.stat_group,
            dropout=update.dropout,
            device=str(device),
            threads=torch.get_num_threads(),
            choices=asked.given,
        )
        return begun.decided(update)

    def decided(self, update: Update) -> Plan:
        """The same plan with how the update takes its batches, as far as it has decided."""
        apart: dict[int, Way] = {samples: way for samples, way in update.ways.items() if len(way.sizes) > 1}
        method, proof = "one_pass", ""
        if update.micro_batch is not None and not update.ways:
            method, proof = "auto", "decided on the first batch, which can't be seen before"
        elif apart:
            way = apart[max(apart)]
            method, proof = way.method, way.proof
        sizes = {str(samples): list(way.sizes) for samples, way in apart.items()}
        return replace(self, update=method, proof=proof, micro_batches=sizes)

    def chosen(self, choices: Mapping[str, Any], verdicts: Sequence[Verdict], note: str = "") -> Plan:
        """The same plan with what was found by measuring."""
        name = self.plan if choices or verdicts else "plain"
        return replace(self, plan=name, choices=dict(choices), verdicts=tuple(verdicts), note=note)

    def kept(self, document: Mapping[str, Any], asked: Asked) -> Plan:
        """The same plan with the choices of an earlier process of the run, which are made once, and those by hand."""
        before = document.get("choices", {}).items()
        choices = {switch: value for switch, value in before if asked.switches.get(switch) != OFF} | asked.given
        verdicts = [Verdict.of(each) for each in document.get("verdicts", [])]
        return replace(self, plan=document.get("plan", "plain"), choices=choices, verdicts=tuple(verdicts))

    def departures(self, document: Mapping[str, Any]) -> list[str]:
        """What is another than in an earlier process of the run."""
        before = document.get("choices", {})
        switches = [switch for switch in SWITCHES if before.get(switch) != self.choices.get(switch)]
        return [f"{each} was {before.get(each, OFF)} and is {self.choices.get(each, OFF)}" for each in switches]

    @property
    def recipe(self) -> Any:
        """How a recipe writes it: run again, it measures nothing."""
        return {**dict.fromkeys(SWITCHES, OFF), **self.choices} if self.choices else "plain"

    def document(self) -> dict[str, Any]:
        return asdict(self)

    def facts(self) -> list[tuple[str, str]]:
        """Lines for people: the plan, why a batch taken apart has the same gradient, what was tried and found."""
        sizes = max(self.micro_batches.values(), key=sum, default=[])
        least, most = min(sizes, default=0), max(sizes, default=0)
        each = f" in {len(sizes)} micro-batches of {most if least == most else f'{least} to {most}'}" if sizes else ""
        groups = f", BatchNorm over groups of {self.stat_group}" if self.stat_group else ""
        machine = f"{self.device}, {self.threads} threads"
        text = f"{self.plan}: update {self.update}{each}{groups}, dropout {self.dropout}, {machine}"
        tried = {verdict.switch for verdict in self.verdicts}
        lines = [f"{self.update}: {self.proof}"] if self.proof else []
        lines += [verdict.words() for verdict in self.verdicts]
        lines += [f"{switch}={value}: as asked for" for switch, value in self.choices.items() if switch not in tried]
        lines += [self.note] if self.note else []
        return [("plan", text), *(("", line) for line in lines)]
