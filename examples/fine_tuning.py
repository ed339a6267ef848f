"""Fine-tuning: what LeNet has learned of one kind of digits helps it with another, of which there are few.

LeNet learns MNIST for a moment. Its weights go over to scikit-learn's digits, 8 x 8 images made 32 x 32, all but the
last layer's, which starts anew. Each part of the net has a rate of its own: the features stand still for two epochs,
while the new layer finds its feet, and then follow slowly. The same net is trained from scratch as long, at several
rates, of which the best counts.

Run:     python examples/fine_tuning.py
Cost:    20 seconds
Result:  fine-tuned on 100 digits, LeNet recognises at least 0.75 of 800 others, 0.15 more than from scratch
"""

import os
from pathlib import Path

import torch
from torch import nn

import gradstep
from gradstep import data

SAMPLES, EPOCHS = 100, 10
os.environ.setdefault("GRADSTEP_DATA", str(Path(__file__).resolve().parents[2] / "shared" / "data"))


def part(name, first, last, *transforms):
    """Some of a data set's training images, as float32 [1, 32, 32] from 0 to 1."""
    some = data.Part(data.load_named(name).train, torch.arange(first, last))
    return data.prepare(data.Splits(some), [data.ToFloat(), *transforms, data.Resize(32)]).train


def lenet(seed):
    torch.manual_seed(seed)
    return gradstep.models.LeNet(channels=1)


def trained(model, train, valid, optimizer, epochs, hooks=()):
    return gradstep.fit(
        model,
        nn.CrossEntropyLoss(),
        train,
        valid,
        optimizer=optimizer,
        batch_size=20,
        epochs=epochs,
        metrics=["accuracy"],
        hooks=hooks,
        quiet=True,
    )


def accuracies(run):
    return [row["valid/accuracy"] for row in run.history if row["kind"] == "valid"]


class Watch:
    """Notes after each epoch which parts of the model have moved from where they were."""

    def __init__(self, model):
        self.start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        self.moved = []

    def on_epoch_end(self, state):
        now = dict(state.model.named_parameters())
        self.moved.append({name.split(".")[0] for name, old in self.start.items() if not torch.equal(now[name], old)})


# One net learns MNIST, and hands its weights over.

digits, others = part("digits", 0, SAMPLES), part("digits", 800, 1600)
to_the_digit = data.CenterCrop(20)  # MNIST leaves a margin of 4 pixels, the digits have none
source = trained(
    lenet(0),
    part("mnist", 0, 6000, to_the_digit),
    part("mnist", 50_000, 50_500, to_the_digit),
    lambda parameters: torch.optim.SGD(parameters, lr=0.02, momentum=0.9),
    epochs=2,
)
print(f"LeNet on MNIST: accuracy {accuracies(source)[-1]:.3f}")

model = lenet(1)
learned = {name: value for name, value in source.model.state_dict().items() if not name.startswith("classifier.4")}
model.load_state_dict(learned, strict=False)

# The new task.

groups = {"features": {"lr": 1e-3, "freeze": "2 epochs"}, "classifier.4": {"lr": 1e-2}}
watch = Watch(model)
tuned = trained(
    model,
    digits,
    others,
    lambda _: torch.optim.SGD(gradstep.param_groups(model, groups, lr=3e-3, momentum=0.9)),
    EPOCHS,
    hooks=[watch],
)


def from_scratch(rate):
    return trained(
        lenet(1), digits, others, lambda parameters: torch.optim.SGD(parameters, lr=rate, momentum=0.9), EPOCHS
    )


scratch = {rate: from_scratch(rate) for rate in (3e-3, 1e-2, 3e-2)}
best = max(scratch, key=lambda rate: accuracies(scratch[rate])[-1])

print(f"epoch   fine-tuned   from scratch at {best:g}   moved by fine-tuning")
for epoch, (ours, theirs) in enumerate(zip(accuracies(tuned), accuracies(scratch[best]), strict=True), 1):
    print(f"{epoch:5d} {ours:12.3f} {theirs:14.3f} {' ' * 14} {', '.join(sorted(watch.moved[epoch - 1]))}")
final = {rate: accuracies(run)[-1] for rate, run in scratch.items()}
print("from scratch: " + ", ".join(f"{accuracy:.3f} at {rate:g}" for rate, accuracy in final.items()))

assert watch.moved[:2] == [{"classifier"}] * 2  # the features stood still for two epochs
assert watch.moved[2:] == [{"classifier", "features"}] * (EPOCHS - 2)
assert accuracies(tuned)[-1] >= 0.75
assert accuracies(tuned)[-1] >= final[best] + 0.15
