"""Prefetchers that read gates ahead and choose what to make of them: AdapMoE, SMoE and HOBBIT."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...vocabulary import Wanted, number, whole
from ..miss import LowBits, Miss
from ..view import View
from .ask import Prefetch
from .known import NextGate


@dataclass(frozen=True)
class NearestAbsent:
    """AdapMoE (arXiv 2408.10284): the next layer's gate on the hidden state at hand; where all that it names is there
    already, the gate of the layer after, and so on. Its trained gate for the first layer is left out: this library
    trains nothing.

    Attributes:
        ahead: layers to look ahead at most (2 to 3 in the paper).
        experts: how many of each gate's best; None for all K.
    """

    ahead: int = 3
    experts: int | None = None

    revises = True

    def __post_init__(self):
        whole("NearestAbsent.ahead", self.ahead)
        if self.experts is not None:
            whole("NearestAbsent.experts", self.experts)

    def wanted(self, layer: int, view: View) -> list[Wanted]:
        found = []
        for at in range(layer + 1, min(view.layers, layer + 1 + self.ahead)) if layer >= 0 else ():
            said, here = tuple(view.gate(at)[: self.experts]), set(view.resident(at))
            found.append(Wanted(at, said))  # those that are there are kept
            if not here.issuperset(said):
                break
        return found


@dataclass(frozen=True)
class TopScore:
    """SMoE (arXiv 2508.18983): of the next layer only those experts that nobody may replace, which score at least
    (1 + a) b on its gate; b is the (k+1)-th score. Live only: a trace keeps the scores of chosen experts alone.

    Attributes:
        a: as in `NearScore`.   ahead: which layer is "next".
    """

    a: float = 0.25
    ahead: int = 1

    def __post_init__(self):
        number("TopScore.a", self.a, low=0)
        whole("TopScore.ahead", self.ahead)

    def wanted(self, layer: int, view: View) -> list[Wanted]:
        at = layer + self.ahead
        if layer < 0 or at >= view.layers:
            return []
        scores = view.scores(at)
        ranked = sorted(range(view.experts), key=lambda e: (-scores[e], e))
        b = scores[ranked[view.top_k]] if view.top_k < view.experts else 0.0
        return [Wanted(at, tuple(e for e in ranked[: view.top_k] if scores[e] >= (1 + self.a) * b))]


@dataclass(frozen=True)
class InForm:
    """HOBBIT (arXiv 2411.01433): another prefetcher says whom, and a miss policy in what form, as if all of them were
    absent and had the weights that their layer's gate gives on the hidden state at hand. Live only.

    Attributes:
        prefetch: whom to fetch, such as `NextGate`.   miss: in what form, such as `LowBits`.
    """

    prefetch: Prefetch = field(default_factory=NextGate)
    miss: Miss = field(default_factory=LowBits)

    def wanted(self, layer: int, view: View) -> list[Wanted]:
        found = []
        for one in self.prefetch.wanted(layer, view):
            scores = view.scores(one.layer)
            ranked = sorted(one.experts, key=lambda expert: (-scores[expert], expert))
            answers = self.miss.serve(ranked, [scores[e] for e in ranked], [False] * len(ranked), view)
            found.append(Wanted(one.layer, tuple(answer for answer in answers if answer is not None)))
        return found


__all__ = ["InForm", "NearestAbsent", "TopScore"]
