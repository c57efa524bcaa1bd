"""One scheduler for every link: who is asked for, who is fetched, in what order, and what is computed when.

Order of business for a layer: queued prefetches that the link had time for; residents are computed while the misses
are copied, on demand before any prefetch that has not started; each arrival is computed as it lands. With fewer slots
than experts asked for, they take turns. Knows nothing about models or tensors.

Legend: C configurations · L layers · E experts · S slots · k experts asked for · R rows (indices of configurations).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from ..trace import Copy
from ..vocabulary import Wanted
from .cache import Cache
from .wishes import Waiting, by_rank, pairs_of

COUNTERS = ("requests", "hits", "late", "misses", "prefetches", "used", "wasted", "host")


class Scheduler:
    """Drives a cache and a link.

    Args:
        cache: residency.
        link: `SimulatedLink` or `CudaLink`.
        record: keep a list of copies (`take_copies`); for live runs, where C is 1.

    Attributes:
        counts: for each name in COUNTERS an int array [C, L]. hits + misses + host = requests; `late` are the hits
            whose copy was still under way; `used` and `wasted` are prefetches that were asked for, or evicted before.
        fetches: [C, L, F] copies that were started, by form. Where there are several, ids are entries, see `Cache`.
    """

    def __init__(self, cache: Cache, link, *, record: bool = True):
        self.cache, self.link, self.record = cache, link, record
        count = len(cache.slots)
        self.counts = {name: np.zeros((count, cache.layers), dtype=np.int64) for name in COUNTERS}
        self.fetches = np.zeros_like(cache.sizes)
        self._all = np.arange(count)
        self._queue: list[Waiting] = []
        self._copies: list[Copy] = []
        self._serving: int | None = None  # the layer whose request is being computed
        self._missing = False  # it has misses that are not on their way yet: no prefetch may start before them

    def begin_pass(self) -> None:
        """Forgets prefetches that never started, and the promises of the pass before."""
        self._queue.clear()
        self._serving, self._missing = None, False
        self.cache.pledged[:] = False

    def want(self, wanted: Iterable[Wanted], rows: np.ndarray | None = None, *, instead: bool = False) -> None:
        """Queues prefetches, in order, for `rows` (all configurations by default).

        Those for the layer that is being computed are left out: what it needs is known, and its slots are in use.
        With `instead` they take the place of those that still wait for the link.

        Raises:
            MobileError: a layer or an expert that does not exist.
        """
        chosen = np.isin(self._all, self._all if rows is None else rows)
        pairs = pairs_of(wanted, self.cache.layers, self.cache.entries)
        self._want([(*pair, chosen) for pair in pairs], chosen, instead)

    def want_each(self, wanted: Mapping[int, Iterable[Wanted]], *, instead: bool = False) -> None:
        """`want` for several configurations, each with its own list; equal wishes of the same rank wait together."""
        pairs = {row: pairs_of(each, self.cache.layers, self.cache.entries) for row, each in wanted.items()}
        chosen = np.isin(self._all, list(pairs))
        self._want([(*pair, np.isin(self._all, rows)) for pair, rows in by_rank(pairs)], chosen, instead)

    def _want(self, wishes: Iterable[tuple[int, int, np.ndarray]], chosen: np.ndarray, instead: bool) -> None:
        if instead:  # what still waits for the link is dropped
            self.pump(chosen)
            for entry in self._queue:
                entry.pending &= ~chosen
            self._queue = [entry for entry in self._queue if entry.pending.any()]
        wishes = [wish for wish in wishes if wish[0] != self._serving]
        for layer, expert, rows in wishes:  # before the first copy: none of them makes room for another
            slot = self.cache.slot_of[:, layer, expert]
            there = self._all[rows & (slot >= 0)]
            self.cache.pledged[there, layer, slot[there]] = True
        for layer, expert, rows in wishes:
            self._wish(layer, expert, rows)
            if self.link.asynchronous and len(self._queue) == 1:  # it sets out while the others are written down
                self.pump()
        self.pump(chosen)

    def _wish(self, layer: int, expert: int, chosen: np.ndarray) -> None:
        """Queues one expert in those of the configurations `chosen` [C] where it is not there."""
        if (absent := chosen & (self.cache.slot_of[:, layer, expert] < 0)).any():
            self._queue.append(Waiting(layer, int(expert), absent, self.link.clock.now.copy()))

    def pump(self, among: np.ndarray | bool = True) -> None:
        """Starts the queued prefetches, in order, that the link had time for until now, or `among` [C] of them."""
        if self._missing:
            return
        for entry in self._queue:
            if not (free := self.link.can_start(entry.since))[0] and self.link.asynchronous:
                break
            rows = self._all[entry.pending & among & free]
            if rows.size:
                entry.pending[rows] = False
                rows = rows[self.cache.slot_of[rows, entry.layer, entry.expert] < 0]
                experts = np.full(rows.size, entry.expert)
                started, _ = self._copy(rows, entry.layer, experts, self.cache.pledged[rows, entry.layer], entry.since)
                self.counts["prefetches"][started, entry.layer] += 1
        self._queue = [entry for entry in self._queue if entry.pending.any()]

    def request(
        self, layer: int, ids: np.ndarray, seconds: np.ndarray, between: Callable[[], None] | None = None
    ) -> Iterator[list[tuple[int, int]]]:
        """Serves one layer's experts, and yields them in waves that are on the device together.

        Args:
            ids: [C, k], best first, each at most once in a row; -1 for none.
            seconds: compute time of each, [C, k] or [k].
            between: called when all copies are under way, for who does not read waves.
        Yields:
            [(expert, slot), ...] of configuration 0, to be computed before the next wave is asked for. A replay runs
            through the waves without computing.
        """
        cache, link, counts = self.cache, self.link, self.counts
        self.pump()
        self._queue = [entry for entry in self._queue if entry.layer > layer]
        self._serving, self._missing = layer, True
        cache.pledged[:, layer] = False
        cache.tick[:, layer] += (ids >= 0).any(axis=1)
        link.begin_layer()
        seconds = np.broadcast_to(np.asarray(seconds, dtype=float), ids.shape)
        slot = cache.find(layer, ids)
        ready = link.ready_at(layer, slot)  # [C, k]
        asked, resident = ids >= 0, slot >= 0
        landed = resident & link.over(ready)
        counts["requests"][:, layer] += asked.sum(axis=1)
        counts["hits"][:, layer] += resident.sum(axis=1)
        counts["late"][:, layer] += (resident & ~landed).sum(axis=1)
        counts["misses"][:, layer] += (asked & ~resident).sum(axis=1)

        row, col = np.nonzero(resident)
        first = cache.touch(row, layer, ids[row, col], slot[row, col], col)
        np.add.at(counts["used"][:, layer], row, first)
        link.compute_landed(layer, slot, seconds, landed)
        hand = [(int(ids[0, j]), int(slot[0, j])) for j in np.flatnonzero(landed[0])]  # configuration 0, to be computed
        waiting = resident & ~landed  # under way, and not computed yet
        barred = np.zeros((len(self._all), cache.expert_in.shape[2]), dtype=bool)  # slots of all these
        barred[row, slot[row, col]] = True

        for j in range(ids.shape[1]):
            rows = self._all[asked[:, j] & ~resident[:, j]]
            if not rows.size:
                continue
            experts = ids[rows, j]
            short = rows[(barred[rows] | cache.closed(rows, layer, experts)).all(axis=1)]
            if short.size:
                yield from self._compute(short, layer, ids, slot, ready, seconds, waiting, hand)
                barred[short] = False
            _, slots = self._copy(rows, layer, experts, barred[rows], link.clock.now, demand=True)
            slot[rows, j] = slots
            ready[rows, j] = link.ready[rows, layer, slots]
            waiting[rows, j] = barred[rows, slots] = True
            cache.touch(rows, layer, experts, slots, j)
        self._missing = False
        self.pump()
        if between is not None:
            between()
        yield from self._compute(self._all, layer, ids, slot, ready, seconds, waiting, hand)
        self._serving = None
        link.end_layer()

    def settled(self, layer: int) -> bool:
        """Every expert of the layer is on the device and nothing is under way: requests can only hit."""
        return self.cache.full(layer) and not self.cache.fresh[:, layer].any() and self.link.landed(layer)

    def all_hit(self, layer: int, amount: int, seconds: float) -> None:
        """What `request` comes to for `amount` experts of a settled layer, without the search."""
        self.counts["requests"][:, layer] += amount
        self.counts["hits"][:, layer] += amount
        self.link.elapse(seconds)

    def on_host(self, layer: int, amount: int | np.ndarray, seconds: float | np.ndarray) -> None:
        """`amount` experts of a layer, whose `request` for the others follows, are computed on the host meanwhile; one
        number for all configurations, or [C]."""
        self.counts["requests"][:, layer] += amount
        self.counts["host"][:, layer] += amount
        self.link.on_host(seconds)

    def take_copies(self) -> list[Copy]:
        """The copies since the last call, in the order in which they started."""
        taken, self._copies = self._copies, []
        return taken

    def _copy(self, rows, layer, experts, barred, since, *, demand: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Gives each row's expert a slot not barred [R, S] and starts its copy. Returns the rows and slots taken."""
        if not rows.size:
            return rows, rows
        slots = self.cache.victim(rows, layer, experts, barred)
        room = slots >= 0
        rows, experts, slots = rows[room], experts[room], slots[room]
        if not rows.size:
            return rows, slots
        self.counts["wasted"][rows[self.cache.fresh[rows, layer, slots]], layer] += 1
        self.fetches[rows, layer, experts // self.cache.experts] += 1
        left = self.cache.leave(rows, layer, slots)  # and nobody is there until the copy was handed out
        begin, end = self.link.fetch(rows, layer, experts, slots, since[rows])
        self.cache.put(rows, layer, experts, slots, prefetch=not demand)
        if self.record:
            form, expert = divmod(int(experts[0]), self.cache.experts)
            gone = int(left[0]) % self.cache.experts if left[0] >= 0 else -1
            kind, when = "demand" if demand else "prefetch", (float(begin[0]), float(end[0]))
            copy = Copy(kind, layer, expert, int(slots[0]), gone, *when, form)
            self._copies.append(copy)
            self.link.remember(copy)
        return rows, slots

    def _compute(self, rows, layer, ids, slot, ready, seconds, waiting, hand) -> Iterator[list[tuple[int, int]]]:
        """Computes what waits in `rows`, in the order in which it arrives; yields configuration 0's part, with `hand`.

        A simulated copy is there at once, so all is one wave; a real one is waited for, so each arrival is its own.
        """
        ours = rows[0] == 0
        if ours and hand and self.link.asynchronous:
            yield from self._give(layer, hand)
        pending = np.where(waiting[rows], ready[rows], np.inf)  # [R, k]
        amount = waiting[rows].sum(axis=1)
        order = pending.argsort(axis=1, kind="stable") if amount.any() else pending
        for i in range(int(amount.max(initial=0))):
            r = rows[amount > i]
            j = order[amount > i, i]
            self.link.compute(r, layer, slot[r, j], seconds[r, j])
            if r[0] == 0:
                hand.append((int(ids[0, j[0]]), int(slot[0, j[0]])))
                if self.link.asynchronous:
                    yield from self._give(layer, hand)
        waiting[rows] = False
        if ours and hand:
            yield from self._give(layer, hand)

    def _give(self, layer: int, hand: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
        self.link.computing(layer, hand)
        yield list(hand)
        self.link.computed(layer, hand)
        hand.clear()
        if self.link.asynchronous:  # copies went on meanwhile: it must not run dry
            self.pump()


__all__ = ["COUNTERS", "Scheduler"]
