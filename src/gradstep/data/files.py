"""Image files as a source: all of them looked at before training, none trusted to stay as it was.

Their pixels come from memory where there is room, else from the cache on disk, else from the files, decoded anew.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from gradstep.data.cache import Place, Rows
from gradstep.data.decoding import in_order
from gradstep.data.images import Reading, UnreadableError, native_mode, read_image
from gradstep.data.look import MixedError, look_at_all
from gradstep.data.places import cache_folder
from gradstep.data.sources import Items, Source
from gradstep.data.transforms import Ragged, Transform
from gradstep.errors import DataError

_KEPT = 2**28  # bytes of decoded images that are kept in memory; more are read from the cache
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
    rows: Rows | None = None  # where they lie decoded on disk

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
            if self._same([number]):
                found = self._decoded([number])
                return found[0] if found is not None else read_image(path, self.reading)
        except UnreadableError as error:
            what = str(error)
        if not os.path.exists(path):  # it may have gone at any moment since
            what = "it was there before the first step, and is gone"
        raise DataError(f"{self.files.place(number)}: {what}. Images must stay as they are while they are trained on.")

    def batch(self, indices: Tensor, epoch: int, seed: int) -> Any:  # noqa: ARG002
        numbers, targets = indices.tolist(), self.files.targets[indices]
        if self.kept is not None or self.rows is not None:
            found = self._decoded(numbers) if self._same(numbers) else None
            if found is not None:
                return found, targets
        images = list(in_order(self.image, numbers, processes=False))
        if len(self.sizes) == 1:
            return torch.stack(images), targets
        here = {tuple(image.shape) for image in images}
        others = [size for size in self.sizes if {size} != here][: 2 - len(here)]
        probes = [torch.zeros(size, dtype=images[0].dtype) for size in others]
        return Ragged([*images, *probes], len(images)), targets

    def _decoded(self, numbers: list[int]) -> Tensor | None:
        """From memory or the cache; None where they must be decoded."""
        if self.kept is not None:
            return self.kept[numbers]
        return None if self.rows is None else self.rows.get(numbers)

    def _same(self, numbers: list[int]) -> bool:
        """Whether all these files are as they were, by size and time."""
        for number, stamp in zip(numbers, self.stamps[numbers].tolist(), strict=True):
            try:
                found = os.stat(self.files.paths[number])
            except OSError:
                return False
            if [found.st_size, found.st_mtime_ns] != stamp:
                return False
        return True

    def transformed(self, transforms: tuple[Transform, ...]) -> Images:
        return replace(self, transforms=transforms)


def image_files(
    files: FileList,
    reading: Reading,
    on_bad: str = "error",
    way_out: str = "data.on_bad=skip",
    cached: bool = True,
) -> tuple[Images, Tensor, tuple[str, ...]]:
    """`(source, numbers of the good ones, notes)`: every file read once, before anything else happens.

    DataError counts the files that are missing or can't be read, and names the first ten; where `on_bad` is `skip`
    they are left out of `numbers` (int64, ascending), and a note says so: the others keep their numbers, on which
    splits and draws depend. `way_out` is what an error tells the user to type for that. With `cached`, what is decoded
    is kept on disk for the next time (`places.cache_folder`), unless that takes less than half a second.
    """
    if not files.paths:
        raise DataError(f"{files.name}: there are no images in it.")
    folder, skip = cache_folder() if cached else None, on_bad == "skip"
    place = None if folder is None else Place(folder, files.name, files.paths, reading)
    try:
        looked = look_at_all(files.paths, reading, _KEPT, place, skip)
    except MixedError:  # which the headers of all of them will tell
        looked = look_at_all(files.paths, replace(reading, mode=_common_mode(files)), _KEPT, None, skip)
    notes = looked.notes
    if looked.troubles:
        told = _told(files, list(looked.troubles.items()))
        if on_bad == "error":
            raise DataError(f"{told}\nMend them, or leave them out: {way_out}")
        if len(looked.troubles) == len(files):
            raise DataError(f"{told}\nNothing is left without them.")
        notes = (*notes, f"left out: {told}")
    good = [number for number in range(len(files)) if number not in looked.troubles]
    images = Images(files, looked.reading, looked.stamps, looked.content, looked.kept, looked.sizes, rows=looked.rows)
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
