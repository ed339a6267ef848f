"""What a batch holds in memory at once: the graph of one micro-batch, and the outputs of all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradstep.update import Update


class Live:
    """Counts the bytes that graphs keep for their backward, and the most there were at once."""

    def __init__(self, model: nn.Module) -> None:
        self.own = {parameter.data_ptr() for parameter in model.parameters()}
        self.now = self.most = 0

    def keep(self, tensor: Tensor) -> Any:
        return tensor if tensor.data_ptr() in self.own else _Kept(self, tensor)

    def give(self, kept: Any) -> Tensor:
        return kept.tensor if isinstance(kept, _Kept) else kept


class _Kept:
    def __init__(self, live: Live, tensor: Tensor) -> None:
        self.live, self.tensor = live, tensor
        live.now += tensor.nbytes
        live.most = max(live.most, live.now)

    def __del__(self) -> None:
        self.live.now -= self.tensor.nbytes


def together(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets) * outputs.std()


CRITERIA: list[Any] = [nn.CrossEntropyLoss(), lambda o, t: F.cross_entropy(o, t), together]


@pytest.mark.parametrize("criterion", CRITERIA, ids=["by table", "among others", "two passes"])
@pytest.mark.parametrize("pieces", [4, 16])
def test_the_peak_is_that_of_one_micro_batch_and_not_of_the_batch(criterion: Any, pieces: int) -> None:
    def peak(micro_batch: int | None) -> int:
        torch.manual_seed(0)
        layers = [layer for _ in range(4) for layer in (nn.Linear(256, 256), nn.Tanh(), nn.Dropout(0.1))]
        model = nn.Sequential(*layers, nn.Linear(256, 4))
        inputs, targets = torch.randn(64, 256), torch.randint(4, (64,))
        update = Update(model, criterion, micro_batch=micro_batch)
        update.decide(inputs, targets)
        live = Live(model)
        with torch.autograd.graph.saved_tensors_hooks(live.keep, live.give):
            update.backward(inputs, targets)
        assert live.now == 0  # nothing outlives the batch
        return live.most

    whole, parts = peak(None), peak(64 // pieces)
    assert parts <= 1.1 * whole / pieces + 64 * 4 * 8 * 4  # and a few times all outputs, for the criterion
