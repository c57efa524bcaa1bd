"""The scheduler for experts that come in pieces (`policies.Channels`): one matrix first, then the channels that are
needed and not there. What is evicted is still a whole expert. Knows nothing about tensors or why a channel is needed.

A layer's turn: what the scheduler does anyway, with the first pieces in the place of experts; then, in the order in
which first pieces were computed, the channels that are missing, one copy an expert, and what is computed from them. An
expert of which everything is there is computed at once.

Legend: C configurations · L layers · S slots · k experts asked for · I channels · R rows (indices of configurations).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ..trace import Copy
from .cache import Cache
from .scheduler import Scheduler
from .wishes import Waiting


class ChannelScheduler(Scheduler):
    """Drives a cache and a simulated link.

    Args:
        cache, link, record: as of a `Scheduler`.   channels: I.   seconds: of so many channels' copy, arrays too.

    Attributes:
        there: [C, L, S, I] which channels of its expert a slot holds.
        fetches: [C, L, 2] copies of first pieces, and channels that were copied.
        fill: called with (layer, expert, slot, channels [I]) at every copy of channels of a live run.
        foresee: (layer, expert) -> the channels [C, I] that a prefetch of it should bring, None for none.
    """

    def __init__(self, cache: Cache, link, channels: int, seconds: Callable, *, record: bool = True):
        super().__init__(cache, link, record=record)
        self.fetches = np.zeros((*self.fetches.shape[:2], 2), dtype=np.int64)
        self.there = np.zeros((*cache.expert_in.shape, channels), dtype=bool)
        self.there[cache.expert_in >= 0] = True  # who is seated before the first token
        self.fill: Callable[[int, int, int, np.ndarray], None] | None = None
        self.foresee: Callable[[int, int], np.ndarray | None] | None = None
        self._seconds = seconds
        self._foreseen: dict[tuple[int, int], np.ndarray] = {}

    def settled(self, layer: int) -> bool:
        """Never: what is computed of an expert depends on the token, so every request is asked what it needs."""
        return False

    def begin_pass(self) -> None:
        super().begin_pass()
        self._foreseen.clear()

    def need(self, channels: np.ndarray, seconds: np.ndarray) -> None:
        """What the next request needs: bool [C, k, I], and the seconds of computing it [C, k]."""
        self.needed, self._rest = channels, seconds

    def request(self, layer: int, ids, seconds, between: Callable[[], None] | None = None) -> Iterator:
        """As of a `Scheduler`; `seconds` are those of the first pieces. Tell it what it `need`s before."""
        self.pump()  # nobody comes or goes any more before the request
        slot = self.cache.find(layer, ids)
        held = self.there[self._all[:, None], layer, np.maximum(slot, 0)]
        at_once = (slot >= 0) & ~(self.needed & ~held).any(axis=2)
        self._left = (ids >= 0) & ~at_once
        yield from super().request(layer, ids, seconds + np.where(at_once, self._rest, 0.0), between)

    def pump(self, among: np.ndarray | bool = True) -> None:
        """As of a `Scheduler`; of those who are there the channels that were foreseen and are missing."""
        if self._missing:
            return
        for entry in self._queue:
            rows = self._all[entry.pending & among & self.link.can_start(entry.since)]
            if rows.size:
                entry.pending[rows] = False
                slot = self.cache.slot_of[rows, entry.layer, entry.expert]
                there, absent = rows[slot >= 0], rows[slot < 0]
                experts = np.full(absent.size, entry.expert)
                pledged = self.cache.pledged[absent, entry.layer]
                started, _ = self._copy(absent, entry.layer, experts, pledged, entry.since)
                self.counts["prefetches"][started, entry.layer] += 1
                self._early(there, entry.layer, entry.expert, slot[slot >= 0], entry.since[there])
        self._queue = [entry for entry in self._queue if entry.pending.any()]

    def _wish(self, layer: int, expert: int, chosen: np.ndarray) -> None:
        super()._wish(layer, expert, chosen)
        channels = None if self.foresee is None else self.foresee(layer, expert)
        if channels is None:
            return
        known = self._foreseen.setdefault((layer, int(expert)), np.zeros_like(channels))
        known[chosen] = channels[chosen]
        slot = self.cache.slot_of[:, layer, expert]
        lacks = (known & ~self.there[self._all, layer, np.maximum(slot, 0)]).any(axis=1) & chosen & (slot >= 0)
        if lacks.any():
            self._queue.append(Waiting(layer, int(expert), lacks, self.link.clock.now.copy()))

    def _copy(self, rows, layer, experts, barred, since, *, demand: bool = False) -> tuple[np.ndarray, np.ndarray]:
        rows, slots = super()._copy(rows, layer, experts, barred, since, demand=demand)
        self.there[rows, layer, slots] = False
        if rows.size and not demand:
            self._early(rows, layer, int(experts[0]), slots, self.link.ready[rows, layer, slots])
        return rows, slots

    def _early(self, rows, layer: int, expert: int, slots, since) -> None:
        """Starts the copy of the channels that were foreseen of an expert in slots [R] and are missing there."""
        known = self._foreseen.get((layer, expert))
        if known is not None and rows.size:
            self._bring(rows, layer, np.full(rows.size, expert), slots, known[rows], since, "prefetch")

    def _compute(self, rows, layer, ids, slot, ready, seconds, waiting, hand) -> Iterator[list[tuple[int, int]]]:
        """The first pieces, then the channels of those in `rows` that lack some; a simulated link gives one wave."""
        waves = super()._compute(rows, layer, ids, slot, ready, seconds, waiting, hand)
        wave = next(waves, None)
        todo = self._left[rows] & (slot[rows] >= 0)  # [R, k]
        self._left[rows] &= ~todo
        known = np.where(todo, self.link.released[rows[:, None], layer, np.maximum(slot[rows], 0)], np.inf)
        order, amount = known.argsort(axis=1, kind="stable"), todo.sum(axis=1)
        for i in range(int(amount.max(initial=0))):
            here = np.flatnonzero(amount > i)
            r, j = rows[here], order[here, i]
            self._bring(r, layer, ids[r, j], slot[r, j], self.needed[r, j], known[here, j], "demand")
            self.link.compute(r, layer, slot[r, j], self._rest[r, j])
        if wave is not None:
            yield wave
            next(waves, None)

    def _bring(self, rows, layer: int, experts, slots, channels: np.ndarray, since, kind: str) -> None:
        """Copies what slots [R] lack of `channels` [R, I], asked for at `since` [R]."""
        lacks = channels & ~self.there[rows, layer, slots]
        amount = lacks.sum(axis=1)
        some = amount > 0
        rows, experts, slots, lacks, amount = rows[some], experts[some], slots[some], lacks[some], amount[some]
        if not rows.size:
            return
        begin, end = self.link.more(rows, layer, slots, self._seconds(amount), since[some])
        self.fetches[rows, layer, 1] += amount
        if self.record:
            about = kind, layer, int(experts[0]), int(slots[0]), -1, float(begin[0]), float(end[0]), 1, int(amount[0])
            self._copies.append(Copy(*about))
        if self.fill is not None:
            self.fill(layer, int(experts[0]), int(slots[0]), lacks[0])
        self.there[rows, layer, slots] |= lacks  # not before they are: a copy may be interrupted


__all__ = ["ChannelScheduler"]
