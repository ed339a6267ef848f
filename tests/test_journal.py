"""metrics.jsonl is gone on with behind a mark: what is torn behind it is cut off, what is damaged before it refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradstep.errors import CheckpointError
from gradstep.record import Journal, Mark

VALUES = st.floats(allow_nan=False) | st.integers(0, 9)
ROWS = st.lists(st.dictionaries(st.sampled_from(["step", "train/loss", "lr"]), VALUES, min_size=1), max_size=4)


def written(folder: Path, before: list[dict], behind: bytes) -> Mark:
    """A record of rows, with something behind them."""
    journal = Journal(folder / "metrics.jsonl", folder / "timing.jsonl")
    for row in before:
        journal.write(row)
    mark = journal.mark()
    journal.close()
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(behind)
    return mark


@given(ROWS, ROWS, st.binary(max_size=30))
def test_whatever_stands_behind_the_mark_the_rows_are_those_of_a_run_that_was_never_cut(
    tmp_path_factory: pytest.TempPathFactory, before: list[dict], then: list[dict], behind: bytes
) -> None:
    whole, cut = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("cut")
    written(whole, [*before, *then], b"")
    journal = Journal(cut / "metrics.jsonl", cut / "timing.jsonl", written(cut, before, behind))
    assert journal.rows == before
    for row in then:
        journal.write(row)
    mark = journal.mark()
    journal.close()
    content = (cut / "metrics.jsonl").read_bytes()
    assert content == (whole / "metrics.jsonl").read_bytes()
    assert mark.offset == len(content)


@given(ROWS.filter(bool), st.data())
def test_a_byte_changed_or_missing_before_the_mark_is_refused_and_the_record_left_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, before: list[dict], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    mark, path = written(folder, before, b"torn"), folder / "metrics.jsonl"
    at, content = data.draw(st.integers(0, mark.offset - 1)), path.read_bytes()
    changed = content[:at] + bytes([content[at] ^ 1 << data.draw(st.integers(0, 7))]) + content[at + 1 :]
    damaged = data.draw(st.sampled_from([changed, content[:at]]))
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match="The record was damaged since"):
        Journal(path, folder / "timing.jsonl", mark)
    assert path.read_bytes() == damaged
