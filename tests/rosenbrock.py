"""Rosenbrock's function: f, its gradient, and the usual place to begin at."""

from __future__ import annotations

import torch
from torch import Tensor


def rosenbrock(x: Tensor) -> tuple[float, Tensor]:
    """Sum of 100·(x[i+1] − x[i]²)² + (1 − x[i])², which is 0 at ones. A feval, with the gradient written out."""
    x = x.detach()
    apart, left = x[1:] - x[:-1].square(), 1 - x[:-1]
    df = torch.zeros_like(x)
    df[:-1] = -400 * x[:-1] * apart - 2 * left
    df[1:] += 200 * apart
    return float(100 * apart.dot(apart) + left.dot(left)), df


def far(n: int) -> Tensor:
    """−1.2, 1, −1.2, 1, ..., in float64."""
    return torch.tensor([-1.2, 1.0] * (n // 2), dtype=torch.float64)
