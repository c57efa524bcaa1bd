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

from .channels import Channels
from .codec import Full, Int2, Int4, Int8, Mixed, PerExpert
from .count import Fraction, PerLayer, Sensitivity, TopK, WeightRatio
from .evict import LFU, LRU, Belady, Popular, Popularity, PredictedReuse, TwoLevel, Weighted
from .keep import Always, Entropy, Margin, MaxProbability, Never, Scheduled, TargetFallback, Verified
from .miss import AllLow, Anybody, Buddies, Buddy, Drop, Foretold, LowBits, NearScore, NextRanked, OnHost, Wait
from .predict import ExpertMap, Learned, Maps, MeanScore, Network, RequestMatrix, Requests, Successors
from .prefetch import (
    AdaptiveDepth,
    ByPriority,
    Cumulative,
    DraftRouter,
    EvictedRouter,
    InForm,
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
    "AllLow",
    "Always",
    "Anybody",
    "Belady",
    "Buddies",
    "Buddy",
    "ByPriority",
    "Channels",
    "Cumulative",
    "DraftRouter",
    "Drop",
    "Entropy",
    "EvictedRouter",
    "ExpertMap",
    "Foretold",
    "Fraction",
    "Full",
    "InForm",
    "Int2",
    "Int4",
    "Int8",
    "Learned",
    "Maps",
    "Margin",
    "MaxProbability",
    "LowBits",
    "MeanScore",
    "Mixed",
    "NearScore",
    "NearestAbsent",
    "Network",
    "Never",
    "NextGate",
    "NextRanked",
    "Nothing",
    "OnHost",
    "Oracle",
    "PerExpert",
    "PerLayer",
    "Popular",
    "Popularity",
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
    "Verified",
    "Wait",
    "WeightRatio",
    "Weighted",
]
