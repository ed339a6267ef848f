"""Batches cut and joined: sizes, what is cut and what stays, and which dimension is the samples'."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradstep.errors import ModelError, RecipeError
from gradstep.update.pieces import Layout, count, cut, follows, sizes

Pair = namedtuple("Pair", "a b")


@given(st.integers(1, 500), st.integers(1, 500))
def test_micro_batches_are_as_few_and_as_equal_as_can_be(samples: int, micro_batch: int) -> None:
    found = sizes(samples, micro_batch)
    assert sum(found) == samples
    assert max(found) <= micro_batch
    assert len(found) == -(-samples // micro_batch)
    assert max(found) - min(found) <= 1


@given(st.integers(1, 300), st.integers(1, 20), st.integers(1, 10))
def test_micro_batches_are_whole_groups_but_for_the_last(samples: int, group: int, times: int) -> None:
    found = sizes(samples, group * times, group)
    assert sum(found) == samples
    assert max(found) <= max(group * times, min(samples, group * times))
    assert all(size % group == 0 for size in found[:-1])
    assert max(found) - min(found) < 2 * group
    assert all(found)


@given(st.integers(2, 30), st.integers(1, 29))
def test_what_does_not_divide_is_an_error_that_names_what_does(group: int, over: int) -> None:
    micro_batch = group + over % group
    if micro_batch % group:
        with pytest.raises(RecipeError, match=f"not a multiple of stat_group {group}.*Take {group} or {2 * group}"):
            sizes(1000, micro_batch, group)


@given(st.integers(2, 12), st.data())
def test_pieces_put_together_are_the_batch(samples: int, data: Any) -> None:
    batch = {
        "x": torch.arange(samples * 3).reshape(samples, 3),
        "shared": torch.zeros(samples + 1, 2),
        "scalar": torch.ones(()),
        "words": [str(n) for n in range(samples)],
        "few words": ["a"],
        "pair": Pair(torch.arange(samples), None),
        "option": 3,
    }
    at = data.draw(st.integers(1, samples - 1))
    one, other = cut(batch, samples, 0, at), cut(batch, samples, at, samples - at)
    assert torch.equal(torch.cat((one["x"], other["x"])), batch["x"])
    assert torch.equal(torch.cat((one["pair"].a, other["pair"].a)), batch["pair"].a)
    assert one["words"] + other["words"] == batch["words"]
    assert isinstance(one["pair"], Pair)
    for name in ("shared", "scalar", "option"):
        assert one[name] is batch[name]
    assert one["few words"] == ["a"]


def test_how_many_samples_a_batch_has() -> None:
    assert count(torch.zeros(5, 2), None) == 5
    assert count({"words": ["a", "b", "c"]}, torch.zeros(7)) == 3
    assert count(["a", "b"], None) == 2
    assert count(torch.zeros(()), torch.zeros(4)) == 4
    assert count(None, None) == 1


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2), st.integers(1, 3))
def test_the_samples_dimension_is_the_one_that_follows_their_number(
    few: int, rows: int, other: int, place: int, more: int
) -> None:
    one, two = [other] * 3, [other] * 3
    one[place], two[place] = rows * few, rows * (few + more)
    assert follows(one, few, two, few + more) == (place, rows)
    assert follows([other], few, [other], few + more) is None


@pytest.mark.parametrize(("one", "two"), [((2, 2), (3, 3)), ((2,), (3, 1)), ((5,), (6,)), ((1,), (2,))])
def test_what_can_t_be_told_raises(one: tuple[int, ...], two: tuple[int, ...]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        follows(one, 2, two, 3)


def test_outputs_that_can_t_be_told_are_an_error_with_their_shapes() -> None:
    scores = [torch.zeros(n, n) for n in (2, 3)]
    with pytest.raises(ModelError, match=r"can't be told: 2×2 float32 for 2 samples, 3×3 float32 for 3.*by forward="):
        Layout.learn(scores[0], 2, scores[1], 3)
    with pytest.raises(ModelError, match="nested otherwise for 2 samples than for 3"):
        Layout.learn([scores[0]], 2, (scores[1],), 3)


@given(st.integers(2, 9), st.integers(1, 3))
def test_leaves_are_joined_along_their_own_dimension(samples: int, rows: int) -> None:
    def outputs(first: int, number: int) -> dict[str, Any]:
        there = torch.arange(first, first + number)
        return {"plain": there[:, None], "rows": there.repeat_interleave(rows), "second": there.expand(2, -1),
                "shared": torch.ones(4), "word": "a"}  # fmt: skip

    layout = Layout.learn(outputs(0, 2), 2, outputs(0, 3), 3)
    pieces = [layout.flatten(outputs(0, 1)), layout.flatten(outputs(1, samples - 1))]
    joined, whole = layout.join(pieces), outputs(0, samples)
    assert all(torch.equal(joined[name], whole[name]) for name in ("plain", "rows", "second", "shared"))
    assert joined["word"] == "a"
    assert torch.equal(layout.rows(joined["rows"], (0, rows), 1, 1), whole["rows"][rows : 2 * rows])
    with pytest.raises(ModelError, match="where they had"):
        layout.check(pieces[0], 3)
    with pytest.raises(ModelError, match="nested otherwise than at first"):
        layout.flatten((1, 2))
