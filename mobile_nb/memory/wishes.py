"""What prefetchers wish for, and what of it waits for the link.

Legend: C configurations.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import index

import numpy as np

from ..vocabulary import MobileError, Wanted


@dataclass(slots=True)
class Waiting:
    """A prefetch that waits for the link, in the configurations where `pending` [C] is True."""

    layer: int
    expert: int
    pending: np.ndarray
    since: np.ndarray


def pairs_of(wanted: Iterable[Wanted] | None, layers: int, experts: int) -> list[tuple[int, int]]:
    """A prefetcher's answer as (layer, expert), in order.

    Raises:
        MobileError: it is something else, or names a layer or an expert that does not exist.
    """
    try:
        pairs = [(index(w.layer), index(e)) for w in wanted or () for e in w.experts]
        strange = [pair for pair in pairs if not (0 <= pair[0] < layers and 0 <= pair[1] < experts)]
    except (TypeError, AttributeError):
        pairs, strange = [], [wanted]
    if strange:
        raise MobileError(
            f"a prefetcher must return a list of Wanted(layer, experts) with layers from 0 to {layers - 1} and "
            f"experts from 0 to {experts - 1}, got {reprlib.repr(strange[0])}."
        )
    return pairs


def by_rank(pairs: Mapping[int, list[tuple[int, int]]]) -> Iterator[tuple[tuple[int, int], list[int]]]:
    """Wishes of several configurations, in order: each (layer, expert), and whose it is at the same rank."""
    for rank in range(max(map(len, pairs.values()), default=0)):
        alike: dict[tuple[int, int], list[int]] = {}
        for row, each in pairs.items():
            if rank < len(each):
                alike.setdefault(each[rank], []).append(row)
        yield from alike.items()


__all__ = ["Waiting", "by_rank", "pairs_of"]
