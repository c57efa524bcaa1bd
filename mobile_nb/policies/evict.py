"""Question 5: which resident leaves when a slot is needed? The lowest score does, the lowest slot on a tie.

Scores are arrays over C configurations at once, so that one rule serves a live run (C = 1) and a sweep of a thousand.
Experts that the layer is waiting for, and empty slots, are the scheduler's business: a policy only ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..vocabulary import MobileError


@dataclass(frozen=True, slots=True)
class History:
    """What is known of one layer's slots. Shapes [C, S]."""

    last_used: np.ndarray  # request count of the layer when it was last asked for or fetched, plus up to 1/2 by rank
    uses: np.ndarray  # how often the layer has asked for this expert since the start
    fetched: np.ndarray  # request count when it came
    next_use: np.ndarray | None = None  # number of the pass that asks for it next, inf for never; only a replay knows
    expected: np.ndarray | None = None  # what `expects` last said of it in this text; None before its first token


class Evict(Protocol):
    """Ranks residents.

    One that looks ahead also has `expects(layer, view)`, asked when a prefetcher is: how much each expert will be
    needed, [L, E] (`policies.predict`). Its answer comes back as `History.expected`.
    """

    def score(self, history: History) -> np.ndarray:
        """[C, S]; the lowest leaves."""
        ...


@dataclass(frozen=True)
class LRU:
    """The one not asked for the longest leaves; of those asked for at once, the one that was ranked lowest.

    So more slots never mean fewer hits, as long as all that one token asks for fits at once.
    """

    def score(self, history: History) -> np.ndarray:
        return history.last_used


@dataclass(frozen=True)
class LFU:
    """The one asked for least often leaves; recency decides among equals."""

    def score(self, history: History) -> np.ndarray:
        return history.uses + history.last_used / (history.last_used.max() + 1.0)


@dataclass(frozen=True)
class Belady:
    """The one that is not asked for again for the longest leaves: nobody can do better without prefetching
    (Belady 1966). A bound, for replays: a live run does not know its future.
    """

    def score(self, history: History) -> np.ndarray:
        if history.next_use is None:
            raise MobileError("Belady evicts by what is asked for later, which only a replay knows; use replay().")
        return -history.next_use


__all__ = ["LFU", "LRU", "Belady", "Evict", "History"]
