"""The literature as a table: each published system is one choice for each of the six questions.

    system          count            keep        prefetch                  miss              evict            exact?
    big             K                -           -                         wait              LRU              yes
    on_demand       K                -           -                         wait              LRU              yes
    little          K/2              always      -                         wait              LRU              no
    mobile          K/2 or K         p(best) ≥ γ evicted router            wait              LRU              no
    speculative     K/2 drafts, K    verified    evicted routers           wait              LRU              yes
    next_gate       K                -           next gate                 wait              LRU              yes
    moe_infinity    K                -           request matrix            wait              request matrix   yes
    finemoe         K                -           iteration maps            wait              map × frequency  yes
    expertflow      K                -           successors, how far: ±1   wait              two-level LRU    yes
    adapmoe         by sensitivity   -           nearest gate that misses  wait              LRU              no
    lexi            K of each layer  -           -                         wait              LRU              no
    early_routing   K                -           next gate                 run the foretold  LRU              no
    buddymoe        K                -           -                         buddy, gated      LRU              no
    smoe            K                -           next gate's top scores    near score        mean score       no
    anybody, drop   K                -           -                         random, nobody    LRU              no

Every function takes `slots=` or `budget_gb=` (and any other field of `MobileConfig`) beside its own parameters. What a
system learned beforehand comes first, made from a trace or measured on the model.
"""

from __future__ import annotations

from collections.abc import Sequence

from . import policies as p
from .policies import Always, EvictedRouter, Fraction, MaxProbability, NextGate, PredictedReuse, TopK
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


def little(fraction: float = 0.5, **fields) -> MobileConfig:
    """The little model alone, on the prompt too: what a smaller top_k gives."""
    return MobileConfig(**({"count": Fraction(fraction, prompt=fraction), "keep": Always()} | fields))


def speculative(
    length: int = 4, fraction: float = 0.5, *, gamma: float = 0.0, window: int | None = None, **fields
) -> MobileConfig:
    """Speculative decoding with MoBiLE's little model as the draft: exact. The little model drafts, the big one reads
    all drafts in one pass, prefetched by the routers of the drafts, and what it would have written itself stays.

    Args:
        length, gamma, window: of the drafts, see `Verified`.
        fraction: share of the router's K experts in the little model.
    """
    keep = p.Verified(length, gamma, window)
    return MobileConfig(**({"count": Fraction(fraction), "keep": keep, "prefetch": EvictedRouter()} | fields))


# -- exact: other prefetches and evictions ---------------------------------------------------------------------------


def next_gate(ahead: int = 1, *, experts: int | None = None, **fields) -> MobileConfig:
    """mixtral-offloading (arXiv 2312.17238): exact; prefetches what the next layer's router says of this layer's input.

    Args:
        ahead: layers to look ahead.   experts: how many of that router's best; None for all K (the paper: 1 to 2 of 2).
    """
    return MobileConfig(**({"prefetch": NextGate(ahead, experts)} | fields))


def moe_infinity(
    requests: p.Requests, *, nearest: int = 3, ahead: int | None = None, experts: int | None = None, **fields
) -> MobileConfig:
    """MoE-Infinity (arXiv 2401.14361): past requests that began like this one say whom to fetch and whom to keep.

    Args:
        requests: such as `Requests.from_trace` makes.   nearest: see `RequestMatrix`.
        ahead, experts: see `ByPriority`.
    """
    by = p.RequestMatrix(requests, nearest)
    return MobileConfig(**({"prefetch": p.ByPriority(by, ahead, experts), "evict": PredictedReuse(by)} | fields))


def finemoe(maps: p.Maps, *, ahead: int = 3, mass: float = 0.9, **fields) -> MobileConfig:
    """FineMoE (arXiv 2502.05370): the past token whose first layers were routed like this one's says so.

    Args:
        maps: such as `Maps.from_trace` makes.   ahead, mass: the prefetch distance d and delta, see `Cumulative`.
    """
    by = p.ExpertMap(maps)
    chosen = {"prefetch": p.Cumulative(by, ahead, mass), "evict": PredictedReuse(by, frequency=True)}
    return MobileConfig(**(chosen | fields))


def expertflow(by: p.Successors, *, start: int = 2, most: int = 8, **fields) -> MobileConfig:
    """ExpertFlow (arXiv 2510.26730): looks as far ahead as stalls and waste advise. Its random forest on token ids is
    replaced by counts of which experts follow which [inference].

    Args:
        by: such as `Successors.from_trace` makes, or any predictor.
        start, most: depth in layers, see `AdaptiveDepth`.
    """
    return MobileConfig(**({"prefetch": p.AdaptiveDepth(by, start, most), "evict": p.TwoLevel()} | fields))


# -- lossy: other counts and misses ----------------------------------------------------------------------------------


def adapmoe(sensitivity: Sequence[float], threshold: float, *, ahead: int = 3, **fields) -> MobileConfig:
    """AdapMoE (arXiv 2408.10284): fewer experts where little depends on them. Its cache sizes for each layer are left
    out: all layers here have the same slots.

    Args:
        sensitivity, threshold: of each layer, and T, see `Sensitivity`.   ahead: see `NearestAbsent`.
    """
    chosen = {"count": p.Sensitivity(sensitivity, threshold), "prefetch": p.NearestAbsent(ahead)}
    return MobileConfig(**(chosen | fields))


def lexi(runs: Sequence[int], **fields) -> MobileConfig:
    """LExI (arXiv 2509.02753): a fixed number of experts in each layer, such as `PerLayer.least_loss(...).runs`."""
    return MobileConfig(**({"count": p.PerLayer(runs)} | fields))


def early_routing(**fields) -> MobileConfig:
    """Pre-gated MoE (arXiv 2308.12066) without its training: what the router says one layer early is what runs. The
    published system trains its routers for it and loses nothing; this imitation does, and goes by another name."""
    return MobileConfig(**({"prefetch": NextGate(1), "miss": p.Foretold()} | fields))


def buddymoe(
    buddies: p.Buddies, *, tau: float = 0.95, beta: float = 0.6, rho: int = 3, eta: float = 0.0, **fields
) -> MobileConfig:
    """BuddyMoE (arXiv 2511.10054): an absent expert's most frequent companion runs in its place, behind two gates.

    Args:
        buddies: lists, such as `Buddies.from_trace` makes.   tau, beta, rho, eta: see `policies.Buddy`.
    """
    return MobileConfig(**({"miss": p.Buddy(buddies, tau, beta, rho, eta)} | fields))


def smoe(a: float = 0.25, *, tokens: int = 16, **fields) -> MobileConfig:
    """SMoE, "Enabling MoE on the Edge" (arXiv 2508.18983): experts of almost the same score stand in for each other.
    Where the paper computes some of the remaining misses on the host, all are fetched.

    Args:
        a: what is almost the same, see `NearScore`.   tokens: see `MeanScore`.
    """
    chosen = {"prefetch": p.TopScore(a), "miss": p.NearScore(a), "evict": PredictedReuse(p.MeanScore(tokens))}
    return MobileConfig(**(chosen | fields))


def anybody(seed: int = 0, **fields) -> MobileConfig:
    """BuddyMoE's baseline "Random": any resident runs in an absent expert's place."""
    return MobileConfig(**({"miss": p.Anybody(seed)} | fields))


def drop(**fields) -> MobileConfig:
    """Absent experts are left out, but for the best one where nobody is there."""
    return MobileConfig(**({"miss": p.Drop()} | fields))


__all__ = [
    "adapmoe",
    "anybody",
    "big",
    "buddymoe",
    "drop",
    "early_routing",
    "expertflow",
    "finemoe",
    "lexi",
    "little",
    "mobile",
    "moe_infinity",
    "next_gate",
    "on_demand",
    "smoe",
    "speculative",
]
