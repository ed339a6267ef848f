"""Batches made ahead by a thread, and data kept on a device: the same batches, whoever makes them and when."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import Dataset

import gradstep
from gradstep.data import Feed, Splits, prepare
from gradstep.data.ahead import made_ahead
from gradstep.data.augment import Flip, Shift
from gradstep.data.mix import MixUp
from gradstep.data.sources import Items, Part, Tensors
from gradstep.errors import DataError, RecipeError
from gradstep.plan import choosing, proposals
from gradstep.plan.choosing import choose
from gradstep.plan.proposals import PROPOSALS
from gradstep.plan.shadow import DeclinedError, batches_apart
from tests.test_plan import WATCH, Slow, net, sgd, training_of

DATA = tuple(proposal for proposal in PROPOSALS if proposal.switch == "data")
PIXELS = torch.randint(0, 256, (53, 1, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
LABELS = torch.arange(53) % 5


def images(augment: Any = (), transforms: Any = ("float", {"normalize": "measured"})) -> Splits:
    return prepare(Splits(Tensors((PIXELS, LABELS), classes=tuple("abcde"))), list(transforms), list(augment))


def feed_of(augment: Any, batch_size: int, drop_last: bool, seed: int, part: bool = False) -> Feed:
    source = images(augment).train
    if part:
        source = Part(source, torch.arange(0, 53, 2))
    return Feed(source, batch_size, shuffle=True, drop_last=drop_last, seed=seed, augment=augment)


def same(ours: Any, theirs: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


AUGMENTATIONS = st.sampled_from([(), (Flip(),), (Flip(), Shift(2), MixUp(0.4))])


@settings(max_examples=40)
@given(AUGMENTATIONS, st.integers(1, 26), st.booleans(), st.integers(0, 9), st.booleans(), st.integers(0, 70))
def test_the_batches_are_the_same_by_a_thread_and_from_the_device(
    augment: Any, batch_size: int, drop_last: bool, seed: int, part: bool, first: int
) -> None:
    feed = feed_of(augment, batch_size, drop_last, seed, part)
    plain = list(feed.start(first, first + 9))
    for other in (feed.ahead(), feed.resident(), feed.resident().ahead()):
        assert all(same(a, b) for a, b in zip(plain, other.start(first, first + 9), strict=True))
        assert same(other[first], plain[0])


def test_threads_that_ask_at_once_don_t_disturb_each_other() -> None:
    feed = feed_of((Flip(), Shift(2)), 7, False, 3)
    expected = [feed[number] for number in range(80)]
    ahead = feed.ahead()
    several = [islice(ahead.start(first), 60) for first in (0, 9, 20)]
    for number in range(60):
        for first, batches in zip((0, 9, 20), several, strict=True):
            assert same(next(batches), expected[first + number])
        assert same(ahead[79 - number], expected[79 - number])  # while the threads draw orders of their own


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("gradstep batches")]


def test_no_thread_outlives_its_batches() -> None:
    batches = feed_of((), 5, False, 0).ahead().start(0)
    next(batches)
    assert threads()
    batches.close()  # type: ignore[attr-defined]  # as a loop does that is left
    assert threads() == []
    assert len(list(feed_of((), 5, False, 0).ahead().start(0, 30))) == 30
    assert threads() == []


def test_at_most_two_are_made_before_they_are_asked_for_and_an_error_comes_in_its_turn() -> None:
    made = []

    def make(step: int) -> int:
        made.append(step)
        if step == 4:
            raise DataError("sample 4 is spoiled")
        return step

    batches = made_ahead(make, count())
    for number in range(4):
        assert next(batches) == number
        time.sleep(0.02)
        assert len(made) <= number + 1 + 2
    with pytest.raises(DataError, match="sample 4 is spoiled"):
        next(batches)
    assert threads() == []


def test_where_no_thread_can_be_started_batches_are_made_when_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*_: Any) -> Any:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    assert list(islice(made_ahead(lambda step: step * step, count()), 5)) == [0, 1, 4, 9, 16]


class Own(Dataset[Any]):
    def __len__(self) -> int:
        return 53

    def __getitem__(self, index: int) -> Any:
        return PIXELS[index].float(), LABELS[index]


class Doubled:
    """A transform of the user's, which may be anything."""

    def __call__(self, inputs: Tensor) -> Tensor:
        return inputs.float() * 2

    def measured(self, passes: Any) -> Any:
        return self

    def document(self) -> Any:
        return "doubled"


def test_code_of_the_users_is_not_called_by_a_thread() -> None:
    own = Feed(Items(Own()), 5, shuffle=True)
    with pytest.raises(DataError, match="only batches of data in memory can be made ahead"):
        own.ahead()
    with pytest.raises(DataError, match="kept on the device"):
        own.resident()
    doubled = Feed(Tensors((PIXELS, LABELS), transforms=(Doubled(),)), 5, shuffle=True)
    with pytest.raises(DataError, match="made ahead"):
        doubled.ahead()
    assert same(doubled.resident()[0], doubled[0])  # asked for a batch after the other, as ever

    class Claims(Tensors):
        """A source of the user's that says that it lies in memory, and draws."""

        def batch(self, indices: Tensor, epoch: int, seed: int) -> Any:
            return PIXELS[indices] + torch.randn(1), LABELS[indices]

    claims = Feed(Claims((PIXELS, LABELS)), 5, shuffle=True)
    for made in (claims.ahead, claims.resident, Feed(Part(claims.source, torch.arange(9)), 5, shuffle=True).ahead):
        with pytest.raises(DataError, match="only"):
            made()
    checked = feed_of((), 5, False, 0)
    checked.checks.append(lambda batch, numbers, what: None)  # as a criterion's, which calls the user's unpack
    assert not checked.is_pure


def test_samples_lie_on_the_device_once_and_are_gone_with_the_last_feed(monkeypatch: pytest.MonkeyPatch) -> None:
    feed = feed_of((), 8, False, 0)
    there, again, expected = feed.resident(), feed.resident(), feed[3]
    assert there._there is again._there is not None
    gathers, batch = [], Tensors.batch

    def noted(source: Any, *rest: Any) -> Any:
        gathers.append(source)
        return batch(source, *rest)

    monkeypatch.setattr(Tensors, "batch", noted)
    assert same(there[3], expected)
    assert gathers == [there._there]
    gathers.clear()
    known = feed._known
    assert known is not None
    del there, again
    assert known() is None


def test_what_is_looked_through_batch_by_batch_is_so_before_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradstep.data.feed._SMALL", 100)
    pixels = PIXELS.float()
    floats = Feed(Tensors((pixels, LABELS)), 5, shuffle=True)
    assert floats.checks
    assert not floats.resident().checks
    assert same(floats.resident()[2], floats[2])
    pixels[41, 0, 3, 3] = float("nan")
    with pytest.raises(DataError, match="sample 41 holds nan"):
        floats.resident()
    assert not Feed(Tensors((PIXELS, LABELS)), 5, shuffle=True).checks  # whole numbers are always numbers


# As proposals.


def training_on(augment: Any = (), **more: Any) -> Any:
    return training_of(net(), train=images(augment).train, batch_size=8, **more)


def test_a_thread_is_proposed_where_there_is_something_to_make_and_somebody_to_make_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(proposals, "own_cores", lambda: 2)
    assert DATA[0].values(training_on()) == ["ahead"]
    assert DATA[0].values(training_of(net())) == []  # nothing is done to these batches
    assert DATA[0].values(training_of(net(), train=Own(), batch_size=8)) == []
    monkeypatch.setattr(proposals, "own_cores", lambda: 1)
    assert DATA[0].values(training_on()) == []


def test_on_a_device_data_are_kept_where_there_is_room_for_four(monkeypatch: pytest.MonkeyPatch) -> None:
    training = training_on()
    training.device = training.feed.device = torch.device("cuda")  # nothing is asked of it but its room
    size = 53 * (144 + 8)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * size, 80 * size))
    assert DATA[0].values(training) == ["resident", "ahead"]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * size - 1, 80 * size))
    assert DATA[0].values(training) == ["ahead"]


def test_batches_that_are_others_are_seen() -> None:
    training = training_on((Flip(),))
    feed = training.feed
    assert batches_apart(feed, feed.ahead()) == 0.0
    late = feed.ahead()
    late.start = lambda first, stop: feed.start(first + (first > 0), stop + (first > 0))
    for planted in (feed_of((Flip(),), 8, False, 1), late):
        with pytest.raises(DeclinedError, match="no longer the same"):
            batches_apart(feed, planted)


def test_where_batches_cost_next_to_nothing_no_thread_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposals, "own_cores", lambda: 2)

    training = training_of(Slow(), 100_000, train=images().train, batch_size=8)
    choose(training, DATA, now=lambda: WATCH[0])
    (verdict,) = training.plan.verdicts
    assert (verdict.found, verdict.why) == ("declined", "making the batch is 0% of a step's time")
    assert verdict.final


def test_it_is_raced_with_the_batches_and_the_feed_is_the_users_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposals, "own_cores", lambda: 2)
    training = training_on((Flip(), Shift(2)), steps=1_000_000)
    feed = training.feed
    monkeypatch.setattr(choosing, "_GRACE", 60.0)
    choose(training, DATA)
    (verdict,) = training.plan.verdicts
    assert verdict.ratio is not None, verdict  # whichever it is: on two cores others may have the second
    assert verdict.found != "adopted" or verdict.why.endswith("the same bits")
    assert training.feed is feed
    assert threads() == []


def runs(plan: Any, out: Path | None = None, **more: Any) -> Any:
    return gradstep.fit(
        net(), nn.CrossEntropyLoss(), images((Flip(), Shift(2), MixUp(0.3))).train, optimizer=sgd, steps=20,
        batch_size=8, plan=plan, quiet=True, out=out, **more,
    )  # fmt: skip


@pytest.mark.parametrize("word", ["ahead", "resident"])
def test_a_run_fed_otherwise_is_the_run_bit_for_bit(word: str, tmp_path: Path) -> None:
    plain, other = runs("plain"), runs({"data": word, "compile": "off"}, tmp_path)
    ours, theirs = plain.model.state_dict(), other.model.state_dict()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    plan = json.loads((other.path / "plan.json").read_text())
    assert plan["choices"] == {"data": word}
    assert threads() == []


def test_whole_batches_can_t_be_made_ahead() -> None:
    class Batches:
        def __len__(self) -> int:
            return 3

        def __iter__(self) -> Iterator[Any]:
            return iter([(torch.zeros(4, 1, 12, 12), torch.zeros(4, dtype=torch.int64))] * 3)

    with pytest.raises(
        RecipeError, match=r"plan\.data: ahead can't be had here .*as their owner makes them.* Write off"
    ):
        gradstep.fit(
            net(), nn.CrossEntropyLoss(), Batches(), optimizer=sgd, steps=6, plan={"data": "ahead"}, quiet=True
        )
