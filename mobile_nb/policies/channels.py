"""A codec that fetches an expert in pieces: one matrix in few bits, of the two others the channels that a token needs.

Legend: L MoE layers · E experts · I channels, the inner size of an expert · N tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..vocabulary import number
from .codec import Form, Int2, _Alone, _form


@dataclass(frozen=True, repr=False)
class Channels(_Alone):
    """FloE (arXiv 2505.05950, ICML 2025): a channel of an expert runs where what `up` makes of the token is large.

    Stated: v = x Wup, mask = |v| > t of this expert, y = (SiLU(x Wgate[mask]) * v[mask]) Wdown[mask] (Algorithm 1);
    `up` comes in 2 bits (HQQ), of gate and down only the channels of the mask come, in full precision. What was fetched
    for an expert stays while it keeps its slot, and only what is missing is fetched.

    Ours [inference]: `up` travels with its expert, and leaves with it; it is rounded to the nearest, HQQ is not. Of an
    expert all channels that a token lacks go as one copy, since the published system packs them. A slot has room for
    `up` in its form and for every channel, so that nothing has to leave but whole experts; a budget counts that room,
    and not the one `up` that is decoded at a time. Of several tokens (a prompt) each has its own mask, and the channels
    of all of them come. The ups of a layer that are missing are fetched first, then channels in the order in which
    their masks are known; computing both parts is charged, and so is decoding `up`. Simulated links only: no copy of
    single channels is written for a card.

    Attributes:
        thresholds: [L, E] t of each expert, at least 0; 0 lets every channel run. `by_sparsity` finds them.
        up: the form of `up`; `Full()` leaves sparsity alone.
        ahead: the intra-expert predictor. Of an expert that is prefetched those channels are fetched as well which its
            `up` names on the hidden state at hand, once it is there, and which are missing. Predicting costs no time.
    """

    thresholds: Sequence[Sequence[float]]
    up: Form = field(default_factory=Int2)
    ahead: bool = True

    lossless = False
    bits = None

    def __post_init__(self):
        _form("Channels.up", self.up)
        rows = tuple(tuple(number("each of Channels.thresholds", t, low=0) for t in row) for row in self.thresholds)
        if not rows or not rows[0] or len({len(row) for row in rows}) != 1:
            raise ValueError(
                "Channels.thresholds must be a number for each expert of each layer, [layers, experts], got rows of "
                f"{sorted({len(row) for row in rows})}."
            )
        object.__setattr__(self, "thresholds", rows)

    def held(self, bytes_per_weight: float, up: float | None = None) -> float:
        """Bytes a weight of a slot: of `up`, and of every channel of the two others; arguments as of `pieces`."""
        return sum(self.pieces(bytes_per_weight, 1, up))

    def pieces(self, bytes_per_weight: float, channels: int, up: float | None = None) -> tuple[float, float]:
        """What travels, as bytes over the weights of a whole expert: `up`, and one channel of the two others.

        Args:
            bytes_per_weight: of the model.   channels: I.   up: bytes a weight of `up` as it really lies; None for what
                its form says.
        """
        up = self.up.bytes_per_weight if up is None else up
        return (bytes_per_weight if up is None else up) / 3, bytes_per_weight * 2 / 3 / channels

    def __repr__(self) -> str:
        shape = f"{len(self.thresholds)} x {len(self.thresholds[0])}"
        digest = hashlib.sha256(repr(self.thresholds).encode()).hexdigest()[:8]
        return f"Channels({shape}, {digest}, up={self.up!r}, ahead={self.ahead})"

    @staticmethod
    def by_sparsity(outputs: Sequence[Sequence[np.ndarray]], sparsity: float = 0.9, **fields) -> Channels:
        """Thresholds below which a share `sparsity` of what calibration tokens made of `up` lies, of each expert.

        The paper calibrates on general text (C4); with 2 bits its 9.3 x follow from 0.9 [inference: 1/3 of 1/8 and 2/3
        of 1/10 are 1/9.2].

        Args:
            outputs: [L][E] arrays [N, I], such as `model.channels.up_outputs` measures.
            sparsity: share of channels that do not run, 0 for none.   fields: of `Channels`, such as `up`.
        """
        share = number("sparsity", sparsity, low=0, high=1, hint="the share of channels that do not run")
        found = [[float(np.quantile(np.abs(each), share)) if share else 0.0 for each in layer] for layer in outputs]
        return Channels(found, **fields)


__all__ = ["Channels"]
