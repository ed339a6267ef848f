"""Which samples form which batch: a pure function of (seed, epoch), the same on every machine and version."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gradstep.keys import key

VERSION = 1  # of the algorithm below; kept in a run's state, so that an old run is never resumed in a new order


def permutation(length: int, seed: int, epoch: int, purpose: str = "order") -> Tensor:
    """A random order of `range(length)`: int64, shape `[length]`.

    Version 1: the stable argsort of the first `length` 64-bit outputs of Philox-4x64-10 (Salmon et al., SC 2011)
    under the key of (seed, purpose, epoch). NumPy promises the raw stream of a bit generator for good, which it
    does not for `Generator.permutation` (NEP 19), nor torch for `randperm`.
    """
    draws = np.random.Philox(key=key(seed, purpose, epoch)).random_raw(length)
    order = np.argsort(draws)  # three times as fast as a stable sort, and the same where no two draws are
    ordered = draws[order]
    if bool((ordered[1:] == ordered[:-1]).any()):
        order = np.argsort(draws, kind="stable")
    return torch.from_numpy(order)
