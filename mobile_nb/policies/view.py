"""What policies may see while a token is computed: ids, scores and counts, never a tensor, a stream or a clock.

One view for everybody who asks about more than the question at hand: prefetchers, misses and predictors. It holds
facts, and all that a policy would otherwise have to remember, so that policies stay values and a replay sees what the
live run saw.

Legend: L MoE layers · E experts · K experts routed to · N tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np


class View(Protocol):
    """What may be known while a token is computed. Ids are best first; what routers say is always of K experts."""

    layers: int  # L
    experts: int  # E
    top_k: int  # K
    mode: str  # "little" or "big"
    at: int  # the layer at hand; -1 before the pass
    evicted: Sequence[Sequence[int]] | None  # per layer, the K experts of the evicted token; None: no eviction. Where
    # the big model reads several drafts at once, the experts of all of them, the most named first.
    drafted: Sequence[Sequence[int]] | None  # per layer, those of the tokens drafted so far, the most named first
    previous: Sequence[Sequence[int]] | None  # per layer, the K experts of the last token that stayed

    # -- of the text so far: what its prompt and its tokens that stayed were routed to -----------------------------

    @property
    def activations(self) -> np.ndarray:
        """[L, E] how many tokens of this text each expert was routed to, the pass at hand not included."""
        ...

    def recent(self, tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and weights [L, N, K] of the last `tokens` tokens of this text, or as many as there are, oldest first."""
        ...

    # -- of the pass at hand ---------------------------------------------------------------------------------------

    def routed(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and weights [K] of this pass's token at a layer up to the one at hand."""
        ...

    def gate(self, layer: int) -> Sequence[int]:
        """The K experts that `layer`'s router gives on the hidden state at hand. A replay knows what was recorded."""
        ...

    # -- live only -------------------------------------------------------------------------------------------------

    def scores(self, layer: int) -> Sequence[float]:
        """[E] the softmax of all that `layer`'s router says of the hidden state at hand."""
        ...

    def foretold(self, layer: int) -> Sequence[int] | None:
        """What `gate(layer)` last said earlier in this pass, None where nobody asked it."""
        ...

    def states(self, tokens: int) -> np.ndarray:
        """[N, H] float32: what routers were given, in the order of computation: all layers of the last `tokens` tokens
        of this text, then those of the pass at hand up to the layer at hand. Who asks says so: `context`, the most
        tokens it asks for."""
        ...

    # -- of the device: misses and those prefetchers that say `revises = True` may look ------------------------------

    def resident(self, layer: int) -> Sequence[int]:
        """Who is on the device, or on the way to it."""
        ...

    @property
    def outcomes(self) -> Sequence[Mapping[str, np.ndarray]]:
        """Of each pass of this text, the scheduler's counters by name, [L] each: hits, late, misses, wasted …"""
        ...

    # -- replay only -----------------------------------------------------------------------------------------------

    def coming(self, layer: int) -> Sequence[int]:
        """The experts that this pass will ask `layer` for."""
        ...


__all__ = ["View"]
