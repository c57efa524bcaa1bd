"""FineMoE (arXiv 2502.05370, also fMoE): a token goes on as the token went whose first layers were routed like its own.

Legend: N iterations (tokens) · R texts · L MoE layers · E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...routing import texts
from ...trace import Trace
from ...vocabulary import whole
from ..knowledge import Knowledge
from ..view import View
from .ask import cosine, map_of, nearest, rows


@dataclass(frozen=True, eq=False, repr=False)
class Maps(Knowledge):
    """Past iterations.

    Attributes:
        maps: [N, L, E] gate probabilities. A trace keeps those of the K chosen experts, so these sum to 1 [inference].
        about: [R, L, E] the share of a layer's activations that went to each expert, of each text.
        text: [N] the text that each iteration is of.
    """

    maps: np.ndarray
    about: np.ndarray
    text: np.ndarray

    @staticmethod
    def from_trace(trace: Trace, *, most: int = 1000) -> Maps:
        """A map for each token of a trace, or `most` of them, evenly spaced: 1,000 suffice in the paper."""
        whole("Maps.from_trace most", most)
        experts, maps, about, text = trace.conditions["experts"], [], [], []
        for ids, weights in texts(trace):
            maps.append(map_of(ids, weights, experts).swapaxes(0, 1))  # [N, L, E]
            text.append(np.full(ids.shape[1], len(about)))
            about.append([np.bincount(layer.ravel(), minlength=experts) for layer in ids])
        maps, text = np.concatenate(maps), np.concatenate(text)
        kept = np.unique(np.linspace(0, len(maps) - 1, min(most, len(maps))).astype(int))
        return Maps(maps[kept], rows(np.array(about, dtype=float)), text[kept])


@dataclass(frozen=True)
class ExpertMap:
    """The map of the most similar past iteration.

    Similar is, as in the paper, the sum of two cosines: of the layers computed so far (the trajectory), and of what the
    text is about. For the latter the paper compares embeddings of prompts; a policy sees ids and scores, so we compare
    which experts the texts activated [inference].

    Attributes:
        maps: the store.   nearest: how many of them speak, each as much as any other; the paper takes the best one.
    """

    maps: Maps
    nearest: int = 1

    def __post_init__(self):
        if not isinstance(self.maps, Maps):
            raise TypeError(f"ExpertMap.maps must be what Maps.from_trace makes, got {self.maps!r}.")
        whole("ExpertMap.nearest", self.nearest)

    def expected(self, layer: int, view: View) -> np.ndarray:
        known = self.maps
        similarity = cosine(rows(view.activations), known.about)[known.text]
        if layer >= 0:
            routed = [map_of(*view.routed(at), view.experts) for at in range(layer + 1)]
            similarity = similarity + cosine(np.array(routed), known.maps[:, : layer + 1])
        return known.maps[nearest(similarity, self.nearest)].mean(axis=0)


__all__ = ["ExpertMap", "Maps"]
