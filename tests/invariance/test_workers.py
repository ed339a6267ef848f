"""The number of processes that load the data changes no batch, and so no weight."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import gradstep


class Noisy(Dataset):
    """A data set as users write them: it augments with whatever global stream is at hand."""

    def __len__(self) -> int:
        return 37

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        value = torch.full((6,), float(index)) / 37
        noise = torch.rand(6) + random.random() + torch.from_numpy(np.random.rand(6)).float()
        return value + 0.1 * noise, index % 3


def weights(workers: int, batch_size: int | None = 8, data=None) -> list[Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
    gradstep.fit(
        model,
        nn.CrossEntropyLoss(),
        data or Noisy(),
        Noisy(),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.5),
        epochs=3,
        batch_size=batch_size,
        workers=workers,
        quiet=True,
    )
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("workers", [1, 4])
def test_any_number_of_workers_gives_the_same_weights(workers: int) -> None:
    alone, several = weights(0), weights(workers)
    assert all(torch.equal(a, b) for a, b in zip(alone, several, strict=True))


def test_a_data_loader_with_workers_gives_the_same_weights_as_its_data_set() -> None:
    loader = DataLoader(Noisy(), batch_size=8, shuffle=True, num_workers=2)
    taken_apart, alone = weights(0, None, loader), weights(0)
    assert all(torch.equal(a, b) for a, b in zip(alone, taken_apart, strict=True))
