"""What several drafts name together, live and in a replay alike. Legend: L MoE layers · K experts routed to."""

from __future__ import annotations

from collections.abc import Sequence

from .facts import best_first


def most_named(drafts: Sequence) -> list[list[int]] | None:
    """What the routers of several drafts name, of each layer: by most of them first, then by the larger weights.

    Args:
        drafts: passes of one token each, with ids and weights [L, 1, K]; None where there is none.
    """
    if len(drafts) < 2:
        return best_first(drafts[0].ids, drafts[0].weights) if drafts else None
    found = []
    for layer in range(len(drafts[0].ids)):
        tally: dict[int, list] = {}  # expert -> [named by, weights]
        for draft in drafts:
            for expert, weight in zip(draft.ids[layer, 0].tolist(), draft.weights[layer, 0].tolist(), strict=True):
                of = tally.setdefault(expert, [0, 0.0])
                of[0], of[1] = of[0] + 1, of[1] + weight
        found.append(sorted(tally, key=lambda expert: (-tally[expert][0], -tally[expert][1])))
    return found


__all__ = ["most_named"]
