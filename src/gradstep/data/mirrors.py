"""What the named data sets consist of, and the official addresses that have it, with their SHA-256."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath


@dataclass(frozen=True)
class File:
    """A file as it lies on the mirrors. `unpacked` is the SHA-256 of what is inside a .gz, where it is known."""

    name: str
    sha256: str
    size: int | None = None
    unpacked: str | None = None


@dataclass(frozen=True)
class Member:
    """A file inside an archive; it is put into the folder under its last name."""

    path: str
    size: int | None = None

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


@dataclass(frozen=True)
class RemoteSet:
    """What a data set needs: its files, or the `members` of the one archive that is its file."""

    mirrors: tuple[str, ...]
    files: tuple[File, ...]
    members: tuple[Member, ...] = ()


_IDX = tuple(f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))


def _idx(sizes: tuple[int, ...], sums: tuple[str, ...], unpacked: Iterable[str | None]) -> tuple[File, ...]:
    """MNIST's four files, or those of a set made after it."""
    return tuple(map(File, _IDX, sums, sizes, unpacked))


SETS: Mapping[str, RemoteSet] = {
    "mnist": RemoteSet(
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            "http://yann.lecun.com/exdb/mnist/",
        ),
        _idx(
            (9_912_422, 28_881, 1_648_877, 4_542),
            (
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            ),
            (
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            ),
        ),
    ),
    "fashion_mnist": RemoteSet(
        (
            "https://fashion-mnist.s3.eu-central-1.amazonaws.com/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        _idx(
            (26_421_880, 29_515, 4_422_102, 5_148),
            (
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            ),
            (None,) * 4,
        ),
    ),
    "cifar10": RemoteSet(
        ("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/"),
        (
            File(
                "cifar-10-binary.tar.gz",
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                170_052_171,
            ),
        ),
        (
            *(Member(f"cifar-10-batches-bin/data_batch_{number}.bin", 30_730_000) for number in range(1, 6)),
            Member("cifar-10-batches-bin/test_batch.bin", 30_730_000),
            Member("cifar-10-batches-bin/batches.meta.txt"),
        ),
    ),
}
