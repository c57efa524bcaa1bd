"""The scheduler's rules for one configuration, in a form that numba compiles: about a microsecond a layer.

Each function is the twin of the method of `Scheduler` or `Cache` that it names. Tests hold the two to each other, to
the last bit, on drawn runs: a rule is in both or in neither. State lies in a few arrays of records, because numba pays
for every array that a function is handed.

Legend: P passes · L MoE layers · E experts · S slots · Q prefetches that wait · N copies.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .scheduler import COUNTERS

REQUESTS, HITS, LATE, MISSES, PREFETCHES, USED, WASTED = range(len(COUNTERS))
LEAST_RECENT, LEAST_FREQUENT, FARTHEST = range(3)  # who leaves

_F, _I = np.float64, np.int64
SLOT = (
    np.dtype(  # [L, S]; see `Cache` and `SimulatedLink` for what each is. pledged and barred hold until when: a stamp
        [(name, _F) for name in ("last_used", "ready", "released")]
        + [(name, _I) for name in ("expert", "pledged", "barred", "fresh")]
    )
)
EXPERT = np.dtype([("slot", _I), ("uses", _F), ("next_use", _F)])  # [L, E]
QUEUED = np.dtype([("layer", _I), ("expert", _I), ("since", _F)])  # [Q]
TURN = np.dtype([("slot", _I), ("waiting", _I)])  # [E] each expert of the request at hand
CLOCK = np.dtype(  # [1]: now, when link and compute unit have done their work, how far the run is, and lengths
    [(name, _F) for name in ("now", "free", "busy", "fetch_s")]
    + [(name, _I) for name in ("leaves", "pass_", "layer", "turn", "queued", "copied")]
)


@njit(cache=True)
def run(script, slots, experts, queue, turns, clock, counts, copies):
    """Plays the whole script; returns when each pass begins and ends [P]."""
    passes, layers = len(script.layer_s), len(slots)
    asked_at, wanted_at = script.asked_at, script.wanted_at
    begin, end = np.zeros(passes), np.zeros(passes)
    c = clock[0]
    for p in range(passes):
        begin[p], c.pass_, c.layer = c.now, p, -1
        if slots.shape[1] < experts.shape[1]:
            c.queued = 0
            w = p * (layers + 1)
            want(script.wanted, wanted_at[w], wanted_at[w + 1], True, slots, experts, queue, clock, counts, copies)
        for layer in range(layers):
            c.now += script.layer_s[p]
            first, stop = asked_at[p * layers + layer], asked_at[p * layers + layer + 1]
            counts[p, REQUESTS, layer] = stop - first
            if slots.shape[1] >= experts.shape[1]:  # everybody is there for good: `Scheduler.all_hit`
                counts[p, HITS, layer] = stop - first
                total = 0.0
                for i in range(stop - 1, first - 1, -1):
                    total += script.asked_s[i]
                c.now += total
                continue
            if c.queued:
                pump(slots, experts, queue, clock, counts, copies)
                forget(layer, queue, clock)
            c.layer, c.busy, c.turn = layer, max(c.busy, c.now), c.turn + 1
            missing = serve_hits(script, layer, first, stop, slots, experts, turns, clock, counts)
            room, told = slots.shape[1] - (stop - first - missing), False
            w = p * (layers + 1) + layer + 1
            for j in range(stop - first if missing else 0):
                if turns[j].slot >= 0:
                    continue
                if room == 0:  # fewer slots than experts: those that are there take their turn, and make room
                    compute(script.asked_s, layer, first, stop, slots, turns, clock)
                    if not told:
                        want(
                            script.wanted, wanted_at[w], wanted_at[w + 1], False,
                            slots, experts, queue, clock, counts, copies,
                        )  # fmt: skip
                    told, room, c.turn = True, slots.shape[1], c.turn + 1
                expert = script.asked[first + j]
                slot = copy(layer, expert, c.now, False, slots, experts, clock, counts, copies)
                slots[layer, slot].barred = c.turn
                touch(layer, expert, slot, j, slots, experts, clock)
                turns[j].slot, turns[j].waiting = slot, True
                room -= 1
            if c.queued:
                pump(slots, experts, queue, clock, counts, copies)
            compute(script.asked_s, layer, first, stop, slots, turns, clock)
            if not told:
                want(script.wanted, wanted_at[w], wanted_at[w + 1], True, slots, experts, queue, clock, counts, copies)
            c.now = max(c.now, c.busy)
        c.now += script.head_s[p]
        end[p] = c.now
    return begin, end


@njit(cache=True)
def forget(layer, queue, clock):
    """A layer's turn has come: prefetches for it that have not started are over."""
    kept = 0
    for i in range(clock[0].queued):
        if queue[i].layer > layer:
            queue[kept] = queue[i]
            kept += 1
    clock[0].queued = kept


@njit(cache=True)
def era(layer, c):
    """A promise made in one era is no longer kept in the next: they change with each pass and with the layer's turn."""
    return 2 * c.pass_ + 1 + (layer <= c.layer)


@njit(cache=True)
def serve_hits(script, layer, first, stop, slots, experts, turns, clock, counts):
    """Finds the experts asked for, and computes those that are there; returns how many are missing."""
    c, computed, missing = clock[0], 0.0, 0
    for j in range(stop - first):
        expert = script.asked[first + j]
        experts[layer, expert].next_use = script.next_ask[first + j]
        slot = experts[layer, expert].slot
        turns[j].slot, turns[j].waiting = slot, False
        if slot < 0:
            missing += 1
            continue
        here = slots[layer, slot]
        if here.fresh:
            counts[c.pass_, USED, layer] += 1
            here.fresh = False
        here.barred = c.turn
        touch(layer, expert, slot, j, slots, experts, clock)
        if here.ready <= c.now:
            computed += script.asked_s[first + j]
            here.released = c.busy + computed
        else:
            counts[c.pass_, LATE, layer] += 1
            turns[j].waiting = True
    c.busy += computed
    counts[c.pass_, HITS, layer] += stop - first - missing
    counts[c.pass_, MISSES, layer] += missing
    return missing


@njit(cache=True)
def want(wanted, first, stop, may_start, slots, experts, queue, clock, counts, copies):
    """`Scheduler.want`, of what the policy asked for in one place; not for the layer at hand."""
    c = clock[0]
    for i in range(first, stop):
        layer, expert = wanted[i, 0], wanted[i, 1]
        if layer == c.layer:
            continue
        slot = experts[layer, expert].slot
        if slot >= 0:
            slots[layer, slot].pledged = era(layer, c)
        else:
            entry = queue[c.queued]
            entry.layer, entry.expert, entry.since = layer, expert, c.now
            c.queued += 1
    if may_start:
        pump(slots, experts, queue, clock, counts, copies)


@njit(cache=True)
def pump(slots, experts, queue, clock, counts, copies):
    """`Scheduler.pump`."""
    c, kept = clock[0], 0
    for i in range(c.queued):
        layer, expert, since = queue[i].layer, queue[i].expert, queue[i].since
        if max(c.free, since) > c.now:
            queue[kept] = queue[i]
            kept += 1
        elif experts[layer, expert].slot < 0:
            slot = copy(layer, expert, since, True, slots, experts, clock, counts, copies)
            if slot >= 0:
                counts[c.pass_, PREFETCHES, layer] += 1
    c.queued = kept


@njit(cache=True)
def copy(layer, expert, since, early, slots, experts, clock, counts, copies):
    """`Scheduler._copy`: gives an expert a slot and starts its copy; returns the slot, or -1 where all are barred."""
    c = clock[0]
    slot = victim(layer, early, slots, experts, c)
    if slot < 0:
        return slot
    here = slots[layer, slot]
    if here.fresh:
        counts[c.pass_, WASTED, layer] += 1
    begin = max(max(c.free, since), here.released)
    c.free = here.ready = begin + c.fetch_s
    left = here.expert
    if left >= 0:
        experts[layer, left].slot = -1
    experts[layer, expert].slot, here.expert = slot, expert
    here.last_used = c.pass_ + (layer <= c.layer)  # `Cache.tick`: how often the layer was asked
    here.pledged, here.fresh = era(layer, c) if early else 0, early
    if c.copied < len(copies):
        made = copies[c.copied]
        made.pass_, made.early, made.layer, made.expert = c.pass_, early, layer, expert
        made.slot, made.evicted, made.begin, made.end = slot, left, begin, here.ready
        c.copied += 1
    return slot


@njit(cache=True)
def victim(layer, early, slots, experts, c):
    """`Cache.victim`: an empty slot first, then the lowest score, the lowest slot on a tie."""
    scale, leaves, promised = 0.0, c.leaves, era(layer, c)
    if leaves == LEAST_FREQUENT:
        for i in range(slots.shape[1]):
            scale = max(scale, slots[layer, i].last_used)
    best, lowest = -1, np.inf
    for i in range(slots.shape[1]):
        here = slots[layer, i]
        if here.pledged == promised if early else here.barred == c.turn:
            continue
        if here.expert < 0:
            return i
        if leaves == LEAST_RECENT:
            score = here.last_used
        elif leaves == LEAST_FREQUENT:
            score = experts[layer, here.expert].uses + here.last_used / (scale + 1.0)
        else:
            score = -min(experts[layer, here.expert].next_use, 1e300)
        if score < lowest:
            best, lowest = i, score
    return best


@njit(cache=True)
def touch(layer, expert, slot, rank, slots, experts, clock):
    """`Cache.touch`."""
    slots[layer, slot].last_used = clock[0].pass_ + 1 + 1 / (rank + 2)
    experts[layer, expert].uses += 1


@njit(cache=True)
def compute(seconds, layer, first, stop, slots, turns, clock):
    """`Scheduler._compute`: what waits, in the order in which it arrives."""
    c = clock[0]
    while True:
        soonest, chosen = np.inf, -1
        for j in range(stop - first):
            if turns[j].waiting and slots[layer, turns[j].slot].ready < soonest:
                soonest, chosen = slots[layer, turns[j].slot].ready, j
        if chosen < 0:
            return
        c.busy = slots[layer, turns[chosen].slot].released = max(c.busy, soonest) + seconds[first + chosen]
        turns[chosen].waiting = False


__all__ = ["CLOCK", "EXPERT", "FARTHEST", "LEAST_FREQUENT", "LEAST_RECENT", "QUEUED", "SLOT", "TURN", "run"]
