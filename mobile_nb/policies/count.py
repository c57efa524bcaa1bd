"""Question 1: how many of the router's K experts run, and what are their weights divided by?

Two separate answers, because they matter separately: going from 8 to 4 experts on a Qwen3.6 model costs 4.65 MMLU
points when the kept weights are renormalised among themselves, 0.35 with a wider denominator (arXiv 2609.04575).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..vocabulary import PROMPT, number


class Count(Protocol):
    """Says how many experts run in a pass.

    `two_passes` is True when a little pass and a big pass differ, so that there is something to fall back to;
    `lossless` when all K experts run wherever a token stays. With `by_token = True` it is asked for each single token,
    and told that token's weights.
    """

    two_passes: bool
    lossless: bool

    def run(self, mode: str, layer: int, k: int, weights: Sequence[float] | None = None) -> tuple[int, int | None]:
        """Experts that run, 1 to k, and over how many of the largest weights the kept ones are normalised.

        `weights` are the token's K weights, largest first, where the policy says `by_token`; None for several tokens.

        The kept weights are multiplied by sum(the K weights) / sum(the `over` largest). None leaves the choice to the
        model: what it would do itself with a smaller top_k.
        """
        ...


@dataclass(frozen=True)
class TopK:
    """All K experts, on every token: the model as it was trained."""

    two_passes = False
    lossless = True

    def run(self, mode: str, layer: int, k: int) -> tuple[int, int | None]:
        return k, None


@dataclass(frozen=True)
class Fraction:
    """The little model: the best `fraction` of K on a little pass, all K on a big one (MoBiLE, Sec. III).

    Attributes:
        fraction: share of K that the little pass runs, rounded to the nearest whole number of at least 1.
        prompt: share of K on the prompt pass. The paper does not describe it; 1.0, the full model, is the safe reading.
        over: share of K whose weights are the denominator; None for the model's own rule, 1.0 for "leave them as
            the router gave them", the same as `fraction` for "renormalise among the kept ones".
    """

    fraction: float = 0.5
    prompt: float = 1.0
    over: float | None = None

    two_passes = True
    lossless = False

    def __post_init__(self):
        for field in ("fraction", "prompt", "over"):
            value = getattr(self, field)
            if not (field == "over" and value is None):
                number(f"Fraction.{field}", value, low=1e-9, high=1, hint="a share of the router's K experts")

    def run(self, mode: str, layer: int, k: int) -> tuple[int, int | None]:
        share = {"little": self.fraction, PROMPT: self.prompt}.get(mode, 1.0)
        return _part(share, k), None if self.over is None else _part(self.over, k)


def _part(share: float, k: int) -> int:
    return max(1, int(share * k + 0.5))


__all__ = ["Count", "Fraction", "TopK"]
