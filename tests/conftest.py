"""What all tests share: one thread, a steady hypothesis, and the real MNIST."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start; before torch is imported

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

# Tests that are run under nohup or in a shell's background hear these too, and so do their processes.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
_HANDLERS = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)}

# The machine may be busy, so no example has a deadline; and a run of the tests is the same every time.
settings.register_profile(
    "gradstep", deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("gradstep")

_MNIST = [
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
]  # as they are, or with .gz


_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"
_DATA = Path(os.environ.get("GRADSTEP_DATA") or _BESIDE).resolve()  # now, before a test goes to another folder


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """For speed, and for equal bits on machines of any size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written into the home of whoever runs the tests, and no test is quicker for what another left."""
    monkeypatch.setenv("GRADSTEP_CACHE", "off")


@pytest.fixture(autouse=True)
def _own_signal_handlers() -> None:
    """The command line's main, called in this process, sets some for the rest of it: a test's or a module's fixture."""
    for number, handler in _HANDLERS.items():
        signal.signal(number, handler)


@pytest.fixture
def mnist(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the real MNIST, with GRADSTEP_DATA pointing above it. Fails where it is not: never a skip."""
    root = _DATA
    folder = root / "mnist"
    missing = [name for name in _MNIST if not (folder / name).exists() and not (folder / f"{name}.gz").exists()]
    if missing:
        pytest.fail(f"the real MNIST is needed: point GRADSTEP_DATA above mnist/ with {', '.join(missing)}")
    monkeypatch.setenv("GRADSTEP_DATA", str(root))
    return folder
