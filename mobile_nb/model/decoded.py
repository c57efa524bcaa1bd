"""Runs experts from slots whose forms differ: full ones as they lie, encoded ones from a scratch that they are decoded
into, a few at a time, in a few operations for all of them. Knows nothing about why an expert is in its slot.

Legend: T tokens · K experts asked for · S slots of a pool · R experts that the scratch holds · H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from ..memory.cache import Cache
from ..memory.codecs import EncodedArena, Encoding, Scratch
from ..memory.disk import DiskArena, HostCache
from ..memory.store import Arena, Slots
from ..policies.codec import Codec
from .adapters import MoELayer
from .experts import SlotExperts


class DecodedExperts:
    """The experts of one layer, computed from encoded slots: has the call of `SlotExperts`.

    Args:
        experts: the fused-experts module.   encoding: of the slots.   blocks: uint8 [S, nbytes].
        scratch: for decoded experts; as many as a token asks for at most.
    """

    def __init__(self, experts: nn.Module, encoding: Encoding, blocks: torch.Tensor, scratch: Scratch):
        self._encoding, self._blocks, self._scratch = encoding, blocks, scratch.blocks
        self._inner = SlotExperts(experts, scratch)
        self._rows = torch.arange(len(scratch.blocks), device=blocks.device)

    def __call__(self, hidden: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        if len(hidden) == 1:
            return self._inner(hidden, self._decode(slots[0]), weights)
        out, used = torch.zeros_like(hidden), slots.unique()
        for some in used.split(len(self._scratch)):
            there = slots[..., None] == some  # [T, K, R]
            token, position = torch.nonzero(there.any(dim=-1), as_tuple=True)
            rows = self._decode(some)[0, there[token, position].int().argmax(dim=-1)]
            part = self._inner(hidden[token], rows[:, None], weights[token, position][:, None])
            out.index_add_(0, token, part)
        return out

    def _decode(self, slots: torch.Tensor) -> torch.Tensor:
        """Decodes slots [n], n up to R; returns their rows in the scratch [1, n]."""
        self._encoding.decode(self._blocks[slots], self._scratch[: len(slots)])
        return self._rows[None, : len(slots)]


class Pools:
    """Device slots of one layer, a pool a form, and what computes from them. With one full form: the plain slots.

    Args:
        layer: the MoE layer.   at: its number.   arena: all its experts, full.   codec: see `policies.codec`.
        cache: knows who comes in each form, and how many slots it has.   device: where slots are.
        scratches: shared by all layers, filled here.

    Attributes:
        blocks: the slots of the first form.   first: what computes from them.   nbytes: device memory of all slots.
    """

    def __init__(self, layer: MoELayer, at: int, arena: Arena, codec: Codec, cache: Cache, device, scratches: dict):
        experts, pin = layer.experts, device.type == "cuda"
        self._count, self._starts = cache.experts, np.searchsorted(cache.form_in, range(len(codec.forms))).tolist()
        self._arenas, self._blocks, self._compute = [], [], []
        for n, form in enumerate(codec.forms):
            size, ids = int(cache.sizes[0, at, n]), (cache.members(at, n) % cache.experts).tolist()
            if form.bits is None:
                slots = Slots(arena, size, device)
                if size >= len(ids) and size < arena.count:
                    self._fill(arena, slots.blocks, ids)
                self._arenas.append(arena)
                self._blocks.append(slots.blocks)
                self._compute.append(SlotExperts(experts, slots))
                continue
            encoding = Encoding(arena.layout, form)
            own = EncodedArena(arena, encoding, ids, pin=pin, device=device)
            blocks = torch.empty(size, encoding.nbytes, dtype=torch.uint8, device=device)
            if size >= len(ids):
                self._fill(own, blocks, ids)
            scratch = scratches.get(arena.layout) or Scratch(arena.layout, layer.top_k, device)
            scratches[arena.layout] = scratch
            self._arenas.append(own)
            self._blocks.append(blocks)
            self._compute.append(DecodedExperts(experts, encoding, blocks, scratch))
        self.blocks, self.nbytes = self._blocks[0], sum(blocks.nbytes for blocks in self._blocks)
        self.first = self._compute[0]

    @staticmethod
    def _fill(arena, blocks: torch.Tensor, ids: list[int]) -> None:
        for slot, expert in enumerate(ids):
            arena.copy_to(expert, blocks[slot])

    def copy_to(self, entry: int, slot: int) -> None:
        """The copy itself: one block."""
        form, expert = divmod(entry, self._count)
        self._arenas[form].copy_to(expert, self._blocks[form][slot - self._starts[form]])

    def parts(self, wave: list[tuple[int, int]]) -> Iterator[tuple[object, list[tuple[int, int]]]]:
        """A wave of (entry, slot), by form: what computes it, and (entry, slot of its pool)."""
        if len(self._compute) == 1:
            yield self.first, wave
            return
        for form, (compute, start) in enumerate(zip(self._compute, self._starts, strict=True)):
            some = [(entry, slot - start) for entry, slot in wave if entry // self._count == form]
            if some:
                yield compute, some


def arena_of(layer: MoELayer, at: int, host_cache: HostCache | None, device: torch.device) -> Arena | DiskArena:
    """Where all experts of a layer lie, full: in host memory, or in the files that `load` left them in."""
    files = getattr(layer.experts, "on_disk", None)
    if files is not None:
        return DiskArena(files, layer.num_experts, at, host_cache)
    return Arena(layer.experts, layer.num_experts, pin=device.type == "cuda")


__all__ = ["DecodedExperts", "Pools", "arena_of"]
