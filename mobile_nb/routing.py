"""Traces and routing alone: passes made of it, recorded by another engine or drawn, and what a trace holds of it.
Knows nothing of times or models.

Legend: T tokens · L MoE layers · K experts routed to · E experts.
"""

from __future__ import annotations

import math

import numpy as np

from .trace import Pass, Trace
from .vocabulary import PROMPT, MobileError

LARGEST = np.iinfo(np.int16).max  # ids are kept in 16 bits


def ranked(ids, num_experts: int, scores=None) -> tuple[np.ndarray, np.ndarray]:
    """Checked ids and scores [T, L, K]; without scores the ids count as best first.

    Raises:
        ValueError: shapes or ids that cannot be.
    """
    ids = np.asarray(ids)
    if ids.ndim != 3 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"ids must be whole numbers [tokens, layers, K], got {ids.dtype} of shape {ids.shape}.")
    if num_experts > LARGEST:
        raise ValueError(f"num_experts must be at most {LARGEST}, got {num_experts}.")
    if ids.min() < 0 or ids.max() >= num_experts:
        raise ValueError(f"ids must be from 0 to num_experts - 1 = {num_experts - 1}, got {ids.min()} to {ids.max()}.")
    order = np.sort(ids, axis=2)
    if (order[..., 1:] == order[..., :-1]).any():
        raise ValueError("a token cannot be routed to the same expert of a layer twice.")
    best_first = np.arange(ids.shape[2], 0, -1) / ids.shape[2]
    scores = np.broadcast_to(best_first, ids.shape) if scores is None else np.asarray(scores)
    if scores.shape != ids.shape:
        raise ValueError(f"scores must have the shape of ids, {ids.shape}, got {scores.shape}.")
    if np.isnan(scores).any():
        raise ValueError("scores must be numbers, and some are NaN.")
    return ids.astype(np.int16), scores.astype(np.float32)


def one_token(
    mode: str, step: int, ids: np.ndarray, scores: np.ndarray, *, token_id: int = 0, confidence: float = math.nan
) -> Pass:
    """A pass of one token with routing [L, K], not timed yet."""
    none = np.zeros(len(ids), dtype=np.int64)
    routing = ids[:, None], scores[:, None]  # [L, 1, K]
    return Pass(0, step, mode, token_id, confidence, math.nan, 0.0, 0.0, *routing, none, none, none, none)


def conditions(name: str, layers: int, experts: int, top_k: int) -> dict:
    """What is known of such a trace."""
    shape = {"layers": layers, "experts": experts, "top_k": top_k}
    full = {"count": "TopK()", "keep": "Always()", "miss": "Wait()", "codec": "Full()"}
    return {"model": name, **shape, "questions": full, "time": "not timed", "measured": False, "expert_bytes": 0}


def texts(trace: Trace) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each text of a trace, ids and weights [L, N, K] of its prompt and of the tokens that stayed, in order.

    Raises:
        MobileError: there is none.
    """
    found: dict[int, list[Pass]] = {}
    for done in trace.passes:
        if done.token_id >= 0:
            found.setdefault(done.request, []).append(done)
    if not found:
        raise MobileError("this trace holds no token that was written, so there is nothing to learn from it.")
    new = {PROMPT: slice(None)}  # without a KV cache later passes read the whole text again
    last = slice(-1, None)
    return [
        (
            np.concatenate([p.ids[:, new.get(p.mode, last)] for p in passes], axis=1),
            np.concatenate([p.weights[:, new.get(p.mode, last)] for p in passes], axis=1),
        )
        for passes in found.values()
    ]


__all__ = ["conditions", "one_token", "ranked", "texts"]
