"""Worker processes don't die before the process that asks, and don't outlive it; one that dies or hangs is named."""

import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from gradstep.data import workers as workers_room
from gradstep.data.feed import Feed
from gradstep.data.sources import Items
from gradstep.data.workers import lost, shared_memory_note
from gradstep.errors import DataError, ProcessLostError
from gradstep.interrupt import Interrupted, Interruption


class Numbered(Dataset):
    """Samples that say who made them. `deed` is done at sample 6, in the worker."""

    def __init__(self, deed: Callable[[], object] = int, length: int = 40) -> None:
        self.deed, self.length = deed, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[int, int]:
        if index == 6:
            time.sleep(0.2)  # what was made before is on its way
            self.deed()
        return index, os.getpid()


class Words(Dataset):
    """Samples that are no tensors, some of them long."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, object]:
        noise = random.random() + torch.rand(1).item()
        return {"text": f"sample {index} {noise} " * 40 * index, "numbers": [torch.rand(2)] * 3, "n": index}


def asleep() -> None:
    time.sleep(60)


def as_they_are(samples: list) -> list:
    return samples


def feed(dataset: Dataset, workers: int = 2, batch_size: int = 2, **more) -> Feed:
    return Feed(Items(dataset, **more), batch_size, shuffle=False, workers=workers)


def gone(pid: int) -> bool:
    """Whether there is no such process, or nothing of it but its number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def gone_within(pids: list[int], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not all(map(gone, pids)) and time.monotonic() < until:
        time.sleep(0.02)
    return all(map(gone, pids))


@contextmanager
def process(body: Callable[[Callable[[object], None]], object]) -> Iterator[tuple[int, Callable[[], list[int]]]]:
    """`body` in a process and group of its own, told a function to say numbers with. Gives its id and how to hear one.

    It ends with 0 if `body` returns, with 9 if it raises.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        code = 9
        try:
            os.setsid()
            os.close(reader)
            body(lambda *said: os.write(writer, (" ".join(map(str, said)) + "\n").encode()))
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as told:
        try:
            yield child, lambda: [int(word) for word in told.readline().split()]
        finally:
            if not gone(child):
                os.killpg(child, signal.SIGKILL)


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# Not before it


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_whole_group_leaves_the_workers_at_work(number) -> None:
    def body(say) -> None:
        with Interruption(quiet=True) as interruption:
            batches = feed(Numbered(length=1000)).start(0)
            say(*{int(next(batches)[1][0]) for _ in range(6)})
            while interruption.heard is None:
                next(batches)
            seen = {int(next(batches)[1][0]) for _ in range(50)}  # far more than had been fetched
            say(*seen)
            batches.close()
            assert gone_within(list(seen), 0)

    with process(body) as (pid, hear):
        first = hear()
        assert len(first) == 2
        os.killpg(pid, number)
        assert sorted(hear()) == sorted(first)
        assert ended(pid) == 0


def test_a_signal_to_the_whole_group_while_they_start_leaves_them_at_work_too(monkeypatch) -> None:
    def body(say) -> None:
        here, threads = os.getpid(), torch.set_num_threads

        def slowly(number: int, again: list[bool] = []) -> None:  # noqa: B006
            """What torch does in a worker before it asks us."""
            if os.getpid() != here and not again:
                again.append(True)
                time.sleep(0.5)
            threads(number)

        monkeypatch.setattr(torch, "set_num_threads", slowly)
        with Interruption(quiet=True) as interruption:
            batches = feed(Numbered()).once()
            say(1)
            list(batches)
            assert interruption.heard is not None

    with process(body) as (pid, hear):
        hear()
        time.sleep(0.25)
        os.killpg(pid, signal.SIGINT)
        assert ended(pid) == 0


def test_being_stopped_and_continued_is_no_stall_and_changes_no_batch(monkeypatch) -> None:
    monkeypatch.setattr(workers_room, "_STALLED", 3.0)  # far more than a batch takes on a busy machine
    monkeypatch.setattr(workers_room, "_LOOK", 0.5)

    def body(say) -> None:
        say(0)
        numbers = [int(n) for batch in feed(Numbered(lambda: time.sleep(0.6))).once() for n in batch[0]]
        assert numbers == list(range(40))

    with process(body) as (pid, hear):
        hear()
        time.sleep(0.1)
        os.killpg(pid, signal.SIGSTOP)
        time.sleep(4.0)
        os.killpg(pid, signal.SIGCONT)
        assert ended(pid) == 0


# Not after it


@pytest.mark.parametrize("deed", [int, asleep])
def test_no_worker_outlives_a_process_that_is_killed(deed) -> None:
    def body(say) -> None:
        batches = feed(Numbered(deed), workers=3).start(0)
        say(*{int(next(batches)[1][0]) for _ in range(3)})
        time.sleep(60)

    with process(body) as (pid, hear):
        workers = hear()
        assert len(workers) == 3
        assert not any(map(gone, workers))
        os.kill(pid, signal.SIGKILL)
        assert ended(pid) == -signal.SIGKILL
        assert gone_within(workers, 2)


@pytest.mark.parametrize("how", ["close", "error", "signal"])
def test_leaving_does_not_wait_for_a_worker_that_is_asleep(how) -> None:
    batches = feed(Numbered(asleep)).start(0)
    workers = list({int(next(batches)[1][0]) for _ in range(2)})
    begun = time.monotonic()
    if how == "close":
        batches.close()
    elif how == "error":
        with pytest.raises(ZeroDivisionError):
            batches.throw(ZeroDivisionError())
    else:
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM))
        with Interruption() as interruption:
            timer.start()
            with pytest.raises(Interrupted), interruption.cuts():
                list(batches)
        timer.join()
    assert time.monotonic() - begun < 1 + 0.3 * (how == "signal")
    assert len(workers) == 2
    assert all(map(gone, workers))
    assert multiprocessing.active_children() == []


def test_leaving_leaves_no_open_file() -> None:
    def files_after(rounds: int) -> int:
        for _ in range(rounds):
            batches = feed(Numbered(asleep)).start(0)
            next(batches)
            batches.close()
        return len(os.listdir("/proc/self/fd"))

    assert files_after(6) <= files_after(2)


@pytest.mark.parametrize(("way", "end"), [("fork", "exit"), ("spawn", "kill"), ("forkserver", "kill")])
def test_a_program_that_ends_with_its_feed_open_leaves_nobody_and_is_not_held_up(tmp_path, way, end) -> None:
    (tmp_path / "program.py").write_text(
        "import multiprocessing, time\n"
        "from tests.test_data_workers import Numbered, asleep, feed\n"
        "if __name__ == '__main__':\n"
        f"    multiprocessing.set_start_method({way!r})\n"
        f"    batches = feed(Numbered(asleep), workers={1 + (way == 'fork')}).start(0)\n"
        "    print(*{int(next(batches)[1][0]) for _ in range(2)}, flush=True)\n"
        f"    time.sleep({60 if end == 'kill' else 0})\n"
    )
    command, place = [sys.executable, str(tmp_path / "program.py")], Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{place}:{place / 'src'}"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as program:
        try:
            workers = [int(word) for word in program.stdout.readline().split()]
            assert len(workers) == 1 + (way == "fork")
            begun = time.monotonic()
            if end == "kill":
                program.kill()
            program.wait(timeout=30)
            assert time.monotonic() - begun < 5  # torch itself takes a while to leave
            assert gone_within(workers, 2)
            if end == "exit":
                assert (program.returncode, program.stderr.read()) == (0, "")
        finally:
            program.kill()


# One that dies or hangs


@pytest.mark.parametrize(
    ("deed", "told"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "was ended by SIGKILL, often the kernel's out-of-memory killer"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "was ended by SIGSEGV, a crash in a C library"),
        (lambda: os.kill(os.getpid(), signal.SIGBUS), r"was ended by SIGBUS, .*/dev/shm has [\d,]+ MB free of"),
        (lambda: os._exit(3), "ended with exit code 3"),
        (lambda: os._exit(0), "ended with exit code 0"),
    ],
    ids=["SIGKILL", "SIGSEGV", "SIGBUS", "3", "0"],
)
def test_a_worker_that_dies_is_named_with_the_batch_awaited(deed, told, capfd) -> None:
    batches = feed(Numbered(deed), batch_size=3).start(0)
    for number in range(2):  # what came before is given
        assert next(batches)[0].tolist() == list(range(3 * number, 3 * number + 3))
        time.sleep(0.1)  # it dies meanwhile, and nothing is raised before it is waited for
    with pytest.raises(ProcessLostError, match=told) as caught:
        next(batches)
    text = str(caught.value)
    assert "train: worker 1 of 2 (process " in text
    assert "batch 3 (epoch 1, samples 6, 7, 8)" in text
    assert "workers=0" in text
    assert multiprocessing.active_children() == []


def test_a_worker_that_hangs_is_given_up_and_the_batch_named(monkeypatch) -> None:
    monkeypatch.setattr(workers_room, "_STALLED", 0.6)
    monkeypatch.setattr(workers_room, "_LOOK", 0.2)
    begun = time.monotonic()
    with pytest.raises(ProcessLostError, match=r"for 0\.6 s, and batch 4 \(epoch 1, samples 6, 7\) is awaited"):
        list(feed(Numbered(asleep)).once())
    assert time.monotonic() - begun < 3
    assert multiprocessing.active_children() == []


def test_the_death_of_another_data_loader_s_worker_is_recognised() -> None:
    def body(say) -> None:
        try:
            list(DataLoader(Numbered(lambda: os.kill(os.getpid(), signal.SIGKILL)), num_workers=1))
        except RuntimeError as error:
            told = lost(error)
            assert isinstance(told, ProcessLostError)
            assert "out-of-memory" in str(told)
            assert lost(told) is told
            say(1)

    with process(body) as (_, hear):  # a process of its own: torch raises it wherever that is
        assert hear() == [1]
    assert lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert lost(KeyError("DataLoader worker (pid 1) is killed by signal: Killed. ")) is None


# What can't be sent


@pytest.mark.parametrize("way", ["spawn", "forkserver"])
def test_a_data_set_that_can_t_be_pickled_is_refused_where_it_must_be(way) -> None:
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(way, force=True)
    try:
        with pytest.raises(DataError, match=rf"start method {way}.*can't be pickled: .*lambda.*workers=0"):
            next(feed(Numbered(lambda: None)).start(0))
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert multiprocessing.active_children() == []


def test_a_batch_that_can_t_be_pickled_is_an_error_and_no_wait() -> None:
    class Odd(Numbered):
        def __getitem__(self, index: int) -> object:
            return lambda: index

    begun = time.monotonic()
    with pytest.raises(DataError, match=r"a batch can't be sent .*workers=0"):
        next(feed(Odd(), collate=as_they_are).start(0))
    assert time.monotonic() - begun < 5


def test_shared_memory_that_is_full_is_named() -> None:
    class Large(Numbered):
        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.zeros(100_000)

    full = lambda number: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # noqa: E731
    with pytest.raises(DataError, match=r"no shared memory for a batch .*/dev/shm has .* MB free of .*workers=0"):
        next(feed(Large(), worker_init=full).start(0))


def test_a_note_is_given_if_and_only_if_shared_memory_may_not_hold_what_is_fetched_ahead(monkeypatch) -> None:
    class Kilobyte(Numbered):
        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.zeros(250)

    usage = namedtuple("usage", "total used free")
    for free, noted in ((2 * 4 * 8 * 1000, False), (2 * 4 * 8 * 1000 - 1, True)):
        monkeypatch.setattr(workers_room.shutil, "disk_usage", lambda path, free=free: usage(10**9, 0, free))
        note = shared_memory_note(Items(Kilobyte()), 8, 4)
        assert (note is not None and "--shm-size" in note) == noted
    assert shared_memory_note(Items(Kilobyte()), 8, 0) is None


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_of_text_and_nests_are_the_same_whoever_makes_them(workers) -> None:
    alone = list(feed(Words(), 0, 5, collate=as_they_are).once())
    sent = list(feed(Words(), workers, 5, collate=as_they_are).once())
    assert [[sample["text"] for sample in batch] for batch in alone] == [[s["text"] for s in batch] for batch in sent]
    for mine, theirs in zip(alone, sent, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert all(map(torch.equal, a["numbers"], b["numbers"]))
