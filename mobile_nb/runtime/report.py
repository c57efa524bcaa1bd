"""The engine's account of itself: one row a layer."""

from __future__ import annotations

from ..trace import Trace
from ..vocabulary import BIG, LITTLE
from .serve import Server


def report(server: Server, trace: Trace):
    """A pandas frame, one row a MoE layer, over everything since the model was offloaded.

    Columns: layer, slots, resident, requests, hits, late (hits that had to wait for their prefetch), misses, host
    (computed on the host: hits + misses + host = requests), hit_rate, prefetches, used, wasted (evicted unused),
    gb_moved. `.attrs` holds the conditions and, where drafts are verified, `accepted_per_verification`: drafts that
    stayed for each big pass that wrote, NaN before the first.
    """
    from .frames import Report

    cache, counts = server.scheduler.cache, {name: c[0] for name, c in server.scheduler.counts.items()}
    moved = server.scheduler.fetches[0] @ [server.costs.bytes_of(form) for form in range(len(server.costs.coded))]
    frame = Report(
        {
            "layer": [layer.name for layer in server.layers],
            "slots": cache.sizes[0].sum(axis=1),
            "resident": (cache.expert_in[0] >= 0).sum(axis=1),
            "requests": counts["requests"],
            "hits": counts["hits"],
            "late": counts["late"],
            "misses": counts["misses"],
            "host": counts["host"],
            "hit_rate": counts["hits"] / counts["requests"].clip(1),
            "prefetches": counts["prefetches"],
            "used": counts["used"],
            "wasted": counts["wasted"],
            "gb_moved": moved / 1e9,
        }
    )
    frame.attrs.update(trace.conditions)
    if server.config.drafts:
        frame.attrs["accepted_per_verification"] = accepted_per_verification(trace)
    return frame


def accepted_per_verification(trace: Trace) -> float:
    """Drafts that stayed, for each big pass after the prompt that wrote."""
    wrote = [done.mode for done in trace.passes if done.token_id >= 0 and done.step > 0]
    return wrote.count(LITTLE) / wrote.count(BIG) if BIG in wrote else float("nan")


__all__ = ["accepted_per_verification", "report"]
