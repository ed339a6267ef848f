"""Weights start as their formula says, the same on any device, and every parameter is accounted for."""

from __future__ import annotations

import copy
import math
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from gradstep import keys, models
from gradstep.errors import ModelError, RecipeError
from gradstep.initialization import Touch, describe, initialize, plan_initialization, summary

# As the documents and papers write them.
AS_WRITTEN: dict[str, Callable[[int, int], float]] = {
    "heuristic": lambda i, o: math.sqrt(1 / (3 * i)),
    "xavier": lambda i, o: math.sqrt(2 / (i + o)),
    "xavier_caffe": lambda i, o: math.sqrt(1 / i),
    "kaiming": lambda i, o: math.sqrt(2 / i),
    "kaiming_doc": lambda i, o: math.sqrt(4 / (i + o)),
}
NAMES = [*AS_WRITTEN, "orthogonal", "truncated_normal"]
KURTOSIS = {"uniform": 9 / 5, "normal": 3.0}

formulas = st.sampled_from(list(AS_WRITTEN))
distributions = st.sampled_from(["uniform", "normal"])
seeds = st.integers(0, 2**40)
few = st.integers(1, 4)


@st.composite
def convolutions(draw: st.DrawFn) -> nn.Module:
    """Of any dimension, both ways, grouped or depthwise; strides of one, so that fans can be counted."""
    dimension, transposed = draw(st.integers(1, 3)), draw(st.booleans())
    kind = getattr(nn, f"Conv{'Transpose' if transposed else ''}{dimension}d")
    groups = draw(st.sampled_from([1, 2, 3]))
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(dimension))
    channels = (groups * draw(few), groups * draw(few))
    return kind(*channels, kernel, groups=groups, bias=draw(st.booleans()), dtype=torch.float64)


linears = st.builds(nn.Linear, st.integers(1, 60), st.integers(1, 60), dtype=st.just(torch.float64))


def one(model: nn.Module, row: str, name: str = "xavier", **options: Any) -> Touch:
    """The plan's row for one parameter."""
    return next(each for each in plan_initialization(model, name, **options) if each.name == row)


def filled(model: nn.Module, value: float = 7.0) -> nn.Module:
    """Every number of the model is `value`, so that what stays is seen."""
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(value)
    return model


def largest(values: Tensor) -> float:
    return float(values.detach().abs().max())


# --- fans


@given(st.one_of(convolutions(), linears))
def test_fans_are_the_numbers_of_terms_in_one_output_and_one_inputs_gradient(layer: Any) -> None:
    """Counted by the layer itself: with weights and inputs of one, an output is how many inputs it sums."""
    row = one(layer, "weight")
    with torch.no_grad():
        layer.weight.fill_(1.0)
        if layer.bias is not None:
            layer.bias.zero_()
    spatial = [5] * (layer.weight.dim() - 2)
    channels = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    inputs = torch.ones(1, channels, *spatial, dtype=torch.float64, requires_grad=True)
    outputs = layer(inputs)
    outputs.sum().backward()
    assert inputs.grad is not None
    assert (row.fan_in, row.fan_out) == (int(outputs.max()), int(inputs.grad.max()))


@pytest.mark.parametrize(
    ("layer", "fans"),
    [
        (nn.Conv2d(8, 8, 3, groups=8), (9, 9)),
        (nn.Conv2d(8, 24, 3, groups=8), (9, 27)),
        (nn.Conv1d(6, 10, 5, stride=2, dilation=2), (30, 50)),
        (nn.ConvTranspose2d(6, 10, 4, stride=2, groups=2), (48, 80)),
        (nn.Bilinear(3, 5, 7), (15, 7)),
        (nn.Embedding(1000, 12), (1, 12)),
        (nn.EmbeddingBag(1000, 12), (1, 12)),
    ],
)
def test_fans_by_hand(layer: nn.Module, fans: tuple[int, int]) -> None:
    row = one(layer, "weight")
    assert (row.fan_in, row.fan_out) == fans


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_a_gates_block_has_fans_of_its_own(kind: Any) -> None:
    gates = {nn.RNN: 1, nn.GRU: 3, nn.LSTM: 4}[kind]
    rows = plan_initialization(kind(6, 10, num_layers=2, bidirectional=True), "xavier")
    weights = {row.name: (row.fan_in, row.fan_out, row.blocks) for row in rows if row.kind == "weight"}
    for end in ("", "_reverse"):
        assert weights.pop(f"weight_ih_l0{end}") == (6, 10, gates)
        assert weights.pop(f"weight_ih_l1{end}") == (20, 10, gates)
        assert weights.pop(f"weight_hh_l0{end}") == weights.pop(f"weight_hh_l1{end}") == (10, 10, gates)
    assert weights == {}
    cell = {nn.RNN: nn.RNNCell, nn.GRU: nn.GRUCell, nn.LSTM: nn.LSTMCell}[kind](6, 10)
    assert (one(cell, "weight_ih").fan_in, one(cell, "weight_hh").fan_in) == (6, 10)
    assert {one(cell, f"weight_{side}").blocks for side in ("ih", "hh")} == {gates}


def test_a_projected_lstm_feeds_back_its_projection() -> None:
    rows = {row.name: row for row in plan_initialization(nn.LSTM(6, 10, proj_size=3), "xavier")}
    assert (rows["weight_hh_l0"].fan_in, rows["weight_hh_l0"].fan_out, rows["weight_hh_l0"].blocks) == (3, 10, 4)
    assert (rows["weight_hr_l0"].fan_in, rows["weight_hr_l0"].fan_out, rows["weight_hr_l0"].blocks) == (10, 3, 1)


def test_attention_is_three_blocks_or_three_weights() -> None:
    rows = {r.name: r for r in plan_initialization(nn.MultiheadAttention(12, 3, add_bias_kv=True), "xavier")}
    packed = rows["in_proj_weight"]
    assert (packed.fan_in, packed.fan_out, packed.blocks) == (12, 12, 3)
    assert [rows[name].distribution for name in ("in_proj_bias", "out_proj.bias")] == ["zero", "zero"]
    assert {(rows[name].fan_in, rows[name].fan_out) for name in ("bias_k", "bias_v", "out_proj.weight")} == {(12, 12)}
    apart = {r.name: r for r in plan_initialization(nn.MultiheadAttention(12, 3, kdim=5, vdim=7), "xavier")}
    fans = [(apart[f"{each}_proj_weight"].fan_in, apart[f"{each}_proj_weight"].fan_out) for each in "qkv"]
    assert fans == [(12, 12), (5, 12), (7, 12)]


# --- what is drawn


def hold_spread(values: Tensor, std: float, distribution: str) -> None:
    """Mean and standard deviation within six standard errors; uniform numbers within their bounds."""
    count = values.numel()
    assert abs(float(values.mean())) <= 6 * std / math.sqrt(count)
    error = math.sqrt((KURTOSIS[distribution] - 1) / count)  # of the mean of squares, relative
    assert abs(float(values.square().mean()) / std**2 - 1) <= 6 * error
    if distribution == "uniform":
        assert largest(values) <= math.sqrt(3) * std
        assert count < 1000 or largest(values) >= 0.95 * math.sqrt(3) * std


@given(st.one_of(convolutions(), linears), formulas, distributions, seeds)
def test_numbers_have_the_formulas_deviation(layer: Any, name: str, distribution: str, seed: int) -> None:
    initialize(filled(layer), name, seed, distribution=distribution)
    row = one(layer, "weight", name, distribution=distribution)
    assert row.fan_in is not None
    assert row.fan_out is not None
    assert row.std == pytest.approx(AS_WRITTEN[name](row.fan_in, row.fan_out), rel=1e-14)
    hold_spread(layer.weight.detach(), row.std, distribution)
    assert layer.bias is None or bool((layer.bias == 0).all())


@given(formulas, distributions, st.floats(0.1, 10), seeds)
def test_every_gate_and_projection_has_the_formulas_deviation(
    name: str, distribution: str, gain: float, seed: int
) -> None:
    model = nn.ModuleList([nn.LSTM(24, 32), nn.GRUCell(24, 32), nn.MultiheadAttention(24, 2)]).double()
    initialize(model, name, seed, distribution=distribution, gain=gain)
    tensors = dict(model.named_parameters())
    built_in = math.sqrt(2) if name.startswith("kaiming") else 1.0
    for row in plan_initialization(model, name, distribution=distribution, gain=gain):
        if row.kind == "weight":
            assert row.fan_in is not None
            assert row.fan_out is not None
            std = gain / built_in * AS_WRITTEN[name](row.fan_in, row.fan_out)
            for block in tensors[row.name].detach().chunk(row.blocks):
                hold_spread(block, std, distribution)


def test_uniform_is_the_default_and_normal_is_not_bounded() -> None:
    layer = nn.Linear(100, 100, dtype=torch.float64)
    uniform = initialize(layer, "xavier").weight.detach().clone()
    assert torch.equal(uniform, initialize(layer, "xavier", distribution="uniform").weight)
    assert largest(initialize(layer, "xavier", distribution="normal").weight) > math.sqrt(3) * 0.1


@given(st.floats(0.001, 10), seeds)
def test_a_truncated_normal_says_the_deviation_that_it_has(sigma: float, seed: int) -> None:
    layer = initialize(nn.Linear(100, 40, dtype=torch.float64), "truncated_normal", seed, std=sigma)
    row = one(layer, "weight", "truncated_normal", std=sigma)
    # Integrated by hand, not by the formula: ∫x²φ over ±2, over ∫φ.
    grid = torch.linspace(-2, 2, 100_001, dtype=torch.float64)
    density = torch.exp(-grid.square() / 2)
    assert row.std == pytest.approx(sigma * math.sqrt(float((density * grid.square()).sum() / density.sum())), rel=1e-4)
    assert largest(layer.weight) <= 2 * sigma * (1 + 1e-12)
    assert largest(layer.weight) >= 1.9 * sigma
    error = math.sqrt((2.4 - 1) / layer.weight.numel())  # its kurtosis is 2.37
    assert abs(float(layer.weight.detach().square().mean()) / row.std**2 - 1) <= 6 * error
    # In each tenth of ±2σ as many as the normal's distribution function says.
    edges = torch.linspace(-2, 2, 11, dtype=torch.float64)
    shares = torch.special.ndtr(edges).diff() / math.erf(math.sqrt(2))
    counts = torch.histogram(layer.weight.detach() / sigma, bins=edges).hist
    assert bool(((counts / counts.sum() - shares).abs() <= 6 * (shares * (1 - shares) / 4000).sqrt()).all())


def test_a_truncated_normal_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing again what falls outside takes many times as long, for millions of weights seconds."""
    drawn = []
    uniform = Tensor.uniform_

    def counting(values: Tensor, *arguments: Any, **options: Any) -> Tensor:
        drawn.append(values.numel())
        return uniform(values, *arguments, **options)

    monkeypatch.setattr(Tensor, "uniform_", counting)
    model = nn.Linear(30, 20)
    drawn.clear()
    initialize(model, "truncated_normal")
    assert drawn == [600]


def test_truncated_normal_is_cut_at_twice_two_hundredths_where_nothing_is_said() -> None:
    weight = initialize(nn.Linear(100, 100, dtype=torch.float64), "truncated_normal").weight
    assert 0.039 < largest(weight) <= 0.04 + 1e-15
    row = one(nn.Linear(2, 2), "weight", "truncated_normal")
    assert row.std == pytest.approx(0.0175925, abs=1e-6)
    assert row.note == "σ = 0.02 cut at ±2σ"


@settings(max_examples=30)
@given(
    st.one_of(convolutions(), linears, st.just(nn.LSTM(5, 4).double()), st.just(nn.MultiheadAttention(6, 2).double())),
    st.floats(0.1, 10),
    seeds,
)
def test_orthogonal_is_orthogonal_block_by_block(layer: nn.Module, gain: float, seed: int) -> None:
    initialize(layer, "orthogonal", seed, gain=gain)
    tensors = dict(layer.named_parameters())
    drawn = [row for row in plan_initialization(layer, "orthogonal", gain=gain) if row.kind == "weight"]
    assert drawn
    for row in drawn:
        for block in tensors[row.name].detach().chunk(row.blocks):
            matrix = block.flatten(1)
            small = matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix
            eye = torch.eye(len(small), dtype=torch.float64)
            torch.testing.assert_close(small, gain**2 * eye, rtol=0, atol=1e-11 * gain**2)
            assert row.std == pytest.approx(float(matrix.square().mean().sqrt()), rel=1e-9)


def test_gates_of_an_orthogonal_lstm_differ() -> None:
    gates = initialize(nn.LSTM(8, 8).double(), "orthogonal").weight_hh_l0.detach().chunk(4)
    assert all(float((gates[i] - gates[j]).abs().max()) > 0.1 for i in range(4) for j in range(i))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("padding", [0, 2, -1])
def test_an_embeddings_padding_stays_zero(name: str, padding: int) -> None:
    table = initialize(filled(nn.Embedding(30, 8, padding_idx=padding)), name).weight
    assert [i for i, row in enumerate(table) if not row.any()] == [padding % 30]


def test_norms_start_as_new_ones_do() -> None:
    kinds = [nn.BatchNorm2d(6), nn.GroupNorm(2, 6), nn.LayerNorm(6), nn.InstanceNorm1d(6, True, True), nn.RMSNorm(6)]
    new = nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), *kinds, nn.BatchNorm1d(6, affine=False))
    used = initialize(filled(copy.deepcopy(new)), "xavier")
    for (name, theirs), ours in zip(new[1:].state_dict().items(), used[1:].state_dict().values(), strict=True):
        assert torch.equal(theirs, ours), name
        assert theirs.dtype == ours.dtype


def test_only_one_of_an_lstms_biases_gets_the_forget_bias() -> None:
    model = nn.ModuleList([nn.LSTM(3, 4, bidirectional=True), nn.LSTMCell(3, 4), nn.GRU(3, 4), nn.RNNCell(3, 4)])
    initialize(filled(model), "xavier", forget_bias=1.5)
    biases = {name: values for name, values in model.named_parameters() if "bias" in name}
    raised = {name for name, values in biases.items() if values.any()}
    assert raised == {"0.bias_ih_l0", "0.bias_ih_l0_reverse", "1.bias_ih"}
    for name in raised:
        assert biases[name].tolist() == [0.0] * 4 + [1.5] * 4 + [0.0] * 8
    initialize(model, "xavier")
    assert not any(bool(values.any()) for values in biases.values())


def test_what_an_lstm_with_forget_bias_one_forgets() -> None:
    """The raised quarter is really the forget gate's: with weights of zero, a cell's state is halved or kept more."""
    cell = initialize(nn.LSTMCell(2, 3), "xavier", forget_bias=30.0)
    with torch.no_grad():
        cell.weight_ih.zero_()
        cell.weight_hh.zero_()
        _, state = cell(torch.zeros(1, 2), (torch.zeros(1, 3), torch.full((1, 3), 5.0)))
    assert state.flatten().tolist() == pytest.approx([5.0] * 3)


# --- a function of seed, name and shape


class Residual(nn.Module):
    """A custom module with a bare parameter, a Sequential and shared, frozen and nested layers."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 1)))
        self.table = nn.Embedding(9, 4)
        self.head = nn.Linear(4, 9)
        self.head.weight = self.table.weight
        self.again = self.body[0]
        self.body[0].bias.requires_grad_(False)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: values.detach().clone() for name, values in model.state_dict().items()}


@settings(max_examples=20)
@given(st.sampled_from(NAMES), seeds)
def test_every_dtype_gets_the_rounding_of_the_same_numbers(name: str, seed: int) -> None:
    double = weights(initialize(Residual().double(), name, seed))
    single = weights(initialize(Residual(), name, seed))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for key, values in weights(initialize(Residual().to(dtype), name, seed)).items():
            if values.is_floating_point() and "scale" not in key:
                assert values.dtype == dtype
                assert torch.equal(values, single[key].to(dtype)), key
                assert torch.equal(single[key], double[key].float()), key


def test_a_seed_of_numpy_is_a_seed() -> None:
    first, second = (initialize(nn.Linear(3, 3), "xavier", seed).weight for seed in (np.int64(3), 3))
    assert torch.equal(first, second)


@given(seeds, seeds, st.sampled_from(NAMES))
def test_same_seed_same_weights_other_seed_others(one_seed: int, other: int, name: str) -> None:
    def drawn(seed: int) -> Tensor:
        layer: Any = initialize(nn.Linear(5, 7, dtype=torch.float64), name, seed)
        return layer.weight.detach()

    assert torch.equal(drawn(one_seed), drawn(one_seed))
    assert one_seed == other or not torch.equal(drawn(one_seed), drawn(other))


@pytest.mark.parametrize("name", NAMES)
def test_adding_a_layer_moves_nobody_else(name: str) -> None:
    small = initialize(nn.ModuleDict({"a": nn.Linear(4, 5), "b": nn.Linear(4, 5)}), name, 3)
    large = nn.ModuleDict({"new": nn.LSTM(3, 4), "b": nn.Linear(4, 5), "a": nn.Linear(4, 5), "last": nn.Linear(2, 2)})
    after = weights(initialize(large, name, 3))
    assert all(torch.equal(values, after[key]) for key, values in weights(small).items())
    assert not torch.equal(after["a.weight"], after["b.weight"])


def test_no_global_stream_moves_and_none_matters() -> None:
    before = keys.stream_positions()
    first = weights(initialize(Residual(), "kaiming", 5))
    assert keys.stream_positions() != before  # a model of torch's draws from them when it is made
    model, here = Residual(), keys.stream_positions()
    initialize(model, "kaiming", 5)
    assert keys.stream_positions() == here
    del first["scale"]
    assert all(torch.equal(weights(model)[name], values) for name, values in first.items())


def test_defaults_of_device_and_dtype_change_nothing() -> None:
    usual, model = weights(initialize(Residual(), "orthogonal", 5)), Residual()
    try:
        torch.set_default_dtype(torch.float16)
        with torch.device("meta"):
            initialize(model, "orthogonal", 5)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(values, usual[name]) for name, values in weights(model).items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gets_the_same_bits() -> None:
    for name in NAMES:
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            here, there = (weights(initialize(Residual().to(device, dtype), name, 5)) for device in ("cpu", "cuda"))
            assert all(there[key].is_cuda and torch.equal(values, there[key].cpu()) for key, values in here.items())


@pytest.mark.parametrize("name", NAMES)
def test_in_place_all_that_is_not_a_number_stays(name: str) -> None:
    model = Residual().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def facts() -> dict[str, Any]:
        named = model.named_parameters(remove_duplicate=False)
        return {n: (id(p), p.data_ptr(), p.stride(), p.dtype, p.requires_grad, p.grad_fn, p.is_leaf) for n, p in named}

    before = facts()
    assert initialize(model, name) is model
    assert facts() == before
    assert any(not values.is_contiguous() for values in model.parameters())
    flat = weights(initialize(Residual(), name))
    assert all(torch.equal(values, flat[key]) for key, values in weights(model).items() if key != "scale")


# --- tied, frozen, and what is left alone


def test_a_tied_weight_is_set_once_as_the_first_layer_that_holds_it() -> None:
    model = Residual()
    row = one(model, "table.weight", "xavier_caffe")
    assert (row.layer, row.fan_in) == ("Embedding", 1)
    assert row.note == "also head.weight"
    alone = initialize(nn.ModuleDict({"table": nn.Embedding(9, 4)}), "xavier_caffe", 2)
    assert torch.equal(initialize(model, "xavier_caffe", 2).head.weight, alone["table"].weight)
    assert model.head.weight is model.table.weight


def test_a_weight_that_an_unknown_module_holds_first_is_still_the_layers() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = nn.Parameter(torch.zeros(5, 3))
            self.inner = nn.Linear(3, 5)
            self.inner.weight = self.shared

    row = one(Odd(), "shared", "kaiming")
    assert (row.layer, row.fan_in, row.note) == ("Linear", 3, "also inner.weight")
    assert bool(initialize(Odd(), "kaiming").shared.all())


def test_two_parameters_on_one_memory_are_set_once() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4))
    model[1].weight = nn.Parameter(model[0].weight.detach().t())  # a tied autoencoder
    initialize(model, "kaiming", 1)
    alone = initialize(nn.Sequential(nn.Linear(4, 6)), "kaiming", 1)
    assert torch.equal(model[0].weight, alone[0].weight)
    assert one(model, "1.weight").note == "it shares its memory with 0.weight, which is set"


def test_what_shares_a_part_of_its_memory_is_left_and_what_lies_between_is_set() -> None:
    model = nn.ModuleList([nn.Linear(4, 6), nn.Linear(4, 3), nn.Linear(2, 5), nn.Linear(2, 5)])
    model[1].weight = nn.Parameter(model[0].weight.detach()[2:5])
    both = torch.zeros(5, 4)
    model[2].weight, model[3].weight = nn.Parameter(both[:, :2]), nn.Parameter(both[:, 2:])  # no number in common
    initialize(model, "kaiming", 1)
    alone = initialize(nn.ModuleList([nn.Linear(4, 6)]), "kaiming", 1)
    assert torch.equal(model[0].weight, alone[0].weight)
    assert one(model, "1.weight").note == "it shares its memory with 0.weight, which is set"
    assert bool(both.all())
    model[1].weight = nn.Parameter(model[0].weight.detach().view(torch.int32).view(torch.float32)[:3])
    assert one(model, "1.weight").note.startswith("it shares its memory with 0.weight")


def test_a_parameter_whose_elements_share_memory_is_left_before_anything_is_written() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(3, 2))
    model[1].weight = nn.Parameter(torch.ones(4, 1).expand(4, 6))
    model[1].bias = nn.Parameter(torch.ones(1).expand(4))
    model[2].weight = nn.Parameter(torch.arange(4.0).unfold(0, 3, 1))  # rows 0 1 2 and 1 2 3
    initialize(model, "kaiming", 1)
    alone = initialize(nn.Sequential(nn.Linear(4, 6)), "kaiming", 1)
    assert torch.equal(model[0].weight, alone[0].weight)
    assert torch.equal(model[2].weight, torch.tensor([[0.0, 1, 2], [1, 2, 3]]))
    for name in ("1.weight", "1.bias", "2.weight"):
        assert one(model, name).note == "several of its elements are one number in memory"


def test_frozen_parameters_are_set_unless_they_are_kept() -> None:
    model = filled(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2), nn.BatchNorm1d(2)))
    for parameter in [*model[0].parameters(), *model[1].parameters(), model[3].bias]:
        parameter.requires_grad_(False)
    initialize(model, "xavier", keep_frozen=True)
    kept = {name for name, values in model.state_dict().items() if bool((values == 7).all())}
    frozen = {"0.weight", "0.bias", "1.weight", "1.bias", "3.bias"}
    assert kept == frozen | {f"1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    rows = plan_initialization(model, "xavier", keep_frozen=True)
    assert {row.name for row in rows if row.note == "frozen"} == frozen
    initialize(model, "xavier")
    assert not any(bool((values == 7).all()) for values in model.state_dict().values())
    assert [parameter.requires_grad for parameter in model[0].parameters()] == [False, False]


class Adapted(nn.Linear):
    """A user's own Linear, with a parameter more."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.adapter = nn.Parameter(torch.zeros(2))


class Menagerie(nn.Module):
    """One of everything that must be left alone, and one Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.bare = nn.Parameter(torch.ones(3))
        self.slope = nn.PReLU()
        self.listed = nn.ParameterList([nn.Parameter(torch.ones(2))])
        self.normed = parametrizations.weight_norm(nn.Linear(4, 4))
        self.spectral = parametrizations.spectral_norm(nn.Conv2d(3, 3, 3))
        self.pruned = prune.l1_unstructured(nn.Linear(4, 4), "weight", amount=2)
        with pytest.warns(FutureWarning):
            self.old = nn.utils.weight_norm(nn.LSTM(3, 3), "weight_hh_l0")
        self.adapted = Adapted()
        self.complex = nn.Linear(3, 3, dtype=torch.complex64)
        self.whole = nn.Linear(3, 3)
        self.whole.weight = nn.Parameter(torch.ones(3, 3, dtype=torch.int8), requires_grad=False)
        self.sparse = nn.Linear(3, 3)
        self.sparse.weight = nn.Parameter(torch.eye(3).to_sparse())
        self.empty = nn.Linear(3, 1)
        self.empty.weight, self.empty.bias = nn.Parameter(torch.ones(0, 3)), nn.Parameter(torch.ones(0))
        self.plain = nn.Linear(3, 3)


def test_what_is_not_known_is_left_as_it_was_and_named() -> None:
    model = Menagerie()
    before = {name: values.detach().clone() for name, values in model.named_parameters()}
    rows = plan_initialization(model, "kaiming")
    reasons = {row.name: row.note for row in rows if row.kind == "left"}
    original, computed = "parametrizations.weight.original", "a parametrised weight is computed from it"
    assert reasons == {
        "bare": "Menagerie is no layer that initialize knows",
        "slope.weight": "PReLU is no layer that initialize knows",
        "listed.0": "ParameterList is no layer that initialize knows",
        f"normed.{original}0": computed,
        f"normed.{original}1": computed,
        f"spectral.{original}": computed,
        "pruned.weight_orig": "weight is computed from it",
        "old.weight_hh_l0_g": "weight_hh_l0 is computed from it",
        "old.weight_hh_l0_v": "weight_hh_l0 is computed from it",
        "adapted.adapter": "no parameter of Linear",
        "complex.weight": "its dtype is complex64",
        "complex.bias": "its dtype is complex64",
        "whole.weight": "its dtype is int8",
        "sparse.weight": "sparse",
        "empty.weight": "it is empty",
        "empty.bias": "it is empty",
    }
    initialize(model, "kaiming")
    for name, values in model.named_parameters():
        old, new = (each.to_dense() if each.is_sparse else each for each in (before[name], values))
        assert torch.equal(old, new) == (name in reasons), name


def test_a_tensor_subclass_is_left_as_it_was() -> None:
    class Packed(Tensor):
        pass

    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[0].weight = nn.Parameter(torch.ones(3, 3).as_subclass(Packed))
    assert one(model, "0.weight").note == "a Packed"
    assert bool((initialize(model, "xavier")[0].weight == 1).all())


def nests(layer: Callable[[], nn.Module]) -> Iterator[nn.Module]:
    """Models in all the nestings that there are."""
    yield nn.Sequential(nn.Sequential(nn.Sequential(layer()), nn.ModuleList([layer(), layer()])))
    shared = layer()
    yield nn.ModuleDict({"a": shared, "b": nn.ModuleList([shared, nn.Sequential(layer(), shared)])})


LAYERS: list[Callable[[], nn.Module]] = [
    lambda: nn.Linear(3, 4),
    lambda: nn.Bilinear(2, 3, 4, bias=False),
    lambda: nn.ConvTranspose3d(2, 2, 1),
    lambda: nn.EmbeddingBag(5, 2, padding_idx=1),
    lambda: nn.LSTM(2, 3, 2, bidirectional=True, proj_size=2),
    lambda: nn.GRUCell(2, 3),
    lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=3, add_bias_kv=True),
    lambda: nn.TransformerEncoderLayer(4, 2, 8),
    lambda: nn.AdaptiveLogSoftmaxWithLoss(6, 9, [3]),
    Residual,
    Menagerie,
    models.LeNet,
    models.ConvNet,
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layer", LAYERS)
def test_every_parameter_is_in_the_plan_once_and_the_plan_is_what_happens(
    layer: Callable[[], nn.Module], name: str
) -> None:
    for model in nests(layer):
        rows = plan_initialization(model, name)
        parameters = [row for row in rows if row.kind != "statistic"]
        assert [row.name for row in parameters] == [each for each, _ in model.named_parameters()]
        assert Counter(row.name for row in rows).most_common(1)[0][1] == 1
        before = {each: values.detach().clone() for each, values in model.named_parameters()}
        with torch.no_grad():
            for row in parameters:
                if row.kind != "left":
                    model.get_parameter(row.name).fill_(7.0)
        initialize(model, name, 4)
        for row in parameters:
            values = model.get_parameter(row.name)
            old = before[row.name]
            if row.kind == "left":
                assert torch.equal(*(t.to_dense() if t.is_sparse else t for t in (old, values))), row.name
            elif row.kind == "weight":
                assert row.std is not None
                assert not bool((values == 7).any()), row.name
                assert largest(values) > 0
            else:
                assert bool((values == (1.0 if row.distribution == "one" else 0.0)).all()), row.name
        lines = describe(rows).splitlines()
        assert len(lines) == 1 + len(rows)
        assert all(line.startswith(row.name) for line, row in zip(lines[1:], rows, strict=True))


def test_a_plan_changes_nothing_and_draws_nothing() -> None:
    model = Menagerie()
    versions, streams = [values._version for values in model.parameters()], keys.stream_positions()
    assert plan_initialization(model, "orthogonal") == plan_initialization(model, "orthogonal")
    assert [values._version for values in model.parameters()] == versions
    assert keys.stream_positions() == streams


# --- gain


def gains(model: nn.Module, name: str = "xavier") -> dict[str, tuple[float | None, bool]]:
    rows = plan_initialization(model, name, gain="auto")
    return {row.name: (row.gain, row.gain_told) for row in rows if row.kind == "weight"}


def test_auto_finds_what_follows_at_any_nesting() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.Sequential(nn.Dropout(), nn.MaxPool2d(2), nn.Sequential(nn.LeakyReLU(0.2))),
        nn.Sequential(nn.Conv2d(8, 8, 1), nn.Identity()),
        nn.Sequential(nn.Flatten(), nn.Tanh(), nn.Linear(8, 8)),
        nn.GELU(),
        nn.Linear(8, 8),
        nn.SELU(),
        nn.Linear(8, 8),
        nn.ReLU(),
        nn.Linear(8, 8),
        nn.LayerNorm(8),
        nn.Linear(8, 2),
        nn.Dropout(),
    )
    assert gains(model) == {
        "0.weight": (math.sqrt(2 / 1.04), True),
        "3.0.weight": (5 / 3, True),
        "4.2.weight": (1.0, False),  # torch knows no gain for GELU
        "6.weight": (0.75, True),
        "8.weight": (math.sqrt(2), True),
        "10.weight": (1.0, True),  # another Linear
        "12.weight": (1.0, True),  # nothing
    }


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.LogSoftmax(1)])
def test_auto_takes_probabilities_at_the_models_end_as_nothing_and_nowhere_else(last: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(3, 3), last, nn.Linear(3, 3), nn.Dropout(), nn.Sequential(last))
    assert gains(model, "kaiming") == {"0.weight": (math.sqrt(2), False), "2.weight": (1.0, True)}
    inside = nn.ModuleList([nn.Sequential(nn.Linear(3, 3), last)])  # who knows what follows there
    assert gains(inside, "kaiming") == {"0.0.weight": (math.sqrt(2), False)}


def test_auto_says_where_it_cannot_tell() -> None:
    rows = plan_initialization(models.LeNet(), "xavier", gain="auto")
    told = {row.name: row.gain_told for row in rows if row.kind == "weight"}
    assert told == {
        "features.0.weight": True,
        "features.3.weight": True,
        "classifier.0.weight": True,
        "classifier.2.weight": True,
        "classifier.4.weight": False,  # the last of a Sequential that is not the model
    }
    assert next(row.note for row in rows if not row.gain_told) == "what follows can't be told"
    assert "built-in gain kept where what follows can't be told (classifier.4.weight)" in summary(rows)


def test_a_layer_used_twice_has_a_gain_only_if_both_uses_agree() -> None:
    shared = nn.Linear(3, 3)
    assert gains(nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU())) == {"0.weight": (math.sqrt(2), True)}
    assert gains(nn.Sequential(shared, nn.ReLU(), shared, nn.Tanh())) == {"0.weight": (1.0, False)}
    assert gains(nn.Sequential(shared, nn.ReLU(), shared, nn.Tanh(), shared, nn.Tanh())) == {"0.weight": (1.0, False)}


def test_a_sequential_with_a_forward_of_its_own_tells_nothing() -> None:
    class Odd(nn.Sequential):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs

    assert gains(Odd(nn.Linear(3, 3), nn.ReLU())) == {"0.weight": (1.0, False)}


def test_layers_that_know_their_own_nonlinearity_say_so() -> None:
    assert gains(nn.RNN(3, 3, nonlinearity="relu"))["weight_hh_l0"] == (math.sqrt(2), True)
    assert gains(nn.RNNCell(3, 3))["weight_ih"] == (5 / 3, True)
    assert gains(nn.LSTM(3, 3), "kaiming")["weight_hh_l0"] == (1.0, True)
    attention = gains(nn.MultiheadAttention(4, 2), "kaiming")
    assert attention == {"in_proj_weight": (1.0, True), "out_proj.weight": (math.sqrt(2), False)}


@pytest.mark.parametrize("name", ["kaiming", "kaiming_doc"])
def test_kaiming_never_counts_relu_twice(name: str) -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 3))

    def stds(gain: Any) -> list[float | None]:
        return [row.std for row in plan_initialization(model, name, gain=gain) if row.kind == "weight"]

    first, last = AS_WRITTEN[name](3, 5), AS_WRITTEN[name](5, 3)
    assert stds(None) == pytest.approx([first, last])
    assert stds("relu") == pytest.approx([first, last])
    assert stds("auto") == pytest.approx([first, last / math.sqrt(2)])  # nothing follows the last
    assert stds(1.0) == stds("linear") == pytest.approx([first / math.sqrt(2), last / math.sqrt(2)])


@given(linears, st.sampled_from(NAMES), st.floats(1e-3, 1e3), seeds)
def test_a_gain_scales_the_numbers(layer: Any, name: str, gain: float, seed: int) -> None:
    plain = initialize(layer, name, seed, gain=1.0).weight.detach().clone()
    torch.testing.assert_close(initialize(layer, name, seed, gain=gain).weight.detach(), gain * plain)


@pytest.mark.parametrize(
    "gain", ["linear", "conv2d", "conv_transpose1d", "sigmoid", "tanh", "relu", "leaky_relu", "selu"]
)
def test_named_gains_are_torchs(gain: Any) -> None:
    assert one(nn.Linear(2, 2), "weight", gain=gain).gain == nn.init.calculate_gain(gain)


# --- what it is for


def test_thirty_layers_of_relu_keep_their_signal_with_kaiming_and_lose_it_with_heuristic() -> None:
    """Second moment of the last layer's outputs, after ReLU, over that of the inputs; the median of twenty seeds.

    Expected are 1 for kaiming and (1/6)³⁰ = 5e-24 for heuristic, where five seeds are enough.
    """
    model: Any = nn.Sequential(*[nn.Linear(512, 512) for _ in range(30)])
    inputs = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def kept(name: str, seed: int) -> float:
        values = inputs
        for layer in initialize(model, name, seed):
            values = F.relu(layer(values), inplace=True)
        return float(values.square().mean() / inputs.square().mean())

    assert 0.5 <= statistics.median(kept("kaiming", seed) for seed in range(20)) <= 2
    assert statistics.median(kept("heuristic", seed) for seed in range(20)) < 1e-3


# --- words


def test_the_summary_is_one_line() -> None:
    model = nn.ModuleDict({"net": nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), "lstm": nn.LSTM(4, 4)})
    model.register_parameter("scale", nn.Parameter(torch.ones(1)))
    assert summary(plan_initialization(models.LeNet(), "xavier")) == "xavier uniform: 5 weights set, 5 biases zero"
    assert summary(plan_initialization(model, "kaiming", distribution="normal", forget_bias=1.0)) == (
        "kaiming normal: 3 weights set, 4 biases zero, forget gates at 1 in 1 of them, 1 norm weight one, "
        "statistics of 1 norm reset, 1 parameter left as it was (scale)"
    )
    assert summary(plan_initialization(model, "orthogonal")).startswith("orthogonal: 3 weights set")
    assert summary(plan_initialization(model, "truncated_normal")).startswith("truncated_normal: 3 weights set")


def test_the_table_shows_fans_gain_and_deviation() -> None:
    model = nn.Sequential(nn.Linear(300, 100), nn.ReLU(), nn.PReLU())
    assert describe(plan_initialization(model, "xavier", gain="auto")).splitlines() == [
        "parameter  layer   fan-in  fan-out   gain  std  set to",
        "0.weight   Linear     300      100  1.414  0.1  uniform: ReLU follows",
        "0.bias     Linear                               zero",
        "2.weight   PReLU                                left as it was: PReLU is no layer that initialize knows",
    ]


# --- errors: before anything is written


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("xaver", {}, "initialize: there is no 'xaver'. Did you mean 'xavier'? There are heuristic, xavier, "),
        ("", {}, "initialize: there is no ''. There are"),
        (None, {}, "initialize: there is no None. There are"),
        ("xavier", {"seed": -1}, "seed: -1 is not a whole number from 0 up."),
        ("xavier", {"seed": 1.5}, "seed: 1.5 is not a whole number"),
        ("xavier", {"seed": True}, "seed: True is not a whole number"),
        (
            "xavier",
            {"gain": "foo"},
            "gain: 'foo' is neither a number above zero nor a name. The names are auto, linear",
        ),
        ("xavier", {"gain": "leakyrelu"}, "nor a name. Did you mean 'leaky_relu'?"),
        ("xavier", {"gain": 0.0}, "gain: 0.0 is neither"),
        ("xavier", {"gain": math.nan}, "gain: nan is neither"),
        ("xavier", {"gain": True}, "gain: True is neither"),
        ("xavier", {"gain": [1]}, "gain: [1] is neither"),
        ("xavier", {"distribution": "gauss"}, "distribution: there is no 'gauss'. There are uniform, normal."),
        ("xavier", {"distribution": "uniforn"}, "Did you mean 'uniform'?"),
        ("xavier", {"distribution": 3}, "distribution: there is no 3."),
        ("orthogonal", {"distribution": "normal"}, "distribution: orthogonal has its own. Leave 'normal' out."),
        ("kaiming", {"std": 0.1}, "std: kaiming computes it for each layer."),
        ("truncated_normal", {"std": -1}, "std: -1 is not a number above zero."),
        ("truncated_normal", {"std": "0.1"}, "std: '0.1' is not a number"),
        ("xavier", {"forget_bias": "1"}, "forget_bias: '1' is not a finite number."),
        ("xavier", {"forget_bias": math.inf}, "forget_bias: inf is not"),
        ("xavier", {"forget_bias": 1.0}, "forget_bias: the model has no LSTM with biases to set."),
    ],
)
def test_wrong_options_are_named(name: Any, options: dict[str, Any], message: str) -> None:
    model = filled(nn.Linear(2, 2))
    with pytest.raises(RecipeError, match=re.escape(message)):
        initialize(model, name, **options)
    assert all(bool((values == 7).all()) for values in model.parameters())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.ReLU(), "no weight that xavier could set. It has no parameters"),
        (nn.Sequential(nn.PReLU()), "Left as they were: 0.weight (PReLU is no layer that initialize knows)."),
        (nn.BatchNorm1d(3), "no weight that xavier could set"),
        (nn.Linear(2, 2, device="meta"), "weight, bias of the model lie on the meta device"),
        (nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3)), "1.weight, 1.bias of the model have no shape yet. Run one"),
        ([nn.Linear(2, 2)], "list is no torch.nn.Module"),
    ],
)
def test_models_that_cannot_be_set_are_named(model: Any, message: str) -> None:
    before = weights(model[0]) if isinstance(model, nn.Sequential) else {}
    for do in (initialize, plan_initialization):
        with pytest.raises(ModelError, match=re.escape(message)):
            do(model, "xavier")
    assert all(torch.equal(values, model[0].state_dict()[name]) for name, values in before.items())


def test_a_lazy_model_is_set_after_one_batch() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(3))
    model(torch.ones(2, 3, 5, 5))
    assert one(initialize(model, "xavier"), "0.weight").fan_in == 27
