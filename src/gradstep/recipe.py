"""The recipe: the whole of a run as one document. Its keys are `fit`'s keywords.

Reading one needs no torch. What is wrong in it is found here as far as words and numbers go; whether the named
objects exist, and take what they are given, is found when they are built.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from gradstep.clock import Duration
from gradstep.errors import RecipeError, nearest
from gradstep.plan.asked import Asked
from gradstep.words import OTHERWISE, SYNONYMS
from gradstep.yaml12 import read_yaml, write_yaml

Whole = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Where = str | dict[str, str]
Column = str | int
Named = dict[str, Any]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


class Columns(_Document):
    """The recipe's `data.columns`: which columns of a CSV mean what, by name or by number, counted from 0."""

    path: Column | None = None
    """The image files, relative to the CSV; the column that looks so, unless given."""
    inputs: list[Column] | None = None
    """The numbers of a table; all columns that are nothing else, unless given."""
    target: Column | list[Column] | None = None
    """The label, or the number; several make a regression on all of them."""
    split: Column | None = None
    """Which part a row belongs to: train, valid or test."""


class Images(_Document):
    """The recipe's `data.images`: how image files become tensors."""

    mode: str | None = None
    """L (grey), RGB, RGBA, or F for 16-bit greys; may be left out where all files are L or all are RGB."""
    ground: str | None = None
    """What shows through where there is transparency: white, black, '#ff8000'."""
    size: int | list[int] | None = None
    """Every image is resized to it as it is read: 64, or [height, width]."""


class Data(_Document):
    """The recipe's `data`: the parts, and what is done to their inputs."""

    train: Where
    """A named data set, a CSV, a folder per class, .npz, `{inputs: FILE.npy, targets: FILE.npy}`, IDX files as
    `{images: FILE, labels: FILE}`, or `module:object`."""
    valid: float | Where | None = None
    """The same, or the share of the training part to set aside, stratified by class."""
    test: float | Where | None = None
    """The same; kept for the end. A named data set gives its own test part."""
    columns: Columns = Columns()
    """Of a CSV: {path: file, target: label, split: part}."""
    targets: str | None = None
    """What a CSV's labels are: classes or numbers; seen from them, unless given."""
    images: Images = Images()
    """How image files are read: {mode: RGB, ground: white, size: 64}."""
    on_bad: str = "error"
    """What is done about images that are missing or can't be read: error, or skip."""
    transform: str | dict[str, str] | None = None
    """`module:callable` for each Pillow image, torchvision's among them; {train: ..., valid: ..., test: ...}."""
    target_transform: str | None = None
    """`module:callable` for each target."""
    transforms: list[str | Named] = []
    """Of the inputs: float, {resize: 32}, {center_crop: 28}, {normalize: measured}, {subtract_mean: measured}."""
    augment: list[str | Named] = []
    """In training only, before the transforms: flip, {shift: 2}, {crop: {size: 32, pad: 4}}, {mixup: 0.2}, ..."""
    split_seed: Whole = 0
    """Draws the parts that are set aside; apart from `seed`, so that seeds are compared on the same samples."""
    limit: Positive | None = None
    """Only the first so many samples of each part: what --test-run sets."""


class Checkpoint(_Document):
    """The recipe's `checkpoint`."""

    every: str = "1 epoch"
    """How often one is written; also whenever the best is new, and at the end."""
    keep: Positive = 2
    """How many of the newest are kept, beside the best."""
    keep_every: str | None = None
    """Those after each so many `epochs` or `steps` are kept for good."""

    @field_validator("every", "keep_every", mode="before")
    @classmethod
    def _duration(cls, value: Any, info: ValidationInfo) -> str | None:
        return None if value is None else str(Duration.parse(value, f"checkpoint.{info.field_name}"))


class Recipe(_Document):
    """What one run is. `optimizer`, `criterion`, `schedule` and `model` may be a name alone."""

    data: Data
    """Where the samples come from."""
    model: Named
    """`{class: module:Class, weights: FILE.safetensors}` and the class's own arguments."""
    criterion: Named
    """A loss of torch.nn by name, `module:object`, or `{terms: {a: ..., b: ...}, weights: {a: 1.0, b: 0.1}}`."""
    batch_size: Positive
    """The samples of one optimizer step."""
    drop_last: bool = False
    """Whether the smaller last batch of an epoch is left out."""
    micro_batch: Positive | None = None
    """The samples in memory at once, at most: a matter of memory, which changes no result."""
    stat_group: Positive | None = None
    """BatchNorm's statistics are those of each so many consecutive samples: needed with micro_batch."""
    epochs: Positive | None = None
    """How long; this or `steps`."""
    steps: Positive | None = None
    """How long, in optimizer steps."""
    optimizer: Named
    """`{name: SGD, lr: 0.1}`: a class of torch.optim, or `module:Class`, and its arguments."""
    groups: Named | None = None
    """`{features: {lr_scale: 0.1, freeze: 2 epochs}, "*.bias": {weight_decay: 0}}`; no_decay, layer_decay."""
    schedule: Named | None = None
    """`{name: cosine, warmup: 1 epoch}`, a class of torch's schedulers, `module:object`; `{lr: ..., momentum: ...}`."""
    init: Named | None = None
    """heuristic, xavier, xavier_caffe, kaiming, ...: `{name: xavier, distribution: normal}`; else the model's own."""
    clip: float | Named | None = None
    """The largest norm of all gradients together, or `{value: 0.5}` for each element."""
    ema: float | Named | None = None
    """The decay of a moving average of the weights, or `{decay: 0.999, start: 1 epoch, evaluate: true}`."""
    on_nonfinite: str | dict[str, int] = "stop"
    """Where a loss or gradient is no number: stop, or leave the step out: skip, rewind, `{skip: 10}`."""
    metrics: list[str | Named] = []
    """accuracy, {top_k: 5}, confusion_matrix, mse, mae, or `module:object`."""
    monitor: str | Named | None = None
    """The metric that chooses the best: the first of `metrics`, else the loss. `{name: ..., mode: min}`."""
    patience: str | dict[str, int] | None = None
    """`3 epochs` without a new best, or `{falls: 1}`, ends the training."""
    evaluate_every: str = "1 epoch"
    """How often the validation part is evaluated."""
    evaluate_train: bool = False
    """Whether the training part is evaluated then too, for numbers that are not taken while training."""
    checkpoint: Checkpoint = Checkpoint()
    """What is kept on disk."""
    log_every: str = "50 steps"
    """How often the running loss and the rate are recorded."""
    hooks: list[str | Named] = []
    """`{name: TensorBoard, histograms: 100 steps}`, or `{name: module:Class, ...}`."""
    seed: Whole = 0
    """Initialisation, order and the model's random draws are functions of it."""
    dropout: Literal["keyed", "stream"] = "keyed"
    """Masks that are functions of seed, step, layer call, sample and element; or torch's own stream, seeded by step."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    precision: str = "fp32"
    """fp32; or bf16, or fp16 with its loss scaled: autocast around the forward, refused where it would be slower."""
    workers: Whole = 0
    """Processes that load a map-style data set; they change no batch."""
    plan: str | dict[str, Any] = "measured"
    """measured, plain (the textbook loop), or by switches: memory_format, optimizer, threads, evaluation, compile."""
    unpack: str | None = None
    """`module:function` of a batch that gives (inputs, targets)."""
    forward: str | None = None
    """`module:function` of (model, inputs) that gives the outputs."""
    quiet: bool = False
    """Whether nothing is printed."""

    @field_validator("evaluate_every", "log_every", "patience", mode="before")
    @classmethod
    def _duration(cls, value: Any, info: ValidationInfo) -> Any:
        return (
            value if value is None or isinstance(value, Mapping) else str(Duration.parse(value, str(info.field_name)))
        )

    @field_validator("plan")
    @classmethod
    def _plan(cls, value: Any) -> Any:
        Asked.parse(value)
        return value

    @classmethod
    def parse(cls, document: Any, name: str = "the recipe") -> Recipe:
        """A recipe out of plain dicts and lists. RecipeError names each key that is wrong, and what it should be."""
        if not isinstance(document, Mapping):
            raise RecipeError(f"{name}: a recipe is a mapping of keys to values, and this is {document!r}.")
        document = spelled_out(document)
        try:
            recipe = cls.model_validate(document)
        except ValidationError as error:
            raise RecipeError("\n".join(_explained(error, document))) from None
        if (recipe.epochs is None) == (recipe.steps is None):
            both = ", not both: write epochs=null to take it away" if recipe.epochs else ""
            raise RecipeError(f"{name}: give either epochs or steps{both}.")
        return recipe

    def document(self) -> dict[str, Any]:
        """Plain dicts and lists, defaults included, what is None left out: itself a recipe."""
        document = self.model_dump(exclude_none=True)
        data: dict[str, Any] = document["data"]
        for section in ("columns", "images"):  # of files that there may be none of
            if not data[section]:
                del data[section]
        return document

    def to_yaml(self) -> str:
        return write_yaml(self.document())


_SECTIONS: dict[str, type[BaseModel]] = {
    "data": Data,
    "data.columns": Columns,
    "data.images": Images,
    "checkpoint": Checkpoint,
}


def spelled_out(document: Mapping[str, Any]) -> dict[str, Any]:
    """A document with its shorthands in full, so that `optimizer.lr` has a place to go, and without its nulls."""
    full = {field: value for field, value in document.items() if value is not None}
    names = ("optimizer", "criterion", "schedule", "init")
    for field, key in (("model", "class"), *((name, "name") for name in names)):
        if isinstance(full.get(field), str):
            full[field] = {key: full[field]}
    if isinstance(full.get("data"), str):
        full["data"] = {"train": full["data"]}
    if isinstance(full.get("data"), Mapping):
        full["data"] = {field: value for field, value in full["data"].items() if value is not None}
        for field in ("transforms", "augment"):
            if isinstance(full["data"].get(field), (str, Mapping)):
                full["data"][field] = [full["data"][field]]
    for field in ("metrics", "hooks"):
        if isinstance(full.get(field), (str, Mapping)):
            full[field] = [full[field]]
    for field, key in (("checkpoint", "every"), ("clip", "norm"), ("ema", "decay")):
        if field in full and not isinstance(full[field], Mapping):
            full[field] = {key: full[field]}
    if isinstance(full.get("schedule"), Mapping):
        full["schedule"] = _with_names(full["schedule"])
    if isinstance(full.get("groups"), Mapping):
        groups = {str(pattern): options for pattern, options in full["groups"].items()}  # a Sequential counts its parts
        for pattern, options in groups.items():
            if isinstance(options, Mapping) and "schedule" in options:
                own = {"schedule": options["schedule"]}
                groups[pattern] = {**options, "schedule": _with_names(own)["schedule"]}
        full["groups"] = groups
    return full


def _with_names(schedules: Mapping[str, Any]) -> dict[str, Any]:
    """Of schedules for several options, those that are a name alone, in full."""
    if "name" in schedules:
        return dict(schedules)
    return {option: {"name": each} if isinstance(each, str) else each for option, each in schedules.items()}


def override(document: Mapping[str, Any], settings: list[str]) -> dict[str, Any]:
    """The document with `key=value` settings carried out, keys addressed by dots, values read as YAML."""
    changed = spelled_out(document)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise RecipeError(f"'{setting}' is not key=value, as in optimizer.lr=0.1.")
        *path, last = key.split(".")
        if path and path[0] not in Recipe.model_fields:
            raise RecipeError(_unknown(path[0], "", list(Recipe.model_fields)))
        place = changed
        for part in path:
            inner = place.get(part)
            if inner is not None and not isinstance(inner, Mapping):
                raise RecipeError(f"'{setting}': '{part}' is {inner!r}, and has no '{last}'. Write it as a whole.")
            place[part] = dict(inner or {})
            place = place[part]
        place[last] = read_yaml(text, f"'{setting}'")
        changed = spelled_out(changed)
    return changed


def is_recipe(what: str) -> bool:
    """Whether a word means a recipe: a built-in one, a file that ends in .yaml, or a run's folder."""
    path = Path(what)
    return what in builtin() or path.suffix in (".yaml", ".yml") or (path / "recipe.yaml").exists()


def find(what: str) -> tuple[str, dict[str, Any]]:
    """`(name, document)` of a recipe file or a built-in recipe. RecipeError names the nearest there is."""
    path = Path(what)
    if path.is_dir() and (path / "recipe.yaml").exists():
        path = path / "recipe.yaml"
    if path.suffix in (".yaml", ".yml"):
        try:
            content = path.read_text()
        except OSError as error:
            raise RecipeError(f"{path}: the recipe can't be read ({error.strerror}).") from None
        document = read_yaml(content, str(path))
        name = path.parent.name.split("-", 1)[-1] if path.name == "recipe.yaml" else path.stem
    elif what in builtin():
        name, document = what, read_yaml(builtin_text(what), what)
    else:
        known, here = builtin(), [each.name for each in Path().iterdir()]
        raise RecipeError(
            f"there is no recipe '{what}'. Built in: {', '.join(known)}; a recipe file ends in .yaml; and there is no "
            f"file, folder or data set of that name.{nearest(what, [*known, *here])}"
        )
    if not isinstance(document, Mapping):
        raise RecipeError(f"{what}: a recipe is a mapping of keys to values, and this is {document!r}.")
    return name, dict(document)


def builtin() -> list[str]:
    """The names of the recipes that come with gradstep."""
    folder = resources.files("gradstep") / "recipes"
    return sorted(path.name.removesuffix(".yaml") for path in folder.iterdir() if path.name.endswith(".yaml"))


def builtin_text(name: str) -> str:
    return (resources.files("gradstep") / "recipes" / f"{name}.yaml").read_text()


def _explained(error: ValidationError, document: Mapping[str, Any]) -> list[str]:
    """One line per wrong key, in the recipe's words. A union's several complaints about one value become one."""
    complaints: dict[str, tuple[Any, list[str]]] = {}
    lines: list[str] = []
    for each in error.errors():
        path = _path(each["loc"], document)
        if each["type"] == "extra_forbidden":
            *inside, last = each["loc"]
            prefix = ".".join(map(str, inside))
            lines.append(_unknown(str(last), prefix, list(_SECTIONS.get(prefix, Recipe).model_fields)))
        elif each["type"] == "missing":
            lines.append(f"'{path}' is missing. {_docstring(path)}")
        else:
            said = (
                each["msg"]
                .replace("Input should be", "")
                .replace("a valid", "a")
                .replace("a integer", "a whole number")
                .strip()
            )
            complaints.setdefault(path, (each["input"], []))[1].append(said)
    for path, (value, several) in complaints.items():
        lines.append(f"{path}: {value!r} should be {' or '.join(dict.fromkeys(several))}. {_docstring(path)}".rstrip())
    return lines


def _path(location: tuple[Any, ...], document: Any) -> str:
    """The keys of a location that are the document's; pydantic's own names for a union's branches left out."""
    keys: list[str] = []
    for number, part in enumerate(location):
        inside = isinstance(document, Mapping) and (part in document or number == len(location) - 1 == len(keys))
        if inside or (isinstance(document, list) and isinstance(part, int)):
            keys.append(str(part))
            document = document.get(part) if isinstance(document, Mapping) else document[part]
    return ".".join(keys) or ".".join(map(str, location))


def _docstring(path: str) -> str:
    """What the recipe says about a key: the last part of a bad value's error."""
    section, _, key = path.rpartition(".")
    field = _SECTIONS.get(section, Recipe).model_fields.get(key if section in _SECTIONS else path.split(".")[0])
    return field.description or "" if field else ""


def _unknown(key: str, prefix: str, known: list[str]) -> str:
    called = SYNONYMS.get(key.lower(), "").format(key)
    if not prefix and key in OTHERWISE:
        return f"there is no key '{key}': {OTHERWISE[key]}."
    if not prefix and called:
        return f"there is no key '{key}'. It is called '{called}' here."
    where = f" in '{prefix}'" if prefix else ""
    return f"there is no key '{key}'{where}.{nearest(key, known) or ' There are ' + ', '.join(known) + '.'}"
