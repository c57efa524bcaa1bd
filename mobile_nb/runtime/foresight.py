"""What a prefetcher may know at each point of a replay, and all that it wants there."""

from __future__ import annotations

import numpy as np

from ..memory.scheduler import pairs_of
from ..policies import Nothing
from ..vocabulary import PROMPT, MobileError
from .facts import ask
from .tape import Selection, Tape


class Foresight:
    """A `policies.prefetch.View` that walks through a selection of a tape."""

    def __init__(self, tape: Tape, selection: Selection, asked_at: np.ndarray, asked: np.ndarray):
        self.tape, self.selection, self.asked_at, self.asked = tape, selection, asked_at, asked
        self.layers, self.mode, self.evicted, self.previous = tape.layers, PROMPT, None, None
        self.at = self.n = -1

    def gate(self, layer: int) -> list[int]:
        """What the gate said in the recording."""
        gates, ahead = self.tape.passes[self.selection.index[self.n]].gates, layer - self.at - 1
        if gates is None or not 0 <= ahead < len(gates) or gates[ahead, layer, 0] < 0:
            raise MobileError(
                f"this trace does not hold what the gates say {ahead + 1} layers ahead; record it with "
                "prefetch=policies.ReadGates(...), or run this prefetcher live."
            )
        return gates[ahead, layer].tolist()

    def coming(self, layer: int) -> list[int]:
        """What this pass will ask for."""
        return self.asked[slice(*self.asked_at[self.n * self.layers + layer :][:2])].tolist()

    def wanted(self, prefetch) -> dict[str, np.ndarray]:
        """The `wanted` arrays of a script."""
        index, wrote, layers = self.selection.index, self.selection.wrote, self.layers
        pairs: list[tuple[int, int]] = []
        bounds = np.zeros(len(index) * (layers + 1) + 1, dtype=np.int64)
        for n, i in enumerate(index if not isinstance(prefetch, Nothing) else ()):
            self.n, self.mode = n, self.tape.passes[i].mode
            rewrites = n > 0 and not wrote[n - 1]
            self.evicted = self.tape.best[index[n - 1]].tolist() if rewrites else None
            if self.mode == PROMPT:
                self.previous = None
            elif not rewrites and n > 0:
                self.previous = self.tape.best[index[n - 1]].tolist()
            for self.at in range(-1, layers):
                if self.mode != PROMPT and (self.at < 0 or self.tape.single[i]):
                    pairs += pairs_of(ask(prefetch, "wanted", self.at, self), layers, self.tape.experts)
                bounds[n * (layers + 1) + self.at + 2] = len(pairs)
        flat = np.array(pairs, dtype=np.int64).reshape(-1, 2)
        return {"wanted_at": bounds, "wanted": flat}


__all__ = ["Foresight"]
