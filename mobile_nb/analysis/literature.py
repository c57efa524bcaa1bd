"""What the comparison runs: every published system on one small world (`analysis.world`), and its claim.

Claims are the papers' own, on their hardware and models; see the notebook for ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .. import policies as p
from .. import systems
from ..hardware import Geometry
from ..runtime.config import MobileConfig
from .world import CARD, TASKS, World


@dataclass(frozen=True)
class Entry:
    """A row of the comparison.

    Attributes:
        make: (world, slots) -> the configuration, or None where the world lacks what it takes. `slots` are of whole
            experts; a system with smaller forms gets as many bytes.
        paper, claim: where it is from, and what it says of itself.
        exact: it writes what the full model writes.   fixed: what it writes does not depend on the device.
        also: shares of the experts on the device that its paper has and the others do not.
    """

    make: Callable[[World, int], MobileConfig | None]
    paper: str
    claim: str
    exact: bool = False
    fixed: bool = False
    also: tuple[float, ...] = ()


def _bytes(world: World, slots: int) -> float:
    """GB of so many whole experts in every layer."""
    geometry = Geometry.of(world.geometry)
    return slots * geometry.moe_layers * geometry.expert_bytes / 1e9


def _adapmoe(world: World, slots: int) -> MobileConfig:
    from .curves import slots_by_layer

    each = slots_by_layer(world.trace, slots * len(world.sensitivity))
    middle = sorted(world.sensitivity)[len(world.sensitivity) // 2]
    return systems.adapmoe(world.sensitivity, 0.02 * middle, slots=each)


def _hobbit(world: World, slots: int) -> MobileConfig:
    return systems.hobbit(low_slots=slots, budget_gb=_bytes(world, slots))


ENTRIES: dict[str, Entry] = {
    "on demand, LRU": Entry(lambda w, s: systems.on_demand(slots=s), "-", "the baseline", exact=True, also=(3 / 8,)),
    "next gate": Entry(
        lambda w, s: systems.next_gate(slots=s), "2312.17238", "Mixtral, T4: 1.33 x by prefetching", exact=True
    ),
    "MoE-Infinity": Entry(
        lambda w, s: systems.moe_infinity(p.Requests.from_trace(w.trace), slots=s),
        "2401.14361", "DeepSeek-V2-Lite, A5000: 155 ms a token, vLLM 485", exact=True,
    ),
    "FineMoE": Entry(
        lambda w, s: systems.finemoe(p.Maps.from_trace(w.trace), slots=s),
        "2502.05370", "time a token -22 % against MoE-Infinity", exact=True,
    ),
    "ExpertFlow": Entry(
        lambda w, s: systems.expertflow(p.Successors.from_trace(w.trace), slots=s),
        "2510.26730", "stall -98.5 %", exact=True,
    ),
    "MoE-Beyond": Entry(
        lambda w, s: None if w.network is None else systems.moe_beyond(w.network, slots=s),
        "2508.17137", "hits 17 -> 72 % at 10 % capacity, no time given", exact=True,
    ),
    "Fiddler": Entry(
        lambda w, s: systems.fiddler(p.Popularity.from_trace(w.trace), w.ratio, w.host.crossover, slots=s),
        "2402.07033", "1.26 x llama.cpp on one request", exact=True,
    ),
    "speculative, K/2": Entry(lambda w, s: systems.speculative(4, slots=s), "ours", "-", exact=True),
    "MoE-SpeQ": Entry(
        lambda w, s: systems.moe_speq(4, budget_gb=_bytes(w, s)) if s >= w.experts / 2 else None,
        "2511.14102", "Phi-MoE: 2.34 x", exact=True,
    ),
    "all little": Entry(
        lambda w, s: systems.little(slots=s), "2510.12357", "55.6 % on Qwen1.5-MoE's table", fixed=True
    ),
    "MoBiLE": Entry(
        lambda w, s: systems.mobile(0.7, slots=s), "2510.12357", "1.60 to 1.72 x, within 0.3 points", fixed=True
    ),
    "BuddyMoE": Entry(
        lambda w, s: systems.buddymoe(w.buddies, slots=s),
        "2511.10054", "1.07 x at 3/4 resident, -4 points", also=(3 / 8,),
    ),
    "buddies by output": Entry(
        lambda w, s: systems.buddymoe(w.buddies_by_output, slots=s), "ours", "a comparison for BuddyMoE", also=(3 / 8,),
    ),
    "random buddy": Entry(
        lambda w, s: systems.anybody(slots=s), "2511.10054", "-18 points at 3/4 resident", also=(3 / 8,)
    ),
    "drop": Entry(lambda w, s: systems.drop(slots=s), "-", "the floor", also=(3 / 8,)),
    "SMoE": Entry(lambda w, s: systems.smoe(slots=s), "2508.18983", "time a token -48 %, -0.1 points"),
    "SMoE, half on the host": Entry(
        lambda w, s: systems.smoe(host=w.ratio, slots=s), "2508.18983", "time a token -48 %, -0.1 points"
    ),
    "early routing": Entry(
        lambda w, s: systems.early_routing(slots=s),
        "2308.12066", "1.5 x, lossless after training; untrained here", fixed=True,
    ),
    "AdapMoE": Entry(_adapmoe, "2408.10284", "1.35 x, 24 % of tokens with one expert", fixed=True),
    "LExI": Entry(lambda w, s: systems.lexi(w.fewer, slots=s), "2509.02753", "no claim on offloading", fixed=True),
    "eMoE": Entry(
        lambda w, s: systems.emoe(p.Popularity.from_trace(w.trace), slots=s), "2503.06823", "memory -80 %, time -17 %"
    ),
    "int8": Entry(
        lambda w, s: systems.quantized(p.Int8(), budget_gb=_bytes(w, s)), "2312.17238", "routing untouched", fixed=True
    ),
    "int4": Entry(
        lambda w, s: systems.quantized(p.Int4(), budget_gb=_bytes(w, s)),
        "2312.17238", "2 to 4 bits on a T4", fixed=True,
    ),
    "MC": Entry(
        lambda w, s: systems.mc(p.PerExpert.from_trace(w.trace), budget_gb=_bytes(w, s)),
        "2410.06270", "2.54 bits at -3.8 points", fixed=True,
    ),
    "FloE": Entry(
        lambda w, s: systems.floe(w.channels, budget_gb=_bytes(w, s)),
        "2505.05950", "9.3 x smaller, 2.6 x other offloaders, -4.4 to -7.6 %", fixed=True,
    ),
    "HOBBIT": Entry(_hobbit, "2411.01433", "2.30 x MoE-Infinity, at most -1 point"),
}  # fmt: skip


def premoe(world: World, task: str, slots: int) -> MobileConfig:
    """PreMoe, which knows the task."""
    return systems.premoe(p.Popularity.from_trace(world.trace_of(task), by_weight=True), slots=slots)


__all__ = ["CARD", "ENTRIES", "TASKS", "Entry", "World", "premoe"]
