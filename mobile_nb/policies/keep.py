"""Question 2: does the little model's token stay?

MoBiLE says "max logit" below gamma = 0.7 (Sec. III-A); raw logits are around 10 to 30, and BiLD, which it builds on,
uses the largest probability. We read it so, and offer margin and entropy beside it [inference].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..vocabulary import number


class Evidence(Protocol):
    """What is known of the little token: numbers from its softmax, each computed when it is read."""

    max_probability: float  # in [0, 1]
    margin: float  # largest minus second largest probability, in [0, 1]
    entropy: float  # in nats, divided by log(vocabulary): 0 sure, 1 knows nothing


class Keep(Protocol):
    """Decides whether the little token stays."""

    def keep(self, evidence: Evidence) -> bool: ...


@dataclass(frozen=True)
class _Threshold:
    """Keeps the token when its measure reaches gamma. 0 always keeps; above 1 never does."""

    gamma: float = 0.7

    def __post_init__(self):
        number("gamma", self.gamma, low=0, hint="0 never falls back, above 1 always does; the paper uses 0.7")


@dataclass(frozen=True)
class MaxProbability(_Threshold):
    """Keep when the largest softmax probability is at least gamma (MoBiLE, Sec. III-A)."""

    def keep(self, evidence: Evidence) -> bool:
        return evidence.max_probability >= self.gamma


@dataclass(frozen=True)
class Margin(_Threshold):
    """Keep when the best token leads the second best by at least gamma."""

    def keep(self, evidence: Evidence) -> bool:
        return evidence.margin >= self.gamma


@dataclass(frozen=True)
class Entropy(_Threshold):
    """Keep when 1 - entropy / log(vocabulary) is at least gamma."""

    def keep(self, evidence: Evidence) -> bool:
        return 1 - evidence.entropy >= self.gamma


@dataclass(frozen=True)
class Always:
    """The little model alone: it is never asked again."""

    def keep(self, evidence: Evidence) -> bool:
        return True


@dataclass(frozen=True)
class Never:
    """Every little token is evicted: the big model's text at the price of both."""

    def keep(self, evidence: Evidence) -> bool:
        return False


__all__ = ["Always", "Entropy", "Evidence", "Keep", "Margin", "MaxProbability", "Never"]
