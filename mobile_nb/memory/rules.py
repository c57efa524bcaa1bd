"""The scheduler's rules for one configuration, in a form that numba compiles: about a microsecond a layer.

Each function is the twin of the method of `Scheduler` or `Cache` that it names, and tests hold the two to each other,
to the last bit. State lies in a few arrays of records, because numba pays for every array that a function is handed.

Legend: slots SLOT [L, S] · experts EXPERT [L, E] · queue QUEUED [Q] · turns TURN [E] · clock CLOCK [1] · counts
[P, 8, L] · copies COPY [N], empty for none kept; see `records`.
"""

import numpy as np
from numba import njit

from .scheduler import COUNTERS

REQUESTS, HITS, LATE, MISSES, PREFETCHES, USED, WASTED, HOST = range(len(COUNTERS))
LEAST_RECENT, LEAST_FREQUENT, FARTHEST = range(3)  # who leaves


@njit(cache=True)
def run(asked_at, asked, asked_s, next_ask, wanted_at, wanted, layer_s, head_s,
        slots, experts, queue, turns, clock, counts, copies):  # fmt: skip
    """Plays a whole `Script`, handed over array by array; returns when each pass begins and ends [P]."""
    passes, layers = len(layer_s), len(slots)
    begin, end = np.zeros(passes), np.zeros(passes)
    c = clock[0]
    for p in range(passes):
        begin[p], c.pass_, c.layer = c.now, p, -1
        if slots.shape[1] < experts.shape[1]:
            c.queued = 0
            want(
                wanted,
                wanted_at[p * (layers + 1)],
                wanted_at[p * (layers + 1) + 1],
                1,
                slots,
                experts,
                queue,
                clock,
                counts,
                copies,
            )
        for layer in range(layers):
            c.now += layer_s[p]
            first, stop = asked_at[p * layers + layer], asked_at[p * layers + layer + 1]
            count = stop - first
            counts[p, REQUESTS, layer] = count
            if slots.shape[1] >= experts.shape[1]:  # everybody is there for good: `Scheduler.all_hit`
                counts[p, HITS, layer] = count
                total = 0.0
                for i in range(stop - 1, first - 1, -1):
                    total += asked_s[i]
                c.now += total
                continue
            if c.queued:
                pump(slots, experts, queue, clock, counts, copies)
                forget(layer, queue, clock)
            c.layer, c.busy, c.turn = layer, max(c.busy, c.now), c.turn + 1
            missing, late = serve_hits(
                asked, asked_s, next_ask, layer, first, count, slots, experts, turns, clock, counts
            )
            w = p * (layers + 1) + layer + 1
            wants, room, turn = wanted_at[w + 1] > wanted_at[w], slots.shape[1] - (count - missing), 0
            for j in range(count if missing else 0):
                if turns[j].slot >= 0:
                    continue
                if room == 0:  # fewer slots than experts: those that are there take their turn, and make room
                    compute(asked_s, layer, first, count, turn, j, late, slots, turns, clock)
                    if wants:
                        want(wanted, wanted_at[w], wanted_at[w + 1], 0, slots, experts, queue, clock, counts, copies)
                    wants, late, turn, room, c.turn = False, 0, j, slots.shape[1], c.turn + 1
                expert = asked[first + j]
                slot = copy(layer, expert, c.now, False, slots, experts, clock, counts, copies)
                slots[layer, slot].barred = c.turn
                touch(layer, expert, slot, j, slots, experts, clock)
                turns[j].slot, turns[j].missed = slot, True
                room -= 1
            if c.queued:
                pump(slots, experts, queue, clock, counts, copies)
            if missing or late:
                compute(asked_s, layer, first, count, turn, count, late, slots, turns, clock)
            if wants:
                want(wanted, wanted_at[w], wanted_at[w + 1], 1, slots, experts, queue, clock, counts, copies)
            c.now = max(c.now, c.busy)
        c.now += head_s[p]
        end[p] = c.now
    return begin, end


@njit(cache=True, inline="always")
def forget(layer, queue, clock):
    """A layer's turn has come: prefetches for it that have not started are dropped."""
    kept = 0
    for i in range(clock[0].queued):
        if queue[i].layer > layer:
            queue[kept] = queue[i]
            kept += 1
    clock[0].queued = kept


@njit(cache=True, inline="always")
def era(layer, c):
    """A promise made in one era is no longer kept in the next: they change with each pass and with the layer's turn."""
    return 2 * c.pass_ + 1 + (layer <= c.layer)


@njit(cache=True)
def serve_hits(asked, asked_s, next_ask, layer, first, count, slots, experts, turns, clock, counts):
    """Finds the experts asked for, and computes those that are there; returns how many are missing, and late."""
    c, computed, missing, late = clock[0], 0.0, 0, 0
    for j in range(count):
        expert = asked[first + j]
        experts[layer, expert].next_use = next_ask[first + j]
        slot = experts[layer, expert].slot
        turns[j].slot, turns[j].missed, turns[j].late = slot, False, False
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
            computed += asked_s[first + j]
            here.released = c.busy + computed
        else:
            turns[j].late = True
            late += 1
    c.busy += computed
    counts[c.pass_, HITS, layer] += count - missing
    counts[c.pass_, MISSES, layer] += missing
    counts[c.pass_, LATE, layer] += late
    return missing, late


@njit(cache=True)
def want(wanted, first, stop, start, slots, experts, queue, clock, counts, copies):
    """`Scheduler.want`, of what the policy asked for in one place; not for the layer at hand."""
    c = clock[0]
    for i in range(first, stop):
        layer, expert = wanted[i, 0], wanted[i, 1]
        if layer == c.layer:
            continue
        if experts[layer, expert].slot >= 0:
            slots[layer, experts[layer, expert].slot].pledged = era(layer, c)
        else:
            entry = queue[c.queued]
            entry.layer, entry.expert, entry.since = layer, expert, c.now
            c.queued += 1
    if start:
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


@njit(cache=True, inline="always")
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


@njit(cache=True, inline="always")
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


@njit(cache=True, inline="always")
def touch(layer, expert, slot, rank, slots, experts, clock):
    """`Cache.touch`."""
    slots[layer, slot].last_used = clock[0].pass_ + 1 + 1 / (rank + 2)
    experts[layer, expert].uses += 1


@njit(cache=True)
def compute(seconds, layer, first, count, low, high, late, slots, turns, clock):
    """`Scheduler._compute`: what waits, as it arrives: the late, then the misses of `turns[low:high]` in order."""
    c = clock[0]
    for _ in range(late):
        soonest, chosen = np.inf, -1
        for j in range(count):
            if turns[j].late and slots[layer, turns[j].slot].ready < soonest:
                soonest, chosen = slots[layer, turns[j].slot].ready, j
        c.busy = slots[layer, turns[chosen].slot].released = max(c.busy, soonest) + seconds[first + chosen]
        turns[chosen].late = False
    for j in range(low, high):
        if turns[j].missed:
            here = slots[layer, turns[j].slot]
            c.busy = here.released = max(c.busy, here.ready) + seconds[first + j]


__all__ = ["FARTHEST", "LEAST_FREQUENT", "LEAST_RECENT", "run"]
