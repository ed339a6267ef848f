"""What the five documents ask for, row by row (those of this page that no other test file holds)."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import coloured_mnist
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import gradstep
from gradstep import data

LENGTH, BATCH = 50, 16  # four batches an epoch, the last of 2


def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(LENGTH, 5, generator=generator), torch.randint(3, (LENGTH,), generator=generator)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def fit(train=None, **changes) -> gradstep.Run:
    arguments = {"optimizer": sgd, "epochs": 2, "batch_size": BATCH, "quiet": True} | changes
    model = arguments.pop("model", None) or net()
    return gradstep.fit(model, arguments.pop("criterion", nn.CrossEntropyLoss()), train or samples(), **arguments)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_p2_the_small_cifar_net_has_62006_parameters() -> None:
    model = gradstep.models.LeNet(3)
    assert sum(parameter.numel() for parameter in model.parameters()) == 62_006
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_p2_the_loss_every_few_batches_with_the_samples_really_seen() -> None:
    run = fit(log_every="1 step")
    rows = [row for row in run.history if row["kind"] == "train"]
    assert [row["samples"] for row in rows] == [16, 32, 48, 50, 66, 82, 98, 100]
    assert [row["step"] for row in rows] == list(range(1, 9))


def test_p2_evaluation_is_a_mean_over_samples_not_over_batches() -> None:
    model, (inputs, targets) = net(), samples()
    measured = gradstep.evaluate(model, nn.CrossEntropyLoss(), (inputs, targets), batch_size=48, metrics="accuracy")
    with torch.no_grad():
        outputs = model(inputs)
    assert measured["loss"] == pytest.approx(F.cross_entropy(outputs, targets).item(), rel=1e-6)
    assert measured["accuracy"] == (outputs.argmax(1) == targets).double().mean().item()


def test_p4_two_losses_at_once_are_their_sum() -> None:
    def summed(outputs, targets):
        return F.cross_entropy(outputs, targets) + outputs.square().mean()

    def named(outputs, targets):
        return {"class": F.cross_entropy(outputs, targets), "size": outputs.square().mean()}

    terms = gradstep.Terms({"class": nn.CrossEntropyLoss(), "size": lambda o, _t: o.square().mean()})
    runs = [fit(criterion=criterion, valid=samples()) for criterion in (summed, named, terms)]
    assert same_weights(runs[0].model, runs[1].model)
    assert same_weights(runs[0].model, runs[2].model)
    row = next(row for row in runs[1].history if row["kind"] == "valid")
    assert row["valid/class"] + row["valid/size"] == pytest.approx(row["valid/loss"])


def test_t11_every_part_is_centred_by_the_training_mean() -> None:
    inputs, targets = torch.arange(12.0).reshape(12, 1) + 100, torch.zeros(12, dtype=torch.int64)
    whole = data.Tensors((inputs, targets))
    train, valid = data.Part(whole, torch.arange(8)), data.Part(whole, torch.arange(8, 10))
    splits = data.prepare(data.Splits(train, valid, data.Part(whole, torch.arange(10, 12))), [data.SubtractMean()])
    mean = 103.5  # of 100..107
    for _, source in splits.items():
        assert source.transforms == (data.SubtractMean(mean),)
    feed = data.Feed(splits.test, 2, shuffle=False)
    assert feed[0][0].flatten().tolist() == [110 - mean, 111 - mean]


def test_t11_the_test_comes_once_at_the_end_with_the_weights_chosen() -> None:
    run = fit(valid=samples(), test=samples(), metrics=["accuracy"], epochs=6)
    assert [row["kind"] for row in run.history].count("test") == 1
    assert run.history[-1]["kind"] == "test"
    assert run.history[-1]["test/accuracy"] == run.best.value  # the same samples here, so the same number


def test_b2_the_rate_is_recorded_at_every_epoch_s_start_and_every_log_interval() -> None:
    run = fit(schedule=lambda step, base: base / (1 + step), log_every="2 steps")
    starts = {row["step"]: row["lr"] for row in run.history if row["kind"] == "start"}
    assert starts == {0: 0.1, 4: 0.1 / 5}
    logged = {row["step"]: row["lr"] for row in run.history if row["kind"] == "train"}
    assert logged == {step: 0.1 / step for step in (2, 4, 6, 8)}  # the rate that the step just done ran at


class Rewound:
    """Whole batches from a reader that must be told to start over, as MXNet's iterators must."""

    def __init__(self) -> None:
        self.resets, self.at = 0, 99

    def __len__(self) -> int:
        return 4

    def reset(self) -> None:
        self.resets, self.at = self.resets + 1, 0

    def __iter__(self):
        while self.at < 4:
            self.at += 1
            inputs, targets = samples()
            yield inputs[(self.at - 1) * BATCH : self.at * BATCH], targets[(self.at - 1) * BATCH : self.at * BATCH]


def test_b2_a_source_with_reset_is_rewound_each_epoch_and_metrics_start_anew() -> None:
    source = Rewound()
    run = fit(source, batch_size=None, epochs=3, metrics=["accuracy"])
    assert source.resets == 3
    assert run.state.samples == 3 * LENGTH
    by_hand = net()
    optimizer = sgd(by_hand.parameters())
    accuracies = []
    for _ in range(3):
        hits = 0
        for start in range(0, LENGTH, BATCH):
            inputs, targets = (part[start : start + BATCH] for part in samples())
            optimizer.zero_grad()
            outputs = by_hand(inputs)
            F.cross_entropy(outputs, targets).backward()
            optimizer.step()
            hits += int((outputs.argmax(1) == targets).sum())
        accuracies.append(hits / LENGTH)
    assert same_weights(run.model, by_hand)
    assert [row["train/accuracy"] for row in run.history if row["kind"] == "epoch"] == accuracies


def test_b4_train_accuracy_is_taken_while_training_and_a_clean_pass_is_an_option() -> None:
    run = fit(valid=samples(), metrics=["accuracy"], evaluate_train=True, epochs=1)
    while_training = next(row for row in run.history if row["kind"] == "epoch")["train/accuracy"]
    clean = next(row for row in run.history if row["kind"] == "train_clean")["train_clean/accuracy"]
    after = gradstep.evaluate(run.model, nn.CrossEntropyLoss(), samples(), metrics="accuracy")["accuracy"]
    assert clean == after
    assert while_training != clean


def test_b9_a_user_takes_batches_apart_and_calls_the_model_in_his_own_way() -> None:
    inputs, targets = samples()
    named = [{"x": x, "extra": torch.ones(()), "y": y} for x, y in zip(inputs, targets, strict=True)]
    seen = []

    def forward(model, parts):
        seen.append(set(parts))
        return model(parts["x"]) * parts["extra"][:, None]

    run = fit(
        named,
        unpack=lambda batch: ({"x": batch["x"], "extra": batch["extra"]}, batch["y"]),
        forward=forward,
        valid=named,
    )
    assert same_weights(run.model, fit().model)
    assert all(names == {"x", "extra"} for names in seen)


def test_b11_one_loss_per_sample_is_the_mean_over_the_true_batch_size() -> None:
    def per_sample(outputs, targets):
        return F.cross_entropy(outputs, targets, reduction="none")

    scalar, vector = fit(), fit(criterion=per_sample)
    for one, other in zip(scalar.model.parameters(), vector.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    assert vector.state.samples == 2 * LENGTH


def test_d1_data_model_criterion_and_metrics_follow_the_device() -> None:
    """`meta` is the one device besides the CPU that every machine has: what reaches it has followed."""
    weighted = nn.CrossEntropyLoss(weight=torch.ones(3))
    feed = data.Feed(data.Tensors(samples()), BATCH, shuffle=True, device="meta")
    model = net().to("meta")
    weighted.to("meta")
    inputs, targets = feed[0]
    assert inputs.device.type == targets.device.type == "meta"
    outcome = gradstep.Update(model, weighted).backward(inputs, targets)
    assert outcome.loss.device.type == "meta"
    counted = gradstep.metrics.resolve("accuracy").fresh(torch.device("meta"))
    counted.update(outcome.outputs, outcome.targets)
    assert counted.metrics["accuracy"].total.device.type == "meta"
    assert fit(device="cpu").model[0].weight.device.type == "cpu"


def test_weights_to_start_from_and_predictions_from_a_folder(tmp_path: Path) -> None:
    """A run from Python is loaded with the model given; its predictions are those of the chosen weights."""
    run = fit(
        valid=samples(), out=tmp_path, metrics=["accuracy"], epochs=8, optimizer=lambda p: torch.optim.SGD(p, 2.0)
    )
    assert run.best.step < run.state.step  # the case at hand: the last weights are not the best
    loaded = gradstep.load(run.path, model=net())
    expected = gradstep.predict(run, samples())
    assert torch.equal(gradstep.predict(loaded, samples()), expected)
    assert torch.equal(
        gradstep.predict(loaded, samples()[0], batch_size=7), gradstep.predict(run, samples()[0], batch_size=7)
    )
    accuracy = (expected.argmax(1) == samples()[1]).double().mean().item()
    assert accuracy == run.best.value
    assert not torch.equal(run.model(samples()[0]), expected)  # the user's model holds the last step's weights


def test_in_memory_and_on_disk_the_same_best_is_chosen(tmp_path: Path) -> None:
    arguments = {
        "valid": samples(),
        "metrics": ["accuracy"],
        "epochs": 8,
        "optimizer": lambda p: torch.optim.SGD(p, 2.0),
    }
    memory, disk = fit(**arguments), fit(out=tmp_path, **arguments)
    assert memory.best == disk.best
    assert torch.equal(gradstep.predict(memory, samples()), gradstep.predict(disk, samples()))


def test_a_loss_that_is_no_number_stops_the_run_and_is_never_saved(tmp_path: Path) -> None:
    def exploding(outputs, targets):
        return F.cross_entropy(outputs, targets) * 1e30

    with pytest.raises(gradstep.errors.DivergedError, match=r"the loss of step \d+ is (nan|inf)"):
        fit(criterion=exploding, out=tmp_path, epochs=5, log_every="1 step")
    run = next(path for path in tmp_path.iterdir() if path.name.startswith("0001"))
    for state in (run / "checkpoints").glob("step-*/state.json"):
        assert json.loads(state.read_text())["step"] == 0
    assert all("nan" not in line for line in (run / "metrics.jsonl").read_text().splitlines())


def test_a_schedule_may_run_out_of_a_short_run() -> None:
    run = fit(schedule=gradstep.schedules.cosine(warmup="100 steps"), epochs=1)
    assert run.state.step == 4


def test_steps_stop_where_the_user_breaks_and_the_model_keeps_its_mode() -> None:
    model = net().eval()
    for outcome in gradstep.steps(model, nn.CrossEntropyLoss(), samples(), optimizer=sgd, epochs=5, batch_size=BATCH):
        assert model.training
        if outcome.step == 3:
            break
    del outcome
    assert not any(module.training for module in model.modules())


def test_an_optimizer_instance_is_taken_as_it_is() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = fit(model=model, optimizer=optimizer)
    assert run.state.optimizer is optimizer
    assert same_weights(run.model, fit().model)
    with pytest.raises(gradstep.errors.ModelError, match="holds no parameter of this model"):
        fit(optimizer=torch.optim.SGD(net().parameters(), lr=0.1))


def test_p1_images_from_a_csv_with_a_transform_and_a_target_transform(tmp_path: Path) -> None:
    """The document's data set, by its own words: ToTensor, Normalize(0.5, 0.5), shuffled train, ordered test."""
    colours = torch.randint(256, (12, 3, 1, 1), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for number, colour in enumerate(colours):
        Image.fromarray(colour.expand(3, 6, 5).permute(1, 2, 0).contiguous().numpy()).save(tmp_path / f"{number}.png")
    (tmp_path / "train.csv").write_text("".join(f"{number}.png,{number % 3}\n" for number in range(12)))

    def transform(image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255  # as ToTensor
        return (pixels - 0.5) / 0.5

    options = data.Options(transform=transform, target_transform=lambda label: 2 - label)
    source = data.open_data(str(tmp_path / "train.csv"), options).train
    inputs, targets = source.batch(torch.arange(12), 0, 0)
    assert torch.equal(inputs, ((colours.float() / 255 - 0.5) / 0.5).expand(12, 3, 6, 5))  # red first, as in the file
    assert targets.tolist() == [2 - number % 3 for number in range(12)]

    seen: list[list[int]] = []

    class Watch(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(
                [int((colours.flatten(1).float() / 127.5 - 1 - row[:, 0, 0]).abs().sum(1).argmin()) for row in x]
            )
            return super().forward(x.mean((2, 3)))

    fit(source, test=source, model=Watch(3, 3), epochs=2, batch_size=4)
    last = seen[-9:]
    passes = [[number for batch in last[start : start + 3] for number in batch] for start in range(0, 9, 3)]
    train, test = passes[:2], passes[2]
    assert all(sorted(epoch) == list(range(12)) for epoch in train)
    assert train[0] != train[1] != test == list(range(12))


def test_p1_a_missing_image_is_an_error_and_not_none(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("no.png,1\n")
    with pytest.raises(gradstep.errors.DataError, match=r"no\.png \(line 1\): there is no such file"):
        data.open_data(str(tmp_path / "train.csv"))


def test_p2_cifar10_from_its_binary_files_with_the_loss_every_10_batches(tmp_path: Path, mnist: Path) -> None:
    """The built-in recipe on a coloured MNIST in the same files, at a rate that three epochs are enough for."""
    coloured_mnist.write(tmp_path / "data" / "cifar10", train=4000, test=1000)
    command = [sys.executable, "-m", "gradstep", "train", "cifar10", "epochs=3", "optimizer.lr=0.05"]
    where = {**os.environ, "GRADSTEP_DATA": str(tmp_path / "data"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=where, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "runs/latest/metrics.jsonl").read_text().splitlines()]
    losses = [row["train/running_loss"] for row in rows if row["kind"] == "train"]
    # 3,600 samples are 57 batches: a line after each 10, and one for the 7 that are left, with the samples really seen.
    seen = [640, 1280, 1920, 2560, 3200, 3600] * 3
    expected = [f"loss: {loss:>7f}  [{count:>5d}/ 3600]" for loss, count in zip(losses, seen, strict=True)]
    assert [line for line in done.stdout.splitlines() if line.startswith("loss: ")] == expected
    steps = [row["step"] for row in rows if row["kind"] == "train"]
    assert steps == [first + step for first in (0, 57, 114) for step in (10, 20, 30, 40, 50, 57)]
    (test,) = [row for row in rows if row["kind"] == "test"]
    assert test["test/accuracy"] >= 0.7
    assert f"test      loss {test['test/loss']:.4f}  accuracy {test['test/accuracy']:.4f}" in done.stdout
    assert "62,006 parameters" in done.stdout


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.classify, self.value = nn.Linear(5, 8), nn.Linear(8, 3), nn.Linear(8, 2)
        self.double()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        code = self.trunk(x).tanh()
        return {"class": self.classify(code), "value": self.value(code)}


@given(samples=st.integers(1, 12), weight=st.floats(0.01, 100.0), pieces=st.integers(1, 12), swapped=st.booleans())
def test_p4_two_backward_passes_over_one_graph_are_the_summed_terms(
    samples: int, weight: float, pieces: int, swapped: bool
) -> None:
    """A loop of one's own keeps the graph for a second backward; gradstep takes the two losses as terms of one."""
    generator = torch.Generator().manual_seed(samples)
    inputs = torch.randn(samples, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (samples,), generator=generator)
    values = torch.randn(samples, 2, generator=generator, dtype=torch.float64)

    def terms(outputs: dict[str, Tensor], targets: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        named = {
            "class": F.cross_entropy(outputs["class"], targets[0]),
            "value": weight * F.mse_loss(outputs["value"], targets[1]),
        }
        return dict(reversed(named.items())) if swapped else named

    by_hand, model = TwoHeads(), TwoHeads()
    first, second = terms(by_hand(inputs), (labels, values)).values()
    first.backward(retain_graph=True)
    second.backward()
    update = gradstep.Update(model, terms, micro_batch=None if pieces == 1 else -(-samples // pieces))
    outcome = update.backward(inputs, (labels, values))
    assert len(outcome.terms) == 2
    for one, other in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=1e-12 * max(1.0, weight))


@given(samples=st.integers(1, 12), micro_batch=st.none() | st.integers(1, 12), scale=st.sampled_from([0.1, 1.0, 30.0]))
def test_l6_an_explicit_gradient_for_the_output_is_half_the_sum_of_its_squares(
    samples: int, micro_batch: int | None, scale: float
) -> None:
    """`output.backward(output)`, and the criterion whose gradient is the output."""
    generator = torch.Generator().manual_seed(samples)
    inputs = scale * torch.randn(samples, 5, generator=generator, dtype=torch.float64)
    by_hand, model = net().double(), net().double()
    output = by_hand(inputs)
    output.backward(output)

    def half_the_squares(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.square().sum() / 2

    nothing = torch.zeros(samples)
    outcome = gradstep.Update(model, half_the_squares, micro_batch=micro_batch).backward(inputs, nothing)
    torch.testing.assert_close(outcome.loss, output.detach().square().sum() / 2, rtol=1e-12, atol=0)
    _, gradient = gradstep.criterion_gradient(half_the_squares, output.detach(), nothing)
    assert torch.equal(gradient, output.detach())
    for one, other in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=1e-12 * scale)


class ClippedExp(torch.autograd.Function):
    """The document's custom function: its own forward, its own backward."""

    @staticmethod
    def forward(context: Any, inputs: Tensor) -> Tensor:
        outputs = inputs.clamp(max=2.0).exp()
        context.save_for_backward(inputs, outputs)
        return outputs

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        inputs, outputs = context.saved_tensors
        return gradient * outputs * (inputs <= 2.0)


class WithOwnFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.second(ClippedExp.apply(self.first(inputs)))
        return outputs


@pytest.mark.parametrize("micro_batch", [None, 4])
def test_p3_a_custom_function_trains_as_autograd_s_own_would(micro_batch: int | None) -> None:
    class Plain(WithOwnFunction):
        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.second(self.first(inputs).clamp(max=2.0).exp())
            return outputs

    data = (torch.randn(12, 3, dtype=torch.float64), torch.randn(12, 2, dtype=torch.float64))
    models = []
    for kind in (WithOwnFunction, Plain):
        torch.manual_seed(0)
        models.append(kind().double())
        make = lambda p: torch.optim.SGD(p, lr=0.05)  # noqa: E731
        gradstep.fit(
            models[-1], nn.MSELoss(), data, optimizer=make, epochs=3, batch_size=6, micro_batch=micro_batch, quiet=True
        )
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert (one - other).abs().max() <= 1e-12


@pytest.mark.parametrize("make", [
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    lambda p: gradstep.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, weight_decay_l1=0.1),
])  # fmt: skip
def test_p3_a_frozen_parameter_has_no_gradient_and_keeps_its_bits(make: Any) -> None:
    model, calls = WithOwnFunction(), []
    model.first.weight.requires_grad_(False)
    model.register_forward_hook(lambda *_: calls.append(1))  # the model is called, never its forward
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    gradstep.fit(
        model, nn.MSELoss(), (torch.randn(8, 3), torch.randn(8, 2)), optimizer=make, epochs=3, batch_size=4, quiet=True
    )
    assert model.first.weight.grad is None
    unmoved = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    assert unmoved == ["first.weight"]
    assert len(calls) >= 6


def test_p3_a_loss_without_a_graph_is_a_named_error() -> None:
    def cut_off(outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.mse_loss(outputs.detach(), targets)

    with pytest.raises(gradstep.errors.ModelError, match="graph"):
        gradstep.fit(
            WithOwnFunction(), cut_off, (torch.randn(8, 3), torch.randn(8, 2)),
            optimizer=lambda p: torch.optim.SGD(p, lr=0.1), epochs=1, batch_size=4, quiet=True,
        )  # fmt: skip
