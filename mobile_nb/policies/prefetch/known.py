"""Prefetchers that repeat what a router has said: of the evicted token, of the token before, or ahead of time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ...vocabulary import LITTLE, Wanted, whole
from ..view import View
from .ask import Prefetch


@dataclass(frozen=True)
class Nothing:
    """On-demand only."""

    def wanted(self, layer: int, view: View) -> list[Wanted]:
        return []


@dataclass(frozen=True)
class EvictedRouter:
    """MoBiLE (Sec. III-B): the evicted token's router already scored the experts of every layer; fetch its best.

    Of several drafted tokens, before the big model reads them: the experts of all, those that most of them name first.

    Attributes:
        ahead: layers to be ahead of the computation; None for all of them at once, in layer order. The paper names
            2 to 3 for slow links; scores of all layers are there, so nothing but space forbids more.
        experts: how many of each layer's list; None for all K that the big model will run.
    """

    ahead: int | None = None
    experts: int | None = None

    def __post_init__(self):
        for name in ("ahead", "experts"):
            if getattr(self, name) is not None:
                whole(f"{type(self).__name__}.{name}", getattr(self, name))

    def wanted(self, layer: int, view: View) -> list[Wanted]:
        return [] if view.evicted is None else _ahead(view.evicted.__getitem__, layer, view.layers, self)


@dataclass(frozen=True)
class DraftRouter:
    """MoE-SpeQ (arXiv 2511.14102): what the drafts' routers name is fetched while the drafting still goes on, for the
    big model that reads the drafts. For keeps that verify (`policies.Verified`).

    Attributes:
        experts: how many of each layer's list; None for all K of every draft.
    """

    experts: int | None = None

    revises = True

    def __post_init__(self):
        if self.experts is not None:
            whole("DraftRouter.experts", self.experts)

    def wanted(self, layer: int, view: View) -> list[Wanted]:
        if view.evicted is not None:
            return [Wanted(at, tuple(experts[: self.experts])) for at, experts in enumerate(view.evicted)]
        if view.mode != LITTLE:
            return []
        found = []
        for at in range(view.layers):
            before = list(view.drafted[at]) if view.drafted is not None else []
            now = view.routed(at)[0].tolist() if at <= layer else []
            found.append(Wanted(at, tuple(dict.fromkeys(before + now))[: self.experts]))
        return found


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


@dataclass(frozen=True)
class PreviousToken:
    """The experts that the token before was routed to: what a cache keeps anyway, and so a yardstick for guesses.

    Attributes:
        ahead, experts: as in `EvictedRouter`.
    """

    ahead: int | None = None
    experts: int | None = None

    __post_init__ = EvictedRouter.__post_init__

    def wanted(self, layer: int, view: View) -> list[Wanted]:
        return [] if view.previous is None else _ahead(view.previous.__getitem__, layer, view.layers, self)


@dataclass(frozen=True)
class Oracle:
    """What the layers ahead will ask for: the bound of every prefetcher, for replays.

    Attributes:
        ahead: layers that it may see ahead; None for the whole pass at once.
    """

    ahead: int | None = None
    experts = None

    def __post_init__(self):
        if self.ahead is not None:
            whole("Oracle.ahead", self.ahead)

    def wanted(self, layer: int, view: View) -> list[Wanted]:
        return _ahead(view.coming, layer, view.layers, self)


@dataclass(frozen=True)
class ReadGates:
    """Lets another prefetcher decide, and reads the gates of the layers ahead so that the trace holds what they say:
    with it `NextGate` can be replayed.

    Attributes:
        prefetch: who decides.
        ahead: layers ahead to read, up to.
    """

    prefetch: Prefetch = field(default_factory=Nothing)
    ahead: int = 3

    def __post_init__(self):
        whole("ReadGates.ahead", self.ahead)

    def wanted(self, layer: int, view: View) -> list[Wanted]:
        if layer >= 0:
            for at in range(layer + 1, min(layer + self.ahead, view.layers - 1) + 1):
                view.gate(at)
        return self.prefetch.wanted(layer, view)


def _ahead(known: Callable[[int], Sequence[int]], layer: int, layers: int, policy) -> list[Wanted]:
    """Experts known for all layers, as far ahead as the policy may: first those within reach, then one a layer."""
    reach = layers if policy.ahead is None else policy.ahead
    here = range(reach) if layer < 0 else range(layer + reach, layer + reach + 1)
    return [Wanted(at, tuple(known(at)[: policy.experts])) for at in here if at < layers]


__all__ = ["DraftRouter", "EvictedRouter", "NextGate", "Nothing", "Oracle", "PreviousToken", "ReadGates"]
