from collections import OrderedDict, namedtuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from gradstep import tree

Pair = namedtuple("Pair", "left right")


def nests(leaves):
    """Any nesting of `leaves` in the containers that batches come in."""
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, min_size=1, max_size=3),
            st.tuples(inner, inner),
            st.builds(Pair, inner, inner),
            st.dictionaries(st.text("abc", max_size=2), inner, min_size=1, max_size=3),
            st.dictionaries(st.text("abc", max_size=2), inner, min_size=1, max_size=3).map(OrderedDict),
        ),
        max_leaves=6,
    )


def batches(size: int):
    shapes = st.lists(st.integers(0, 3), max_size=2).map(lambda rest: (size, *rest))
    dtypes = st.sampled_from([torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool])
    return nests(st.builds(lambda shape, dtype: torch.randint(0, 2, shape).to(dtype), shapes, dtypes))


mixed = nests(
    st.one_of(
        st.integers(-9, 9).map(torch.tensor),
        st.none(),
        st.integers(),
        st.text("abc", max_size=3),
        st.just(torch.ones(2, 3)),
    )
)


def same(one, other) -> bool:
    """Equal in structure, values, shapes and dtypes."""
    (a, as_one), (b, as_other) = pytree.tree_flatten(one), pytree.tree_flatten(other)
    return as_one == as_other and all(
        type(x) is type(y) and (x.dtype == y.dtype and torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y)
        for x, y in zip(a, b, strict=True)
    )


@given(st.data(), st.integers(1, 5), st.integers(1, 5))
def test_what_is_cut_along_its_samples_and_joined_again_is_the_same(data, size, piece):
    batch = data.draw(batches(size))
    pieces = [tree.map_tensors(lambda t, a=a: t[a : a + piece], batch) for a in range(0, size, piece)]
    assert same(tree.concatenate(pieces), batch)


@given(st.data(), st.integers(0, 5))
def test_a_batch_knows_how_many_samples_it_holds(data, size):
    assert tree.samples(data.draw(batches(size))) == size


def test_what_has_no_first_dimension_does_not_count_samples():
    assert tree.samples({"weight": torch.tensor(3.0), "x": torch.zeros(4, 2)}) == 4
    assert tree.samples((torch.tensor(3.0), "no tensor", None)) is None


@given(mixed)
def test_mapping_reaches_every_tensor_once_and_nothing_else(nest):
    seen = []
    mapped = tree.map_tensors(lambda t: seen.append(t) or t + 1, nest)
    assert [id(t) for t in seen] == [id(t) for t in tree.tensors(nest)]
    assert [id(t) for t in tree.tensors(nest)] == [
        id(leaf) for leaf in pytree.tree_leaves(nest) if isinstance(leaf, torch.Tensor)
    ]
    assert same(tree.map_tensors(lambda t: t - 1, mapped), nest)
    assert pytree.tree_structure(mapped) == pytree.tree_structure(nest)


@given(mixed)
def test_on_the_device_it_already_is_on_a_nest_stays_the_same_tensors(nest):
    moved = tree.to_device(nest, torch.device("cpu"))
    assert [id(t) for t in tree.tensors(moved)] == [id(t) for t in tree.tensors(nest)]
    assert same(moved, nest)


def test_detaching_cuts_every_tensor_from_its_graph_and_copies_none():
    weight = torch.ones(3, requires_grad=True)
    outputs = {"a": weight * 2, "b": [weight.sum(), "text"]}
    cut = tree.detach(outputs)
    assert not any(t.requires_grad for t in tree.tensors(cut))
    assert cut["a"].data_ptr() == outputs["a"].data_ptr()
    assert cut["b"][1] == "text"


@pytest.mark.parametrize(
    ("nest", "text"),
    [
        (torch.zeros(64, 1, 32, 32), "64×1×32×32 float32"),
        (torch.tensor(1), "scalar int64"),
        ((torch.zeros(2, 3), [torch.zeros(2, dtype=torch.bool)]), "(2×3 float32, (2 bool))"),
        ({"ids": torch.zeros(2, dtype=torch.uint8), "name": "x"}, "{ids: 2 uint8, name: str}"),
        (None, "NoneType"),
    ],
)
def test_a_description_nests_as_the_batch_does(nest, text):
    assert tree.describe(nest) == text
