"""Dropout by key: a mask is a function of seed, step, layer call, sample and element, and of nothing else.

torch draws masks from a stream, in the order in which layers ask; cut the batch in pieces, and every sample has another
mask. Here each sample has two words of its own for a step, from SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable
pseudorandom number generators", section 4), and each element of a layer call hashes them with its place, by pcg4d
(Jarzynski, Olano 2020, "Hash functions for GPU rendering", JCGT 9(3), listing 4). All of it is integer arithmetic
in torch's own operations: the same bits on every device, no state, and the step is read from a tensor on the device, so
that a captured step can be replayed.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradstep.errors import ModelError
from gradstep.keys import key
from gradstep.update.pieces import Follows

Call = tuple[str, int]  # a module's name, or the name of a function, and its how-manieth call in this forward

_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)  # SplitMix64's constants, as signed 64-bit numbers
_MIX = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))
_ALPHA = 1.7580993408473766  # SELU's: Klambauer et al. 2017, section 3


def sample_words(seed: int, step: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """Two int32 words `[samples, 1]` for each sample of the batch that `step`, a 0-dimensional int64 tensor, names.

    They have had pcg4d's first step already, which would be the same for every layer call.
    """
    numbers = torch.arange(samples, device=step.device)
    state = ((step << 32) + numbers) * _GAMMA + seed
    state = (state ^ _shifted(state, 30)) * _MIX[0]
    state = (state ^ _shifted(state, 27)) * _MIX[1]
    words = (state ^ _shifted(state, 31)).view(torch.int32).view(samples, 2) * 1664525 + 1013904223
    return words[:, :1], words[:, 1:]


def _shifted(value: Tensor, by: int) -> Tensor:
    """A logical shift: torch's own keeps the sign."""
    return (value >> by) & ((1 << (64 - by)) - 1)


def bits(words: tuple[Tensor, Tensor], call: int, elements: int, kept_places: bool = True) -> Tensor:
    """`[samples, elements]` int32, uniform over all of them: pcg4d of (place, both words, call), four at a time.

    Without `kept_places` nothing is kept for the next call, nor taken from the last one.
    """
    samples, quads, device = len(words[0]), -(-elements // 4), words[0].device
    v = torch.empty((4, samples, quads), dtype=torch.int32, device=device)
    x, y, z, w = v
    (first, second), last = words, _affine(call)
    places = _places(quads, device) if kept_places else _places.__wrapped__(quads, device)
    torch.add(places, first * last, out=x)  # int32 wraps around, as it must
    torch.addcmul(first, second, x, out=y)
    torch.addcmul(second, x, y, out=z)
    torch.mul(y, z, out=w).add_(last)
    v ^= (v >> 16) & 0xFFFF  # a logical shift
    x.addcmul_(y, w)
    y.addcmul_(z, x)
    z.addcmul_(x, y)
    w.addcmul_(y, z)
    return v.transpose(0, 1).reshape(samples, 4 * quads)[:, :elements]


@functools.lru_cache(maxsize=256)
def _places(quads: int, device: torch.device) -> Tensor:
    """pcg4d's first step on 0, 1, 2, ...: int32 `[quads]`."""
    return torch.arange(quads, dtype=torch.int32, device=device).mul_(1664525).add_(1013904223)


def _affine(number: int) -> int:
    """pcg4d's first step on a Python number, as a signed 32-bit one."""
    value = (number * 1664525 + 1013904223) & 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


def kept(
    words: tuple[Tensor, Tensor], call: int, elements: int, p: float, dtype: torch.dtype, kept_places: bool = True
) -> Tensor:
    """`[samples, elements]` of `dtype`: 1 where an element is kept, which is so with probability 1 - p, else 0."""
    if p >= 1:
        return torch.zeros(len(words[0]), elements, dtype=dtype, device=words[0].device)
    least = round(p * (1 << 32)) - (1 << 31)
    return bits(words, call, elements, kept_places).ge_(least).to(dtype)


class KeyedDropout:
    """The masks of one model's dropout, for one `Update`.

    Dropout modules are known by their names; functions of `torch.nn.functional` by the order of their calls.
    `layouts` says for each call which dimension follows the samples, and how many rows each sample has there, as two
    forwards of different size have shown; None for a tensor that is no sample's, which has one mask for the batch.
    """

    def __init__(self, model: nn.Module, seed: int) -> None:
        self.seed = key(seed, "dropout")
        # A compiled model is known by the names that it had before.
        named = ((name.replace("_orig_mod.", ""), module) for name, module in model.named_modules())
        self.modules = {name: module for name, module in named if getattr(type(module), "forward", None) in _KINDS}
        self.layouts: dict[Call, Follows | None] = {}
        self.seen: dict[Call, Tensor] | None = None  # what goes into each call, while a model is looked at
        self.recomputing = False
        self._forwards = {
            name: functools.partial(self._module_forward, name, module) for name, module in self.modules.items()
        }
        self._functions = {name: self._function(name, training="alpha" not in name) for name in _FUNCTIONS}
        self._functions["scaled_dot_product_attention"] = self._scaled_dot_product_attention
        self._originals: dict[str, Callable[..., Any]] = {}
        self._calls: dict[str, int] = {}
        self._number = 0  # of the step
        self._step: Tensor | None = None  # the same on the device, once a mask is asked for
        self._words: tuple[Tensor, Tensor] | None = None
        self._samples, self._first, self._count = 0, 0, 0
        # While a graph is captured, the step is in the device's memory already, and nothing that is kept beyond the
        # forward may be made: it would be filled by a replay alone.
        self.preset = False
        self._hung: list[tuple[nn.Module, Callable[..., Any]]] = []

    def batch(self, step: int, samples: int, layouts: dict[Call, Follows | None]) -> KeyedDropout:
        """A context: inside, dropout is by key, for the batch of this step; `piece` says for which of its samples."""
        self.layouts, self._number, self._words, self._samples = layouts, step, None, samples
        self._first, self._count, self.recomputing = 0, samples, False
        self._calls.clear()
        return self

    def __enter__(self) -> None:
        # Past Module.__setattr__ and in as few calls as can be: it is done in every step, of a net without dropout too.
        if self.modules:
            self._hung = [
                (module, self._forwards[name]) for name, module in self.modules.items() if "forward" not in vars(module)
            ]
        self._originals = dict(zip(_NAMES, _taken(_TORCH), strict=True))
        try:
            for module, own in self._hung:
                vars(module)["forward"] = own
            _TORCH.update(self._functions)
        except BaseException:  # a signal between two lines
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        for module, _own in self._hung:
            vars(module).pop("forward", None)
        _TORCH.update(self._originals)
        self._words = None

    def piece(self, first: int, count: int) -> None:
        """The forward that comes is that of samples `first` to `first + count` of the batch."""
        self.at(first, count)
        self._calls.clear()

    def at(self, first: int, count: int) -> None:
        """What comes is of these samples, in the forward that has begun: a criterion of the whole batch, for
        instance."""
        self._first, self._count, self.recomputing = first, count, False

    @property
    def place(self) -> tuple[int, int]:
        """`(first sample, number of samples)` that `piece` or `at` said."""
        return self._first, self._count

    @property
    def calls(self) -> int:
        """How many masks have been asked for in this forward."""
        return sum(self._calls.values())

    def _module_forward(self, name: str, module: Any, inputs: Tensor) -> Tensor:
        if not module.training or module.p == 0:
            return inputs
        return self._dropped(name, inputs, module.p, module.inplace, *_KINDS[type(module).forward])

    def _function(self, name: str, training: bool) -> Callable[..., Any]:
        """What stands in for a function of torch.nn.functional, `training` being its default there."""

        def keyed(input: Tensor, p: float = 0.5, training: bool = training, inplace: bool = False) -> Any:
            if not training or not 0 < p <= 1:
                return self._originals[name](input, p, training, inplace)  # nothing to draw, or torch's own error
            return self._dropped(name, input, p, inplace, *_FUNCTIONS[name])

        return keyed

    def _scaled_dot_product_attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """torch's formula, as its documentation has it, written out where there is dropout inside it."""
        if dropout_p == 0:
            original = self._originals["scaled_dot_product_attention"]
            options = {"scale": scale, "enable_gqa": enable_gqa}
            attended: Tensor = original(query, key, value, attn_mask, 0.0, is_causal, **options)
            return attended
        if enable_gqa:
            key, value = (each.repeat_interleave(query.size(-3) // each.size(-3), -3) for each in (key, value))
        scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.size(-1)) if scale is None else scale)
        if is_causal:
            ones = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
            scores = scores.masked_fill(~ones.tril(), -math.inf)
        if attn_mask is not None:
            boolean = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, -math.inf) if boolean else scores + attn_mask
        weights = self._dropped(
            "scaled_dot_product_attention", torch._safe_softmax(scores, -1), dropout_p, False, False, False
        )
        return weights @ value

    def _dropped(self, name: str, inputs: Tensor, p: float, inplace: bool, features: bool, alpha: bool) -> Tensor:
        call = self._call(name)
        if self.seen is not None:  # a model is looked at: how its inputs lie is all that is asked here
            self.seen[call] = inputs.detach().clone()
            return inputs
        mask = self._mask(call, inputs, p, features)
        if not alpha:
            mask.mul_(1 / (1 - p) if p < 1 else 0.0)
            return inputs.mul_(mask) if inplace else inputs * mask
        a = 1 / math.sqrt((_ALPHA**2 * p + 1) * (1 - p)) if p < 1 else 0.0
        shift = (mask - 1).mul_(_ALPHA * a).add_(_ALPHA * a * p)
        return inputs.mul_(mask.mul_(a)).add_(shift) if inplace else inputs * mask.mul_(a) + shift

    def _call(self, name: str) -> Call:
        """Which call this is. Activation checkpointing forwards again, within the backward: a layer is known then."""
        if not self.recomputing:
            self._calls[name] = self._calls.get(name, 0) + 1
        elif self._calls.get(name) != 1:
            raise ModelError(
                f"dropout: '{name}' is called {self._calls.get(name, 0)} times in a forward and again by activation "
                "checkpointing, which can't tell the calls apart. Give each place an nn.Dropout of its own; or take "
                "dropout='stream', without micro-batches."
            )
        return name, self._calls[name]

    def _mask(self, call: Call, inputs: Tensor, p: float, features: bool) -> Tensor:
        """1 where an element is kept, else 0, in a shape that broadcasts to the inputs'."""
        layout = self.layouts.get(call)
        if layout is None:
            return self._shared_mask(call, inputs, p, features)
        dimension, rows = layout
        if inputs.shape[dimension] != rows * self._count:
            raise ModelError(
                f"dropout: '{call[0]}' got a tensor of shape {list(inputs.shape)} for {self._count} samples, where it "
                f"had {rows} rows for each in dimension {dimension} before."
            )
        rest = [size for place, size in enumerate(inputs.shape) if place != dimension]
        rest = rest[:1] + [1] * (len(rest) - 1) if features else rest
        first, last = self._first, self._first + self._count
        whole = self._sample_words(inputs.device)
        words = whole if self._count == self._samples else tuple(word[first:last] for word in whole)
        places = rows * math.prod(rest)
        mask = kept(words, _place_of(call), places, p, inputs.dtype, not self.preset)  # type: ignore[arg-type]
        return mask.view(self._count * rows, *rest).movedim(0, dimension)

    def _shared_mask(self, call: Call, inputs: Tensor, p: float, features: bool) -> Tensor:
        """For a tensor that is no sample's, such as a weight or an embedding of places: one mask, the same in all
        pieces.

        Also for what was not seen when the model was looked at, as within a criterion: there the batch must be whole.
        """
        if call not in self.layouts and self._count != self._samples:
            raise ModelError(
                f"dropout: '{call[0]}' was not called (or not so often) when the model was looked at on a few "
                "samples, so which elements are a sample's is not known. Leave micro_batch out, or call it always."
            )
        shape = inputs.shape[:2] + (1,) * (inputs.dim() - 2) if features else inputs.shape
        first, second = (word[:1] for word in self._sample_words(inputs.device))
        places = math.prod(shape)
        return kept((first, second), _place_of(call), places, p, inputs.dtype, not self.preset).view(shape)

    def _sample_words(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if self._words is None or self._words[0].device != device:
            if self._step is None or self._step.device != device:
                if self.preset:
                    raise ModelError("dropout: a mask is asked for where none was before, and its step is not known.")
                self._step = torch.zeros((), dtype=torch.int64, device=device)
            step = self._step if self.preset else self._step.fill_(self._number)
            self._words = sample_words(self.seed, step, self._samples)
        return self._words

    def write(self, number: int) -> None:
        """The step's number, to where masks read it: for a forward that is replayed, or captured now."""
        if self._step is not None:
            self._step.fill_(number)


@functools.cache
def _place_of(call: Call) -> int:
    """32 bits that belong to a layer call: the same whatever other calls there are."""
    return key(0, f"call/{call[0]}", index=call[1]) & 0x7FFFFFFF


# Whether whole features are dropped, and whether SELU's moments are kept.
_FUNCTIONS: dict[str, tuple[bool, bool]] = {
    "dropout": (False, False),
    "dropout1d": (True, False),
    "dropout2d": (True, False),
    "dropout3d": (True, False),
    "alpha_dropout": (False, True),
    "feature_alpha_dropout": (True, True),
    "scaled_dot_product_attention": (False, False),
}
_NAMES = tuple(_FUNCTIONS)
_taken = operator.itemgetter(*_NAMES)
_TORCH = vars(F)  # where torch's functions are looked up by whoever calls F.dropout
_KINDS: dict[Callable[..., Any], tuple[bool, bool]] = {
    nn.Dropout.forward: (False, False),
    nn.Dropout1d.forward: (True, False),
    nn.Dropout2d.forward: (True, False),
    nn.Dropout3d.forward: (True, False),
    nn.AlphaDropout.forward: (False, True),
    nn.FeatureAlphaDropout.forward: (True, True),
}
