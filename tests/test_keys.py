import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradstep.keys import kept_streams, key, seed_model, seed_sample

quadruples = st.tuples(
    st.integers() | st.integers(0, 12), st.text("a/1é", max_size=3), st.integers(0, 12), st.integers(0, 12)
)


def draws() -> list[float]:
    """The next numbers of every global stream, halves of Gaussian pairs among them."""
    return [
        *(random.random(), random.gauss(0, 1)),
        *(np.random.rand(), np.random.randn()),
        *(torch.rand(()).item(), torch.randn((), dtype=torch.float64).item()),
    ]


@pytest.mark.parametrize(
    ("parts", "value"),
    [
        ((0, "order"), 1778561849141805087),
        ((0, "order", 1), 7884414374257917300),
        ((1, "order", 2), 1617531488503020080),
        ((2, "order", 1), 3599497959702832158),
        ((7, "sample", 3, 41), 7693815993750113552),
        ((-1, "x"), 1967560636920287559),
        ((2**70, "naïve / purpose", 5, 6), 3142681190254073160),
    ],
)
def test_a_key_is_the_same_for_good(parts, value):
    assert key(*parts) == value


@given(quadruples, quadruples)
def test_a_key_has_63_bits_and_belongs_to_its_four_parts_alone(one, other):
    assert 0 <= key(*one) < 2**63
    assert (key(*one) == key(*other)) == (one == other)


def test_the_parts_are_neither_added_nor_run_together():
    assert key(1, "order", 2) != key(2, "order", 1)
    assert key(1, "a", 23, 4) != key(1, "a", 2, 34)
    assert key(1, "a/2", 3, 4) != key(1, "a", 2, 34)
    grid = {key(s, p, e, i) for s in range(12) for p in ("order", "sample") for e in range(12) for i in range(60)}
    assert len(grid) == 12 * 2 * 12 * 60


@given(st.integers(0, 2**63 - 1))
def test_seeding_a_sample_fixes_all_three_global_streams(value):
    with kept_streams():
        seed_sample(value)
        first = draws()
        draws()
        seed_sample(value)
        assert draws() == first
        seed_sample(value ^ 1)
        assert all(a != b for a, b in zip(draws(), first, strict=True))


@given(st.integers(0, 2**63 - 1))
def test_seeding_a_model_is_torchs_own_seeding_and_touches_no_other_stream(value):
    with kept_streams():
        torch.manual_seed(value)
        expected = torch.randn(5)
        python, numpy = random.getstate(), np.random.get_state()[1].copy()
        seed_model(torch.device("cpu"), value)
        assert torch.equal(torch.randn(5), expected)
        assert random.getstate() == python
        assert np.array_equal(np.random.get_state()[1], numpy)


@given(st.integers(0, 2**32 - 1), st.integers(0, 3), st.integers(0, 3), st.booleans())
def test_the_streams_go_on_as_if_nothing_had_been_drawn_or_seeded(seed, before, inside, fails):
    with kept_streams():
        seed_sample(seed)
        for _ in range(before):
            draws()  # an odd count leaves half a Gaussian pair behind
        expected = [draws(), draws()]
        seed_sample(seed)
        for _ in range(before):
            draws()
        try:
            with kept_streams(torch.device("cpu")):
                for _ in range(inside):
                    draws()
                seed_sample(seed + 1)
                if fails:
                    raise KeyError
        except KeyError:
            pass
        assert [draws(), draws()] == expected
