"""Dropout by key: what a mask depends on, how it is distributed, and where it is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import dropout as bound_early
from torch.utils.checkpoint import checkpoint

import gradstep
from gradstep.errors import ModelError
from gradstep.update import Update
from gradstep.update.keyed import bits, kept, sample_words


def words(samples: int, step: int = 1, seed: int = 5) -> tuple[Tensor, Tensor]:
    return sample_words(seed, torch.tensor(step), samples)


# The generator.


def splitmix(seed: int, counter: int) -> int:
    """SplitMix64 written out in Python's whole numbers: the reference."""
    mask = (1 << 64) - 1
    z = (seed + counter * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def affine(word: int) -> int:
    return (word * 1664525 + 1013904223) & 0xFFFFFFFF


def pcg4d(x: int, y: int, z: int, w: int) -> list[int]:
    """Listing 4 of the paper, in Python's whole numbers, after its first step (`affine` of each)."""
    mask = (1 << 32) - 1
    for last in (False, True):
        x = (x + y * w) & mask
        y = (y + z * x) & mask
        z = (z + x * y) & mask
        w = (w + y * z) & mask
        if not last:
            x, y, z, w = (each ^ (each >> 16) for each in (x, y, z, w))
    return [x, y, z, w]


@given(st.integers(0, 2**62), st.integers(0, 2**31 - 1), st.integers(1, 5))
def test_the_words_of_a_sample_are_splitmix64(seed: int, step: int, samples: int) -> None:
    first, second = sample_words(seed, torch.tensor(step), samples)
    for sample in range(samples):
        expected = splitmix(seed, (step << 32) + sample)
        assert int(first[sample]) & 0xFFFFFFFF == affine(expected & 0xFFFFFFFF)
        assert int(second[sample]) & 0xFFFFFFFF == affine(expected >> 32)


@given(st.integers(0, 2**31 - 1), st.integers(1, 13), st.integers(0, 1000))
def test_the_bits_of_an_element_are_pcg4d(call: int, elements: int, step: int) -> None:
    both = words(3, step)
    found = bits(both, call, elements)
    quads = -(-elements // 4)
    for sample in range(3):
        for element in range(elements):
            which, place = divmod(element, quads)
            key = [affine(place), *(int(word[sample]) & 0xFFFFFFFF for word in both), affine(call)]
            assert int(found[sample, element]) & 0xFFFFFFFF == pcg4d(*key)[which]


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_a_share_of_one_minus_p_is_kept_in_every_direction(p: float) -> None:
    """Over elements, samples, steps and calls: means and variances of independent draws."""
    masks = torch.stack([kept(words(200, step), call, 500, p, torch.float64) for step in (1, 2) for call in (7, 8)])
    n, q = masks.numel(), 1 - p
    assert abs(float(masks.mean()) - q) < 4 * math.sqrt(p * q / n)
    for dims, each in (((0, 1), 800), ((0, 2), 2000), ((1, 2), 100000)):  # by element, by sample, by call and step
        means = masks.mean(dims)
        assert float(((means - q) / math.sqrt(p * q / each)).square().mean()) == pytest.approx(
            1, abs=6 * math.sqrt(2 / means.numel())
        )
    for a, b in (  # neighbours know nothing of each other
        (masks[..., 1:], masks[..., :-1]), (masks[:, 1:], masks[:, :-1]), (masks[0], masks[1]), (masks[0], masks[2]),
        (masks[..., ::2], masks[..., 1::2]), (masks[..., :125], masks[..., 125:250]),
    ):  # fmt: skip
        together = float(((a - q) * (b - q)).mean()) / (p * q)
        assert abs(together) < 4.5 / math.sqrt(a.numel())


def test_the_bits_pass_a_chi_square_test_on_bytes() -> None:
    found = bits(words(400), 3, 1000).reshape(-1).contiguous().view(torch.uint8)
    for place in range(4):
        counts = torch.bincount(found[place::4].long(), minlength=256).double()
        expected = counts.sum() / 256
        statistic = float(((counts - expected).square() / expected).sum())
        assert abs(statistic - 255) < 5 * math.sqrt(2 * 255)


# What a mask depends on.


def masks(model: nn.Module, inputs: Tensor, step: int = 1, seed: int = 0, micro_batch: int | None = None) -> Tensor:
    """The outputs of one batch, in which a dropped element is 0."""
    update = Update(model, lambda o, t: o.square().sum(), micro_batch=micro_batch, seed=seed, method="auto")
    for parameter in model.parameters():
        parameter.grad = None
    return update.backward(inputs, None, step=step).outputs


class Through(nn.Module):
    """Something to train, so that there is a graph."""

    def __init__(self, inside: Any) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.inside = inside

    def forward(self, inputs: Any) -> Any:
        return self.inside(inputs * self.scale)


def test_a_mask_depends_on_seed_step_call_sample_and_element_and_on_nothing_else() -> None:
    twice = Through(nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5)))
    ones = torch.ones(8, 40)
    base = masks(twice, ones)
    torch.manual_seed(1)
    torch.rand(100)
    assert torch.equal(masks(twice, ones), base)  # no stream
    assert torch.equal(masks(twice, ones[:5]), base[:5])  # not the batch's size
    assert not torch.equal(masks(twice, ones, step=2), base)
    assert not torch.equal(masks(twice, ones, seed=1), base)
    assert not torch.equal(base[0], base[1])
    one = masks(Through(nn.Dropout(0.5)), ones)
    assert 0.1 < float((base > 0).double().mean()) < 0.4  # two independent layers: a quarter is left
    assert not torch.equal(one > 0, base > 0)


@pytest.mark.parametrize("micro_batch", [1, 3, 7])
def test_torch_s_stream_is_left_where_it_was(micro_batch: int) -> None:
    before = torch.get_rng_state()
    masks(Through(nn.Dropout(0.5)), torch.ones(7, 10), micro_batch=micro_batch)
    assert torch.equal(torch.get_rng_state(), before)


class Functional(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        inputs = F.dropout(inputs, 0.3, self.training)
        return F.alpha_dropout(torch.nn.functional.dropout(inputs, training=self.training), 0.2, self.training)


class TimeFirst(nn.Module):
    """[N, T, C] through layers that want [T, N, C]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs.transpose(0, 1)).transpose(0, 1)


class SelfAttention(nn.Module):
    """Drops out its weights as a function of [N·heads, T, T]."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, 0.4, batch_first=True)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.attention(inputs, inputs, inputs)[0]


class Attention(nn.Module):
    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.causal = causal

    def forward(self, inputs: Tensor) -> Tensor:
        p = 0.4 if self.training else 0.0
        mask = None if self.causal else torch.ones(inputs.size(-2), inputs.size(-2), dtype=torch.bool).triu().T
        return F.scaled_dot_product_attention(inputs, inputs, inputs, mask, p, is_causal=self.causal)


class Tokens(nn.Module):
    """[N, T, C] flattened to [N·T, C] around a dropout, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.drop(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])


class Again(nn.Module):
    """One module called twice in a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.drop(self.drop(inputs) + 1)


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5, inplace=True)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.drop(inputs + 0)


LAYERS = {
    "dropout": (lambda: nn.Dropout(0.3), (9, 5)),
    "features 1d": (lambda: nn.Dropout1d(0.3), (9, 8, 3)),
    "features 2d": (lambda: nn.Dropout2d(0.3), (9, 8, 3, 2)),
    "features 3d": (lambda: nn.Dropout3d(0.3), (9, 8, 3, 2, 2)),
    "alpha": (lambda: nn.AlphaDropout(0.3), (9, 5)),
    "alpha of features": (lambda: nn.FeatureAlphaDropout(0.3), (9, 8, 3)),
    "functions": (Functional, (9, 5)),
    "encoder, batch first": (lambda: nn.TransformerEncoderLayer(6, 2, 8, dropout=0.3, batch_first=True), (9, 4, 6)),
    "encoder, time first": (TimeFirst, (9, 4, 6)),
    "encoder, time first, as many times as samples": (TimeFirst, (9, 9, 6)),
    "attention with weights": (SelfAttention, (9, 4, 6)),
    "attention, causal": (lambda: Attention(True), (9, 2, 4, 6)),
    "attention, masked": (lambda: Attention(False), (9, 2, 4, 6)),
    "tokens in rows": (Tokens, (9, 4, 6)),
    "called twice": (Again, (9, 5)),
    "in place": (InPlace, (9, 5)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_the_masks_are_the_same_for_every_partition(name: str) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    model = Through(make()).double()
    inputs = torch.randn(shape, dtype=torch.float64)
    whole = masks(model, inputs)
    assert not torch.allclose(whole, masks(model, inputs, step=2))
    gradients = [p.grad.clone() for p in model.parameters()]
    masks(model, inputs)
    gradients = [p.grad.clone() for p in model.parameters()]
    for micro_batch in (1, 2, 4, 8):
        assert torch.allclose(masks(model, inputs, micro_batch=micro_batch), whole, rtol=1e-12, atol=1e-13)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            assert torch.allclose(parameter.grad, gradient, rtol=1e-10, atol=1e-11)


def test_what_is_kept_is_scaled_and_features_fall_as_a_whole() -> None:
    outputs = masks(Through(nn.Dropout(0.2)), torch.ones(50, 100))
    assert set(outputs.unique().tolist()) == {0.0, 1.25}
    images = masks(Through(nn.Dropout2d(0.5)), torch.ones(50, 20, 3, 3))
    assert torch.equal(images.amin((2, 3)), images.amax((2, 3)))
    assert 0.4 < float((images > 0).double().mean()) < 0.6


def test_alpha_dropout_keeps_mean_and_variance() -> None:
    inputs = torch.randn(400, 500, generator=torch.Generator().manual_seed(0))
    outputs = masks(Through(nn.AlphaDropout(0.3)), inputs)
    assert abs(float(outputs.mean())) < 0.02
    assert float(outputs.std()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_nothing_and_everything(p: float) -> None:
    outputs = masks(Through(nn.Dropout(p)), torch.ones(4, 5))
    assert torch.equal(outputs, torch.full((4, 5), 1 - p))


def test_attention_without_dropout_is_torch_s_own_and_the_formula_written_out_is_the_same() -> None:
    """With p → 0 the written-out formula gives what torch's kernel gives."""
    q, k, v = (torch.randn(3, 2, 5, 4, dtype=torch.float64) for _ in range(3))

    class One(nn.Module):
        def __init__(self, p: float) -> None:
            super().__init__()
            self.p, self.w = p, nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, q: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(
                q * self.w, k[: len(q)], v[: len(q)], dropout_p=self.p, is_causal=True
            )

    exact = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    for p in (0.0, 1e-12):
        update = Update(One(p), lambda o, t: o.sum())
        assert torch.allclose(update.backward(q, None).outputs, exact, rtol=1e-9)


def test_evaluation_and_frozen_layers_drop_nothing_and_the_layers_are_torch_s_again_afterwards() -> None:
    model = Through(nn.Dropout(0.5))
    model.inside.eval()
    inputs = torch.ones(4, 5)
    assert torch.equal(masks(model, inputs), inputs)
    own = F.dropout
    masks(Through(Functional()), inputs)
    assert F.dropout is own
    assert "forward" not in vars(model.inside)
    with pytest.raises(ZeroDivisionError):
        Update(Through(nn.Dropout(0.5)), lambda o, t: o.sum() / (1 // 0)).backward(inputs, None)
    assert F.dropout is own


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_meets_the_same_masks_again(reentrant: bool) -> None:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(5, 5), nn.Dropout(0.5), nn.Tanh(), nn.Linear(5, 5), nn.Dropout(0.5))

    class Checked(nn.Module):
        def __init__(self, on: bool) -> None:
            super().__init__()
            self.first, self.block, self.on = nn.Linear(5, 5), block, on

        def forward(self, inputs: Tensor) -> Tensor:
            hidden = self.first(inputs)
            return checkpoint(self.block, hidden, use_reentrant=reentrant) if self.on else self.block(hidden)

    torch.manual_seed(1)
    model = Checked(False).double()
    inputs = torch.randn(7, 5, dtype=torch.float64)
    masks(model, inputs)
    gradients = [p.grad.clone() for p in model.parameters()]
    model.on = True
    for micro_batch in (None, 3):
        masks(model, inputs, micro_batch=micro_batch)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            assert torch.allclose(parameter.grad, gradient, rtol=1e-12, atol=1e-13)


def test_a_layer_called_twice_under_checkpointing_is_refused_by_name() -> None:
    class Checked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.again = nn.Linear(5, 5), Again()

        def forward(self, inputs: Tensor) -> Tensor:
            return checkpoint(self.again, self.linear(inputs), use_reentrant=False)

    with pytest.raises(ModelError, match=r"'again\.drop' is called 2 times in a forward and again by activation"):
        masks(Checked(), torch.ones(4, 5))


# What can't be keyed, or can't be told.


class EarlyBound(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return bound_early(inputs, 0.5, self.training)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(5, 5, num_layers=2, dropout=0.5, batch_first=True)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.rnn(inputs)[0]


@pytest.mark.parametrize(
    ("inside", "shape", "said"),
    [
        (EarlyBound, (6, 5), r"dropout at test_keyed.py, line \d+ draws from torch's stream, so other micro-batches"),
        (Recurrent, (6, 3, 5), r"the dropout inside LSTM at test_keyed.py, line \d+ draws"),
    ],
)
def test_dropout_that_can_t_be_keyed_is_refused_by_name_in_micro_batches(inside: Any, shape: Any, said: str) -> None:
    model, inputs = Through(inside()), torch.ones(shape)
    masks(model, inputs)  # whole, it is torch's
    with pytest.raises(ModelError, match=said):
        masks(model, inputs, micro_batch=2)


def test_a_mask_over_samples_that_can_t_be_told_apart_is_refused() -> None:
    class Pooled(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs + F.dropout(inputs.sum(0), 0.5)

    with pytest.raises(ModelError, match=r"which of its elements are a sample's can't be told|couples samples"):
        masks(Through(Pooled()), torch.ones(6, 5), micro_batch=2)


def test_the_stream_is_refused_with_micro_batches_and_taken_without() -> None:
    model, inputs = Through(nn.Dropout(0.5)), torch.ones(6, 5)
    torch.manual_seed(0)
    outputs = Update(model, lambda o, t: o.sum(), dropout="stream").backward(inputs, None).outputs
    torch.manual_seed(0)
    assert torch.equal(outputs, F.dropout(inputs, 0.5))
    with pytest.raises(ModelError, match=r"dropout at .* draws from torch's stream.*Take dropout='keyed'"):
        Update(model, lambda o, t: o.sum(), dropout="stream", micro_batch=2).backward(inputs, None)
    model.inside.eval()  # nothing is dropped: nothing to refuse
    Update(model, lambda o, t: o.sum(), dropout="stream", micro_batch=2).backward(inputs, None)


def test_a_model_is_looked_at_once_and_before_the_first_step_of_fit() -> None:
    sizes: list[int] = []

    class Net(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            if self.training:
                sizes.append(len(inputs))
            return super().forward(inputs)

    update = Update(Net(4, 3), nn.CrossEntropyLoss())
    for samples in (8, 5, 8):
        update.backward(torch.ones(samples, 4), torch.zeros(samples, dtype=torch.int64))
    assert sizes == [2, 3, 3, 8, 5, 8]
    sizes.clear()
    outcomes = gradstep.steps(
        Net(4, 3), nn.CrossEntropyLoss(), (torch.ones(12, 4), torch.zeros(12, dtype=torch.int64)),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1), epochs=1, batch_size=8,
    )  # fmt: skip
    assert sizes == [1, 2, 2]
    next(outcomes)
    assert sizes == [1, 2, 2, 8]


def test_fit_by_key_ends_the_same_for_any_micro_batch_and_any_watching() -> None:
    def run(**options: Any) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3)).double()
        inputs = torch.randn(20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        targets = torch.randint(3, (20,), generator=torch.Generator().manual_seed(2))
        gradstep.fit(
            model, nn.CrossEntropyLoss(), (inputs, targets), optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
            epochs=3, batch_size=8, quiet=True, **options,
        )  # fmt: skip
        return list(model.parameters())

    whole = run()
    for micro_batch in (1, 3, 8):
        for a, b in zip(run(micro_batch=micro_batch), whole, strict=True):
            assert torch.allclose(a, b, rtol=1e-11, atol=1e-13)
    assert all(
        torch.equal(a, b) for a, b in zip(run(micro_batch=3), run(micro_batch=3, log_every="1 step"), strict=True)
    )
