"""What the router thought of an expert lately: SMoE's eviction (arXiv 2508.18983) as a predictor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...vocabulary import whole
from ..view import View
from .ask import map_of


@dataclass(frozen=True)
class MeanScore:
    """An expert's mean router score over the last tokens of the text.

    Scores are those of the K chosen experts, divided by their sum, and 0 for the others, whose scores a trace does not
    keep [inference].

    Attributes:
        tokens: how many of them. The paper's n; its value we did not find [inference].
    """

    tokens: int = 16

    def __post_init__(self):
        whole("MeanScore.tokens", self.tokens)

    def expected(self, layer: int, view: View) -> np.ndarray:
        ids, weights = view.recent(self.tokens)  # [L, N, K]
        return map_of(ids, weights, view.experts).sum(axis=1) / max(1, ids.shape[1])


__all__ = ["MeanScore"]
