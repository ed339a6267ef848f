"""Times under a clock that the test turns: speed, epochs without their evaluations, and what is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradstep.record import Stopwatch
from gradstep.record.stopwatch import duration

FAST = settings(max_examples=60, deadline=None)
seconds = st.integers(1, 400).map(lambda eighths: eighths / 8)  # sums of eighths are exact
LEFT_OUT = st.lists(seconds, max_size=2)


class Clock:
    """Stands still until it is turned. It does not begin at 0, and neither does any real one."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time

    def pass_by(self, seconds: float) -> None:
        self.time += seconds


def stopwatch() -> tuple[Stopwatch, Clock]:
    clock = Clock()
    return Stopwatch(clock), clock


@FAST
@given(st.lists(st.tuples(st.lists(seconds, min_size=1), st.integers(1, 64), LEFT_OUT), min_size=1, max_size=6))
def test_speed_is_the_samples_of_the_interval_over_the_seconds_it_trained(intervals: list[Any]) -> None:
    watch, clock = stopwatch()
    step = 0
    for steps, batch, evaluations in intervals:
        for each in steps:
            clock.pass_by(each)
        for each in evaluations:
            with watch.away(evaluation=True):
                clock.pass_by(each)
        step += len(steps)
        assert watch.record(step, batch * len(steps)) == batch * len(steps) / sum(steps)


@FAST
@given(st.lists(st.tuples(st.lists(seconds, min_size=1), LEFT_OUT, LEFT_OUT), min_size=1, max_size=5))
def test_an_epochs_time_leaves_out_evaluations_and_saves(epochs: list[Any]) -> None:
    watch, clock = stopwatch()
    step = 0
    for steps, evaluations, saves in epochs:
        for each in steps:
            clock.pass_by(each)
        for each in evaluations:
            with watch.away(evaluation=True):
                clock.pass_by(each)
        for each in saves:
            with watch.away():
                clock.pass_by(each)
        step += len(steps)
        assert watch.end_epoch(step)[0] == watch.last_epoch == sum(steps)
    assert watch.training() == sum(sum(steps) for steps, _, _ in epochs)


def trained(watch: Stopwatch, clock: Clock, epochs: list[list[float]], wait: Callable[[], Any] = lambda: None) -> int:
    """Goes through epochs of steps that take so long each, a record after each step."""
    step = 0
    for steps in epochs:
        for each in steps:
            clock.pass_by(each)
            step += 1
            watch.record(step, 1)
        watch.end_epoch(step)
        wait()
    return step


LATER = st.lists(st.lists(seconds, min_size=1, max_size=5), min_size=1, max_size=3)


@FAST
@given(st.lists(seconds, min_size=1, max_size=5), LATER, st.integers(0, 50))
def test_the_estimate_leaves_out_this_processs_first_epoch(first: list[float], later: list[Any], left: int) -> None:
    watch, clock = stopwatch()
    trained(watch, clock, [first, *later])
    flat = [each for epoch in later for each in epoch]
    assert watch.left(left) == pytest.approx(left * sum(flat) / len(flat), rel=1e-12)


@FAST
@given(st.lists(seconds, min_size=2, max_size=6), LATER, LEFT_OUT, st.integers(0, 9), st.integers(0, 9))
def test_the_estimate_counts_the_evaluations_to_come_at_their_mean_and_no_save(
    first: list[float], later: list[Any], evaluations: list[float], left: int, evaluations_left: int
) -> None:
    watch, clock = stopwatch()

    def wait() -> None:
        for each in evaluations:
            with watch.away(evaluation=True):
                clock.pass_by(each)
        with watch.away():
            clock.pass_by(7777)

    trained(watch, clock, [first, *later], wait)
    flat = [each for epoch in later for each in epoch]
    mean = sum(evaluations) / len(evaluations) if evaluations else 0
    assert watch.left(left, evaluations_left) == pytest.approx(left * sum(flat) / len(flat) + evaluations_left * mean)


def test_within_the_first_epoch_the_estimate_leaves_out_what_came_before_the_first_record() -> None:
    watch, clock = stopwatch()
    assert watch.left(10) is None
    clock.pass_by(60)  # a first step that warms up
    watch.record(1, 4)
    assert watch.left(10) is None
    clock.pass_by(2)
    watch.record(2, 4)
    clock.pass_by(4)
    watch.record(3, 4)
    assert watch.left(10) == 30


def test_a_resumed_process_counts_its_own_steps_only() -> None:
    watch, clock = stopwatch()
    for step, each in ((101, 50.0), (102, 50.0)):
        clock.pass_by(each)
        watch.record(step, 8)
    watch.end_epoch(102)
    clock.pass_by(3)
    assert watch.record(103, 9) == 3
    assert watch.left(5) == 15


def test_a_clock_that_has_not_moved_gives_no_speed_instead_of_an_error() -> None:
    watch, _ = stopwatch()
    assert watch.record(1, 64) == 0
    assert watch.end_epoch(1)[0] == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "40ms"), (0.44, "0.4s"), (9.94, "9.9s"), (42.2, "42s"), (187, "3:07"), (7387, "2:03:07")],
)
def test_durations_are_written_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
