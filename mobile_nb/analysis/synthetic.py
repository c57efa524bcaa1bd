"""Routing drawn from a few documented parameters, for models whose weights are not at hand.

Every expert's score is the sum of four parts: how popular it is, what the text is about (which changes slowly), what
this token is (the same in all layers), and chance; the K highest are routed to. The trace holds the little and the big
pass of every token, as a run with gamma above 1 does, so any gamma can be replayed. Its big passes see a router input
that drifts away from the little model's, layer by layer. Fitted to published measurements by
data/recipes/fit_synthetic.py, which also shows how far the fit is from them. Simulated, always.

Legend: T tokens · L MoE layers · E experts · K experts routed to.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass

import numpy as np

from ..files import data_path
from ..hardware import Geometry
from ..routing import conditions, one_token
from ..trace import Trace
from ..vocabulary import MobileError, number, whole

TEXT, TOKEN = 16, 4  # dimensions of what a text and a token are; few of a token, so that layers tell of each other


@dataclass(frozen=True)
class Synthetic:
    """A router to draw from.

    Attributes:
        popularity: spread of what an expert scores on every token alike (its layer's skew).
        context: spread of what it scores for the text at hand.   persistence: how much of the text's state one token
            leaves to the next, in [0, 1): 0.9 forgets in about ten tokens.
        token: share of the rest, whose spread is 1, that is about what this token is, and so shared by all layers: with
            it the experts of one layer tell about those of the next. In [0, 1]; what remains is chance.
        drift: spread of what the big model's router input adds at the last layer; it grows linearly from 0.
        fallback: share of little tokens whose confidence is below 0.7.   steepness: how that share grows with gamma;
            0.99 is what MoBiLE reports of OLMoE, 21 and 27 % below 0.7 and 0.8 (Table III); see `steepness`.
        document: tokens of a text; the next one is about something else.
    """

    popularity: float = 0.2
    context: float = 1.0
    persistence: float = 0.75
    token: float = 0.9
    drift: float = 0.3
    fallback: float = 0.21
    steepness: float = 0.99
    document: int = 192

    def __post_init__(self):
        for name in ("popularity", "context", "drift"):
            number(f"Synthetic.{name}", getattr(self, name), low=0)
        number("Synthetic.token", self.token, low=0, high=1)
        number("Synthetic.persistence", self.persistence, low=0, high=0.999999)
        number("Synthetic.fallback", self.fallback, low=0, high=0.999)
        number("Synthetic.steepness", self.steepness, low=1e-3, high=200)
        whole("Synthetic.document", self.document)

    @staticmethod
    def fitted(name: str) -> Synthetic:
        """The router fitted to what was measured of a published model, from data/results/synthetic_fit.json.

        Raises:
            MobileError: not one of the fitted ones; the sentence lists them.
        """
        fits = json.loads(data_path("results", "synthetic_fit.json").read_text(encoding="utf-8"))["models"]
        if name not in fits:
            raise MobileError(f"no router was fitted to {name!r}; there are {', '.join(fits)}.")
        return Synthetic(**fits[name]["router"])

    def trace(self, geometry: Geometry | str, tokens: int = 1000, *, seed: int = 0) -> Trace:
        """Draws `tokens` tokens for a model of that many layers, experts and active experts.

        Returns:
            A trace without times, whose replays need hardware= only.
        """
        geometry = Geometry.of(geometry) if isinstance(geometry, str) else geometry
        whole("tokens", tokens)
        little, big, weights = self.routing(
            tokens, geometry.moe_layers, geometry.num_experts, geometry.top_k, seed=seed
        )
        even = (np.arange(tokens) + 0.5) / tokens  # so that the share below 0.7 is the one asked for
        sure = self.confidence(np.random.default_rng((seed, 1)).permutation(even)).tolist()
        passes = []
        for t in range(tokens):
            passes.append(one_token("little", t + 1, little[t], weights, token_id=-1, confidence=sure[t]))
            passes.append(one_token("big", t + 1, big[t], weights, confidence=1.0))
        about = conditions("drawn", geometry.moe_layers, geometry.num_experts, geometry.top_k)
        questions = {
            "count": "Fraction(fraction=0.5, prompt=1.0, over=None)",
            "keep": "Never()",
            "miss": "Wait()",
            "codec": "Full()",
        }
        return Trace(
            about | {"questions": questions, "geometry_sizes": asdict(geometry), "synthetic": asdict(self)}, passes
        )

    def routing(
        self, tokens: int, layers: int, experts: int, k: int, *, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The little and the big model's routing, ids [T, L, K] best first, and falling weights [L, K] for both."""
        random = np.random.default_rng((seed, 0))
        popular = random.normal(size=(layers, experts))
        about = random.normal(size=(layers, experts, TEXT)) / math.sqrt(TEXT)
        for_token = random.normal(size=(layers, experts, TOKEN)) / math.sqrt(TOKEN)
        depth = np.linspace(0, 1, layers) if layers > 1 else np.zeros(1)
        text, ids = random.normal(size=TEXT), np.empty((2, tokens, layers, k), dtype=np.int16)
        for t in range(tokens):
            fresh = random.normal(size=TEXT)
            keep = 0.0 if t % self.document == 0 else self.persistence
            text = keep * text + math.sqrt(1 - keep**2) * fresh
            scores = self.popularity * popular + self.context * (about @ text)
            scores += math.sqrt(self.token) * (for_token @ random.normal(size=TOKEN))
            scores += math.sqrt(1 - self.token) * random.normal(size=(layers, experts))
            drifted = scores + self.drift * depth[:, None] * random.normal(size=(layers, experts))
            for row, of in enumerate((scores, drifted)):
                best = np.argpartition(-of, k - 1, axis=1)[:, :k]
                order = np.argsort(-np.take_along_axis(of, best, axis=1), axis=1)
                ids[row, t] = np.take_along_axis(best, order, axis=1)
        weights = np.broadcast_to(np.arange(k, 0, -1, dtype=np.float32) / k, (layers, k))
        return ids[0], ids[1], weights

    def confidence(self, uniform: np.ndarray) -> np.ndarray:
        """Confidences from uniform numbers: Kumaraswamy's distribution, F(x) = 1 - (1 - x^a)^b, F(0.7) = fallback."""
        if self.fallback == 0:
            return np.ones_like(uniform)
        b = math.log1p(-self.fallback) / math.log1p(-(0.7**self.steepness))
        return (1 - (1 - uniform) ** (1 / b)) ** (1 / self.steepness)


def steepness(below_07: float, below_08: float) -> float:
    """The `steepness` with which these shares of tokens are less sure than 0.7 and 0.8."""
    if not 0 < below_07 < below_08 < 1:
        raise ValueError(f"of the shares 0 < {below_07} < {below_08} < 1 must hold.")
    wanted = math.log1p(-below_08) / math.log1p(-below_07)
    low, high = 1e-3, 200.0
    for _ in range(100):
        middle = (low + high) / 2
        ratio = math.log1p(-(0.8**middle)) / math.log1p(-(0.7**middle))
        low, high = (middle, high) if ratio < wanted else (low, middle)
    return (low + high) / 2


__all__ = ["Synthetic", "steepness"]
