"""Hooks are told of everything in the order that is written down, and what they ask for is done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gradstep
from gradstep import checkpoint
from gradstep.errors import RecipeError
from gradstep.hooks import EVENTS, About, Events, InterruptAt, Request


def train(*hooks: Any, out: Path | None = None, **more: Any) -> gradstep.Run:
    """Two epochs of three steps, validated and tested."""
    torch.manual_seed(0)
    data = torch.randn(8, 3), torch.randint(0, 2, (8,))
    settings: dict[str, Any] = {"valid": data, "test": data, "epochs": 2, "log_every": "1 step", "quiet": True}
    return gradstep.fit(
        nn.Linear(3, 2),
        nn.CrossEntropyLoss(),
        data,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.3, momentum=0.9),
        batch_size=3,
        hooks=hooks,
        out=out,
        **settings | more,
    )


def same_weights(one: gradstep.Run, other: gradstep.Run) -> bool:
    pairs = zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


class Everything:
    """Has all methods, and keeps what each was told, and at which step."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []
        self.about: About | None = None

    def on_train_start(self, state: Any, about: About) -> None:
        self.about = about
        self.told.append(("start", state.step))

    def on_train_batch_end(self, state: Any, outcome: Any) -> None:
        assert outcome.step == state.step
        assert all(parameter.grad is not None for parameter in state.model.parameters())
        self.told.append(("batch", state.step))

    def on_row(self, row: dict[str, Any]) -> None:
        self.told.append((f"row {row['kind']}", row["step"]))

    def on_train_epoch_end(self, state: Any, metrics: dict[str, Any]) -> None:
        assert metrics["kind"] == "epoch"
        assert "train/loss" in metrics
        self.told.append(("train epoch", state.step))

    def on_validation_end(self, state: Any, metrics: dict[str, Any]) -> None:
        assert metrics["best"] == (state.standing.best_step == state.step)  # the best is updated already
        assert state.standing.previous == metrics["valid/loss"]
        self.told.append(("validation", state.step))

    def on_epoch_end(self, state: Any) -> None:
        self.told.append(("epoch", state.step))

    def on_save_checkpoint(self, state: Any, path: Path) -> None:
        saved = checkpoint.read(path)  # it is there, and whole
        assert saved.values["step"] == saved.step <= state.step
        self.told.append(("save", saved.step))

    def on_train_end(self, state: Any) -> None:
        self.told.append(("end", state.step))

    def on_exception(self, state: Any, error: BaseException) -> None:
        self.told.append((f"exception {type(error).__name__}", state.step))

    def without(self, *names: str) -> list[tuple[str, Any]]:
        return [each for each in self.told if each[0] not in names]


def epoch(first: int, last: int) -> list[tuple[str, int]]:
    """An epoch from its first step on. Rows of steps come when they are read: see the next test."""
    return [
        ("row start", first - 1),
        *(("batch", step) for step in range(first, last + 1)),
        *[("row epoch", last), ("train epoch", last), ("row valid", last), ("validation", last), ("epoch", last)],
    ]


def test_all_events_come_in_the_order_that_is_written_down(tmp_path: Path) -> None:
    hook = Everything()
    run = train(hook, out=tmp_path)
    first, second = epoch(1, 3), epoch(4, 6)
    expected = [("start", 0), *first, *second, ("row test", 6), ("end", 6)]
    assert hook.without("row train", "save") == expected
    saves = [step for name, step in hook.told if name == "save"]
    assert saves == [0, 3, 6]  # each when it is there, which is a matter of time, and the last before the test
    assert hook.told.index(("save", 3)) > hook.told.index(("row start", 3))
    assert hook.told.index(("epoch", 6)) < hook.told.index(("save", 6)) < hook.told.index(("row test", 6))
    assert hook.about is not None
    assert hook.about.path == run.path
    assert (hook.about.clock.steps_per_epoch, hook.about.clock.total) == (3, 6)
    assert hook.about.stopwatch.last_epoch is not None


def test_rows_are_told_as_they_are_written_and_those_of_steps_before_their_epochs() -> None:
    hook = Everything()
    rows: list[Any] = []
    hook.on_row = lambda row: (rows.append(dict(row)), Everything.on_row(hook, row))[1]  # type: ignore[method-assign]
    run = train(hook)
    assert rows == run.history
    order = [name for name, _ in hook.told]
    assert order.count("row train") == 6
    assert hook.told.index(("row train", 3)) < hook.told.index(("row epoch", 3)) < hook.told.index(("row train", 4))


def test_without_a_place_there_is_nothing_to_save_and_the_rest_is_the_same(tmp_path: Path) -> None:
    placed, free = Everything(), Everything()
    train(placed, out=tmp_path)
    train(free)
    assert free.without("row train") == placed.without("row train", "save")
    assert free.about is not None
    assert free.about.path is None


def test_hooks_are_called_in_the_order_of_the_list_and_need_no_more_than_one_method() -> None:
    calls: list[str] = []

    class One:
        def __init__(self, name: str) -> None:
            self.name = name

        def on_epoch_end(self, state: Any) -> None:
            calls.append(self.name)

    train(One("a"), One("b"), Everything(), One("c"))
    assert calls == ["a", "b", "c", "a", "b", "c"]


def test_a_run_that_is_watched_is_bitwise_the_run_that_is_not(tmp_path: Path) -> None:
    watched, alone = train(Everything(), Everything(), out=tmp_path), train()
    assert same_weights(watched, alone)
    assert watched.history == alone.history


# What hooks may be.


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("on_epoch_ends", r"has the method 'on_epoch_ends', which is never called.*Did you mean 'on_epoch_end'"),
        (
            "on_train_batch_stop",
            r"has the method 'on_train_batch_stop'.*There are on_train_start, .*Did you mean 'on_train_batch_end'",
        ),
        ("epoch_end", "has none of a hook's methods. There are on_train_start"),
    ],
)
def test_a_misspelled_method_is_an_error_that_names_the_nearest(method: str, said: str) -> None:
    wrong = type("Wrong", (), {method: lambda self, *what: None})()
    with pytest.raises(RecipeError, match=f"hooks: Wrong {said}"):
        Events.of([Everything(), wrong])
    with pytest.raises(RecipeError, match=f"hooks: Wrong {said}"):
        train(wrong)


def at(event: str, step: int, answer: Any) -> Any:
    """A hook that answers so to this event at this step."""

    def method(self: Any, *what: Any) -> Any:
        saved = int(what[1].name.removeprefix("step-")) if event == "on_save_checkpoint" else None
        now = what[0]["step"] if event == "on_row" else what[0].step if saved is None else saved
        return answer if now == step else None

    return type("Asks", (), {event: method})()


TOLD_AT_3 = [event for event in EVENTS if event not in ("on_train_start", "on_train_end", "on_exception")]


@pytest.mark.parametrize("answer", [True, "stop", 1, {"stop": True}])
@pytest.mark.parametrize("event", TOLD_AT_3)
def test_an_answer_that_is_no_request_is_an_error_that_names_the_event(event: str, answer: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"hooks: {event} returned .*A hook returns a gradstep.Request or nothing"):
        train(at(event, 3, answer), out=tmp_path)


# What they may ask for.


def kinds(run: gradstep.Run) -> list[tuple[str, int]]:
    return [(row["kind"], row["step"]) for row in run.history if row["kind"] not in ("start", "train")]


@pytest.mark.parametrize("event", [event for event in TOLD_AT_3 if event not in ("on_row", "on_save_checkpoint")])
def test_stop_at_an_epochs_end_ends_the_training_there_and_the_test_follows(event: str, tmp_path: Path) -> None:
    run, short = train(at(event, 3, Request.STOP), out=tmp_path), train(epochs=1)
    assert run.stopped == "Asks asked to stop"
    assert same_weights(run, short)
    request = next(row for row in run.history if row["kind"] == "request")
    assert request == {"step": 3, "epoch": 1, "kind": "request", "request": "stop", "by": "Asks"}
    assert [row for row in run.history if row["kind"] != "request"] == short.history
    assert checkpoint.steps(run.path / "checkpoints")[-1] == 3  # type: ignore[operator]


def test_what_is_asked_for_when_a_row_is_written_is_done_or_refused_but_not_lost() -> None:
    """When the rows of steps are read depends on the clock, so to refuse it is as right as to obey."""
    try:
        run = train(at("on_row", 3, Request.STOP))
    except RecipeError as error:
        assert "on_row" in str(error)  # noqa: PT017
    else:
        assert run.stopped == "Asks asked to stop"


def test_stop_within_an_epoch_trains_no_further_and_leaves_the_row_of_what_was_trained(tmp_path: Path) -> None:
    run = train(at("on_train_batch_end", 5, Request.STOP), out=tmp_path)
    short = train(steps=5, epochs=None)
    assert run.state is not None
    assert run.state.step == 5
    assert same_weights(run, short)
    assert ("request", 5) in kinds(run)
    assert ("epoch", 5) in kinds(run)
    assert kinds(run)[-1] == ("test", 5)
    assert checkpoint.steps(run.path / "checkpoints")[-1] == 5  # type: ignore[operator]


def test_a_run_that_was_stopped_stays_so_when_it_is_resumed(tmp_path: Path) -> None:
    for step in (3, 5):
        first = train(at("on_train_batch_end", step, Request.STOP), out=tmp_path / str(step))
        again = train(out=tmp_path / str(step), resume=True)
        assert (again.stopped, again.history) == (first.stopped, first.history)
        assert same_weights(first, again)


def test_save_writes_a_checkpoint_of_that_step_and_is_logged(tmp_path: Path) -> None:
    hook = Everything()
    run = train(at("on_train_batch_end", 5, Request.SAVE), hook, out=tmp_path, checkpoint={"keep": 9})
    assert checkpoint.steps(run.path / "checkpoints") == [0, 3, 5, 6]  # type: ignore[operator]
    assert ("save", 5) in hook.told
    (request,) = [row for row in run.history if row["kind"] == "request"]
    assert request == {"step": 5, "epoch": 2, "kind": "request", "request": "save", "by": "Asks"}
    alone = train()
    assert same_weights(run, alone)
    assert [row for row in run.history if row["kind"] != "request"] == alone.history


def test_save_and_stop_can_be_asked_for_together_and_by_several(tmp_path: Path) -> None:
    both = at("on_train_batch_end", 2, Request.SAVE | Request.STOP)
    run = train(
        both, at("on_train_batch_end", 2, Request.SAVE), at("on_train_batch_end", 1, Request.NONE), out=tmp_path
    )
    asked = [(row["request"], row["step"]) for row in run.history if row["kind"] == "request"]
    assert asked == [("save", 2), ("stop", 2), ("save", 2)]
    assert run.state is not None
    assert run.state.step == 2


@pytest.mark.parametrize("step", [1, 3, 4, 6])
@pytest.mark.parametrize("event", ["on_train_batch_end", "on_validation_end"])
def test_pause_saves_and_leaves_and_the_resumed_run_is_bitwise_the_one_that_was_not_paused(
    event: str, step: int, tmp_path: Path
) -> None:
    every = {"evaluate_every": "1 step"} if event == "on_validation_end" else {}
    whole = train(out=tmp_path / "whole", **every)
    first = train(at(event, step, Request.PAUSE), out=tmp_path / "run", **every)
    if step < 6:  # after the last step there is nothing left to go on with, and either answer is right
        assert first.paused is not None
        assert "test" not in dict(kinds(first))
    assert first.stopped is None
    assert first.state is not None
    assert first.state.step == step
    assert checkpoint.steps(first.path / "checkpoints")[-1] == first.state.step  # type: ignore[operator]
    assert not [row for row in first.history if row["kind"] == "request"]
    second = train(out=tmp_path / "run", resume=True, **every)
    assert second.paused is None
    assert same_weights(second, whole)
    assert second.best == whole.best
    assert second.history == whole.history
    written = (second.path / "metrics.jsonl").read_bytes()  # type: ignore[operator]
    assert written == (whole.path / "metrics.jsonl").read_bytes()  # type: ignore[operator]


def test_a_pause_without_a_place_still_leaves_and_says_so() -> None:
    run = train(at("on_epoch_end", 3, Request.PAUSE))
    assert run.paused == "Asks"
    assert run.state is not None
    assert run.state.step == 3


def test_interrupt_at_pauses_after_the_epoch_was_validated_and_compared(tmp_path: Path) -> None:
    run = train(InterruptAt(1), out=tmp_path)
    assert run.paused == "InterruptAt"
    assert kinds(run) == [("epoch", 3), ("valid", 3)]
    assert run.best is not None
    with pytest.raises(RecipeError, match="0 is no number of finished epochs; they count from 1"):
        InterruptAt(0)


# When something goes wrong.


class BoomError(Exception):
    pass


@pytest.mark.parametrize("event", [event for event in EVENTS if event != "on_exception"])
def test_an_exception_in_a_hook_comes_out_as_it_is_and_the_others_are_told(event: str, tmp_path: Path) -> None:
    boom = BoomError("from the hook")

    def method(self: Any, *what: Any) -> None:
        raise boom

    before, after = Everything(), Everything()
    with pytest.raises(BoomError) as raised:
        train(before, type("Bad", (), {event: method})(), after, out=tmp_path)
    assert raised.value is boom
    for hook in (before, after):
        assert [name for name, _ in hook.told if name.startswith("exception")] == ["exception BoomError"]
        assert hook.told[-1][0] == "exception BoomError"


def test_an_exception_in_training_is_told_with_its_step_and_what_was_recorded_stays(tmp_path: Path) -> None:
    class Net(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            self.calls = getattr(self, "calls", 0) + torch.is_grad_enabled()  # steps alone
            if self.calls == 5:
                raise BoomError
            return super().forward(inputs)

    hook, data = Everything(), (torch.randn(8, 3), torch.randint(0, 2, (8,)))
    with pytest.raises(BoomError):
        gradstep.fit(
            Net(3, 2),
            nn.CrossEntropyLoss(),
            data,
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
            batch_size=3,
            epochs=2,
            hooks=[hook],
            out=tmp_path,
            quiet=True,
        )
    assert hook.told[-1] == ("exception BoomError", 4)
    assert ("end", 4) not in hook.told
    rows = [json.loads(line) for line in (tmp_path / "latest" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1] == {"step": 3, "epoch": 2, "kind": "start", "lr": 0.1}


def test_a_hook_that_fails_while_it_is_told_of_an_exception_does_not_hide_it() -> None:
    class Worse:
        def on_exception(self, state: Any, error: BaseException) -> None:
            raise ValueError("in the telling")

    with pytest.raises((BoomError, ExceptionGroup)) as raised:
        train(Worse(), type("Bad", (), {"on_epoch_end": raise_boom})())
    assert "BoomError" in repr(raised.value)


def raise_boom(self: Any, state: Any) -> None:
    raise BoomError
