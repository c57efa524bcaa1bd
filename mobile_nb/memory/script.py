"""A run as the scheduler sees it: what each layer is asked for and what a policy wants early, as flat arrays.

Routing does not depend on time, so a recorded run can be laid out once and played under any slots, eviction and link:
by `compiled` or, for a policy in Python, by `interpret`. Knows nothing about traces, models or policies.

Legend: P passes · L MoE layers · E experts · S slots · k experts that a pass asks a layer for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from ..vocabulary import Wanted
from .records import COPY
from .scheduler import COUNTERS, Scheduler


class Script(NamedTuple):
    """A run as the scheduler sees it, layer by layer. Ragged lists are flat, with [n + 1] bounds before them.

    asked: experts that pass p asks layer l for, best first, from asked_at[p * L + l]; asked_s: seconds of each.
    wanted: prefetches that the policy asks for as (layer, expert), from wanted_at[p * (L + 1) + l + 1] once layer l is
        under way (l = -1: before the pass).
    next_ask: for each of `asked` the number of the pass that asks that layer for it again; first_ask [L, E].
    layer_s, head_s: seconds of the rest of a layer, and of what follows the last one, of each pass [P].
    """

    asked_at: np.ndarray
    asked: np.ndarray
    asked_s: np.ndarray
    wanted_at: np.ndarray
    wanted: np.ndarray
    next_ask: np.ndarray
    first_ask: np.ndarray
    layer_s: np.ndarray
    head_s: np.ndarray

    def wanted_by(self, p: int, layer: int, layers: int) -> list[Wanted]:
        """The prefetches of pass p once `layer` is under way, in order."""
        here = slice(*self.wanted_at[p * (layers + 1) + layer + 1 :][:2])
        return [Wanted(at, (expert,)) for at, expert in self.wanted[here].tolist()]


class Played(NamedTuple):
    """What became of it: begin and end of each pass [P] in seconds, COUNTERS of each pass and layer [P, 8, L], and
    the copies as records of COPY [N], in the order in which they started."""

    begin: np.ndarray
    end: np.ndarray
    counts: np.ndarray
    copies: np.ndarray


def interpret(
    script: Script,
    scheduler: Scheduler,
    ask: Callable[[int, int], None] | None = None,
    hosted: Callable[[int, int, np.ndarray], tuple[np.ndarray, float]] | None = None,
) -> Played:
    """Plays a script through a `Scheduler` of one configuration on a simulated link: the rules of live runs.

    Args:
        ask: (pass, layer), called where a live run asks its policies, in place of what the script wants there.
        hosted: (pass, layer, experts [k]) -> which of them are computed on the host, bool [k], and seconds of all.
    """
    passes, layers = len(script.layer_s), scheduler.cache.layers
    link, cache = scheduler.link, scheduler.cache
    cache.next_use = script.first_ask[None].copy()
    begin, end = np.zeros(passes), np.zeros(passes)
    counts = np.zeros((passes, len(COUNTERS), layers), dtype=np.int64)
    copies = []

    def want(p: int, layer: int) -> None:
        scheduler.want(script.wanted_by(p, layer, layers))

    ask = want if ask is None else ask
    for p in range(passes):
        before = [scheduler.counts[name][0].copy() for name in COUNTERS]
        begin[p] = link.clock.read()
        scheduler.begin_pass()
        ask(p, -1)
        for layer in range(layers):
            link.elapse(script.layer_s[p])
            asked = slice(*script.asked_at[p * layers + layer :][:2])
            experts, seconds = script.asked[asked], script.asked_s[asked]
            away = None if hosted is None or scheduler.settled(layer) else hosted(p, layer, experts)
            scheduler.pump()  # until here, what this pass asks for is still to come
            cache.next_use[0, layer, experts] = script.next_ask[asked]
            if scheduler.settled(layer):
                scheduler.all_hit(layer, len(experts), sum(reversed(seconds.tolist())))
                continue
            if away is not None and away[0].any():
                scheduler.on_host(layer, away[0].sum(), away[1])
                experts, seconds = experts[~away[0]], seconds[~away[0]]
            for _ in scheduler.request(layer, experts[None], seconds[None], partial(ask, p, layer)):
                pass
        link.elapse(script.head_s[p])
        end[p] = link.clock.read()
        counts[p] = [scheduler.counts[name][0] for name in COUNTERS]
        counts[p] -= before
        for copy in scheduler.take_copies():
            early = copy.kind == "prefetch"
            copies.append((p, early, copy.layer, copy.expert, copy.slot, copy.evicted, copy.begin, copy.end))
    return Played(begin, end, counts, np.array(copies, COPY))


__all__ = ["Played", "Script", "interpret"]
