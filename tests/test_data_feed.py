import json
import multiprocessing
import os
import random
import time
import traceback
from itertools import chain, islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from gradstep.data import Feed, Items, Normalize, OwnFeed, OwnOrder, Part, Tensors, ToFloat, adapt, as_source
from gradstep.data import feed as feed_module
from gradstep.errors import DataError


class Drawing(Dataset):
    """Every sample draws from all three global streams; `(draws, number)`."""

    def __init__(self, length: int = 11) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index):
        drawn = [random.random(), np.random.rand(), np.random.randn(), torch.rand(()).item(), torch.randn(()).item()]
        return torch.tensor(drawn, dtype=torch.float64), index


class Looking(Dataset):
    """Which process a sample was made in, and how many threads torch had there."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index):
        return os.getpid(), torch.get_num_threads()


class TwoPartError(Exception):
    def __init__(self, file: str, line: int) -> None:
        super().__init__(f"{file}:{line}")


class Broken(Dataset):
    """Sample 5 can't be read."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index):
        return self.read(index) if index == 5 else index

    def read(self, index):
        if self.kind == "division":
            return index / 0
        if self.kind == "lookup":
            return {}["no such column"]
        if self.kind == "json":
            return json.loads("{")
        raise TwoPartError("train.csv", 3)


class Holed(Dataset):
    """Sample 6 holds what is no number."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index):
        return torch.tensor([1.0, float("-inf") if index == 6 else 2.0]), index


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(4))

    def __len__(self) -> int:
        return 4


class Backwards(Sampler):
    def __iter__(self):
        return iter(range(5, -1, -1))

    def __len__(self) -> int:
        return 6


def mixing_collate(samples):
    """A collate that draws, as mixup does."""
    draws, numbers = default_collate(samples)
    return draws * torch.rand(()) + random.random() + np.random.rand(), numbers


def numbered(length: int) -> Tensors:
    """Samples that are their own numbers."""
    return Tensors((torch.arange(length, dtype=torch.float32)[:, None], torch.arange(length)))


def same(one, other) -> bool:
    """Bit for bit, as far as the tensors go."""
    return len(one) == len(other) and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(one, other, strict=True)
    )


def streams() -> list:
    """The states of the global streams, to compare."""
    numpy = np.random.get_state()
    return [random.getstate(), numpy[1].tolist(), *numpy[2:], torch.get_rng_state().tolist()]


def take(batches, number: int) -> list:
    taken = [next(batches) for _ in range(number)]
    batches.close()
    return taken


def children() -> set:
    return set(multiprocessing.active_children())


def gone(process: int) -> bool:
    """Ended, and not left as a zombie either."""
    for _ in range(100):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


sizes = {"length": st.integers(1, 40), "batch_size": st.integers(1, 45), "seed": st.integers(-2, 2**64)}


# The order


@given(**sizes, epoch=st.integers(0, 5), shuffle=st.booleans())
def test_every_epoch_holds_every_sample_once_and_only_its_last_batch_is_smaller(
    length, batch_size, seed, epoch, shuffle
):
    feed = Feed(numbered(length), batch_size, shuffle=shuffle, seed=seed)
    first = epoch * feed.steps_per_epoch
    batches = [feed[step][1].tolist() for step in range(first, first + feed.steps_per_epoch)]
    assert sorted(chain(*batches)) == list(range(length))
    assert [len(b) for b in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert len(batches[-1]) == (length % batch_size or batch_size)


@given(**sizes, epoch=st.integers(0, 5), shuffle=st.booleans())
def test_without_the_last_one_all_batches_are_full_and_no_sample_comes_twice(length, batch_size, seed, epoch, shuffle):
    if length < batch_size:
        with pytest.raises(DataError, match=f"train: {length} samples make no batch of {batch_size}"):
            Feed(numbered(length), batch_size, shuffle=shuffle, drop_last=True)
        return
    feed = Feed(numbered(length), batch_size, shuffle=shuffle, seed=seed, drop_last=True)
    assert feed.steps_per_epoch == length // batch_size
    first = epoch * feed.steps_per_epoch
    batches = [feed[step][1].tolist() for step in range(first, first + feed.steps_per_epoch)]
    assert {len(b) for b in batches} == {batch_size}
    assert len(set(chain(*batches))) == len(batches) * batch_size
    with_last = Feed(numbered(length), batch_size, shuffle=shuffle, seed=seed)
    assert batches[0] == with_last[epoch * with_last.steps_per_epoch][1].tolist()  # the same order, cut shorter


@given(**sizes, start=st.integers(0, 300), drops=st.booleans())
def test_starting_at_any_step_goes_on_as_if_all_before_had_been_fetched(length, batch_size, seed, start, drops):
    feed = Feed(numbered(length), min(batch_size, length), shuffle=True, seed=seed, drop_last=drops)
    count = feed.steps_per_epoch + 2  # over the end of an epoch
    started = take(feed.start(start), count)
    assert all(same(batch, feed[start + n]) for n, batch in enumerate(started))
    stopped = list(feed.start(start, start + count))
    assert len(stopped) == count
    assert all(map(same, stopped, started))
    again = Feed(numbered(length), min(batch_size, length), shuffle=True, seed=seed, drop_last=drops)
    assert same(again[start + 1], started[1])  # and a feed remembers nothing


@given(st.integers(0, 12), st.integers(1, 11), st.integers(0, 99))
def test_a_sample_is_the_same_in_whichever_batch_and_part_it_comes(epoch, batch_size, seed):
    """Its draws belong to (seed, epoch, sample), not to its place."""

    def by_number(source, batch_size):
        feed = Feed(source, batch_size, shuffle=True, seed=seed)
        first = epoch * feed.steps_per_epoch
        batches = [feed[step] for step in range(first, first + feed.steps_per_epoch)]
        return {number: d for draws, numbers in batches for d, number in zip(draws, numbers.tolist(), strict=True)}

    whole = by_number(Items(Drawing()), 4)
    assert len(whole) == 11
    assert all(torch.equal(whole[n], d) for n, d in by_number(Items(Drawing()), batch_size).items())
    part = by_number(Part(Items(Drawing()), torch.tensor([7, 2, 9])), batch_size)
    assert sorted(part) == [2, 7, 9]
    assert all(torch.equal(whole[n], d) for n, d in part.items())


def test_every_sample_and_every_epoch_and_every_seed_draws_anew():
    draws = [
        tuple(sample)
        for seed in (0, 1)
        for draws, _ in Feed(Items(Drawing()), 11, shuffle=True, seed=seed).start(0, 3)
        for sample in draws.T.tolist()
    ]
    assert len({number for column in draws for number in column}) == 2 * 3 * 11 * 5


def test_each_epoch_is_shuffled_anew_and_each_seed_otherwise():
    orders = [
        tuple(Feed(numbered(30), 30, shuffle=True, seed=seed)[epoch][1].tolist())
        for seed in range(4)
        for epoch in range(4)
    ]
    assert len(set(orders)) == 16


def test_unshuffled_every_epoch_is_in_the_sources_order_with_draws_of_its_own():
    feed = Feed(Items(Drawing()), 4, shuffle=False, seed=3)
    first, second = list(feed.start(0, 3)), list(feed.start(3, 6))
    for epoch in (first, second):
        assert torch.cat([numbers for _, numbers in epoch]).tolist() == list(range(11))
    assert not any(map(same, first, second))
    assert all(map(same, first, feed.once()))  # an evaluation goes through the data once, with the same draws each time
    assert len(list(feed.once())) == 3


def test_a_look_before_training_sees_the_first_two_samples():
    assert Feed(numbered(9), 4, shuffle=True, seed=5).sample()[1].tolist() == [0, 1]
    assert Feed(numbered(1), 4, shuffle=True).sample()[1].tolist() == [0]


def test_transforms_reach_the_inputs_and_nothing_else():
    images = torch.arange(24, dtype=torch.uint8).reshape(6, 1, 2, 2)
    source = Tensors((images, torch.arange(6), images)).transformed((ToFloat(), Normalize((0.5,), (0.25,))))
    inputs, targets, third = Feed(source, 4, shuffle=False)[1]
    assert torch.equal(inputs, (images[4:].float() / 255 - 0.5) / 0.25)
    assert targets.tolist() == [4, 5]
    assert torch.equal(third, images[4:])


# Who loads a batch


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")  # more than there are cores
@pytest.mark.parametrize("collate", [default_collate, mixing_collate])
@pytest.mark.parametrize("shuffle", [True, False])
def test_a_batch_is_the_same_whoever_loads_it(collate, shuffle):
    source = Items(Drawing(), collate)
    batches = {}
    for workers in (0, 1, 4):
        random.seed(workers)
        np.random.seed(workers)
        torch.manual_seed(workers)
        feed = Feed(source, 4, shuffle=shuffle, seed=8, workers=workers)
        batches[workers] = take(feed.start(2), 7)  # from the middle of an epoch into the fourth
    assert all(map(same, batches[0], batches[1]))
    assert all(map(same, batches[0], batches[4]))


@pytest.mark.parametrize("workers", [0, 2])
def test_fetching_leaves_the_global_streams_where_they_were(workers):
    before = streams()
    feed = Feed(Items(Drawing(), mixing_collate), 4, shuffle=True, workers=workers)
    feed.sample()
    batches = feed.start(0)
    for _ in range(4):
        next(batches)
        assert streams() == before
    batches.close()
    assert streams() == before


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_is_made_by_one_thread_and_this_process_keeps_its_own(workers):
    torch.set_num_threads(2)
    batches = Feed(Items(Looking()), 4, shuffle=True, workers=workers).start(0)
    assert next(batches)[1].tolist() == [1] * 4
    assert torch.get_num_threads() == 2
    batches.close()


def test_no_worker_outlives_its_iterator():
    before = children()
    batches = Feed(Items(Looking()), 2, shuffle=True, workers=2).start(0)
    processes = {int(next(batches)[0][0]) for _ in range(4)}
    assert len(processes) == 2
    assert os.getpid() not in processes
    assert {child.pid for child in children() - before} == processes
    batches.close()
    assert children() <= before
    assert all(map(gone, processes))


def test_no_worker_outlives_the_end_of_an_epoch():
    before = children()
    batches = list(Feed(Items(Looking()), 2, shuffle=False, workers=2).once())
    assert children() <= before
    assert len(batches) == 4
    assert all(gone(int(pids[0])) for pids, _ in batches)


def test_data_in_memory_is_never_sent_through_workers():
    before = children()
    feed = Feed(Part(numbered(9), torch.arange(3, 9)), 2, shuffle=True, workers=4)
    assert feed.workers == 0
    batches = feed.start(0)
    next(batches)
    assert children() <= before


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("kind", "type_", "line"),
    [
        ("division", ZeroDivisionError, "return index / 0"),
        ("lookup", KeyError, 'return {}["no such column"]'),
        ("json", json.JSONDecodeError, 'return json.loads("{")'),
        ("own", TwoPartError, 'raise TwoPartError("train.csv", 3)'),
    ],
)
def test_an_exception_of_the_data_set_keeps_its_type_and_names_line_and_sample(workers, kind, type_, line):
    batches = Feed(Items(Broken(kind)), 2, shuffle=False, workers=workers).start(1)
    assert next(batches).tolist() == [2, 3]
    with pytest.raises(Exception) as caught:  # noqa: PT011  # its type comes last: most is told by the rest
        next(batches)
    told = "".join(traceback.format_exception(caught.value))
    assert line in told
    assert "while reading sample 5 of Broken" in told
    assert caught.type is type_


@pytest.mark.parametrize("dataset", [Broken("division"), Broken("lookup"), Holed()])
def test_no_worker_outlives_an_error_even_while_its_traceback_is_kept(dataset):
    """A notebook keeps the last traceback, and the garbage collector takes 5 s for each worker it finds."""
    before = children()
    with pytest.raises((ZeroDivisionError, KeyError, DataError)) as caught:
        list(Feed(Items(dataset), 4, shuffle=False, workers=2).once())
    assert children() <= before
    del caught


def test_an_exception_leaves_streams_and_threads_as_they_were():
    before = streams()
    for workers in (0, 2):
        torch.set_num_threads(2)
        feed = Feed(Items(Broken("division")), 4, shuffle=False, workers=workers)
        with pytest.raises(ZeroDivisionError):
            list(feed.once())
        assert torch.get_num_threads() == 2
    assert streams() == before


# What is no number


@given(
    st.integers(0, 9),
    st.sampled_from([float("nan"), float("inf"), float("-inf")]),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.sampled_from([(10,), (10, 3), (10, 1, 2, 2)]),
    st.booleans(),
)
def test_what_is_no_number_is_found_before_training_and_its_sample_named(place, value, dtype, shape, in_targets):
    spoilt, clean = torch.ones(shape, dtype=dtype), torch.ones(10)
    spoilt[place, ...] = value
    Feed(Tensors((clean, clean)), 4, shuffle=True)
    with pytest.raises(DataError, match=f"^train: sample {place} holds {value}, "):
        Feed(Tensors((clean, spoilt) if in_targets else ({"x": [spoilt]}, clean)), 4, shuffle=True)


def test_the_sample_named_is_the_one_in_the_data_that_was_given_not_in_its_part():
    """Else nobody finds it: the user has never seen the numbers of a part."""
    inputs = torch.ones(10, 2)
    inputs[7] = float("nan")
    with pytest.raises(DataError, match="sample 7 "):
        Feed(Part(Tensors((inputs, torch.arange(10))), torch.tensor([2, 7, 9])), 2, shuffle=True)


def test_data_too_large_to_look_through_are_looked_at_as_they_come(monkeypatch):
    monkeypatch.setattr(feed_module, "_SMALL", 0)
    inputs = torch.ones(10, 2)
    inputs[7, 1] = float("nan")
    feed = Feed(Tensors((inputs, torch.arange(10))), 4, shuffle=True, seed=1, what="valid")
    raised = 0
    for step in range(2 * feed.steps_per_epoch):
        if 7 in feed.indices(step)[1]:
            with pytest.raises(DataError, match=r"^valid: sample 7 holds nan"):
                feed[step]
            raised += 1
        else:
            feed[step]
    assert raised == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_read_one_by_one_are_looked_at_as_they_come(workers):
    batches = Feed(Items(Holed()), 4, shuffle=False, workers=workers).start(0)
    next(batches)
    with pytest.raises(DataError, match=r"^train: sample 6 holds -inf"):
        next(batches)


def test_finite_extremes_and_integers_are_numbers():
    extremes = torch.tensor([torch.finfo(torch.float32).max, -torch.finfo(torch.float32).max, 0.0, 1e-45])
    feed = Feed(Tensors((extremes, torch.tensor([2**62, -1, 0, 1]))), 4, shuffle=False)
    assert same(feed[0], (extremes, torch.tensor([2**62, -1, 0, 1])))


# A DataLoader taken apart


@settings(max_examples=25)
@given(st.integers(1, 12), st.integers(1, 5), st.booleans(), st.booleans())
def test_a_dataloader_without_shuffling_gives_the_batches_it_would_have_given(length, batch_size, drops, in_memory):
    x, y = torch.randn(length, 2), torch.arange(length)
    data = TensorDataset(x, y) if in_memory else [(x[i], i) for i in range(length)]
    loader = DataLoader(data, batch_size=batch_size, drop_last=drops)
    if not len(loader):
        return
    given = adapt(loader, "train")
    assert (given.batch_size, given.shuffle, given.drop_last) == (batch_size, False, drops)
    feed = Feed(given.source, given.batch_size, shuffle=given.shuffle, drop_last=given.drop_last)
    batches = list(feed.once())
    assert len(batches) == len(loader)
    assert all(map(same, batches, loader))


def test_a_dataloader_says_how_many_workers_and_whether_to_shuffle_and_is_told_that_it_was_taken_apart():
    given = adapt(DataLoader(Drawing(), batch_size=3, shuffle=True, num_workers=2), "valid")
    assert (given.batch_size, given.shuffle, given.drop_last, given.workers) == (3, True, False, 2)
    assert given.note.startswith("valid: the DataLoader was taken apart")
    numbers = torch.cat([b[1] for b in Feed(given.source, 3, shuffle=True).once()])
    assert sorted(numbers.tolist()) == list(range(11))
    assert adapt(Drawing(), "train").note is None


@pytest.mark.parametrize("data", [Drawing(4), TensorDataset(torch.rand(4, 5).double(), torch.arange(4))])
def test_a_dataloaders_own_collate_is_used(data):
    """Whatever the data set is: what a batch means must not change without a word."""

    def negated(samples):
        x, y = default_collate(samples)
        return -x, y

    given = adapt(DataLoader(data, batch_size=4, collate_fn=negated), "train")
    plain = adapt(DataLoader(data, batch_size=4), "train")
    assert torch.equal(Feed(given.source, 4, shuffle=False)[0][0], -Feed(plain.source, 4, shuffle=False)[0][0])


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"sampler": WeightedRandomSampler(torch.ones(6), 6)}, "WeightedRandomSampler"),
        ({"sampler": SubsetRandomSampler(range(6))}, "SubsetRandomSampler"),
        ({"sampler": Backwards()}, "Backwards"),
        ({"sampler": RandomSampler(range(6), replacement=True)}, "RandomSampler"),
        ({"sampler": RandomSampler(range(6), num_samples=3)}, "RandomSampler"),
        ({"batch_sampler": [[0, 1], [2, 3, 4]]}, "list"),
        ({"batch_sampler": type("Bucketed", (BatchSampler,), {})(SequentialSampler(range(6)), 2, False)}, "Bucketed"),
        ({"batch_sampler": BatchSampler(Backwards(), 2, False)}, "Backwards"),
    ],
)
def test_a_dataloader_that_draws_in_another_way_is_refused_by_name(options, culprit):
    with pytest.raises(DataError, match=f"^train: this DataLoader draws by a {culprit}, .*shuffle=True or False"):
        adapt(DataLoader(Drawing(6), **options), "train")


@pytest.mark.parametrize(
    ("loader", "reason"),
    [(DataLoader(Drawing(6), batch_size=None), "batch_size=None"), (DataLoader(Stream()), "Stream")],
)
def test_a_dataloader_is_refused_for_what_its_owner_wrote_not_for_torchs_inner_sampler(loader, reason):
    with pytest.raises(DataError, match=reason):
        adapt(loader, "train")


def test_a_data_set_that_can_only_be_iterated_is_refused():
    assert not OwnOrder.opens(Stream())
    with pytest.raises(DataError, match=r"^train: Stream can't be asked for sample number i"):
        as_source(Stream(), "train")


# Batches in an order of their own


class Once:
    """Used up after one pass, as a generator is, unless it is reset."""

    def __init__(self, given: int, announced: int) -> None:
        self.given, self.announced, self.at, self.resets = given, announced, 0, 0

    def __len__(self) -> int:
        return self.announced

    def __iter__(self):
        while self.at < self.given:
            self.at += 1
            yield torch.tensor([float(self.at - 1)]), torch.tensor([self.at - 1])


class Resettable(Once):
    def reset(self):
        self.at, self.resets = 0, self.resets + 1


class Anew:
    """Starts anew in each `__iter__`."""

    def __init__(self, given: int, announced: int) -> None:
        self.given, self.announced = given, announced

    def __len__(self) -> int:
        return self.announced

    def __iter__(self):
        return ((torch.tensor([float(n)]), torch.tensor([n])) for n in range(self.given))


@given(st.sampled_from([Resettable, Anew]), st.integers(1, 6), st.integers(0, 20))
def test_whole_batches_go_round_in_their_own_order_from_any_step(kind, length, start):
    batches = take(OwnOrder(kind(length, length), "cpu").start(start), 2 * length + 1)
    assert [int(targets) for _, targets in batches] == [n % length for n in range(start, start + 2 * length + 1)]


@given(st.sampled_from([Resettable, Anew]), st.integers(1, 6))
def test_one_epoch_of_whole_batches_can_be_had_again_and_again(kind, length):
    feed = OwnOrder(kind(length, length), "cpu")
    next(feed.start(0))  # someone looked before
    for _ in range(3):
        assert [int(targets) for _, targets in feed.once()] == list(range(length))


def test_reset_is_called_before_each_epoch_and_not_more_often():
    batches = Resettable(3, 3)
    take(OwnOrder(batches, "cpu").start(4), 5)  # 1 2 | 0 1 2
    assert batches.resets == 2


def test_what_is_used_up_after_one_pass_and_has_no_reset_says_so():
    batches = OwnOrder(Once(3, 3), "cpu").start(0)
    assert [int(next(batches)[1]) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match=r"^train: an epoch gave 0 batches, and len\(\) says 3.*reset\(\)"):
        next(batches)


@pytest.mark.parametrize("kind", [Resettable, Anew])
@pytest.mark.parametrize(("given_", "announced"), [(2, 3), (4, 3), (0, 1)])
@pytest.mark.parametrize("evaluating", [False, True])
def test_a_length_that_is_not_true_is_an_error_and_loses_no_batch_in_silence(kind, given_, announced, evaluating):
    feed = OwnOrder(kind(given_, announced), "cpu", "valid")
    batches = feed.once() if evaluating else feed.start(0)
    with pytest.raises(DataError, match=r"^valid: .*len\(\) says"):
        list(islice(batches, announced + 1))


def test_no_whole_batches_at_all_are_an_error():
    with pytest.raises(DataError, match="train: there are no batches in it"):
        OwnOrder(Anew(0, 0), "cpu")


def test_whole_batches_are_looked_at_too():
    class Spoilt(Anew):
        def __iter__(self):
            return iter([(torch.ones(3, 2), torch.ones(3)), (torch.ones(3, 2), torch.tensor([1, 1, float("nan")]))])

    batches = OwnOrder(Spoilt(2, 2), "cpu", "valid").start(0)
    next(batches)
    with pytest.raises(DataError, match=r"^valid: sample 2 of a batch holds nan"):
        next(batches)


@pytest.mark.parametrize(
    "data",
    [[(torch.ones(1), torch.ones(1))], (torch.ones(1), torch.ones(1)), torch.ones(2), Drawing(), DataLoader(Drawing())],
)
def test_what_can_be_asked_by_number_is_not_taken_for_whole_batches(data):
    assert not OwnOrder.opens(data)
    assert OwnOrder.opens(Anew(1, 1))


def test_a_feed_of_ones_own_is_asked_where_to_start():
    class Squares:
        steps_per_epoch = 3

        def start(self, step):
            while True:
                yield {"x": torch.tensor([step * step])}
                step += 1

    assert OwnFeed.opens(Squares())
    assert not OwnFeed.opens(Anew(1, 1))
    feed = OwnFeed(Squares(), "cpu")
    assert feed.steps_per_epoch == 3
    assert [int(b["x"]) for b in take(feed.start(2), 3)] == [4, 9, 16]
