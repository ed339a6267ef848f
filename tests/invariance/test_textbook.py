"""The anchor of the contract: with `plan=plain, dropout=stream` a run is the hand-written loop, bit for bit."""

import copy

import pytest
import torch
from torch import Tensor, nn

import gradstep
from gradstep.data import permutation
from gradstep.keys import key

SAMPLES, BATCH, EPOCHS = 70, 16, 3  # the last batch of an epoch holds 6


def net() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Linear(12, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4)
    )


def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(SAMPLES, 12, generator=generator), torch.randint(4, (SAMPLES,), generator=generator)


def textbook(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int, rate=None) -> list[float]:
    """Ten lines that anybody would write, plus the seeds that gradstep says it uses."""
    inputs, targets = samples()
    criterion, losses, step = nn.CrossEntropyLoss(), [], 0
    model.train()
    for epoch in range(EPOCHS):
        for batch in permutation(SAMPLES, seed, epoch).split(BATCH):
            if rate is not None:
                optimizer.param_groups[0]["lr"] = rate(step)
            torch.manual_seed(key(seed, "model", index=step))
            optimizer.zero_grad()
            loss = criterion(model(inputs[batch]), targets[batch])
            loss.backward()
            optimizer.step()
            losses, step = [*losses, loss.item()], step + 1
    return losses


OPTIMIZERS = {
    "sgd with momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_run_is_the_textbook_loop_bit_for_bit(make, threads: int) -> None:
    torch.set_num_threads(threads)
    by_hand, by_gradstep = net(), net()
    losses = textbook(by_hand, make(by_hand.parameters()), seed=5)
    run = gradstep.fit(
        by_gradstep,
        nn.CrossEntropyLoss(),
        samples(),
        optimizer=make,
        epochs=EPOCHS,
        batch_size=BATCH,
        seed=5,
        plan="plain",
        dropout="stream",
        log_every="1 step",
        quiet=True,
    )
    for name, value in by_hand.state_dict().items():
        assert torch.equal(by_gradstep.state_dict()[name], value), name
    assert [row["train/running_loss"] for row in run.history if row["kind"] == "train"] == losses


def test_the_comparison_can_fail() -> None:
    """A loop with other seeds for its dropout masks ends elsewhere: bit-equality above says something."""
    one, other = net(), net()
    textbook(one, torch.optim.SGD(one.parameters(), lr=0.1), seed=5)
    textbook(other, torch.optim.SGD(other.parameters(), lr=0.1), seed=6)
    assert not torch.equal(one[0].weight, other[0].weight)


def test_steps_in_one_s_own_loop_are_the_steps_of_fit() -> None:
    by_fit, by_hand = net(), net()
    common = {"epochs": 2, "batch_size": BATCH, "seed": 3}
    gradstep.fit(by_fit, nn.CrossEntropyLoss(), samples(), optimizer=OPTIMIZERS["adam"], quiet=True, **common)
    outcomes = list(gradstep.steps(by_hand, nn.CrossEntropyLoss(), samples(), optimizer=OPTIMIZERS["adam"], **common))
    assert [outcome.step for outcome in outcomes] == list(range(1, 11))
    assert all(torch.equal(a, b) for a, b in zip(by_fit.parameters(), by_hand.parameters(), strict=True))


def test_a_schedule_of_the_user_s_own_is_what_a_hand_written_loop_would_set() -> None:
    def rate(step: int, base: float) -> float:
        return base / (1 + step)

    by_fit, by_hand = net(), net()
    gradstep.fit(
        by_fit,
        nn.CrossEntropyLoss(),
        samples(),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.5),
        schedule=rate,
        epochs=EPOCHS,
        batch_size=BATCH,
        dropout="stream",
        quiet=True,
    )
    textbook(by_hand, torch.optim.SGD(by_hand.parameters(), lr=0.5), seed=0, rate=lambda step: 0.5 / (1 + step))
    assert all(torch.equal(a, b) for a, b in zip(by_fit.parameters(), by_hand.parameters(), strict=True))


def test_lbfgs_is_the_textbook_closure_bit_for_bit() -> None:
    by_hand, by_fit = net(), net()
    inputs, targets = samples()

    def make(parameters):
        return torch.optim.LBFGS(parameters, lr=0.1, max_iter=3)

    optimizer, criterion = make(by_hand.parameters()), nn.CrossEntropyLoss()
    for step, batch in enumerate(permutation(SAMPLES, 0, 0).split(BATCH)):

        def closure(step=step, batch=batch) -> Tensor:
            torch.manual_seed(key(0, "model", index=step))
            optimizer.zero_grad()
            loss = criterion(by_hand(inputs[batch]), targets[batch])
            loss.backward()
            return loss

        optimizer.step(closure)
    gradstep.fit(by_fit, criterion, samples(), optimizer=make, epochs=1, batch_size=BATCH, dropout="stream", quiet=True)
    assert all(torch.equal(a, b) for a, b in zip(by_fit.parameters(), by_hand.parameters(), strict=True))


def test_row_t1_the_eight_lines_of_torch7() -> None:
    """Forward, criterion's gradient as a value, backward, p ← p − lr·g: equal to autograd's and to one step of fit."""
    inputs, targets = samples()
    criterion, lr = nn.CrossEntropyLoss(), 0.25
    model = net().eval()  # without dropout, so that the three ways draw nothing
    before = copy.deepcopy(model)
    twin = copy.deepcopy(model)

    outputs = model(inputs)
    loss, gradient = gradstep.criterion_gradient(criterion, outputs, targets)
    outputs.backward(gradient)
    torch.optim.SGD(model.parameters(), lr=lr).step()

    whole = criterion(twin(inputs), targets)
    whole.backward()
    assert torch.equal(loss, whole.detach())
    assert gradient.shape == outputs.shape
    for mine, old, theirs in zip(model.parameters(), before.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)
        assert torch.equal(mine, old - lr * mine.grad)
