"""What a step that raises leaves behind: the samples it died on, the line, and a stop to dying there for ever."""

from __future__ import annotations

import json
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gradstep
from gradstep import failure
from gradstep.clock import Clock
from gradstep.data import Feed, Part, Tensors
from gradstep.errors import DataError, DivergedError, GradstepError
from gradstep.rundir import RunDir

CLOCK = Clock(steps_per_epoch=5, total=50)


class OddSampleError(ValueError):
    """One of the user's own."""


class Net(nn.Linear):
    """Samples hold their own numbers, so what it saw last can be held against what is said of it."""

    def __init__(self, dies_on: int) -> None:
        super().__init__(1, 2)
        self.dies_on, self.seen, self.looked = dies_on, list[int](), False

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen = [int(number) for number in inputs[:, 0]]
        if self.looked and self.dies_on in self.seen:
            raise OddSampleError(f"sample {self.dies_on} is odd")
        return super().forward(inputs / 100)


def dies(feed: Any, dies_on: int, seed: int) -> tuple[Net, int, Exception]:
    """A real training that dies on a sample: the model, the step, and the error with its traceback."""
    model = Net(dies_on)
    stepping = gradstep.steps(
        model, nn.CrossEntropyLoss(), feed, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), epochs=3, seed=seed
    )
    model.looked = True
    with pytest.raises(OddSampleError) as raised:
        list(stepping)
    return model, stepping.state.step, raised.value


class Batches:
    """A feed of the user's own, which knows of no numbers."""

    steps_per_epoch = 4

    def start(self, step: int) -> Any:
        return ((torch.full((2, 1), float(n % 4)), torch.zeros(2, dtype=torch.long)) for n in range(step, 10**6))


def numbered(samples: int) -> Tensors:
    return Tensors((torch.arange(samples, dtype=torch.float32)[:, None], torch.zeros(samples, dtype=torch.long)))


def place_in(folder: Path) -> RunDir:
    return RunDir.create(folder, "net")


def read(place: RunDir) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(place.failure.read_bytes())
    return content


@settings(max_examples=15)
@given(st.integers(0, 1000), st.integers(6, 40), st.integers(1, 9), st.booleans(), st.data())
def test_the_samples_that_are_named_are_those_that_the_model_saw(
    tmp_path_factory: pytest.TempPathFactory, seed: int, samples: int, size: int, part: bool, data: st.DataObject
) -> None:
    whole = numbered(samples)
    kept = torch.arange(samples)[::2] if part else torch.arange(samples)
    victim = data.draw(st.sampled_from(kept.tolist()))
    source = Part(whole, kept) if part else whole

    # The same feed twice, because fit makes its own of what the user gives.
    feed = Feed(source, min(size, len(kept)), shuffle=True, seed=seed)
    given = torch.utils.data.DataLoader(_Numbered(source), batch_size=min(size, len(kept)), shuffle=True)
    model, step, error = dies(given, victim, seed)
    place = place_in(tmp_path_factory.mktemp("failure"))
    clock = Clock(feed.steps_per_epoch, 3 * feed.steps_per_epoch)
    line = failure.note(place, step, clock, feed, error, None)
    found = read(place)
    assert found["samples"] == model.seen
    assert victim in found["samples"]
    assert (found["step"], found["epoch"], found["batch"]) == (step + 1, 1, step)
    assert (found["error"], found["message"]) == ("OddSampleError", f"sample {victim} is odd")
    assert found["where"].startswith("test_failure.py:")
    assert "raise OddSampleError" in Path(__file__).read_text().splitlines()[int(found["where"].split(":")[1]) - 1]
    assert (found["checkpoint"], found["times"]) == (None, 1)
    assert line == f"gradstep: step {step + 1} (epoch 1, batch {step}) failed; its samples are in {place.failure}"


class _Numbered(torch.utils.data.Dataset[Any]):
    def __init__(self, source: Any) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, number: int) -> Any:
        inputs, targets = self.source.batch(torch.tensor([number]), 0, 0)
        return inputs[0], targets[0]


def test_a_feed_that_knows_no_numbers_leaves_all_the_rest(tmp_path: Path) -> None:
    _, step, error = dies(Batches(), dies_on=2, seed=0)
    place = place_in(tmp_path)
    line = failure.note(place, step, Clock(4, 12), Batches(), error, checkpoint_step=0)
    assert read(place)["samples"] is None
    assert line == (
        f"gradstep: step 3 (epoch 1, batch 2) failed; its details and the checkpoint before it (step 0) are in "
        f"{place.failure}"
    )
    failure.note(place, step, Clock(4, 12), Batches(), error, 0)
    failure.note(place, step, Clock(4, 12), Batches(), error, 0)
    with pytest.raises(GradstepError, match=r"samples   not known: the data came in batches of its own"):
        failure.refuse_a_fourth(place)


def test_the_line_is_the_one_that_the_user_is_to_see(tmp_path: Path) -> None:
    place = place_in(tmp_path)
    feed = Feed(numbered(5000), 2000, shuffle=False)
    line = failure.note(place, 1234, Clock(611, 5000), feed, ValueError("x"), 1200)
    assert line == (
        "gradstep: step 1235 (epoch 3, batch 12) failed; its samples and the checkpoint before it (step 1200) are in "
        f"{place.failure}"
    )
    found = read(place)
    assert len(found["samples"]) == 1000
    assert found["where"] is None  # it was never raised
    assert found["checkpoint"] == 1200


FEED = Feed(numbered(20), 4, shuffle=True)
ERRORS: list[Exception] = [ValueError("a"), OddSampleError("b"), DataError("c"), DivergedError("d")]


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(ERRORS)), min_size=1, max_size=8))
def test_it_counts_how_often_the_same_error_came_at_the_same_step_in_a_row(
    tmp_path_factory: pytest.TempPathFactory, deaths: list[tuple[int, Exception]]
) -> None:
    place, times = place_in(tmp_path_factory.mktemp("counts")), 0
    for number, (step, error) in enumerate(deaths):
        before = deaths[number - 1] if number else None
        times = times + 1 if before and (before[0], type(before[1])) == (step, type(error)) else 1
        failure.note(place, step, CLOCK, FEED, error, None)
        assert read(place)["times"] == times
        if times < 3:
            failure.refuse_a_fourth(place)
        else:
            with pytest.raises(GradstepError) as raised:
                failure.refuse_a_fourth(place)
            assert raised.value.exit_code == (5 if isinstance(error, DivergedError) else 1)


def test_the_refusal_says_what_died_on_what_and_how_to_try_again(tmp_path: Path) -> None:
    place = place_in(tmp_path)
    model, step, error = dies(torch.utils.data.DataLoader(_Numbered(numbered(20)), batch_size=4), dies_on=9, seed=0)
    feed = Feed(numbered(20), 4, shuffle=False)
    for _ in range(3):
        failure.note(place, step, CLOCK, feed, error, 0)
    assert model.seen == [8, 9, 10, 11]
    with pytest.raises(GradstepError) as raised:
        failure.refuse_a_fourth(place)
    where = read(place)["where"]
    assert str(raised.value) == (
        f"{place.path}: step 3 (epoch 1, batch 2) failed 3 times with OddSampleError: sample 9 is odd\n"
        f"  where     {where}\n"
        "  samples   8, 9, 10, 11\n"
        f"It would fail again. Look at those samples and at that line. To try again as it is, remove {place.failure}."
    )
    place.failure.unlink()
    failure.refuse_a_fourth(place)


def test_it_is_forgotten_by_a_later_checkpoint_and_by_no_earlier_one(tmp_path: Path) -> None:
    place = place_in(tmp_path)
    failure.forget(place, 100)  # where there is none
    failure.note(place, 12, CLOCK, FEED, ValueError(), 10)
    for saved in (0, 10, 12):  # the checkpoint of step 12 is from before it failed
        failure.forget(place, saved)
        assert place.failure.exists()
    failure.forget(place, 13)
    assert not place.failure.exists()


@pytest.mark.parametrize(
    "damaged",
    [b"", b"[]", b"null", b"{}", b"\xff", b'{"step": 1}', b"[" * 100_000,
     b'{"step": "1", "epoch": 1, "batch": 1, "times": 9, "error": 1, "message": 1, "where": 1, "samples": 1}'],
    ids=range(8),
)  # fmt: skip
def test_a_file_that_is_not_what_was_written_stops_nobody(damaged: bytes, tmp_path: Path) -> None:
    place = place_in(tmp_path)
    place.failure.write_bytes(damaged)
    failure.refuse_a_fourth(place)
    failure.forget(place, 99)
    failure.note(place, 1, CLOCK, FEED, ValueError(), None)
    assert read(place)["times"] == 1


def test_one_that_was_cut_short_anywhere_stops_nobody(tmp_path: Path) -> None:
    place = place_in(tmp_path)
    for _ in range(3):
        failure.note(place, 1, CLOCK, FEED, ValueError(), None)
    whole = place.failure.read_bytes()
    for length in range(len(whole.rstrip())):
        place.failure.write_bytes(whole[:length])
        failure.refuse_a_fourth(place)


def test_whatever_the_disk_or_the_user_s_objects_do_the_error_is_not_hidden(tmp_path: Path) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    class Lost(Tensors):
        def original(self, numbers: Tensor) -> Tensor:
            raise OSError("gone")

    place = place_in(tmp_path)
    lost = Feed(numbered(20), 4, shuffle=True)
    lost.source = Lost(numbered(20).content)
    assert "its details are in" in failure.note(place, 3, CLOCK, lost, Mute(), None)
    assert (read(place)["message"], read(place)["samples"]) == ("", None)
    assert len(failure.note(place, 3, CLOCK, FEED, ValueError("\ud800" + "x" * 10**6), None)) < 1000
    gone = RunDir(tmp_path / "gone")
    assert "could not be written (StorageError" in failure.note(gone, 3, CLOCK, FEED, ValueError(), 2)
    failure.refuse_a_fourth(gone)
    failure.forget(gone, 99)


def test_a_disk_that_is_full_leaves_the_count_as_it_was(tmp_path: Path) -> None:
    place = place_in(tmp_path)
    failure.note(place, 3, CLOCK, FEED, ValueError("a"), None)
    before = place.failure.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    heard = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write then fails, as on a full disk
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8, limits[1]))
        line = failure.note(place, 3, CLOCK, FEED, ValueError("a"), None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, heard)
    assert "could not be written" in line
    assert place.failure.read_bytes() == before
    assert {path.name for path in place.path.iterdir()} == {"checkpoints", "failure.json"}
