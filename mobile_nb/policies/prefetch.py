"""Question 3: which experts to fetch before they are asked for?

A prefetcher answers with `Wanted` lists, in the order in which the link should take them. What is resident already is
skipped, what is asked for on demand overtakes, and what has not started when its layer comes is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..vocabulary import Wanted, whole


class View(Protocol):
    """What may be known while a token is computed. Ids are best first."""

    layers: int  # MoE layers of the model
    mode: str  # "little" or "big"
    evicted: Sequence[Sequence[int]] | None  # per layer, the router's K experts of the evicted token; None: no eviction

    def gate(self, layer: int) -> Sequence[int]:
        """The K experts that `layer`'s router gives on the hidden state at hand."""
        ...


class Prefetch(Protocol):
    """Asked with layer -1 before a pass, and then after each layer's routing is known."""

    def wanted(self, layer: int, view: View) -> list[Wanted]: ...


@dataclass(frozen=True)
class Nothing:
    """On-demand only."""

    def wanted(self, layer: int, view: View) -> list[Wanted]:
        return []


@dataclass(frozen=True)
class EvictedRouter:
    """MoBiLE (Sec. III-B): the evicted token's router already scored the experts of every layer; fetch its best.

    Attributes:
        ahead: layers to be ahead of the computation; None for all of them at once, in layer order. The paper names
            2 to 3 for slow links; scores of all layers are there, so nothing but space forbids more.
        experts: how many of each layer's list; None for all K that the big model will run.
    """

    ahead: int | None = None
    experts: int | None = None

    def __post_init__(self):
        for field in ("ahead", "experts"):
            if getattr(self, field) is not None:
                whole(f"EvictedRouter.{field}", getattr(self, field))

    def wanted(self, layer: int, view: View) -> list[Wanted]:
        if view.evicted is None:
            return []
        reach = view.layers if self.ahead is None else self.ahead
        layers = range(reach) if layer < 0 else range(layer + reach, layer + reach + 1)
        return [Wanted(at, tuple(view.evicted[at][: self.experts])) for at in layers if at < view.layers]


@dataclass(frozen=True)
class NextGate:
    """mixtral-offloading (arXiv 2312.17238): the next layer's router, read on this layer's hidden state.

    Attributes:
        ahead: how many layers ahead to look.
        experts: how many of that router's best; None for all K.
    """

    ahead: int = 1
    experts: int | None = None

    def __post_init__(self):
        whole("NextGate.ahead", self.ahead)
        if self.experts is not None:
            whole("NextGate.experts", self.experts)

    def wanted(self, layer: int, view: View) -> list[Wanted]:
        at = layer + self.ahead
        if layer < 0 or at >= view.layers:
            return []
        return [Wanted(at, tuple(view.gate(at)[: self.experts]))]


__all__ = ["EvictedRouter", "NextGate", "Nothing", "Prefetch", "View"]
