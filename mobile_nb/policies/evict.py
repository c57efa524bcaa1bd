"""Question 5: which resident leaves when a slot is needed? The lowest score does, the lowest slot on a tie.

Scores are arrays over C configurations at once, so that one rule serves a live run (C = 1) and a sweep of a thousand.
Experts that the layer is waiting for, and empty slots, are the scheduler's business: a policy only ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..vocabulary import MobileError, number
from .predict import Predictor
from .view import View


@dataclass(frozen=True, slots=True)
class History:
    """What is known of one layer's slots. Shapes [C, S]."""

    last_used: np.ndarray  # request count of the layer when it was last asked for or fetched, plus up to 1/2 by rank
    uses: np.ndarray  # how often the layer has asked for this expert since the start
    fetched: np.ndarray  # request count when it came
    next_use: np.ndarray | None = None  # number of the pass that asks for it next, inf for never; only a replay knows
    expected: np.ndarray | None = None  # what `expects` last said of it in this text; None before its first token
    finest: np.ndarray | None = None  # how often the layer has asked for it in the first of several forms


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


@dataclass(frozen=True)
class PredictedReuse:
    """The one that a predictor expects least leaves; recency decides among equals, and alone while a prompt is read.

    MoE-Infinity (arXiv 2401.14361) with `RequestMatrix`: its priority also falls with the distance of the layer, which
    is the same for all residents of one layer's cache. SMoE (arXiv 2508.18983) with `MeanScore`.

    Attributes:
        by: who predicts.
        frequency: weigh what is expected by how often the expert was asked for: FineMoE (arXiv 2502.05370) with
            `ExpertMap`. The paper names both; that it multiplies them is our reading [inference].
    """

    by: Predictor
    frequency: bool = False

    def __post_init__(self):
        if not hasattr(self.by, "expected"):
            raise TypeError(
                "PredictedReuse.by must be a predictor with `expected`, such as those in mobile_nb.policies.predict, "
                f"got {self.by!r}."
            )

    def expects(self, layer: int, view: View) -> np.ndarray:
        return self.by.expected(layer, view)

    def score(self, history: History) -> np.ndarray:
        recency = history.last_used / (history.last_used.max() + 1.0)  # below 1
        if history.expected is None:
            return recency
        return history.expected * (history.uses if self.frequency else 1) + 1e-9 * recency


@dataclass(frozen=True)
class Weighted:
    """HOBBIT (arXiv 2411.01433): a weighted sum of how recently and how often an expert was asked for.

    Published with two more terms: how often in high precision, which counts where a codec has two forms, and the
    distance of the layer, which is the same for all residents of one layer's cache. Each term is divided by its largest
    among the residents [inference]; the weights we did not find [inference].

    Attributes:
        recency, frequency, finest: weights of how recently and how often, and how often in the codec's first form, an
            expert was asked for. A miss in high precision costs four times one in low precision in the paper.
    """

    recency: float = 0.5
    frequency: float = 0.5
    finest: float = 0.0

    def __post_init__(self):
        for name in ("recency", "frequency", "finest"):
            number(f"Weighted.{name}", getattr(self, name), low=0)

    def score(self, history: History) -> np.ndarray:
        terms = [(self.recency, history.last_used), (self.frequency, history.uses)]
        if self.finest and history.finest is not None:
            terms.append((self.finest, history.finest))
        return sum(w * term / np.maximum(term.max(axis=1, keepdims=True), 1e-30) for w, term in terms)


@dataclass(frozen=True)
class TwoLevel:
    """ExpertFlow (arXiv 2510.26730): LRU in two levels. An expert rises when it is asked for in another pass than the
    one that fetched it, and the lower level leaves first. How the paper tells its levels apart we did not find
    [inference].
    """

    def score(self, history: History) -> np.ndarray:
        again = np.floor(history.last_used) > history.fetched
        return history.last_used + again * (history.last_used.max() + 1.0)


__all__ = ["LFU", "LRU", "Belady", "Evict", "History", "PredictedReuse", "TwoLevel", "Weighted"]
