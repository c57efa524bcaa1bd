"""Plays a script with the compiled rules: one configuration, a whole recorded run.

`Scheduler` drives live runs, real links and policies written in Python. A sweep of a thousand replays wants the same
answers sooner: what policies said is laid out in a `Script` beforehand, and only evictions are decided on the way.
"""

from __future__ import annotations

import numpy as np

from .rules import CLOCK, EXPERT, QUEUED, SLOT, TURN, run
from .scheduler import COUNTERS
from .script import COPY, Played, Script


def play(script: Script, layers: int, experts: int, slots: int, fetch_s: float, leaves: int, *, record=False) -> Played:
    """Plays a script.

    Args:
        layers, experts, slots: L, E and S.
        fetch_s: seconds of one expert's transfer.
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
    begin, end = run(script, device, host, np.zeros(longest, QUEUED), np.zeros(experts, TURN), clock, counts, copies)
    return Played(begin, end, counts, copies[: int(clock["copied"][0])])


__all__ = ["play"]
