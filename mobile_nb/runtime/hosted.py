"""Experts that the host computes, because a miss policy says so. Knows nothing about why.

Legend: h experts of a token on the host · T tokens · K experts routed to · H hidden.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..model.adapters import MoELayer
from ..model.experts import HostExperts


class HostUnit:
    """Computes experts on the host; each layer's are made ready when they are first asked for.

    Args:
        slots: of each layer, `model.decoded.Pools`, which know in what form an expert lies there; may be filled later.
    """

    def __init__(self, layers: list[MoELayer], slots: list):
        self._layers, self._slots = layers, slots
        self._experts: dict[int, HostExperts] = {}

    def clear(self) -> None:
        """Lets go of the experts."""
        self._experts.clear()

    def take(self, at: int, hidden: torch.Tensor, weights: torch.Tensor, ids: list[int]) -> Callable[[], torch.Tensor]:
        """Takes hidden [1, H] and the weights [1, h] of experts `ids` of a layer to the host. Returns what computes
        their weighted sum [1, H] there and brings it back, to be called once the device has its work."""
        compute, here, heavy = self._of(at), hidden.to("cpu"), weights.to("cpu")
        return lambda: compute(here, ids, heavy).to(hidden.device, non_blocking=True)

    def take_several(self, at: int, hidden, index, weights, ids: list[int]) -> Callable[[], torch.Tensor]:
        """The same of several tokens: hidden [T, H], index and weights [T, K], of which `ids` are the host's."""
        compute, *here = self._of(at).several, *(each.to("cpu") for each in (hidden, index, weights))
        return lambda: compute(*here, ids).to(hidden.device, non_blocking=True)

    def _of(self, at: int) -> HostExperts:
        if at not in self._experts:
            self._experts[at] = HostExperts(self._layers[at].experts, self._slots[at].on_host)
        return self._experts[at]


__all__ = ["HostUnit"]
