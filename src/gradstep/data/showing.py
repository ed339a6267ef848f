"""Data looked at before it is trained on: counts, kinds of images, bad files, exact duplicates; a sheet of samples."""

from __future__ import annotations

import hashlib
import io
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from gradstep import tree
from gradstep.data.decoding import in_order
from gradstep.data.files import FileList
from gradstep.data.images import trouble
from gradstep.data.sources import Source, targets_in_memory
from gradstep.data.split import Cut

_NAMED, _CLASSES = 10, 30  # bad files and duplicates that are named, classes that are counted one by one
_CELL, _GAP, _LABEL = 64, 2, 120  # pixels of a sheet


@dataclass(slots=True)
class _Seen:
    """One sample: a hash of its content; its mode and size if it is an image file; or what is wrong with it."""

    content: bytes = b""
    mode: str = ""
    size: str = ""
    trouble: str | None = None


@dataclass(slots=True)
class Report:
    """What was found. `duplicates` are groups of places with one content, each as (part, number)."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    modes: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)
    duplicates: list[list[tuple[str, int]]] = field(default_factory=list)
    labels: dict[tuple[str, int], str] = field(default_factory=dict)
    places: dict[tuple[str, int], str] = field(default_factory=dict)

    def lines(self) -> Iterator[tuple[str, str]]:
        """`(label, text)` for a person."""
        for part, counts in self.counts.items():
            yield part, f"{counts.total():,} samples" + (f", {len(counts):,} classes" if "" not in counts else "")
            most = (
                counts.most_common() if len(counts) > 30 else sorted(counts.items(), key=lambda item: _natural(item[0]))
            )
            for label, count in most[:30] if "" not in counts else ():
                yield "", f"{label}: {count:,}"
            if len(counts) > 30:
                yield "", f"... and {len(counts) - 30:,} smaller classes"
        for what, found in (("modes", self.modes), ("sizes", self.sizes)):
            if found:
                shown = ", ".join(f"{name} ({count:,})" for name, count in found.most_common(8))
                yield what, shown + (f" and {len(found) - 8:,} more" if len(found) > 8 else "")
        yield "bad", f"{len(self.bad):,} missing or unreadable"
        yield from (("", each) for each in _few(self.bad))
        within = [group for group in self.duplicates if len({part for part, _ in group}) == 1]
        across = [group for group in self.duplicates if len({part for part, _ in group}) > 1]
        yield (
            "copies",
            f"{len(within):,} samples are there more than once within a part, {len(across):,} across parts",
        )
        differ = [group for group in self.duplicates if len({self.labels.get(place, "") for place in group}) > 1]
        if differ:
            yield "", f"{len(differ):,} of them under different labels"
        told = [" = ".join(self._named(place) for place in group[:3]) for group in differ + across + within]
        yield from (("", each) for each in _few(list(dict.fromkeys(told))))

    def _named(self, place: tuple[str, int]) -> str:
        label = self.labels.get(place)
        return f"{place[0]}: {self.places[place]}" + (f" [{label}]" if label else "")


def look_through(parts: Mapping[str, Cut]) -> Report:
    """Reads every sample of the parts."""
    report, groups = Report(), defaultdict(list)
    for part, cut in parts.items():
        whole, numbers = cut.whole, cut.numbers
        labels = labels_of(whole)
        report.counts[part] = Counter("" if labels is None else labels[number] for number in numbers.tolist())
        for number, seen in zip(numbers.tolist(), _read(whole, numbers), strict=True):
            place = (part, number)
            named = whole.place(number) if isinstance(whole, FileList) else f"sample {number}"
            if seen.trouble is not None:
                report.bad.append(f"{named}: {seen.trouble}")
                continue
            groups[seen.content].append(place)
            report.places[place] = named
            if labels is not None:
                report.labels[place] = labels[number]
            if seen.mode:
                report.modes[seen.mode] += 1
                report.sizes[seen.size] += 1
    report.duplicates = [group for group in groups.values() if len(group) > 1]
    return report


def labels_of(whole: FileList | Source) -> list[str] | None:
    """The label of each sample by name, where samples have classes."""
    targets: Any = targets_in_memory(whole)
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.dim() != 1:
        return None
    classes = whole.classes
    return [classes[number] if classes else str(number) for number in targets.tolist()]


def sheet(images: Mapping[str, list[Tensor]]) -> Image.Image:
    """A row of samples for each label: images `[C, H, W]`, uint8 or floats in [0, 1], each fitted into a square."""
    columns = max((len(row) for row in images.values()), default=0)
    step = _CELL + _GAP
    page = Image.new("RGB", (_LABEL + columns * step + _GAP, len(images) * step + _GAP), "white")
    draw = ImageDraw.Draw(page)
    for row, (label, samples) in enumerate(images.items()):
        draw.text((4, row * step + _CELL // 2 - 5), label[:18], fill="black")
        for column, each in enumerate(samples):
            page.paste(_fitted(each), (_LABEL + column * step, row * step + _GAP))
    return page


def _fitted(image: Tensor) -> Image.Image:
    """Small images in whole multiples of their pixels, so that pixels are seen; large ones shrunk."""
    if image.is_floating_point():
        image = image.clamp(0, 1).mul(255).round().to(torch.uint8)
    values = (image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)).permute(1, 2, 0).contiguous().numpy()
    picture, largest = Image.fromarray(values), max(values.shape[:2])
    scale = _CELL // largest if largest <= _CELL else _CELL / largest
    width, height = (max(1, math.floor(side * scale)) for side in picture.size)
    shrunk = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BILINEAR
    cell = Image.new("RGB", (_CELL, _CELL), "lightgrey")
    cell.paste(picture.resize((width, height), shrunk), ((_CELL - width) // 2, (_CELL - height) // 2))
    return cell


def _read(whole: FileList | Source, numbers: Tensor) -> Iterator[_Seen]:
    if isinstance(whole, FileList):
        yield from in_order(_seen, [whole.paths[number] for number in numbers.tolist()])
        return
    for some in numbers.split(1024):
        inputs = tree.tensors(whole.batch(some, 0, 0)[0])
        for row in range(len(some)):
            content = hashlib.blake2b(digest_size=16)
            for tensor in inputs:
                content.update(tensor[row].contiguous().numpy().tobytes())
            yield _Seen(content.digest())


def _seen(path: str) -> _Seen:
    try:
        with open(path, "rb") as file:
            raw = file.read()
        with Image.open(io.BytesIO(raw)) as image:
            image.load()  # a file that is cut off says so only when all of it is decoded
            width, height = image.size
            return _Seen(hashlib.blake2b(raw, digest_size=16).digest(), image.mode, f"{height}×{width}")
    except Exception as error:
        return _Seen(trouble=trouble(error))


def _few(texts: list[str]) -> list[str]:
    return texts[:_NAMED] + ([f"... and {len(texts) - _NAMED:,} more"] if len(texts) > _NAMED else [])


def _natural(label: str) -> tuple[int, float, str]:
    return (0, float(label), "") if label.replace(".", "", 1).isdigit() else (1, 0.0, label)
