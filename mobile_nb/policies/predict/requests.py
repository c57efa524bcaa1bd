"""MoE-Infinity (arXiv 2401.14361): a request goes on as the requests went that began like it.

Legend: R requests · L MoE layers · E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...routing import texts
from ...trace import Trace
from ...vocabulary import whole
from ..knowledge import Knowledge
from ..view import View
from .ask import cosine, nearest, rows


@dataclass(frozen=True, eq=False, repr=False)
class Requests(Knowledge):
    """Past requests.   ratios: [R, L, E] the share of a layer's activations that went to each expert."""

    ratios: np.ndarray

    @staticmethod
    def from_trace(trace: Trace) -> Requests:
        """One matrix for each text of a trace, its prompt included."""
        experts, found = trace.conditions["experts"], []
        for ids, _ in texts(trace):
            found.append([np.bincount(layer.ravel(), minlength=experts) for layer in ids])
        return Requests(rows(np.array(found, dtype=float)))


@dataclass(frozen=True)
class RequestMatrix:
    """The ratios of the most similar past requests, weighted by how similar they are.

    The paper matches the activation counts of the request so far, those of the token at hand included, by cosine, and
    aggregates what it finds. How many it takes, and how it weighs them, we did not find [inference].

    Attributes:
        requests: the store.   nearest: how many of them speak.
    """

    requests: Requests
    nearest: int = 3

    def __post_init__(self):
        if not isinstance(self.requests, Requests):
            raise TypeError(f"RequestMatrix.requests must be what Requests.from_trace makes, got {self.requests!r}.")
        whole("RequestMatrix.nearest", self.nearest)

    def expected(self, layer: int, view: View) -> np.ndarray:
        seen = view.activations
        for at in range(layer + 1):
            seen[at, view.routed(at)[0]] += 1
        ratios = self.requests.ratios
        similarity = cosine(rows(seen), ratios)
        like = nearest(similarity, self.nearest)
        said = similarity[like] if similarity[like].any() else np.ones(len(like))  # at first, all are alike
        return np.tensordot(said / said.sum(), ratios[like], axes=1)


__all__ = ["RequestMatrix", "Requests"]
