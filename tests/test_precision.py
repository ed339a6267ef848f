"""bf16 on request: where the machine gains by it, around the forward alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradstep
from gradstep import precision
from gradstep.errors import ChangedError, RecipeError

INPUTS = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(24) % 3


class Seeing(nn.Linear):
    """Notes the dtypes that it computes in."""

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = super().forward(inputs)
        self.seen = outputs.dtype
        return outputs


def fit(word: str, **more: Any) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(Seeing(6, 8), nn.ReLU(), nn.Linear(8, 3))
    seen: list[torch.dtype] = []

    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(outputs.dtype)
        return nn.functional.cross_entropy(outputs, targets)

    run = gradstep.fit(
        model, criterion, (INPUTS, TARGETS), (INPUTS, TARGETS), batch_size=8, device="cpu", quiet=True, precision=word,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9), **{"epochs": 2, **more},
    )  # fmt: skip
    return run, model, set(seen)


def test_a_cpu_that_would_be_slower_refuses_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda: False)
    with pytest.raises(
        RecipeError, match=r"tens of times slower than fp32 on a CPU without AVX-512-BF16 or AMX.*Write fp32"
    ):
        fit("bf16")


@pytest.mark.parametrize(
    ("word", "said"), [("fp16", "Write bf16"), ("bf61", "Did you mean 'bf16'"), (16, "none of fp32")]
)
def test_words_that_are_none_are_refused(word: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        fit(word)


def test_bf16_is_around_the_forward_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda: True)
    run, model, seen = fit("bf16")
    assert model[0].seen == torch.bfloat16
    assert seen == {torch.float32}  # the criterion's outputs
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    exact = fit("fp32")
    assert exact[1][0].seen == torch.float32
    rows = [[row["train/loss"] for row in each.history if row["kind"] == "epoch"] for each in (run, exact[0])]
    assert rows[0] != rows[1]
    assert rows[0] == pytest.approx(rows[1], rel=0.05)


def test_the_same_gradient_in_micro_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sample's forward is the same in bf16, whatever is beside it; only sums are rounded otherwise."""
    monkeypatch.setattr(precision, "has_bf16", lambda: True)
    updates = []
    for given in (None, 3):
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        model.load_state_dict(fit("fp32")[1].state_dict())
        forward = precision.forward_in("bf16", torch.device("cpu"), None)
        gradstep.Update(model, nn.CrossEntropyLoss(), micro_batch=given, forward=forward).backward(INPUTS, TARGETS)
        updates.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert float((updates[0] - updates[1]).norm() / updates[0].norm()) < 1e-2


def test_a_resume_in_another_precision_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda: True)
    fit("bf16", out=tmp_path, hooks=[gradstep.hooks.InterruptAt(1)])
    with pytest.raises(ChangedError, match="precision: bf16 -> fp32"):
        fit("fp32", out=tmp_path, resume=True)
