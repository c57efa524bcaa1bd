"""Question 3: which experts to fetch before they are asked for?

A prefetcher answers with `Wanted` lists, in the order in which the link should take them. What is resident already is
skipped, what is asked for on demand overtakes, and what has not started when its layer comes is dropped.
"""

from ..view import View
from .ask import Prefetch
from .expected import AdaptiveDepth, ByPriority, Cumulative
from .gates import InForm, NearestAbsent, TopScore
from .known import DraftRouter, EvictedRouter, NextGate, Nothing, Oracle, PreviousToken, ReadGates

__all__ = [
    "AdaptiveDepth",
    "ByPriority",
    "Cumulative",
    "DraftRouter",
    "EvictedRouter",
    "InForm",
    "NearestAbsent",
    "NextGate",
    "Nothing",
    "Oracle",
    "Prefetch",
    "PreviousToken",
    "ReadGates",
    "TopScore",
    "View",
]
