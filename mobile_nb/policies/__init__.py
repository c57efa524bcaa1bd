"""The six questions, one file each; one idea is one frozen dataclass, and policies compose by holding one another.

    count     how many experts run, and what are their weights divided by?
    keep      does the little token stay?
    prefetch  which experts to fetch before they are asked for?
    miss      what to do about an expert that is not on the device?
    evict     which resident leaves?
    codec     in what form do experts travel?

A policy is a pure decision on ids and scores: it sees no tensor, no stream and no clock. Whatever it raises reaches
the user as one sentence that names it.
"""

from .codec import Full
from .count import Fraction, TopK
from .evict import LFU, LRU, Belady
from .keep import Always, Entropy, Margin, MaxProbability, Never, TargetFallback
from .miss import Anybody, Buddies, Buddy, Drop, Foretold, NearScore, NextRanked, Wait
from .prefetch import EvictedRouter, NextGate, Nothing, Oracle, PreviousToken, ReadGates

__all__ = [
    "LFU",
    "LRU",
    "Always",
    "Anybody",
    "Belady",
    "Buddies",
    "Buddy",
    "Drop",
    "Entropy",
    "EvictedRouter",
    "Foretold",
    "Fraction",
    "Full",
    "Margin",
    "MaxProbability",
    "NearScore",
    "Never",
    "NextGate",
    "NextRanked",
    "Nothing",
    "Oracle",
    "PreviousToken",
    "ReadGates",
    "TargetFallback",
    "TopK",
    "Wait",
]
