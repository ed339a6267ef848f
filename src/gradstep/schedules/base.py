"""What a schedule is, how it becomes a function, and how several become one.

A schedule is a pure function `(step, base) -> value`: `step` counts optimizer steps from 0, `base` is the group's own
value. Any such function will do. The objects of this package hold lengths that are only known once the data is
("1 epoch"); `resolve` turns them into functions. Nothing here is about learning rates alone: a momentum or a weight
decay is scheduled the same way.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

from gradstep.clock import Clock, Duration
from gradstep.errors import RecipeError
from gradstep.schedules.checks import ascending

Rate = Callable[[int, float], float]
Groups = Sequence[Mapping[str, Any]]  # an optimizer's param_groups


@runtime_checkable
class Schedule(Protocol):
    """A schedule that must know the clock before it is a function."""

    def resolve(self, clock: Clock) -> Rate:
        """The function of (step, base) for a run of this clock."""


Part: TypeAlias = Schedule | Rate


class Composable:
    """What gradstep's own schedules share. `a * b` is `product(a, b)`, and either may be a plain function."""

    __slots__ = ()

    goes_last = False  # whether it gives values of its own, that only the parts before it in a product can change

    def notes(self, clock: Clock) -> list[str]:  # noqa: ARG002
        """What a person should know before training: sentences about lengths that don't fit the run."""
        return []

    def for_group(self, number: int, groups: Groups) -> Schedule:  # noqa: ARG002
        """The schedule of one of an optimizer's groups. The same object, unless the groups' schedules differ."""
        return self  # type: ignore[return-value]  # each of them has its own resolve

    def companions(self, groups: Groups) -> dict[str, Schedule]:  # noqa: ARG002
        """Schedules, by option, of what moves together with the option that this one is for."""
        return {}

    def __mul__(self, other: Part) -> Product:
        return product(self, other)  # type: ignore[arg-type]

    def __rmul__(self, other: Part) -> Product:
        return product(other, self)  # type: ignore[arg-type]


def resolve(schedule: Schedule | Rate, clock: Clock) -> Rate:
    """The function of a schedule, whichever of the two it is given as."""
    _checked([schedule])
    return schedule.resolve(clock) if isinstance(schedule, Schedule) else schedule


def notes(schedule: Schedule | Rate, clock: Clock) -> list[str]:
    """The sentences about lengths of a schedule that don't fit a run of this clock; a function has none."""
    own = getattr(schedule, "notes", None)
    return list(own(clock)) if own is not None else []


def spoken(steps: int, clock: Clock) -> str:
    """A length in both units, as in `30 steps (1.5 epochs)`."""
    return f"{Duration(steps, 'step')} ({steps / clock.steps_per_epoch:g} epochs)"


@dataclass(frozen=True, slots=True)
class Product(Composable):
    """Several schedules, each of which acts on what the next one gives."""

    parts: tuple[Part, ...]

    def resolve(self, clock: Clock) -> ProductRate:
        """The function of (step, base) for a run of this clock."""
        return ProductRate(tuple(resolve(part, clock) for part in self.parts))

    def notes(self, clock: Clock) -> list[str]:
        """Those of its parts, and one about their order where it matters."""
        found = [note for part in self.parts for note in notes(part, clock)]
        if any(getattr(part, "goes_last", False) for part in self.parts[:-1]):
            found.append(
                "schedule: in a product each part acts on what the next one gives, and from_torch gives rates of its "
                "own from a base. Write it last, as in warmup('1 epoch') * from_torch(...)."
            )
        return found

    def for_group(self, number: int, groups: Groups) -> Product:
        """The product of the parts' schedules of that group."""
        placed = _placed(self.parts, number, groups)
        return self if placed is self.parts else Product(placed)

    def companions(self, groups: Groups) -> dict[str, Schedule]:
        """Those of its parts; where several move one option, their product."""
        owns = [_companions(part, groups) for part in self.parts]
        return {name: Product(tuple(own[name] for own in owns if name in own)) for name in _names(owns)}


@dataclass(frozen=True, slots=True)
class Join(Composable):
    """Several schedules, one after the other."""

    parts: tuple[Part, ...]
    at: tuple[Duration, ...]

    def resolve(self, clock: Clock) -> JoinRate:
        """The function of (step, base) for a run of this clock. RecipeError where steps and epochs are out of order."""
        spans = self._spans(clock)
        rates = tuple(resolve(part, clock) for part, (_, clock) in zip(self.parts, spans, strict=True))
        return JoinRate(rates, tuple(start for start, _ in spans))

    def notes(self, clock: Clock) -> list[str]:
        """Those of the parts that the run reaches, and one for each that it does not."""
        found = []
        for number, (part, (start, own)) in enumerate(zip(self.parts, self._spans(clock), strict=True)):
            if start < clock.total:
                found += notes(part, own)
            else:
                begins, run = spoken(start, clock), spoken(clock.total, clock)
                found.append(f"schedule.at: part {number} begins after {begins}, and the run is over after {run}.")
        return found

    def for_group(self, number: int, groups: Groups) -> Join:
        """The parts' schedules of that group, one after the other."""
        placed = _placed(self.parts, number, groups)
        return self if placed is self.parts else Join(placed, self.at)

    def companions(self, groups: Groups) -> dict[str, Schedule]:
        """Those of its parts, each in its time; the option is at its base where a part does not move it."""
        owns = [_companions(part, groups) for part in self.parts]
        return {name: Join(tuple(own.get(name, unchanged) for own in owns), self.at) for name in _names(owns)}

    def _spans(self, clock: Clock) -> list[tuple[int, Clock]]:
        """Where each part begins, and its own clock: as long as the part, the last one until the end of the run."""
        ascending(self.at, "at", clock)
        starts = [0, *(clock.steps(each) for each in self.at)]
        ends = [*starts[1:], max(clock.total, starts[-1] + 1)]
        return [(start, Clock(clock.steps_per_epoch, end - start)) for start, end in zip(starts, ends, strict=True)]


@dataclass(frozen=True, slots=True)
class ProductRate:
    """The function of a product: `parts[0](step, parts[1](step, ... base))`."""

    parts: tuple[Rate, ...]

    def __call__(self, step: int, base: float) -> float:
        for part in reversed(self.parts):
            base = part(step, base)
        return base


@dataclass(frozen=True, slots=True)
class JoinRate:
    """The function of a join: `parts[i]` from step `starts[i]` on, which is its own step 0."""

    parts: tuple[Rate, ...]
    starts: tuple[int, ...]

    def __call__(self, step: int, base: float) -> float:
        number = bisect_right(self.starts, step) - 1
        return self.parts[number](step - self.starts[number], base)


def product(*parts: Part) -> Product:
    """Each schedule acts on what the next one gives: `product(a, b)` is `a(step, b(step, base))`, as is `a * b`.

    RecipeError for a part that is no schedule.
    """
    if not parts:
        raise RecipeError("schedule: a product needs a schedule, as in product(warmup('1 epoch'), cosine()).")
    return Product(_checked(parts))


def join(parts: Sequence[Part], at: Sequence[str | Duration]) -> Join:
    """One schedule after the other: `parts[i]` until `at[i]` of the run, as in `join([a, b], at=["2 epochs"])`.

    Each part begins with its own step 0, under a clock of its own length: until the next part, or the run's end.
    RecipeError for a part that is no schedule, and for times that are not in order or not one fewer than parts.
    """
    for name, given in (("parts", parts), ("at", at)):
        if isinstance(given, str) or not isinstance(given, Sequence):
            raise RecipeError(f"schedule.{name}: {given!r} is no list. Write join([a, b], at=['2 epochs']).")
    if not parts or len(at) != len(parts) - 1:
        raise RecipeError(
            f"schedule.at: {len(parts)} parts need {max(len(parts) - 1, 0)} times between them, not {len(at)}."
        )
    times = tuple(Duration.positive(each, "schedule.at") for each in at)
    ascending(times, "at")
    return Join(_checked(parts), times)


def unchanged(_step: int, base: float) -> float:
    """The schedule that leaves an option at its base."""
    return base


def _checked(parts: Sequence[Part]) -> tuple[Part, ...]:
    for part in parts:
        if isinstance(part, type) and issubclass(part, Composable):
            raise RecipeError(f"schedule: {part.__name__} is what makes a schedule, and has to be called.")
        if not (isinstance(part, Schedule) or callable(part)):
            raise RecipeError(
                f"schedule: {part!r} is neither a function (step, base) -> rate nor one of gradstep.schedules."
            )
    return tuple(parts)


def _placed(parts: tuple[Part, ...], number: int, groups: Groups) -> tuple[Part, ...]:
    """The parts for one group; the same tuple where that changes none, so that groups may share what it resolves to."""
    placed = tuple(part.for_group(number, groups) if isinstance(part, Composable) else part for part in parts)
    return parts if all(new is old for new, old in zip(placed, parts, strict=True)) else placed


def _companions(part: Part, groups: Groups) -> dict[str, Schedule]:
    return part.companions(groups) if isinstance(part, Composable) else {}


def _names(owns: Sequence[Mapping[str, Schedule]]) -> list[str]:
    return list(dict.fromkeys(name for own in owns for name in own))
