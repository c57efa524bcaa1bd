"""Misses that ask the router: a resident of almost the same score runs instead, or the next best, or an early guess."""

from __future__ import annotations

from dataclasses import dataclass

from ...vocabulary import number
from ..view import View
from .ask import substituted


@dataclass(frozen=True)
class NearScore:
    """SMoE, "Enabling MoE on the Edge" (arXiv 2508.18983): an absent expert that only just made it into the top k is
    replaced by a resident that only just did not.

    b is the (k+1)-th score. An asked expert below (1 + a) b may be replaced, best first, by the best resident of at
    least (1 - a) b; the others are fetched. No calibration is needed. Published as b exclusive; we let the (k+1)-th
    expert itself stand in [inference]. It takes over the weight of whom it replaces [inference].

    Attributes:
        a: half width of "almost the same", relative to b (0.25 in the paper's accuracy table).
    """

    a: float = 0.25

    lossless = False

    def __post_init__(self):
        number("NearScore.a", self.a, low=0, hint="a width relative to the score of the first expert left out")

    def serve(self, experts, weights, resident, view: View) -> list[int | None]:
        if all(resident):
            return list(experts)
        scores = view.scores(view.at)
        left_out = [score for expert, score in enumerate(scores) if expert not in experts]
        b = max(left_out, default=0.0)

        def choose(expert: int, free: list[int]) -> int | None:
            if scores[expert] >= (1 + self.a) * b:
                return None
            near = (j for j in free if scores[j] >= (1 - self.a) * b)
            return max(near, key=lambda j: (scores[j], -j), default=None)

        return substituted(experts, resident, view, choose)


@dataclass(frozen=True)
class NextRanked:
    """eMoE (arXiv 2503.06823): an absent expert is replaced by the best-scored resident that was not asked for."""

    lossless = False

    def serve(self, experts, weights, resident, view: View) -> list[int | None]:
        if all(resident):
            return list(experts)
        scores = view.scores(view.at)
        return substituted(experts, resident, view, lambda _, free: max(free, key=lambda j: (scores[j], -j)))


@dataclass(frozen=True)
class Foretold:
    """What the router said ahead of time is what runs, each in the place and with the weight of its rank [inference].

    Pre-gated MoE (arXiv 2308.12066) trains routers that decide for the next block. This is the imitation without
    training, which is lossy; Commit MoE and "Speculating Experts" do so too. It needs a prefetcher that reads gates
    ahead (`NextGate`); layers that nobody asked ahead route as usual.
    """

    lossless = False

    def serve(self, experts, weights, resident, view: View) -> list[int | None]:
        said = view.foretold(view.at)
        return list(experts if said is None else said[: len(experts)])


__all__ = ["Foretold", "NearScore", "NextRanked"]
