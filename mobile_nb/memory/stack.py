"""LRU at every cache size in one walk: an expert is a hit wherever the cache holds more than were asked for since.

Mattson, Gecsei, Slutz and Traiger, "Evaluation techniques for storage hierarchies" (1970). Compiled by numba.

Legend: P passes · L MoE layers · E experts.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True)
def stack_distances(asked_at, asked, layers, experts):
    """How many requests found their expert at each depth of its layer's stack of recently used ones: int [E].

    A cache of S slots a layer hits those of depth below S, as long as all that a pass asks a layer for fits into S.

    Args:
        asked_at, asked: as in `Script`: a pass asks for distinct experts, best first, and the best is the most recent.
    """
    found = np.zeros(experts, dtype=np.int64)
    stack, depth = np.full((layers, experts), -1), np.zeros(layers, dtype=np.int64)
    for cell in range(len(asked_at) - 1):
        layer, first, stop = cell % layers, asked_at[cell], asked_at[cell + 1]
        for i in range(first, stop):
            for place in range(depth[layer]):
                if stack[layer, place] == asked[i]:
                    found[place] += 1
                    break
        for i in range(stop - 1, first - 1, -1):
            place = 0
            while place < depth[layer] and stack[layer, place] != asked[i]:
                place += 1
            if place == depth[layer]:
                depth[layer] += 1
            for lower in range(place, 0, -1):
                stack[layer, lower] = stack[layer, lower - 1]
            stack[layer, 0] = asked[i]
    return found


__all__ = ["stack_distances"]
