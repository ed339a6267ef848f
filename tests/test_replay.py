"""Two passes with every random source there is: the second forward is the first again, or the run stops."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradstep.errors import ModelError
from gradstep.update import Update

BATCH = 10


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Noise(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + 0.3 * torch.randn_like(inputs)


class LayerDrop(nn.Module):
    """Leaves itself out at the throw of Python's dice."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs if random.random() < 0.5 else self.linear(inputs)


class NumpyNoise(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * torch.from_numpy(np.random.rand(*inputs.shape))


class OwnGenerator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * torch.rand(inputs.shape, generator=self.generator)


class OwnNumpyGenerator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator, self.legacy, self.dice = np.random.default_rng(3), np.random.RandomState(4), random.Random(5)

    def forward(self, inputs: Tensor) -> Tensor:
        drawn = self.generator.random(inputs.shape) + self.legacy.rand(*inputs.shape) + self.dice.random()
        return inputs * torch.from_numpy(drawn)


SOURCES = {
    "torch": Noise,
    "Python": LayerDrop,
    "NumPy": NumpyNoise,
    "a generator of torch's on a module": OwnGenerator,
    "generators of NumPy's and Python's on a module": OwnNumpyGenerator,
    "torch's leaky rectifier": lambda: nn.RReLU(),
}


def net(make: Any) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), make(), nn.Tanh(), nn.Linear(8, 3))


def together(outputs: Tensor, targets: Any) -> Tensor:
    return outputs.std() + outputs.square().mean().sqrt()


def seed() -> None:
    torch.manual_seed(9)
    random.seed(9)
    np.random.seed(9)


def state() -> list[Any]:
    return [torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())]


@pytest.mark.parametrize("micro_batch", [1, 3, 4])
@pytest.mark.parametrize("source", SOURCES)
def test_the_gradient_is_that_of_the_first_forwards_all_in_one_graph(source: str, micro_batch: int) -> None:
    """The reference: each micro-batch forward once, with a graph, and the criterion backward through all of them."""
    inputs = torch.randn(BATCH, 6, generator=torch.Generator().manual_seed(1))
    model = net(SOURCES[source])
    update = Update(model, together, micro_batch=micro_batch, method="two_pass")
    sizes = update.decide(inputs, None).sizes

    seed()
    pieces, first = [], 0
    with update._own_layers(4, BATCH):
        for size in sizes:
            update._keyed.piece(first, size)
            pieces.append(model(inputs[first : first + size]))
            first += size
    loss = together(torch.cat(pieces), None)
    expected, after = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True), state()

    model = net(SOURCES[source])
    update = Update(model, together, micro_batch=micro_batch, method="two_pass")
    update.decide(inputs, None)
    seed()
    outcome = update.backward(inputs, None, step=4)
    assert torch.allclose(outcome.loss, loss, rtol=1e-12)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        if gradient is None:
            assert parameter.grad is None
        else:
            assert float((parameter.grad - gradient).norm()) <= 1e-12 * float(gradient.norm())
    assert state() == after  # the streams are left where the first pass left them


def test_looking_at_a_model_draws_nothing() -> None:
    inputs = torch.randn(BATCH, 6)
    model = net(OwnNumpyGenerator)
    own = model[2]
    seed()
    before = [*state(), own.generator.bit_generator.state, own.dice.getstate()]
    Update(model, together, micro_batch=3).decide(inputs, None)
    assert [*state(), own.generator.bit_generator.state, own.dice.getstate()] == before


def test_noise_that_depends_on_the_micro_batches_is_told_by_name() -> None:
    update = Update(net(Noise), together, micro_batch=3)
    update.backward(torch.randn(BATCH, 6), None)
    (note,) = update.notes
    assert note.startswith("the model draws random numbers (randn_like at test_replay.py, line ")
    assert Update(net(Noise), together).notes == []


# What can't be put back stops the run, names the likely cause, and changes nothing.


class Clock(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * (1 + time.perf_counter_ns() % 1000 / 1000)


class Hidden(nn.Module):
    """Draws from a generator that nobody can find."""

    def __init__(self) -> None:
        super().__init__()
        self.draw = iter(np.random.default_rng(0).random, None)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * next(self.draw)


class Counting(nn.Module):
    calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        return inputs * (1 + self.calls / 10)


class EditsLater(nn.Module):
    """Edits its inputs only where they are large, so that a look at a few samples does not see it."""

    def forward(self, inputs: Tensor) -> Tensor:
        if float(inputs.detach().max()) > 50:
            inputs.mul_(0.9)
        return inputs


@pytest.mark.parametrize("culprit", [Clock, Hidden, Counting])
def test_a_forward_that_can_t_be_repeated_stops_with_its_likely_cause(culprit: Any) -> None:
    model = net(culprit)
    inputs, before = torch.randn(BATCH, 6), [torch.randn(p.shape) for p in model.parameters()]
    for parameter, gradient in zip(model.parameters(), before, strict=True):
        parameter.grad = gradient.clone()
    streams = state()
    with pytest.raises(
        ModelError, match=r"(?s)couples samples|second forward of micro-batch 1 of 4 .* differ too: the"
    ):
        Update(model, together, micro_batch=3, method="two_pass").backward(inputs, None)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))
    assert state() == streams


def test_inputs_that_are_edited_in_place_are_cloned_or_found_out() -> None:
    class Edits(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs.mul_(2)

    def model(first: nn.Module) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(first, nn.Linear(6, 3))

    inputs = torch.randn(BATCH, 6)
    whole, parts = model(Edits()), model(Edits())
    Update(whole, together).backward(inputs.clone(), None)
    given = inputs.clone()
    Update(parts, together, micro_batch=3).backward(given, None)
    assert torch.allclose(whole[1].weight.grad, parts[1].weight.grad, rtol=1e-12)
    assert torch.equal(given, inputs)

    inputs[4] = 100.0
    late = model(EditsLater())
    with pytest.raises(ModelError, match="The model edits its inputs in place: let it clone them first"):
        Update(late, together, micro_batch=3).backward(inputs, None)
    assert all(p.grad is None for p in late.parameters())


def test_inputs_may_be_words_and_numbers_and_tensors_in_inference_mode() -> None:
    class Embeds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.drop = nn.Embedding(10, 3), nn.Dropout(0.5)

        def forward(self, inputs: dict[str, Any]) -> Tensor:
            rows = torch.tensor([len(word) for word in inputs["words"]])
            return self.drop(self.table(rows)) + inputs["weights"][:, None] + inputs["offset"]

    def batch() -> dict[str, Any]:
        with torch.inference_mode():
            weights = torch.rand(5, generator=torch.Generator().manual_seed(0))
        return {"words": ["a", "bb", "ccc", "dd", "e"], "weights": weights, "offset": torch.ones(3), "name": "batch"}

    gradients = []
    for micro_batch in (None, 2, 1):
        torch.manual_seed(0)
        model = Embeds()
        Update(model, together, micro_batch=micro_batch).backward(batch(), None)
        gradients.append(model.table.weight.grad)
    assert all(torch.allclose(g, gradients[0], rtol=1e-12) for g in gradients)


def test_memory_is_flat_over_many_steps() -> None:
    """No cache, graph or record outlives its batch: the number of tensors alive does not grow."""
    import gc

    model, inputs = net(Noise), torch.randn(BATCH, 6)
    update = Update(model, together, micro_batch=3)
    alive = []
    for step in range(50):
        outcome = update.backward(inputs, None, step=step)
        if step in (5, 49):
            gc.collect()
            alive.append(sum(type(each) is Tensor for each in gc.get_objects()))
    assert not outcome.outputs.requires_grad
    assert alive[0] == alive[1]
