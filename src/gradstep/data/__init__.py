"""Data: sources, their order, the feed that makes batches of them, and transforms of whole batches."""

from gradstep.data.adapt import Given, adapt, as_source
from gradstep.data.feed import BatchFeed, Feed, OwnFeed, OwnOrder
from gradstep.data.idx import idx, read_idx
from gradstep.data.named import NAMED, data_folder, load_named
from gradstep.data.order import permutation
from gradstep.data.sources import Items, Part, Source, Splits, Tensors, prepare, targets_in_memory
from gradstep.data.split import split
from gradstep.data.transforms import Normalize, Resize, SubtractMean, ToFloat, Transform, from_document

__all__ = [
    "NAMED",
    "BatchFeed",
    "Feed",
    "Given",
    "Items",
    "Normalize",
    "OwnFeed",
    "OwnOrder",
    "Part",
    "Resize",
    "Source",
    "Splits",
    "SubtractMean",
    "Tensors",
    "ToFloat",
    "Transform",
    "adapt",
    "as_source",
    "data_folder",
    "from_document",
    "idx",
    "load_named",
    "permutation",
    "prepare",
    "read_idx",
    "split",
    "targets_in_memory",
]
