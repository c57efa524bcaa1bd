"""Misses that are computed on the host, where the weights lie: hidden states travel instead of experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...costs import Costs
from ...hardware import Geometry, Hardware
from ...vocabulary import number, whole
from ..view import View
from .ask import Host, Miss
from .plain import Wait

WAIT = Wait()


@dataclass(frozen=True)
class OnHost:
    """Fiddler (arXiv 2402.07033): an absent expert is computed on the host where that takes less time than fetching it.

    The paper compares compute(s) on the host with transfer + compute(s) on the device, for the s tokens of a pass that
    ask for the expert. Policies see no clock, so the comparison comes as numbers: `ratio` for a token that is written,
    `crossover` for a pass that reads several. Nothing is copied into a slot for what the host computes, so the cache
    stays as it is. Loss-free where `before` is.

    Attributes:
        ratio: seconds of one expert on the host over seconds of fetching and computing it; `OnHost.of` works it out.
            Below 1 every miss is the host's, else every one is fetched.
        balance: split a token's misses instead, so that host and link end at about the same time (SMoE, arXiv
            2508.18983, which says no more than that residual misses are split). The host takes those with the smallest
            weights, so that the others come to stay [inference]. Passes over several tokens follow `crossover`.
        before: another policy for misses that is asked first; what it leaves to be fetched is the host's or the link's.
        crossover: in a prompt, or in a pass that reads several drafts, the host computes an absent expert that at most
            so many of the tokens ask for; one that more of them ask for is fetched. None: all of them are. The paper
            compares expert by expert; host and link work side by side here, so a smaller number can end sooner.
    """

    ratio: float
    balance: bool = False
    before: Miss = WAIT
    crossover: int | None = None

    def __post_init__(self):
        number("OnHost.ratio", self.ratio, low=1e-9, hint="host seconds over fetch-and-compute seconds of one expert")
        if not isinstance(self.balance, bool):
            raise TypeError(f"OnHost.balance must be True or False, got {self.balance!r}.")
        if self.crossover is not None:
            whole("OnHost.crossover", self.crossover, low=0, hint="tokens above which an expert is fetched")
        if isinstance(self.before, type) or not hasattr(self.before, "serve"):
            raise TypeError(f"OnHost.before must be a policy with `serve`, such as Wait(), got {self.before!r}.")

    @staticmethod
    def of(hardware: Hardware, geometry: Geometry, *, balance: bool = False, before: Miss = WAIT) -> OnHost:
        """With ratio and crossover of a machine, for a model of this geometry: Fiddler profiles both, and compares.

        Its rates are those of `Hardware.measure()`, or a preset's.
        """
        costs = Costs(hardware, geometry, geometry.moe_layers)
        return OnHost(costs.host_ratio(), balance, before, costs.crossover())

    @property
    def lossless(self) -> bool:
        return self.before.lossless

    def share(self, misses: int) -> int:
        """How many of a token's misses the host computes."""
        if not self.balance:
            return misses if self.ratio < 1 else 0
        return min(range(misses + 1), key=lambda host: (max(host * self.ratio, misses - host), host))

    def serve(self, experts, weights, resident, view: View) -> list:
        served = list(experts)
        if not getattr(self.before, "fetches_all", False):
            served = list(self.before.serve(experts, weights, resident, view))
        there = {expert for expert, here in zip(experts, resident, strict=True) if here}
        if served != list(experts):
            there |= set(view.resident(view.at))
        missed = [at for at, who in enumerate(served) if not isinstance(who, tuple | None) and who not in there]
        for at in missed[len(missed) - self.share(len(missed)) :]:
            served[at] = Host(served[at])
        return served

    def several(self, amounts: Sequence[int], resident: Sequence[bool]) -> list[bool]:
        """Of experts that so many tokens of one pass ask for: which are the host's."""
        most = 0 if self.crossover is None else self.crossover
        return [amount <= most and not here for amount, here in zip(amounts, resident, strict=True)]


__all__ = ["OnHost"]
