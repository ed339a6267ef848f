"""What a trial leaves behind in memory: a proposal that leaks is faster until the run dies of it."""

from __future__ import annotations

import ctypes
import functools
import gc
from collections.abc import Callable

import torch

LOOKS = 4  # units of steps after each of which more must be held


class _Info(ctypes.Structure):
    """What glibc says of its heaps (mallinfo2 of malloc.h, since 2.33), in bytes but for two counts."""

    _names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = [(name, ctypes.c_size_t) for name in _names]


def held(device: torch.device) -> int:
    """Bytes that are allocated on a device, or on the host by C; 0 where the C library doesn't say."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    asked = _mallinfo()
    if asked is None:
        return 0
    info = asked()
    return int(info.uordblks) + int(info.hblkhd)  # on its heaps, and in mappings of their own


@functools.cache
def _mallinfo() -> Callable[[], _Info] | None:
    function = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if function is not None:
        function.restype = _Info
    return function


def growth(take: Callable[[int], object], device: torch.device) -> int:
    """Bytes more that each step leaves: the least of a few looks, since a leak is there in each and a cache in some.

    Python collects no garbage meanwhile, or one of two that leave the same would be found to leave less.
    """
    looks, collects = [], gc.isenabled()
    gc.disable()
    try:
        for _ in range(LOOKS):
            before = held(device)
            take(1)
            looks.append(held(device) - before)
    finally:
        if collects:
            gc.enable()
    return max(min(looks), 0)
