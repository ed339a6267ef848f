"""An augmented sample is a function of (seed, epoch, sample): not of processes, batch size, order, or who asks."""

import os
import random
import resource
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import gradstep
from gradstep import data
from gradstep.data import (
    Color,
    Crop,
    CutMix,
    CutOut,
    Feed,
    Flip,
    Items,
    MixUp,
    Normalize,
    Options,
    RandomResizedCrop,
    Resize,
    Rotate,
    Shift,
    Splits,
    ToFloat,
)
from gradstep.data.transforms import Ragged
from gradstep.hooks import InterruptAt

N = 75  # ragged at the end for 7 and for 64
SINGLE = [
    Flip(),
    Flip(vertical=True),
    Shift(3, 0.2),
    Crop(28, 2),
    RandomResizedCrop(24),
    CutOut(7, 0.8),
    Rotate(25),
    Color(0.3, 0.3, 0.3, 0.1),
]
GREY = [*SINGLE[:-1], Color(0.3, 0.3)]
BATCHES = (1, 7, 64)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """75 images of MNIST, read once: `(uint8 [N, 1, 28, 28], labels)`."""
    from tests.conftest import _DATA

    images, labels = ((_DATA / "mnist" / f"t10k-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
    found = [str(path) if path.exists() else f"{path}.gz" for path in (images, labels)]
    return tuple(data.read_idx(path)[:N].clone() for path in found)  # type: ignore[return-value]


def write(folder: Path, digits: tuple[Tensor, Tensor], colours: bool = False, sizes: bool = False) -> str:
    """The images as PNG files and a CSV that lists them; in colours, each channel a shift of the digit."""
    lines = ["path,label"]
    folder.mkdir(parents=True, exist_ok=True)
    for number, (image, label) in enumerate(zip(*digits, strict=True)):
        pixels = image.reshape(28, 28).numpy()
        if colours:
            pixels = np.stack([np.roll(pixels, shift, 1) for shift in (0, 2, 5)], 2)
        if sizes:
            pixels = pixels[: 20 + number % 5, : 28 - number % 7]
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{int(label)}")
    (folder / "x.csv").write_text("\n".join(lines) + "\n")
    return str(folder / "x.csv")


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept in memory, so each image is decoded whenever it is asked for, by whoever is asked."""
    monkeypatch.setattr("gradstep.data.files._KEPT", 0)


def ready(csv: str, augment: list[Any], transforms: list[Any] | None = None) -> Any:
    return data.prepare(data.open_data(csv), transforms or [ToFloat(), Normalize()], augment).train


def feed_of(source: Any, batch_size: int, workers: int = 0, seed: int = 5, **more: Any) -> Feed:
    return Feed(
        source, batch_size, shuffle=True, seed=seed, workers=workers, augment=getattr(source, "augment", ()), **more
    )


def by_sample(feed: Feed, epoch: int, batches: Any = None) -> Tensor:
    """An epoch's inputs, row n being sample n; each sample came once, and with its own label."""
    first, last = epoch * feed.steps_per_epoch, (epoch + 1) * feed.steps_per_epoch
    rows: dict[int, Tensor] = {}
    targets: dict[int, Any] = {}
    batches = feed.start(first, last) if batches is None else batches
    for step, (inputs, labels) in zip(range(first, last), batches, strict=True):
        came, numbers = feed.indices(step)
        assert came == epoch
        assert len(inputs) == len(numbers)
        rows.update(zip(numbers.tolist(), inputs, strict=True))
        targets.update(zip(numbers.tolist(), labels, strict=True))
    assert sorted(rows) == list(range(len(feed.source)))
    own = data.targets_in_memory(feed.source)
    if own is not None:
        assert all(bool(targets[number] == own[number]) for number in rows)
    return torch.stack([rows[number] for number in range(len(rows))])


def one_by_one(source: Any, epoch: int, seed: int = 5) -> Tensor:
    """The short way: a sample at a time, in order, straight through the augmentations, without a feed."""
    rows = []
    for number in range(len(source)):
        numbers = torch.tensor([number])
        (inputs, _), known = source.batch(numbers, epoch, seed), data.sources.original(source, numbers)
        inputs = inputs.images[0][None] if isinstance(inputs, data.transforms.Ragged) else inputs
        for place, augmentation in enumerate(source.augment):
            inputs = augmentation(inputs, data.Draws(seed, epoch, known, place))
        for transform in source.transforms:
            inputs = transform(inputs)
        rows.append(inputs[0])
    return torch.stack(rows)


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


def all_differ(a: Tensor, b: Tensor, share: float = 0.9) -> bool:
    """Most samples come out another way: constant draws would leave them."""
    return float((a != b).flatten(1).any(1).double().mean()) > share


# all augmentations at once


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory, digits: Any) -> tuple[Any, list[Tensor]]:
    """`(source, its samples in two epochs)`: colours, decoded each time, under all augmentations, one by one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gradstep.data.files._KEPT", 0)
        source = ready(write(tmp_path_factory.mktemp("digits"), digits, colours=True), SINGLE)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = [one_by_one(source, epoch) for epoch in (0, 1)]
    torch.set_num_threads(threads)
    return source, expected


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("batch_size", BATCHES)
def test_no_process_and_no_batch_size_changes_a_sample(everything: Any, workers: int, batch_size: int) -> None:
    source, expected = everything
    feed = feed_of(source, batch_size, workers)
    assert feed.workers == workers  # nothing is kept, so the processes are asked
    assert same(by_sample(feed, 0), expected[0])
    assert same(by_sample(feed, 1), expected[1])
    assert all_differ(*expected)


@pytest.mark.parametrize("workers", [1, 4])
def test_one_stream_across_two_epochs_from_processes(tmp_path: Path, digits: Any, on_disk: None, workers: int) -> None:
    """As `fit` takes them: one iterator, started within the first epoch, that goes over into the next."""
    source = ready(write(tmp_path, digits), GREY)
    feed, alone = feed_of(source, 64, workers), feed_of(source, 7)
    expected = [by_sample(alone, epoch) for epoch in (0, 1)]
    stream = feed.start(1)
    for step, (inputs, _) in zip(range(1, 2 * feed.steps_per_epoch), stream, strict=False):
        epoch, numbers = feed.indices(step)
        assert same(inputs, expected[epoch][numbers])
    stream.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("batch_size", BATCHES)
def test_batches_asked_for_in_any_order(everything: Any, batch_size: int) -> None:
    source, expected = everything
    feed = feed_of(source, batch_size)
    steps = list(range(2 * feed.steps_per_epoch))
    random.Random(1).shuffle(steps)
    for step in steps[:60]:
        epoch, numbers = feed.indices(step)
        assert same(feed[step][0], expected[epoch][numbers]), step


@pytest.mark.parametrize("augmentation", SINGLE, ids=lambda each: type(each).__name__)
def test_each_by_itself(tmp_path: Path, digits: Any, augmentation: Any) -> None:
    csv = write(tmp_path, digits, colours=True)
    source, plain = ready(csv, [augmentation]), ready(csv, [])
    epochs = [one_by_one(source, epoch) for epoch in (0, 1)]
    for batch_size in (7, 64):
        feed = feed_of(source, batch_size)
        assert all(same(by_sample(feed, epoch), epochs[epoch]) for epoch in (0, 1))
    share = 0.3 if isinstance(augmentation, (Flip, CutOut)) else 0.6  # black on black is not seen
    assert all_differ(*epochs, share)
    assert all_differ(one_by_one(source, 0, seed=6), epochs[0], share)
    if not isinstance(augmentation, RandomResizedCrop):
        assert all_differ(epochs[0], by_sample(feed_of(plain, 64), 0), share)


@pytest.mark.parametrize("augmentation", [Shift(3), RandomResizedCrop(24)], ids=lambda e: type(e).__name__)
def test_each_by_itself_in_processes(tmp_path: Path, digits: Any, on_disk: None, augmentation: Any) -> None:
    source = ready(write(tmp_path, digits), [augmentation])
    assert same(by_sample(feed_of(source, 64, 2), 1), one_by_one(source, 1))


def test_images_in_memory_and_on_disk(tmp_path: Path, digits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    csv = write(tmp_path, digits)
    kept = ready(csv, GREY)
    monkeypatch.setattr("gradstep.data.files._KEPT", 0)
    decoded = ready(csv, GREY)
    assert (kept.in_memory, decoded.in_memory) == (True, False)
    assert kept.transforms == decoded.transforms
    for epoch in (0, 1):
        rows = by_sample(feed_of(kept, 64), epoch)
        assert same(rows, by_sample(feed_of(decoded, 7, 2), epoch))
        assert same(rows, one_by_one(decoded, epoch))
    tensors = data.prepare(Splits(data.Tensors((digits[0].reshape(N, 1, 28, 28), digits[1]))), kept.transforms, GREY)
    assert same(by_sample(feed_of(tensors.train, 7), 1), rows)  # and the same images as a tensor


@pytest.mark.parametrize(("workers", "batch_size"), [(0, 1), (1, 7), (4, 64)])
def test_images_of_several_sizes(tmp_path: Path, digits: Any, on_disk: None, workers: int, batch_size: int) -> None:
    csv = write(tmp_path, digits, sizes=True)
    source = ready(csv, [Flip(), RandomResizedCrop(24), CutOut(5), Rotate(20)], [ToFloat(), Resize(24), Normalize()])
    assert same(by_sample(feed_of(source, batch_size, workers), 1), one_by_one(source, 1))


def test_images_of_several_sizes_take_a_worker_one_open_file_a_batch(tmp_path: Path, digits: Any) -> None:
    """Each tensor that a worker hands over is an open file; here a process may have fewer than a batch has images."""
    images, labels = digits[0][:300], digits[1][:300]
    source = data.prepare(
        Splits(Items([(image.reshape(28, 28)[:, : 20 + number % 7].clone(), int(label)) for number, (image, label)
                      in enumerate(zip(images, labels, strict=True))], _ragged)),
        [ToFloat(), Resize(8)],
    ).train  # fmt: skip
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    expected = Feed(source, 300, shuffle=False)[0][0]
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 100, hard))
    try:
        found = next(iter(Feed(source, 300, shuffle=False, workers=1).once()))[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert torch.equal(found, expected)


def _ragged(samples: list[Any]) -> Any:
    return Ragged([image[None] for image, _ in samples], len(samples)), torch.tensor([label for _, label in samples])


def test_images_of_one_size_among_several(tmp_path: Path, digits: Any) -> None:
    """A sample is the same whether the files beside it are of its size or not."""
    augment = [Shift(2), RandomResizedCrop(24), Rotate(20)]
    transforms = [ToFloat(), Normalize((0.13,), (0.31,))]
    alike = ready(write(tmp_path / "a", digits), augment, transforms)
    odd = write(tmp_path / "b", digits)
    Image.fromarray(digits[0][N - 1].reshape(28, 28).numpy()[:17]).save(tmp_path / "b" / f"{N - 1}.png")
    mixed = by_sample(feed_of(ready(odd, augment, transforms), 7), 0)
    whole = by_sample(feed_of(alike, 64), 0)
    assert same(mixed[: N - 1], whole[: N - 1])
    assert not same(mixed[N - 1], whole[N - 1])


@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_changes_no_augmented_bit(everything: Any, threads: int) -> None:
    """Not promised in general; that it holds for images of this size is worth knowing."""
    source, expected = everything
    torch.set_num_threads(threads)
    assert same(by_sample(feed_of(source, 64), 0), expected[0])


# parts, seeds


@pytest.mark.parametrize("workers", [0, 2])
def test_a_part_keeps_the_draws_of_its_numbers_in_the_whole(
    tmp_path: Path, digits: Any, on_disk: None, workers: int
) -> None:
    whole = data.open_data(write(tmp_path, digits)).train
    rest, part = data.split(whole, 0.3)
    transforms = [ToFloat(), Normalize((0.13,), (0.31,))]
    all_of_it = data.prepare(Splits(whole), transforms, GREY).train
    for some in (rest, part):
        source = data.prepare(Splits(some), transforms, GREY).train
        for epoch in (0, 1):
            expected = by_sample(feed_of(all_of_it, 64), epoch)[some.numbers]  # type: ignore[attr-defined]
            assert same(by_sample(feed_of(source, 7, workers), epoch), expected)


def test_a_part_cut_afterwards_is_augmented_as_one_cut_before(tmp_path: Path, digits: Any) -> None:
    whole = data.open_data(write(tmp_path, digits)).train
    transforms = [ToFloat(), Normalize((0.13,), (0.31,))]
    before = data.prepare(Splits(data.split(whole, 0.3)[0]), transforms, STILL).train
    after = data.split(data.prepare(Splits(whole), transforms, STILL).train, 0.3)[0]
    assert torch.equal(before.whole.numbers, after.numbers)  # type: ignore[attr-defined]
    assert trained(before, net()).history == trained(after, net()).history


def test_a_limit_in_a_recipe_keeps_the_augmentations(mnist: Path) -> None:
    from gradstep.parts import read_splits
    from gradstep.recipe import Recipe, find

    document = find("mnist")[1]
    document["data"] |= {"transforms": ["float"], "augment": [{"shift": 2}], "limit": 32}
    assert getattr(read_splits(Recipe.parse(document)).train, "augment", ()) == (Shift(2),)


def test_seeds_epochs_and_samples_differ(tmp_path: Path, digits: Any) -> None:
    """75 copies of one image: whatever differs among them is drawn."""
    noise = torch.randint(1, 256, (1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    copies = noise.expand(N, 28, 28), digits[1][:1].expand(N)  # of a digit, some crops would be black all over
    source = ready(write(tmp_path, copies, colours=True), SINGLE, [ToFloat()])
    rows = {(seed, epoch): by_sample(feed_of(source, 64, seed=seed), epoch) for seed in (0, 1) for epoch in (0, 1)}
    for each in rows.values():
        assert len(torch.unique(each, dim=0)) == N
    everything = torch.cat(list(rows.values()))
    assert len(torch.unique(everything, dim=0)) == 4 * N


# evaluation


def trained(train: Any, model: nn.Module | None = None, valid: Any = None, **changes: Any) -> gradstep.Run:
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Flatten(), nn.Linear(24 * 24, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 10))
    arguments: dict[str, Any] = {
        "optimizer": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
        "epochs": 2,
        "batch_size": 32,
        "metrics": None,
        "quiet": True,
        "seed": 3,
    } | changes
    return gradstep.fit(model, nn.CrossEntropyLoss(), train, valid, **arguments)


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 16), nn.ReLU(), nn.Linear(16, 10))


STILL = [Flip(), Shift(3), CutOut(7), Rotate(25)]  # these leave the size as it is


def test_an_evaluation_is_not_augmented(tmp_path: Path, digits: Any) -> None:
    whole = data.open_data(write(tmp_path, digits)).train
    rest, part = data.split(whole, 0.3)
    splits = data.prepare(Splits(rest, part), [ToFloat(), Normalize()], [*STILL, MixUp(classes=10)])
    plain = rest.transformed(splits.train.transforms)
    model = net()
    run = trained(splits.train, model, splits.valid, evaluate_train=True, metrics=["accuracy"])
    rows = {row["kind"]: row for row in run.history}  # the last of each kind
    for what, source in (("train_clean", plain), ("valid", part.transformed(splits.train.transforms))):
        measured = gradstep.evaluate(model, nn.CrossEntropyLoss(), source, metrics=["accuracy"], batch_size=32, seed=3)
        assert measured == {name: rows[what][f"{what}/{name}"] for name in measured}, what
        assert len(measured) == 2
    assert measured == gradstep.evaluate(
        model, nn.CrossEntropyLoss(), splits.valid, metrics=["accuracy"], batch_size=32, seed=3
    )
    augmented = gradstep.evaluate(model, nn.CrossEntropyLoss(), splits.train, batch_size=32, seed=3)
    assert augmented["loss"] == rows["train_clean"]["train_clean/loss"]
    assert torch.equal(gradstep.predict(run, splits.train), gradstep.predict(run, plain))


def test_training_is_augmented(tmp_path: Path, digits: Any) -> None:
    whole = data.open_data(write(tmp_path, digits))
    losses = []
    for augment in ([], STILL):
        run = trained(data.prepare(whole, [ToFloat(), Normalize()], augment).train, net())
        losses.append([row["train/loss"] for row in run.history if row["kind"] == "epoch"])
    assert losses[0] != losses[1]


# the user's own callables, sample by sample


def shaken(image: Image.Image) -> Tensor:
    """Draws from Python's, NumPy's and torch's global streams, as callables do."""
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = np.asarray(image, np.float32) / 255 + 0.1 * np.random.randn(28, 28).astype(np.float32)
    return torch.from_numpy(pixels)[None] + 0.1 * torch.randn(1, 28, 28)


def confused(label: int) -> int:
    return label if random.random() + np.random.rand() + float(torch.rand(())) > 1.2 else (label + 1) % 10


def streams() -> tuple[Any, ...]:
    numpy = np.random.get_state()
    return random.getstate(), numpy[1].tobytes(), numpy[2:], torch.get_rng_state().numpy().tobytes()


def samples_of(feed: Feed, epoch: int) -> tuple[Tensor, Tensor]:
    first = epoch * feed.steps_per_epoch
    inputs, targets = torch.empty(N, 1, 28, 28), torch.empty(N, dtype=torch.int64)
    for step, batch in enumerate(feed.start(first, first + feed.steps_per_epoch), first):
        numbers = feed.indices(step)[1]
        inputs[numbers], targets[numbers] = batch
    return inputs, targets


@pytest.mark.parametrize("kept", [True, False])
def test_callables_of_the_users_own(tmp_path: Path, digits: Any, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kept:
        monkeypatch.setattr("gradstep.data.files._KEPT", 0)
    options = Options(transform=shaken, target_transform=confused)
    splits = data.open_data(write(tmp_path, digits), options)
    source = data.prepare(splits, [Normalize((0.1,), (0.3,))], [Shift(2)]).train
    before = streams()
    expected = [samples_of(feed_of(source, 64), epoch) for epoch in (0, 1)]
    for workers, batch_size in ((0, 1), (1, 64), (4, 7)):
        feed = feed_of(source, batch_size, workers)
        assert feed.workers == workers  # callables may be slow, so processes are asked for even if images are kept
        for epoch in (0, 1) if not workers else (1,):
            inputs, targets = samples_of(feed, epoch)
            assert same(inputs, expected[epoch][0]), (workers, batch_size, epoch)
            assert same(targets, expected[epoch][1]), (workers, batch_size, epoch)
    assert streams() == before
    assert all_differ(expected[0][0], expected[1][0])
    assert 10 < int((expected[0][1] != digits[1]).sum()) < 40  # some labels were changed
    assert not same(expected[0][1], expected[1][1])
    other = samples_of(feed_of(source, 64, seed=6), 0)
    assert all_differ(expected[0][0], other[0])


def test_callables_leave_streams_alone_when_they_raise(tmp_path: Path, digits: Any) -> None:
    def breaking(image: Image.Image) -> Tensor:
        random.random(), np.random.rand(), torch.rand(3)
        raise ValueError("no such image")

    source = data.open_data(write(tmp_path, digits), Options(transform=breaking)).train
    before = streams()
    with pytest.raises(ValueError, match="no such image"):
        source.batch(torch.arange(3), 0, 0)
    assert streams() == before


# a whole training


def weights_of(run: gradstep.Run) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in run.model.state_dict().items()}


MIXED = [*GREY, MixUp(0.4, 0.8), CutMix(1.0, 0.5)]


@pytest.fixture
def mixed(tmp_path: Path, digits: Any, on_disk: None) -> Iterator[Any]:
    return data.prepare(data.open_data(write(tmp_path / "images", digits)), [ToFloat(), Normalize()], MIXED).train


def test_a_training_with_everything_is_bitwise_the_same_with_processes(mixed: Any) -> None:
    alone, again, other = trained(mixed), trained(mixed, workers=2), trained(mixed, seed=4)
    assert alone.history == again.history
    for name, value in weights_of(alone).items():
        assert same(value, again.model.state_dict()[name]), name
        assert not same(value, other.model.state_dict()[name]), name


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_with_everything_interrupted_and_resumed(mixed: Any, tmp_path: Path, workers: int) -> None:
    whole = trained(mixed, out=tmp_path / "whole", name="run", epochs=3)
    paused = trained(mixed, out=tmp_path / "cut", name="run", epochs=3, workers=workers, hooks=[InterruptAt(1)])
    assert paused.paused
    assert paused.state.step < whole.state.step
    resumed = trained(mixed, out=tmp_path / "cut", name="run", epochs=3, workers=workers, resume=True)
    assert resumed.path == paused.path
    for name, value in weights_of(whole).items():
        assert same(value, resumed.model.state_dict()[name]), name
    for name in ("metrics.jsonl", "model.safetensors"):
        assert (resumed.path / name).read_bytes() == (whole.path / name).read_bytes(), name


def test_the_steps_of_a_loop_of_ones_own_are_those_of_fit(mixed: Any) -> None:
    """Batches of `fit` are those of a feed, mixed by their step: seen by a model that keeps what it gets."""

    class Keeping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.seen = nn.Linear(24 * 24, 10), []

        def forward(self, inputs: Tensor) -> Tensor:
            if torch.is_grad_enabled():  # a step, not a look before it
                self.seen.append(inputs.detach().clone())
            return self.layer(inputs.flatten(1))

    model = Keeping()
    trained(mixed, model, workers=2)
    feed = feed_of(mixed, 32, seed=3)
    assert len(model.seen) == 2 * feed.steps_per_epoch
    assert all(same(a, b) for a, (b, _) in zip(model.seen, islice(feed.start(0), len(model.seen)), strict=True))
