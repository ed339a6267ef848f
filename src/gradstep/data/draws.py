"""Random numbers for the samples of a batch, each a function of (seed, epoch, sample) and of who asks.

A counter-based generator has no state: the numbers of a sample are computed from its counter, so they are the same in
whatever batch, process and order the sample comes. Philox4x32 with ten rounds: Salmon, Moraes, Dror and Shaw,
"Parallel random numbers: as easy as 1, 2, 3", SC11, section 3.3.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradstep.data.order import permutation
from gradstep.keys import key

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the key in each round
_ROUNDS = 10
_ATTEMPTS = 32  # at drawing λ, made at once
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)

Words = NDArray[np.uint64]  # numbers below 2**32, in 64 bits so that products have room


def philox(counter: Sequence[Words], key: tuple[int, int]) -> tuple[Words, Words, Words, Words]:
    """Four random words of 32 bits for each counter of four words, of any one shape, under one key of two words."""
    a, b, c, d = counter
    for number in range(_ROUNDS):
        first, second = (np.uint64((key[i] + number * _WEYL[i]) & 0xFFFFFFFF) for i in (0, 1))
        left, right = _MULTIPLIERS[0] * a, _MULTIPLIERS[1] * c
        a, b, c, d = (right >> _HALF) ^ b ^ first, right & _LOW, (left >> _HALF) ^ d ^ second, left & _LOW
    return a, b, c, d


@dataclass(frozen=True, slots=True)
class Draws:
    """The draws of one batch's samples in one epoch. `place` is the augmentation's place in its list.

    `samples` are the samples' numbers in their data set (int64, `[N]`).
    """

    seed: int
    epoch: int
    samples: Tensor
    place: int = 0

    def uniform(self, count: int) -> Tensor:
        """`[N, count]` float64 on the CPU, each in [0, 1); the first ones don't depend on how many are asked for."""
        numbers = self.samples.numpy().astype(np.uint64)[:, None]
        blocks = np.arange(math.ceil(count / 4), dtype=np.uint64)[None]
        counter = np.broadcast_arrays(numbers & _LOW, numbers >> _HALF, np.uint64(self.place), blocks)
        whole = key(self.seed, "augment", self.epoch)
        words = np.stack(philox(tuple(counter), (whole & 0xFFFFFFFF, whole >> 32)), -1)
        return torch.from_numpy(words.reshape(len(numbers), 4 * blocks.size)[:, :count] / 2.0**32)


@dataclass(frozen=True, slots=True)
class BatchDraws:
    """The draws of a batch as a whole: functions of (seed, step) and of the place in the list."""

    seed: int
    step: int
    place: int = 0

    def uniform(self, count: int, attempt: int = 0) -> list[float]:
        """`count` numbers in [0, 1); other ones for another `attempt`."""
        draws = Draws(key(self.seed, "mix", 0, self.step), attempt, torch.zeros(1, dtype=torch.int64), self.place)
        return [float(value) for value in draws.uniform(count)[0]]

    def beta(self, alpha: float) -> float:
        """One number of Beta(alpha, alpha). Jöhnk, "Erzeugung von betaverteilten Zufallszahlen", Metrika 8 (1964).

        In logarithms, because u**(1/alpha) is 0 in floating point where alpha is small. It is a loop of attempts, of
        which 1 in 2 succeeds for alpha = 1, and 1 in 70 for 4.
        """
        for several in itertools.count():
            u = iter(self.uniform(2 * _ATTEMPTS, several))
            for pair in zip(u, u, strict=True):
                x, y = (math.log(1.0 - each) / alpha for each in pair)
                together = float(np.logaddexp(x, y))
                if together <= 0.0:
                    return math.exp(x - together)
        raise AssertionError("the loop above does not end")

    def partners(self, count: int) -> Tensor:
        """A permutation of the batch's samples (int64, `[count]`)."""
        return permutation(count, self.seed, self.step, f"mix {self.place}")
