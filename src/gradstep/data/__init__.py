"""Data: sources, their order, the feed that makes batches of them, and transforms of whole batches."""

from gradstep.data.adapt import Given, adapt, as_source
from gradstep.data.arrays import Stored, arrays, npz_parts
from gradstep.data.augment import (
    Color,
    Crop,
    CutOut,
    Flip,
    RandomResizedCrop,
    Rotate,
    Shift,
    augmentation_from_document,
    augmentations_of,
    document_of,
)
from gradstep.data.cifar import cifar
from gradstep.data.draws import BatchDraws, Draws
from gradstep.data.feed import BatchFeed, Feed, OwnFeed, OwnOrder
from gradstep.data.files import FileList, Images, Survey, headers_of, image_files, per_sample
from gradstep.data.folder import images_in, read_folder
from gradstep.data.hub import hub_source, hub_splits, is_dataset, is_dataset_dict
from gradstep.data.idx import idx, read_idx
from gradstep.data.images import SUFFIXES, Reading, UnreadableError, is_image, native_mode, read_image
from gradstep.data.listing import is_text
from gradstep.data.mix import CutMix, MixUp
from gradstep.data.named import NAMED, load_named
from gradstep.data.opening import Options, is_on_disk, open_data, open_parts, survey
from gradstep.data.order import permutation
from gradstep.data.pipeline import augmented, is_mix
from gradstep.data.places import cache_folder, data_folder
from gradstep.data.sources import (
    PARTS,
    Augmented,
    Items,
    Part,
    Source,
    Splits,
    Tensors,
    augmentations,
    class_names,
    fingerprint,
    original,
    paths,
    prepare,
    targets_in_memory,
)
from gradstep.data.split import Cut, split
from gradstep.data.table import list_of_paths, read_csv, rows_of
from gradstep.data.transforms import (
    CenterCrop,
    Normalize,
    Resize,
    SubtractMean,
    ToFloat,
    Transform,
    from_document,
    transforms_of,
)

__all__ = [
    "NAMED",
    "PARTS",
    "SUFFIXES",
    "Augmented",
    "BatchDraws",
    "BatchFeed",
    "CenterCrop",
    "Color",
    "Crop",
    "Cut",
    "CutMix",
    "CutOut",
    "Draws",
    "Feed",
    "FileList",
    "Flip",
    "Given",
    "Images",
    "Items",
    "MixUp",
    "Normalize",
    "Options",
    "OwnFeed",
    "OwnOrder",
    "Part",
    "RandomResizedCrop",
    "Reading",
    "Resize",
    "Rotate",
    "Shift",
    "Source",
    "Splits",
    "Stored",
    "SubtractMean",
    "Survey",
    "Tensors",
    "ToFloat",
    "Transform",
    "UnreadableError",
    "adapt",
    "arrays",
    "as_source",
    "augmentation_from_document",
    "augmentations",
    "augmentations_of",
    "augmented",
    "cache_folder",
    "cifar",
    "class_names",
    "data_folder",
    "document_of",
    "fingerprint",
    "from_document",
    "headers_of",
    "hub_source",
    "hub_splits",
    "idx",
    "image_files",
    "images_in",
    "is_dataset",
    "is_dataset_dict",
    "is_image",
    "is_mix",
    "is_on_disk",
    "is_text",
    "list_of_paths",
    "load_named",
    "native_mode",
    "npz_parts",
    "open_data",
    "open_parts",
    "original",
    "paths",
    "per_sample",
    "permutation",
    "prepare",
    "read_csv",
    "read_folder",
    "read_idx",
    "read_image",
    "rows_of",
    "split",
    "survey",
    "targets_in_memory",
    "transforms_of",
]
