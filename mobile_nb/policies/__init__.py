"""The six questions, a file or folder each. One idea is one frozen dataclass; policies compose by holding one another.

    count     how many experts run, and what are their weights divided by?
    keep      does the little token stay?
    prefetch  which experts to fetch before they are asked for?
    miss      what to do about an expert that is not on the device?
    evict     which resident leaves?
    codec     in what form do experts travel?

What they may see is a `view`; what prefetchers and evictions expect, they ask a predictor (`predict`).

A policy is a pure decision on ids and scores: it sees no tensor, no stream and no clock. Whatever it raises reaches
the user as one sentence that names it.
"""

from .codec import Full
from .count import Fraction, PerLayer, Sensitivity, TopK
from .evict import LFU, LRU, Belady, PredictedReuse, TwoLevel, Weighted
from .keep import Always, Entropy, Margin, MaxProbability, Never, Scheduled, TargetFallback
from .miss import Anybody, Buddies, Buddy, Drop, Foretold, NearScore, NextRanked, Wait
from .predict import ExpertMap, Maps, MeanScore, RequestMatrix, Requests, Successors
from .prefetch import (
    AdaptiveDepth,
    ByPriority,
    Cumulative,
    EvictedRouter,
    NearestAbsent,
    NextGate,
    Nothing,
    Oracle,
    PreviousToken,
    ReadGates,
    TopScore,
)

__all__ = [
    "LFU",
    "LRU",
    "AdaptiveDepth",
    "Always",
    "Anybody",
    "Belady",
    "Buddies",
    "Buddy",
    "ByPriority",
    "Cumulative",
    "Drop",
    "Entropy",
    "EvictedRouter",
    "ExpertMap",
    "Foretold",
    "Fraction",
    "Full",
    "Maps",
    "Margin",
    "MaxProbability",
    "MeanScore",
    "NearScore",
    "NearestAbsent",
    "Never",
    "NextGate",
    "NextRanked",
    "Nothing",
    "Oracle",
    "PerLayer",
    "PredictedReuse",
    "PreviousToken",
    "ReadGates",
    "RequestMatrix",
    "Requests",
    "Scheduled",
    "Sensitivity",
    "Successors",
    "TargetFallback",
    "TopK",
    "TopScore",
    "TwoLevel",
    "Wait",
    "Weighted",
]
