"""The moving average of the weights: torch's arithmetic, evaluated and chosen by a switch, and never in the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import gradstep
from gradstep.errors import RecipeError
from gradstep.hooks import InterruptAt
from gradstep.state import module_tensors


def data(count: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(count, 6, generator=generator)
    return inputs, (inputs[:, 0] * inputs[:, 1] > 0).long()


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))


class Weights:
    """The model after each step, and what was evaluated."""

    def __init__(self) -> None:
        self.models: list[dict[str, Tensor]] = []
        self.losses: list[float] = []

    def on_train_batch_end(self, state: Any, outcome: Any) -> None:
        self.models.append({name: value.clone() for name, value in state.model.state_dict().items()})

    def on_validation_end(self, state: Any, row: Any) -> None:
        self.losses.append(row["valid/loss"])
        expected = gradstep.evaluate(state.judged, nn.CrossEntropyLoss(), data(16), batch_size=10)
        assert row["valid/loss"] == expected["loss"]


def fit(**more: Any) -> gradstep.Run:
    settings = {"epochs": 4, "batch_size": 10, "quiet": True} | more
    make = lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9)  # noqa: E731
    return gradstep.fit(net(), nn.CrossEntropyLoss(), data(), data(16), optimizer=make, **settings)


def average_of(models: list[dict[str, Tensor]], decay: float) -> dict[str, Tensor]:
    """By torch's own class, over the models that a run went through."""
    model = net()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    for each in models:
        model.load_state_dict(each)
        averaged.update_parameters(model)
    return dict(averaged.module.state_dict())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("ema", "first"), [(0.8, 0), ({"decay": 0.5, "start": "1 epoch"}, 4), ({"decay": 0.99}, 0)])
def test_it_is_torchs_average_of_the_weights_after_each_step(ema: Any, first: int) -> None:
    watch = Weights()
    run = fit(ema=ema, hooks=[watch])
    assert run.state is not None
    assert run.state.ema is not None
    decay = ema["decay"] if isinstance(ema, dict) else ema
    assert same(dict(run.state.ema.module.state_dict()), average_of(watch.models[first:], decay))
    assert int(run.state.ema.averaged.n_averaged) == 16 - first


def test_training_itself_is_the_same_bit_for_bit() -> None:
    assert same(dict(fit(ema=0.9).model.state_dict()), dict(fit().model.state_dict()))


def test_the_average_is_what_is_evaluated_chosen_and_predicted_with() -> None:
    watch = Weights()
    run = fit(ema=0.9, hooks=[watch], monitor="valid/loss")
    assert watch.losses != [row["valid/loss"] for row in fit().history if row["kind"] == "valid"]
    assert run.best is not None
    expected = average_of(watch.models[: run.best.step], 0.9)
    with run.chosen() as model:
        assert same(dict(model.state_dict()), expected)
        outputs = model.eval()(data(16)[0])
    assert torch.equal(gradstep.predict(run, data(16)[0]), outputs)
    assert same(dict(run.model.state_dict()), watch.models[-1])  # and the user's model holds the last step's


def test_before_it_begins_the_model_itself_is_judged() -> None:
    started = fit(ema={"decay": 0.9, "start": "2 epochs"})
    plain = fit()
    losses = [[row["valid/loss"] for row in run.history if row["kind"] == "valid"] for run in (started, plain)]
    assert losses[0][:2] == losses[1][:2]
    assert losses[0][2:] != losses[1][2:]


def test_switched_off_it_is_kept_and_everything_else_is_as_without_it(tmp_path: Path) -> None:
    run, plain = fit(ema={"decay": 0.9, "evaluate": False}, out=tmp_path), fit()
    assert run.history == plain.history
    assert run.path is not None
    kept = gradstep.load(run.path, model=net())
    with plain.chosen() as model:
        assert same(dict(kept.model.state_dict()), dict(model.state_dict()))
    assert (run.path / "checkpoints/step-00000016/ema.safetensors").exists()


@pytest.mark.parametrize("ema", [0.9, {"decay": 0.9, "start": "6 steps"}, {"decay": 0.9, "evaluate": False}])
def test_a_run_that_was_interrupted_has_the_same_average_and_files(ema: Any, tmp_path: Path) -> None:
    whole = fit(ema=ema, out=tmp_path / "whole", name="net")
    fit(ema=ema, out=tmp_path / "parts", name="net", hooks=[InterruptAt(2)])
    resumed = fit(ema=ema, out=tmp_path / "parts", name="net", resume=True)
    for file in ("metrics.jsonl", "model.safetensors", "checkpoints/step-00000016/ema.safetensors"):
        assert (whole.path / file).read_bytes() == (resumed.path / file).read_bytes(), file
    assert int(resumed.state.ema.averaged.n_averaged) == int(whole.state.ema.averaged.n_averaged)


def test_without_a_validation_the_last_average_is_what_is_saved(tmp_path: Path) -> None:
    make = lambda p: torch.optim.SGD(p, lr=0.3)  # noqa: E731
    watch = Weights()
    run = gradstep.fit(
        net(), nn.CrossEntropyLoss(), data(), optimizer=make, epochs=2, batch_size=10, ema=0.9, out=tmp_path,
        hooks=[watch], quiet=True,
    )  # fmt: skip
    expected = average_of(watch.models, 0.9)
    assert same(dict(gradstep.load(run.path, model=net()).model.state_dict()), expected)
    assert same(module_tensors(run.state.judged), expected)


def test_one_that_would_begin_after_the_end_is_told_with_both_lengths(capsys: pytest.CaptureFixture[str]) -> None:
    run = fit(ema={"decay": 0.9, "start": "4 epochs"}, quiet=False)
    assert "ema: it begins after 4 epochs, and the run has 16 steps" in capsys.readouterr().out
    assert run.state.judged is run.model


def test_another_average_can_not_go_on_with_the_run(tmp_path: Path) -> None:
    fit(ema=0.9, out=tmp_path, name="net", hooks=[InterruptAt(2)])
    for other in (None, 0.8, {"decay": 0.9, "start": "1 epoch"}):
        with pytest.raises(gradstep.errors.ChangedError, match=r"ema: .* -> "):
            fit(ema=other, out=tmp_path, name="net", resume=True)


@pytest.mark.parametrize(
    ("ema", "said"),
    [
        (1.0, r"ema\.decay: 1\.0 is not between 0 and 1"),
        (0, r"ema\.decay: 0 is"),
        ("0.9", r"ema\.decay: '0\.9'"),
        ({"deacy": 0.9}, r"there is no 'deacy'.*Did you mean 'decay'"),
        ({"decay": 0.9, "start": 3}, r"ema\.start: 3 is not a duration"),
        ({"decay": 0.9, "evaluate": "yes"}, r"ema\.evaluate: 'yes' is neither True nor False"),
    ],
)
def test_a_wrong_setting_is_an_error_before_the_first_step(ema: Any, said: str) -> None:
    watch = Weights()
    with pytest.raises(RecipeError, match=said):
        fit(ema=ema, hooks=[watch])
    assert watch.models == []
