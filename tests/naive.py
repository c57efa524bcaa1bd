"""A second opinion on the scheduler: one configuration, one event after the other, plain numbers and lists.

Written from the docstrings of scheduler, cache and link, and slow on purpose. Imports nothing of the library.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Slot:
    """What one slot of one layer holds, and its moments in seconds."""

    expert: int | None = None
    ready: float = 0.0  # its copy is over
    released: float = 0.0  # the last computation from it is over
    last: float = 0  # request of the layer that last asked for it or fetched it; better ranks count as later
    fresh: bool = False  # prefetched, never used
    pledged: bool = False  # prefetched or asked to stay in this pass


class Naive:
    """A cache, a link and a compute unit.

    Args:
        rule: "lru" or "lfu".   fetch_s: seconds of one copy.
    """

    def __init__(self, layers: int, experts: int, slots: int, fetch_s: float, rule: str = "lru"):
        self.layers, self.experts, self.fetch_s, self.rule = layers, experts, fetch_s, rule
        self.slots = [[Slot() for _ in range(slots)] for _ in range(layers)]
        if slots >= experts:  # room for everybody: full from the start
            for layer in self.slots:
                for expert, slot in enumerate(layer[:experts]):
                    slot.expert = expert
        self.uses = [[0] * experts for _ in range(layers)]
        self.requests = [0] * layers
        self.now = self.free = self.busy = 0.0
        self.queue: list[tuple[int, int, float]] = []
        self.copies: list[tuple] = []
        names = ("requests", "hits", "late", "misses", "prefetches", "used", "wasted", "host")
        self.counts = {name: [0] * layers for name in names}
        self.serving: int | None = None
        self.missing = False

    def find(self, layer: int, expert: int) -> int | None:
        return next((s for s, slot in enumerate(self.slots[layer]) if slot.expert == expert), None)

    def begin_pass(self) -> None:
        self.queue.clear()
        for layer in self.slots:
            for slot in layer:
                slot.pledged = False

    def elapse(self, seconds: float) -> None:
        self.now += seconds

    def want(self, pairs) -> None:
        """Prefetches, in order: what is there is pledged, the rest waits for the link."""
        for layer, expert in pairs:
            if layer == self.serving:
                continue
            there = self.find(layer, expert)
            if there is None:
                self.queue.append((layer, expert, self.now))
            else:
                self.slots[layer][there].pledged = True
        self.pump()

    def pump(self) -> None:
        """Starts what the link had time for; on-demand copies go first."""
        left = []
        for layer, expert, since in self.queue:
            if self.missing or max(self.free, since) > self.now:
                left.append((layer, expert, since))
            elif self.find(layer, expert) is None:
                pledged = {s for s, slot in enumerate(self.slots[layer]) if slot.pledged}
                if self.copy("prefetch", layer, expert, pledged, since) is not None:
                    self.counts["prefetches"][layer] += 1
        self.queue = left

    def victim(self, layer: int, barred: set[int]) -> int | None:
        """Empty slots first, then the lowest rank; the lowest slot on a tie."""
        open_slots = [s for s in range(len(self.slots[layer])) if s not in barred]

        def rank(s):
            slot = self.slots[layer][s]
            if slot.expert is None:
                return (-1,)
            return (0, slot.last) if self.rule == "lru" else (0, self.uses[layer][slot.expert], slot.last)

        return min(open_slots, key=lambda s: (rank(s), s), default=None)

    def copy(self, kind: str, layer: int, expert: int, barred: set[int], since: float) -> int | None:
        at = self.victim(layer, barred)
        if at is None:
            return None
        slot = self.slots[layer][at]
        self.counts["wasted"][layer] += slot.fresh
        begin = max(self.free, since, slot.released)
        end = self.free = begin + self.fetch_s
        self.copies.append((kind, layer, expert, at, -1 if slot.expert is None else slot.expert, begin, end))
        prefetch = kind == "prefetch"
        self.slots[layer][at] = Slot(expert, end, slot.released, self.requests[layer], prefetch, prefetch)
        return at

    def request(self, layer: int, ids: list[int], seconds: list[float], between=()) -> None:
        """One layer. `between` is what a prefetcher asks for when the first experts are handed to the compute unit."""
        self.pump()
        self.queue = [entry for entry in self.queue if entry[0] > layer]
        self.serving, self.missing = layer, True
        self.requests[layer] += 1
        self.busy = max(self.busy, self.now)
        for slot in self.slots[layer]:
            slot.pledged = False
        at = {expert: self.find(layer, expert) for expert in ids}
        cost = dict(zip(ids, seconds, strict=True))
        self.counts["requests"][layer] += len(ids)
        waiting: list[int] = []  # on their way
        asked_between = not ids

        for expert in ids:
            if at[expert] is None:
                self.counts["misses"][layer] += 1
                continue
            slot = self.slots[layer][at[expert]]
            self.counts["hits"][layer] += 1
            self.counts["used"][layer] += slot.fresh
            self.touch(layer, ids.index(expert), expert, slot)
            if slot.ready > self.now:
                self.counts["late"][layer] += 1
                waiting.append(expert)
            else:
                self.busy += cost[expert]
                slot.released = self.busy

        def compute_what_waits():
            for expert in sorted(waiting, key=lambda e: (self.slots[layer][at[e]].ready, ids.index(e))):
                slot = self.slots[layer][at[expert]]
                self.busy = max(self.busy, slot.ready) + cost[expert]
                slot.released = self.busy
            waiting.clear()

        taken = {s for s in at.values() if s is not None}
        for expert in [e for e in ids if at[e] is None]:
            if len(taken) == len(self.slots[layer]):
                compute_what_waits()
                taken = set()
                if not asked_between:
                    asked_between = True
                    self.want(between)
            at[expert] = self.copy("demand", layer, expert, taken, self.now)
            self.touch(layer, ids.index(expert), expert, self.slots[layer][at[expert]])
            taken.add(at[expert])
            waiting.append(expert)
        self.missing = False
        self.pump()
        compute_what_waits()
        if not asked_between:
            self.want(between)
        self.serving = None
        self.now = max(self.now, self.busy)

    def touch(self, layer: int, rank: int, expert: int, slot: Slot) -> None:
        slot.last = self.requests[layer] + 1 / (rank + 2)
        slot.fresh = False
        self.uses[layer][expert] += 1
