"""The plan: what may be asked, what is verified, what is measured, and that nothing but time is another afterwards."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader

import gradstep
from gradstep.data import Feed
from gradstep.errors import GradstepError, RecipeError
from gradstep.evaluation import evaluation_feed
from gradstep.metrics import resolve
from gradstep.models import LeNet, TwoLayerNet
from gradstep.plan import choosing, timing, verdicts
from gradstep.plan.asked import SWITCHES, Asked
from gradstep.plan.choosing import choose
from gradstep.plan.passes import Evaluated, Few, passes_apart
from gradstep.plan.proposals import PROPOSALS, Proposal, _joined, _pieces, _with_a_kernel_for_all, apply
from gradstep.plan.shadow import DeclinedError, Trace, shadow_of
from gradstep.plan.timing import interval, race
from gradstep.setup import Training, assemble
from gradstep.step import step as plain_step

IMAGES = torch.randn(96, 1, 12, 12, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(96) % 5


def net(dropout: bool = True, norm: bool = True) -> nn.Module:
    torch.manual_seed(3)
    middle = [nn.BatchNorm2d(6)] if norm else []
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False), *middle, nn.ReLU(), nn.Conv2d(6, 4, 3), nn.MaxPool2d(2), nn.Flatten(),
        *([nn.Dropout(0.3)] if dropout else []), nn.Linear(64, 5),
    )  # fmt: skip


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3)


def training_of(model: nn.Module, steps: int = 5000, optimizer: Any = sgd, **more: Any) -> Training:
    options: dict[str, Any] = {
        "epochs": None, "batch_size": 32, "drop_last": False, "schedule": None, "seed": 0, "dropout": "keyed",
        "device": "cpu", "precision": "fp32", "workers": 0, "plan": "measured", "micro_batch": None,
        "stat_group": None, "clip": None, "ema": None, "on_nonfinite": "stop", "unpack": None, "forward": None,
        "criterion": nn.CrossEntropyLoss(), "train": (IMAGES, LABELS),
    }  # fmt: skip
    options |= more
    criterion, train = options.pop("criterion"), options.pop("train")
    training = assemble(model, criterion, train, optimizer=optimizer, steps=steps, **options)
    training.decide()
    return training


def batches_of(training: Training) -> list[Any]:
    return [training.feed[0], training.feed[2]]  # type: ignore[index]  # a feed of gradstep's own can be asked


# What may be asked.


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("mesured", "'mesured' is neither measured nor plain.*Did you mean 'measured'"),
        ({"compil": "off"}, "no switch 'compil'.*Did you mean 'compile'"),
        ({"threads": 0}, "plan.threads: 0 is none of a number, measured, off"),
        ({"threads": True}, "plan.threads: True"),
        ({"optimizer": "Adam"}, "plan.optimizer: 'Adam' is none of fused, foreach, measured, off"),
        (3, "3 is neither"),
    ],
)
def test_what_can_t_be_asked_is_refused_by_name(given: Any, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        Asked.parse(given)


def test_a_plan_is_a_word_or_switches() -> None:
    assert set(Asked.parse("plain").switches.values()) == {"off"}
    assert set(Asked.parse("measured").switches) == set(SWITCHES) == {proposal.switch for proposal in PROPOSALS}
    some = Asked.parse({"compile": False, "threads": 1})  # YAML 1.1 reads off as False
    assert (some.switches["compile"], some.given, some.name) == ("off", {"threads": 1}, "measured")
    assert Asked.parse(dict.fromkeys(SWITCHES, "off")).name == "plain"


# What is measured.


@pytest.mark.parametrize(("count", "left_out"), [(6, 0), (8, 0), (9, 1), (12, 2), (18, 4), (27, 7)])
def test_the_interval_leaves_out_as_many_at_each_end_as_the_binomial_allows(count: int, left_out: int) -> None:
    assert interval([float(value) for value in range(count)]) == (left_out, count - 1 - left_out)


class Machine:
    """A clock on which steps take time: with a neighbour that comes and goes, and slows them down for a while."""

    def __init__(self, draw: random.Random, faster: float) -> None:
        self.now, self._draw, self._faster, self._busy = 0.0, draw, faster, False

    def steps(self, other: bool) -> Callable[[int], None]:
        def take(count: int) -> None:
            for _ in range(count):
                if self._draw.random() < 0.15:
                    self._busy = not self._busy
                slow = self._draw.uniform(1.2, 4.0) if self._busy else self._draw.gauss(1.0, 0.03)
                self.now += 0.005 * slow * (self._faster if other else 1.0)

        return take

    def race(self) -> timing.Raced:
        return race(self.steps(True), self.steps(False), 1e9, lambda: self.now)


def test_what_changes_nothing_is_adopted_in_less_than_one_trial_of_a_hundred() -> None:
    draw = random.Random(0)
    trials = [Machine(draw, faster=1.0).race().faster for _ in range(2000)]
    assert sum(trials) <= 20


def test_what_is_much_faster_is_found_beside_a_neighbour_too() -> None:
    draw = random.Random(1)
    assert sum(Machine(draw, faster=0.5).race().faster for _ in range(200)) >= 180


def test_what_is_a_tenth_faster_is_found_where_there_is_time_to_look_often_enough() -> None:
    draw = random.Random(3)
    assert sum(Machine(draw, faster=0.9).race().faster for _ in range(200)) >= 170


def test_a_race_takes_no_more_looks_than_there_is_time_for() -> None:
    machine = Machine(random.Random(2), faster=0.93)  # near the bound: it would look on
    raced = race(machine.steps(True), machine.steps(False), 0.01, lambda: machine.now)
    assert raced.pairs == 8


# What is verified.


@pytest.mark.parametrize("make", [net, lambda: net(norm=False), lambda: net(dropout=False)])
@pytest.mark.parametrize(
    "choices",
    [{"memory_format": "channels_last"}, {"optimizer": "fused"}, {"optimizer": "foreach"}, {"threads": 1},
     {"memory_format": "channels_last", "optimizer": "fused"}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("optimizer", [sgd, lambda p: torch.optim.Adam(p, 1e-3), lambda p: torch.optim.AdamW(p, 1e-3)])
def test_the_proposals_compute_the_same_step(make: Any, choices: dict[str, Any], optimizer: Any) -> None:
    training = training_of(make(), optimizer=optimizer)
    assert Trace(training, batches_of(training), 16).deviation(lambda shadow: apply(shadow, choices)) <= 1e-9


@pytest.mark.parametrize(("size", "parts"), [(1024, [256, 64]), (128, [32]), (64, [])])
def test_a_large_batch_may_be_taken_apart(size: int, parts: list[int]) -> None:
    training = training_of(net(norm=False), train=(IMAGES.repeat(12, 1, 1, 1), LABELS.repeat(12)), batch_size=size)
    assert _pieces(training) == parts


def test_what_is_the_users_to_say_is_not_taken_apart() -> None:
    many = {"train": (IMAGES.repeat(12, 1, 1, 1), LABELS.repeat(12)), "batch_size": 128}
    assert _pieces(training_of(net(norm=True), **many)) == []
    assert _pieces(training_of(net(norm=True), **many, stat_group=32)) == []
    by_hand = training_of(net(norm=False), **many, micro_batch=16, plan={"micro_batch": 64})
    assert by_hand.asked.switches["micro_batch"] == "off"
    assert set(by_hand.plan.micro_batches["128"]) == {16}


@pytest.mark.parametrize("optimizer", [torch.optim.RMSprop, torch.optim.NAdam, torch.optim.Adadelta])
def test_what_has_no_fused_kernel_is_taken_in_one_call(optimizer: Any) -> None:
    training = training_of(net(), optimizer=lambda p: optimizer(p, 1e-3))
    assert _with_a_kernel_for_all(training) == ["foreach"]
    choices = {"optimizer": "foreach"}
    assert Trace(training, batches_of(training), 16).deviation(lambda shadow: apply(shadow, choices)) <= 1e-9


def test_pieces_are_taken_only_where_they_add_up() -> None:
    training = training_of(net(norm=False))
    apart = Trace(training, batches_of(training), 20).deviation(lambda shadow: apply(shadow, {"micro_batch": 8}))
    assert 0 < apart <= 1e-9
    coupled = training_of(net(norm=False), criterion=lambda outputs, targets: outputs.square().sum().sqrt())
    with pytest.raises(GradstepError, match="can't be accumulated"):
        Trace(coupled, batches_of(coupled), 20).deviation(lambda shadow: apply(shadow, {"micro_batch": 8}))


def test_a_micro_batch_that_is_chosen_is_in_the_plan_with_its_method_and_proof() -> None:
    def apart_and_in_a_hurry(training: Training, value: Any) -> Callable[[], None]:
        apply(training, {"micro_batch": value})
        return _hurry(training, value)

    training = training_of(Slow(norm=False))
    known = Proposal("micro_batch", lambda _: [16], apart_and_in_a_hurry, samples=lambda value: 32)
    choose(training, (known,), now=lambda: WATCH[0])
    assert training.plan.verdicts[0].adopted, training.plan.verdicts
    assert training.plan.choices == {"micro_batch": 16}
    assert training.plan.update == "accumulate"
    assert training.plan.proof
    assert training.plan.micro_batches == {"32": [16, 16]}


def forgets_the_weight_decay(shadow: Training) -> None:
    for group in shadow.state.optimizer.param_groups:
        group["weight_decay"] = 0.0


def freezes_the_rate(shadow: Training) -> None:
    """As a graph does that was captured with the rate as a number."""

    def take(state: Any, batch: Any, *rest: Any) -> Any:
        for group in state.optimizer.param_groups:
            group["lr"] = 0.05
        return plain_step(state, batch, *rest)

    shadow.take_step = take


def warms_up_with_its_buffers(shadow: Training) -> None:
    shadow.state.model.train()
    shadow.state.model(torch.randn(32, 1, 12, 12, dtype=torch.float64))


def bakes_the_masks_in(shadow: Training) -> None:
    """As a graph does that draws no new random numbers when it is replayed."""
    keyed = shadow.update._keyed
    assert keyed is not None
    batch = keyed.batch
    keyed.batch = lambda step, samples, layouts: batch(1, samples, layouts)  # type: ignore[method-assign]


def computes_in_float32(shadow: Training) -> None:
    model = shadow.state.model
    shadow.update.forward = lambda _, inputs: model.float()(inputs.float()).double()


def leaves_samples_out(shadow: Training) -> None:
    shadow.update.unpack = lambda batch: (batch[0][:-1], batch[1][:-1])


@pytest.mark.parametrize(
    "planted",
    [forgets_the_weight_decay, freezes_the_rate, warms_up_with_its_buffers, bakes_the_masks_in, computes_in_float32,
     leaves_samples_out],
)  # fmt: skip
def test_what_fails_silently_is_seen(planted: Callable[[Training], None]) -> None:
    training = training_of(net())
    with pytest.raises(DeclinedError, match="no longer the same"):
        Trace(training, batches_of(training), 16).deviation(planted)


def evaluating(training: Training, metrics: Any = None) -> Training:
    training.evaluated = Evaluated.of(
        [evaluation_feed((IMAGES, LABELS), "valid", 10, training.device)], resolve(metrics)
    )
    return training


@pytest.mark.parametrize("choices", [{"evaluation": "channels_last"}, {"evaluation_batch": 40}], ids=str)
def test_an_evaluation_that_is_another_is_seen(choices: dict[str, Any]) -> None:
    training = evaluating(training_of(net()), ["accuracy"])
    assert passes_apart(training, lambda shadow: apply(shadow, choices)) < 1e-9

    def planted(shadow: Training) -> None:
        shadow.state.model[0].weight.data[0] *= 1 + 1e-7  # type: ignore[index]

    with pytest.raises(DeclinedError, match="no longer the same evaluation"):
        passes_apart(training, planted)


def test_batches_are_joined_only_where_criterion_and_metrics_are_sums_over_samples() -> None:
    def larger(shadow: Training) -> None:
        apply(shadow, {"evaluation_batch": 40})

    coupled = evaluating(training_of(net(), criterion=lambda outputs, targets: outputs.square().mean().sqrt()))
    with pytest.raises(DeclinedError, match="no longer the same evaluation: loss is"):
        passes_apart(coupled, larger)
    plain = evaluating(training_of(net()), ["accuracy"])
    assert plain.evaluated is not None
    few = Few(plain.evaluated)
    assert [len(batch[0]) for batch in few.of(None).once()] == [10] * 8
    assert [len(batch[0]) for batch in few.of(40).once()] == [40] * 2
    assert _joined(plain) == [40]
    assert _joined(evaluating(training_of(net(), batch_size=8))) == []  # forty would take more than a step of eight
    assert _joined(coupled) == []  # its criterion is not one that is known to be a mean
    by_batch = {"f1": lambda outputs, targets: (outputs.argmax(1) == targets).float().mean()}
    assert _joined(evaluating(training_of(net()), by_batch)) == []
    assert _joined(evaluating(training_of(net(norm=False), micro_batch=8))) == []
    assert Evaluated.of([asked_one_by_one()], resolve(None)) is None


def asked_one_by_one() -> Feed:
    """A feed that asks a data set sample by sample, and collates."""
    rows = [(image, int(label)) for image, label in zip(IMAGES, LABELS, strict=True)]
    feed = evaluation_feed(DataLoader(rows, 10), "valid", None, torch.device("cpu"))  # type: ignore[arg-type]
    assert isinstance(feed, Feed)
    return feed


def test_an_evaluation_is_made_in_the_batches_that_the_plan_says(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    class Look(nn.Sequential):
        def forward(self, inputs: Tensor) -> Any:
            if not self.training:
                seen.append(len(inputs))
            return super().forward(inputs)

    run(
        {**dict.fromkeys(SWITCHES, "off"), "evaluation_batch": 24},
        Look(*net()),
        batch_size=32,
        evaluate_every="4 epochs",
    )
    assert seen[-2:] == [24, 16]  # of forty


def test_a_model_that_is_given_in_evaluation_mode_is_looked_at_as_it_trains() -> None:
    model = net().eval()
    data = IMAGES.repeat(12, 1, 1, 1), LABELS.repeat(12)
    training = training_of(model, train=data, batch_size=128)
    modes: list[bool] = []

    def look(shadow: Training, value: Any) -> Callable[[], None]:
        modes.append(shadow.state.model.training)
        return lambda: None

    choose(training, (one(look), Proposal("micro_batch", _pieces, look)))
    assert modes
    assert all(modes)
    assert not model.training
    assert [verdict.switch for verdict in training.plan.verdicts] == ["compile"]


def test_what_was_chosen_and_can_t_be_had_is_undone_in_the_update_too() -> None:
    training = training_of(net(norm=False))
    training.plan = training.plan.chosen({"micro_batch": 8, "optimizer": "fused"}, ())
    training.decide()
    training.state.optimizer.param_groups[0].pop("fused")
    with training.planned():
        assert training.plan.choices == {}
        assert training.update.micro_batch is None
        assert training.plan.update == "one_pass"
    assert "can't be had any more" in training.plan.note


@pytest.mark.parametrize("size", [7, 32, 96, 1000])
def test_a_feed_in_other_batches_has_the_same_samples(size: int) -> None:
    feed = evaluation_feed((IMAGES, LABELS), "valid", 10, torch.device("cpu"))
    assert isinstance(feed, Feed)
    batches = list(feed.in_batches_of(size).once())
    assert torch.equal(torch.cat([images for images, _ in batches]), IMAGES)
    assert {len(images) for images, _ in batches[:-1]} <= {size}


# What is chosen.


WATCH = [0.0]  # seconds, by a watch on which nothing but a slow net takes time: whatever else the machine does


class Slow(nn.Module):
    """A net whose forward takes 3 ms, and 1 ms if it is told to hurry."""

    def __init__(self, norm: bool = True, keeps: bool = False) -> None:
        super().__init__()
        self.net, self.hurry = net(norm=norm), False
        self.kept: list[Tensor] | None = [] if keeps else None

    def forward(self, inputs: Tensor) -> Tensor:
        if self.kept is not None:
            self.kept.append(torch.zeros(5_000))
        WATCH[0] += 0.001 if self.hurry else 0.003
        outputs: Tensor = self.net(inputs)
        return outputs


def _hurry(training: Training, value: Any) -> Callable[[], None]:
    training.state.model.hurry = True
    return lambda: setattr(training.state.model, "hurry", False)


def one(apply: Any, switch: str = "compile", **more: Any) -> Proposal:
    return Proposal(switch, lambda _: ["model"], apply, **more)


HURRY = one(_hurry)


def found(proposal: Proposal, model: nn.Module | None = None, **more: Any) -> Any:
    training = training_of(Slow() if model is None else model, **more)
    choose(training, (proposal,), **({"now": lambda: WATCH[0]} if isinstance(training.state.model, Slow) else {}))
    (verdict,) = training.plan.verdicts
    return verdict


def test_what_is_faster_is_adopted_and_what_is_not_is_declined_with_its_figures() -> None:
    verdict = found(HURRY)
    assert verdict.adopted
    assert verdict.ratio[2] <= 0.95
    nothing = found(one(lambda training, value: lambda: None))
    assert nothing.found == "declined"
    assert "of plain" in nothing.why


def _raises(training: Training, value: Any) -> Any:
    raise RuntimeError("no kernel\nfor this")


def _hangs(training: Training, value: Any) -> Any:
    while True:
        time.sleep(0.01)


def test_a_proposal_that_raises_or_hangs_costs_nothing_but_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(one(_raises)).why.endswith(
        "plan.compile: model can't be had here (RuntimeError: no kernel). Write off."
    )
    monkeypatch.setattr(choosing, "_GRACE", 0.2)
    assert "not done after" in found(one(_hangs), steps=20_000).why


def leaks(training: Training, value: Any) -> Callable[[], None]:
    """As a graph that is kept for each step, or a list of losses that hold theirs."""
    kept, take = [], training.take_step

    def keeping(*rest: Any) -> Any:
        kept.append(torch.zeros(5_000))
        return take(*rest)

    training.take_step = keeping
    return _hurry(training, value)


def grows_now_and_then(training: Training, value: Any) -> Callable[[], None]:
    """As a cache does: every other step leaves something."""
    kept, take = [], training.take_step

    def keeping(*rest: Any) -> Any:
        kept.append(torch.zeros(5_000) if len(kept) % 2 else None)
        return take(*rest)

    training.take_step = keeping
    return _hurry(training, value)


def test_a_proposal_that_leaks_is_declined_however_fast_it_is() -> None:
    verdict = found(one(leaks))
    assert verdict.found == "declined"
    assert re.fullmatch(r"it leaks: memory grows by (19|2\d) KB each time it is taken", verdict.why)
    assert found(one(grows_now_and_then)).adopted
    own = found(HURRY, Slow(keeps=True))  # a model of the user's that leaks does so by any plan
    assert own.adopted


def test_what_there_is_no_time_for_is_not_tried() -> None:
    verdict = found(one(_raises, seconds=lambda training: 60.0))
    assert verdict.found == "not tried"
    assert verdict.why.startswith("it takes 60 s, and of 2 % of the run")


class Watch:
    """A clock that goes on only where the training takes a step, in float64 twice as far, or a proposal compiles."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        return self.now

    def take(self, state: Any, batch: Any, *rest: Any) -> Any:
        double = next(state.model.parameters()).dtype == torch.float64
        self.now += self.step * (2 if double else 1)
        return plain_step(state, batch, *rest)


@settings(max_examples=15, deadline=None)
@given(
    steps=st.integers(2000, 100_000),
    step=st.floats(1e-4, 0.5),
    tried=st.lists(
        st.tuples(st.floats(0, 100.0), st.sampled_from([1.0, 1.0, 0.4]), st.booleans(), st.sampled_from([1, 4])),
        min_size=1,
        max_size=5,
    ),
)
def test_all_of_it_takes_two_hundredths_of_the_run_at_most(steps: int, step: float, tried: list[Any]) -> None:
    """Proposals that cost something to set up, some of them faster, some with their batches, some taken four times."""
    watch = Watch(step)
    training = training_of(net(), steps=steps)
    training.take_step = watch.take

    class Slow(Feed):
        def __getitem__(self, number: int) -> Any:
            watch.now += step / 2
            return super().__getitem__(number)

    assert isinstance(training.feed, Feed)
    training.feed.__class__ = Slow

    def costly(number: int, cost: float, ratio: float, feeds: bool, times: int) -> Proposal:
        def apply(training: Training, value: Any) -> Callable[[], None]:
            watch.now += cost / 3  # it is set up three times: to be verified, in a shadow, and in the run
            take = training.take_step

            def quicker(*rest: Any) -> Any:
                before, outcome = watch.now, take(*rest)
                watch.now = before + ratio * (watch.now - before)
                return outcome

            training.take_step = quicker
            return lambda: None

        return Proposal(f"number {number}", lambda _: ["on"], apply, seconds=lambda _: cost, feeds=feeds, times=times)

    choose(training, [costly(number, *each) for number, each in enumerate(tried)], now=watch)
    assert training.plan.verdicts
    assert watch.now <= 0.02 * steps * step
    if 0.02 * steps * step > 2 * sum(cost for cost, *_ in tried) + 900 * len(tried) * max(step, 0.002):
        assert all(verdict.found != "not tried" for verdict in training.plan.verdicts)


def test_nothing_of_the_users_is_another_after_choosing() -> None:
    model = net()
    training = training_of(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    strides = [parameter.stride() for parameter in model.parameters()]
    stream = torch.random.get_rng_state()
    choose(training)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert strides == [parameter.stride() for parameter in model.parameters()]
    assert torch.equal(stream, torch.random.get_rng_state())
    assert training.state.step == 0
    assert not training.state.optimizer.state
    assert all(parameter.grad is None for parameter in model.parameters())


class Uncopied(nn.Linear):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("holds a socket")


def _hooked() -> nn.Module:
    model = net()
    model[0].register_forward_hook(lambda *_: None)  # type: ignore[index]
    return model


def _heard() -> nn.Module:
    model = net()
    model[0].weight.register_hook(lambda gradient: gradient)  # type: ignore[index,union-attr]
    return model


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: nn.Sequential(nn.Flatten(), Uncopied(144, 5)), "can't be copied .TypeError: holds a socket"),
        (_hooked, "'0' has hooks"),
        (_heard, "'0.weight' has hooks"),
    ],
)
def test_a_model_that_no_copy_of_can_be_tried_runs_plain(make: Any, why: str) -> None:
    training = training_of(make())
    choose(training)
    assert training.plan.plan == "plain"
    assert not training.plan.choices
    assert re.search(why, training.plan.note)


def test_a_criterion_that_holds_the_model_itself_is_not_tried() -> None:
    model = net(dropout=False)

    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        penalty = sum(parameter.square().sum() for parameter in model.parameters())
        return nn.functional.cross_entropy(outputs, targets) + 1e-4 * penalty

    training = training_of(model, criterion=criterion)
    choose(training)
    assert training.plan.note == "nothing was measured: criterion holds a Sequential, which trials might change"
    assert all(parameter.grad is None for parameter in model.parameters())


MODEL: list[nn.Module] = []


def _of_the_module(outputs: Tensor, targets: Tensor) -> Tensor:
    """A penalty on a model that it finds by itself."""
    penalty = sum(parameter.square().sum() for parameter in MODEL[0].parameters())
    return nn.functional.cross_entropy(outputs, targets) + 1e-4 * penalty


def test_a_function_that_finds_the_model_by_itself_is_found_out_and_all_is_put_back() -> None:
    MODEL[:] = [net(dropout=False)]
    training = training_of(MODEL[0], criterion=_of_the_module)
    choose(training, (HURRY,))
    assert "holds the model itself" in training.plan.note
    assert all(parameter.grad is None for parameter in MODEL[0].parameters())


@pytest.mark.parametrize("broken", ["_prepare", "_shadow"])
def test_whatever_goes_wrong_in_measuring_the_run_is_plain(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: Any) -> Any:
        raise MemoryError("no room")

    monkeypatch.setattr(choosing._Search, broken, out_of_memory)
    training = training_of(net())
    choose(training)
    assert (training.plan.plan, training.plan.note) == ("plain", "nothing was measured: MemoryError: no room")
    assert ("", training.plan.note) in training.plan.facts()


def test_an_optimizer_with_attributes_of_its_own_is_copied_whole() -> None:
    training = training_of(net(), optimizer=lambda parameters: torch.optim.LBFGS(parameters, lr=0.1, max_iter=2))
    choose(training, (one(lambda training, value: lambda: None),))
    (verdict,) = training.plan.verdicts
    assert "of plain" in verdict.why


def test_a_short_run_measures_nothing_and_says_nothing() -> None:
    training = training_of(net(), steps=1999)
    choose(training, (one(_raises),))
    assert (training.plan.plan, training.plan.verdicts) == ("plain", ())
    assert [label for label, _ in training.plan.facts()] == ["plan"]


def test_verdicts_are_remembered_until_something_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADSTEP_CACHE", str(tmp_path))
    assert found(HURRY).adopted

    def race(*_: Any) -> Any:
        raise AssertionError("measured again")

    verified = []
    deviation = Trace.deviation
    monkeypatch.setattr(Trace, "deviation", lambda self, apply: verified.append(1) or deviation(self, apply))
    with monkeypatch.context() as patched:
        patched.setattr(choosing, "race", race)
        assert found(HURRY).adopted
        assert verified  # what is remembered is a time; that it is the same step is shown in each run
        assert not found(HURRY, batch_size=16).adopted  # another key: it was measured, which raised
    (path, *_) = sorted((tmp_path / "plans").glob("*.json"), key=lambda path: path.stat().st_size)[-1:]
    path.write_text("{")
    assert found(HURRY).adopted
    assert json.loads(path.read_text())["verdicts"]


def test_nothing_is_remembered_where_the_cache_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADSTEP_CACHE", "off")
    assert verdicts._path("key") is None
    assert found(HURRY).adopted


def test_what_noise_has_hidden_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADSTEP_CACHE", str(tmp_path))
    unclear = timing.Raced(0.9, 0.8, 1.1, 27, 0.001)
    monkeypatch.setattr(choosing, "race", lambda *_: unclear)
    assert found(HURRY).found == "declined"
    monkeypatch.setattr(choosing, "race", lambda *_: replace(unclear, high=0.93))
    assert found(HURRY).adopted


# What a run is under a plan.

GIVEN = {**dict.fromkeys(SWITCHES, "off"), "memory_format": "channels_last", "optimizer": "fused"}
APART = {**GIVEN, "micro_batch": 8}


def run(plan: Any, model: nn.Module | None = None, **more: Any) -> Any:
    model = net() if model is None else model
    return gradstep.fit(
        model, nn.CrossEntropyLoss(), (IMAGES, LABELS), (IMAGES[:40], LABELS[:40]), optimizer=sgd,
        plan=plan, device="cpu", **{"epochs": 4, "batch_size": 32, "quiet": True, **more},
    )  # fmt: skip


def test_the_users_objects_come_back_in_their_own_format_and_flags() -> None:
    model = net()
    optimizer = sgd(model.parameters())
    strides = [parameter.stride() for parameter in model.parameters()]
    seen: list[Any] = []

    class Look:
        def on_train_batch_end(self, state: Any, outcome: Any) -> None:
            seen.append(
                (state.optimizer.param_groups[0]["fused"], state.model[3].weight.stride(), torch.get_num_threads())
            )

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        gradstep.fit(
            model, nn.CrossEntropyLoss(), (IMAGES, LABELS), optimizer=optimizer, batch_size=32, epochs=1, quiet=True,
            plan={**GIVEN, "threads": 1}, hooks=[Look()],
        )  # fmt: skip
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert set(seen) == {(True, (54, 1, 18, 6), 1)}
    assert [parameter.stride() for parameter in model.parameters()] == strides
    assert optimizer.param_groups[0]["fused"] is None
    buffers = [slots["momentum_buffer"] for slots in optimizer.state.values()]
    assert [buffer.stride() for buffer in buffers] == strides


def test_a_plan_changes_the_run_to_rounding_only() -> None:
    plain, given = run("plain"), run(GIVEN)
    for one, other in zip(plain.model.parameters(), given.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert run(GIVEN).history == given.history  # equal plans, equal runs


class PauseAt:
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, state: Any, outcome: Any) -> Any:
        return gradstep.Request.PAUSE if state.step == self.step else None


@settings(max_examples=4, deadline=None)
@given(at=st.integers(1, 11), word=st.sampled_from([GIVEN, "measured", {"threads": "off"}]))
def test_a_run_that_is_resumed_keeps_its_plan_and_its_bits(
    tmp_path_factory: pytest.TempPathFactory, at: int, word: Any
) -> None:
    whole = run(GIVEN)
    out = tmp_path_factory.mktemp("runs")
    run(GIVEN, out=out, hooks=[PauseAt(at)])
    resumed = run(word, out=out, resume=True)
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    choices = json.loads((Path(resumed.path) / "plan.json").read_text())["choices"]
    assert choices == {"memory_format": "channels_last", "optimizer": "fused"}
    fresh = net()
    assert [p.stride() for p in resumed.model.parameters()] == [p.stride() for p in fresh.parameters()]
    assert resumed.state.optimizer.param_groups[0]["fused"] is None


@pytest.mark.parametrize("word", [APART, "measured", {"threads": "off"}], ids=str)
def test_a_run_in_chosen_pieces_is_resumed_in_them(
    tmp_path: Path, word: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run(APART, net(norm=False))
    run(APART, net(norm=False), out=tmp_path, hooks=[PauseAt(5)])
    resumed = run(word, net(norm=False), out=tmp_path, resume=True, quiet=False)
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert "changed" not in capsys.readouterr().out  # it is the same run
    document = json.loads((Path(resumed.path) / "plan.json").read_text())
    assert document["choices"]["micro_batch"] == 8
    assert document["update"] == "accumulate"


def test_in_a_resume_the_users_own_micro_batch_is_taken_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(APART, net(norm=False), out=tmp_path, hooks=[PauseAt(5)])
    resumed = run(APART, net(norm=False), out=tmp_path, resume=True, micro_batch=16, quiet=False)
    told = capsys.readouterr().out
    assert "plan: micro_batch was 8 and is off, the same to rounding" in told
    assert "plan.micro_batch: not used, since micro_batch=16" in told
    for one, other in zip(run(APART, net(norm=False)).model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_switch_that_is_turned_off_by_hand_is_off_in_a_resume_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(GIVEN, out=tmp_path, hooks=[PauseAt(5)])
    seen = []

    class Look:
        def on_train_batch_end(self, state: Any, outcome: Any) -> None:
            seen.append(state.model[3].weight.is_contiguous(memory_format=torch.channels_last))

    run({"memory_format": "off"}, out=tmp_path, resume=True, hooks=[Look()], quiet=False)
    assert "plan: memory_format was channels_last and is off, the same to rounding" in capsys.readouterr().out
    assert seen == [False] * 7


@pytest.mark.parametrize("switch", ["compile", "evaluation", "evaluation_batch"])
def test_evaluating_under_a_plan_changes_nothing_but_what_it_says(switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an average that is evaluated, and BatchNorm and dropout in the model that is not."""
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model: lambda inputs: compiled.append(model.training) or model(inputs))
    plan = {
        **dict.fromkeys(SWITCHES, "off"),
        switch: {"compile": "model", "evaluation": "channels_last", "evaluation_batch": 20}[switch],
    }
    every, never = (run(plan, ema=0.9, evaluate_every=each) for each in ("1 step", "4 epochs"))
    plain = run("plain", ema=0.9, evaluate_every="4 epochs")
    for one, other, third in zip(*(each.model.state_dict().values() for each in (every, never, plain)), strict=True):
        assert torch.equal(one, other)
        assert torch.equal(other, third)
    assert never.history[-1]["valid/loss"] == pytest.approx(plain.history[-1]["valid/loss"], rel=1e-5)
    assert compiled == [True] * len(compiled)


def test_what_is_compiled_and_fails_goes_on_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(model: Any) -> Any:
        def run(inputs: Tensor) -> Tensor:
            if len(inputs) < 32:
                raise RuntimeError("another shape")
            outputs: Tensor = model(inputs)
            return outputs

        return run

    monkeypatch.setattr(torch, "compile", fails)
    plan = {**dict.fromkeys(SWITCHES, "off"), "compile": "model"}
    ragged, plain = (run(each, batch_size=28) for each in (plan, "plain"))
    for one, other in zip(ragged.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_steps_take_a_plan_too_and_undo_it() -> None:
    model = net()
    steps = gradstep.steps(
        model, nn.CrossEntropyLoss(), (IMAGES, LABELS), optimizer=sgd, batch_size=32, epochs=1, plan=GIVEN
    )
    next(steps)
    assert model[3].weight.stride() == (54, 1, 18, 6)  # type: ignore[index,union-attr]
    steps.close()
    assert model[3].weight.stride() == (54, 9, 3, 1)  # type: ignore[index,union-attr]


def test_a_switch_that_can_t_be_had_is_refused_before_anything_is_trained() -> None:
    optimizer = lambda parameters: torch.optim.Rprop(parameters)  # noqa: E731
    model = TwoLayerNet(4, 3, 2)
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(RecipeError, match=r"plan.optimizer: fused can't be had here .KeyError: 'fused'.. Write off."):
        gradstep.fit(
            model, nn.MSELoss(), (torch.randn(8, 4), torch.randn(8, 2)), optimizer=optimizer, batch_size=4, epochs=1,
            plan={"optimizer": "fused"}, quiet=True,
        )  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_shadow_shares_nothing_that_a_step_changes() -> None:
    model = LeNet(channels=1)
    training = training_of(model, train=(torch.randn(8, 1, 32, 32), torch.arange(8) % 10), batch_size=4)
    shadow = shadow_of(training)
    own = {parameter.data_ptr() for parameter in model.parameters()}
    assert not own & {parameter.data_ptr() for parameter in shadow.state.model.parameters()}
    held = {id(p) for group in shadow.state.optimizer.param_groups for p in group["params"]}
    assert held == {id(parameter) for parameter in shadow.state.model.parameters()}
