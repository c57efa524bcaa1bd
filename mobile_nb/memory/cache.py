"""Which expert is in which device slot, for C configurations at once. Knows nothing about time, links or tensors.

Legend: C configurations · L MoE layers · E experts · S slots a layer (the most that any configuration has) · R rows,
indices of the configurations that an operation is about.
"""

from __future__ import annotations

import numpy as np

from ..policies.evict import Evict, History
from ..vocabulary import MobileError, failed


class Cache:
    """Residency of experts in slots, one set of slots a layer.

    Args:
        layers, experts: L and E.
        slots: slots per layer of each configuration, int array [C]. A configuration with a slot for every expert starts
            full: the device is filled before the first token.
        evict: who leaves.
    """

    def __init__(self, layers: int, experts: int, slots: np.ndarray, evict: Evict):
        self.slots = np.atleast_1d(np.asarray(slots, dtype=np.int64))
        count, most = len(self.slots), int(self.slots.max())
        self.layers, self.experts, self.evict = layers, experts, evict
        self.expert_in = np.full((count, layers, most), -1, dtype=np.int64)  # [C, L, S]
        self.slot_of = np.full((count, layers, experts), -1, dtype=np.int64)  # [C, L, E]
        self.last_used = np.zeros((count, layers, most))  # [C, L, S]
        self.fetched = np.zeros((count, layers, most))  # [C, L, S]
        self.uses = np.zeros((count, layers, experts))  # [C, L, E]
        self.pledged = np.zeros((count, layers, most), dtype=bool)  # prefetched for this pass, not asked for yet
        self.fresh = np.zeros((count, layers, most), dtype=bool)  # prefetched, never used since
        self.tick = np.zeros((count, layers))  # requests so far
        self.next_use: np.ndarray | None = None  # [C, L, E], where the future is known: a replay
        self.expected: np.ndarray | None = None  # [C, L, E], where the eviction policy looks ahead
        for row in np.flatnonzero(
            self.slots >= experts
        ):  # room for everybody: nothing is offloaded, expert e in slot e
            self.expert_in[row, :, :experts] = self.slot_of[row] = np.arange(experts)
        shut = np.arange(most)[None] >= self.slots[:, None]  # [C, S] beyond what a configuration has
        self.shut = np.repeat(shut[:, None], layers, axis=1)  # [C, L, S] never given away
        self._place()

    def _place(self) -> None:
        """Seats those who are there before the first token and never leave, where the eviction policy names some."""
        for row in np.flatnonzero(self.slots < self.experts) if hasattr(self.evict, "placed") else ():
            for layer in range(self.layers):
                seats, who = self._named(layer, int(self.slots[row]))
                self.expert_in[row, layer, seats], self.slot_of[row, layer, who] = who, seats
                self.shut[row, layer, seats] = True

    def _named(self, layer: int, slots: int) -> tuple[np.ndarray, list[int]]:
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
        return np.arange(len(named)), named

    def find(self, layer: int, ids: np.ndarray) -> np.ndarray:
        """Slots of `ids` [C, k], -1 where absent or where the id itself is -1."""
        slot = np.take_along_axis(self.slot_of[:, layer], np.maximum(ids, 0), axis=1)
        return np.where(ids >= 0, slot, -1)

    def residents(self, layer: int, config: int = 0) -> list[int]:
        """Ids on the device, in slot order."""
        return [int(e) for e in self.expert_in[config, layer] if e >= 0]

    def full(self, layer: int) -> bool:
        """True when every expert of the layer is resident in every configuration."""
        return bool((self.slot_of[:, layer] >= 0).all())

    def clear(self) -> None:
        """Forgets who is where, for when a copy may have been cut short; slots that were filled at the start stay."""
        rows = self.slots < self.experts
        for residents in (self.expert_in, self.slot_of):
            residents[rows] = -1
        for flags in (self.pledged, self.fresh):
            flags[rows] = False
        self._place()

    def victim(self, rows: np.ndarray, layer: int, barred: np.ndarray) -> np.ndarray:
        """The slot that each row would give away next: [R], -1 where every slot is barred.

        Args:
            rows: configurations [R].   barred: slots not to be taken [R, S].
        """
        expert_in = self.expert_in[rows, layer]  # [R, S]
        known = np.maximum(expert_in, 0)
        history = History(
            last_used=self.last_used[rows, layer],
            uses=np.take_along_axis(self.uses[rows, layer], known, axis=1),
            fetched=self.fetched[rows, layer],
            next_use=None if self.next_use is None else np.take_along_axis(self.next_use[rows, layer], known, axis=1),
            expected=None if self.expected is None else np.take_along_axis(self.expected[rows, layer], known, axis=1),
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
        barred = barred | self.shut[rows, layer]
        score[barred] = np.inf
        return np.where(barred.all(axis=1), -1, score.argmin(axis=1))

    def put(
        self, rows: np.ndarray, layer: int, experts: np.ndarray, slots: np.ndarray, *, prefetch: bool
    ) -> np.ndarray:
        """Seats experts [R] in slots [R]. Returns who left [R], -1 for nobody. Evicting copies nothing back."""
        left = self.expert_in[rows, layer, slots]
        had = left >= 0
        self.slot_of[rows[had], layer, left[had]] = -1
        self.expert_in[rows, layer, slots] = experts
        self.slot_of[rows, layer, experts] = slots
        self.last_used[rows, layer, slots] = self.fetched[rows, layer, slots] = self.tick[rows, layer]
        self.pledged[rows, layer, slots] = prefetch
        self.fresh[rows, layer, slots] = prefetch
        return left

    def touch(self, rows: np.ndarray, layer: int, experts: np.ndarray, slots: np.ndarray, ranks) -> np.ndarray:
        """Marks experts [R] in slots [R], the `ranks`-th best of their request, as asked for.

        Returns which of them were prefetched and used now first [R].
        """
        first = self.fresh[rows, layer, slots]
        self.fresh[rows, layer, slots] = False
        self.last_used[rows, layer, slots] = self.tick[rows, layer] + 1 / (ranks + 2)  # the best is the most recent
        self.uses[rows, layer, experts] += 1
        return first


__all__ = ["Cache"]
