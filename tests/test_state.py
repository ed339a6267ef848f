"""What a run is: saved and loaded into other objects, training goes on as if nothing had happened, to the last bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn, optim
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import gradstep
from gradstep import checkpoint
from gradstep.clock import Clock
from gradstep.errors import ChangedError, CheckpointError, ModelError
from gradstep.optim.averaging import Averaging
from gradstep.state import Standing, TrainState, load_module, module_tensors, non_finite

FAST = settings(max_examples=30, deadline=None)
Make = Callable[[int], TrainState]  # a state whose weights belong to a seed


class Net(nn.Module):
    """A matrix, a bias, BatchNorm with its buffers, and a buffer of whole numbers that each forward changes."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.norm, self.last = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("passing", torch.zeros(2), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        return self.last(torch.tanh(self.norm(self.hidden(inputs))))


class Words(nn.Module):
    """An embedding with sparse gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(12, 3, sparse=True)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.table(inputs[:, 0].abs().mul(10).long().clamp(max=11))


def matrices() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, 3, bias=False))


def a_state(make: Callable[[], nn.Module], optimizer: Callable[[Any], Any], criterion: Any = None) -> Make:
    def with_seed(seed: int) -> TrainState:
        torch.manual_seed(seed)
        model = make()
        return TrainState(model, optimizer(model.parameters()), criterion or nn.CrossEntropyLoss(), seed)

    return with_seed


def train(state: TrainState, first: int, last: int) -> list[float]:
    """Steps `first` to `last`; a batch and what a forward draws belong to the number of the step."""
    losses = []
    for number in range(first, last):
        torch.manual_seed(1000 + number)
        inputs, targets = torch.randn(8, 4), torch.randint(0, 3, (8,))

        def closure(inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
            state.optimizer.zero_grad()
            loss: Tensor = state.criterion(state.model(inputs), targets)
            loss.backward()
            return loss

        losses.append(torch.as_tensor(state.optimizer.step(closure)).detach().item())
        state.step, state.samples = state.step + 1, state.samples + 8
    return losses


def what_was_read(path: Path) -> tuple[Any, Any]:
    saved = checkpoint.read(path)
    return saved.tensors, saved.values


def through_disk(state: TrainState, into: TrainState, folder: Path) -> TrainState:
    folder.mkdir(exist_ok=True)
    path = checkpoint.write(folder, state.step, state.tensors(), state.numbers())
    into.load(*what_was_read(path))
    return into


def parts(value: Any, path: str = "") -> dict[str, Any]:
    """Everything in a nest, flat, tensors as their bytes."""
    if isinstance(value, Tensor):
        return {
            path: (value.dtype, tuple(value.shape), value.detach().contiguous().view(-1).view(torch.uint8).tolist())
        }
    if isinstance(value, dict):
        return {name: each for key, item in value.items() for name, each in parts(item, f"{path}/{key}").items()}
    if isinstance(value, (list, tuple)):
        return {name: e for i, item in enumerate(value) for name, e in parts(item, f"{path}/{i}").items()}
    return {path: (type(value), value)}


def substance(state: TrainState) -> dict[str, Any]:
    """All of a state, by torch's own account of it."""
    criterion = state.criterion.state_dict() if isinstance(state.criterion, nn.Module) else {}
    return parts(
        {
            "model": dict(state.model.state_dict()),
            "optimizer": state.optimizer.state_dict(),
            "criterion": dict(criterion),
        }
    ) | {"step": state.step, "samples": state.samples, "base_rates": state.base_rates, "standing": state.standing}


OPTIMIZERS: dict[str, Make] = {
    "SGD": a_state(Net, lambda p: optim.SGD(p, lr=0.1)),
    "SGD, momentum": a_state(Net, lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)),
    "Adam": a_state(Net, lambda p: optim.Adam(p, lr=0.01, amsgrad=True)),
    "Adam, rate in a tensor": a_state(Net, lambda p: optim.Adam(p, lr=torch.tensor(0.01))),
    "Adam, fused": a_state(Net, lambda p: optim.Adam(p, lr=0.01, fused=True)),
    "Adam, foreach": a_state(Net, lambda p: optim.Adam(p, lr=0.01, foreach=True)),
    "AdamW": a_state(Net, lambda p: optim.AdamW(p, lr=0.01)),
    "Adagrad": a_state(Net, lambda p: optim.Adagrad(p, lr=0.1, lr_decay=0.1, initial_accumulator_value=0.1)),
    "RMSprop": a_state(Net, lambda p: optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True)),
    "Adadelta": a_state(Net, lambda p: optim.Adadelta(p, lr=0.5)),
    "Adamax": a_state(Net, lambda p: optim.Adamax(p, lr=0.01)),
    "NAdam": a_state(Net, lambda p: optim.NAdam(p, lr=0.01)),
    "RAdam": a_state(Net, lambda p: optim.RAdam(p, lr=0.01)),
    "ASGD": a_state(Net, lambda p: optim.ASGD(p, lr=0.1, t0=2, lambd=0.01)),
    "Rprop": a_state(Net, lambda p: optim.Rprop(p, lr=0.01)),
    "LBFGS": a_state(Net, lambda p: optim.LBFGS(p, lr=0.3, max_iter=3, history_size=4)),
    "LBFGS, line search": a_state(Net, lambda p: optim.LBFGS(p, max_iter=3, line_search_fn="strong_wolfe")),
    "Adafactor": a_state(Net, lambda p: optim.Adafactor(p, lr=0.05)),
    "Muon": a_state(matrices, lambda p: optim.Muon(p, lr=0.05)),
    "SparseAdam": a_state(Words, lambda p: optim.SparseAdam(p, lr=0.05)),
}


def test_every_optimizer_of_torch_is_among_these() -> None:
    classes = {
        name for name, kind in vars(optim).items() if isinstance(kind, type) and issubclass(kind, optim.Optimizer)
    }
    assert classes - {"Optimizer"} == {name.split(",")[0] for name in OPTIMIZERS}


@pytest.mark.parametrize("before", [0, 1, 5])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_saved_and_loaded_into_fresh_objects_it_goes_on_bitwise(name: str, before: int, tmp_path: Path) -> None:
    whole = OPTIMIZERS[name](0)
    stopped = OPTIMIZERS[name](0)
    losses = train(whole, 0, before + 4)
    train(stopped, 0, before)
    resumed = through_disk(stopped, OPTIMIZERS[name](1), tmp_path)
    assert substance(resumed) == substance(stopped)
    assert train(resumed, before, before + 4) == losses[before:]
    assert substance(resumed) == substance(whole)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_loading_replaces_what_an_optimizer_has_gathered_already(name: str, tmp_path: Path) -> None:
    stopped, busy = OPTIMIZERS[name](0), OPTIMIZERS[name](1)
    train(stopped, 0, 2)
    train(busy, 50, 57)
    for step in (0, 1):
        state = OPTIMIZERS[name](0) if step == 0 else stopped
        assert substance(through_disk(state, busy, tmp_path / str(step))) == substance(state)


def two_groups(first: dict[str, Any], second: dict[str, Any]) -> TrainState:
    torch.manual_seed(0)
    model = Net()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, **first}, {"params": others, **second}]
    return TrainState(model, optim.SGD(groups, lr=0.5), nn.CrossEntropyLoss(), 0)


def test_groups_come_back_with_their_own_options_and_base_rates(tmp_path: Path) -> None:
    own = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}, {"lr": 0.02, "momentum": 0.5, "nesterov": True}
    stopped, whole = two_groups(*own), two_groups(*own)
    train(stopped, 0, 3)
    train(whole, 0, 3)
    for state in (stopped, whole):  # as a schedule would have left them
        for group in state.optimizer.param_groups:
            group["lr"] *= 0.5
    resumed = through_disk(stopped, two_groups({"lr": 7.0}, {"momentum": 0.1}), tmp_path)
    assert resumed.base_rates == [0.1, 0.02]
    assert substance(resumed) == substance(whole)
    assert train(resumed, 3, 6) == train(whole, 3, 6)
    assert substance(resumed) == substance(whole)


def test_options_that_are_tuples_or_tensors_stay_what_they_are(tmp_path: Path) -> None:
    stopped = a_state(Net, lambda p: optim.Adam(p, lr=torch.tensor(0.03), betas=(0.8, 0.95)))(0)
    fresh = a_state(Net, lambda p: optim.Adam(p, lr=torch.tensor(0.5)))(1)
    held = fresh.optimizer.param_groups[0]["lr"]
    through_disk(stopped, fresh, tmp_path)
    assert fresh.optimizer.param_groups[0]["betas"] == (0.8, 0.95)
    assert fresh.optimizer.param_groups[0]["lr"] is held
    assert torch.equal(held, torch.tensor(0.03))


def test_what_an_optimizer_keeps_comes_back_in_its_own_dtype_and_form(tmp_path: Path) -> None:
    stopped, fresh = OPTIMIZERS["SGD"](0), OPTIMIZERS["SGD"](1)
    kept = {
        "fine": torch.randn(6, 4, dtype=torch.float64),  # and the parameter is float32
        "coarse": torch.randn(6, 4).bfloat16(),
        "count": torch.tensor(2**60 + 1),
        "several": [torch.randn(2), None, 0.1, [torch.zeros(0)]],
        "flag": True,
        "name": "x",
        "nothing": None,
    }
    stopped.optimizer.state[stopped.model.hidden.weight].update(kept)
    through_disk(stopped, fresh, tmp_path)
    assert parts(fresh.optimizer.state[fresh.model.hidden.weight]) == parts(kept)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(4, 4, bias=False), nn.Linear(4, 4)
        self.out.weight = self.into.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(torch.tanh(self.into(inputs)))


def test_tied_weights_are_saved_once_and_stay_tied(tmp_path: Path) -> None:
    make = a_state(Tied, lambda p: optim.SGD(p, lr=0.1, momentum=0.9))
    whole, stopped = make(0), make(0)
    train(whole, 0, 6)
    train(stopped, 0, 3)
    assert set(stopped.tensors()["model"]) == {"into.weight", "out.bias"}
    resumed = through_disk(stopped, make(1), tmp_path)
    assert resumed.model.out.weight is resumed.model.into.weight
    train(resumed, 3, 6)
    assert substance(resumed) == substance(whole)


def test_buffers_are_saved_unless_they_are_passing_and_each_in_its_own_dtype() -> None:
    state = OPTIMIZERS["SGD"](0)
    train(state, 0, 2)
    tensors = module_tensors(state.model)
    assert "passing" not in tensors
    assert (tensors["calls"].item(), tensors["calls"].dtype) == (2, torch.int64)
    assert tensors["norm.num_batches_tracked"].item() == 2
    assert not torch.equal(tensors["norm.running_mean"], torch.zeros(6))


class Scaled(nn.Module):
    """A criterion with a parameter and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.seen += len(targets)
        return nn.functional.cross_entropy(outputs * self.scale, targets) + self.scale.square() * 0.1


def with_criterion(seed: int) -> TrainState:
    torch.manual_seed(seed)
    model, criterion = Net(), Scaled()
    return TrainState(model, optim.Adam([*model.parameters(), *criterion.parameters()], lr=0.05), criterion, seed)


def test_a_criterion_with_parameters_and_buffers_is_a_part_of_the_run(tmp_path: Path) -> None:
    whole, stopped = with_criterion(0), with_criterion(0)
    train(whole, 0, 6)
    train(stopped, 0, 3)
    resumed = through_disk(stopped, with_criterion(1), tmp_path)
    assert resumed.criterion.seen.item() == 24
    train(resumed, 3, 6)
    assert substance(resumed) == substance(whole)


def test_a_criterion_whose_tensors_have_no_place_is_an_error_and_not_lost(tmp_path: Path) -> None:
    path = checkpoint.write(tmp_path, 0, (saved := with_criterion(0)).tensors(), saved.numbers())
    plain = with_criterion(1)
    plain.criterion = nn.functional.cross_entropy
    with pytest.raises((ModelError, CheckpointError), match="criterion"):
        plain.load(*what_was_read(path))


@FAST
@given(
    st.integers(0, 2**40),
    st.integers(0, 2**40),
    st.builds(
        Standing,
        best=st.none() | st.floats(allow_nan=False, allow_infinity=False),
        best_step=st.none() | st.integers(0, 10**9),
        previous=st.none() | st.floats(allow_nan=False, allow_infinity=False),
        falls=st.integers(0, 9),
        stopped=st.none() | st.text(),
    ),
)
def test_the_numbers_of_a_state_come_back_exactly(step: int, samples: int, standing: Standing) -> None:
    def make() -> TrainState:
        return TrainState(model := nn.Linear(1, 1), optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), 3)

    state, other = make(), make()
    state.step, state.samples, state.standing = step, samples, standing
    other.load(state.tensors(), json.loads(checkpoint.to_json(state.numbers())))
    assert (other.step, other.samples, other.standing, other.seed) == (step, samples, standing, 3)


def test_loading_writes_into_the_tensors_that_are_there(tmp_path: Path) -> None:
    make = a_state(lambda: nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten()), lambda p: optim.SGD(p, lr=0.1))
    saved, fresh = make(0), make(1)
    places = {name: value.data_ptr() for name, value in fresh.model.state_dict().items()}
    through_disk(saved, fresh, tmp_path)
    assert {name: value.data_ptr() for name, value in fresh.model.state_dict().items()} == places
    assert torch.equal(fresh.model[0].weight, saved.model[0].weight)


class Convolutions(nn.Module):
    """Weights of four and five dimensions, 1x1 kernels and one channel among them, a buffer, and one that passes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one, self.thick = nn.Conv2d(3, 4, 2), nn.Conv2d(4, 6, 1), nn.Conv3d(1, 2, 2)
        self.register_buffer("mask", torch.randn(1, 3, 4, 4))
        self.register_buffer("passing", torch.randn(1, 3, 4, 4), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        seen = inputs.repeat(1, 12).reshape(8, 3, 4, 4) + self.mask + self.passing * 0
        deep = self.thick(inputs.repeat(1, 2).reshape(8, 1, 2, 2, 2)).flatten(1).sum(1)
        return self.one(self.first(seen)).flatten(2).mean(2).reshape(8, 3, 2).sum(2) + deep[:, None]


def channels_last(module: nn.Module) -> None:
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            for dim, memory_format in ((4, torch.channels_last), (5, torch.channels_last_3d)):
                if tensor.dim() == dim:
                    tensor.data = torch.empty_like(tensor, memory_format=memory_format).copy_(tensor)


def strides(state: TrainState) -> dict[str, tuple[int, ...]]:
    held = {**state.model.state_dict(), **state.tensors()["optimizer"]}
    return {name: value.stride() for name, value in held.items()}


@pytest.mark.parametrize("then", [False, True])
@pytest.mark.parametrize("now", [False, True])
@pytest.mark.parametrize("optimizer", [lambda p: optim.Adam(p, lr=0.01), lambda p: optim.SGD(p, lr=0.1, momentum=0.9)])
def test_tensors_and_slots_lie_in_memory_as_they_lay_whatever_the_fresh_model_has(
    then: bool, now: bool, optimizer: Any, tmp_path: Path
) -> None:
    make = a_state(Convolutions, optimizer)
    stopped, whole, fresh = make(0), make(0), make(1)
    for state, last in ((stopped, then), (whole, then), (fresh, now)):
        if last:
            channels_last(state.model)
    parameters, passing = list(fresh.model.parameters()), fresh.model.passing.stride()
    train(stopped, 0, 3)
    train(whole, 0, 6)
    words = stopped.numbers()["layouts"]["model"]
    expected = dict.fromkeys(("first.weight", "one.weight", "mask"), "channels_last")
    assert words == (expected | {"thick.weight": "channels_last_3d"} if then else {})
    resumed = through_disk(stopped, fresh, tmp_path)
    assert strides(resumed) == strides(stopped)
    assert all(one is other for one, other in zip(parameters, resumed.model.parameters(), strict=True))
    assert resumed.model.passing.stride() == passing  # what is not saved is left alone
    train(resumed, 3, 6)
    assert substance(resumed) == substance(whole)


def test_an_average_and_tied_weights_keep_their_layout_and_stay_tied(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.out = nn.Conv2d(3, 3, 2), nn.Conv2d(3, 3, 2)
            self.out.weight = nn.Parameter(self.into.weight.data)  # two parameters over one memory

    def make(last: bool) -> TrainState:
        state = a_state(Twice, lambda p: optim.SGD(p, lr=0.1))(0)
        if last:
            state.model.into.weight.data = state.model.into.weight.data.to(memory_format=torch.channels_last)
            state.model.out.weight.data = state.model.into.weight.data
        state.ema = Averaging.parse(0.9).of(state.model, Clock(2, 4))
        return state

    stopped, fresh = make(True), make(False)
    stopped.ema.module.into.weight.data.fill_(2.0)
    through_disk(stopped, fresh, tmp_path)
    for model in (fresh.model, fresh.ema.module):
        assert model.into.weight.stride() == stopped.model.into.weight.stride()
    assert fresh.model.out.weight.data_ptr() == fresh.model.into.weight.data_ptr()
    assert (fresh.ema.module.into.weight == 2).all()


@pytest.mark.parametrize("tied_then", [False, True])
def test_a_model_that_is_tied_otherwise_is_refused_by_both_names_and_left_as_it_is(
    tied_then: bool, tmp_path: Path
) -> None:
    def make(tied: bool) -> TrainState:
        torch.manual_seed(int(tied))
        model = Tied()
        if not tied:
            model.out.weight = nn.Parameter(torch.randn(4, 4))
        return TrainState(model, optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), 0)

    saved, other = make(tied_then), make(not tied_then)
    assert saved.numbers()["ties"]["model"] == ({"out.weight": "into.weight"} if tied_then else {})
    before = substance(other)
    with pytest.raises(CheckpointError, match=r"'into\.weight' and 'out\.weight' were (one|two).*and are (two|one)"):
        through_disk(saved, other, tmp_path)
    assert substance(other) == before


class Keeps(optim.Optimizer):
    """Momentum in nested dicts and lists, and a count of its own that belongs to no parameter."""

    def __init__(self, parameters: Any, lr: float = 0.1) -> None:
        super().__init__(parameters, {"lr": lr, "window": (2, [3.0, None]), "scale": torch.tensor([1.0, 0.5])})

    @torch.no_grad()
    def step(self, closure: Any) -> Any:  # type: ignore[override]
        with torch.enable_grad():
            loss = closure()
        self.state["calls"] = self.state.get("calls", 0) + 1
        self.state["seen"] = [*self.state.get("seen", []), (self.state["calls"], loss.detach() * 1)]
        for parameter in self.param_groups[0]["params"]:
            kept = self.state[parameter].setdefault("moments", {"fast": {1: torch.zeros_like(parameter)}, "old": []})
            kept["fast"][1] = kept["fast"][1] * 0.5 + parameter.grad.double()
            kept["old"] = [*kept["old"], kept["fast"][1].norm()][-2:]
            parameter -= (self.param_groups[0]["lr"] * kept["fast"][1] / (1 + kept["old"][0])).float()
        return loss


def test_an_optimizer_of_one_s_own_comes_back_with_all_that_it_keeps(tmp_path: Path) -> None:
    make = a_state(Net, Keeps)
    whole, stopped, fresh = make(0), make(0), make(1)
    losses = train(whole, 0, 6)
    train(stopped, 0, 3)
    held = fresh.optimizer.param_groups[0]["scale"]
    held.zero_()
    resumed = through_disk(stopped, fresh, tmp_path)
    assert substance(resumed) == substance(stopped)
    assert resumed.optimizer.param_groups[0]["scale"] is held
    assert train(resumed, 3, 6) == losses[3:]
    assert substance(resumed) == substance(whole)


def test_what_belongs_to_the_criterion_is_not_taken_for_a_part_of_the_model_that_is_called_criterion() -> None:
    class Named(Net):
        def __init__(self) -> None:
            super().__init__()
            self.criterion = Scaled()

    torch.manual_seed(0)
    model, criterion = Named(), Scaled()
    optimizer = optim.SGD([*model.parameters(), *criterion.parameters()], lr=0.1, momentum=0.9)
    state = TrainState(model, optimizer, criterion, 0)
    optimizer.state[model.criterion.scale]["a"], optimizer.state[criterion.scale]["a"] = 1, 2
    numbers = json.loads(checkpoint.to_json(state.numbers()))
    optimizer.state.clear()
    state.load(state.tensors(), numbers)
    assert (optimizer.state[model.criterion.scale]["a"], optimizer.state[criterion.scale]["a"]) == (1, 2)


def test_options_given_now_are_kept_where_that_is_asked_for_and_all_else_is_loaded(tmp_path: Path) -> None:
    stopped, fresh = two_groups({"lr": 0.1, "momentum": 0.9}, {}), two_groups({"lr": 0.7, "momentum": 0.5}, {})
    stopped.seed, stopped.left_out = 5, [2, 3]
    train(stopped, 0, 3)
    path = checkpoint.write(tmp_path, 3, stopped.tensors(), stopped.numbers())
    fresh.load(*what_was_read(path), keep_options=True)
    assert [(group["lr"], group["momentum"]) for group in fresh.optimizer.param_groups] == [(0.7, 0.5), (0.5, 0)]
    assert (fresh.base_rates, fresh.seed) == ([0.7, 0.5], 0)
    assert (fresh.step, fresh.samples, fresh.left_out) == (3, 24, [2, 3])
    assert parts(fresh.tensors()) == parts(stopped.tensors())
    fresh.load(*what_was_read(path))
    assert (fresh.base_rates, fresh.seed) == ([0.1, 0.5], 5)


@pytest.mark.parametrize("name", ["SGD, momentum", "Adam", "LBFGS", "Adam, rate in a tensor"])
def test_a_snapshot_stays_what_it_was_while_training_goes_on(name: str, tmp_path: Path) -> None:
    state, whole = OPTIMIZERS[name](0), OPTIMIZERS[name](0)
    train(state, 0, 3)
    state.left_out.append(2)
    before = parts(state.tensors()), state.numbers()
    tensors, numbers = state.snapshot()
    train(state, 3, 6)
    state.left_out.append(5)
    state.standing.falls, state.bases[0]["lr"] = 7, 9.0
    assert (parts(tensors), numbers) == before
    resumed = OPTIMIZERS[name](1)
    resumed.load(tensors, json.loads(checkpoint.to_json(numbers)))
    train(resumed, 3, 6)
    train(whole, 0, 6)
    assert substance(resumed) == substance(whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float8_e5m2, torch.complex64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_found_by_file_and_name(dtype: torch.dtype, bad: float) -> None:
    values = torch.ones(5, dtype=torch.float32).to(dtype)
    spoiled = torch.tensor([1.0, bad]).to(dtype)
    files = {
        "model": {"a": values, "n": torch.ones(2, dtype=torch.int64)},
        "optimizer": {"w/step": spoiled, "e": values[:0]},
    }
    assert non_finite(files) == ["optimizer/w/step"]


class Largest(TorchDispatchMode):
    """Notes the bytes of the largest memory that something made inside lies in, but for a tensor's own."""

    def __init__(self, own: Tensor) -> None:
        super().__init__()
        self.own, self.bytes = own.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        storages = [each.untyped_storage() for each in tree_leaves(made) if isinstance(each, Tensor)]
        self.bytes = max([self.bytes, *(each.nbytes() for each in storages if each.data_ptr() != self.own)])
        return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("at", [0, 511, 999, None])
def test_looking_for_what_is_no_number_takes_no_memory_of_its_size(dtype: torch.dtype, at: int | None) -> None:
    values = torch.randn(1000, dtype=dtype)
    if at is not None:
        values[at] = float("nan")
    with Largest(values) as largest:
        assert non_finite({"model": {"w": values}}) == (["model/w"] if at is not None else [])
    assert 0 < largest.bytes <= 8  # one number


def test_a_state_that_lacks_something_is_refused_by_its_name() -> None:
    state = OPTIMIZERS["SGD"](0)
    numbers = state.numbers()
    del numbers["ties"], numbers["left_out"]
    with pytest.raises(CheckpointError, match="lacks left_out, ties"):
        state.load(state.tensors(), numbers)


# What can't be saved, or does not fit.


class Extra(nn.Module):
    """A module that keeps more than tensors by name."""

    def __init__(self, kind: type = dict) -> None:
        super().__init__()
        self.layer, self.count, self.kind = nn.Linear(4, 3), 0, kind

    def forward(self, inputs: Tensor) -> Tensor:
        self.count += 1
        return self.layer(inputs)

    def get_extra_state(self) -> Any:
        return {"count": self.count} if self.kind is dict else torch.tensor(self.count)

    def set_extra_state(self, state: Any) -> None:
        self.count = state["count"] if self.kind is dict else int(state)


def test_extra_state_that_is_no_tensor_is_refused_with_what_to_do() -> None:
    with pytest.raises(ModelError, match=r"Extra keeps '_extra_state' in its state, a dict\..*register it as a buffer"):
        module_tensors(Extra())


def test_extra_state_that_is_a_tensor_is_set_again_or_refused_but_never_lost(tmp_path: Path) -> None:
    make = a_state(lambda: Extra(Tensor), lambda p: optim.SGD(p, lr=0.1))
    state = make(0)
    train(state, 0, 3)
    try:
        fresh = through_disk(state, make(1), tmp_path)
    except ModelError as error:
        assert "_extra_state" in str(error)  # noqa: PT017  # either is right
    else:
        assert fresh.model.count == 3


def test_a_model_that_can_not_be_saved_is_refused_before_anything_is_trained_or_written(tmp_path: Path) -> None:
    model = Extra()
    weights = model.layer.weight.clone()
    data = torch.randn(8, 4), torch.randint(0, 3, (8,))
    with pytest.raises(ModelError, match="_extra_state"):
        gradstep.fit(
            model,
            nn.CrossEntropyLoss(),
            data,
            data,
            optimizer=lambda parameters: optim.SGD(parameters, lr=0.1),
            batch_size=4,
            epochs=1,
            out=tmp_path,
            quiet=True,
        )
    assert torch.equal(weights, model.layer.weight)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}, r"'weight' is \[2, 3\] in the model, \[3, 2\] in the"),
        ({"weight": torch.zeros(2, 3)}, "the saved weights lack bias, which Linear has"),
        ({"weight": torch.zeros(2, 3), "bais": torch.zeros(2)}, "hold 'bais', which Linear does not have"),
    ],
)
def test_weights_that_do_not_fit_are_named(tensors: dict[str, Tensor], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        load_module(nn.Linear(3, 2), tensors)


@pytest.mark.parametrize(
    "other",
    [
        a_state(Net, lambda p: optim.AdamW(p, lr=0.01)),
        a_state(Net, lambda p: optim.Adam(list(p)[:-1], lr=0.01)),
        a_state(Net, lambda p: optim.Adam([{"params": [q]} for q in p], lr=0.01)),
        a_state(Net, lambda p: optim.Adam(list(p)[::-1], lr=0.01)),
    ],
)
def test_another_optimizer_or_other_parameters_are_refused(other: Make, tmp_path: Path) -> None:
    with pytest.raises(ChangedError, match="Resume with the optimizer that the run was started with"):
        through_disk(OPTIMIZERS["Adam"](0), other(0), tmp_path)


def test_an_optimizer_that_keeps_what_is_no_number_is_refused_by_the_name_of_its_slot() -> None:
    state = OPTIMIZERS["SGD"](0)
    state.optimizer.state[state.model.last.bias]["odd"] = object()
    with pytest.raises(ModelError, match=r"the optimizer keeps 'last\.bias/odd', a object"):
        state.tensors()


def test_buffers_that_share_their_memory_can_be_saved(tmp_path: Path) -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, whole = nn.Linear(4, 3), torch.randn(6)
            self.register_buffer("whole", whole)
            self.register_buffer("head", whole[:2])

        def forward(self, inputs: Tensor) -> Tensor:
            return self.layer(inputs)

    make = a_state(Views, lambda p: optim.SGD(p, lr=0.1))
    saved = make(0)
    fresh = through_disk(saved, make(1), tmp_path)
    assert substance(fresh) == substance(saved)
    assert fresh.model.head.data_ptr() == fresh.model.whole.data_ptr()
