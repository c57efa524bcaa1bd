"""Misses that settle for a coarser form: it takes a quarter of the bytes, say, and is almost the same expert."""

from __future__ import annotations

from dataclasses import dataclass

from ...vocabulary import number
from ..view import View
from .ask import Answer, Low


@dataclass(frozen=True)
class LowBits:
    """HOBBIT (arXiv 2411.01433): how much weight stands before an expert says in which form it is fetched.

    Of an absent expert counts the share of all weights that its betters have: up to t1 it is fetched in the first
    form, up to t2 in the second, and above it is left out; the best expert always comes in the first form. On Mixtral
    the paper counts 67, 30 and 3 %. Residents run as they are, because nothing is fetched for them [inference]. The
    other weights stay as they are [inference]. Needs a codec with two forms, `Mixed`.

    Attributes:
        t1, t2: shares (0.6 and 0.9 in the paper).
    """

    t1: float = 0.6
    t2: float = 0.9

    lossless = False

    def __post_init__(self):
        number("LowBits.t1", self.t1, low=0)
        number("LowBits.t2", self.t2, low=self.t1, hint="at least t1")

    def serve(self, experts, weights, resident, view: View | None = None) -> list[Answer]:
        total, before, answers = max(sum(weights), 1e-30), 0.0, []
        for rank, (expert, weight, there) in enumerate(zip(experts, weights, resident, strict=True)):
            share = before / total
            if there or rank == 0 or share <= self.t1:
                answers.append(expert)
            else:
                answers.append(Low(expert) if share <= self.t2 else None)
            before += weight
        return answers


@dataclass(frozen=True)
class AllLow:
    """MoE-SpeQ's draft (arXiv 2511.14102): absent experts run in the second form. Where all of them have a slot in that
    form, nothing travels. Residents of the first form run as they are, which the paper does not say [inference].
    """

    lossless = False

    def serve(self, experts, weights, resident, view: View | None = None) -> list[Answer]:
        return [expert if there else Low(expert) for expert, there in zip(experts, resident, strict=True)]


__all__ = ["AllLow", "LowBits"]
