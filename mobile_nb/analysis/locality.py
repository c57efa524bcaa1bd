"""How predictable routing is: arrays of ids in, numbers out. Knows nothing about caches or time.

Legend: T tokens · L MoE layers · K experts routed to · E experts.
"""

from __future__ import annotations

import numpy as np

from ..trace import Trace


def routing(trace: Trace, mode: str = "big") -> np.ndarray:
    """The ids [T, L, K] of a trace's passes of one token in that mode."""
    found = [p.ids[:, 0] for p in trace.passes if p.mode == mode and p.ids.shape[1] == 1]
    return np.array(found, dtype=np.int64)


def reuse(ids: np.ndarray) -> float:
    """Share of a token's experts that the token before used in the same layer."""
    again = (ids[1:, :, :, None] == ids[:-1, :, None, :]).any(axis=3)
    return float(again.mean())


def previous_layer_recall(ids: np.ndarray, experts: int, train: float = 0.8) -> float:
    """Share of a token's experts that a count table foresees from its experts of the layer before.

    The table counts, on the first `train` share of tokens, how often expert i of a layer came with expert j of the
    next; the K experts with the highest sum over the K of the layer before are the guess.
    """
    tokens, layers, k = ids.shape
    split, found = int(tokens * train), []
    hot = np.zeros((tokens, layers, experts), dtype=np.float32)
    np.put_along_axis(hot, ids, 1, axis=2)
    for layer in range(1, layers):
        table = hot[:split, layer - 1].T @ hot[:split, layer]  # [E, E]
        guess = np.argpartition(-(hot[split:, layer - 1] @ table), k - 1, axis=1)[:, :k]
        found.append(np.take_along_axis(hot[split:, layer], guess, axis=1).mean())
    return float(np.mean(found))


def segment_f1(ids: np.ndarray, experts: int, tokens: int = 16) -> float:
    """SRP of arXiv 2505.16056: the best F1 of one fixed set of experts for each segment of `tokens` tokens, averaged.

    A set of n experts that tokens of the segment used c times in all has precision c / (tokens n) and recall
    c / (tokens K).
    """
    segments = len(ids) // tokens
    cut = ids[: segments * tokens].reshape(segments, tokens, *ids.shape[1:])
    hot = np.zeros((segments, ids.shape[1], experts))
    for t in range(tokens):
        np.put_along_axis(hot, cut[:, t], np.take_along_axis(hot, cut[:, t], axis=2) + 1, axis=2)
    used = -np.sort(-hot, axis=2)
    f1 = 2 * used.cumsum(axis=2) / (tokens * (np.arange(1, experts + 1) + ids.shape[2]))
    return float(f1.max(axis=2).mean())


__all__ = ["previous_layer_recall", "reuse", "routing", "segment_f1"]
