"""What a predictor is asked, and what its kinds share.

Legend: L MoE layers · E experts · K experts routed to · N of anything.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ..view import View


class Predictor(Protocol):
    """Asked before a pass, with layer -1, and after each layer's routing is known."""

    def expected(self, layer: int, view: View) -> np.ndarray:
        """[L, E] at least 0: how much each expert will be needed, comparable within a layer; 0 for "not at all"."""
        ...


def rows(matrix: np.ndarray) -> np.ndarray:
    """[..., L, E] with each layer's row divided by its sum; rows of nothing stay so."""
    return matrix / np.maximum(matrix.sum(axis=-1, keepdims=True), 1e-30)


def cosine(one: np.ndarray, many: np.ndarray) -> np.ndarray:
    """Of one [L, E] with each of many [N, L, E], as flat vectors: [N], 0 where either is nothing."""
    flat, all_flat = one.ravel(), many.reshape(len(many), -1)
    return all_flat @ flat / np.maximum(np.linalg.norm(flat) * np.linalg.norm(all_flat, axis=1), 1e-30)


def nearest(similarity: np.ndarray, count: int) -> np.ndarray:
    """The `count` most similar, most similar first; the earlier one on a tie."""
    return np.argsort(-similarity, kind="stable")[:count]


def map_of(ids: np.ndarray, weights: np.ndarray, experts: int) -> np.ndarray:
    """Routing [..., K] as probabilities [..., E]: each token's weights divided by their sum, 0 for everybody else."""
    found = np.zeros((*ids.shape[:-1], experts))
    np.put_along_axis(found, ids.astype(np.int64), np.maximum(weights, 0).astype(float), axis=-1)
    return rows(found)


__all__ = ["Predictor", "cosine", "map_of", "nearest", "rows"]
