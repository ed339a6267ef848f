"""A net of two layers at five levels of comfort, from tensors by hand to a module that gradstep trains.

From one start on one set of data, by the plain update w <- w - 1e-6 * g, all five have the same losses: torch's parts
save work, and change no mathematics. In float64 the columns agree at each of 500 steps. In float32 the rounding of
large sums shows where the loss has become small. `x @ w` and `Linear` hold their weights transposed to each other.

Run:     python examples/five_levels.py
Cost:    ten seconds; with --seeds 0 1 2 3 4 5 6 7 8 9, a minute
Result:  levels 1 and 2 are equal bit by bit, and all five to 1e-8 (relative) at every step; Adam ends below 1e-4
"""

import argparse

import torch
from torch import nn

import gradstep
from gradstep.models import TwoLayerNet, two_layer_data

STEPS, RATE = 500, 1e-6


def tensors(x, y, w1, w2):
    """Level 1: the forward, the loss and each gradient by hand."""
    w1, w2 = w1.clone(), w2.clone()
    for _ in range(STEPS):
        h = x.mm(w1)
        h_relu = h.clamp(min=0)
        y_pred = h_relu.mm(w2)
        yield (y_pred - y).pow(2).sum().item()
        grad_y_pred = 2.0 * (y_pred - y)
        grad_w2 = h_relu.t().mm(grad_y_pred)
        grad_h = grad_y_pred.mm(w2.t())
        grad_h[h < 0] = 0
        grad_w1 = x.t().mm(grad_h)
        w1 -= RATE * grad_w1
        w2 -= RATE * grad_w2


def autograd(x, y, w1, w2):
    """Level 2: the forward and the loss by hand; the gradients come of them."""
    w1, w2 = w1.clone().requires_grad_(), w2.clone().requires_grad_()
    for _ in range(STEPS):
        loss = (x.mm(w1).clamp(min=0).mm(w2) - y).pow(2).sum()
        yield loss.item()
        loss.backward()
        with torch.no_grad():
            w1 -= RATE * w1.grad
            w2 -= RATE * w2.grad
            w1.grad.zero_()
            w2.grad.zero_()


def layers(x, y, w1, w2):
    """Level 3: layers and a criterion of `nn`."""
    model, criterion = sequential(w1, w2), nn.MSELoss(reduction="sum")
    for _ in range(STEPS):
        loss = criterion(model(x), y)
        yield loss.item()
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= RATE * parameter.grad
        model.zero_grad()


def optimizer(x, y, w1, w2):
    """Level 4: an optimizer updates the weights."""
    model, criterion = sequential(w1, w2), nn.MSELoss(reduction="sum")
    sgd = torch.optim.SGD(model.parameters(), lr=RATE)
    for _ in range(STEPS):
        loss = criterion(model(x), y)
        yield loss.item()
        sgd.zero_grad()
        loss.backward()
        sgd.step()


def module(x, y, w1, w2):
    """Level 5: a module of one's own, and gradstep has the loop."""
    model = started(TwoLayerNet(), "linear1", "linear2", w1, w2)
    return fitted(model, x, y, lambda parameters: torch.optim.SGD(parameters, lr=RATE))


def as_the_document_ends(seed):
    """The document's own level 5: torch's start, Adam, float32."""
    torch.manual_seed(seed)
    return fitted(TwoLayerNet(), *two_layer_data(seed), lambda parameters: torch.optim.Adam(parameters, lr=1e-4))


def fitted(model, x, y, optimizer):
    """The loss of each step of `fit`, which shuffles: the same 64 samples are summed in another order each time."""
    run = gradstep.fit(
        model,
        nn.MSELoss(reduction="sum"),
        (x, y),
        optimizer=optimizer,
        batch_size=64,
        steps=STEPS,
        log_every="1 step",
        checkpoint="500 epochs",  # the batch is the whole epoch here, and the weights are not needed after each
        plan="plain",
        quiet=True,
    )
    return [row["train/running_loss"] for row in run.history if row["kind"] == "train"]


def sequential(w1, w2):
    (inputs, hidden), outputs = w1.shape, w2.shape[1]
    model = nn.Sequential(nn.Linear(inputs, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, outputs, bias=False))
    return started(model, "0", "2", w1, w2)


def started(model, first, second, w1, w2):
    """The model with these weights, and of their dtype."""
    model.to(w1.dtype).load_state_dict({f"{first}.weight": w1.t(), f"{second}.weight": w2.t()})
    return model


LEVELS = (tensors, autograd, layers, optimizer, module)


def five_columns(seed, dtype):
    """The losses of each level, `[500, 5]` in float64, from one start: weights from N(0, 1), as the document draws."""
    generator = torch.Generator().manual_seed(gradstep.keys.key(seed, "five levels"))
    start = torch.randn(1000, 100, generator=generator), torch.randn(100, 10, generator=generator)
    given = [tensor.to(dtype) for tensor in (*two_layer_data(seed), *start)]
    return torch.tensor([list(level(*given)) for level in LEVELS], dtype=torch.float64).t()


def apart(columns):
    """How far the levels are from the first at each step, relative to it: the farthest of them."""
    return ((columns - columns[:, :1]) / columns[:, :1]).abs().amax(1)


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--seeds", type=int, nargs="+", default=[0])
seeds = parser.parse_args().seeds
doubles = {seed: five_columns(seed, torch.float64) for seed in seeds}

first = seeds[0]
singles, adam = five_columns(first, torch.float32), as_the_document_ends(first)
print(f"seed {first}\nstep" + "".join(f"{level.__name__:>14}" for level in LEVELS) + "   float32 apart  Adam 1e-4")
for step in (*range(0, STEPS, 50), STEPS - 1):
    losses = "".join(f"{loss:14.6e}" for loss in doubles[first][step].tolist())
    print(f"{step:4d}{losses}{apart(singles)[step]:16.1e}{adam[step]:11.2e}")
for seed, columns in doubles.items():
    print(f"seed {seed}: at most {apart(columns).max():.1e} apart in float64, at step {apart(columns).argmax()}")

assert all(torch.equal(columns[:, 0], columns[:, 1]) for columns in doubles.values())
assert all(apart(columns).max() <= 1e-8 for columns in doubles.values())
assert apart(singles).max() <= 0.1
assert adam[-1] <= 1e-4
