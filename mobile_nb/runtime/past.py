"""What a text was routed to so far, and how its passes went.

Legend: L MoE layers · E experts · K experts routed to · T tokens of a pass · N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..vocabulary import PROMPT


@dataclass
class Text:
    """What routers said of the text so far, (mode, ids, weights) with [L, T, K] of each pass that wrote, and how each
    pass went: counters of the scheduler, [L] each. Only added to, and worked on when somebody asks."""

    passes: list[tuple[str, np.ndarray, np.ndarray]] = field(default_factory=list)
    outcomes: list[dict[str, np.ndarray]] = field(default_factory=list)
    _sum: np.ndarray | None = None  # [L, E] of the first `_summed` passes
    _summed: int = 0

    def add(self, mode: str, ids: np.ndarray, weights: np.ndarray, tokens: int | None = None) -> None:
        """A pass that wrote; of one that read several drafts, its first `tokens` stayed."""
        parts = [slice(None)] if tokens is None or mode == PROMPT else [slice(t, t + 1) for t in range(tokens)]
        self.passes += [(mode, ids[:, part], weights[:, part]) for part in parts]

    def routing(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and weights [L, N, K] that pass n added; one that read the whole text again, for want of a KV cache,
        added its last token."""
        mode, ids, weights = self.passes[n]
        return (ids, weights) if mode == PROMPT else (ids[:, -1:], weights[:, -1:])

    def activations(self, layers: int, experts: int) -> np.ndarray:
        if self._sum is None:
            self._sum = np.zeros((layers, experts))
        for n in range(self._summed, len(self.passes)):
            np.add.at(self._sum, (np.arange(layers)[:, None, None], self.routing(n)[0]), 1)
        self._summed = len(self.passes)
        return self._sum.copy()

    def recent(self, tokens: int, layers: int, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        parts, taken = [], 0
        for n in reversed(range(len(self.passes))):
            if taken >= tokens:
                break
            parts.insert(0, self.routing(n))
            taken += parts[0][0].shape[1]
        if not parts:
            return np.zeros((layers, 0, top_k), dtype=np.int16), np.zeros((layers, 0, top_k), dtype=np.float32)
        ids, weights = (np.concatenate(part, axis=1)[:, -tokens:] for part in zip(*parts, strict=True))
        return ids, weights


__all__ = ["Text"]
