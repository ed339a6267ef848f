"""Nested values with tensors become a JSON document and tensors, and come back as what they were, type by type."""

from __future__ import annotations

import collections
import json
import math
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gradstep.encoding import get, put
from gradstep.errors import CheckpointError, ModelError

CPU = torch.device("cpu")
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Any shape, empty ones and single numbers too; any order of dimensions in memory; some not dense."""
    shape = draw(st.lists(st.integers(0, 3), max_size=5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    value = torch.randint(-9, 9, shape, generator=generator).to(draw(st.sampled_from(DTYPES)))
    value = value.permute(draw(st.permutations(range(len(shape)))))
    if shape and draw(st.booleans()):
        value = value[::2]
    return value


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([2**63, -(2**63), 1 << 9999])
)
ARRAYS = st.sampled_from(
    [np.arange(6.0).reshape(2, 3), np.zeros(0, np.int8), np.float64(0.1), np.bool_(True), np.uint16([7]), np.array(3)]
)
VALUES = st.recursive(
    SCALARS | tensors() | ARRAYS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
        | st.just(torch.Size([2, 3]))
    ),
    max_leaves=8,
)


def same(one: Any, other: Any) -> bool:
    """Of the same type, and the same to the last bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        both = one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
        dense = one.numel() and one.untyped_storage().nbytes() == one.numel() * one.itemsize
        return both and (not dense or one.stride() == other.stride())
    if isinstance(one, (np.ndarray, np.generic)):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(each, other[key]) for key, each in one.items())
    return one == other if type(one) is int else repr(one) == repr(other)  # nan, and the sign of zero


def through_bytes(value: Any) -> Any:
    kept: dict[str, Tensor] = {}
    document = json.loads(json.dumps(put("x", value, kept), allow_nan=False))
    content = safetensors.torch.save(
        {name: each.clone(memory_format=torch.contiguous_format) for name, each in kept.items()}
    )
    return get(document, safetensors.torch.load(content), CPU)


@settings(max_examples=150, deadline=None)
@given(VALUES)
def test_what_was_put_comes_back_by_type_shape_strides_and_bits(value: Any) -> None:
    assert same(value, through_bytes(value))


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, -0.0, 5e-324, 10**30, -1, True, "nan", "", [], {}, ()]
)
def test_numbers_and_words_that_json_would_lose_or_mistake_come_back(value: Any) -> None:
    assert same(through_bytes({"a": value, 1: [value]}), {"a": value, 1: [value]})


def test_keys_that_make_one_path_keep_their_own_tensors() -> None:
    value = {"a": {"b": torch.zeros(2)}, "a/b": torch.ones(3), 1: torch.ones(1), "1": torch.zeros(1)}
    assert same(value, through_bytes(value))


def test_what_comes_back_shares_no_memory_with_the_file() -> None:
    kept: dict[str, Tensor] = {}
    document = put("x", [torch.zeros(3), torch.zeros(2, 3).T, np.zeros(2)], kept)
    for _ in range(2):
        for value in get(document, kept, CPU):
            assert (value == 0).all()
            value += 1


def test_a_tensor_goes_back_to_the_host_or_to_the_device_it_was_on() -> None:
    kept: dict[str, Tensor] = {}
    document = put("x", {"step": torch.zeros(()), "moment": torch.zeros(3, device="meta")}, kept)
    kept = {name: torch.zeros(each.shape) for name, each in kept.items()}
    value = get(document, kept, torch.device("meta"))
    assert (value["step"].device.type, value["moment"].device.type) == ("cpu", "meta")


class Odd(dict):  # type: ignore[type-arg]
    pass


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (collections.deque(), "a deque"),
        ({1, 2}, "a set"),
        (object(), "a object"),
        (Odd(), "a Odd"),
        (b"", "a bytes"),
        (1j, "a complex"),
        ({(1, 2): 3}, "a dict key that is a tuple"),
        ({True: 3}, "a dict key that is a bool"),
        (torch.eye(2).to_sparse(), "a sparse, quantized or nested tensor"),
        (np.array(["a"]), "an array of <U1"),
        (np.array([object()]), "an array of object"),
    ],
)
def test_anything_else_is_refused_by_its_path_and_by_who_keeps_it(value: Any, said: str) -> None:
    with pytest.raises(ModelError, match=rf"^Lion keeps 'fc\.weight/foo/0.*', {said}\. gradstep saves tensors and"):
        put("fc.weight", {"foo": [value]}, {}, keeper="Lion")


DEEP: Any = None
for _ in range(100_000):
    DEEP = {"list": [DEEP]}


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"set": []},
        {"list": {}},
        {"list": [], "tuple": []},
        {"dict": [["a"]]},
        {"dict": [[{"list": []}, 1]]},
        {"tensor": "none", "host": True},
        {"tensor": "here"},
        {"tensor": ["here"], "host": True},
        {"tensor": "here", "host": True, "strides": [10**12, 1]},
        {"tensor": "here", "host": True, "strides": [1]},
        {"tensor": "here", "host": True, "strides": [-3, 1]},
        {"tensor": "here", "host": True, "strides": "ab"},
        {"int": "zz"},
        {"float": "one"},
        [1],
        DEEP,
    ],
    ids=lambda document: str(document)[:40] if document is not DEEP else "deep",
)
def test_a_document_that_was_never_put_is_a_checkpoint_error(document: Any) -> None:
    with pytest.raises(CheckpointError, match="can't be read"):
        get(document, {"here": torch.zeros(2, 3)}, CPU)
