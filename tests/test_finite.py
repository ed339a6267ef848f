"""A loss or a gradient that is no number: what the run is afterwards, and what it leaves in its folder."""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gradstep
from gradstep import checkpoint, cli
from gradstep.data import permutation
from gradstep.errors import DivergedError, RecipeError
from gradstep.finite import OnNonfinite, spoiled
from gradstep.keys import key
from tests.killing import in_a_child, what_is_left

SAMPLES, BATCH, PER_EPOCH = 24, 4, 6
NAN, INF = float("nan"), float("inf")


class Net(nn.Module):
    """It sees each sample's number, so that what goes wrong can go wrong with one sample, in any process."""

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Linear(5, 6)
        self.norm = nn.BatchNorm1d(6) if norm else nn.Identity()
        self.out = nn.Linear(6, 3)
        self.seen = torch.zeros(0)

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen = inputs[:, 0].detach()
        out: Tensor = self.out(self.norm(self.first(inputs[:, 1:])).relu())
        return out


def data(samples: int = SAMPLES) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1)
    numbers = torch.arange(samples)
    inputs = torch.cat([numbers[:, None].float(), torch.randn(samples, 5, generator=draws)], 1)
    return inputs, torch.stack([torch.randint(3, (samples,), generator=draws), numbers], 1)


class Spoils:
    """Cross entropy, times `value` for a batch with one of these samples."""

    def __init__(self, *bad: int, value: float = NAN) -> None:
        self.bad, self.value = bad, value

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(outputs, targets[:, 0])
        return loss * self.value if any(number in self.bad for number in targets[:, 1].tolist()) else loss


class EachSpoils:
    """The same for each sample, which can be had in micro-batches."""

    def __init__(self, *bad: int) -> None:
        self.bad = torch.tensor(bad)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(outputs, targets[:, 0], reduction="none")
        return loss.masked_fill(torch.isin(targets[:, 1], self.bad), NAN)


def step_of(sample: int, epoch: int = 0, seed: int = 0) -> int:
    """The number of the step, counted from 1, that a sample is in."""
    return epoch * PER_EPOCH + int((permutation(SAMPLES, seed, epoch) == sample).nonzero()) // BATCH + 1


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.02)


def fit(model: nn.Module, criterion: Any, **more: Any) -> gradstep.Run:
    given: dict[str, Any] = {
        "optimizer": momentum, "epochs": 2, "batch_size": BATCH, "log_every": "1 step", "name": "run", "quiet": True,
    } | more  # fmt: skip
    return gradstep.fit(model, criterion, data(), **given)


def bits(state: Any) -> dict[str, bytes]:
    """Model with its buffers, and the optimizer's state, to the bit."""
    return {
        f"{file}/{name}": value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        for file, tensors in state.tensors().items()
        for name, value in tensors.items()
    }


class Remember:
    """The state after each step."""

    def __init__(self) -> None:
        self.after: dict[int, dict[str, bytes]] = {}
        self.state: Any = None

    def on_train_start(self, state: Any, about: Any) -> None:
        self.state = state
        self.after[state.step] = bits(state)

    def on_train_batch_end(self, state: Any, outcome: Any) -> None:
        self.after[state.step] = bits(state)


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# stop


@settings(max_examples=12)
@given(sample=st.integers(4, SAMPLES - 1), value=st.sampled_from([NAN, INF, -INF]), data_=st.data())
def test_one_loss_or_one_element_of_one_gradient_stops_the_run_before_the_update(
    sample: int, value: float, data_: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = tmp_path_factory.mktemp("run")
    model, remember, criterion, k = Net(), Remember(), Spoils(), step_of(sample)
    what = data_.draw(st.sampled_from(["loss", *(name for name, _ in model.named_parameters())]))
    if what == "loss":
        criterion, said = Spoils(sample, value=value), rf"the loss of step {k} is (nan|inf|-inf)"
    else:
        parameter, said = dict(model.named_parameters())[what], f"a gradient of step {k} is no finite number"
        element = data_.draw(st.integers(0, parameter.numel() - 1))

        def spoil(gradient: Tensor) -> Tensor:
            spoilt = gradient.clone()
            spoilt.view(-1)[element] = value
            return spoilt if sample in model.seen.tolist() and remember.after else gradient

        parameter.register_hook(spoil)
    with pytest.raises(DivergedError, match=said) as raised:
        fit(model, criterion, out=out, hooks=[remember], checkpoint="2 steps")
    assert (raised.value.exit_code, raised.value.step) == (5, k)
    assert remember.state.step == k - 1
    assert bits(remember.state) == remember.after[k - 1]
    run = out / "0001-run"
    saved, rejected = checkpoint.newest(run / "checkpoints")
    assert saved is not None
    assert (saved.step, rejected) == ((k - 1) // 2 * 2, [])
    assert [row["step"] for row in rows(run) if row["kind"] == "train"] == list(range(1, k))
    died = json.loads((run / "failure.json").read_text())
    assert (died["step"], died["error"], died["checkpoint"]) == (k, "DivergedError", saved.step)
    assert sample in died["samples"]


def test_a_run_that_died_three_times_of_one_step_is_not_tried_again(tmp_path: Path) -> None:
    k = step_of(9)
    for times in (1, 2, 3):
        with pytest.raises(DivergedError, match=f"the loss of step {k} is nan"):
            fit(Net(), Spoils(9), out=tmp_path, resume=True)
        assert json.loads((tmp_path / "0001-run" / "failure.json").read_text())["times"] == times
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(DivergedError, match=rf"step {k} .* failed 3 times with DivergedError"):
        fit(Net(), Spoils(9), out=tmp_path, resume=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    (tmp_path / "0001-run" / "failure.json").unlink()  # as the message says
    fit(Net(), Spoils(), out=tmp_path, resume=True)  # its criterion is repaired
    assert not (tmp_path / "0001-run" / "failure.json").exists()


def test_the_command_gives_up_after_three_deaths_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "r.yaml").write_text(
        "data: {train: 'tests.test_finite:DATA'}\nmodel: {class: 'tests.test_finite:Net'}\nepochs: 1\n"
        "criterion: 'tests.test_finite:NINE'\noptimizer: {name: SGD, lr: 0.1}\nbatch_size: 4\nquiet: true\n"
    )
    said = []
    for typed in (["train", "r.yaml"], *[["resume"]] * 3):
        monkeypatch.setattr(sys, "argv", ["gradstep", *typed])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert left.value.code == 5
        said.append(capsys.readouterr().err)
    assert all(f"error: the loss of step {step_of(9)} is nan" in text for text in said[:3])
    assert "failed 3 times" in said[3]
    assert "failure.json" in said[3]


DATA, NINE = data(), Spoils(9)


# skip


def by_hand(model: Net, optimizer: torch.optim.Optimizer, criterion: Any, epochs: int = 2) -> list[int]:
    """The textbook loop that leaves out what is no number; the steps that it left out, counted from 0."""
    inputs, targets = data()
    left_out, step = [], 0
    model.train()
    for epoch in range(epochs):
        for batch in permutation(SAMPLES, 0, epoch).split(BATCH):
            torch.manual_seed(key(0, "model", index=step))
            before = [buffer.clone() for buffer in model.buffers()]
            optimizer.zero_grad()
            loss = criterion(model(inputs[batch]), targets[batch])
            loss.backward()
            if all(p.grad.isfinite().all() for p in model.parameters()) and loss.isfinite():
                optimizer.step()
            else:
                left_out.append(step)
                for buffer, value in zip(model.buffers(), before, strict=True):
                    buffer.copy_(value)
            step += 1
    return left_out


@pytest.mark.parametrize("make", [momentum, adam])
@pytest.mark.parametrize("bad", [(), (5,), (4, 11, 20)])
def test_skip_is_the_textbook_loop_that_leaves_those_batches_out(make: Any, bad: tuple[int, ...]) -> None:
    mine, theirs, criterion = Net(), Net(), Spoils(*bad)
    optimizer = make(theirs.parameters())
    left_out = by_hand(theirs, optimizer, criterion)
    run = fit(mine, criterion, optimizer=make, on_nonfinite="skip", plan="plain", dropout="stream")
    assert {n: v.tolist() for n, v in mine.state_dict().items()} == {
        n: v.tolist() for n, v in theirs.state_dict().items()
    }
    for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        kept, expected = run.state.optimizer.state[one], optimizer.state[other]
        assert kept.keys() == expected.keys()
        assert all(torch.equal(torch.as_tensor(kept[name]), torch.as_tensor(expected[name])) for name in kept)
    assert (run.state.step, run.state.left_out) == (2 * PER_EPOCH, left_out)
    noted = [row for row in run.history if row["kind"] == "left_out"]
    assert [row["step"] - 1 for row in noted] == left_out
    assert len(left_out) == len({step_of(s, e) for s in bad for e in (0, 1)})


def test_more_steps_than_may_be_left_out_end_the_run() -> None:
    numbers = sorted((permutation(SAMPLES, 0, 0)[[1, 9, 17]]).tolist())  # of three batches
    fit(Net(), Spoils(*numbers), on_nonfinite={"skip": 3}, epochs=1)
    with pytest.raises(DivergedError, match="on_nonfinite leaves out 2 at most") as raised:
        fit(Net(), Spoils(*numbers), on_nonfinite={"skip": 2}, epochs=1)
    assert raised.value.exit_code == 5


def test_steps_of_one_s_own_loop_are_left_out_too() -> None:
    mine, theirs, criterion = Net(), Net(), Spoils(5)
    given: dict[str, Any] = {"optimizer": momentum, "epochs": 2, "batch_size": BATCH, "on_nonfinite": "skip"}
    outcomes = [(outcome.step, outcome.left_out) for outcome in gradstep.steps(mine, criterion, data(), **given)]
    fit(theirs, criterion, on_nonfinite="skip")
    assert [step for step, left_out in outcomes if left_out] == [step_of(5), step_of(5, 1)]
    assert all(torch.equal(a, b) for a, b in zip(mine.state_dict().values(), theirs.state_dict().values(), strict=True))
    given["on_nonfinite"] = "rewind"
    with pytest.raises(RecipeError, match=r"on_nonfinite: rewind .* no checkpoints. Write skip"):
        gradstep.steps(mine, criterion, data(), **given)


# rewind

WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "average, schedule, evaluation": {
        "ema": 0.8,
        "schedule": gradstep.schedules.cosine(warmup="2 steps"),
        "evaluate_every": "2 steps",
        "metrics": {"size": lambda outputs, targets: outputs.abs().mean()},
        "optimizer": adam,
    },
    "micro-batches": {"micro_batch": 2, "log_every": "4 steps"},
}
BAD = (4, 11)


def left_by(out: Path, way: str, policy: str, hooks: Any = (), **more: Any) -> dict[str, str]:
    """What a run leaves whose batches with two of the samples are spoilt."""
    given = WAYS[way] | {"valid": data(8)} if "evaluate_every" in WAYS[way] else WAYS[way]
    model, criterion = Net(norm=way != "micro-batches"), EachSpoils(*BAD)
    fit(model, criterion, on_nonfinite=policy, out=out, hooks=hooks, resume=True, **given, **more)
    return what_is_left(out / "0001-run")


@pytest.mark.parametrize("every", ["1 step", "3 steps", "1 epoch"])
@pytest.mark.parametrize("way", WAYS)
def test_rewind_ends_where_skip_ends_bit_for_bit(tmp_path: Path, way: str, every: str) -> None:
    expected = left_by(tmp_path / "skip", way, "skip", checkpoint=every)
    assert left_by(tmp_path / "rewind", way, "rewind", checkpoint=every) == expected
    noted = [row["step"] for row in rows(tmp_path / "rewind" / "0001-run") if row["kind"] == "left_out"]
    assert noted == sorted({step_of(sample, epoch) for sample in BAD for epoch in (0, 1)})


class DieOnceBack:
    """Kills its process at the first step after a rewind."""

    def __init__(self) -> None:
        self.furthest = 0

    def on_train_batch_end(self, state: Any, outcome: Any) -> None:
        if state.step <= self.furthest:
            os.kill(os.getpid(), signal.SIGKILL)
        self.furthest = state.step


def test_killed_on_its_way_back_and_resumed_it_ends_there_too(tmp_path: Path) -> None:
    way = "average, schedule, evaluation"
    expected = left_by(tmp_path / "skip", way, "skip", checkpoint="1 epoch")
    died = in_a_child(lambda: left_by(tmp_path / "cut", way, "rewind", [DieOnceBack()], checkpoint="1 epoch"))
    assert died == signal.SIGKILL
    assert left_by(tmp_path / "cut", way, "rewind", checkpoint="1 epoch") == expected


def test_one_step_too_many_to_leave_out_is_noted_where_the_run_went_back_too(tmp_path: Path) -> None:
    numbers = permutation(SAMPLES, 0, 0)[[1, 9, 17]].tolist()  # of steps 1, 3 and 5
    with pytest.raises(DivergedError, match=r"step 5 is the 3th .* on_nonfinite leaves out 2 at most"):
        fit(Net(), Spoils(*numbers), on_nonfinite={"rewind": 2}, out=tmp_path, checkpoint="2 steps")
    died = json.loads((tmp_path / "0001-run" / "failure.json").read_text())
    assert (died["step"], died["error"], died["checkpoint"]) == (5, "DivergedError", 4)


def test_rewind_needs_a_place_for_its_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"on_nonfinite: rewind .*out='runs'.*skip"):
        fit(Net(), Spoils(), on_nonfinite="rewind")
    assert list(tmp_path.iterdir()) == []


# What is refused, and what is none


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("ignore", "on_nonfinite: 'ignore' is none of stop, skip, rewind"),
        ("skp", "Did you mean 'skip'?"),
        ({"skip": 0}, "on_nonfinite.skip: 0 is no number of steps; at least 1"),
        ({"rewind": True}, "on_nonfinite.rewind: True is no number of steps"),
        ({"skip": "3"}, "on_nonfinite.skip: '3' is no number of steps"),
        ({"stop": 3}, "on_nonfinite: {'stop': 3} is none of stop, skip, rewind"),
        ({"skip": 1, "rewind": 1}, "is none of stop"),
        (["skip"], "is none of stop"),
        (None, "on_nonfinite: None is none of stop"),
        (3, "on_nonfinite: 3 is none of stop"),
    ],
)
def test_a_word_that_is_none_of_the_three_is_refused(given: Any, said: str) -> None:
    with pytest.raises(RecipeError) as raised:
        OnNonfinite.parse(given)
    assert said in str(raised.value)


@pytest.mark.parametrize("policy", ["skip", "rewind"])
def test_a_step_that_asks_for_the_loss_several_times_can_not_be_left_out(policy: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"on_nonfinite: LBFGS .* Write stop"):
        fit(Net(), Spoils(), optimizer=torch.optim.LBFGS, on_nonfinite=policy, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_optimizer_with_a_closure_stops_before_its_update_too() -> None:
    model, remember = Net(), Remember()
    with pytest.raises(DivergedError, match=f"the loss of step {step_of(5)} is nan"):
        fit(model, Spoils(5), optimizer=lambda p: torch.optim.LBFGS(p, lr=0.01, max_iter=2), hooks=[remember])
    assert remember.state.step == step_of(5) - 1
    assert {n: b for n, b in bits(remember.state).items() if n.startswith("model")} == {
        n: b for n, b in remember.after[step_of(5) - 1].items() if n.startswith("model")
    }


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_batch_whose_targets_are_all_ignored_is_no_divergence(policy: str) -> None:
    inputs, targets = data()[0], data()[1][:, 0].clone()
    targets[permutation(SAMPLES, 0, 0)[8:12]] = -100  # the whole third batch of the first epoch
    mine, theirs = Net(), Net()
    run = gradstep.fit(
        mine, nn.CrossEntropyLoss(), (inputs, targets), optimizer=momentum, epochs=1, batch_size=BATCH, quiet=True,
        on_nonfinite=policy, dropout="stream",
    )  # fmt: skip
    optimizer = momentum(theirs.parameters())
    for batch in permutation(SAMPLES, 0, 0).split(BATCH):
        optimizer.zero_grad()
        nn.functional.cross_entropy(theirs(inputs[batch]), targets[batch]).backward()
        optimizer.step()
    assert run.state.left_out == []
    assert all(torch.equal(a, b) for a, b in zip(mine.state_dict().values(), theirs.state_dict().values(), strict=True))


# Saved states are numbers


class Overflows(torch.optim.SGD):
    """Its update makes an infinity of one weight after some steps, from numbers that are all finite."""

    at = 5

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        weight = self.param_groups[0]["params"][0]
        self.state[weight]["calls"] = self.state[weight].get("calls", torch.zeros(())) + 1
        if int(self.state[weight]["calls"]) == self.at:
            with torch.no_grad():
                weight.view(-1)[0] = 1e38
                weight.view(-1)[0] *= 1e38


def all_saved(run: Path) -> Iterator[checkpoint.Saved]:
    for step in checkpoint.steps(run / "checkpoints"):
        yield checkpoint.read(checkpoint.at(run / "checkpoints", step))


@pytest.mark.parametrize("policy", ["stop", "skip", "rewind"])
@pytest.mark.parametrize("every", ["1 step", "2 steps"])
@pytest.mark.parametrize("steps", [5, 12])  # the infinity comes with the last step, and within the run
def test_an_update_that_overflows_is_never_saved_and_says_so(
    tmp_path: Path, policy: str, every: str, steps: int
) -> None:
    given: dict[str, Any] = {
        "optimizer": lambda p: Overflows(p, lr=0.1), "checkpoint": {"every": every, "keep": 20}, "epochs": None,
        "steps": steps, "on_nonfinite": policy,
    }  # fmt: skip
    for times in (1, 2):
        with pytest.raises(DivergedError):
            fit(Net(), Spoils(), out=tmp_path, resume=True, **given)
        run = tmp_path / "0001-run"
        for saved in all_saved(run):
            assert saved.step < 5
            assert all(value.isfinite().all() for tensors in saved.tensors.values() for value in tensors.values())
        assert not (run / "model.safetensors").exists()
        died = json.loads((run / "failure.json").read_text())
        assert (died["error"], died["times"]) == ("DivergedError", times)
        assert died["checkpoint"] == max(saved.step for saved in all_saved(run))
    with pytest.raises(DivergedError):
        fit(Net(), Spoils(), out=tmp_path, resume=True, **given)
    with pytest.raises(DivergedError, match="failed 3 times"):
        fit(Net(), Spoils(), out=tmp_path, resume=True, **given)


def test_a_rate_without_reason_ends_in_divergence_and_not_in_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(DivergedError):
        fit(Net(), Spoils(), out=tmp_path, optimizer=lambda p: torch.optim.SGD(p, lr=1e38), checkpoint="1 step")
    for saved in all_saved(tmp_path / "0001-run"):
        assert all(value.isfinite().all() for tensors in saved.tensors.values() for value in tensors.values())


def test_an_infinity_that_was_there_from_the_start_may_stay(tmp_path: Path) -> None:
    def masked() -> Net:
        model = Net()
        model.register_buffer("mask", torch.tensor([0.0, -INF]))
        return model

    fit(masked(), Spoils(), out=tmp_path / "whole")
    with pytest.raises(DivergedError):
        fit(masked(), Spoils(9), out=tmp_path / "cut", checkpoint="1 step")
    fit(masked(), Spoils(), out=tmp_path / "cut", resume=True, checkpoint="1 step")
    one, other = (what_is_left(tmp_path / name / "0001-run") for name in ("whole", "cut"))
    assert one["model.safetensors"] == other["model.safetensors"]


# Looking changes nothing

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128]


def raw(value: Tensor) -> bytes:
    dense = value._values() if value.is_sparse else value
    whole: bytes = dense.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return whole


@given(st.sampled_from(FLOATS), st.lists(st.binary(min_size=16, max_size=16), min_size=1, max_size=6), st.booleans())
def test_the_look_finds_what_is_not_finite_and_changes_no_bit(
    dtype: torch.dtype, some: list[bytes], sparse: bool
) -> None:
    """Any pattern of bits there is: -0.0, numbers below the normal ones, and nan of every kind."""
    value = torch.frombuffer(bytearray(b"".join(some)), dtype=dtype).clone()
    if sparse:
        at = torch.arange(len(value)).unsqueeze(0)
        value = torch.sparse_coo_tensor(at, value, (len(value),), check_invariants=True)
    finite = (value._values() if sparse else value).isfinite().all()
    before = raw(value)
    found = spoiled([None, torch.ones(2, dtype=torch.float64), value, torch.zeros(0)])
    assert bool(found) == (not finite)
    assert raw(value) == before or not finite  # of a gradient that is thrown away, the kind of nan may be another


def test_no_gradients_at_all_are_fine_and_odd_layouts_too() -> None:
    assert not bool(spoiled([]))
    assert not bool(spoiled([None]))
    for value in (1.0, INF):
        spread = torch.full((1,), value).expand(3)  # three elements in one place: nothing may be written there
        assert bool(spoiled([spread])) == (value == INF)
        assert bool(spoiled([torch.full((2, 3), value).T[1:]])) == (value == INF)
        assert bool(spoiled([torch.full((1, 2, 3, 3), value).to(memory_format=torch.channels_last)])) == (value == INF)
        whole = torch.full((2, 4), value)
        for layout in (torch.sparse_csr, torch.sparse_csc):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch says that these are a beta
                compressed = whole.to_sparse(layout=layout)
            assert bool(spoiled([whole.clone().fill_(1.0), compressed])) == (value == INF)
