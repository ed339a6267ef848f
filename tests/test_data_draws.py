"""The draws against published vectors, a generator written a second time, and the distributions they should have."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gradstep.data import BatchDraws, Draws
from gradstep.data.draws import philox
from gradstep.keys import key

KNOWN = [  # Random123's kat_vectors, philox4x32 10: counter, key, what comes
    ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]
word = st.integers(0, 2**32 - 1)
seeds = st.integers(0, 2**63 - 1)
epochs = st.integers(0, 10_000)
numbers = st.one_of(st.integers(0, 200), st.integers(0, 2**40), st.integers(2**62, 2**63 - 1))


def scalar_philox(counter, key_words):
    """As the paper has it, in Python's own integers: one round a call of `mulhilo`, the key bumped between rounds."""

    def mulhilo(a, b):
        return divmod(a * b, 1 << 32)

    x, k = list(counter), list(key_words)
    for number in range(10):
        if number:
            k = [(k[0] + 0x9E3779B9) % (1 << 32), (k[1] + 0xBB67AE85) % (1 << 32)]
        hi0, lo0 = mulhilo(0xD2511F53, x[0])
        hi1, lo1 = mulhilo(0xCD9E8D57, x[2])
        x = [hi1 ^ x[1] ^ k[0], lo1, hi0 ^ x[3] ^ k[1], lo0]
    return x


def together(counters, key_words):
    """`philox` on several counters at once, as a list of its four words for each."""
    words = philox(tuple(np.array(column, np.uint64) for column in zip(*counters, strict=True)), tuple(key_words))
    return np.stack(words, 1).tolist()


def uniform(count, *, seed=0, epoch=0, samples=(0,), place=0):
    return Draws(seed, epoch, torch.tensor(samples, dtype=torch.int64), place).uniform(count)


def correlation(a, b):
    return float(np.corrcoef(np.asarray(a), np.asarray(b))[0, 1])


def ks_distance(values, distribution):
    """The greatest distance between the values' own distribution and another, by hand."""
    ordered = np.sort(np.asarray(values))
    theirs, n = distribution(ordered), len(ordered)
    return max((np.arange(1, n + 1) / n - theirs).max(), (theirs - np.arange(n) / n).max())


def ks_limit(n):
    """What the distance stays below in all but one of 100,000 draws."""
    return math.sqrt(-math.log(1e-5 / 2) / 2 / n)


# Philox


@pytest.mark.parametrize(("counter", "key_words", "expected"), KNOWN)
def test_the_published_vectors_come_out(counter, key_words, expected):
    assert together([counter], key_words) == [expected]
    assert scalar_philox(counter, key_words) == expected


@given(st.lists(st.tuples(word, word, word, word), min_size=1, max_size=5), st.tuples(word, word))
def test_it_is_philox_written_a_second_time(counters, key_words):
    assert together(counters, key_words) == [scalar_philox(counter, key_words) for counter in counters]


def test_a_call_leaves_its_counters_alone():
    counter = tuple(np.arange(3, dtype=np.uint64) for _ in range(4))
    philox(counter, (1, 2))
    assert all((part == np.arange(3)).all() for part in counter)


# draws of samples


@given(seeds, epochs, numbers, st.integers(0, 2**32 - 1), st.integers(1, 22))
def test_a_draw_is_the_word_at_its_counter_over_two_to_the_32(seed, epoch, sample, place, count):
    whole = key(seed, "augment", epoch)
    words = []
    for block in range(6):
        counter = (sample % 2**32, sample >> 32, place, block)
        words += scalar_philox(counter, (whole % 2**32, whole >> 32))
    drawn = uniform(count, seed=seed, epoch=epoch, samples=[sample], place=place)
    assert drawn.dtype == torch.float64
    assert drawn.tolist() == [[each / 2**32 for each in words[:count]]]
    assert bool(((drawn >= 0) & (drawn < 1)).all())


@given(seeds, epochs, st.lists(numbers, min_size=1, max_size=6), st.integers(1, 23), st.integers(1, 23))
def test_the_first_draws_do_not_depend_on_how_many_are_asked_for(seed, epoch, samples, few, many):
    few, many = sorted((few, many))
    longer = uniform(many, seed=seed, epoch=epoch, samples=samples)
    assert longer.shape == (len(samples), many)
    assert torch.equal(uniform(few, seed=seed, epoch=epoch, samples=samples), longer[:, :few])


@given(st.data(), seeds, epochs, st.lists(numbers, min_size=1, max_size=9))
def test_a_sample_draws_the_same_in_any_company(data, seed, epoch, samples):
    own = {sample: uniform(7, seed=seed, epoch=epoch, samples=[sample])[0] for sample in samples}
    chosen = data.draw(st.lists(st.sampled_from(samples), min_size=1, max_size=20))  # repeated, in any order
    drawn = uniform(7, seed=seed, epoch=epoch, samples=chosen)
    assert torch.equal(drawn, torch.stack([own[sample] for sample in chosen]))


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 5), numbers, st.integers(0, 5)), min_size=2, max_size=8, unique=True
    )
)
def test_another_seed_epoch_sample_or_place_draws_other_numbers(asked):
    drawn = {tuple(uniform(4, seed=a, epoch=b, samples=[c], place=d)[0].tolist()) for a, b, c, d in asked}
    assert len(drawn) == len(asked)


def test_seed_epoch_sample_and_place_do_not_stand_in_for_each_other():
    pairs = {
        tuple(uniform(4, seed=a, epoch=b, samples=[c], place=d)[0].tolist())
        for a in range(4)
        for b in range(4)
        for c in range(4)
        for d in range(4)
    }
    assert len(pairs) == 4**4


def test_huge_sample_numbers_draw_their_own():
    """No number is cut to 32 bits, nor rounded to a float."""
    base = [5, 2**32 + 5, 2**40 + 5, 2**53 + 5, 2**53 + 6, 2**62 + 5, 2**63 - 1]
    drawn = uniform(4, samples=base)
    assert len({tuple(row) for row in drawn.tolist()}) == len(base)


def test_drawing_leaves_the_samples_and_the_global_streams_alone():
    samples = torch.arange(5)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    Draws(0, 0, samples).uniform(9)
    assert samples.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


def test_no_sample_draws_nothing():
    assert uniform(3, samples=[]).shape == (0, 3)


# their distribution: seeds are fixed, so a test that passes once passes always


@pytest.mark.parametrize("seed", [0, 1, 2**40])
@pytest.mark.parametrize("column", [0, 1, 2, 3, 4, 21])
def test_draws_are_uniform(seed, column):
    values = uniform(22, seed=seed, samples=range(10_000))[:, column].numpy()
    counts = np.histogram(values, 100, (0, 1))[0]
    chi_square = float(((counts - 100.0) ** 2 / 100).sum())
    assert 99 - 5 * math.sqrt(2 * 99) < chi_square < 99 + 5 * math.sqrt(2 * 99)  # neither uneven nor too even
    assert ks_distance(values, lambda x: x) < ks_limit(10_000)


def test_the_epochs_of_one_sample_are_uniform_too():
    values = torch.cat([uniform(4, epoch=epoch, samples=[17])[0] for epoch in range(2_500)])
    assert ks_distance(values, lambda x: x) < ks_limit(10_000)


def test_the_low_bits_are_even():
    words = (uniform(4, samples=range(10_000)) * 2**32).long()
    for bit in range(32):
        share = float(((words >> bit) & 1).double().mean())
        assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(40_000), bit


def test_columns_samples_epochs_places_and_seeds_do_not_go_together():
    limit = 5 / math.sqrt(10_000)
    here = uniform(8, samples=range(10_001))
    for a in range(8):
        for b in range(a):
            assert abs(correlation(here[:, a], here[:, b])) < limit, (a, b)
    assert abs(correlation(here[:-1, 0], here[1:, 0])) < limit
    for change in ({"epoch": 1}, {"place": 1}, {"seed": 1}):
        there = uniform(8, samples=range(10_001), **change)
        assert abs(correlation(here[:, 0], there[:, 0])) < limit, change


def test_pairs_of_neighbours_fill_the_square():
    """Correlation would miss a dependence that is not along a line."""
    values = uniform(2, samples=range(10_000)).numpy()
    for x, y in ((values[:, 0], values[:, 1]), (values[:-1, 0], values[1:, 0])):
        counts = np.histogram2d(x, y, 10, ((0, 1), (0, 1)))[0]
        mean = len(x) / 100
        assert abs(((counts - mean) ** 2 / mean).sum() - 99) < 5 * math.sqrt(2 * 99)


# draws of batches


@given(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(0, 9), st.integers(1, 9))
def test_a_batchs_draws_are_a_function_of_seed_step_place_and_attempt(seed, step, place, count):
    draws = BatchDraws(seed, step, place)
    assert draws.uniform(count) == BatchDraws(seed, step, place).uniform(count)
    assert draws.uniform(count) == draws.uniform(count + 3)[:count]
    others = [
        BatchDraws(seed + 1, step, place),
        BatchDraws(seed, step + 1, place),
        BatchDraws(seed, step, place + 1),
    ]
    drawn = {tuple(each.uniform(4)) for each in (draws, *others)} | {tuple(draws.uniform(4, 1))}
    assert len(drawn) == 5


@pytest.mark.parametrize(("alpha", "steps"), [(0.1, 2_000), (0.2, 2_000), (1, 2_000), (4, 250)])
def test_shares_are_distributed_as_beta(alpha, steps):
    values = np.array([BatchDraws(7, step).beta(alpha) for step in range(steps)])
    assert ((values >= 0) & (values <= 1)).all()
    theirs = stats.beta(alpha, alpha)
    assert abs(values.mean() - 0.5) < 5 * theirs.std() / math.sqrt(steps)
    fourth = float(theirs.stats(moments="k")) + 3
    spread = theirs.var() * math.sqrt((fourth - 1) / steps)
    assert abs(values.var() - theirs.var()) < 5 * spread
    for share in (0.05, 0.25, 0.5, 0.75, 0.95):  # at the quantiles, the distribution itself
        below = float((values <= theirs.ppf(share)).mean())
        assert abs(below - share) < 5 * math.sqrt(share * (1 - share) / steps), share
    # A share this near to 0 or 1 rounds; Beta(0.1, 0.1) has 2 in 100 of its values there, and they stay in order.
    assert ks_distance(values, theirs.cdf) < ks_limit(steps)
    assert abs(correlation(values[:-1], values[1:])) < 5 / math.sqrt(steps)


def test_a_share_is_a_function_of_seed_step_place_and_alpha():
    assert BatchDraws(1, 2, 3).beta(0.5) == BatchDraws(1, 2, 3).beta(0.5)
    drawn = {BatchDraws(seed, step, place).beta(0.5) for seed in (0, 1) for step in (0, 1) for place in (0, 1)}
    assert len(drawn) == 8


@pytest.mark.parametrize("alpha", [1e-3, 1e-6, 1e-12, 1e-300])
def test_a_tiny_alpha_gives_zero_or_one_each_half_the_time_and_never_nan(alpha):
    values = np.array([BatchDraws(0, step).beta(alpha) for step in range(400)])
    assert ((values >= 0) & (values <= 1)).all()
    assert ((values < 0.01) | (values > 0.99)).mean() > 0.97
    assert abs((values > 0.5).mean() - 0.5) < 5 * 0.5 / 20


@given(seeds, st.integers(0, 2**40), st.integers(0, 9), st.integers(1, 300))
def test_partners_are_a_permutation(seed, step, place, count):
    partners = BatchDraws(seed, step, place).partners(count)
    assert partners.dtype == torch.int64
    assert sorted(partners.tolist()) == list(range(count))
    assert torch.equal(partners, BatchDraws(seed, step, place).partners(count))


def test_other_steps_seeds_and_places_have_other_partners():
    drawn = {
        tuple(BatchDraws(seed, step, place).partners(40).tolist())
        for seed in range(3)
        for step in range(3)
        for place in range(3)
    }
    assert len(drawn) == 27


def test_every_sample_is_as_often_every_others_partner():
    counts = np.zeros((5, 5))
    for step in range(2_500):
        counts[np.arange(5), BatchDraws(3, step).partners(5).numpy()] += 1
    assert (np.abs(counts - 500) < 5 * math.sqrt(2_500 * 0.2 * 0.8)).all()
