"""Predictors: how much will each expert be needed? What prefetchers fetch by, and evictions keep by.

One idea each, held by a prefetcher (`prefetch.expected`), an eviction (`evict.PredictedReuse`), or both. They say what
they expect from routing alone, so both questions can be replayed; but for `Learned`, which reads hidden states.
"""

from .ask import Predictor
from .learned import Learned, Network
from .maps import ExpertMap, Maps
from .requests import RequestMatrix, Requests
from .scores import MeanScore
from .successors import Successors

__all__ = [
    "ExpertMap",
    "Learned",
    "Maps",
    "MeanScore",
    "Network",
    "Predictor",
    "RequestMatrix",
    "Requests",
    "Successors",
]
