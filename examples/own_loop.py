"""The loop in your own hands: the steps of `fit`, one at a time, with the lines of a course's training loop.

Every 10 batches it prints the loss and how many samples were really seen.

Run:     python examples/own_loop.py
Cost:    a few seconds
Result:  test accuracy >= 0.90 after 3 epochs, the mean loss taken per sample
"""

import torch
from torch import nn

import gradstep
from gradstep import data

train, test = data.split(data.load_named("digits").train, 0.2, "test")
splits = data.prepare(data.Splits(train, None, test), [data.ToFloat()])
torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
criterion = nn.CrossEntropyLoss()

seen = 0
for outcome in gradstep.steps(
    model,
    criterion,
    splits.train,
    optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    epochs=3,
    batch_size=64,
):
    seen += outcome.samples
    if outcome.step % 10 == 0:
        print(f"loss: {outcome.loss:>7f}  [{seen:>5d}/{3 * len(splits.train)}]")

measured = gradstep.evaluate(model, criterion, splits.test, metrics="accuracy")
print(f"Test: accuracy {100 * measured['accuracy']:.1f} %, mean loss {measured['loss']:.6f}")
assert seen == 3 * len(splits.train)
assert measured["accuracy"] >= 0.90
