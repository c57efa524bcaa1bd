"""How much of the big pass could be foreseen, by whom, and what became of what was prefetched. Knows no torch.

Legend: P passes · L MoE layers · K experts routed to.
"""

from __future__ import annotations

import numpy as np

from ..memory.scheduler import COUNTERS
from ..runtime.replay import Replay
from ..trace import Trace
from ..vocabulary import BIG, LITTLE, MobileError


def foreseen(trace: Trace, gamma: float = 0.7):
    """What share of the big pass's K experts each predictor names, by layer; all name K, so precision is recall.

    The evicted token's router (MoBiLE, Sec. III-B); the layers' own gates, read one to three layers early
    (mixtral-offloading), where the recording holds them (`ReadGates`); the token before; and the K most frequent
    experts of the layer, which is what a static list would hold.

    Args:
        trace: a recording that holds both passes of the tokens at hand.
        gamma: only tokens whose little version was less sure than this, as MoBiLE would ask.

    Returns:
        A frame: predictor, layer, precision, fallbacks.

    Raises:
        MobileError: no token fell back.
    """
    import pandas as pd

    pairs, before, last = [], [], None
    for little, big in zip(trace.passes, trace.passes[1:], strict=False):
        alone = big.mode == BIG and big.ids.shape[1] == 1  # it did not read several drafts at once
        if little.mode == LITTLE and alone and (little.request, little.step) == (big.request, big.step):
            if little.confidence < gamma:
                pairs.append((little, big))
                before.append(last)
            last = big.ids[:, 0]
        elif little.mode == LITTLE:
            last = little.ids[:, 0]
        else:
            last = little.ids[:, -1] if little.mode != BIG else last
    if not pairs:
        raise MobileError(f"no token of this trace fell back below gamma = {gamma:g}, so there is nothing to foresee.")
    truth = np.array([big.ids[:, 0] for _, big in pairs])  # [P, L, K]
    layers, k = truth.shape[1:]
    experts = trace.conditions["experts"]
    counts = np.array([np.bincount(truth[:, layer].ravel(), minlength=experts) for layer in range(layers)])
    usual = np.argsort(-counts, axis=1, kind="stable")[:, :k]
    guesses = {"evicted token's router": np.array([little.ids[:, 0] for little, _ in pairs])}
    for ahead in range(1, 1 + min((0 if big.gates is None else len(big.gates)) for _, big in pairs)):
        gates = np.array([big.gates[ahead - 1] for _, big in pairs])
        name = "next layer's gate" if ahead == 1 else f"gate {ahead} layers ahead"
        guesses[name] = np.where(np.arange(layers)[:, None] >= ahead, gates, -1)
    guesses["the token before"] = np.array(before)
    guesses["most frequent"] = np.broadcast_to(usual, truth.shape)
    rows = []
    for name, guess in guesses.items():
        named = (truth[..., None] == guess[..., None, :]).any(axis=3).mean(axis=(0, 2))  # [L]
        known = (guess >= 0).any(axis=(0, 2))
        rows += [
            {"predictor": name, "layer": layer, "precision": float(named[layer]), "fallbacks": len(pairs)}
            for layer in np.flatnonzero(known)
        ]
    frame = pd.DataFrame(rows)
    frame.attrs.update(trace.conditions)
    return frame


def prefetched(replayed: Replay):
    """What became of the prefetched experts, by layer: numbers of experts a fallback.

    Returns:
        A frame, a row a layer: asked (by the big pass), prefetches (started), in_time, late (asked for while under
        way), wasted (evicted before anybody asked), there (asked for and resident without a prefetch), missed.
        `.attrs` holds the conditions and `fallbacks`.
    """
    import pandas as pd

    wrote = replayed.selection.wrote
    modes = np.array([replayed.tape.passes[i].mode for i in replayed.selection.index])
    again = (modes == BIG) & np.concatenate([[False], ~wrote[:-1]])
    written = replayed.tape.steps[replayed.selection.index] > 0
    fallbacks = max(1, int(again.sum()))
    here = {name: replayed.played.counts[again, n].sum(axis=0) for n, name in enumerate(COUNTERS)}
    everywhere = replayed.played.counts[written].sum(axis=0)  # waste shows later, and some are used later
    used = everywhere[COUNTERS.index("used")]
    frame = pd.DataFrame(
        {
            "layer": np.arange(len(used)),
            "asked": here["requests"] / fallbacks,
            "prefetches": everywhere[COUNTERS.index("prefetches")] / fallbacks,
            "in_time": (used - here["late"]) / fallbacks,
            "late": here["late"] / fallbacks,
            "wasted": everywhere[COUNTERS.index("wasted")] / fallbacks,
            "there": (here["hits"] - here["used"]) / fallbacks,
            "missed": here["misses"] / fallbacks,
        }
    )
    frame.attrs.update(replayed.conditions)
    frame.attrs["fallbacks"] = int(again.sum())
    return frame


__all__ = ["foreseen", "prefetched"]
