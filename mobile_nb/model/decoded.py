"""Runs experts from slots whose forms differ: full ones as they lie, encoded ones from a scratch that they are decoded
into, a few at a time, in a few operations for all of them. Knows nothing about why an expert is in its slot.

Legend: T tokens · K experts asked for · S slots of a pool · R experts that the scratch holds · H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from ..memory.cache import Cache
from ..memory.codecs import EncodedArena, Encoding, Scratch
from ..memory.store import Arena, Layout, Slots, room_for
from ..policies.codec import Codec
from .adapters import MoELayer
from .experts import SlotExperts, listed, picked


class DecodedExperts:
    """The experts of one layer, computed from encoded slots: has the call of `SlotExperts`.

    Args:
        experts: the fused-experts module.   encoding: of the slots.   blocks: uint8 [S, nbytes].
        scratch: for decoded experts; as many as a token asks for at most.
    """

    def __init__(self, experts: nn.Module, encoding: Encoding, blocks: torch.Tensor, scratch: Scratch):
        self._encoding, self._blocks, self._scratch = encoding, blocks, scratch.blocks
        self._inner = SlotExperts(experts, scratch)
        self._numbers = torch.arange(len(blocks), device=blocks.device)
        self._rows = torch.arange(len(scratch.blocks), device=blocks.device)

    def __call__(self, hidden, slots: torch.Tensor | list[int], weights, used: dict[int, int] | None = None):
        """`used` says of each slot in `slots` how often it is there, so that nobody has to ask the device for it."""
        if len(hidden) == 1:
            slots = listed(self._numbers, slots) if isinstance(slots, list) else slots[0]
            self._decode(slots)
            return self._inner(hidden, list(range(len(slots))), weights)
        if used is None:
            used = dict(zip(*(part.tolist() for part in slots.unique(return_counts=True)), strict=True))
        out, several = torch.zeros_like(hidden), len(self._scratch)
        for few in (list(used)[at : at + several] for at in range(0, len(used), several)):
            some = listed(self._numbers, few)
            there = slots[..., None] == some  # [T, K, R]
            pairs = torch.nonzero_static(there.any(dim=-1), size=sum(used[slot] for slot in few))
            token, position = pairs.unbind(dim=1)
            self._decode(some)
            rows = self._rows[there[token, position].int().argmax(dim=-1)]
            part = self._inner(hidden[token], rows[:, None], weights[token, position][:, None])
            out.index_add_(0, token, part)
        return out

    def _decode(self, slots: torch.Tensor) -> None:
        """Decodes slots [n], n up to R, into the first rows of the scratch."""
        self._encoding.decode(self._blocks[slots], self._scratch[: len(slots)])


class Decoded:
    """The experts of one layer as an arena whose blocks are decoded when they are asked for, one at a time.

    Args:
        layout: of a decoded block.   encodings, arenas: of each form; None is the full one.   form_of: of each expert.
    """

    def __init__(self, layout: Layout, encodings: list[Encoding | None], arenas: list, form_of: Sequence[int]):
        self.layout, self._encodings, self._arenas, self._form_of = layout, encodings, arenas, form_of

    def copy_to(self, expert: int, block: torch.Tensor) -> None:
        """Fills `block` [numel]."""
        form = self._form_of[expert]
        encoding, arena = self._encodings[form], self._arenas[form]
        if encoding is None:
            arena.copy_to(expert, block)
            return
        encoded = torch.empty(1, encoding.nbytes, dtype=torch.uint8)
        arena.copy_to(expert, encoded[0])
        encoding.decode(encoded, block[None])


class Pools:
    """Device slots of one layer, a pool a form, and what computes from them. With one full form: the plain slots.

    Args:
        layer: the MoE layer.   at: its number.   arena: all its experts, full.   codec: see `policies.codec`.
        cache: knows who comes in each form, and how many slots it has.   device: where slots are.
        scratches: shared by all layers, filled here.

    Attributes:
        blocks: the slots of the first form.   first: what computes from them.   nbytes: device memory of all slots.
        on_host: what the host computes from: an arena, or the form that an expert would come in.
    """

    def __init__(self, layer: MoELayer, at: int, arena: Arena, codec: Codec, cache: Cache, device, scratches: dict):
        self._count, self._starts = cache.experts, np.searchsorted(cache.form_in, range(len(codec.forms))).tolist()
        self._numbers = torch.arange(cache.experts, device=device)
        self._arenas, self._blocks, self._compute = [], [], []
        encodings = [None if form.bits is None else Encoding(arena.layout, form) for form in codec.forms]
        form_of = [0] * cache.experts if codec.own is None else codec.own[at]
        self.on_host = arena if encodings == [None] else Decoded(arena.layout, encodings, self._arenas, form_of)
        with room_for(cache.sizes[0], [(encoding or arena.layout).nbytes for encoding in encodings], device):
            for n, encoding in enumerate(encodings):
                size, ids = int(cache.sizes[0, at, n]), (cache.members(at, n) % cache.experts).tolist()
                if encoding is None:
                    self._full(layer, arena, size, ids, device)
                    continue
                scratch = scratches.get(arena.layout) or Scratch(arena.layout, layer.top_k, device)
                scratches[arena.layout] = scratch
                self._encoded(layer, arena, size, ids, encoding, scratch)
        self.blocks, self.nbytes = self._blocks[0], sum(blocks.nbytes for blocks in self._blocks)
        self.first, self.pinned = self._compute[0], all(arena.pinned for arena in self._arenas)

    def _full(self, layer: MoELayer, arena: Arena, size: int, ids: list[int], device) -> None:
        slots = Slots(arena, size, device)
        if len(ids) <= size < arena.count:
            self._fill(arena, slots.blocks, ids)
        self._add(arena, slots.blocks, SlotExperts(layer.experts, slots))

    def _encoded(self, layer, arena: Arena, size: int, ids: list[int], encoding: Encoding, scratch: Scratch) -> None:
        device = scratch.blocks.device
        own = EncodedArena(arena, encoding, ids, pin=device.type == "cuda", device=device)
        blocks = torch.empty(size, encoding.nbytes, dtype=torch.uint8, device=device)
        if size >= len(ids):
            self._fill(own, blocks, ids)
        self._add(own, blocks, DecodedExperts(layer.experts, encoding, blocks, scratch))

    def _add(self, arena, blocks: torch.Tensor, compute) -> None:
        self._arenas.append(arena)
        self._blocks.append(blocks)
        self._compute.append(compute)

    @staticmethod
    def _fill(arena, blocks: torch.Tensor, ids: list[int]) -> None:
        for slot, expert in enumerate(ids):
            arena.copy_to(expert, blocks[slot])

    def copy_to(self, entry: int, slot: int) -> None:
        """The copy itself: one block."""
        form, expert = divmod(entry, self._count)
        self._arenas[form].copy_to(expert, self._blocks[form][slot - self._starts[form]])

    def one_token(self, wave: list[tuple[int, int]], columns: dict[int, list[int]], hidden, weights) -> torch.Tensor:
        """What a wave of (entry, slot) adds to hidden [1, H]. Entries serve columns of weights [1, K]."""
        out = None
        for compute, some in self._parts(wave):
            pairs = [(slot, position) for entry, slot in some for position in columns[entry]]
            mine = picked(weights, [position for _, position in pairs])
            part = compute(hidden, [slot for slot, _ in pairs], mine)
            out = part if out is None else out + part
        return out

    def many_tokens(self, wave: list[tuple[int, int]], wanted: dict[int, int], hidden, index, weights, out):
        """Adds what a wave of (entry, slot) makes of hidden [T, H] to `out` [T, H], and returns that.

        Args:
            wanted: expert -> how many tokens ask for it, of all waves: with that a card's host waits for nothing.
            index, weights: experts [T, K] and their weights.
        """
        numbers = self._numbers.to(index.dtype)
        for compute, some in self._parts(wave):
            ids = listed(numbers, [entry % self._count for entry, _ in some])
            slots = listed(numbers, [slot for _, slot in some])
            slot_of = torch.full_like(numbers, -1)
            slot_of[ids.long()] = slots
            used = {slot: wanted[entry % self._count] for entry, slot in some}
            if len(some) == len(wanted):  # the only one
                return compute(hidden, slot_of[index], weights, used)
            slot = slot_of[index]  # [T, K], -1 for experts of other waves
            token, position = torch.nonzero_static(slot >= 0, size=sum(used.values())).unbind(dim=1)
            pairs = slot[token, position][:, None], weights[token, position][:, None]
            out.index_add_(0, token, compute(hidden[token], *pairs, used))
        return out

    def _parts(self, wave: list[tuple[int, int]]) -> Iterator[tuple[object, list[tuple[int, int]]]]:
        """A wave of (entry, slot), by form: what computes it, and (entry, slot of its pool)."""
        if len(self._compute) == 1:
            yield self.first, wave
            return
        for form, (compute, start) in enumerate(zip(self._compute, self._starts, strict=True)):
            some = [(entry, slot - start) for entry, slot in wave if entry // self._count == form]
            if some:
                yield compute, some


def every_form(layer: MoELayer, at: int, arena: Arena, codec: Codec) -> SlotExperts:
    """Computes any experts of a layer in any form, numbered expert + E * form; where each has one form, by its number.

    All of them are decoded beforehand, [F * E, numel], so this is for models whose experts fit the host twice.
    """
    forms = []
    for form in codec.forms:
        decoded = arena.blocks
        if form.bits is not None:
            decoded, encoding = torch.zeros_like(arena.blocks), Encoding(arena.layout, form)
            encoding.decode(encoding.encode(arena.blocks), decoded)
        forms.append(decoded)
    if codec.own is not None:
        forms = [torch.stack([forms[form][expert] for expert, form in enumerate(codec.own[at])])]
    blocks = forms[0] if len(forms) == 1 else torch.cat(forms)
    return SlotExperts(layer.experts, SimpleNamespace(blocks=blocks, views=arena.layout.views(blocks)))


__all__ = ["DecodedExperts", "Pools", "every_form"]
