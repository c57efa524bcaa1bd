"""Host memory for arenas, page-locked in place where the system allows it. Knows nothing about experts.

Memory is locked where it lies (cudaHostRegister): PyTorch's own page-locked allocations are rounded up to a power of
two, and `Tensor.pin_memory` holds everything twice while it copies.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Callable

import torch

PORTABLE = 1  # cudaHostRegisterPortable: page-locked for every CUDA context of the process


class _PageLocked(mmap.mmap):
    """Anonymous memory, whole pages, that is unlocked before it is given back to the system."""

    unlock: Callable | None = None

    def __del__(self):
        if self.unlock is not None:
            self.unlock()


def host_memory(nbytes: int, *, pin: bool = False) -> tuple[torch.Tensor, bool]:
    """uint8 [nbytes], uninitialised, and whether it is page-locked.

    Args:
        pin: ask for page-locked memory. Where the system gives none (no card, no room, a limit), the memory is
            pageable: copies from it work, slower.
    """
    if pin and nbytes:
        with contextlib.suppress(RuntimeError, OSError, AttributeError):
            return _locked(nbytes), True
    return torch.empty(nbytes, dtype=torch.uint8), False


def _locked(nbytes: int) -> torch.Tensor:
    memory = _PageLocked(-1, nbytes)
    tensor = torch.frombuffer(memory, dtype=torch.uint8)  # its storage keeps `memory`, also through every view
    cuda, address = torch.cuda.cudart(), tensor.data_ptr()
    if int(cuda.cudaHostRegister(address, nbytes, PORTABLE)) != 0:
        with contextlib.suppress(RuntimeError):
            torch.zeros(1, device="cuda")  # CUDA remembers the refusal and would blame the next kernel for it
        raise RuntimeError("the system allows no more page-locked memory")
    memory.unlock = lambda: cuda.cudaHostUnregister(address)
    return tensor


__all__ = ["host_memory"]
