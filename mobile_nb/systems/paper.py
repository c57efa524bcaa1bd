"""MoBiLE, its ends, what speed-ups are quoted against, and drafts that the full model verifies."""

from __future__ import annotations

from .. import policies as p
from ..policies import Always, EvictedRouter, Fraction, MaxProbability, TopK
from ..policies.codec import Form
from ..runtime.config import MobileConfig


def mobile(gamma: float = 0.7, *, fraction: float = 0.5, ahead: int | None = None, **fields) -> MobileConfig:
    """MoBiLE (arXiv 2510.12357): the little model writes, and below gamma the big one writes again, prefetched by the
    evicted token's router.

    Args:
        gamma: the token stays when its largest probability is at least this (0.7 in the paper). 0 never falls
            back, above 1 always does.
        fraction: share of the router's K experts in the little model.
        ahead: layers that the prefetch may be ahead; None for all (see `EvictedRouter`).
    """
    chosen = {"count": Fraction(fraction), "keep": MaxProbability(gamma), "prefetch": EvictedRouter(ahead)}
    return MobileConfig(**(chosen | fields))


def big(**fields) -> MobileConfig:
    """The full model, all K experts on every token: exact."""
    return MobileConfig(**({"count": TopK()} | fields))


def on_demand(**fields) -> MobileConfig:
    """The offloading baseline that speed-ups are quoted against: the full model, fetched on demand, LRU per layer."""
    return big(**fields)


def little(fraction: float = 0.5, **fields) -> MobileConfig:
    """The little model alone, on the prompt too: what a smaller top_k gives."""
    return MobileConfig(**({"count": Fraction(fraction, prompt=fraction), "keep": Always()} | fields))


def speculative(length: int = 4, fraction: float = 0.5, *, gamma: float = 0.0, **fields) -> MobileConfig:
    """MoBiLE's exact sibling: the little model drafts `length` tokens, and the big one reads all of them in one pass,
    prefetched by their routers. See `policies.Verified` for length and gamma, `Fraction` for the share of K."""
    chosen = {"count": Fraction(fraction), "keep": p.Verified(length, gamma), "prefetch": EvictedRouter()}
    return MobileConfig(**(chosen | fields))


def moe_speq(length: int = 4, *, low: Form | None = None, low_slots: int = 1 << 15, **fields) -> MobileConfig:
    """MoE-SpeQ (arXiv 2511.14102): a copy in four bits (`low`) drafts `length` tokens, all of it on the device unless
    `low_slots` says otherwise; the full model verifies."""
    codec = p.Mixed(low=p.Int4() if low is None else low, low_slots=low_slots)
    chosen = {"keep": p.Verified(length), "prefetch": p.DraftRouter(), "miss": p.AllLow(), "codec": codec}
    return MobileConfig(**(chosen | fields))


__all__ = ["big", "little", "mobile", "moe_speq", "on_demand", "speculative"]
