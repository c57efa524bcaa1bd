"""Plays a script with the compiled rules: one configuration, a whole recorded run.

`Scheduler` drives live runs, real links and policies written in Python. A sweep of a thousand replays wants the same
answers sooner: what policies said is laid out in a `Script` beforehand, and only evictions are decided on the way.
"""

from __future__ import annotations

import numpy as np

from .records import CLOCK, COPY, EXPERT, QUEUED, SLOT, TURN
from .rules import run
from .scheduler import COUNTERS
from .script import Played, Script

GIVEN = ("asked_at", "asked", "asked_s", "next_ask", "wanted_at", "wanted", "layer_s", "head_s")  # in `run`'s order


def play(script: Script, layers: int, experts: int, slots: int, fetch_s: float, leaves: int, *, record=False) -> Played:
    """Plays a script.

    Args:
        layers, experts, slots: L, E and S.
        fetch_s: seconds of one expert's transfer, above 0.
        leaves: LEAST_RECENT, LEAST_FREQUENT or FARTHEST.
        record: keep the copies.
    """
    device, host = np.zeros((layers, min(slots, experts)), SLOT), np.zeros((layers, experts), EXPERT)
    device["expert"] = host["slot"] = -1
    host["next_use"] = script.first_ask
    longest = int(np.diff(script.wanted_at[:: layers + 1]).max(initial=0))
    clock = np.zeros(1, CLOCK)
    clock["fetch_s"], clock["leaves"] = fetch_s, leaves
    counts = np.zeros((len(script.layer_s), len(COUNTERS), layers), dtype=np.int64)
    copies = np.zeros(len(script.asked) + len(script.wanted) if record else 0, COPY)
    # numba's cache on disk names the types that it was compiled for: plain arrays outlive our own classes
    given = [getattr(script, name) for name in GIVEN]
    state = device, host, np.zeros(longest, QUEUED), np.zeros(experts, TURN), clock, counts, copies
    begin, end = run(*given, *state)
    return Played(begin, end, counts, copies[: int(clock["copied"][0])])


__all__ = ["play"]
