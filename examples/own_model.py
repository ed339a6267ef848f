"""Your own model, two losses at once, a metric of your own, and the run that comes of it.

Run:     python examples/own_model.py
Cost:    a few seconds
Result:  validation accuracy >= 0.93; the run's weights are chosen by it
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradstep
from gradstep import data


class Net(nn.Module):
    """Classifies a digit and draws it again: two outputs, two losses."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.1))
        self.classify, self.draw = nn.Linear(64, 10), nn.Linear(64, 64)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        code = self.encoder(images)
        return {"classes": self.classify(code), "drawing": self.draw(code)}


def unpack(batch):
    """The drawing's target is the image itself."""
    images, labels = batch
    return images, {"label": labels, "image": images.flatten(1)}


def criterion(outputs, targets):
    """Named terms: their sum is the loss, and each is recorded."""
    return {
        "classes": F.cross_entropy(outputs["classes"], targets["label"]),
        "drawing": 0.5 * F.mse_loss(outputs["drawing"], targets["image"]),
    }


def accuracy(outputs, targets):
    return (outputs["classes"].argmax(1) == targets["label"]).float()  # one value per sample


train, valid = data.split(data.load_named("digits").train, 0.2)
splits = data.prepare(data.Splits(train, valid), [data.ToFloat(), data.SubtractMean()])
torch.manual_seed(0)
run = gradstep.fit(
    Net(),
    criterion,
    splits.train,
    splits.valid,
    optimizer=lambda parameters: torch.optim.Adam(parameters, lr=3e-3),
    schedule=gradstep.schedules.cosine(warmup="1 epoch"),
    epochs=10,
    batch_size=32,
    metrics=[accuracy],
    monitor={"name": "valid/accuracy", "mode": "max"},
    patience="5 epochs",
    unpack=unpack,
)
print(run.best)
predictions = gradstep.predict(run, splits.valid)["classes"].argmax(1)
print(f"the first predictions: {predictions[:10].tolist()}")
assert run.best is not None
assert run.best.value >= 0.93
