"""Host memory for arenas, page-locked in place where the system allows it. Knows nothing about experts.

Memory is locked where it lies (cudaHostRegister): PyTorch's own page-locked allocations are rounded up to a power of
two, and `Tensor.pin_memory` holds everything twice while it copies.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

PORTABLE = 1  # cudaHostRegisterPortable: page-locked for every CUDA context of the process
HUGE = 2 << 20  # bytes of a huge page: filling memory costs the system a fault a page, and these are 512 times fewer
PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}  # not on Windows

Buffer = mmap.mmap | np.ndarray


class _PageLocked(mmap.mmap):
    """Anonymous memory, whole pages, that is unlocked before it is given back to the system."""

    unlock: Callable | None = None

    def __del__(self):
        if self.unlock is not None:
            self.unlock()


def host_memory(nbytes: int, *, pin: bool = False) -> tuple[Buffer, bool]:
    """Uninitialised memory as a buffer that `torch.frombuffer` takes, and whether it is page-locked.

    Args:
        pin: ask for page-locked memory. Where the system gives none (no card, no room, a limit), the memory is
            pageable: copies from it work, slower.
    """
    if pin and nbytes:
        with contextlib.suppress(RuntimeError, OSError, AttributeError):
            return _locked(nbytes), True
    if nbytes < HUGE:
        return torch.empty(nbytes, dtype=torch.uint8).numpy(), False
    try:
        return _huge(mmap.mmap(-1, nbytes, **PRIVATE)), False
    except OSError as problem:
        raise MemoryError(f"the system has no {nbytes:,} bytes left") from problem


def _huge(memory: mmap.mmap) -> mmap.mmap:
    """The memory, in huge pages where the system has them to give."""
    with contextlib.suppress(AttributeError, OSError):  # Linux alone
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _locked(nbytes: int) -> _PageLocked:
    memory = _PageLocked(-1, nbytes, **PRIVATE)
    _huge(memory)
    cuda, address = torch.cuda.cudart(), torch.frombuffer(memory, dtype=torch.uint8).data_ptr()
    if int(cuda.cudaHostRegister(address, nbytes, PORTABLE)) != 0:
        _forget_the_refusal()
        raise RuntimeError("the system allows no more page-locked memory")
    memory.unlock = lambda: cuda.cudaHostUnregister(address)
    return memory


def _forget_the_refusal() -> None:
    """CUDA keeps the last error and would blame the next kernel for it; launching one takes it off."""
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device="cuda")


def current(device: torch.device) -> contextlib.AbstractContextManager:
    """Makes a card the current one, as what is locked, and the context for it, are the current card's; others pass."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def host_gb() -> float | None:
    """Memory of this machine, or of the container that it is."""
    try:
        most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # Windows
        return None
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            most = min(most, int(Path(limit).read_text()))
        except (OSError, ValueError):
            continue
    return most / 1e9


def host_room_gb() -> float | None:
    """Memory that can be had now without swapping, of this machine or of the container that it is."""
    room = host_gb()
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        (kib,) = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
        room = min(room or kib * 1024 / 1e9, kib * 1024 / 1e9)
        group = Path("/sys/fs/cgroup")
        left = int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
        room = min(room, left / 1e9)
    except (OSError, ValueError):  # another system, or no limit
        pass
    return room


__all__ = ["current", "host_gb", "host_memory", "host_room_gb"]
