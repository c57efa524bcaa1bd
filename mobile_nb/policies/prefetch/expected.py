"""Prefetchers that fetch what a predictor expects: how far ahead, how many, and in which order.

Legend: L MoE layers · E experts · K experts routed to.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...vocabulary import Wanted, number, whole
from ..predict import Predictor
from ..predict.ask import rows
from ..view import View


@dataclass(frozen=True)
class ByPriority:
    """MoE-Infinity (arXiv 2401.14361): all layers ahead at once, ordered anew after each layer.

    An expert's priority is the share that it is expected to have of its layer, i, times 1 - (i - l) / L, where l is the
    layer at hand.

    Attributes:
        by: who predicts.
        ahead: layers to look ahead; None for all.
        experts: how many of each layer at most; None for K. The paper queues whatever has a priority [inference]: a
            cache of a few slots would only be stirred by that.
    """

    by: Predictor
    ahead: int | None = None
    experts: int | None = None

    revises = True

    def __post_init__(self):
        _check(self, "ahead", "experts")

    def wanted(self, layer: int, view: View) -> list[Wanted]:
        expected = rows(self.by.expected(layer, view))
        last = view.layers if self.ahead is None else min(view.layers, layer + 1 + self.ahead)
        ranked = [
            (-expected[at, expert] * (1 - (at - layer) / view.layers), at, expert)
            for at in range(layer + 1, last)
            for expert in _best(expected[at], self.experts or view.top_k)
        ]
        return [Wanted(at, (expert,)) for _, at, expert in sorted(ranked)]


@dataclass(frozen=True)
class Cumulative:
    """FineMoE (arXiv 2502.05370): of the layer `ahead` layers ahead, the likeliest experts, until together they are
    expected with probability `mass`.

    Attributes:
        by: who predicts.
        ahead: the prefetch distance d. Before a pass the first d layers are fetched for.
        mass: the paper's delta, whose value we did not find [inference].
        experts: how many of the layer at most; None for no limit.
    """

    by: Predictor
    ahead: int = 3
    mass: float = 0.9
    experts: int | None = None

    def __post_init__(self):
        _check(self, "ahead", "experts")
        number("Cumulative.mass", self.mass, low=0, high=1, hint="a probability")

    def wanted(self, layer: int, view: View) -> list[Wanted]:
        here = range(self.ahead) if layer < 0 else range(layer + self.ahead, layer + self.ahead + 1)
        here = [at for at in here if at < view.layers]
        expected = rows(self.by.expected(layer, view)) if here else None
        return [Wanted(at, self._likeliest(expected[at])) for at in here]

    def _likeliest(self, expected: np.ndarray) -> tuple[int, ...]:
        best = _best(expected, self.experts or len(expected))
        before = np.cumsum(expected[best]) - expected[best]
        return tuple(e for e, reached in zip(best, before, strict=True) if reached < self.mass - 1e-12)


@dataclass(frozen=True)
class AdaptiveDepth:
    """ExpertFlow (arXiv 2510.26730): looks further ahead while the computation stalls, less far while it overfetches.

    The depth starts at the expected transfer time of an expert over the time of a layer, and changes by 1 after a pass
    that stalled repeatedly or that threw prefetches away. Passes older than `window` are forgotten, so that the depth
    is a function of what a view shows [inference]; so are the two bounds of what counts [inference].

    Attributes:
        by: who predicts; in the paper a random forest on token ids and past layers.
        start: depth at the beginning of a text, in layers.   most: largest depth.
        stalls: misses and late arrivals of a pass from which it counts as stalled.
        wasted: prefetches evicted unused in a pass from which it counts as overfetching.
        window: passes that count.
        experts: how many of each layer; None for K.
    """

    by: Predictor
    start: int = 2
    most: int = 8
    stalls: int = 2
    wasted: int = 2
    window: int = 16
    experts: int | None = None

    revises = True

    def __post_init__(self):
        _check(self, "start", "most", "stalls", "wasted", "window", "experts")
        if self.start > self.most:
            raise ValueError(f"AdaptiveDepth.start must be at most most = {self.most}, got {self.start}.")

    def depth(self, view: View) -> int:
        """Layers to look ahead in this pass."""
        depth = self.start
        for outcome in view.outcomes[-self.window :]:
            if outcome["misses"].sum() + outcome["late"].sum() >= self.stalls:
                depth = min(depth + 1, self.most)
            elif outcome["wasted"].sum() >= self.wasted:
                depth = max(depth - 1, 1)
        return depth

    def wanted(self, layer: int, view: View) -> list[Wanted]:
        here = range(layer + 1, min(view.layers, layer + 1 + self.depth(view)))
        expected = self.by.expected(layer, view) if here else None
        return [Wanted(at, tuple(_best(expected[at], self.experts or view.top_k))) for at in here]


def _best(expected: np.ndarray, count: int) -> list[int]:
    """The experts [E] expected most, without those not expected at all."""
    return [int(e) for e in np.argsort(-expected, kind="stable")[:count] if expected[e] > 0]


def _check(policy, *names: str) -> None:
    if not hasattr(policy.by, "expected"):
        raise TypeError(
            f"{type(policy).__name__}.by must be a predictor with `expected`, such as those in "
            f"mobile_nb.policies.predict, got {policy.by!r}."
        )
    for name in names:
        if getattr(policy, name) is not None:
            whole(f"{type(policy).__name__}.{name}", getattr(policy, name))


__all__ = ["AdaptiveDepth", "ByPriority", "Cumulative"]
