"""What policies are told, in a live run and in a replay alike, and how they are asked. See `policies.view.View`.

Legend: L MoE layers · E experts · K experts routed to · T tokens of a pass · N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..vocabulary import PROMPT, MobileError, failed
from .past import Text

if TYPE_CHECKING:  # replays ask policies too, and need no torch
    import torch

    from ..memory.scheduler import Scheduler
    from ..model.adapters import MoELayer
    from .forms import Forms
    from .states import States


@dataclass
class Facts:
    """What a live run and a replay know in the same way.

    Attributes:
        scheduler: where policies may look at the device; None where nothing is played yet.
        forms: where experts come in several, how they are told apart.
        the others: see `policies.view.View`.
    """

    layers: int
    experts: int
    top_k: int
    mode: str = PROMPT
    at: int = -1
    evicted: list[list[int]] | None = None
    drafted: list[list[int]] | None = None
    text: Text = field(default_factory=Text)
    scheduler: Scheduler | None = None
    row: int = 0  # which of its configurations
    forms: Forms | None = None

    @property
    def previous(self) -> list[list[int]] | None:
        """None where no token of this text stayed yet."""
        if not self.text.passes:
            return None
        _, ids, weights = self.text.passes[-1]
        return best_first(ids[:, -1:], weights[:, -1:])

    @property
    def activations(self) -> np.ndarray:
        return self.text.activations(self.layers, self.experts)

    def recent(self, tokens: int) -> tuple[np.ndarray, np.ndarray]:
        return self.text.recent(tokens, self.layers, self.top_k)

    def routed(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        if not 0 <= layer <= self.at:
            raise MobileError(f"layer {layer} is not routed yet at layer {self.at}: a policy can only ask back.")
        ids, weights = self._routed(layer)
        order = np.argsort(-weights, kind="stable")
        return ids[order], weights[order]

    def _routed(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        raise NotImplementedError

    def resident(self, layer: int) -> list[int]:
        return self._playing.cache.residents(layer, self.row)

    @property
    def outcomes(self) -> list[dict[str, np.ndarray]]:
        return self.text.outcomes if self._playing else []

    @property
    def _playing(self) -> Scheduler:
        if self.scheduler is None:
            raise MobileError("a prefetcher that looks at the device must say so: `revises = True`.")
        return self.scheduler


@dataclass
class Live(Facts):
    """What a model at work can tell beside it."""

    given: States | None = None
    read: dict[tuple[int, int], list[int]] = field(default_factory=dict)  # what gates said: (layers ahead, layer)

    def gate(self, layer: int) -> list[int]:
        said = self._gate(layer)
        if layer > self.at:
            self.read[layer - self.at, layer] = said
        return said

    def _gate(self, layer: int) -> list[int]:
        raise NotImplementedError

    def states(self, tokens: int) -> np.ndarray:
        return self.given.rows(tokens, self.at)

    def foretold(self, layer: int) -> list[int] | None:
        ahead = min((ahead for ahead, of in self.read if of == layer), default=None)
        return None if ahead is None else self.read[ahead, layer]

    def coming(self, layer: int):
        raise MobileError("this prefetcher asks for experts that the model has not chosen yet; use it with replay().")


@dataclass
class View(Live):
    """Of a live run."""

    found: list[MoELayer] = field(default_factory=list)
    calls: list[list] = field(default_factory=list)  # of this pass, per layer: index and weights [T, K] of each call
    hidden: torch.Tensor | None = None

    def _routed(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        index, weights = self.calls[layer][-1]
        return index[-1].to("cpu").numpy(), weights[-1].to("cpu").float().numpy()

    def _gate(self, layer: int) -> list[int]:
        return self.found[layer].route(self.hidden)[0].tolist()

    def scores(self, layer: int) -> list[float]:
        return self.found[layer].scores(self.hidden)[0].tolist()


def consult(config, at: int, view: Facts, scheduler: Scheduler) -> None:
    """Asks for what evictions look ahead to, then for prefetches, and passes both on."""
    expected, wanted = consulted(config, at, view)
    if expected is not None:
        scheduler.cache.expected = np.broadcast_to(expected, (len(scheduler.cache.slots), *expected.shape))
    instead = revises(config)
    if wanted or instead:
        scheduler.want(wanted, instead=instead)


def consulted(config, at: int, view: Facts) -> tuple[np.ndarray | None, list]:
    """What evictions look ahead to [L, E], None for nothing, and which prefetches are wanted."""
    view.at, expected = at, None
    if looks_ahead(config):
        answer = ask(config.evict, "expects", at, view)
        expected = np.asarray(answer, dtype=float) if isinstance(answer, np.ndarray) else None
        if expected is None or expected.shape != (view.layers, view.experts) or np.isnan(expected).any():
            raise MobileError(
                f"the eviction policy {config.evict!r} must answer `expects` with an array "
                f"[{view.layers}, {view.experts}] without NaN, got {np.shape(answer)}."
            )
    wanted = ask(config.prefetch, "wanted", at, view)
    if wanted and view.forms is not None and view.forms.several:
        wanted = view.forms.wanted(wanted, view.scheduler.cache, view.row)
    return expected, wanted


def looks_ahead(config) -> bool:
    """Whether its evictions depend on what is expected."""
    return hasattr(config.evict, "expects")


def revises(config) -> bool:
    """Whether its prefetcher looks at the device."""
    return bool(getattr(config.prefetch, "revises", False))


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


def counted(count, mode: str, at: int, k: int, *told) -> tuple[int, int | None]:
    """Asks a count policy, and refuses what cannot run."""
    answer = ask(count, "run", mode, at, k, *told)
    try:
        run, over = answer
        if 1 <= run.__index__() <= k and (over is None or 1 <= over.__index__() <= k):
            return run, over
    except (TypeError, ValueError, AttributeError):
        pass
    raise MobileError(
        f"the policy {count!r} must answer `run` with how many experts run, 1 to {k}, and over how many they are "
        f"normalised, 1 to {k} or None, got {answer!r}."
    )


def best_first(ids: np.ndarray, weights: np.ndarray) -> list[list[int]]:
    """A token's routing [L, 1, K] as lists of expert ids a layer, largest weight first."""
    order = np.argsort(-weights[:, 0], axis=1, kind="stable")
    return np.take_along_axis(ids[:, 0], order, axis=1).tolist()


__all__ = [
    "Facts",
    "Live",
    "View",
    "ask",
    "best_first",
    "consult",
    "consulted",
    "counted",
    "decided",
    "looks_ahead",
    "read_gates",
    "revises",
]
