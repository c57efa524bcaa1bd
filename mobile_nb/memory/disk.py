"""Experts that stay in their files: each fetch reads one, straight into its slot, or finds it in a bounded host cache.

The third tier below slots and host arenas, for machines whose memory does not hold the model. Knows nothing about file
formats: a reader fills a block.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import nn

from .store import Arena


class HostCache:
    """Blocks of experts read lately, at most `gb` of them; the least recently used leave. Shared by all layers."""

    def __init__(self, gb: float):
        self._room = int(gb * 1e9)
        self._blocks: OrderedDict[tuple[int, int], torch.Tensor] = OrderedDict()
        self._lock = threading.Lock()
        self.hits = self.reads = 0

    def get(self, key: tuple[int, int], read: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The block of (layer, expert), from here or read now."""
        with self._lock:
            if key in self._blocks:
                self.hits += 1
                self._blocks.move_to_end(key)
                return self._blocks[key]
        self.reads += 1
        block = read()
        with self._lock:
            self._blocks[key] = block
            while sum(b.nbytes for b in self._blocks.values()) > self._room:
                self._blocks.popitem(last=False)
        return block


class DiskArena:
    """The experts of one layer in their files; the counterpart of `store.Arena`.

    Args:
        files: has `layout`, `read(expert, block)` and `close()`, as `model.disk.ExpertFiles` does.   count: E.
        layer: number of the layer, for the cache.   cache: None reads every time.
    """

    pinned = False

    def __init__(self, files, count: int, layer: int, cache: HostCache | None = None):
        self.layout, self.count, self._files, self._layer, self._cache = files.layout, count, files, layer, cache
        self._reading = threading.Lock()  # the link's thread reads, and whoever computes on the host

    def copy_to(self, expert: int, block: torch.Tensor) -> None:
        """Fills a slot [numel]."""
        if self._cache is None:
            self._read(expert, block)
        else:
            block.copy_(self._cache.get((self._layer, expert), lambda: self._fresh(expert)))

    def filled(self, device: torch.device) -> torch.Tensor:
        """Every expert, blocks [E, numel]."""
        return torch.stack([self._fresh(expert) for expert in range(self.count)]).to(device)

    def release(self) -> None:
        """Closes the files."""
        self._files.close()

    def _fresh(self, expert: int) -> torch.Tensor:
        block = torch.empty(self.layout.numel, dtype=self.layout.dtype)
        self._read(expert, block)
        return block

    def _read(self, expert: int, block: torch.Tensor) -> None:
        with self._reading:
            self._files.read(expert, block)


def arena_of(
    experts: nn.Module, count: int, layer: int, cache: HostCache | None = None, *, pin: bool = False
) -> Arena | DiskArena:
    """The arena of a layer's fused-experts module: in its files where a load left them there, else in host memory."""
    files = getattr(experts, "on_disk", None)
    return Arena(experts, count, pin=pin) if files is None else DiskArena(files, count, layer, cache)


__all__ = ["DiskArena", "HostCache", "arena_of"]
