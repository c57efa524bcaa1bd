"""Which expert is in which device slot, for C configurations at once. Knows nothing about time, links or tensors.

Where experts come in several forms (`policies.codec`), who is resident is an entry, expert + E * form, and the slots of
a form are a pool of their own; an entry only takes slots of its pool. With one form an entry is the expert.

Legend: C configurations · L MoE layers · E experts · F forms · S slots a layer, those of all pools (the most that any
configuration has) · R rows, indices of the configurations that an operation is about.
"""

from __future__ import annotations

import numpy as np

from ..policies.evict import Evict, History
from ..vocabulary import MobileError, failed


class Cache:
    """Residency of experts in slots, one set of slots a layer.

    Args:
        layers, experts: L and E.
        slots: slots per layer of each configuration, int array [C], [C, L] or [C, L, F]. A pool with a slot for every
            expert that it may hold starts full: the device is filled before the first token.
        evict: who leaves.
        own: [L, E] the only form of each expert; None where each comes in every form, and is asked for in the first.
    """

    def __init__(self, layers: int, experts: int, slots: np.ndarray, evict: Evict, own: np.ndarray | None = None):
        self.sizes = np.atleast_1d(np.asarray(slots, dtype=np.int64))
        self.sizes = self.sizes.reshape(*self.sizes.shape, *[1] * (3 - self.sizes.ndim))
        self.sizes = self.sizes.repeat(layers, axis=1) if self.sizes.shape[1] == 1 else self.sizes  # [C, L, F]
        self.slots = self.sizes.sum(axis=2).max(axis=1)  # [C] of the layer that has most
        pools = self.sizes.max(axis=(0, 1))  # [F]
        count, most, self.entries = len(self.slots), int(pools.sum()), experts * len(pools)
        self.form_in = np.repeat(np.arange(len(pools)), pools)  # [S] what a slot is for
        place = np.arange(most) - np.repeat(pools.cumsum() - pools, pools)  # [S] its number in its pool
        self.shut = place >= self.sizes[:, :, self.form_in]  # [C, L, S] never given away
        self.layers, self.experts, self.evict, self.own = layers, experts, evict, own
        self.expert_in = np.full((count, layers, most), -1, dtype=np.int64)  # [C, L, S]
        self.slot_of = np.full((count, layers, self.entries), -1, dtype=np.int64)  # [C, L, F * E]
        self.last_used = np.zeros((count, layers, most))  # [C, L, S]
        self.fetched = np.zeros((count, layers, most))  # [C, L, S]
        self.uses = np.zeros((count, layers, self.entries))  # [C, L, F * E]
        self.pledged = np.zeros((count, layers, most), dtype=bool)  # prefetched for this pass, not asked for yet
        self.fresh = np.zeros((count, layers, most), dtype=bool)  # prefetched, never used since
        self.tick = np.zeros((count, layers))  # requests so far
        self.next_use: np.ndarray | None = None  # [C, L, E], where the future is known: a replay
        self.expected: np.ndarray | None = None  # [C, L, E], where the eviction policy looks ahead
        self._fill()

    def _fill(self) -> None:
        """Seats everybody where there is room for all of a pool, member n in its slot n: nothing is offloaded there.
        Elsewhere those whom the eviction policy places, who never leave."""
        for layer in range(self.layers):
            for form in range(self.entries // self.experts):
                members, slots = self.members(layer, form), np.flatnonzero(self.form_in == form)[: self.experts]
                for row in range(len(self.slots)):
                    size = int(self.sizes[row, layer, form])
                    if size >= len(members):
                        self._seat(row, layer, slots[: len(members)], members)
                    elif form == 0 and hasattr(self.evict, "placed"):
                        named = self._named(layer, size)
                        self._seat(row, layer, slots[: len(named)], named)
                        self.shut[row, layer, slots[: len(named)]] = True

    def _seat(self, row: int, layer: int, slots: np.ndarray, entries) -> None:
        self.expert_in[row, layer, slots], self.slot_of[row, layer, entries] = entries, slots

    def _named(self, layer: int, slots: int) -> list[int]:
        try:
            named = list(self.evict.placed(layer, slots))
        except MobileError:
            raise
        except Exception as problem:
            raise MobileError(failed(self.evict, "placed", problem)) from problem
        if len(set(named)) != len(named) or len(named) >= slots or not set(named) <= set(range(self.experts)):
            raise MobileError(
                f"the eviction policy {self.evict!r} must place fewer than {slots} different experts from 0 to "
                f"{self.experts - 1} in layer {layer}, got {named!r}."
            )
        return named

    def members(self, layer: int, form: int) -> np.ndarray:
        """The entries that come in a form."""
        have = range(self.experts) if self.own is None else np.flatnonzero(np.asarray(self.own[layer]) == form)
        return np.asarray(have, dtype=np.int64) + form * self.experts

    def closed(self, rows: np.ndarray, layer: int, entries: np.ndarray) -> np.ndarray:
        """[R, S] slots that entries [R] may not take, whoever is in them."""
        if self.entries == self.experts:
            return self.shut[rows, layer]
        return self.shut[rows, layer] | (self.form_in != entries[:, None] // self.experts)

    def find(self, layer: int, ids: np.ndarray) -> np.ndarray:
        """Slots of `ids` [C, k], -1 where absent or where the id itself is -1."""
        slot = np.take_along_axis(self.slot_of[:, layer], np.maximum(ids, 0), axis=1)
        return np.where(ids >= 0, slot, -1)

    def residents(self, layer: int, config: int = 0) -> list[int]:
        """Experts on the device in the form that they are asked for in, in slot order."""
        there = self.expert_in[config, layer]
        if self.own is None:
            return [int(e) for e in there if 0 <= e < self.experts]
        return [int(e) % self.experts for e in there if e >= 0]

    def full(self, layer: int) -> bool:
        """True when every expert e of the layer is in slot e, in every configuration."""
        return self.own is None and bool((self.slot_of[:, layer, : self.experts] >= 0).all())

    def clear(self) -> None:
        """Forgets who is where, for when a copy may have been cut short; slots that were filled at the start stay."""
        self.expert_in[:], self.slot_of[:], self.pledged[:], self.fresh[:] = -1, -1, False, False
        self._fill()

    def victim(self, rows: np.ndarray, layer: int, entries: np.ndarray, barred: np.ndarray) -> np.ndarray:
        """The slot that each row would give to an entry next: [R], -1 where every slot is barred.

        Args:
            rows, entries: configurations, and who comes in each [R].   barred: slots not to be taken [R, S].
        """
        expert_in = self.expert_in[rows, layer]  # [R, S]
        known = np.maximum(expert_in, 0)
        uses = self.uses[rows, layer]  # [R, F * E]
        finest = None
        if self.entries > self.experts:
            finest = np.take_along_axis(uses, known % self.experts, axis=1)
            uses = np.tile(uses.reshape(len(rows), -1, self.experts).sum(axis=1), self.entries // self.experts)
        history = History(
            last_used=self.last_used[rows, layer],
            uses=np.take_along_axis(uses, known, axis=1),
            fetched=self.fetched[rows, layer],
            next_use=None if self.next_use is None else np.take_along_axis(self.next_use[rows, layer], known, axis=1),
            expected=self._expected(rows, layer, known % self.experts),
            finest=finest,
        )
        try:
            score = np.array(self.evict.score(history), dtype=float)
        except MobileError:
            raise
        except Exception as problem:
            raise MobileError(failed(self.evict, "score", problem)) from problem
        if score.shape != expert_in.shape or np.isnan(score).any():
            raise MobileError(
                f"the eviction policy {self.evict!r} must return {expert_in.shape} scores without NaN, "
                f"got shape {score.shape}."
            )
        np.clip(score, -1e300, 1e300, out=score)
        score[expert_in < 0] = -np.inf
        barred = barred | self.closed(rows, layer, entries)
        score[barred] = np.inf
        return np.where(barred.all(axis=1), -1, score.argmin(axis=1))

    def _expected(self, rows: np.ndarray, layer: int, experts: np.ndarray) -> np.ndarray | None:
        return None if self.expected is None else np.take_along_axis(self.expected[rows, layer], experts, axis=1)

    def leave(self, rows: np.ndarray, layer: int, slots: np.ndarray) -> np.ndarray:
        """Empties slots [R]. Returns who left [R], -1 for nobody. Evicting copies nothing back."""
        left = self.expert_in[rows, layer, slots]
        had = left >= 0
        self.slot_of[rows[had], layer, left[had]] = -1
        self.expert_in[rows, layer, slots] = -1
        return left

    def put(self, rows: np.ndarray, layer: int, experts: np.ndarray, slots: np.ndarray, *, prefetch: bool) -> None:
        """Seats entries [R] in empty slots [R]."""
        self.expert_in[rows, layer, slots] = experts
        self.slot_of[rows, layer, experts] = slots
        self.last_used[rows, layer, slots] = self.fetched[rows, layer, slots] = self.tick[rows, layer]
        self.pledged[rows, layer, slots] = prefetch
        self.fresh[rows, layer, slots] = prefetch

    def touch(self, rows: np.ndarray, layer: int, experts: np.ndarray, slots: np.ndarray, ranks) -> np.ndarray:
        """Marks entries [R] in slots [R], the `ranks`-th best of their request, as asked for.

        Returns which of them were prefetched and used now first [R].
        """
        first = self.fresh[rows, layer, slots]
        self.fresh[rows, layer, slots] = False
        self.last_used[rows, layer, slots] = self.tick[rows, layer] + 1 / (ranks + 2)  # the best is the most recent
        self.uses[rows, layer, experts] += 1
        return first


__all__ = ["Cache"]
