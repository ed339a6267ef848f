"""`micro_batch` in fit, in recipes and on the command line: the run is the same, and the plan says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradstep
from gradstep.errors import CheckpointError, GradstepError, ModelError
from gradstep.recipe import Recipe
from tests.commands import said_by

BATCH = 16


def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(70, 12, generator=generator).double(), torch.randint(4, (70,), generator=generator)


def net() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Dropout(0.3), nn.Linear(24, 4)).double()


def together(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    return {"fit": F.cross_entropy(outputs, targets), "spread": 0.1 * outputs.square().mean().sqrt()}


def trained(criterion: Any, micro_batch: int | None, **options: Any) -> tuple[gradstep.Run, nn.Module]:
    model = net()
    run = gradstep.fit(
        model, criterion, samples(), samples(), optimizer=lambda p: torch.optim.Adam(p, lr=0.01),
        batch_size=BATCH, metrics=["accuracy"], micro_batch=micro_batch, **{"epochs": 3, "quiet": True, **options},
    )  # fmt: skip
    return run, model


CRITERIA = {
    "by table": nn.CrossEntropyLoss(label_smoothing=0.1),
    "by trial": lambda o, t: F.cross_entropy(o, t),
    "together": together,
}


def numbers(row: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if not isinstance(value, str)}


@pytest.mark.parametrize("name", CRITERIA)
def test_a_run_is_the_same_for_every_micro_batch(name: str) -> None:
    whole, by_one_pass = trained(CRITERIA[name], None)
    for micro_batch in (1, 5, 16, 100):
        run, model = trained(CRITERIA[name], micro_batch)
        for a, b in zip(model.parameters(), by_one_pass.parameters(), strict=True):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)
        assert [row["kind"] for row in run.history] == [row["kind"] for row in whole.history]
        for one, other in zip(run.history, whole.history, strict=True):
            assert numbers(one) == pytest.approx(numbers(other), rel=1e-9)


def test_the_plan_says_how_and_why(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run, _ = trained(together, 5, quiet=False, out=tmp_path)
    printed = capsys.readouterr().out
    assert "plan      plain: update two_pass in 4 micro-batches of 4, dropout keyed, cpu, 1 threads\n" in printed
    assert "          two_pass: a sample's gradient moves by " in printed
    plan = json.loads((run.path / "plan.json").read_text())
    assert plan["update"] == "two_pass"
    assert plan["proof"].startswith("a sample's gradient moves by")
    assert plan["micro_batches"] == {"16": [4, 4, 4, 4], "6": [3, 3]}


def test_a_run_in_micro_batches_is_resumed_bit_for_bit_and_may_take_others(tmp_path: Path) -> None:
    _, straight = trained(together, 5)

    def resumed(name: str, micro_batch: int) -> nn.Module:
        options: dict[str, Any] = {"out": tmp_path, "name": name}

        class Pause:
            def on_train_epoch_end(self, state: Any, *_: Any) -> Any:
                return gradstep.Request.PAUSE if state.step == 5 else None

        paused, _ = trained(together, 5, hooks=[Pause()], **options)
        assert paused.paused
        return trained(together, micro_batch, resume=True, **options)[1]

    same, other = resumed("same", 5), resumed("other", 3)
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), straight.parameters(), strict=True))
    assert all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(other.parameters(), straight.parameters(), strict=True))


def test_a_resume_takes_its_batches_as_its_plan_says(tmp_path: Path) -> None:
    """Whatever would be decided now: a criterion in doubt must not change its way in the middle of a run."""
    run, _ = trained(nn.CrossEntropyLoss(), 5, out=tmp_path, name="a", epochs=2)
    document = json.loads((run.path / "plan.json").read_text())
    assert document["update"] == "accumulate"
    (run.path / "plan.json").write_text(json.dumps({**document, "update": "two_pass"}))
    seen: list[str] = []

    class Look:
        def on_train_start(self, state: Any, about: Any) -> None:
            seen.append(json.loads((about.path / "plan.json").read_text())["update"])

    longer, _ = trained(nn.CrossEntropyLoss(), 5, out=tmp_path, name="a", epochs=3, resume=True, hooks=[Look()])
    assert longer.state.step == 15
    assert seen == ["two_pass"]


def test_another_meaning_of_dropout_or_groups_is_another_run(tmp_path: Path) -> None:
    trained(nn.CrossEntropyLoss(), None, out=tmp_path, name="a", epochs=1)
    with pytest.raises((CheckpointError, GradstepError), match="dropout"):
        trained(nn.CrossEntropyLoss(), None, out=tmp_path, name="a", epochs=2, resume=True, dropout="stream")


def test_mistakes_are_found_before_the_first_step() -> None:
    with pytest.raises(ModelError, match=r"Dropout|dropout.*Take dropout='keyed'"):
        trained(nn.CrossEntropyLoss(), 4, dropout="stream")
    with pytest.raises(ModelError, match="normalises over the batch"):
        gradstep.fit(
            nn.Sequential(nn.Linear(12, 4), nn.BatchNorm1d(4)).double(), nn.CrossEntropyLoss(), samples(),
            optimizer=lambda p: torch.optim.SGD(p, lr=0.1), epochs=1, batch_size=8, micro_batch=4, quiet=True,
        )  # fmt: skip


def test_steps_in_one_s_own_loop_take_micro_batches_too() -> None:
    _, by_fit = trained(together, 5)
    model = net()
    for outcome in gradstep.steps(
        model, together, samples(), optimizer=lambda p: torch.optim.Adam(p, lr=0.01), epochs=3, batch_size=BATCH,
        micro_batch=5,
    ):  # fmt: skip
        assert outcome.samples == len(outcome.outputs)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), by_fit.parameters(), strict=True))


def test_whole_batches_in_their_own_order_are_decided_on_when_they_come() -> None:
    class Batches:
        def __len__(self) -> int:
            return 3

        def __iter__(self):
            inputs, targets = samples()
            return iter([(inputs[i : i + 9], targets[i : i + 9]) for i in (0, 9, 18)])

    def run(micro_batch: int | None) -> nn.Module:
        model = net()
        gradstep.fit(
            model, together, Batches(), optimizer=lambda p: torch.optim.SGD(p, lr=0.1), epochs=1,
            micro_batch=micro_batch, quiet=True,
        )  # fmt: skip
        return model

    for a, b in zip(run(None).parameters(), run(4).parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-10)


def test_on_the_command_line(tmp_path: Path) -> None:
    def gradstep_train(*arguments: str) -> tuple[int, str]:
        return said_by(["train", "digits", "epochs=1", *arguments], tmp_path)

    whole, parts = gradstep_train("--name", "whole"), gradstep_train("micro_batch=5", "--name", "parts")
    assert whole[0] == parts[0] == 0, parts
    assert "update accumulate in 4 micro-batches of 4" in parts[1]
    assert "accumulate: CrossEntropyLoss is a sum over samples, by the table" in parts[1]
    rows = [
        [json.loads(line) for line in (tmp_path / f"runs/{place}/metrics.jsonl").read_text().splitlines()]
        for place in ("0001-whole", "0002-parts")
    ]
    for one, other in zip(*rows, strict=True):
        assert numbers(one) == pytest.approx(numbers(other), rel=2e-2, abs=2e-2)  # float32, 90 steps
    code, said = gradstep_train("micro_batch=0")
    assert code == 2
    assert "micro_batch" in said
    assert "1" in said


def test_the_words_of_others_are_answered() -> None:
    document = {
        "data": {"train": "digits"}, "model": "gradstep.models:LeNet", "criterion": "CrossEntropyLoss", "batch_size": 8,
        "epochs": 1, "optimizer": {"name": "SGD", "lr": 0.1}, "accumulate_grad_batches": 4,
    }  # fmt: skip
    with pytest.raises(GradstepError, match="micro_batch"):
        Recipe.parse(document)
