"""bf16 and fp16 on request: where the machine gains by it, around the forward alone, small gradients scaled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradstep
from gradstep import precision
from gradstep.errors import ChangedError, DivergedError, RecipeError

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
    monkeypatch.setattr(precision, "has_fp16", lambda: False)
    with pytest.raises(RecipeError, match=r"many times slower than fp32 on a CPU without AMX-FP16.*Write fp32"):
        fit("fp16")


@pytest.mark.parametrize(("word", "said"), [("bf61", "Did you mean 'bf16'"), (16, "none of fp32, bf16, fp16")])
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


# fp16: on a processor that says it is quick at it; the arithmetic is the same on one that is slow.


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_fp16", lambda: True)


def trained(word: str, factor: float, rate: float, **more: Any) -> Any:
    """A training whose loss is multiplied by `factor`, its steps made as large again by the rate."""
    torch.manual_seed(0)
    model = nn.Sequential(Seeing(6, 8), nn.ReLU(), nn.Linear(8, 3))

    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets) * factor

    return gradstep.fit(
        model, criterion, (INPUTS, TARGETS), batch_size=8, device="cpu", quiet=True, precision=word,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=rate), **{"epochs": 2, **more},
    )  # fmt: skip


def weights(run: Any) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in run.model.parameters()])


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("micro_batch", [None, 3])
def test_gradients_that_fp16_can_t_hold_are_scaled(micro_batch: int | None) -> None:
    run = trained("fp16", 1e-8, 1e7, micro_batch=micro_batch)  # ∂loss/∂outputs is 1e-9, the least number 6e-8
    assert run.model[0].seen == torch.float16
    exact, start = weights(trained("fp32", 1e-8, 1e7)), weights(trained("fp32", 1e-8, 0.0))
    assert float((weights(run) - exact).norm() / (exact - start).norm()) < 0.05
    assert run.state.scale.value == 2.0**16
    assert run.state.scale.steps == 6


@pytest.mark.usefixtures("quick")
def test_a_gradient_that_overflows_halves_the_scale_and_changes_nothing_else() -> None:
    one = trained("fp16", 100.0, 1e-3, epochs=None, steps=1)  # 100 · 65,536 / 8 is beyond 65,504
    assert torch.equal(weights(one), weights(trained("fp32", 100.0, 0.0)))
    assert one.state.scale.value == 2.0**15
    run = trained("fp16", 100.0, 1e-3)
    rows = [row["step"] for row in run.history if row["kind"] == "left_out"]
    assert rows
    assert rows == list(range(1, len(rows) + 1))
    assert run.state.scale.value == 2.0 ** (16 - len(rows))
    assert run.state.left_out == []  # of those there may be ten in a run
    assert not torch.equal(weights(run), weights(one))


@pytest.mark.usefixtures("quick")
def test_clipping_sees_the_gradient_and_not_its_scale() -> None:
    clipped, exact = (trained(word, 1.0, 1.0, clip={"norm": 0.1}, epochs=None, steps=1) for word in ("fp16", "fp32"))
    start = weights(trained("fp32", 1.0, 0.0))
    assert float((weights(clipped) - start).norm()) == pytest.approx(0.1, rel=1e-4)
    assert float((weights(clipped) - weights(exact)).norm()) < 2e-3


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_resume_goes_on_with_the_scale(tmp_path: Any, at: int) -> None:
    class Pause:
        def on_train_batch_end(self, state: Any, outcome: Any) -> Any:
            return gradstep.Request.PAUSE if state.step == at else None

    whole = trained("fp16", 100.0, 1e-3)
    assert trained("fp16", 100.0, 1e-3, out=tmp_path, hooks=[Pause()]).state.step == at
    resumed = trained("fp16", 100.0, 1e-3, out=tmp_path, resume=True)
    assert torch.equal(weights(resumed), weights(whole))
    assert resumed.state.scale == whole.state.scale


@pytest.mark.usefixtures("quick")
def test_a_gradient_that_is_no_number_at_any_scale_ends_the_run() -> None:
    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs * 0).sum().abs().sqrt() + nn.functional.cross_entropy(outputs, TARGETS[: len(outputs)])

    with pytest.raises(DivergedError, match="a gradient of step 17 is no finite number"):
        gradstep.fit(
            nn.Linear(6, 3), criterion, (INPUTS, TARGETS), batch_size=8, device="cpu", quiet=True, precision="fp16",
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1), epochs=10,
        )  # fmt: skip


@pytest.mark.usefixtures("quick")
def test_a_search_along_the_loss_is_refused_in_fp16() -> None:
    with pytest.raises(RecipeError, match="LBFGS searches along a loss"):
        gradstep.fit(
            nn.Linear(6, 3), nn.CrossEntropyLoss(), (INPUTS, TARGETS), batch_size=8, epochs=1, device="cpu",
            precision="fp16", quiet=True, optimizer=lambda parameters: torch.optim.LBFGS(parameters),
        )  # fmt: skip


@pytest.mark.usefixtures("quick")
def test_a_model_in_float16_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"'weight' is float16\. Write model\.float"):
        gradstep.fit(
            nn.Linear(6, 3).half(), nn.CrossEntropyLoss(), (INPUTS, TARGETS), batch_size=8, epochs=1, device="cpu",
            precision="fp16", quiet=True, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        )  # fmt: skip


@pytest.mark.usefixtures("quick")
def test_buffers_are_as_before_a_step_that_overflowed() -> None:
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3))
    run = gradstep.fit(
        model, lambda outputs, targets: nn.functional.cross_entropy(outputs, targets) * 1e4, (INPUTS, TARGETS),
        batch_size=8, steps=1, device="cpu", precision="fp16", quiet=True, on_nonfinite="skip",
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )  # fmt: skip
    assert run.state.scale.value == 2.0**15
    assert run.state.left_out == []
    assert int(model[0].num_batches_tracked) == 0
    assert not model[0].running_mean.any()


def test_a_scale_that_has_held_for_long_is_doubled() -> None:
    scale = precision.LossScale(2.0**10)
    for _ in range(2000):
        scale.keep()
    assert scale == precision.LossScale(2.0**11, 0)
    scale.halve()
    assert scale == precision.LossScale(2.0**10, 0)
