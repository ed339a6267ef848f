"""Tensors as they are now, copied to the CPU: what can be written in the background while training goes on."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def on_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, complete on return."""
    copies = {name: _copy(value) for name, value in tensors.items()}
    for device in {value.device for value in tensors.values() if value.is_cuda}:
        torch.cuda.synchronize(device)  # the one wait for all of the copies
    return copies


def _copy(value: Tensor) -> Tensor:
    if value.is_cuda:  # into pinned memory, where no copy waits for the one before it
        return torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)
    return value.to("cpu", copy=True)


def non_finite(files: Mapping[str, Mapping[str, Tensor]]) -> list[str]:
    """The names, as `model/fc.weight`, of tensors that are not all finite numbers. For a snapshot: it reads them."""
    return [
        f"{file}/{name}" for file, tensors in files.items() for name, value in tensors.items() if not _finite(value)
    ]


def _finite(value: Tensor) -> bool:
    if not (value.is_floating_point() or value.is_complex()) or not value.numel():
        return True
    value = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
    value = value.float() if value.itemsize == 1 else value  # float8 has no minimum of its own
    # Nan is passed on into both. isfinite() would make several tensors of this size, and take ten times as long.
    least, most = value.aminmax()
    return bool(least.isfinite() & most.isfinite())
