"""Question 2: does the little model's token stay?

MoBiLE says "max logit" below gamma = 0.7 (Sec. III-A); raw logits are around 10 to 30, and BiLD, which it builds on,
uses the largest probability. We read it so, and offer margin and entropy beside it [inference].
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..vocabulary import number, whole


class Evidence(Protocol):
    """What is known of the little token: numbers from its softmax, each computed when it is read."""

    max_probability: float  # in [0, 1]
    margin: float  # largest minus second largest probability, in [0, 1]
    entropy: float  # in nats, divided by log(vocabulary): 0 sure, 1 knows nothing
    past: Sequence[float]  # max_probability of the little tokens before this one in the same text, oldest first


class Keep(Protocol):
    """Decides whether the little token stays.

    One that also has `drafts(past)` lets the little model draft several tokens one after the other, and the big model
    read them at once: those that it would have written itself stay, and `keep` says whether a draft is worth proposing.
    `past` are (drafted, accepted) of each such reading in this text, oldest first; the answer is how many tokens to
    draft before the next, 0 for none.
    """

    def keep(self, evidence: Evidence) -> bool: ...


@dataclass(frozen=True)
class _Threshold:
    """Keeps the token when its measure reaches gamma. 0 always keeps; above 1 never does."""

    gamma: float = 0.7

    def __post_init__(self):
        gamma = number("gamma", self.gamma, low=0, hint="0 never falls back, above 1 always does; the paper uses 0.7")
        object.__setattr__(self, "gamma", gamma)  # 1 and 1.0 are one threshold


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
class TargetFallback:
    """Lets gamma follow the text so that a chosen share of tokens falls back: the threshold is that quantile of the
    confidences seen last. Ours, as an answer to a fixed gamma that means another ratio on every text.

    Attributes:
        ratio: share of tokens that shall fall back, in [0, 1].
        window: how many little tokens back the quantile looks.
        start: gamma until `ratio * window` could be one token, that is for the first 1 / ratio tokens.
    """

    ratio: float = 0.1
    window: int = 128
    start: float = 0.7

    def __post_init__(self):
        number("TargetFallback.ratio", self.ratio, low=0, high=1)
        whole("TargetFallback.window", self.window)
        number("TargetFallback.start", self.start, low=0)

    def keep(self, evidence: Evidence) -> bool:
        if self.ratio in (0, 1):
            return self.ratio == 0
        past = sorted(evidence.past[-self.window :])
        if len(past) * self.ratio < 1:
            return evidence.max_probability >= self.start
        return evidence.max_probability >= past[int(len(past) * self.ratio)]


@dataclass(frozen=True)
class Verified:
    """Keep what the big model, reading all drafts in one pass, would have written itself: speculative decoding
    (MoE-SpeQ, arXiv 2511.14102). The text is the big model's, token for token, greedy or sampled.

    Attributes:
        length: tokens that the little model drafts at most; 0 leaves the big model alone.
        gamma: a draft ends before a token whose largest probability is below this, and the big model writes that one:
            0 drafts however unsure, above 1 proposes nothing, which is MoBiLE above 1 [inference].
        window: None drafts `length` tokens always. Else one more than the mean that was accepted in the last `window`
            readings of this text, up to `length`: a plain stand-in for MoE-SpeQ's governor [inference].
    """

    length: int = 4
    gamma: float = 0.0
    window: int | None = None

    def __post_init__(self):
        whole("Verified.length", self.length, low=0, hint="tokens drafted before the big model reads them")
        gamma = number("gamma", self.gamma, low=0, hint="0 drafts however unsure, above 1 proposes nothing")
        object.__setattr__(self, "gamma", gamma)
        if self.window is not None:
            whole("Verified.window", self.window)

    def keep(self, evidence: Evidence) -> bool:
        return evidence.max_probability >= self.gamma

    def drafts(self, past: Sequence[tuple[int, int]]) -> int:
        recent = [] if self.window is None else past[-self.window :]
        if not recent:
            return self.length
        return min(self.length, math.ceil(sum(accepted for _, accepted in recent) / len(recent)) + 1)


@dataclass(frozen=True)
class Scheduled:
    """Evicts a share of the tokens at places fixed beforehand, evenly spread, whatever the logits are. For measuring
    with random weights, whose probabilities say nothing; the paper saw 11 % and 21 % fall back (Sec. IV).

    Of any n tokens of a text, `share * n` fall back, up to one more or less.

    Attributes:
        share: of the tokens, in [0, 1].   seed: says where in its period the first one lies.
    """

    share: float = 0.11
    seed: int = 0

    def __post_init__(self):
        number("Scheduled.share", self.share, low=0, high=1)
        whole("Scheduled.seed", self.seed, low=0)

    def keep(self, evidence: Evidence) -> bool:
        before, phase = len(evidence.past), random.Random(self.seed).random()
        return math.floor((before + 1) * self.share + phase) == math.floor(before * self.share + phase)


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


__all__ = [
    "Always",
    "Entropy",
    "Evidence",
    "Keep",
    "Margin",
    "MaxProbability",
    "Never",
    "Scheduled",
    "TargetFallback",
    "Verified",
]
