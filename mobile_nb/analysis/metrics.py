"""Numbers from traces: frames in, numbers or frames out. Knows nothing about models, and no torch.

"A token" is one that was written after the prompt pass: the prompt's own cost is the first token's, and is left out.
Every function takes what `Trace.to_frame` returns, or a `Trace` where it needs the routing.
"""

from __future__ import annotations

import numpy as np

from ..trace import Trace
from .cards import cards
from .curves import hit_curve
from .foresight import foreseen, prefetched
from .occupancy import occupancy
from .spans import breakdown, spans


def decoded(steps):
    """The rows of a frame (steps, passes or copies) that belong to tokens after the prompt pass."""
    return steps[steps["step"] > 0]


def fallback_ratio(steps) -> float:
    """Share of tokens whose little version was evicted. `steps`: Trace.to_frame("steps")."""
    return _mean(decoded(steps)["fell_back"])


def accepted_per_verification(steps) -> float:
    """Drafts that stayed for each big pass that wrote, where the big model verifies drafts (`policies.Verified`)."""
    who = decoded(steps)["wrote"]
    return float((who == "little").sum() / (who == "big").sum()) if (who == "big").any() else float("nan")


def hit_rate(steps) -> float:
    """Share of expert requests that were served from a device slot."""
    rows = decoded(steps)
    return float(rows["hits"].sum() / max(1, rows["requests"].sum()))


def bytes_per_token(steps) -> float:
    """Expert bytes over the link, prefetches included."""
    return _mean(decoded(steps)["bytes_moved"])


def seconds_per_token(steps) -> float:
    """Seconds from one token to the next, simulated or measured as `steps.attrs["time"]` says."""
    return _mean(decoded(steps)["seconds"])


def evicted_router(trace: Trace):
    """How well the evicted token's router foresaw the big pass (MoBiLE, Sec. III-B; the paper: above 80 %).

    Returns a frame, one row a layer: layer, fallbacks, precision (share of the evicted token's K experts that the big
    model ran; both lists are K long, so recall is the same number).
    """
    import pandas as pd

    shares = []
    for little, big in zip(trace.passes, trace.passes[1:], strict=False):
        if little.mode == "little" and little.token_id < 0 and big.mode == "big" and big.ids.shape[1] == 1:
            foreseen = (little.ids[:, 0, :, None] == big.ids[:, 0, None, :]).any(axis=2)  # [L, K]
            shares.append(foreseen.mean(axis=1))
    layers = trace.conditions["layers"]
    means = np.mean(shares, axis=0) if shares else np.full(layers, np.nan)
    frame = pd.DataFrame({"layer": range(layers), "fallbacks": len(shares), "precision": means})
    frame.attrs.update(trace.conditions)
    return frame


def prefetch_precision(trace: Trace) -> float:
    """Share of prefetched experts that the same pass then asked for; NaN without prefetches."""
    used = total = 0
    for done in trace.passes:
        for copy in done.copies:
            if copy.kind == "prefetch":
                total += 1
                used += bool((done.ids[copy.layer] == copy.expert).any())
    return used / total if total else float("nan")


def summary(trace: Trace) -> dict:
    """The row of a comparison table: every number above for one trace."""
    steps = trace.to_frame("steps")
    foreseen = evicted_router(trace)["precision"]
    return {
        "tokens": len(decoded(steps)),
        "fallback_ratio": fallback_ratio(steps),
        "hit_rate": hit_rate(steps),
        "bytes_per_token": bytes_per_token(steps),
        "evicted_router_precision": float(foreseen.mean()),
        "prefetch_precision": prefetch_precision(trace),
        "seconds_per_token": seconds_per_token(steps),
        "time": trace.conditions["time"],
    }


def _mean(column) -> float:
    return float(column.mean()) if len(column) else float("nan")


__all__ = [
    "breakdown",
    "bytes_per_token",
    "cards",
    "decoded",
    "evicted_router",
    "fallback_ratio",
    "foreseen",
    "hit_curve",
    "hit_rate",
    "occupancy",
    "prefetch_precision",
    "prefetched",
    "seconds_per_token",
    "spans",
    "summary",
]
