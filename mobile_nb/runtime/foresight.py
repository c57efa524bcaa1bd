"""What policies may know at each point of a replay: all that a prefetcher wants, beforehand or while it plays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..memory.scheduler import Scheduler
from ..memory.wishes import pairs_of
from ..policies import Nothing
from ..policies.miss.ask import Host
from ..trace import Pass
from ..vocabulary import BIG, LITTLE, PROMPT, MobileError
from .config import MobileConfig
from .facts import Facts, ask, consult, revises
from .missed import answered, left_to_host
from .named import most_named
from .past import Text
from .tape import Selection, Tape


class Foresight(Facts):
    """A `policies.view.View` that walks through a selection of a tape."""

    def __init__(self, tape: Tape, selection: Selection, asked_at: np.ndarray, asked: np.ndarray):
        super().__init__(tape.layers, tape.experts, tape.ids.shape[2])
        self.tape, self.selection, self.asked_at, self.asked = tape, selection, asked_at, asked
        self.n = self._wrote = -1  # the pass at hand, and the one that wrote the last token

    def enter(self, n: int) -> None:
        """The moment before pass n of the selection; passes are entered in order."""
        index, wrote = self.selection.index, self.selection.wrote
        done, before = self.tape.passes[index[n]], self.tape.passes[index[n - 1]]
        self.n, self.at, self.mode, self.single = n, -1, done.mode, done.ids.shape[1] == 1
        rewrites = n > 0 and not wrote[n - 1]
        self.evicted = self.tape.best[index[n - 1]].tolist() if rewrites else None
        kept = None
        if self.tape.drafts:
            drafts = self._drafts(n)
            self.drafted, rewrites = most_named(drafts), bool(drafts)
            self.evicted = self.drafted if self.mode == BIG else None
            kept = 1 + sum(draft.token_id >= 0 for draft in self._drafts(n - 1))
        if self.mode == PROMPT:
            self.text = Text()
        elif n > 0 and not rewrites:
            self.text.add(before.mode, before.ids, before.weights, kept)
            self._wrote = n - 1

    def _drafts(self, n: int) -> list[Pass]:
        """The little passes right before pass n: what was drafted for it, where the tape holds drafts."""
        found, index = [], self.selection.index
        while n > 0 and self.tape.passes[index[n - 1]].mode == LITTLE:
            n -= 1
            found.insert(0, self.tape.passes[index[n]])
        return found

    @property
    def points(self) -> range:
        """The layers at which a live run asks its policies in this pass."""
        return range(-1, -1 if self.mode == PROMPT else self.layers if self.single else 0)

    @property
    def previous(self) -> list[list[int]] | None:
        """From the tape, where it is in order already."""
        if self.tape.drafts:
            return super().previous
        return self.tape.best[self.selection.index[self._wrote]].tolist() if self.text.passes else None

    def _routed(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        done = self.tape.passes[self.selection.index[self.n]]
        return done.ids[layer, -1], done.weights[layer, -1]

    def gate(self, layer: int) -> list[int]:
        """What the gate said in the recording."""
        gates, ahead = self.tape.passes[self.selection.index[self.n]].gates, layer - self.at - 1
        if gates is None or not 0 <= ahead < len(gates) or gates[ahead, layer, 0] < 0:
            raise MobileError(
                f"this trace does not hold what the gates say {ahead + 1} layers ahead; record it with "
                "prefetch=policies.ReadGates(...), or run this prefetcher live."
            )
        return gates[ahead, layer].tolist()

    def scores(self, layer: int):
        raise MobileError("a trace holds the scores of the experts that a router chose, not of all; run this live.")

    def states(self, tokens: int):
        raise MobileError("a trace holds routing, not the hidden states that this predictor reads; run it live.")

    def coming(self, layer: int) -> list[int]:
        """What this pass will ask for."""
        return self.asked[slice(*self.asked_at[self.n * self.layers + layer :][:2])].tolist()

    def wanted(self, config: MobileConfig) -> dict[str, np.ndarray]:
        """The `wanted` arrays of a script; empty where the prefetcher is asked while it plays."""
        count, layers, prefetch = len(self.selection.index), self.layers, config.prefetch
        pairs: list[tuple[int, int]] = []
        bounds = np.zeros(count * (layers + 1) + 1, dtype=np.int64)
        for n in range(0 if isinstance(prefetch, Nothing) or revises(config) else count):
            self.enter(n)
            first, points = n * (layers + 1) + 2, self.points
            for self.at in points:
                pairs += pairs_of(ask(prefetch, "wanted", self.at, self), layers, self.experts)
                bounds[first + self.at] = len(pairs)
            bounds[first + len(points) - 1 : first + layers] = len(pairs)
        flat = np.array(pairs, dtype=np.int64).reshape(-1, 2)
        return {"wanted_at": bounds, "wanted": flat}

    def beside(self, config: MobileConfig, scheduler: Scheduler) -> Callable[[int, int], None]:
        """What `interpret` calls at each (pass, layer), so that policies see what a live run would show them."""
        self.scheduler, totals = scheduler, None

        def consulted(n: int, layer: int) -> None:
            nonlocal totals
            if layer < 0:
                now = {name: count[0].copy() for name, count in scheduler.counts.items()}
                gone = None if totals is None else {name: now[name] - totals[name] for name in now}
                totals, before = now, self.text
                self.enter(n)
                if self.mode == PROMPT:
                    scheduler.cache.expected = None
                elif gone is not None:
                    before.outcomes.append(gone)
            self.at = layer
            if layer in self.points:
                consult(config, layer, self, scheduler)

        return consulted

    def hosted(self, config: MobileConfig, amounts, seconds: Callable) -> Callable[..., tuple[np.ndarray, float]]:
        """What `interpret` asks of each request's `experts`: whom a miss policy without loss has the host compute, and
        how long. It is told the weights that the router gave, or how many tokens ask.

        Args:
            amounts: of a layout.   seconds: (tokens) -> of one expert on the host.
        """

        def away(n: int, layer: int, experts: np.ndarray) -> tuple[np.ndarray, float]:
            at = self.asked_at[n * self.layers + layer]
            tokens = amounts[0][amounts[1][at : at + len(experts)]].tolist()
            self._playing.pump()  # as a live run does before it asks
            if not self.single or self.mode == PROMPT:
                answer = left_to_host(
                    config.miss, dict(zip(experts.tolist(), tokens, strict=True)), self._there(layer, experts)
                )
            else:
                self.at, (ids, weights) = layer, self._routed(layer)
                said = dict(zip(ids.tolist(), weights.tolist(), strict=True))
                asked = [
                    expert for expert in self.tape.best[self.selection.index[n], layer].tolist() if expert in experts
                ]
                weights = [said[expert] for expert in asked]
                answer = answered(config.miss, asked, weights, self._there(layer, asked), self)
            chosen = np.isin(experts, [each.expert for each in answer if isinstance(each, Host)])
            each = [seconds(amount) for amount, host in zip(tokens, chosen.tolist(), strict=True) if host]
            return chosen, each[0] * len(each) if self.single and each else sum(each)

        return away

    def _there(self, layer: int, experts) -> list[bool]:
        return [slot >= 0 for slot in self._playing.cache.slot_of[0, layer, experts].tolist()]


__all__ = ["Foresight"]
