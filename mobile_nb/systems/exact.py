"""Systems that leave the text alone: other prefetches, evictions and places to compute."""

from __future__ import annotations

import math
from dataclasses import replace

from .. import policies as p
from ..policies import NextGate, PredictedReuse
from ..runtime.config import MobileConfig


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


def fiddler(popularity: p.Popularity, ratio: float, crossover: int | None = None, **fields) -> MobileConfig:
    """Fiddler (arXiv 2402.07033): the most popular experts are on the device for good, and an absent one is computed on
    the host where that takes less time than fetching it. In a prompt that depends on how many of its tokens ask for
    the expert: what more of them ask for than `crossover` is fetched, through one slot of each layer.

    Args:
        popularity: such as `Popularity.from_trace` makes.
        ratio, crossover: see `OnHost`; measured ones are those of `policies.OnHost.of(Hardware.measure(), geometry)`.
            Without a crossover the host's seconds are taken to grow with the tokens, as the paper has it, and a fetch's
            not to [inference]: it is then the last number of tokens below 1 / ratio. 0: prompts fetch all they miss.
    """
    miss = p.OnHost(ratio)
    miss = replace(miss, crossover=math.ceil(1 / miss.ratio) - 1 if crossover is None else crossover)
    return MobileConfig(**({"miss": miss, "evict": p.Popular(popularity)} | fields))


__all__ = ["expertflow", "fiddler", "finemoe", "moe_beyond", "moe_infinity", "next_gate"]
