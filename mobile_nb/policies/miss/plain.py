"""Misses that need to know nothing: wait for the expert, leave it out, or take anybody who is there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...vocabulary import whole
from ..view import View
from .ask import substituted


@dataclass(frozen=True)
class Wait:
    """Fetch it and wait: exact."""

    lossless = True
    fetches_all = True

    def serve(self, experts, weights, resident, view: View | None = None) -> list[int | None]:
        return list(experts)


@dataclass(frozen=True)
class Drop:
    """Leave it out, but fetch the best one if none is there; the other weights stay as they are."""

    lossless = False

    def serve(self, experts, weights, resident, view: View | None = None) -> list[int | None]:
        kept = [expert if there else None for expert, there in zip(experts, resident, strict=True)]
        return kept if any(resident) else [experts[0], *kept[1:]]


@dataclass(frozen=True)
class Anybody:
    """A resident drawn at random runs in its place: the floor under every rule of substitution (BuddyMoE, "Random").

    Attributes:
        seed: of the draw, which depends on the layer and the asked experts and on nothing else.
        most: substitutions a token and layer at most; None for all that are absent.
    """

    seed: int = 0
    most: int | None = None

    lossless = False

    def __post_init__(self):
        whole("Anybody.seed", self.seed, low=0)
        if self.most is not None:
            whole("Anybody.most", self.most, low=0)

    def serve(self, experts, weights, resident, view: View) -> list[int | None]:
        random = np.random.default_rng((self.seed, view.at, *experts))
        return substituted(experts, resident, view, lambda _, free: int(random.choice(sorted(free))), self.most)


__all__ = ["Anybody", "Drop", "Wait"]
