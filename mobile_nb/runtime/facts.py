"""What policies are told in a live run, and how they are asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..vocabulary import PROMPT, MobileError, failed

if TYPE_CHECKING:  # replays ask policies too, and need no torch
    import torch

    from ..model.adapters import MoELayer


@dataclass
class View:
    """What a prefetcher may know; see `mobile_nb.policies.prefetch.View`."""

    layers: int
    mode: str = PROMPT
    evicted: list[list[int]] | None = None
    hidden: torch.Tensor | None = None
    found: list[MoELayer] = field(default_factory=list)
    at: int = -1  # the layer at hand
    read: dict[tuple[int, int], list[int]] = field(default_factory=dict)  # what gates said: (layers ahead, layer)
    last: tuple[np.ndarray, np.ndarray] | None = None  # ids and weights of the pass that wrote the last token

    @property
    def previous(self) -> list[list[int]] | None:
        return None if self.last is None else best_first(*(part[:, -1:] for part in self.last))

    def gate(self, layer: int) -> list[int]:
        """The experts that `layer`'s router gives on the hidden state of the layer at hand, best first."""
        said = self.found[layer].route(self.hidden)[0].tolist()
        if layer > self.at:
            self.read[layer - self.at, layer] = said
        return said

    def coming(self, layer: int):
        raise MobileError("this prefetcher asks for experts that the model has not chosen yet; use it with replay().")


def read_gates(read: dict, shape: Sequence[int]) -> np.ndarray | None:
    """What was read of gates ahead in a pass of shape [L, T, K], as `Pass.gates` wants it."""
    if not read:
        return None
    gates = np.full((max(ahead for ahead, _ in read), shape[0], shape[2]), -1, dtype=np.int16)
    for (ahead, layer), said in read.items():
        gates[ahead - 1, layer, : len(said)] = said
    return gates


def ask(policy, question: str, *facts):
    """Asks a policy, and tells in one sentence which one failed if it does."""
    try:
        return getattr(policy, question)(*facts)
    except MobileError:
        raise
    except Exception as problem:
        raise MobileError(failed(policy, question, problem)) from problem


def decided(keep, evidence) -> bool:
    """Asks a keep policy, and refuses what is neither yes nor no."""
    kept = ask(keep, "keep", evidence)
    if type(kept).__name__ not in ("bool", "bool_"):  # Python's or NumPy's
        raise MobileError(f"the policy {keep!r} must answer `keep` with True or False, got {kept!r}.")
    return bool(kept)


def best_first(ids: np.ndarray, weights: np.ndarray) -> list[list[int]]:
    """A token's routing [L, 1, K] as lists of expert ids a layer, largest weight first."""
    order = np.argsort(-weights[:, 0], axis=1, kind="stable")
    return np.take_along_axis(ids[:, 0], order, axis=1).tolist()


__all__ = ["View", "ask", "best_first", "decided", "read_gates"]
