"""BatchNorm over declared groups, and the other buffers that a forward changes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import gradstep
from gradstep.errors import ModelError, RecipeError
from gradstep.update import Update
from gradstep.update.norm import pooled


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def net(momentum: float | None = 0.1, affine: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8, momentum=momentum, affine=affine), nn.Tanh(), nn.Unflatten(1, (2, 2, 2)),
        nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3, momentum=momentum), nn.Flatten(), nn.Linear(3, 2),
    )  # fmt: skip


def spread(outputs: Tensor, targets: Any) -> Tensor:
    return outputs.std() + outputs.square().mean()


def by_hand(model: nn.Module, inputs: Tensor, group: int, criterion: Any, targets: Any) -> list[Tensor]:
    """Every group through the model by itself, in one graph; the reference for gradients."""
    twin = copy.deepcopy(model)
    outputs = torch.cat([twin(part) for part in inputs.split(group)])
    criterion(outputs, targets).backward()
    return [p.grad for p in twin.parameters()]


@pytest.mark.parametrize("criterion", [spread, nn.CrossEntropyLoss()], ids=["together", "cross entropy"])
@pytest.mark.parametrize(("samples", "group"), [(12, 2), (12, 4), (14, 4), (11, 4)])
def test_gradients_and_buffers_are_the_same_for_every_micro_batch(criterion: Any, samples: int, group: int) -> None:
    inputs = torch.randn(samples, 6, generator=torch.Generator().manual_seed(1))
    targets = torch.randint(2, (samples,), generator=torch.Generator().manual_seed(1))
    expected = by_hand(net(), inputs, group, criterion, targets)
    states = []
    for micro_batch in (None, group, 2 * group, 3 * group):
        model = net()
        Update(model, criterion, micro_batch=micro_batch, stat_group=group).backward(inputs, targets)
        for parameter, gradient in zip(model.parameters(), expected, strict=True):
            assert torch.allclose(parameter.grad, gradient, rtol=1e-11, atol=1e-14)
        states.append(dict(model.named_buffers()))
    for state in states:
        for name, value in state.items():
            assert torch.allclose(value, states[0][name], rtol=1e-12, atol=0), name
        assert int(state["1.num_batches_tracked"]) == 1


@pytest.mark.parametrize("momentum", [0.1, 0.5, None])
def test_running_statistics_are_those_of_the_whole_batch(momentum: float | None) -> None:
    """The first norm sees what it would see in one pass, so its statistics must be what torch's own would be."""
    inputs = torch.randn(14, 6, generator=torch.Generator().manual_seed(1))
    whole, parts = net(momentum), net(momentum)
    update = Update(parts, spread, micro_batch=4, stat_group=4)
    for _ in range(3):
        whole(inputs)
        update.backward(inputs, None)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.allclose(getattr(whole[1], name), getattr(parts[1], name), rtol=1e-12)


@given(st.lists(st.integers(2, 9), min_size=1, max_size=6), st.floats(0, 1e6))
def test_pooled_moments_are_those_of_all_values(sizes: list[int], offset: float) -> None:
    values = [torch.randn(size, 3, generator=torch.Generator().manual_seed(size)) + offset for size in sizes]
    moments = [(len(v), v.mean(0), (v - v.mean(0)).square().sum(0)) for v in values]
    total, mean, deviations = pooled(moments)
    every = torch.cat(values)
    assert total == len(every)
    assert torch.allclose(mean, every.mean(0), rtol=1e-12)
    assert torch.allclose(deviations / (total - 1), every.var(0), rtol=1e-6)


def test_a_ragged_group_of_several_is_no_trouble_beside_dropout() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 2))
    gradients = []
    for micro_batch in (None, 4):
        model.zero_grad()
        update = Update(model, spread, micro_batch=micro_batch, stat_group=4)
        update.backward(torch.randn(10, 6, generator=torch.Generator().manual_seed(2)), None)
        gradients.append(model[0].weight.grad.clone())
        with pytest.raises(ModelError, match="a group of one sample gives '2' one value per channel"):
            Update(model, spread, micro_batch=micro_batch, stat_group=4).backward(torch.randn(9, 6), None)
    assert torch.allclose(*gradients, rtol=1e-12)


def test_a_group_of_the_whole_batch_is_torch_s_own_batch_norm() -> None:
    inputs = torch.randn(8, 6)
    own, grouped = net(), net()
    spread(own(inputs), None).backward()
    Update(grouped, spread, stat_group=8).backward(inputs, None)
    for a, b in zip(own.parameters(), grouped.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-12)
    for a, b in zip(own.buffers(), grouped.buffers(), strict=True):
        assert torch.allclose(a, b, rtol=1e-12)


def test_a_frozen_norm_uses_its_own_statistics_in_micro_batches() -> None:
    inputs = torch.randn(8, 6)
    model, twin = net(), net()
    for each in (model, twin):
        for module in each.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
    spread(twin(inputs), None).backward()
    Update(model, spread, micro_batch=3).backward(inputs, None)
    assert all(torch.allclose(a.grad, b.grad) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers(), strict=True))


def test_without_a_group_it_is_an_error_that_explains_the_choices_and_changes_nothing() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        ModelError, match=r"'1' and 1 more normalises over the batch.*stat_group=32.*\.eval\(\).*GroupNorm"
    ):
        Update(model, spread, micro_batch=3).backward(torch.randn(8, 6), None)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(RecipeError, match=r"micro_batch: 6 is not a multiple of stat_group 4.*Take 4 or 8"):
        Update(model, spread, micro_batch=6, stat_group=4)
    with pytest.raises(ModelError, match="a group of one sample gives '1' one value per channel"):
        Update(model, spread, micro_batch=4, stat_group=4).backward(torch.randn(9, 6), None)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_error_in_the_middle_commits_nothing() -> None:
    def fails(outputs: Tensor, targets: Any) -> Tensor:
        if not seen or not torch.is_grad_enabled():
            seen.append(1)
            return spread(outputs, targets)
        raise ZeroDivisionError

    seen: list[int] = []
    model = net()
    update = Update(model, spread, micro_batch=4, stat_group=4, method="two_pass")
    inputs = torch.randn(12, 6)
    update.decide(inputs, None)
    before = copy.deepcopy(model.state_dict())
    update.criterion = fails
    seen.append(1)
    with pytest.raises(ZeroDivisionError):
        update.backward(inputs, None)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert all("forward" not in vars(module) for module in model.modules())


def test_fit_with_groups_ends_the_same_for_any_micro_batch() -> None:
    data = (torch.randn(26, 6), torch.randint(2, (26,)))

    def run(**options: Any) -> dict[str, Tensor]:
        model = net()
        gradstep.fit(
            model, nn.CrossEntropyLoss(), data, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), epochs=2,
            batch_size=12, stat_group=4, drop_last=True, quiet=True, **options,
        )  # fmt: skip
        return model.state_dict()

    whole = run()
    for micro_batch in (4, 8):
        assert all(torch.allclose(v, whole[n], rtol=1e-10) for n, v in run(micro_batch=micro_batch).items())


# Other buffers.


def spectral(old: bool) -> nn.Module:
    torch.manual_seed(0)
    norm = nn.utils.spectral_norm if old else nn.utils.parametrizations.spectral_norm
    return nn.Sequential(norm(nn.Linear(6, 8)), nn.Tanh(), norm(nn.Linear(8, 2)))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("criterion", [spread, nn.CrossEntropyLoss()], ids=["together", "cross entropy"])
@pytest.mark.parametrize("old", [False, True])
def test_spectral_norm_takes_its_power_step_once_for_a_batch(old: bool, criterion: Any) -> None:
    inputs, targets = torch.randn(10, 6), torch.randint(2, (10,))
    whole, parts = spectral(old), spectral(old)
    one, many = Update(whole, criterion), Update(parts, criterion, micro_batch=3)
    for _ in range(3):
        one.backward(inputs, targets)
        many.backward(inputs, targets)
    for (name, a), b in zip(whole.named_buffers(), parts.buffers(), strict=True):
        assert torch.allclose(a, b, rtol=1e-12), name
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-10, atol=1e-13)


class Codebook(nn.Module):
    """Moves a buffer by what it sees, and reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 2)
        self.register_buffer("centre", torch.zeros(2))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.linear(inputs) - self.centre
        with torch.no_grad():
            self.centre.lerp_(outputs.mean(0), 0.1)
            self.count += 1
        return outputs


class Replaces(Codebook):
    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.linear(inputs) - self.centre
        self.centre = self.centre * 0.9 + 0.1 * outputs.detach().mean(0)
        return outputs


@pytest.mark.parametrize("culprit", [Codebook, Replaces])
@pytest.mark.parametrize("method", ["auto", "two_pass"])
def test_a_buffer_that_takes_in_the_samples_is_refused_by_name(culprit: Any, method: str) -> None:
    model = culprit()
    before = copy.deepcopy(model.state_dict())
    update = Update(model, nn.CrossEntropyLoss(), micro_batch=3, method=method)
    with pytest.raises(ModelError, match=r"changes the buffer 'centre'.* by what is in a micro-batch"):
        update.backward(torch.randn(10, 6), torch.randint(2, (10,)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_counter_counts_once_for_a_batch() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 2)
            self.register_buffer("count", torch.zeros((), dtype=torch.int64))

        def forward(self, inputs: Tensor) -> Tensor:
            self.count += 1
            return self.linear(inputs) / self.count

    model = Counts()
    update = Update(model, spread, micro_batch=3)
    for _ in range(4):
        update.backward(torch.randn(10, 6), None)
    assert int(model.count) == 4
