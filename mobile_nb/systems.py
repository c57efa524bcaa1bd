"""The literature as a table: each published system is one choice for each of the six questions.

    system        count          keep             prefetch         miss   evict   exact?
    big           K              -                -                wait   LRU     yes
    on_demand     K              -                -                wait   LRU     yes
    next_gate     K              -                next gate        wait   LRU     yes
    little        K/2            always           -                wait   LRU     no
    mobile        K/2 or K       p(best) ≥ γ      evicted router   wait   LRU     no
    early_routing K              -                next gate        as foretold     LRU   no
    buddymoe      K              -                -                buddy, gated    LRU   no
    anybody       K              -                -                random   LRU   no
    drop          K              -                -                drop   LRU   no

Every function takes `slots=` or `budget_gb=` (and any other field of `MobileConfig`) beside its own parameters.
"""

from __future__ import annotations

from .policies import (
    Always,
    Anybody,
    Buddies,
    Buddy,
    Drop,
    EvictedRouter,
    Foretold,
    Fraction,
    MaxProbability,
    NextGate,
    TopK,
)
from .runtime.config import MobileConfig


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


def next_gate(ahead: int = 1, *, experts: int | None = None, **fields) -> MobileConfig:
    """mixtral-offloading (arXiv 2312.17238): exact; prefetches what the next layer's router says of this layer's input.

    Args:
        ahead: layers to look ahead.   experts: how many of that router's best; None for all K (the paper: 1 to 2 of 2).
    """
    return MobileConfig(**({"prefetch": NextGate(ahead, experts)} | fields))


def early_routing(**fields) -> MobileConfig:
    """Pre-gated MoE (arXiv 2308.12066) without its training: what the router says one layer early is what runs. The
    published system trains its routers for it and loses nothing; this imitation does, and goes by another name."""
    return MobileConfig(**({"prefetch": NextGate(1), "miss": Foretold()} | fields))


def buddymoe(
    buddies: Buddies, *, tau: float = 0.95, beta: float = 0.6, rho: int = 3, eta: float = 0.0, **fields
) -> MobileConfig:
    """BuddyMoE (arXiv 2511.10054): an absent expert's most frequent companion runs in its place, behind two gates.

    Args:
        buddies: lists, such as `Buddies.from_trace` makes.   tau, beta, rho, eta: see `policies.Buddy`.
    """
    return MobileConfig(**({"miss": Buddy(buddies, tau, beta, rho, eta)} | fields))


def anybody(seed: int = 0, **fields) -> MobileConfig:
    """BuddyMoE's baseline "Random": any resident runs in an absent expert's place."""
    return MobileConfig(**({"miss": Anybody(seed)} | fields))


def drop(**fields) -> MobileConfig:
    """Absent experts are left out, but for the best one where nobody is there."""
    return MobileConfig(**({"miss": Drop()} | fields))


def little(fraction: float = 0.5, **fields) -> MobileConfig:
    """The little model alone, on the prompt too: what a smaller top_k gives."""
    return MobileConfig(**({"count": Fraction(fraction, prompt=fraction), "keep": Always()} | fields))


__all__ = ["anybody", "big", "buddymoe", "drop", "early_routing", "little", "mobile", "next_gate", "on_demand"]
