"""The literature as a table: each published system is one choice for each of the six questions.

    system          count            keep        prefetch                  miss              evict            exact?
    big             K                -           -                         wait              LRU              yes
    on_demand       K                -           -                         wait              LRU              yes
    little          K/2              always      -                         wait              LRU              no
    mobile          K/2 or K         p(best) ≥ γ evicted router            wait              LRU              no
    speculative     K/2 drafts, K    verified    evicted routers           wait              LRU              yes
    moe_speq        K                verified    drafts' routers           low bits, drafts  LRU              yes
    next_gate       K                -           next gate                 wait              LRU              yes
    moe_infinity    K                -           request matrix            wait              request matrix   yes
    finemoe         K                -           iteration maps            wait              map × frequency  yes
    expertflow      K                -           successors, how far: ±1   wait              two-level LRU    yes
    moe_beyond      K                -           learned, the next layer   wait              LRU              yes
    adapmoe         by sensitivity   -           nearest gate that misses  wait              LRU              no
    lexi            K of each layer  -           -                         wait              LRU              no
    fiddler         K                -           -                         host, or wait     none: popular    yes
    early_routing   K                -           next gate                 run the foretold  LRU              no
    buddymoe        K                -           -                         buddy, gated      LRU              no
    smoe            K                -           next gate's top scores    near score, host  mean score       no
    premoe, emoe    K of a subset    -           -                         next ranked       none: a subset   no
    anybody, drop   K                -           -                         random, nobody    LRU              no
    quantized       K                -           -                         wait, fewer bits  LRU              no
    mc              by weight        -           -                         wait, their bits  LRU              no
    hobbit          K                -           next gate, two forms      low bits, nobody  LRU, LFU, LHU    no

Every function takes `slots=` or `budget_gb=` (and any other field of `MobileConfig`) beside its own parameters. What a
system learned beforehand comes first, made from a trace or measured on the model.
"""

from __future__ import annotations

from collections.abc import Sequence

from . import policies as p
from .policies import Always, EvictedRouter, Fraction, MaxProbability, NextGate, PredictedReuse, TopK
from .policies.codec import Codec, Form
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


def moe_beyond(network: p.Network, *, context: int = 16, experts: int | None = None, **fields) -> MobileConfig:
    """MoE-Beyond (arXiv 2508.17137): a small Transformer on router inputs names the next layer's experts. Published for
    a cache over all layers that takes predictions in for nothing; here they travel over the link like all others.

    Args:
        network: the honest version, such as `Network.shipped("tiny-olmoe")`.   context: see `Learned`.
        experts: how many of the layer; None for K, as in the paper.
    """
    return MobileConfig(**({"prefetch": p.ByPriority(p.Learned(network, context), 1, experts)} | fields))


def fiddler(popularity: p.Popularity, ratio: float, **fields) -> MobileConfig:
    """Fiddler (arXiv 2402.07033): the most popular experts are on the device for good, and an absent one is computed on
    the host where that takes less time than fetching it. The paper decides so for prompts too, by how many of their
    tokens ask for an expert; here prompts fetch [inference], through one slot of each layer.

    Args:
        popularity: such as `Popularity.from_trace` makes.
        ratio: seconds of an expert on the host over those of fetching and computing it, see `OnHost`; the measured
            crossover is `policies.OnHost.of(Hardware.measure(), geometry).ratio`.
    """
    return MobileConfig(**({"miss": p.OnHost(ratio), "evict": p.Popular(popularity)} | fields))


# -- lossy: other counts and misses ----------------------------------------------------------------------------------


def adapmoe(sensitivity: Sequence[float], threshold: float, *, ahead: int = 3, **fields) -> MobileConfig:
    """AdapMoE (arXiv 2408.10284): fewer experts where little depends on them. Its cache sizes for each layer are those
    of `slots=`, a number for each, such as `analysis.curves.slots_by_layer` finds.

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


def smoe(a: float = 0.25, *, tokens: int = 16, host: float | None = None, **fields) -> MobileConfig:
    """SMoE, "Enabling MoE on the Edge" (arXiv 2508.18983): experts of almost the same score stand in for each other.
    The paper splits the misses that remain between host and link; here that is so where `host` is given.

    Args:
        a: what is almost the same, see `NearScore`.   tokens: see `MeanScore`.
        host: seconds of an expert on the host over those of fetching and computing it, see `OnHost` and
            `Costs.host_ratio`; the misses are then split so that both end together. None: all are fetched.
    """
    near = p.NearScore(a)
    miss = near if host is None else p.OnHost(host, balance=True, before=near)
    chosen = {"prefetch": p.TopScore(a), "miss": miss, "evict": PredictedReuse(p.MeanScore(tokens))}
    return MobileConfig(**(chosen | fields))


def premoe(popularity: p.Popularity, **fields) -> MobileConfig:
    """PreMoe (arXiv 2505.17639): a task's own experts are on the device, and while it writes only they run.

    The paper loads the experts of the highest expected selection score on the task, and no others. Here the device
    holds them from the start, and the best-scored resident that was not asked for takes an absent expert's place and
    weight [inference]. Prompts run all experts [inference]: they pass through one slot of each layer, and whoever came
    last may stand in too. With fewer slots than a token asks for, the rest is fetched.

    Args:
        popularity: of the task, such as `Popularity.from_trace(trace, by_weight=True)` of a few problems: sums of the
            router's weights, which stand for the expected score [inference].
    """
    return MobileConfig(**({"miss": p.NextRanked(), "evict": p.Popular(popularity)} | fields))


def emoe(popularity: p.Popularity, **fields) -> MobileConfig:
    """eMoE (arXiv 2503.06823): the experts that the next requests are expected to need stay on the device for 20 to 40
    prompts, and a miss uses the next-ranked resident.

    The paper's predictor is a trained XLNet; here the set is what the most recent requests used most [inference].
    `Engine.change` with newer counts, between two texts, makes the next set. Otherwise as `premoe`, prompts included.

    Args:
        popularity: of recent requests, such as `Popularity.from_trace(trace, latest=40)`.
    """
    return MobileConfig(**({"miss": p.NextRanked(), "evict": p.Popular(popularity)} | fields))


def quantized(codec: Codec, **fields) -> MobileConfig:
    """On-demand loading of quantised experts, as mixtral-offloading (arXiv 2312.17238) and others do: fewer bytes a
    fetch, and more slots in the same memory. Theirs are calibrated (HQQ); these are rounded to the nearest.

    Args:
        codec: such as `policies.Int4()`.
    """
    return MobileConfig(**({"codec": codec} | fields))


def mc(codec: p.PerExpert, *, least: float = 0.3, **fields) -> MobileConfig:
    """MC, "Mixture Compressor" (arXiv 2410.06270): more bits for experts that matter more, and experts of small weight
    left out. Its bits are 1 to 3 a weight, calibrated (GPTQ); ours are 8, 4 and 2, rounded to the nearest.

    Args:
        codec: such as `policies.PerExpert.from_trace` makes.   least: see `WeightRatio`.
    """
    return MobileConfig(**({"count": p.WeightRatio(least), "codec": codec} | fields))


def hobbit(
    t1: float = 0.6, t2: float = 0.9, *, low: Form | None = None, low_slots: int = 4, ahead: int = 1, **fields
) -> MobileConfig:
    """HOBBIT (arXiv 2411.01433): absent experts that weigh little come in few bits, or not at all.

    Args:
        t1, t2: see `LowBits`.   low: the second form; None for four bits.
        low_slots: slots of it in each layer; `budget_gb` is for those of both forms together.
        ahead: layers that the prefetch looks ahead. The paper stacks several gates [inference: one].
    """
    miss = p.LowBits(t1, t2)
    chosen = {
        "prefetch": p.InForm(NextGate(ahead), miss),
        "miss": miss,
        "evict": p.Weighted(0.2, 0.2, 0.8),  # a miss in the first form costs four times one in the second
        "codec": p.Mixed(low=p.Int4() if low is None else low, low_slots=low_slots),
    }
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
    "emoe",
    "expertflow",
    "fiddler",
    "finemoe",
    "hobbit",
    "lexi",
    "little",
    "mc",
    "mobile",
    "moe_beyond",
    "moe_infinity",
    "moe_speq",
    "next_gate",
    "on_demand",
    "premoe",
    "quantized",
    "smoe",
    "speculative",
]
