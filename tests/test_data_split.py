import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.utils.data import Dataset

from gradstep.data import Items, Part, Tensors, permutation, split
from gradstep.errors import RecipeError

GOLDEN = [0, 1, 2, 6, 7, 11]

fractions = st.floats(0.02, 0.98)


def labelled(labels) -> Tensors:
    labels = torch.as_tensor(labels)
    return Tensors((torch.arange(len(labels)).float(), labels))


class Squares(Dataset):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, index):
        return torch.tensor([float(index)]), index * index


@given(st.lists(st.integers(-2, 4), min_size=2, max_size=80), fractions, st.integers(0, 3))
def test_the_two_parts_are_all_samples_once_in_the_sources_order(labels, fraction, seed):
    source = labelled(labels)
    try:
        rest, part = split(source, fraction, seed=seed)
    except RecipeError:
        assume(False)
    assert sorted(rest.numbers.tolist() + part.numbers.tolist()) == list(range(len(labels)))
    for one in (rest, part):
        assert len(one)
        assert one.numbers.tolist() == sorted(one.numbers.tolist())
        assert one.whole is source


@given(st.lists(st.integers(-2, 4), min_size=10, max_size=80), fractions)
def test_of_each_class_the_part_holds_its_fraction_up_to_a_part_of_one_sample(labels, fraction):
    try:
        _, part = split(labelled(labels), fraction)
    except RecipeError:
        assume(False)
    chosen = torch.tensor(labels)[part.numbers].tolist()
    for label in set(labels):
        assert abs(chosen.count(label) - fraction * labels.count(label)) < 1


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.int32, torch.bool])
def test_classes_of_any_integer_type_are_classes(dtype):
    labels = torch.tensor([0] * 40 + [1] * 10).to(dtype)
    _, part = split(labelled(labels), 0.2)
    assert labels[part.numbers].tolist() == [0] * 8 + [1] * 2


@pytest.mark.parametrize(
    "source",
    [
        labelled(torch.linspace(0, 1, 20)),
        labelled(torch.zeros(20, 3, dtype=torch.int64)),
        Tensors({"x": torch.zeros(20)}),
        Items(Squares()),
    ],
    ids=["regression", "many labels each", "no pair", "not in memory"],
)
@given(fraction=st.floats(0.05, 0.94))
def test_without_classes_the_fraction_is_of_all_samples(source, fraction):
    rest, part = split(source, fraction)
    assert len(part) == round(20 * fraction)
    assert len(rest) == 20 - len(part)


def test_the_draw_is_random_over_the_samples():
    counts = sum(torch.zeros(20).index_add_(0, split(Items(Squares()), 0.3, seed=s)[1].numbers, torch.ones(6))
                 for s in range(400))  # fmt: skip
    assert counts.sum() == 400 * 6
    assert ((counts - 120) ** 2 / (120 * 0.7)).sum() < 44  # chi-squared, 19 degrees of freedom: p = 0.001


@given(st.integers(0, 9), st.integers(0, 9))
def test_the_draw_belongs_to_its_seed_and_its_name(seed, other):
    source = labelled([0, 1] * 40)
    first = split(source, 0.5, "valid", seed)[1].numbers
    assert torch.equal(split(source, 0.5, "valid", seed)[1].numbers, first)
    assert torch.equal(split(source, 0.5, "valid", other)[1].numbers, first) == (seed == other)
    assert not torch.equal(split(source, 0.5, "test", seed)[1].numbers, first)


def test_the_validation_samples_do_not_depend_on_the_training_seed_or_any_global_stream():
    """Runs of different seeds are measured on the same samples: these, for good."""
    labels = [0, 1, 2] * 5
    torch.manual_seed(1)
    np.random.seed(1)
    assert split(labelled(labels), 0.4)[1].numbers.tolist() == GOLDEN
    torch.manual_seed(2)
    np.random.seed(2)
    assert split(labelled(labels), 0.4)[1].numbers.tolist() == GOLDEN


def test_the_draw_is_not_the_order_of_a_training_epoch():
    chosen = split(Items(Squares()), 0.5)[1].numbers.tolist()
    assert chosen != sorted(permutation(20, 0, 0)[:10].tolist())


def test_a_part_can_be_split_again_by_its_own_classes():
    source = labelled([0] * 50 + [1] * 50)
    rest, test = split(source, 0.2, "test")
    train, valid = split(rest, 0.25, "valid")
    numbers = [part.batch(torch.arange(len(part)), 0, 0)[0].long() for part in (train, valid, test)]
    assert sorted(torch.cat(numbers).tolist()) == list(range(100))
    assert [(n < 50).sum().item() for n in numbers] == [30, 10, 10]
    assert isinstance(train, Part)


@pytest.mark.parametrize("fraction", [0, 1, 0.0, 1.0, -0.2, 1.5, 20, float("nan"), float("inf")])
def test_a_fraction_is_between_0_and_1(fraction):
    with pytest.raises(RecipeError, match=f"^data.test: {fraction} is not a fraction between 0 and 1"):
        split(labelled([0, 1] * 10), fraction, "test")


@pytest.mark.parametrize(("labels", "fraction"), [([0.5] * 10, 0.04), ([0.5] * 10, 0.96), ([3] * 4, 0.1), ([1], 0.5)])
def test_a_part_without_samples_is_an_error_that_says_how_many_there_were(labels, fraction):
    with pytest.raises(RecipeError, match=f"^data.valid: {fraction} of {len(labels)} samples leaves one .* empty"):
        split(labelled(labels), fraction)


def test_many_small_classes_can_be_split_too():
    """Two samples of each of fifty classes: a fifth is twenty samples, though it is less than one of each class."""
    _, part = split(labelled(torch.arange(100) // 2), 0.2)
    assert len(part) == 20
