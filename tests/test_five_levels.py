"""The five levels of `examples/five_levels.py` have the same losses at every step.

Here from the two starts of ten whose losses are furthest apart; `make results` has all ten.
"""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

PROGRAM = Path(__file__).resolve().parents[1] / "examples" / "five_levels.py"
SEEDS = (5, 6)


@pytest.fixture(scope="module")
def losses() -> dict[int, Tensor]:
    """The example's own losses by seed, `[steps, levels]` in float64."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(PROGRAM), "--seeds", *map(str, SEEDS)])
        return runpy.run_path(str(PROGRAM))["doubles"]


def test_there_are_500_steps_of_five_levels_that_learn(losses: dict[int, Tensor]) -> None:
    assert list(losses) == list(SEEDS)
    for columns in losses.values():
        assert columns.shape == (500, 5)
        assert (columns[0] > 1e7).all()
        assert (columns[-1] < 1).all()
    assert len({float(columns[0, 0]) for columns in losses.values()}) == len(SEEDS)


@pytest.mark.parametrize("seed", SEEDS)
def test_m_the_five_levels_agree_at_every_step(seed: int, losses: dict[int, Tensor]) -> None:
    torch.testing.assert_close(losses[seed], losses[seed][:, :1].expand(-1, 5), rtol=1e-8, atol=0)


@pytest.mark.parametrize("seed", SEEDS)
def test_m_tensors_by_hand_and_autograd_are_bitwise_equal(seed: int, losses: dict[int, Tensor]) -> None:
    assert torch.equal(losses[seed][:, 0], losses[seed][:, 1])


def test_m_the_last_level_is_another_summation(losses: dict[int, Tensor]) -> None:
    """The 1e-8 has something to forgive: gradstep shuffles the 64 samples of the batch, and sums round."""
    assert all(not torch.equal(columns[:, 0], columns[:, 4]) for columns in losses.values())
