"""BuddyMoE (arXiv 2511.10054): an absent expert is replaced by a resident one that is often chosen together with it.

Legend: L MoE layers · E experts · K experts routed to · N samples · H hidden.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...routing import texts
from ...trace import Trace
from ...vocabulary import number, whole
from ..knowledge import Knowledge
from ..view import View
from .ask import substituted


@dataclass(frozen=True, eq=False, repr=False)
class Buddies(Knowledge):
    """Who may stand in for whom, and how well.

    Attributes:
        share: [L, E, E] q(j | i), the share of expert i's ties that it has with j; 0 for those not on its list.
    """

    share: np.ndarray

    @staticmethod
    def from_trace(
        trace: Trace, alpha: float = 0.95, *, most: int = 16, smooth: float = 0.0, by_weight: bool = False
    ) -> Buddies:
        """Lists from co-activation: M(i, j) tokens were routed to both, q(j | i) = M(i, j) / sum over j of M(i, j).

        Args:
            alpha: a list is the shortest prefix, largest q first, whose shares reach this (CFT).
            most: experts on a list at most (K_max). On DeepSeek-V2-Lite co-activation is so even that 16 of them hold
                39 % of it: above an alpha of about 0.4 to 0.6 the cap decides, not alpha.
            smooth: added to every M(i, j) (Laplace).
            by_weight: a token counts as much as the smaller of both weights, instead of 1.
        """
        number("Buddies.from_trace smooth", smooth, low=0)
        layers, experts = trace.conditions["layers"], trace.conditions["experts"]
        ties = np.zeros((layers, experts, experts))
        for ids, weights in texts(trace):  # [L, N, K]
            for layer in range(layers):
                chosen = np.zeros((ids.shape[1], experts))
                np.put_along_axis(chosen, ids[layer].astype(int), weights[layer] if by_weight else 1.0, axis=1)
                if by_weight:
                    ties[layer] += sum(np.minimum(token[:, None], token) for token in chosen)
                else:
                    ties[layer] += chosen.T @ chosen
        return Buddies.of(ties + smooth, alpha, most=most)

    @staticmethod
    def from_outputs(outputs: np.ndarray, alpha: float = 0.95, *, most: int = 16) -> Buddies:
        """Lists from what experts do: their tie is the mean cosine of their outputs on the same inputs, at least 0.

        Ours, as a comparison: experts that are chosen together may just as well complement each other.

        Args:
            outputs: [L, E, N, H], as `model.outputs.expert_outputs` gives them.
        """
        norms = np.linalg.norm(outputs, axis=-1, keepdims=True)
        each = outputs / np.maximum(norms, 1e-30)
        return Buddies.of(np.maximum(np.einsum("linh,ljnh->lij", each, each) / outputs.shape[2], 0), alpha, most=most)

    @staticmethod
    def of(ties: np.ndarray, alpha: float = 0.95, *, most: int = 16) -> Buddies:
        """Lists from any ties [L, E, E] of at least 0; nobody is their own buddy."""
        number("Buddies alpha", alpha, low=0, high=1, hint="the share of ties that a list holds")
        whole("Buddies most", most, low=0)
        ties = np.array(ties, dtype=float)
        if ties.ndim != 3 or ties.shape[1] != ties.shape[2] or not (ties >= 0).all():
            raise ValueError(f"ties must be numbers of at least 0 [layers, experts, experts], got {ties.shape}.")
        ties[:, np.arange(ties.shape[1]), np.arange(ties.shape[1])] = 0
        share = ties / np.maximum(ties.sum(axis=2, keepdims=True), 1e-30)
        order = np.argsort(-share, axis=2, kind="stable")
        ranked = np.take_along_axis(share, order, axis=2)
        before = np.cumsum(ranked, axis=2) - ranked
        ranked[(before >= alpha - 1e-12) | (np.arange(ties.shape[1]) >= most)] = 0
        np.put_along_axis(share, order, ranked, axis=2)
        return Buddies(share)

    def of_expert(self, layer: int, expert: int) -> list[int]:
        """An expert's list, best first."""
        share = self.share[layer, expert]
        return [int(j) for j in np.argsort(-share, kind="stable") if share[j] > 0]


@dataclass(frozen=True)
class Buddy:
    """Substitution behind two gates: tokens whose routing is peaked, or too much of which is absent, wait instead.

    The sources differ on tau; we follow those that read it as the threshold of the entropy and alpha as that of the
    lists. There is one device, so the paper's penalty for distance between devices, 1 - kappa * hop, is 1.

    Attributes:
        buddies: the lists.
        tau: a token whose routing entropy (TAE, 0 to 1) is at most this is not touched; one number, or one a layer,
            which the paper sets to the 10th to 20th percentile (`entropy_quantile`).
        beta: nor is one of whose experts at least this share is absent. The paper gives no value; 0.6 is that of an
            independent re-implementation [inference].
        rho: substitutions a token and layer at most (3 or 4 in the paper's table).
        eta: how much this token's own router score of the buddy counts beside q: Psi = q * (1 + eta * z), where z is
            the score's deviation from the mean of all E logits, in standard deviations [inference]. The paper gives no
            value; 0 needs no scores.
        temperature: of the entropy's distribution (0.8 to 1.2 in the paper, optional).
    """

    buddies: Buddies
    tau: float | Sequence[float] = 0.95
    beta: float = 0.6
    rho: int = 3
    eta: float = 0.0
    temperature: float = 1.0

    lossless = False

    def __post_init__(self):
        if not isinstance(self.buddies, Buddies):
            raise TypeError(f"Buddy.buddies must be lists such as Buddies.from_trace makes, got {self.buddies!r}.")
        if isinstance(self.tau, Sequence | np.ndarray):
            object.__setattr__(self, "tau", tuple(float(tau) for tau in self.tau))
            if len(self.tau) != len(self.buddies.share):
                raise ValueError(f"Buddy.tau must be one number or {len(self.buddies.share)}, got {len(self.tau)}.")
        for tau in self.tau if isinstance(self.tau, tuple) else (self.tau,):
            number("Buddy.tau", tau, low=0, high=1, hint="a routing entropy")
        number("Buddy.beta", self.beta, low=0, hint="a share of absent experts; above 1 for no such gate")
        whole("Buddy.rho", self.rho, low=0)
        number("Buddy.eta", self.eta, low=0)
        number("Buddy.temperature", self.temperature, low=1e-3)

    def serve(self, experts, weights, resident, view: View) -> list[int | None]:
        layer = view.at
        tau = self.tau[layer] if isinstance(self.tau, tuple) else self.tau
        absent = sum(not there for there in resident)
        if absent >= self.beta * len(experts) or not absent or entropy(weights, self.temperature) <= tau:
            return list(experts)
        fit = self._fit(view) if self.eta else np.ones(view.experts)

        def choose(expert: int, free: list[int]) -> int | None:
            share = self.buddies.share[layer, expert]
            return max((j for j in free if share[j] > 0), key=lambda j: (share[j] * fit[j], -j), default=None)

        return substituted(experts, resident, view, choose, self.rho)

    def _fit(self, view: View) -> np.ndarray:
        """[E] 1 + eta * z."""
        logits = np.log(np.maximum(view.scores(view.at), 1e-30))
        return 1 + self.eta * (logits - logits.mean()) / max(logits.std(), 1e-30)


def entropy(weights: Sequence[float], temperature: float = 1.0) -> float:
    """BuddyMoE's token activation entropy, of the K renormalised weights: 0 for one expert alone, 1 for equals."""
    p = np.maximum(np.asarray(weights, dtype=float), 0) ** (1 / temperature)
    p = p[p > 0] / p.sum()
    return float(-(p * np.log(p)).sum() / math.log(len(weights))) if len(weights) > 1 and len(p) else 0.0


def entropy_quantile(trace: Trace, share: float = 0.15) -> tuple[float, ...]:
    """The tau of each layer below which this share of a trace's tokens lies."""
    number("share", share, low=0, high=1)
    weights = np.concatenate([w for _, w in texts(trace)], axis=1)  # [L, N, K]
    return tuple(float(np.quantile([entropy(token) for token in layer], share)) for layer in weights)


__all__ = ["Buddies", "Buddy", "entropy", "entropy_quantile"]
