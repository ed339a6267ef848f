"""The small nets of the documents that gradstep grew from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gradstep.keys import key


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


class Torch7Net(nn.Module):
    """The net of Torch7's table: two convolutions, with no ReLU after them, and two linear layers; 431,080 parameters.

    Inputs `[N, 1, 28, 28]`, outputs `[N, 10]`, logarithms of probabilities: the criterion is `NLLLoss`. The inputs are
    multiplied by `scale`: what lies in [0, 1], less its mean, becomes the document's (pixel - mean) * 3.2 / 256.
    """

    def __init__(self, scale: float = 3.2 * 255 / 256) -> None:
        super().__init__()
        self.scale = scale
        self.features = nn.Sequential(nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2))
        self.classifier = nn.Sequential(nn.Linear(50 * 4 * 4, 500), nn.ReLU(), nn.Linear(500, 10), nn.LogSoftmax(1))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.classifier(torch.flatten(self.features(inputs * self.scale), 1))
        return outputs


class TwoLayerNet(nn.Module):
    """Two linear layers without biases and a ReLU between them: the net of the five levels, from tensors to modules.

    Inputs `[N, inputs]`, outputs `[N, outputs]`.
    """

    def __init__(self, inputs: int = 1000, hidden: int = 100, outputs: int = 10) -> None:
        super().__init__()
        self.linear1 = nn.Linear(inputs, hidden, bias=False)
        self.linear2 = nn.Linear(hidden, outputs, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.linear2(self.linear1(inputs).clamp(min=0))
        return outputs


def two_layer_data(seed: int = 0, samples: int = 64, inputs: int = 1000, outputs: int = 10) -> tuple[Tensor, Tensor]:
    """`(x, y)` for `TwoLayerNet`: float32 `[samples, inputs]` and `[samples, outputs]`, all drawn from N(0, 1).

    They are a function of the arguments alone, and no stream but their own is drawn from. There is nothing in them to
    be learned: a net that fits them has learned them by heart.
    """
    generator = torch.Generator().manual_seed(key(seed, "two_layer_data"))
    return torch.randn(samples, inputs, generator=generator), torch.randn(samples, outputs, generator=generator)


class ConvNet(nn.Module):
    """A small net for images of any size from 8×8 up: stages of convolution, GroupNorm, ReLU and halving, then a mean.

    Inputs `[N, channels, H, W]`; outputs `[N, outputs]`, or `[N]` of a single one where `squeeze`. GroupNorm, and
    not BatchNorm, because what it makes of a sample does not depend on the batch.
    """

    def __init__(
        self, channels: int = 3, outputs: int = 10, width: int = 32, stages: int = 3, squeeze: bool = False
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for stage in range(stages):
            before, after = (channels if stage == 0 else width * 2 ** (stage - 1)), width * 2**stage
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(8, after), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(width * 2 ** (stages - 1), outputs)
        self.squeeze = squeeze

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.features(inputs).mean((2, 3)))
        return outputs.squeeze(1) if self.squeeze else outputs


class MLP(nn.Module):
    """Two hidden layers for rows of numbers: inputs `[N, ...]`, flattened to `inputs` numbers.

    Outputs `[N, outputs]`, or `[N]` of a single one where `squeeze`; `center` + `spread` times what the layers give,
    so that targets of any size are in reach from the start.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int = 10,
        hidden: int = 64,
        center: float = 0.0,
        spread: float = 1.0,
        squeeze: bool = False,
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(inputs, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, outputs),
        )
        self.squeeze, self.center, self.spread = squeeze, center, spread

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.center + self.spread * self.layers(inputs)
        return outputs.squeeze(1) if self.squeeze else outputs
