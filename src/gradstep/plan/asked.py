"""What the user says of the plan: all of it in a word, or switch by switch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gradstep.errors import RecipeError, listed, nearest

MEASURED, OFF = "measured", "off"
ON_REQUEST = ("graph",)  # not measured unless it is named: nobody has seen it on a device yet
# What each switch may be set to by hand, beside `measured` and `off`; int stands for a number of at least 1.
SWITCHES: dict[str, tuple[Any, ...]] = {
    "memory_format": ("channels_last",),
    "micro_batch": (int,),
    "optimizer": ("fused", "foreach"),
    "threads": (int,),
    "graph": ("step",),
    "data": ("resident", "ahead"),
    "evaluation": ("channels_last",),
    "evaluation_batch": (int,),
    "compile": ("model",),
}


@dataclass(frozen=True, slots=True)
class Asked:
    """For each switch `measured`, `off`, or a value that is taken as it is."""

    switches: Mapping[str, Any]

    @classmethod
    def parse(cls, given: Any) -> Asked:
        """`"measured"`, `"plain"`, or `{"compile": "off", "threads": 1}`, where what is not named is measured.

        RecipeError for anything else.
        """
        if isinstance(given, Asked):
            return given
        measured = {switch: OFF if switch in ON_REQUEST else MEASURED for switch in SWITCHES}
        if given in ("measured", "plain"):
            return cls(measured if given == "measured" else dict.fromkeys(SWITCHES, OFF))
        if not isinstance(given, Mapping):
            hint = nearest(str(given), ("measured", "plain"))
            raise RecipeError(
                f"plan: {given!r} is neither measured nor plain, nor switches such as {{compile: off}}.{hint}"
            )
        switches: dict[str, Any] = measured
        for name, value in given.items():
            if name not in SWITCHES:
                raise RecipeError(
                    f"plan: there is no switch '{name}'. There are {listed(SWITCHES)}.{nearest(str(name), SWITCHES)}"
                )
            value = OFF if value is False else value  # as YAML 1.1 would have read `off`
            if not _may_be(name, value):
                words = [each if each is not int else "a number" for each in (*SWITCHES[name], MEASURED, OFF)]
                raise RecipeError(f"plan.{name}: {value!r} is none of {listed(words)}.")
            switches[name] = value
        return cls(switches)

    def without(self, switch: str) -> Asked:
        """The same with this switch off."""
        return Asked({**self.switches, switch: OFF})

    @property
    def name(self) -> str:
        """`plain` where nothing is to be done, `given` where all is said, else `measured`."""
        values = set(self.switches.values())
        return "plain" if values == {OFF} else MEASURED if MEASURED in values else "given"

    @property
    def given(self) -> dict[str, Any]:
        """The switches that are set by hand."""
        return {name: value for name, value in self.switches.items() if value not in (MEASURED, OFF)}


def _may_be(name: str, value: Any) -> bool:
    if value in (MEASURED, OFF):
        return True
    if int in SWITCHES[name]:
        return type(value) is int and value >= 1
    return value in SWITCHES[name]
