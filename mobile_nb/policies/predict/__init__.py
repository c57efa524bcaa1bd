"""Predictors: how much will each expert be needed? What prefetchers fetch by, and evictions keep by.

One idea each, held by a prefetcher (`prefetch.expected`), an eviction (`evict.PredictedReuse`), or both. They say what
they expect from routing alone, so both questions can be replayed.
"""

from .ask import Predictor
from .maps import ExpertMap, Maps
from .requests import RequestMatrix, Requests
from .scores import MeanScore
from .successors import Successors

__all__ = ["ExpertMap", "Maps", "MeanScore", "Predictor", "RequestMatrix", "Requests", "Successors"]
