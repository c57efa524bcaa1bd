"""Hit rates over cache sizes, without time: what slots buy, and what no policy can beat.

Legend: L MoE layers · E experts · S slots.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..memory.scheduler import COUNTERS
from ..policies import LRU, Nothing, PerLayer
from ..policies.evict import Evict
from ..runtime.config import MobileConfig
from ..runtime.layout import costed, layout
from ..runtime.replay import COMPILED
from ..runtime.tape import Tape
from ..trace import Trace
from ..vocabulary import whole


def hit_curve(trace: Trace, evict: Evict | None = None, slots=None, *, config: MobileConfig | None = None):
    """Hit rate of an on-demand cache by its number of slots.

    For LRU all sizes come from one walk through the trace, by stack distance (Mattson et al. 1970), where every pass's
    experts fit into the slots; other policies, and smaller sizes, are replayed one by one.

    Args:
        evict: LRU() by default; LFU() or Belady(), the bound.
        slots: sizes; all from 1 to E by default.
        config: count and keep, as in `replay`; by default those of the recording's big passes.

    Returns:
        A frame: slots, hit_rate over all passes, and evict, the policy's name.
    """
    import pandas as pd

    from ..memory.stack import stack_distances

    tape = Tape(trace)
    config = replace(MobileConfig() if config is None else config, prefetch=Nothing())
    evict = LRU() if evict is None else evict
    if type(evict) not in COMPILED:
        known = ", ".join(kind.__name__ for kind in COMPILED)
        raise TypeError(f"hit_curve knows {known}; replay other policies one size at a time, got {evict!r}.")
    sizes = list(range(1, tape.experts + 1)) if slots is None else [whole("slots", size) for size in slots]
    laid = layout(tape, tape.select(config), config)
    largest = int(np.diff(laid["asked_at"]).max())
    rates = dict.fromkeys(sizes)
    if isinstance(evict, LRU):
        found = stack_distances(laid["asked_at"], laid["asked"], tape.layers, tape.experts)
        hits = found.cumsum() / max(1, len(laid["asked"]))
        rates |= {size: float(hits[size - 1]) for size in sizes if largest <= size < tape.experts}
    for size in sizes:
        if rates[size] is None:
            rates[size] = _played(tape, laid, size, COMPILED.index(type(evict)))
    return pd.DataFrame({"slots": sizes, "hit_rate": [rates[size] for size in sizes], "evict": type(evict).__name__})


def slots_by_layer(trace: Trace, total: int, *, config: MobileConfig | None = None) -> list[int]:
    """Slots of each layer that sum to `total` and load least, for `MobileConfig.slots`: AdapMoE (arXiv 2408.10284).

    The paper estimates loads from hit probabilities; here every layer's LRU is replayed on the trace at every size, so
    the sizes are the best for that text. They are found by dynamic programming.

    Args:
        total: slots of all layers together, from L to L times E.   config: as in `hit_curve`.
    """
    from ..memory.compiled import play

    tape = Tape(trace)
    config = replace(MobileConfig() if config is None else config, prefetch=Nothing())
    script = costed(layout(tape, tape.select(config), config), None)
    loads = [
        play(script, tape.layers, tape.experts, size, 1.0, 0).counts[:, COUNTERS.index("misses")].sum(axis=0)
        for size in range(1, tape.experts + 1)
    ]
    return list(PerLayer.least_loss(np.stack(loads, axis=1), total).runs)


def _played(tape: Tape, laid: dict, slots: int, leaves: int) -> float:
    """Hit rate of one size: nothing is prefetched, so time decides nothing."""
    from ..memory.compiled import play

    counts = play(costed(laid, None), tape.layers, tape.experts, slots, 1.0, leaves).counts
    hits, requests = (counts[:, COUNTERS.index(name)].sum() for name in ("hits", "requests"))
    return float(hits / max(1, requests))


__all__ = ["hit_curve", "slots_by_layer"]
