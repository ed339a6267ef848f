"""Steps that are replayed: the same bits as steps that are taken one by one, or none at all."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gradstep
from gradstep import finite, graphs
from gradstep.errors import RecipeError
from gradstep.graphs import GraphedSteps
from gradstep.plan.asked import Asked
from gradstep.plan.choosing import choose
from gradstep.plan.proposals import PROPOSALS, apply
from gradstep.plan.shadow import DeclinedError, Trace
from gradstep.step import step as plain_step
from tests.recorded import Recorder
from tests.test_plan import IMAGES, LABELS, batches_of, net, training_of

GRAPH = tuple(proposal for proposal in PROPOSALS if proposal.switch == "graph")


@pytest.fixture(autouse=True)
def device_with_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU as a device that keeps graphs, and whose numbers are not at hand."""
    monkeypatch.setattr(graphs, "keeper_of", lambda device: Recorder)
    monkeypatch.setattr(finite, "at_hand", lambda tensor: False)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=2.0**-10, fused=True),
    "AdamW, groups": lambda p: torch.optim.AdamW(
        [{"params": p[:2], "lr": 2.0**-7}, {"params": p[2:]}], lr=2.0**-9, fused=True
    ),
    "gradstep's SGD, L1": lambda p: gradstep.optim.SGD(p, lr=0.0625, momentum=0.9, weight_decay_l1=1e-4, fused=True),
}


def taken(make_net: Callable[[], nn.Module], optimizer: Any, graphed: bool, count: int = 9, **more: Any) -> Any:
    """The losses and tensors of so many steps of the fit's own loop, and how many of them were replayed."""
    training = training_of(make_net(), count, optimizer, plan={"graph": "step"} if graphed else "plain", **more)
    losses, outputs = [], []
    with training.training_mode(), training.planned():
        steps = training.take_step
        for number in range(count):
            training.before_step()
            batch = training.feed[number]  # type: ignore[index]
            outcome = training.take_step(
                training.state, batch, training.update, training.clip, training.guard, training.device
            )
            losses.append(outcome.loss)
            outputs.append(outcome.outputs)
            assert torch.equal(outcome.targets, training.update.unpack(batch)[1])
            assert outcome.step == number + 1
        found = {
            f"{file}/{name}": tensor.clone()
            for file, own in training.state.tensors().items()
            for name, tensor in own.items()
        }
        gradients = [parameter.grad for parameter in training.state.trained()]
    return losses, outputs, found, gradients, getattr(steps, "replayed", 0)


def assert_same(plain: Any, other: Any) -> None:
    for ours, theirs in ((plain[0], other[0]), (plain[1], other[1]), (plain[3], other[3])):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert plain[2].keys() == other[2].keys()
    assert [name for name, tensor in plain[2].items() if not torch.equal(tensor, other[2][name])] == []


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"schedule": lambda step, base: base * 2.0 ** -(step % 3), "clip": 0.5},
        {"dropout": "stream", "batch_size": 40},
        {"ema": 0.9, "on_nonfinite": "rewind"},
    ],
    ids=["plain", "schedule and clip", "torch's own dropout, ragged batches", "average"],
)
def test_replayed_steps_are_the_steps_bit_for_bit(optimizer: Any, more: dict[str, Any]) -> None:
    plain, other = taken(net, optimizer, False, **more), taken(net, optimizer, True, **more)
    assert_same(plain, other)
    # Each kind of batch is taken once one by one: the epoch's last of 16 samples is another kind than those of 40.
    assert other[4] == (7 if "batch_size" in more else 8)


def test_a_rate_that_float32_can_t_hold_is_the_nearest_one_in_every_step() -> None:
    nearest = torch.tensor(0.1).item()
    plain = taken(net, lambda p: torch.optim.SGD(p, lr=nearest, fused=True), False)
    other = taken(net, lambda p: torch.optim.SGD(p, lr=0.1, fused=True), True)
    assert_same(plain, other)


# What a graph would freeze is seen: as a proposal it is declined, with the reason.


class Reads(nn.Module):
    """A net whose forward does more than hand kernels to a device."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.net, self.how, self.calls = net(dropout=False), how, 0
        self.scale = torch.ones(())
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.net(inputs)
        if self.how == "draws on the host":
            return outputs if random.random() < 0.5 else outputs * 2
        if self.how == "counts":
            self.calls += 1
            return outputs * (1 + self.calls % 3)
        if self.how == "waits":
            return outputs / outputs.detach().abs().max().item()
        if self.how == "makes its buffer anew":
            self.seen = self.seen + outputs.detach().mean()
            return outputs + self.seen
        if self.how == "carries a tensor":
            self.scale = 1 + outputs.detach().mean()
            return outputs * self.scale
        return outputs


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("draws on the host", "stream of the host"),
        ("counts", "keeps in Python what a step changes"),
        ("waits", "_local_scalar_dense.* waits for the device"),
        ("makes its buffer anew", "keeps in Python"),
        ("carries a tensor", "keeps in Python"),
    ],
)
def test_a_step_that_a_graph_would_freeze_is_not_captured(how: str, why: str) -> None:
    training = training_of(Reads(how), optimizer=OPTIMIZERS["SGD"], plan={"graph": "measured"})
    with training.training_mode(), pytest.raises(RuntimeError, match=f"the step can't be captured: .*{why}"):
        Trace(training, batches_of(training), 16, 4).deviation(lambda shadow: apply(shadow, {"graph": "step"}))
    choose(training, GRAPH)
    assert not training.plan.choices
    assert "can't be captured" in training.plan.verdicts[0].why
    with pytest.raises(RecipeError, match=rf"plan\.graph: step can't be had here \(.*{why}.*\)\. Write off"):
        gradstep.fit(
            Reads(how), nn.CrossEntropyLoss(), (IMAGES, LABELS), optimizer=OPTIMIZERS["SGD"], steps=9, batch_size=32,
            plan={"graph": "step"}, quiet=True,
        )  # fmt: skip
    # Where it is found out later, as in a batch of another size, steps are taken one by one.
    random.seed(5)
    plain = taken(lambda: Reads(how), OPTIMIZERS["SGD"], False)
    random.seed(5)
    with pytest.warns(UserWarning, match=f"plan.graph: a step can't be captured.*{why}"):
        other = taken(lambda: Reads(how), OPTIMIZERS["SGD"], True)
    assert_same(plain, other)
    assert other[4] == 0


def test_what_is_captured_is_verified_by_replays() -> None:
    training = training_of(net(), optimizer=OPTIMIZERS["Adam"])
    made = Recorder.made
    with training.training_mode():
        apart = Trace(training, batches_of(training), 16, 4).deviation(lambda own: apply(own, {"graph": "step"}))
    assert apart <= 1e-9
    assert Recorder.made > made


@pytest.mark.parametrize("frozen", ["rate", "masks", "stream"])
def test_what_is_frozen_into_a_graph_is_seen(frozen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the three that are written before a replay, forgotten."""
    if frozen == "rate":
        monkeypatch.setattr(GraphedSteps, "_write_rates", lambda *_: None)
    elif frozen == "masks":
        monkeypatch.setattr("gradstep.update.keyed.KeyedDropout.write", lambda *_: None)
    else:
        monkeypatch.setattr(graphs, "seed_model", lambda *_: torch.default_generator.manual_seed(1))
    dropout = "stream" if frozen == "stream" else "keyed"
    training = training_of(net(), optimizer=OPTIMIZERS["SGD"], dropout=dropout)
    with training.training_mode(), pytest.raises(DeclinedError, match="no longer the same"):
        Trace(training, batches_of(training), 16, 4).deviation(lambda own: apply(own, {"graph": "step"}))


def halves_momentum(training: Any, number: int) -> None:
    for group in training.state.optimizer.param_groups:
        group["momentum"] = 0.9 / (1 + number // 4)


def weighs_the_loss(training: Any, number: int) -> None:
    training.state.criterion.label_smoothing = 0.1 * (number // 4)


def freezes_a_layer(training: Any, number: int) -> None:
    training.state.model[0].weight.requires_grad_(number < 4)


def puts_its_state_back(training: Any, number: int) -> None:
    if number == 4:
        files, numbers = training.state.snapshot()
        training.state.load(files, numbers)


def stops_training_a_layer(training: Any, number: int) -> None:
    training.state.model[1].train(number < 4)


@pytest.mark.parametrize(
    "meddle", [halves_momentum, weighs_the_loss, freezes_a_layer, puts_its_state_back, stops_training_a_layer]
)
def test_what_is_another_since_a_graph_was_captured_is_captured_anew(meddle: Callable[[Any, int], None]) -> None:
    found = []
    for graphed in (False, True):
        training = training_of(net(), 12, OPTIMIZERS["SGD"], plan={"graph": "step"} if graphed else "plain")
        made = Recorder.made
        with training.training_mode(), training.planned():
            for number in range(12):
                meddle(training, number)
                batch = training.feed[number]  # type: ignore[index]
                training.take_step(
                    training.state, batch, training.update, training.clip, training.guard, training.device
                )
            found.append({name: tensor.clone() for name, tensor in training.state.tensors()["model"].items()})
    assert Recorder.made - made == (3 if meddle in (halves_momentum, weighs_the_loss) else 2)
    assert [name for name, tensor in found[0].items() if not torch.equal(tensor, found[1][name])] == []


def test_conditions_that_are_always_others_end_in_plain_steps() -> None:
    training = training_of(net(), 200, OPTIMIZERS["SGD"], plan={"graph": "step"})
    made = Recorder.made
    with training.training_mode(), training.planned():
        for number in range(100):
            training.state.optimizer.param_groups[0]["momentum"] = 0.9 / (1 + number // 3)
            batch = training.feed[number]  # type: ignore[index]
            training.take_step(training.state, batch, training.update, training.clip, training.guard, training.device)
    assert Recorder.made - made == graphs._MOST


def run(plan: Any, steps: int, out: Path | None = None, resume: bool = False, **more: Any) -> Any:
    options = {"optimizer": OPTIMIZERS["Adam"], **more}
    return gradstep.fit(
        net(), nn.CrossEntropyLoss(), (IMAGES, LABELS), valid=(IMAGES, LABELS),
        steps=steps, batch_size=40, metrics=["accuracy"], plan=plan, out=out, name="run" if out else None,
        resume=resume, quiet=True, **options,
    )  # fmt: skip


def tensors_of(trained: Any) -> list[torch.Tensor]:
    return list(trained.model.state_dict().values())


def test_a_run_by_graphs_is_the_run_and_is_resumed_as_it_was(tmp_path: Path) -> None:
    plain, made = run("plain", 12), Recorder.made
    other = run({"graph": "step"}, 12)
    assert Recorder.made - made == 1 + 2  # in the proof, of 16 samples; in the run, of both sizes of batch
    assert all(map(torch.equal, tensors_of(plain), tensors_of(other)))

    def rounded(p: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(p, lr=1e-3, weight_decay=1e-2)

    options = {"schedule": lambda step, base: base / (1 + step), "checkpoint": {"every": "2 steps"}}
    options["optimizer"] = rounded
    whole = run({"graph": "step"}, 12, tmp_path / "whole", **options)
    stop = [0]

    class Stops:
        def on_train_batch_end(self, state: Any, outcome: Any) -> None:
            stop[0] += 1
            if stop[0] == 7:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run({"graph": "step"}, 12, tmp_path / "cut", hooks=[Stops()], **options)
    resumed = run({"graph": "step"}, 12, tmp_path / "cut", resume=True, **options)
    assert all(map(torch.equal, tensors_of(whole), tensors_of(resumed)))  # whichever of its steps were replayed


def test_a_graph_that_is_asked_for_in_a_resume_is_proven_there(tmp_path: Path) -> None:
    def trained(plan: Any, resume: bool) -> Any:
        return gradstep.fit(
            Reads("counts"), nn.CrossEntropyLoss(), (IMAGES, LABELS), optimizer=OPTIMIZERS["SGD"], steps=12,
            batch_size=32, out=tmp_path, name="run", plan=plan, resume=resume, quiet=True,
            hooks=[] if resume else [Pauses()],
        )  # fmt: skip

    class Pauses:
        def on_train_batch_end(self, state: Any, outcome: Any) -> Any:
            return gradstep.Request.PAUSE if state.step == 5 else None

    trained("plain", False)
    with pytest.raises(RecipeError, match=r"plan\.graph: step can't be had here \(.*keeps in Python"):
        trained({"graph": "step"}, True)


# What is another thing in a graph than one by one.


class Remembers(nn.Module):
    """What is None, or not there at all, before the first step."""

    def __init__(self, late: bool) -> None:
        super().__init__()
        self.net, self.late = net(dropout=False), late
        if not late:
            self.mask: torch.Tensor | None = None

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.net(inputs)
        if getattr(self, "mask", None) is None or len(self.mask) != len(inputs):  # type: ignore[arg-type]
            self.mask = torch.linspace(0.5, 1.0, len(inputs))[:, None]
        return outputs * self.mask


@pytest.mark.parametrize("late", [False, True])
def test_a_tensor_that_comes_with_the_first_step_is_watched(late: bool) -> None:
    """One is kept for the last size of batch: batches of two sizes in turn, and an evaluation of a third."""
    more: dict[str, Any] = {"batch_size": 40}
    assert_same(
        taken(lambda: Remembers(late), OPTIMIZERS["SGD"], False, 14, **more),
        taken(lambda: Remembers(late), OPTIMIZERS["SGD"], True, 14, **more),
    )


class Switches(nn.Module):
    """A layer that has no gradient in the first step and one in the second, by a draw on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.more = net(dropout=False), nn.Linear(5, 5)
        self.steps = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.net(inputs)
        if self.training:
            self.steps += 1
        return outputs if self.steps < 2 else outputs + self.more(outputs)


def test_slots_that_a_refused_capture_has_made_are_made_anew() -> None:
    plain = taken(Switches, OPTIMIZERS["Adam"], False)
    with pytest.warns(UserWarning, match="keeps in Python"):
        other = taken(Switches, OPTIMIZERS["Adam"], True)
    assert_same(plain, other)


def test_a_step_that_writes_into_its_batch_is_not_captured() -> None:
    """What it wrote would be in the copy, and not in the targets that are the same tensor."""

    class Spoils(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.linear = nn.Linear(12, 12)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.linear(inputs.mul_(0.5))  # type: ignore[no-any-return]

    def taken_so(graphed: bool) -> Any:
        return taken(
            Spoils, lambda p: torch.optim.SGD(p, lr=0.125, fused=True), graphed, criterion=nn.MSELoss(),
            unpack=lambda batch: (batch[0][0, 0],) * 2,
        )  # fmt: skip

    plain = taken_so(False)
    with pytest.warns(UserWarning, match="writes into its batch"):
        other = taken_so(True)
    assert all(map(torch.equal, plain[0], other[0]))
    assert other[4] == 0


@pytest.mark.parametrize("leaf", ["a name", [1, 2], {1, 2}])
def test_a_batch_with_more_than_tensors_is_taken_one_by_one(leaf: Any) -> None:
    def unpack(batch: Any) -> Any:
        return batch[0], {"labels": batch[1], "more": leaf}

    def criterion(outputs: Any, targets: Any) -> Any:
        return nn.functional.cross_entropy(outputs, targets["labels"])

    training = training_of(net(), 9, OPTIMIZERS["SGD"], plan={"graph": "step"}, unpack=unpack, criterion=criterion)
    with training.training_mode(), training.planned():
        take, rest = training.take_step, (training.update, training.clip, training.guard, training.device)
        with pytest.warns(UserWarning, match="more than tensors"):
            take(training.state, training.feed[0], *rest)  # type: ignore[index]
        for number in (1, 2):
            take(training.state, training.feed[number], *rest)  # type: ignore[index]
    assert training.state.step == 3
    assert take.replayed == 0  # type: ignore[attr-defined]


def test_parameters_in_float64_have_no_rates_in_float32() -> None:
    with pytest.raises(RecipeError, match=r"plan\.graph: .*too coarse for parameters in float64"):
        apply(training_of(net().double(), train=(IMAGES.double(), LABELS)), {"graph": "step"})


def test_a_graph_is_measured_on_request_only() -> None:
    assert Asked.parse("measured").switches["graph"] == "off"
    assert Asked.parse({"threads": 1}).switches["graph"] == "off"
    assert Asked.parse({"graph": "measured"}).switches["graph"] == "measured"


class Broken:
    """torch.cuda.graph where a capture is broken off: its end complains of the beginning."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        raise RuntimeError("operation failed due to a previous error during capture")


def test_of_a_capture_that_breaks_the_first_error_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[str] = []

    class Stream:
        def __init__(self, *_: Any) -> None:
            pass

    @contextmanager
    def current(*_: Any) -> Iterator[None]:
        entered.append("in")
        try:
            yield
        finally:
            entered.append("out")

    for name, instead in {
        "Stream": Stream, "graph_pool_handle": lambda: (0, 1), "CUDAGraph": Stream, "graph": Broken,
        "device": current, "stream": current,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, instead)

    def body() -> Any:
        raise ValueError("the model reads a number")

    with pytest.raises(ValueError, match="the model reads a number"):
        graphs.Cuda(torch.device("cuda")).capture(body)
    assert entered == ["in", "in", "out", "out"]


# What can't be had.


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"micro_batch": 8}, "micro-batches"),
        ({"on_nonfinite": "skip"}, "waits"),
        ({"optimizer": lambda p: torch.optim.RMSprop(p)}, "RMSprop has no fused kernel"),
        ({"optimizer": lambda p: gradstep.optim.SGD(p, lr=0.1, lr_decay=0.1)}, "counts its steps"),
        ({"optimizer": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.1))}, "is a tensor"),
        ({"optimizer": lambda p: torch.optim.Adam(p, betas=(torch.tensor(0.9), torch.tensor(0.99)))}, "is a tensor"),
    ],
)
def test_where_no_graph_can_be_it_is_neither_proposed_nor_taken(more: dict[str, Any], why: str) -> None:
    training = training_of(net(norm=False), **more)
    assert GRAPH[0].values(training) == []
    with pytest.raises(RecipeError, match=rf"plan\.graph: step can't be had here .*{why}.* Write off"):
        apply(training, {"graph": "step"})


def test_a_cpu_keeps_no_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(RecipeError, match=r"plan\.graph: step can't be had here \(RuntimeError: cpu keeps no graphs\)"):
        run({"graph": "step"}, 4)


def test_a_loop_of_ones_own_has_no_graphs() -> None:
    with pytest.raises(RecipeError, match=r"plan\.graph: between two steps of your own loop"):
        gradstep.steps(
            net(), nn.CrossEntropyLoss(), (IMAGES, LABELS), optimizer=OPTIMIZERS["SGD"], steps=5, batch_size=32,
            plan={"graph": "step"},
        )  # fmt: skip


def test_the_users_options_are_his_own_again() -> None:
    training = training_of(net(), 9, lambda p: torch.optim.Adam(p, lr=0.25), plan={"graph": "step"})
    before = [{k: v for k, v in group.items() if k != "params"} for group in training.state.optimizer.param_groups]
    with training.training_mode(), training.planned():
        for number in range(6):
            training.take_step(
                training.state,
                training.feed[number],
                training.update,
                None,
                training.guard,
                training.device,  # type: ignore[index]
            )
            assert training.state.optimizer.param_groups[0]["lr"] == 0.25
            assert not training.state.optimizer.param_groups[0]["capturable"]
    assert training.take_step is plain_step
    after = [{k: v for k, v in group.items() if k != "params"} for group in training.state.optimizer.param_groups]
    assert before == after
