"""What a model does with its samples, seen from a few small forwards: enough to cut its batches, or to say why not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gradstep.errors import ModelError
from gradstep.update.buffers import Kept
from gradstep.update.keyed import Call, KeyedDropout
from gradstep.update.looks import Look
from gradstep.update.near import away, near
from gradstep.update.norm import NormGroups
from gradstep.update.pieces import Follows, Layout, follows, same_value
from gradstep.update.replay import Streams

Layouts = dict[Call, Follows | None]


@dataclass(frozen=True, slots=True)
class Traits:
    """What was seen of a model; `notes` are for its user."""

    layout: Layout
    row_shapes: tuple[tuple[int, ...], ...]  # of each leaf of the outputs: its shape but for the first dimension
    dropout: Layouts  # how each call of keyed dropout lies; None where it is no sample's
    changes: tuple[str, ...]  # buffers that a forward changes
    edits_inputs: bool
    draws: tuple[str, ...]  # what it draws from besides keyed dropout, with the line of the user's code
    dropouts: tuple[str, ...]  # those of them that are dropout

    @property
    def notes(self) -> list[str]:
        """What of this makes a result depend on the micro-batches without being wrong."""
        if not self.draws:
            return []
        return [f"the model draws random numbers ({'; '.join(self.draws)}): other micro-batches, other numbers."]


class Looks:
    """Three forwards of the first samples: of few, of more, and of as many of which the last is another.

    The third tells whether a sample depends on its neighbours where the number of them changes nothing, and whether
    rows lie sample after sample; it has the same random numbers as the second. `unit` is how many samples belong
    together, as in a group of BatchNorm. Buffers and streams are afterwards as they were.
    """

    def __init__(
        self,
        forward: Callable[[Any], Any],
        inputs: Any,
        samples: int,
        keyed: KeyedDropout | None,
        norm: NormGroups | None,
        streams: Streams,
        buffers: Kept,
        unit: int = 1,
    ) -> None:
        few, more = _sizes(samples, unit)
        self.alone = (more - 1) // unit * unit  # the samples that the last one must not touch
        looks, changes = [], list[str]()
        for numbers in (range(few), range(more), [*range(more - 1), 0]):
            try:
                looks.append(Look(forward, inputs, samples, numbers, keyed, norm, streams))
                changes = changes or buffers.changed()
            finally:
                buffers.put_back()
        self.few, self.more, self.other = looks
        self.changes = tuple(changes)
        self.telling = more > few  # a single sample tells nothing of others

    def traits(self) -> Traits:
        """ModelError: the model couples samples, or its outputs' samples, or a dropout's, can't be told."""
        self.hold_norms()  # first: it says more than that samples are coupled
        few, more = self.few, self.more
        layout = Layout.simple_for(few.outputs, few.samples)
        if self.telling:
            layout = Layout.learn(few.outputs, few.samples, more.outputs, more.samples)
        if self.telling and not more.draws:  # where numbers are drawn, outputs of another size differ by them
            _hold_apart(layout, few.outputs, more.outputs, few.samples)
        _hold_apart(layout, more.outputs, self.other.outputs, self.alone)
        layouts = self.dropout()
        for call, inputs in more.dropped.items():
            if self.telling and layouts.get(call) is None and not same_value(inputs, self.other.dropped.get(call)):
                raise ModelError(
                    f"dropout: '{call[0]}' gets a tensor of shape {list(inputs.shape)} for {more.samples} samples, and "
                    "which of its elements are a sample's can't be told, so micro-batches would have other masks. "
                    "Give it a tensor with the rows of each sample together, samples first."
                )
        return Traits(
            layout=layout,
            row_shapes=tuple(
                tuple(leaf.shape[1:]) if isinstance(leaf, Tensor) else () for leaf in layout.flatten(few.outputs)
            ),
            dropout=layouts,
            changes=self.changes,
            edits_inputs=few.edited,
            draws=tuple(dict.fromkeys(more.draws)),
            dropouts=tuple(dict.fromkeys(more.dropouts)),
        )

    def dropout(self) -> Layouts:
        """How each call of keyed dropout lies; None where its elements are no sample's own."""
        found: Layouts = {}
        for call, inputs in self.few.dropped.items():
            more, other = self.more.dropped.get(call), self.other.dropped.get(call)
            if self.telling and more is not None and other is not None:
                found[call] = self._lies(inputs, more, other)
        return found

    def _lies(self, few: Tensor, more: Tensor, other: Tensor) -> Follows | None:
        try:
            place = follows(few.shape, self.few.samples, more.shape, self.more.samples)
        except ValueError:
            return None
        if place is None or more.shape != other.shape:
            return None
        first = (more.narrow(place[0], 0, self.alone * place[1]), other.narrow(place[0], 0, self.alone * place[1]))
        return place if _away(*first) <= near(more) else None  # else views after views, not sample after sample

    def hold_norms(self) -> None:
        """BatchNorm's groups are of consecutive samples, so its rows must lie sample after sample."""
        for call, more in self.more.normed.items():
            few, other = self.few.normed.get(call), self.other.normed.get(call)
            if not self.telling or few is None or other is None:
                continue
            place = self._lies(few, more, other)
            if place is None or place[0] != 0:
                raise ModelError(
                    f"stat_group: '{call[0]}' gets a tensor of shape {list(more.shape)} for {more.shape[0]} samples, "
                    "whose rows do not lie sample after sample, so groups of consecutive samples can't be told in it."
                )


def _sizes(samples: int, unit: int) -> tuple[int, int]:
    """Two numbers of samples to look at, whole units if there are so many."""
    if unit > 1:
        return (unit, 2 * unit) if samples >= 2 * unit else (samples, samples)
    return (min(2, samples), min(3, samples)) if samples != 2 else (1, 2)


def _hold_apart(layout: Layout, one: Any, other: Any, samples: int) -> None:
    """ModelError where the first samples' outputs depend on which others are in the batch."""
    for place, mine, theirs in zip(layout.leaves, layout.flatten(one), layout.flatten(other), strict=True):
        if place is None:
            apart, what = (0.0 if _same(mine, theirs) else 1.0), "an output without rows for the samples"
        elif samples:
            first = (layout.rows(mine, place, 0, samples), layout.rows(theirs, place, 0, samples))
            apart, what = _away(*first), "a sample's outputs"
        else:
            continue
        if apart > near(mine):
            raise ModelError(
                f"the model couples samples: {what} changed when other samples were in the batch (by {apart:.0e} of "
                "the largest), so micro-batches would compute something else. Leave micro_batch out; or take a layer "
                "that looks at one sample at a time, as GroupNorm or LayerNorm do; or move what looks at the whole "
                "batch into the criterion."
            )


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape:
        return _away(one, other) <= near(one)
    return same_value(one, other)


def _away(one: Tensor, other: Tensor) -> float:
    return float(away(one, other)) if one.numel() else 0.0
