"""Flat parameters: two vectors that share the model's memory, and what happens when something breaks the sharing."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import gradstep
from gradstep.errors import ModelError
from gradstep.optim.flat import FlatParameters, check_sharing, flatten_parameters, mend_gradients
from gradstep.state import load_module, module_tensors


def small(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4), nn.LayerNorm(4)).double()


INPUTS = torch.randn(5, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
TARGETS = torch.tensor([0, 1, 2, 3, 0])


def loss(model: nn.Module) -> Tensor:
    return nn.functional.cross_entropy(model(INPUTS), TARGETS)


def gradient(model: nn.Module) -> Tensor:
    """The gradient as a vector, taken without touching `.grad`."""
    return torch.cat([each.reshape(-1) for each in torch.autograd.grad(loss(model), list(model.parameters()))])


def assert_shared(model: nn.Module, flat: FlatParameters) -> None:
    """By writing: what goes into the vectors is read in the model."""
    flat.params.copy_(torch.arange(len(flat.params)))
    flat.grads.copy_(-flat.params)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert torch.equal(torch.cat([parameter.detach().reshape(-1) for parameter in trainable]), flat.params)
    assert torch.equal(torch.cat([parameter.grad.reshape(-1) for parameter in trainable]), flat.grads)


def test_values_and_objects_stay_and_memory_is_shared() -> None:
    model = small()
    before = {name: (parameter, parameter.detach().clone()) for name, parameter in model.named_parameters()}
    loss(model).backward()
    was = torch.cat([parameter.grad.reshape(-1) for parameter in model.parameters()])
    params, grads = flat = flatten_parameters(model)
    assert params.shape == grads.shape == (sum(each.numel() for each in model.parameters()),)
    assert params.is_contiguous()
    assert grads.is_contiguous()
    assert torch.equal(grads, was)
    for name, parameter in model.named_parameters():
        assert parameter is before[name][0]
        assert torch.equal(parameter, before[name][1])
    assert_shared(model, flat)


@given(widths=st.lists(st.integers(1, 5), min_size=2, max_size=5), bias=st.booleans(), single=st.booleans())
def test_the_function_and_its_gradient_are_the_same_bits(widths: list[int], bias: bool, single: bool) -> None:
    torch.manual_seed(0)
    dtype = torch.float32 if single else torch.float64
    layers = [nn.Linear(a, b, bias, dtype=dtype) for a, b in pairwise(widths)]
    model = nn.Sequential(*layers)
    twin = copy.deepcopy(model)
    params, grads = flatten_parameters(model)
    x = torch.randn(3, widths[0], dtype=dtype)
    for each in (model, twin):
        each(x).square().sum().backward()
    assert torch.equal(model(x), twin(x))
    assert torch.equal(params, torch.cat([each.detach().reshape(-1) for each in twin.parameters()]))
    assert torch.equal(grads, torch.cat([each.grad.reshape(-1) for each in twin.parameters()]))


def _dropped(model: nn.Module) -> None:
    model.zero_grad()


def _zeroed(model: nn.Module) -> None:
    model.zero_grad(set_to_none=False)


def _dropped_by_an_optimizer(model: nn.Module) -> None:
    torch.optim.SGD(model.parameters(), lr=1.0).zero_grad()


def _one_dropped(model: nn.Module) -> None:
    model.zero_grad(set_to_none=False)
    next(iter(model.parameters())).grad = None


def _another_hung(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)


@pytest.mark.parametrize("clear", [_dropped, _zeroed, _dropped_by_an_optimizer, _one_dropped, _another_hung])
@pytest.mark.parametrize("late", [False, True], ids=["before the forward", "between forward and backward"])
def test_grads_are_right_after_a_plain_backward(clear: Callable[[nn.Module], None], late: bool) -> None:
    model = small()
    params, grads = flat = flatten_parameters(model)
    for step in range(3):
        want = gradient(model)
        if not late:
            clear(model)
        value = loss(model)
        if late:
            clear(model)
        value.backward()
        assert torch.equal(grads, want), step
        params.add_(grads, alpha=-0.1)
    assert_shared(model, flat)


def test_gradients_accumulate_over_backwards() -> None:
    model = small()
    _, grads = flatten_parameters(model)
    want = gradient(model)
    model.zero_grad()
    loss(model).backward()
    loss(model).backward()
    assert torch.equal(grads, 2 * want)


def test_what_gets_no_gradient_reads_zero() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    _, grads = flatten_parameters(model)
    x = torch.ones(1, 2)
    (model["a"](x) + model["b"](x)).sum().backward()
    assert bool((grads[6:] != 0).any())
    model.zero_grad()
    model["a"](x).sum().backward()
    assert bool((grads[:6] != 0).any())
    assert not bool(grads[6:].any())


def test_a_gradient_that_is_still_held_is_mended_on_request() -> None:
    model = small()
    flat = flatten_parameters(model)
    loss(model).backward()
    held = [parameter.grad for parameter in model.parameters()]
    kept = [each.clone() for each in held]
    want = gradient(model)
    model.zero_grad()
    loss(model).backward()
    assert all(map(torch.equal, held, kept))  # as in plain torch: nobody wrote into what is held
    flat.check()
    assert torch.equal(flat.grads, want)
    assert_shared(model, flat)


def test_a_gradient_set_aside_is_not_written_into_when_another_arrives() -> None:
    """Both are dropped, but one of them you hold; a backward that reaches the other alone must leave it as it is."""
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    flat, x = flatten_parameters(model), torch.ones(1, 2)
    (model["a"](x) + model["b"](x)).sum().backward()
    aside = model["a"].weight.grad
    model.zero_grad()
    (3 * model["b"](x)).sum().backward()
    assert aside.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert model["a"].weight.grad is None
    assert flat.grads[4:].tolist() == [3.0] * 4  # while the other's is mended at once
    model["a"].weight.grad = aside
    (model["a"](x) + model["b"](x)).sum().backward()
    assert flat.grads.tolist() == [2.0] * 4 + [4.0] * 4


@pytest.mark.parametrize("micro_batch", [None, 2])
@pytest.mark.parametrize("dropped", [False, True])
def test_gradsteps_own_backward_keeps_sharing(micro_batch: int | None, dropped: bool) -> None:
    model = small()
    flat = flatten_parameters(model)
    want = gradient(model)
    for _ in range(2):
        model.zero_grad() if dropped else flat.grads.zero_()
        for times in (1, 2):
            gradstep.backward(model, nn.CrossEntropyLoss(), INPUTS, TARGETS, micro_batch=micro_batch)
            torch.testing.assert_close(flat.grads, times * want, rtol=1e-12, atol=1e-14)
    assert_shared(model, flat)


def test_tied_weights_are_there_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    flat = flatten_parameters(model)
    assert len(flat.params) == 9 + 3 + 3
    assert model[2].weight is model[0].weight
    assert_shared(model, flat)


def test_frozen_parameters_are_left_out() -> None:
    model = small()
    model[0].requires_grad_(False)
    frozen = model[0].weight
    address = frozen.data_ptr()
    flat = flatten_parameters(model)
    assert len(flat.params) == sum(each.numel() for each in model[3:].parameters())
    loss(model).backward()
    assert frozen.data_ptr() == address
    assert frozen.grad is None


def test_two_calls_give_the_same_tensors() -> None:
    model = small()
    first = flatten_parameters(model)
    model.zero_grad()
    second = flatten_parameters(model)
    assert second.params is first.params
    assert second.grads is first.grads
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_loading_weights_keeps_sharing() -> None:
    model, other = small(), small(seed=1)
    flat = flatten_parameters(model)
    want = torch.cat([each.detach().reshape(-1) for each in other.parameters()])
    model.load_state_dict(other.state_dict())
    assert torch.equal(flat.params, want)
    flat.params.zero_()
    load_module(model, {name: each.clone() for name, each in module_tensors(other).items()})
    assert torch.equal(flat.params, want)
    assert module_tensors(model).keys() == module_tensors(other).keys()
    check_sharing(flat.params)
    assert_shared(model, flat)


@pytest.mark.parametrize("before", [False, True], ids=["compiled after", "compiled before"])
def test_compiled_models_share(before: bool) -> None:
    model = small()
    compiled = torch.compile(model, backend="aot_eager") if before else None
    flat = flatten_parameters(model)
    compiled = compiled or torch.compile(model, backend="aot_eager")
    want = gradient(model)
    for _ in range(2):
        model.zero_grad()
        loss(compiled).backward()
        torch.testing.assert_close(flat.grads, want, rtol=1e-12, atol=1e-14)
    assert flatten_parameters(compiled).params is flat.params
    flat.params.zero_()
    assert not bool(compiled(INPUTS).any())


def test_modes_and_copies_leave_it_alone() -> None:
    model = small()
    flat = flatten_parameters(model)
    model.eval().train()
    twin = copy.deepcopy(model)
    loss(twin).backward()
    assert not bool(flat.grads.any())
    own = flatten_parameters(twin)
    assert own.params.data_ptr() != flat.params.data_ptr()
    assert_shared(model, flat)
    assert_shared(twin, own)


def _cast(model: nn.Sequential) -> None:
    model.float()


def _channels_last(model: nn.Sequential) -> None:
    model.to(memory_format=torch.channels_last)


def _other_data(model: nn.Sequential) -> None:
    model[0].weight.data = model[0].weight.data.clone()


def _reassigned(model: nn.Sequential) -> None:
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())


def _one_more(model: nn.Sequential) -> None:
    model.append(nn.Linear(4, 4).double())


def _one_frozen(model: nn.Sequential) -> None:
    model[0].weight.requires_grad_(False)


def _part_flattened(model: nn.Sequential) -> None:
    flatten_parameters(model[0])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_cast, r"'0.weight' has left the flat vector.*Call flatten_parameters\(model\) again"),
        (_channels_last, r"'0.weight' has left the flat vector"),
        (_other_data, r"'0.weight' has left the flat vector"),
        (_reassigned, r"replaced, frozen or unfrozen since they were laid out: 0.weight\. Call"),
        (_one_more, r"laid out: 5.weight, 5.bias\."),
        (_one_frozen, r"laid out: 0.weight\."),
        (_part_flattened, r"given to another flat vector"),
    ],
)
def test_parameters_that_moved_are_an_error(spoil: Callable[[nn.Sequential], None], message: str) -> None:
    model = small()
    model[0] = nn.Conv2d(2, 3, 3).double()  # two channels: in channels_last the order in memory differs
    flat = flatten_parameters(model)
    spoil(model)
    with pytest.raises(ModelError, match=message):
        flat.check()
    again = flatten_parameters(model)
    assert again.params is not flat.params
    assert_shared(model, again)


def test_moved_data_is_an_error_in_the_backward_too() -> None:
    model = small()
    flatten_parameters(model)
    model[0].weight.data = model[0].weight.data.clone()
    with pytest.raises(ModelError, match=r"'0.weight' has left the flat vector"):
        loss(model).backward()


def test_gradients_with_a_graph_are_refused() -> None:
    model = small()
    flatten_parameters(model)
    with (
        pytest.warns(UserWarning, match="create_graph"),
        pytest.raises(ModelError, match=r"carries a graph.*torch.autograd.grad"),
    ):
        loss(model).backward(create_graph=True)


def test_sparse_gradients_become_dense() -> None:
    model = nn.Embedding(4, 2, sparse=True)
    _, grads = flatten_parameters(model)
    for _ in range(2):
        model.zero_grad()
        model(torch.tensor([1, 1, 3])).sum().backward()
        assert grads.tolist() == [0, 0, 2, 2, 0, 0, 1, 1]


def test_channels_last_weights_become_contiguous_and_the_function_stays() -> None:
    model = nn.Conv2d(3, 4, 3).double().to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    want = model(x)
    flatten_parameters(model)
    assert model.weight.is_contiguous()
    torch.testing.assert_close(model(x), want, rtol=1e-12, atol=1e-14)


def test_models_that_fit_no_vector() -> None:
    mixed = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    with pytest.raises(ModelError, match=r"float32 on cpu: 0.weight, 0.bias; float64 on cpu: 1.weight, 1.bias"):
        flatten_parameters(mixed)
    with pytest.raises(ModelError, match="no parameters that require a gradient"):
        flatten_parameters(nn.ReLU())
    with pytest.raises(ModelError, match=r"shape of 'weight' is not known yet"):
        flatten_parameters(nn.LazyLinear(2))
    alike = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    alike[1].weight = nn.Parameter(alike[0].weight.data)
    with pytest.raises(ModelError, match=r"'0.weight' and '1.weight' are two parameters in the same memory"):
        flatten_parameters(alike)


def test_an_empty_parameter_has_an_empty_place() -> None:
    model = nn.ParameterDict({"none": nn.Parameter(torch.zeros(0, 3)), "some": nn.Parameter(torch.ones(2))})
    params, grads = flatten_parameters(model)
    model["some"].sum().backward()
    assert params.tolist() == grads.tolist() == [1, 1]
    check_sharing(params)


def test_other_vectors_are_nobodys() -> None:
    check_sharing(torch.zeros(3))
    mend_gradients(torch.zeros(3))


def test_nothing_is_kept_alive() -> None:
    model = small()
    params, grads = flatten_parameters(model)
    loss(model).backward()
    gone = weakref.ref(model), weakref.ref(params), weakref.ref(grads), weakref.ref(model[0].weight)
    del model, params, grads
    gc.collect()
    assert [each() for each in gone] == [None] * 4


def test_grads_alone_stay_right_as_long_as_the_model_lives() -> None:
    model = small()
    grads = flatten_parameters(model).grads
    gc.collect()
    model.zero_grad()
    loss(model).backward()
    assert torch.equal(grads, gradient(model))
