"""Evaluating, logging, hooks, progress and saving change nothing of a run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gradstep
from gradstep import hooks as hooks_room
from tests.invariance.test_textbook import samples


class Busy(nn.Module):
    """All that an evaluation might disturb: dropout, BatchNorm, a frozen part, a buffer that each forward moves."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.norm, self.drop = nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Dropout(0.4)
        self.frozen = nn.BatchNorm1d(16).eval()
        self.last = nn.Linear(16, 4)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        return self.last(self.frozen(self.drop(self.norm(self.first(inputs)).relu())) + torch.randn(16) * 0.01)


def train(**changes: Any) -> tuple[dict[str, Tensor], gradstep.Run]:
    model = Busy()
    arguments = {
        "optimizer": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        "epochs": 3,
        "batch_size": 16,
        "quiet": True,
        "seed": 2,
    } | changes
    run = gradstep.fit(model, nn.CrossEntropyLoss(), samples(), **arguments)
    return model.state_dict(), run


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture
def alone() -> dict[str, Tensor]:
    """The weights of a run that nobody watches."""
    return train()[0]


@pytest.mark.parametrize("every", ["1 step", "3 steps", "1 epoch", "2 epochs"])
def test_how_often_one_evaluates_changes_no_weight(alone, every: str) -> None:
    state, run = train(valid=samples(), test=samples(), metrics=["accuracy"], evaluate_every=every, evaluate_train=True)
    assert same(alone, state)
    assert any(row["kind"] == "valid" for row in run.history)


@settings(max_examples=15, deadline=None)
@given(every=st.integers(1, 20), log=st.integers(1, 20), save=st.integers(1, 20), metrics=st.booleans())
def test_no_cadence_of_watching_changes_a_weight(
    tmp_path_factory, every: int, log: int, save: int, metrics: bool
) -> None:
    state, _ = train(
        valid=samples(),
        evaluate_every=f"{every} steps",
        log_every=f"{log} steps",
        checkpoint={"every": f"{save} steps", "keep": 1},
        metrics=["accuracy"] if metrics else None,
        out=tmp_path_factory.mktemp("runs"),
    )
    assert same(train()[0], state)


class Everything:
    """A hook with every method, which reads all it is given and draws from every global stream."""

    def _look(self, *things: Any) -> None:
        torch.rand(3)
        for thing in things:
            if isinstance(thing, gradstep.TrainState):
                assert all(bool(p.isfinite().all()) for p in thing.model.parameters())

    on_train_start = on_train_batch_end = on_row = on_train_epoch_end = on_validation_end = _look
    on_epoch_end = on_save_checkpoint = on_train_end = on_exception = _look


def test_hooks_change_no_weight(alone, tmp_path: Path) -> None:
    assert set(hooks_room.EVENTS) <= set(dir(Everything))
    tensorboard = gradstep.TensorBoard(histograms="2 steps", folder=tmp_path)
    state, _ = train(hooks=[Everything(), tensorboard], valid=samples())
    assert same(alone, state)


def test_a_place_on_disk_changes_no_weight(alone, tmp_path: Path) -> None:
    assert same(alone, train(out=tmp_path)[0])


def test_equal_runs_leave_equal_files(tmp_path: Path) -> None:
    arguments = {"valid": samples(), "test": samples(), "metrics": ["accuracy", "confusion_matrix"], "name": "twin"}
    one = train(out=tmp_path / "one", log_every="1 step", **arguments)[1].path
    other = train(out=tmp_path / "other", log_every="1 step", **arguments)[1].path
    for name in ("metrics.jsonl", "model.safetensors", "plan.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    newest = max((one / "checkpoints").iterdir()).name
    manifests = [(run / "checkpoints" / newest / "MANIFEST.json").read_bytes() for run in (one, other)]
    assert manifests[0] == manifests[1]  # it holds the hash of every file of the checkpoint
    assert len((one / "metrics.jsonl").read_bytes()) > 1000


def test_evaluate_leaves_everything_as_it_was() -> None:
    model = Busy().train()
    model.frozen.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    stream = torch.get_rng_state()
    first = gradstep.evaluate(model, nn.CrossEntropyLoss(), samples(), batch_size=9, metrics="accuracy")
    assert torch.equal(torch.get_rng_state(), stream)
    assert [module.training for module in model.modules()] == modes
    assert same(before, model.state_dict())
    assert first == gradstep.evaluate(model, nn.CrossEntropyLoss(), samples(), batch_size=9, metrics="accuracy")


def test_fit_leaves_the_global_streams_and_modes_as_it_found_them() -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    model = Busy()
    torch.manual_seed(123)
    modes = [module.training for module in model.modules()]
    gradstep.fit(
        model, nn.CrossEntropyLoss(), samples(), optimizer=lambda p: torch.optim.SGD(p, lr=0.1), epochs=1,
        batch_size=16, quiet=True,
    )  # fmt: skip
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in model.modules()] == modes


def test_modules_that_the_user_froze_stay_in_evaluation_mode() -> None:
    model = Busy()
    before = {name: value.clone() for name, value in model.frozen.state_dict().items()}
    seen = []
    model.frozen.register_forward_hook(lambda module, *_: seen.append((module.training, model.training)))
    gradstep.fit(
        model, nn.CrossEntropyLoss(), samples(), samples(), optimizer=lambda p: torch.optim.SGD(p, lr=0.1), epochs=2,
        batch_size=16, quiet=True,
    )  # fmt: skip
    assert not any(frozen for frozen, _ in seen)
    assert any(whole for _, whole in seen)
    assert torch.equal(before["running_mean"], model.frozen.running_mean)
