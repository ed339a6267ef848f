"""Losses by step: means of intervals and epochs that depend on steps alone, never on when somebody looked."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gradstep
from gradstep.clock import Clock
from gradstep.errors import DivergedError
from gradstep.hooks import Request
from gradstep.metrics import MetricSet, resolve
from gradstep.record import Console, Journal, Ledger, Recorder, Stopwatch, recorder
from gradstep.record.ledger import ExactMean
from gradstep.update import Outcome, Sharing

FAST = settings(max_examples=60, deadline=None)
numbers = st.floats(-100, 100)
by_samples = Sharing(nn.MSELoss())


def outcome(step: int, loss: float, samples: int = 4, terms: dict[str, float] | None = None) -> Outcome:
    as_tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in (terms or {}).items()}
    return Outcome(torch.tensor(loss, dtype=torch.float64), as_tensors, None, None, samples, step)


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


@FAST
@given(st.lists(numbers, min_size=1, max_size=40), st.integers(1, 9), st.integers(1, 12))
def test_running_loss_is_the_mean_since_the_last_record_and_an_epochs_remainder_makes_one_too(
    losses: list[float], every: int, per_epoch: int
) -> None:
    ledger = Ledger(by_samples, every, per_epoch)
    for step, loss in enumerate(losses, 1):
        ledger.add(outcome(step, loss))
    rows = list(ledger.read())

    expected, since = [], list[float]()
    for step, loss in enumerate(losses, 1):
        since.append(loss)
        batch = (step - 1) % per_epoch + 1
        if batch % every == 0 or batch == per_epoch:
            expected.append((step, mean(since)))
            since = []
    assert rows == expected
    assert ledger.running == (mean(since) if since else None)


def test_the_document_s_case_five_steps_an_epoch_and_a_record_every_two() -> None:
    ledger = Ledger(by_samples, every=2, steps_per_epoch=5)
    for step, loss in enumerate([1.0, 3.0, 5.0, 7.0, 100.0, 10.0, 30.0], 1):
        ledger.add(outcome(step, loss))
    assert list(ledger.read()) == [(2, 2.0), (4, 6.0), (5, 100.0), (7, 20.0)]


@FAST
@given(st.lists(numbers, min_size=1, max_size=30), st.integers(1, 7), st.integers(1, 9), st.data())
def test_rows_and_epochs_do_not_depend_on_when_it_was_read(
    losses: list[float], every: int, per_epoch: int, data: st.DataObject
) -> None:
    def told(reads: set[int]) -> tuple[list[Any], list[Any]]:
        ledger, rows, epochs = Ledger(by_samples, every, per_epoch), list[Any](), list[Any]()
        for step, loss in enumerate(losses, 1):
            ledger.add(outcome(step, loss, samples=step, terms={"a": loss / 3, "b": 1.0}))
            if step in reads:
                rows += ledger.read()
            if step % per_epoch == 0:
                rows += ledger.read()
                epochs.append(ledger.close_epoch())
        return rows + list(ledger.read()), epochs

    some = data.draw(st.sets(st.integers(1, len(losses))))
    assert told(some) == told(set()) == told(set(range(1, len(losses) + 1)))


@FAST
@given(st.lists(st.tuples(numbers, st.integers(1, 64)), min_size=1, max_size=20))
def test_an_epochs_loss_and_terms_are_per_sample_however_ragged_its_batches(batches: list[tuple[float, int]]) -> None:
    ledger = Ledger(by_samples, 100, len(batches))
    for step, (loss, samples) in enumerate(batches, 1):
        ledger.add(outcome(step, loss, samples, {"half": loss / 2}))
    list(ledger.read())
    expected = math.fsum(loss * samples for loss, samples in batches) / sum(samples for _, samples in batches)
    means = ledger.close_epoch()
    assert means["loss"] == pytest.approx(expected, rel=1e-9, abs=1e-11)
    assert means["half"] == pytest.approx(expected / 2, rel=1e-9, abs=1e-11)
    assert ledger.close_epoch() == {}  # the next epoch begins with nothing


def test_an_epochs_loss_is_per_unit_of_what_the_criterion_divides_by() -> None:
    torch.manual_seed(0)
    criterion = nn.CrossEntropyLoss(torch.tensor([1.0, 5.0, 0.5], dtype=torch.float64))
    outputs, targets = torch.randn(10, 3, dtype=torch.float64), torch.tensor([0, 1, 2, -100, 1, 1, 0, 2, -100, 0])
    ledger = Ledger(Sharing(criterion), 100, 3)
    for step, part in enumerate((slice(0, 4), slice(4, 8), slice(8, 10)), 1):
        loss = criterion(outputs[part], targets[part])
        ledger.add(Outcome(loss, {}, outputs[part], targets[part], len(targets[part]), step))
    list(ledger.read())
    assert ledger.close_epoch()["loss"] == pytest.approx(criterion(outputs, targets).item(), rel=1e-12)


@FAST
@given(st.lists(numbers, max_size=12), st.sampled_from([math.nan, math.inf, -math.inf]), st.lists(numbers, max_size=5))
def test_the_first_loss_that_is_no_number_ends_it_by_its_step_after_the_rows_before_it(
    before: list[float], bad: float, after: list[float]
) -> None:
    whole, broken = Ledger(by_samples, 2, 5), Ledger(by_samples, 2, 5)
    for step, loss in enumerate(before, 1):
        whole.add(outcome(step, loss))
    for step, loss in enumerate([*before, bad, *after, bad], 1):
        broken.add(outcome(step, loss))
    rows, error = read_to_the_end(broken)
    assert rows == list(whole.read())
    assert f"the loss of step {len(before) + 1} is {bad}:" in error
    assert "optimizer.lr" in error


def read_to_the_end(ledger: Ledger) -> tuple[list[tuple[int, float]], str]:
    """The rows, one at a time as the recorder takes them, and what the error said."""
    rows: list[tuple[int, float]] = []
    try:
        for row in ledger.read():
            rows.append(row)
    except DivergedError as error:
        return rows, str(error)
    return rows, "none was raised"


def test_a_batch_whose_targets_are_all_ignored_says_nothing_and_is_no_divergence() -> None:
    criterion = nn.CrossEntropyLoss()
    ledger = Ledger(Sharing(criterion), 3, 3)
    outputs, targets = torch.zeros(2, 4), torch.tensor([1, 2])
    for step, some in enumerate((targets, torch.full((2,), -100), targets), 1):
        ledger.add(Outcome(criterion(outputs, some), {}, outputs, some, 2, step))  # 0/0, with gradients of 0
    assert list(ledger.read()) == [(3, pytest.approx(math.log(4)))]
    assert ledger.close_epoch() == {"loss": pytest.approx(math.log(4))}


def test_a_term_that_comes_later_is_averaged_over_the_batches_that_have_it() -> None:
    ledger = Ledger(by_samples, 10, 3)
    for step, terms in enumerate(({"a": 1.0}, {"a": 3.0, "b": 8.0}, {"b": 4.0}), 1):
        ledger.add(outcome(step, 1.0, 2, terms))
    list(ledger.read())
    assert ledger.close_epoch() == {"loss": 1.0, "a": 2.0, "b": 6.0}


# The recorder on top of it: rows made by step, read by time.


class Ticks:
    """A clock that moves by one tick whenever it is asked."""

    def __init__(self, tick: float) -> None:
        self.time, self.tick = 0.0, tick

    def __call__(self) -> float:
        self.time += self.tick
        return self.time


def recorded(losses: list[float], every: int, per_epoch: int, tick: float) -> list[Any]:
    journal = Journal()
    ledger, clock = Ledger(by_samples, every, per_epoch), Clock(per_epoch, len(losses))
    records = Recorder(clock, ledger, None, journal, Console(quiet=True), Stopwatch(Ticks(tick)))
    for step, loss in enumerate(losses, 1):
        records.step(outcome(step, loss), 4 * step, lambda step=step: [0.1 / step])
        if step % per_epoch == 0:
            records.end_epoch(step, 4 * step, [0.1 / step])
    records.read(len(losses))
    return journal.rows


@FAST
@given(st.lists(numbers, min_size=1, max_size=25), st.integers(1, 7), st.integers(1, 9), st.floats(0, 1))
def test_the_record_does_not_depend_on_how_fast_the_clock_runs(
    losses: list[float], every: int, per_epoch: int, tick: float
) -> None:
    assert recorded(losses, every, per_epoch, tick) == recorded(losses, every, per_epoch, 0.0)


def test_a_row_has_the_samples_and_rates_of_its_own_step_however_late_it_is_read() -> None:
    rows = [row for row in recorded([1.0, 3.0, 5.0], 2, 3, 0.0) if row["kind"] == "train"]
    assert rows == [
        {"step": 2, "epoch": 1, "kind": "train", "samples": 8, "lr": 0.05, "train/running_loss": 2.0},
        {"step": 3, "epoch": 1, "kind": "train", "samples": 12, "lr": 0.1 / 3, "train/running_loss": 5.0},
    ]


# Taken out between two steps, and gone on with in another process.


floats = st.floats(-1e290, 1e290) | st.sampled_from([1e16, 1.0, -1e16, 5e-324, 0.1, -0.0, 2.0**-1074])


@FAST
@given(st.lists(floats, max_size=60), st.integers(0, 60))
def test_a_mean_kept_in_partial_sums_has_the_bits_of_fsum_wherever_it_is_cut(values: list[float], cut: int) -> None:
    exact = ExactMean()
    for place, value in enumerate(values):
        if place == cut:
            partials, count = json.loads(json.dumps([exact.partials, exact.count]))
            exact = ExactMean(partials, count)
        exact.add(value)
    assert exact.value == (mean(values) if values else None)


def test_a_mean_of_very_many_takes_no_more_memory_than_one_of_few() -> None:
    exact, values = ExactMean(), torch.randn(100_000, generator=torch.Generator().manual_seed(0)).exp().tolist()
    largest = 0
    for value in values:
        exact.add(value)
        largest = max(largest, len(exact.partials))
    assert largest < 10
    assert exact.value == mean(values)


def test_a_sum_beyond_the_floats_is_infinite_and_stays_so() -> None:
    exact = ExactMean()
    for value in (1e308, 1e308, -1e308, -1e308):
        exact.add(value)
    assert exact.value == math.inf


@FAST
@given(st.lists(numbers, min_size=1, max_size=30), st.integers(1, 7), st.integers(1, 9), st.data())
def test_a_ledger_goes_on_in_another_to_the_last_bit(
    losses: list[float], every: int, per_epoch: int, data: st.DataObject
) -> None:
    def told(cuts: set[int]) -> tuple[list[Any], list[Any]]:
        ledger, rows, epochs = Ledger(by_samples, every, per_epoch), list[Any](), list[Any]()
        for step, loss in enumerate(losses, 1):
            ledger.add(outcome(step, loss, samples=step, terms={"a": loss / 3, "b": 1.0}))
            if step % per_epoch == 0:
                rows += ledger.read()
                epochs.append(ledger.close_epoch())
            if step in cuts:
                rows += ledger.read()
                document = json.loads(json.dumps(ledger.numbers(), allow_nan=False))
                ledger = Ledger(by_samples, every, per_epoch)
                ledger.restore(document)
        return rows + list(ledger.read()), epochs

    assert told(data.draw(st.sets(st.integers(1, len(losses))))) == told(set())


def test_sums_that_are_no_numbers_are_spelled_out_and_come_back() -> None:
    class Weights(Sharing):
        def shares(self, loss: Any, terms: Any, targets: Any, samples: Any, units: Any = None) -> Any:
            return {"loss": (loss, 0), "a": (loss, 2), "b": (-loss.abs(), 1)}  # the loss has no weight in this batch

    ledger, other = (Ledger(Weights(nn.MSELoss()), 5, 5) for _ in range(2))
    ledger.add(outcome(1, math.inf))
    ledger.add(outcome(2, -math.inf))
    assert list(ledger.read()) == []
    numbers = json.loads(json.dumps(ledger.numbers(), allow_nan=False))
    assert numbers["sums"] == {"a": "nan", "b": "-inf"}
    other.restore(numbers)
    assert repr(other.close_epoch()) == repr(ledger.close_epoch())


def test_numbers_of_a_ledger_with_losses_that_were_not_read_are_never_given_out() -> None:
    ledger = Ledger(by_samples, 5, 5)
    ledger.add(outcome(1, 1.0))
    with pytest.raises(AssertionError, match="read"):
        ledger.numbers()


STEPS, PER_EPOCH, EVERY = 50, 12, 5
LEFT_OUT = {3: math.nan, 5: math.inf, 10: 2.5, 12: -math.inf, 13: math.nan, 24: 1.0, 50: math.nan}


def metrics_of_the_record() -> MetricSet:
    wanted = ["accuracy", "confusion_matrix", lambda outputs, targets: outputs.amax(1)]
    return resolve(wanted).fresh(torch.device("cpu"))


def a_step(step: int) -> Outcome:
    generator = torch.Generator().manual_seed(step)
    outputs, targets = torch.randn(4, 3, generator=generator), torch.randint(0, 3, (4,), generator=generator)
    loss = torch.tensor(LEFT_OUT.get(step, float(outputs.sum())))
    return Outcome(loss, {"half": loss / 2}, outputs, targets, 4, step, left_out=step in LEFT_OUT)


def a_recorder(folder: Path, tick: float) -> Recorder:
    folder.mkdir(parents=True)
    return Recorder(
        Clock(PER_EPOCH, STEPS),
        Ledger(by_samples, EVERY, PER_EPOCH),
        metrics_of_the_record(),
        Journal(folder / "metrics.jsonl", folder / "timing.jsonl"),
        Console(quiet=True),
        Stopwatch(Ticks(tick)),
    )


def record(records: Recorder, first: int, last: int) -> None:
    """Steps `first` to `last`, as `fit` tells of them."""
    for step in range(first + 1, last + 1):
        records.step(a_step(step), 4 * step, lambda step=step: [0.1 / step])
        if step % PER_EPOCH == 0 or step == STEPS:
            records.end_epoch(step, 4 * step, [0.1 / step])
        if step % 7 == 0:
            records.read(step)
            records.measured("valid", step, {"loss": step / 3})


def cut(folder: Path, cuts: list[int], tick: float) -> bytes:
    """The record of a run that is left at each of `cuts` and gone on with by another recorder, in a file of its own."""
    records, written = a_recorder(folder / "0", tick), folder / "0" / "metrics.jsonl"
    done, content = 0, b""
    for step in cuts:
        record(records, done, step)
        records.read(step)
        tensors, numbers = records.progress()
        numbers, done = json.loads(json.dumps(numbers, allow_nan=False)), step
        content += written.read_bytes()
        record(records, step, min(step + 8, STEPS))  # what is done behind the checkpoint is lost
        records.journal.close()
        records, written = a_recorder(folder / str(step), tick), folder / str(step) / "metrics.jsonl"
        records.go_on(tensors, numbers, torch.device("cpu"))
    record(records, done, STEPS)
    records.journal.close()
    return content + written.read_bytes()


def test_a_record_that_is_cut_at_any_step_and_gone_on_with_has_the_same_bytes(tmp_path: Path) -> None:
    whole = cut(tmp_path / "whole", [], tick=0.0)
    for step in range(1, STEPS + 1):
        assert cut(tmp_path / str(step), [step], tick=0.0) == whole
    assert cut(tmp_path / "often", [*range(1, STEPS, 2)], tick=0.3) == whole
    assert cut(tmp_path / "looked at", [], tick=1.0) == whole


def test_a_step_that_was_left_out_has_a_row_in_its_place_and_counts_for_nothing(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in cut(tmp_path / "run", [], tick=0.0).splitlines()]
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    left_out = {row["step"]: row["train/loss"] for row in rows if row["kind"] == "left_out"}
    assert left_out == {step: loss if math.isfinite(loss) else repr(loss) for step, loss in LEFT_OUT.items()}
    assert rows[0] == {"step": 3, "epoch": 1, "kind": "left_out", "train/loss": "nan"}
    kinds = [row["kind"] for row in rows if row["step"] == 12]
    assert kinds == ["left_out", "train", "epoch"]

    counted = [step for step in range(1, PER_EPOCH + 1) if step not in LEFT_OUT]
    together = metrics_of_the_record()
    for step in counted:
        together.update(a_step(step).outputs, a_step(step).targets)
    epoch = next(row for row in rows if row["kind"] == "epoch")
    assert epoch["train/confusion_matrix"] == together.compute()["confusion_matrix"]
    assert epoch["train/loss"] == pytest.approx(mean([a_step(step).loss.item() for step in counted]))
    running = {row["step"]: row["train/running_loss"] for row in rows if row["kind"] == "train"}
    assert running[5] == mean([a_step(step).loss.item() for step in (1, 2, 4)])
    assert running[24] == a_step(23).loss.item()


def test_progress_is_a_copy_and_a_metric_that_was_not_there_begins_now(tmp_path: Path) -> None:
    records = a_recorder(tmp_path / "one", 0.0)
    record(records, 0, 2)
    records.read(2)
    tensors, numbers = records.progress()
    before = {name: value.clone() for name, value in tensors.items()}
    record(records, 2, 4)
    assert all(torch.equal(value, before[name]) for name, value in tensors.items())
    del numbers["metrics"]["accuracy"]
    records.journal.close()
    other = a_recorder(tmp_path / "other", 0.0)
    other.go_on(tensors, numbers, torch.device("cpu"))
    record(other, 2, PER_EPOCH)
    other.journal.close()
    epoch = other.journal.rows[-1]
    confusion = np.array(epoch["train/confusion_matrix"])
    counted = [step for step in range(1, PER_EPOCH + 1) if step not in LEFT_OUT]
    late = metrics_of_the_record()
    for step in counted[2:]:
        late.update(a_step(step).outputs, a_step(step).targets)
    assert confusion.sum() == 4 * len(counted)
    assert epoch["train/accuracy"] == late.compute()["accuracy"]


class Asks:
    """Asks for something at each step, as long as there is something left to ask for."""

    def __init__(self, requests: dict[int, Request]) -> None:
        self.requests = requests

    def on_train_batch_end(self, state: Any, outcome: Any) -> Request | None:
        return self.requests.get(state.step)


def train(out: Path, criterion: Any = None, **more: Any) -> gradstep.Run:
    """Two epochs of four steps, the last of each ragged, with everything that writes a row."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(11, 3), torch.randint(0, 2, (11,))
    return gradstep.fit(
        nn.Linear(3, 2),
        criterion or nn.CrossEntropyLoss(),
        (inputs, targets),
        (inputs, targets),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5),
        epochs=2,
        batch_size=3,
        metrics="accuracy",
        out=out,
        quiet=True,
        **{"log_every": "1 step", "evaluate_every": "3 steps"} | more,
    )


@pytest.mark.parametrize("requests", [{}, {2: Request.SAVE}, {6: Request.STOP}, {2: Request.SAVE, 7: Request.STOP}])
def test_how_often_fit_looks_at_the_device_changes_no_byte_of_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requests: dict[int, Request]
) -> None:
    records = []
    for seconds in (0.0, 1e9):
        monkeypatch.setattr(recorder, "_READ_EVERY", seconds)
        run = train(tmp_path / str(seconds), hooks=[Asks(requests)])
        assert run.path is not None
        records.append((run.path / "metrics.jsonl").read_bytes())
    assert records[0] == records[1]
    steps = [json.loads(line)["step"] for line in records[0].splitlines()]
    assert steps == sorted(steps)


def test_in_fit_the_epochs_loss_is_that_of_its_samples_and_the_running_loss_that_of_its_steps(tmp_path: Path) -> None:
    kept: list[tuple[float, int]] = []

    class Keep:
        def on_train_batch_end(self, state: Any, outcome: Any) -> None:
            kept.append((outcome.loss.item(), outcome.samples))

    run = train(tmp_path, hooks=[Keep()], log_every="3 steps")
    assert [samples for _, samples in kept] == [3, 3, 3, 2] * 2
    rows = {(row["kind"], row["step"]): row for row in run.history}
    for start in (0, 4):
        losses = [loss for loss, _ in kept[start : start + 4]]
        assert rows["train", start + 3]["train/running_loss"] == pytest.approx(sum(losses[:3]) / 3, rel=1e-12)
        assert rows["train", start + 4]["train/running_loss"] == losses[3]
        per_sample = sum(loss * samples for loss, samples in kept[start : start + 4]) / 11
        assert rows["epoch", start + 4]["train/loss"] == pytest.approx(per_sample, rel=1e-12)


def test_a_run_that_diverges_says_at_which_step_and_leaves_the_rows_before_it(tmp_path: Path) -> None:
    calls = 0

    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return nn.functional.cross_entropy(outputs, targets) * (math.nan if calls == 3 + looks else 1)

    looks = 2  # the look before training, at two samples each of train and valid
    with pytest.raises(DivergedError, match="the loss of step 3 is nan"):
        train(tmp_path, criterion, evaluate_every="1 epoch")
    rows = [json.loads(line) for line in (tmp_path / "latest" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["kind"], row["step"]) for row in rows] == [("start", 0), ("train", 1), ("train", 2)]
