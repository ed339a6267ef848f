"""The small nets of the documents that gradstep grew from."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LeNet(nn.Module):
    """LeNet-5 with ReLU and max-pooling, as `features` and `classifier`; 62,006 parameters for 3 channels.

    Inputs `[N, channels, 32, 32]`, outputs `[N, classes]`, unnormalised.
    """

    def __init__(self, channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 6, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(16 * 5 * 5, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.classifier(torch.flatten(self.features(inputs), 1))
        return outputs
