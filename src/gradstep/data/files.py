"""Image files as a source: all of them looked at before training, none trusted to stay as it was."""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from gradstep.data.images import Reading, UnreadableError, native_mode, read_image
from gradstep.data.sources import Items, Source
from gradstep.data.transforms import Ragged, Transform
from gradstep.errors import DataError

_KEPT = 2**28  # bytes of decoded images that are kept in memory; more are decoded each time they are asked for
_LARGE = 2**15  # bytes; decoding files larger than this on average gains by threads, smaller ones lose by them
_NAMED = 10  # bad files that an error names


@dataclass(frozen=True, eq=False)
class FileList:
    """Image files and their targets, as a CSV or a folder gave them. `places` says where each was named."""

    name: str
    paths: list[str]
    targets: Tensor
    classes: tuple[str, ...] | None = None
    places: list[str] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def place(self, number: int) -> str:
        """The file, and where it was named."""
        return f"{self.paths[number]} ({self.places[number]})" if self.places else self.paths[number]


@dataclass(frozen=True, eq=False)
class Survey:
    """What there is, no image file opened: the parts, how a CSV's columns were understood, what to tell the user."""

    parts: Mapping[str, FileList | Source]
    notes: tuple[str, ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)

    def train(self, where: str) -> FileList | Source:
        """The training part. DataError where there is none."""
        if "train" not in self.parts:
            raise DataError(f"{where}: there is no training part in it. It has {', '.join(self.parts)}.")
        return self.parts["train"]


@dataclass(frozen=True, eq=False)
class Images:
    """Image files that were all read once: batches `(images, targets)`, images uint8 or float32 `[N, C, H, W]`.

    `stamps` (int64, `[N, 2]`: bytes and modification time in ns) are those of that first reading, −1 where there was
    nothing to read. A file that is another one when it is asked for again is a DataError that names it. `content` is
    the SHA-256 of what all of them held. Where the sizes differ, inputs are `Ragged`.
    """

    files: FileList
    reading: Reading
    stamps: Tensor
    content: str
    kept: Tensor | None
    sizes: tuple[tuple[int, ...], ...]  # of images as they are read, each once
    transforms: tuple[Transform, ...] = ()

    @property
    def in_memory(self) -> bool:
        return self.kept is not None

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self.files.classes

    @property
    def targets(self) -> Tensor:
        return self.files.targets

    def paths(self, numbers: Tensor) -> list[str]:
        """The files of these samples."""
        return [self.files.paths[number] for number in numbers.tolist()]

    @property
    def fingerprint(self) -> dict[str, Any]:
        content = hashlib.sha256(self.content.encode() + self.files.targets.numpy().tobytes())
        return {
            "bytes": int(self.stamps[:, 0].clamp(min=0).sum()),
            "modified": int(self.stamps[:, 1].max()),
            "content": content.hexdigest(),
        }

    def __len__(self) -> int:
        return len(self.files.paths)

    def image(self, number: int) -> Tensor:
        """One image, having made sure that its file is the one that was looked at."""
        path = self.files.paths[number]
        what = "it is another file than the one that was read before the first step"
        try:
            if self._same(number):
                return self.kept[number] if self.kept is not None else read_image(path, self.reading)
        except UnreadableError as error:
            what = str(error)
        if not os.path.exists(path):  # it may have gone at any moment since
            what = "it was there before the first step, and is gone"
        raise DataError(f"{self.files.place(number)}: {what}. Images must stay as they are while they are trained on.")

    def batch(self, indices: Tensor, epoch: int, seed: int) -> Any:  # noqa: ARG002
        numbers, targets = indices.tolist(), self.files.targets[indices]
        if self.kept is not None and all(map(self._same, numbers)):
            return self.kept[indices], targets
        images = list(_mapped(self.image, numbers, float(self.stamps[numbers, 0].double().mean()) > _LARGE))
        if len(self.sizes) == 1:
            return torch.stack(images), targets
        here = {tuple(image.shape) for image in images}
        others = [size for size in self.sizes if {size} != here][: 2 - len(here)]
        probes = [torch.zeros(size, dtype=images[0].dtype) for size in others]
        return Ragged([*images, *probes], len(images)), targets

    def _same(self, number: int) -> bool:
        """Whether a file is as it was, by its size and time."""
        try:
            found = os.stat(self.files.paths[number])
        except OSError:
            return False
        return [found.st_size, found.st_mtime_ns] == self.stamps[number].tolist()

    def transformed(self, transforms: tuple[Transform, ...]) -> Images:
        return replace(self, transforms=transforms)


def image_files(
    files: FileList, reading: Reading, on_bad: str = "error", way_out: str = "data.on_bad=skip"
) -> tuple[Images, Tensor, tuple[str, ...]]:
    """`(source, numbers of the good ones, notes)`: every file read once, before anything else happens.

    DataError counts the files that are missing or can't be read, and names the first ten; where `on_bad` is `skip`
    they are left out of `numbers` (int64, ascending), and a note says so: the others keep their numbers, on which
    splits and draws depend. `way_out` is what an error tells the user to type for that.
    """
    if not files.paths:
        raise DataError(f"{files.name}: there are no images in it.")
    if reading.mode is None:
        reading = replace(reading, mode=_common_mode(files))
    looks = _look_at_all(files, reading)
    bad = [number for number, look in enumerate(looks) if look.trouble]
    notes: tuple[str, ...] = ()
    if bad:
        told = _told(files, [(number, looks[number].trouble or "") for number in bad])
        if on_bad == "error":
            raise DataError(f"{told}\nMend them, or leave them out: {way_out}")
        if len(bad) == len(looks):
            raise DataError(f"{told}\nNothing is left without them.")
        notes = (f"left out: {told}",)
    good = [number for number, look in enumerate(looks) if not look.trouble]
    sizes = {looks[number].size for number in good}
    content = hashlib.sha256()
    for path, look in zip(files.paths, looks, strict=True):
        content.update(os.path.basename(path).encode() + b"\0" + look.content)
    images = Images(
        files,
        reading,
        torch.tensor([look.stamp for look in looks], dtype=torch.int64),
        content.hexdigest(),
        _gathered(looks, good) if len(sizes) == 1 else None,
        tuple(sorted(sizes)),
    )
    return images, torch.tensor(good), notes


def per_sample(images: Images, transform: Callable[[Any], Any] | None, target_transform: Any = None) -> Source:
    """The images under callables of the user's own, called sample by sample, their random draws seeded for each.

    `transform` gets a Pillow image, as torchvision's do, and gives a tensor; `target_transform` gets an int, or a
    float tensor where the targets are numbers.
    """
    return PerSample(TransformedImages(images, transform, target_transform), classes=images.classes)


@dataclass(frozen=True, eq=False)
class PerSample(Items):
    """Image files under callables of the user's; what is known of the files is known of it too."""

    dataset: TransformedImages

    @property
    def targets(self) -> Tensor | None:
        return self.dataset.images.targets if self.dataset.target_transform is None else None

    @property
    def fingerprint(self) -> dict[str, Any]:
        return self.dataset.images.fingerprint

    def paths(self, numbers: Tensor) -> list[str]:
        """The files of these samples."""
        return self.dataset.images.paths(numbers)


@dataclass(frozen=True, eq=False)
class TransformedImages:
    """A map-style data set of `(transform(image), target_transform(target))`."""

    images: Images
    transform: Callable[[Any], Any] | None
    target_transform: Callable[[Any], Any] | None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        image: Any = self.images.image(number)
        target: Any = self.images.targets[number]
        target = target if target.is_floating_point() else int(target)
        if self.transform is not None:
            image = self.transform(_pillow(image))
        return image, target if self.target_transform is None else self.target_transform(target)


def _pillow(image: Tensor) -> Any:
    from PIL import Image

    values = image.numpy()
    return Image.fromarray(values[0] if len(values) == 1 else values.transpose(1, 2, 0))


@dataclass(slots=True)
class _Look:
    """What was found at one path: stamp, hash, size as it was read, pixels while there is room; or the trouble."""

    stamp: tuple[int, int] = (-1, -1)
    content: bytes = b""
    size: tuple[int, ...] = ()
    image: Tensor | None = None
    trouble: str | None = None


def _gathered(looks: list[_Look], good: list[int]) -> Tensor | None:
    """The images as one tensor by their numbers, nothing in the place of bad ones; None where there was no room."""
    images = [looks[number].image for number in good]
    first = images[0]
    if first is None or any(image is None for image in images) or len(looks) * first.nbytes > _KEPT:
        return None
    kept = first.new_zeros((len(looks), *first.shape))
    for number, image in zip(good, images, strict=True):
        kept[number] = image  # type: ignore[assignment]  # none of them is None
    return kept


def _look_at_all(files: FileList, reading: Reading) -> list[_Look]:
    room = _KEPT

    def look(path: str) -> _Look:
        try:
            with open(path, "rb") as file:
                found, raw = os.fstat(file.fileno()), file.read()
            image = read_image(io.BytesIO(raw), reading)
        except OSError as error:
            return _Look(trouble="there is no such file" if isinstance(error, FileNotFoundError) else error.strerror)
        except UnreadableError as error:
            return _Look(trouble=str(error))
        return _Look((found.st_size, found.st_mtime_ns), hashlib.sha256(raw).digest(), tuple(image.shape), image)

    looks = []
    for each in read_in_order(look, files.paths):
        room -= each.image.nbytes if each.image is not None else 0
        if room < 0:  # too many to keep: none is
            each.image = None
        looks.append(each)
    return looks


def read_in_order(look: Callable[[str], Any], paths: Sequence[str]) -> Iterator[Any]:
    """What a look at each file gives, in the order of the paths, by threads where files are large."""
    return _mapped(look, paths, _mean_size(paths) > _LARGE)


def _mapped(function: Callable[[Any], Any], values: Sequence[Any], threads: bool) -> Iterator[Any]:
    """The results in the order of the values. Pillow lets go of the interpreter while it decodes."""
    if not threads or len(values) < 2:
        yield from map(function, values)
        return
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for start in range(0, len(values), 256):  # in pieces, so that results don't pile up
            yield from pool.map(function, values[start : start + 256])


def _mean_size(paths: Sequence[str]) -> float:
    some = paths[:: max(1, len(paths) // 64)]
    return sum(os.stat(path).st_size for path in some if os.path.exists(path)) / max(len(some), 1)


def headers_of(files: FileList) -> tuple[Counter[str], Counter[tuple[int, int]]]:
    """How many files there are of each of Pillow's modes and of each (height, width), by their headers alone.

    Those that can't be read are left out.
    """
    modes: Counter[str] = Counter()
    sizes: Counter[tuple[int, int]] = Counter()
    for path in files.paths:
        try:
            mode, size = native_mode(path)
        except UnreadableError:
            continue
        modes[mode] += 1
        sizes[size] += 1
    return modes, sizes


def _common_mode(files: FileList) -> str:
    modes, _ = headers_of(files)
    if set(modes) <= {"L", "1"}:
        return "L"
    if set(modes) == {"RGB"}:
        return "RGB"
    counts = ", ".join(f"{count:,} {mode}" for mode, count in modes.most_common())
    raise DataError(
        f"{files.name}: the images are of several modes, or of one that needs a word ({counts}). Say how to read "
        "them: data.images.mode=RGB (or L, RGBA, F), and data.images.ground=white for what is transparent."
    )


def _told(files: FileList, bad: list[tuple[int, str]]) -> str:
    lines = [f"  {files.place(number)}: {trouble}" for number, trouble in bad[:_NAMED]]
    more = [f"  ... and {len(bad) - _NAMED:,} more"] if len(bad) > _NAMED else []
    return "\n".join(
        [f"{files.name}: {len(bad):,} of {len(files.paths):,} images are missing or can't be read:", *lines, *more]
    )
