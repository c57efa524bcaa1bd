"""Question 5: which resident leaves when a slot is needed? The lowest score does, the lowest slot on a tie.

Scores are arrays over C configurations at once, so that one rule serves a live run (C = 1) and a sweep of a thousand.
Experts that the layer is waiting for, and empty slots, are the scheduler's business: a policy only ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..routing import texts
from ..trace import Trace
from ..vocabulary import MobileError, number, whole
from .knowledge import Knowledge
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

    One that has `placed(layer, slots)` names residents, fewer than there are slots, that are on the device before the
    first token and never leave.

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


@dataclass(frozen=True, eq=False, repr=False)
class Popularity(Knowledge):
    """How often each expert was used.   counts: [L, E]."""

    counts: np.ndarray

    def __post_init__(self):
        super().__post_init__()
        if self.counts.ndim != 2 or not (np.isfinite(self.counts) & (self.counts >= 0)).all():
            raise ValueError(f"counts must be numbers of at least 0 [layers, experts], got {self.counts.shape}.")

    @staticmethod
    def from_trace(trace: Trace, *, by_weight: bool = False, latest: int | None = None) -> Popularity:
        """Over the texts of a trace, their prompts included.

        Args:
            by_weight: sum the router's weights instead of counting 1 for each use.
            latest: only the last so many texts; None for all.
        """
        found = texts(trace)[-whole("latest", latest) :] if latest is not None else texts(trace)
        counts = np.zeros((trace.conditions["layers"], trace.conditions["experts"]))
        for ids, weights in found:  # [L, N, K]
            np.add.at(counts, (np.arange(len(ids))[:, None, None], ids), weights if by_weight else 1)
        return Popularity(counts)


@dataclass(frozen=True)
class Popular:
    """Static placement: each layer's most popular experts are on the device before the first token and never leave.
    Fiddler (arXiv 2402.07033) places so; PreMoe and eMoE keep a set.

    All others pass through the slots that are left, of which the least recently used is given away.

    Attributes:
        counts: how popular each expert is.
        room: slots of a layer that are left for the others, at least one: a prompt may ask for any expert [inference].
    """

    counts: Popularity
    room: int = 1

    def __post_init__(self):
        if not isinstance(self.counts, Popularity):
            kind = type(self.counts).__name__
            raise TypeError(f"Popular.counts must be a Popularity, such as from_trace makes, got a {kind}.")
        whole("Popular.room", self.room)

    def placed(self, layer: int, slots: int) -> list[int]:
        """Who stays, the most popular first; the lower id on a tie."""
        if layer >= len(self.counts.counts):
            raise MobileError(f"Popular knows {len(self.counts.counts)} layers, and the model has more.")
        return np.argsort(-self.counts.counts[layer], kind="stable")[: max(0, slots - self.room)].tolist()

    def score(self, history: History) -> np.ndarray:
        return history.last_used


@dataclass(frozen=True)
class TwoLevel:
    """ExpertFlow (arXiv 2510.26730): LRU in two levels. An expert rises when it is asked for in another pass than the
    one that fetched it, and the lower level leaves first. How the paper tells its levels apart we did not find
    [inference].
    """

    def score(self, history: History) -> np.ndarray:
        again = np.floor(history.last_used) > history.fetched
        return history.last_used + again * (history.last_used.max() + 1.0)


__all__ = [
    "LFU",
    "LRU",
    "Belady",
    "Evict",
    "History",
    "Popular",
    "Popularity",
    "PredictedReuse",
    "TwoLevel",
    "Weighted",
]
