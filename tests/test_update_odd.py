"""Odd models, criteria and batches: each was once taken for something that it is not."""

from __future__ import annotations

import copy
import random
from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradstep
from gradstep.errors import ModelError
from gradstep.update import Update

X = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)).double()
V = torch.randn(9, 3, generator=torch.Generator().manual_seed(1)).double()
LABELS = torch.randint(3, (9,), generator=torch.Generator().manual_seed(2))


def net(*more: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3), *more).double()


class Through(nn.Module):
    """A net inside a forward of one's own."""

    def __init__(self, forward: Callable[..., Any], *more: nn.Module) -> None:
        super().__init__()
        self.net, self.own = net(), forward
        self.more = nn.ModuleList(more).double()

    def forward(self, inputs: Any) -> Any:
        return self.own(self, inputs)


def gradient(model: nn.Module) -> Tensor:
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])


def same_for_all(
    make: Callable[[], nn.Module], criterion: Callable[[nn.Module], Any], inputs: Any, targets: Any, **options: Any
) -> list[Update]:
    """One pass and micro-batches of 4, 3, 1 agree, twice in a row; returns the updates."""
    updates, found = [], []
    for micro_batch in (None, 4, 3, 1):
        model = make()
        update = Update(model, criterion(model), micro_batch=micro_batch, **options)
        losses = [update.backward(copy.deepcopy(inputs), copy.deepcopy(targets)).loss for _ in range(2)]
        found.append((gradient(model), torch.stack(losses)))
        updates.append(update)
    for g, losses in found[1:]:
        assert float((g - found[0][0]).norm()) <= 1e-11 * float(found[0][0].norm())
        assert torch.allclose(losses, found[0][1], rtol=1e-11)
    return updates


def refused(
    make: Callable[[], nn.Module], criterion: Any, inputs: Any, targets: Any, said: str, **options: Any
) -> None:
    model = make()
    update = Update(model, criterion, micro_batch=options.pop("micro_batch", 4), **options)
    with pytest.raises(ModelError, match=said):
        update.backward(inputs, targets)
    assert all(p.grad is None for p in model.parameters())


# Criteria.


def test_one_that_holds_the_model_counts_its_parameters_once() -> None:
    class Decays(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return F.mse_loss(outputs, targets) + 0.1 * sum(p.square().sum() for p in self.model.parameters())

    same_for_all(net, Decays, X, V)
    same_for_all(net, lambda model: Decays(model).forward, X, V)
    same_for_all(
        net, lambda model: lambda o, t: F.mse_loss(o, t) + sum(p.square().sum() for p in model.parameters()), X, V
    )


def test_dropout_inside_one_is_the_batch_s() -> None:
    class Drops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.head = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).double()

        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return F.mse_loss(self.head(outputs), targets)

    updates = same_for_all(net, lambda model: Drops(), X, V)
    assert updates[1].ways[9].proof == "there is dropout in the criterion"

    def consistent(model: nn.Module) -> Any:
        return lambda o, t: (o - model(X * 1.1)).square().mean()

    same_for_all(lambda: net(nn.Dropout(0.5)), consistent, X, V)


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: float(torch.rand(()))])
def test_one_that_draws_is_called_once(draw: Callable[[], float]) -> None:
    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        share = draw()
        return share * F.mse_loss(outputs, targets) + (1 - share) * outputs.square().mean()

    found = []
    for micro_batch in (None, 3):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        model = net()
        Update(model, criterion, micro_batch=micro_batch).backward(X, V)
        found.append((gradient(model), random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-11, atol=1e-14)
    assert found[0][1:] == found[1][1:]


class Meter:
    def __init__(self) -> None:
        self.count = 0


CALLS = 0
GENERATOR = np.random.default_rng(0)


def counts_globally(outputs: Tensor, targets: Tensor) -> Tensor:
    global CALLS
    CALLS += 1
    return F.mse_loss(outputs, targets)


def draws_globally(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs, targets) * GENERATOR.random()


def private() -> tuple[Any, Callable[[], Any]]:
    class Private(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._calls, self.mean = 0, np.zeros(3)

        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            self._calls += 1
            self.mean += outputs.detach().numpy().mean(0)
            return F.mse_loss(outputs, targets)

    made = Private()
    return made, lambda: made._calls


def closed_over() -> tuple[Any, Callable[[], Any]]:
    meter = Meter()

    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        meter.count += 1
        return F.mse_loss(outputs, targets)

    return criterion, lambda: meter.count


def counted_in_a_tensor() -> tuple[Any, Callable[[], Any]]:
    count = torch.zeros((), dtype=torch.int64)

    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        count.add_(1)
        return F.mse_loss(outputs, targets)

    return criterion, lambda: int(count)


@pytest.mark.parametrize("make", [private, closed_over, counted_in_a_tensor, lambda: (counts_globally, lambda: CALLS)])
def test_one_that_remembers_somewhere_is_called_once_for_a_batch(make: Callable[[], Any]) -> None:
    criterion, calls = make()
    before = calls()
    update = Update(net(), criterion, micro_batch=3)
    update.decide(X, V)
    assert calls() == before
    for number in range(3):
        update.backward(X, V)
        assert calls() == before + number + 1


def test_deciding_draws_from_no_generator_of_the_criterion_s() -> None:
    before = GENERATOR.bit_generator.state
    update = Update(net(), draws_globally, micro_batch=3)
    assert update.decide(X, V).method == "two_pass"
    assert GENERATOR.bit_generator.state == before


def test_one_that_edits_its_targets_does_so_once() -> None:
    def shifted(outputs: Tensor, targets: Tensor) -> Tensor:
        targets -= 1
        return F.cross_entropy(outputs, targets)

    def scaled(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, targets.mul_(2).sub_(1))

    for micro_batch in (None, 3):
        labels, values = LABELS + 1, V.clone()
        Update(net(), shifted, micro_batch=micro_batch).backward(X, labels)
        Update(net(), scaled, micro_batch=micro_batch).backward(X, values)
        assert torch.equal(labels, LABELS)
        assert torch.equal(values, V * 2 - 1)
    same_for_all(net, lambda model: scaled, X, V)


def test_several_losses_a_row_are_refused_as_in_one_pass() -> None:
    for micro_batch in (None, 3):
        with pytest.raises(ModelError, match=r"a tensor of shape \[9, 3\] for a batch of 9"):
            Update(net(), nn.MSELoss(reduction="none"), micro_batch=micro_batch).backward(X, V)


def test_a_frozen_model_under_a_criterion_that_learns() -> None:
    class Learns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3).double())

        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return F.mse_loss(outputs * self.scale, targets)

    found = []
    for micro_batch in (None, 3):
        criterion = Learns()
        Update(net().requires_grad_(False), criterion, micro_batch=micro_batch).backward(X, V)
        found.append(criterion.scale.grad)
    assert torch.allclose(*found, rtol=1e-12)


def test_a_scale_comes_before_a_gradient_can_vanish() -> None:
    model = net().half()
    update = Update(model, lambda o, t: F.mse_loss(o, t) * 1e-7, micro_batch=3)
    update.backward(X.half(), V.half(), scale=32768.0)
    assert float(gradient(model).abs().max()) > 1e-5


def test_a_loss_of_16_bits_does_not_stand_still() -> None:
    inputs, labels = torch.randn(1024, 4).bfloat16(), torch.randint(3, (1024,))
    whole = Update(net().bfloat16(), nn.CrossEntropyLoss()).backward(inputs, labels).loss
    parts = Update(net().bfloat16(), nn.CrossEntropyLoss(), micro_batch=1).backward(inputs, labels).loss
    assert parts.dtype == whole.dtype == torch.bfloat16
    assert float(parts) == pytest.approx(float(whole), rel=1e-2)


# Outputs.


@pytest.mark.parametrize("extra", [len, lambda x: torch.tensor(len(x)), lambda x: (x[:, 0] > 0).sum()])
def test_a_count_beside_the_outputs_is_refused(extra: Callable[[Tensor], Any]) -> None:
    refused(
        lambda: Through(lambda self, x: (self.net(x), extra(x))), lambda o, t: (o[0] - t).square().sum() / o[1], X, V,
        "couples samples: an output without rows",
    )  # fmt: skip


def test_complex_outputs() -> None:
    def spectrum(self: Through, inputs: Tensor) -> dict[str, Tensor]:
        hidden = self.net(inputs)
        return {"real": hidden, "spectrum": torch.fft.fft(hidden * hidden)}

    same_for_all(
        lambda: Through(spectrum),
        lambda m: lambda o, t: F.mse_loss(o["real"], t).sqrt() + o["spectrum"].abs().mean(),
        X,
        V,
    )
    same_for_all(
        lambda: Through(spectrum), lambda m: lambda o, t: (o["spectrum"].abs().mean(1) - t[:, 0]).square(), X, V
    )


def test_an_object_that_can_t_be_put_together_is_refused_with_the_way_out() -> None:
    @dataclass
    class Out:
        logits: Tensor

    refused(
        lambda: Through(lambda self, x: Out(self.net(x))),
        lambda o, t: F.mse_loss(o.logits, t),
        X,
        V,
        "hold a Out.*forward=",
    )


def test_outputs_that_lose_their_rows_in_a_micro_batch_of_one() -> None:
    with pytest.raises(ModelError, match="do not have their rows in dimension 0 for 1 samples"):
        Update(
            Through(lambda self, x: self.net(x)[:, 0].squeeze()), lambda o, t: o.square().sum(), micro_batch=1
        ).backward(X, V)


# Coupled samples behind random numbers, and rows in another order.


def noisy(then: Callable[[Through, Tensor], Any]) -> Callable[[], nn.Module]:
    return lambda: Through(lambda self, x: then(self, x + 1e-8 * torch.randn_like(x)))


@pytest.mark.parametrize(
    "then",
    [
        lambda self, x: F.batch_norm(self.net(x), None, None, training=True),
        lambda self, x: self.net((x @ x.T).softmax(1) @ x),
        lambda self, x: self.net(torch.cat([x, 2 * x])),
    ],
    ids=["normalised", "attention over the batch", "two views in rows"],
)
def test_noise_hides_no_coupling(then: Any) -> None:
    refused(noisy(then), lambda o, t: o.square().mean(), X, V, "couples samples")
    refused(lambda: Through(then), lambda o, t: o.square().mean(), X, V, "couples samples")


def test_a_coupling_within_fewer_than_two_groups_is_found() -> None:
    def attends(self: Through, x: Tensor) -> Tensor:
        return self.more[0](self.net((x @ x.T).softmax(1) @ x))

    refused(
        lambda: Through(attends, nn.BatchNorm1d(3)),
        nn.MSELoss(),
        X[:5],
        V[:5],
        "couples samples",
        stat_group=3,
        micro_batch=3,
    )


def test_views_within_the_model_have_masks_of_their_own_in_one_pass_and_are_refused_apart() -> None:
    def views(self: Through, x: Tensor) -> Tensor:
        a, b = self.more[0](self.net(torch.cat([x, 2 * x]))).chunk(2)
        return a + b

    model = Through(views, nn.Dropout(0.5))
    assert torch.isfinite(Update(model, nn.MSELoss()).backward(X, V).loss)
    refused(
        lambda: Through(views, nn.Dropout(0.5)),
        nn.MSELoss(),
        X,
        V,
        "which of its elements are a sample's can't be told",
    )
    refused(
        lambda: Through(views, nn.BatchNorm1d(3)), nn.MSELoss(), X, V, "do not lie sample after sample", stat_group=4
    )
    refused(
        lambda: Through(views, nn.BatchNorm1d(3)), nn.MSELoss(), X, V, "do not lie sample after sample", stat_group=4,
        micro_batch=None,
    )  # fmt: skip


def test_dropout_of_what_is_no_sample_s_has_one_mask_for_the_batch() -> None:
    class Places(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.linear, self.places, self.drop = nn.Linear(4, 3), nn.Parameter(torch.randn(3)), nn.Dropout(0.5)

        def forward(self, inputs: Tensor) -> Tensor:
            weight = F.dropout(self.linear.weight, 0.5, self.training)  # DropConnect
            return F.linear(inputs, weight) + self.drop(self.places)

    same_for_all(lambda: Places().double(), lambda m: nn.MSELoss(), X, V)
    same_for_all(lambda: Places().double(), lambda m: lambda o, t: F.mse_loss(o, t).sqrt(), X, V)


# BatchNorm.


def test_groups_count_samples_and_not_rows() -> None:
    """BatchNorm over frames: three rows for each sample."""

    def frames(self: Through, x: Tensor) -> Tensor:
        return self.more[0](self.net(x).reshape(-1, 1)).view(len(x), 3)

    def by_hand(model: Any) -> Tensor:
        outputs = torch.cat([model(part) for part in X.split(4)])
        return F.mse_loss(outputs, V)

    model = Through(frames, nn.BatchNorm1d(1))
    expected = by_hand(copy.deepcopy(model)).detach()
    for micro_batch in (None, 4, 8):
        twin = copy.deepcopy(model)
        assert torch.allclose(
            Update(twin, nn.MSELoss(), stat_group=4, micro_batch=micro_batch).backward(X, V).loss, expected
        )


def test_a_norm_with_a_forward_of_its_own_is_refused_in_groups() -> None:
    class Activated(nn.BatchNorm1d):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs).relu()

    refused(lambda: net(Activated(3)), nn.MSELoss(), X, V, "'3' is a Activated, whose forward is its own", stat_group=4)
    plain = net(Activated(3))
    expected = F.mse_loss(copy.deepcopy(plain)(X), V)
    assert torch.allclose(Update(plain, nn.MSELoss()).backward(X, V).loss, expected)


def test_a_norm_called_twice_commits_twice() -> None:
    def twice(self: Through, x: Tensor) -> Tensor:
        return self.more[0](self.more[0](self.net(x)) * 2)

    own = Through(twice, nn.BatchNorm1d(3))
    grouped, parts = copy.deepcopy(own), copy.deepcopy(own)
    own(X[:8])
    Update(grouped, nn.MSELoss(), stat_group=8).backward(X[:8], V[:8])
    for a, b in zip(own.buffers(), grouped.buffers(), strict=True):
        assert torch.allclose(a, b, rtol=1e-12)
    Update(parts, nn.MSELoss(), stat_group=4, micro_batch=4).backward(X[:8], V[:8])
    assert int(parts.more[0].num_batches_tracked) == 2


def test_another_mode_is_looked_at_anew() -> None:
    model = net(nn.BatchNorm1d(3)).eval()
    update = Update(model, nn.MSELoss(), micro_batch=3)
    update.backward(X, V)
    model.train()
    with pytest.raises(ModelError, match="normalises over the batch"):
        update.backward(X, V)
    model.eval()
    update.backward(X, V)


# Batches.


def test_a_shared_tensor_with_as_many_rows_as_a_later_batch_is_refused() -> None:
    shared = torch.randn(7, 4).double()
    model = Through(lambda self, x: self.net(x["x"]) + self.net(x["shared"]).sum(0))
    update = Update(model, nn.MSELoss(), micro_batch=3)
    update.backward({"x": X, "shared": shared}, V)
    with pytest.raises(ModelError, match="something in the inputs that all samples share has 7 rows"):
        update.backward({"x": X[:7], "shared": shared}, V[:7])


def test_a_dict_that_is_none_is_cut_and_what_can_t_be_cut_is_refused() -> None:
    def words(self: Through, x: Any) -> Tensor:
        return self.net(x["x"])

    same_for_all(lambda: Through(words), lambda m: nn.MSELoss(), UserDict(x=X), V)

    class Opaque:
        x = X

    refused(
        lambda: Through(lambda self, x: self.net(x.x)), nn.MSELoss(), Opaque(), V, "nothing in the inputs can be cut"
    )


def test_draws_of_python_s_are_told() -> None:
    update = Update(Through(lambda self, x: self.net(x) * random.random()), nn.MSELoss(), micro_batch=3)
    update.backward(X, V)
    assert update.notes == ["the model draws random numbers (Python's random): other micro-batches, other numbers."]


# Models that one pass took before, and takes still.


def test_scripted_and_lazy_models_and_padded_rows() -> None:
    scripted = torch.jit.script(net())
    assert torch.isfinite(Update(scripted, nn.MSELoss()).backward(X, V).loss)
    lazy = nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.Linear(8, 3)).double()
    assert torch.isfinite(Update(lazy, nn.MSELoss()).backward(X, V).loss)
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True).double()
    padded = torch.zeros(9, 5, dtype=torch.bool)
    padded[2], padded[3, 2:] = True, True
    update = Update(layer, lambda o, t: o.square().mean(), forward=lambda m, x: m(x[0], src_key_padding_mask=x[1]))
    assert torch.isfinite(update.backward((X[:, None].expand(9, 5, 4).contiguous(), padded), None).loss)


# Errors.


def test_an_error_leaves_the_step_the_streams_and_the_criterion_as_they_were() -> None:
    class Centre(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("centre", torch.zeros(3).double())

        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            loss = (outputs - self.centre.clone()).square().mean()
            self.centre.lerp_(outputs.detach().mean(0), 0.1)
            return loss

    def fails(self: Through, x: Tensor) -> Tensor:
        if broken and torch.is_grad_enabled() and len(calls) > 1:
            raise KeyboardInterrupt
        calls.append(len(x))
        return self.more[0](self.net(x))

    broken: list[int] = []
    calls: list[int] = []
    criterion, model = Centre(), Through(fails, nn.Dropout(0.5))
    update = Update(model, criterion, micro_batch=3)
    update.decide(X, V)
    calls.clear()
    broken.append(1)
    with pytest.raises(KeyboardInterrupt):
        update.backward(X, V)
    assert torch.equal(criterion.centre, torch.zeros(3).double())
    assert all(p.grad is None for p in model.parameters())
    broken.clear()
    again = update.backward(X, V).loss
    assert torch.equal(again, Update(Through(fails, nn.Dropout(0.5)), Centre(), micro_batch=3).backward(X, V).loss)

    before = torch.get_rng_state()
    with pytest.raises(ModelError):
        gradstep.backward(net(), lambda o, t: None, X, V, micro_batch=3)
    assert torch.equal(torch.get_rng_state(), before)
