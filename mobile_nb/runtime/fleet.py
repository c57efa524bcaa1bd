"""The accounts of many texts that are written together, each on a simulated device of its own.

One scheduler, one configuration a text: residency, copies and time of every row are those that the row would have had
alone on an empty device. The experts are computed all at once by the model's own module; what a policy puts in an
expert's place is computed there. For evaluation. Knows nothing about tokens, text or decoding.

Legend: C texts, configurations · R rows of a call · T tokens a row · L MoE layers · E experts · K routed to · H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from ..clock import VirtualClock
from ..costs import Costs
from ..memory.cache import Cache
from ..memory.link import SimulatedLink
from ..model.adapters import MoELayer
from ..policies.miss.ask import Host
from ..vocabulary import PROMPT
from .config import MobileConfig
from .facts import consulted, looks_ahead, revises
from .forms import Forms
from .missed import answered, answers, left_to_host
from .needs import make_scheduler, pieces_of
from .past import Text
from .rows import RowView, cut
from .states import States, context

ACCOUNT = ("seconds", "computing_s", "bytes", "requests", "hits", "prefetches", "used")


class FleetExperts(nn.Module):
    """Takes the place of a block's experts; `modes` of the rows of a call, as in `batch.RowExperts`."""

    def __init__(self, fleet: Fleet, at: int, compute: Callable[..., torch.Tensor]):
        super().__init__()
        self.modes: list[str] = []
        self.seen: torch.Tensor | None = None  # [R * T, K] what the router chose in the last call, best first
        self._serve, self._compute = lambda *call: fleet.serve(at, *call), compute

    def forward(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        self.seen, index, weights = self._serve(hidden, index, weights)
        return self._compute(hidden, index, weights)


class Fleet:
    """Devices side by side.

    Args:
        layers, config, costs: as of a `Server`.   pools: [L, F] slots of each form.   texts: C.
        compute: for each layer (hidden, index, weights) -> output, with experts numbered as by `every_form`; None: the
            model's own experts.

    Attributes:
        experts: a module for each layer, to be put in the place of the block's experts.
    """

    def __init__(self, layers: list[MoELayer], config: MobileConfig, pools, costs: Costs, compute, texts: int):
        self.layers, self.config, self.costs, self.texts = layers, config, costs, texts
        self.sizes = len(layers), layers[0].num_experts, layers[0].top_k
        self.forms = Forms(config.codec, *self.sizes[:2])
        cache = Cache(*self.sizes[:2], pools[None].repeat(texts, axis=0), config.evict, self.forms.own)
        fetch_s = np.repeat([costs.fetch_of(form) for form in range(pools.shape[1])], pools.max(axis=0))
        link = SimulatedLink(VirtualClock(texts), len(layers), len(fetch_s), fetch_s[None].repeat(texts, axis=0))
        self.scheduler = make_scheduler(config, cache, link, costs, layers[0], record=False)
        facts = {"scheduler": self.scheduler, "forms": self.forms, "fleet": self}
        self.views = [RowView(*self.sizes, **facts, row=row, given=States(context(config))) for row in range(texts)]
        compute = [layer.experts for layer in layers] if compute is None else compute
        self._pieces = pieces_of(config, self.scheduler, costs, compute, self)
        self.experts = [FleetExperts(self, at, each) for at, each in enumerate(compute)]
        self._full = all(cache.full(at) for at in range(len(layers)))  # nothing will ever be fetched
        self.computing_s = np.zeros(texts)
        self.mode, self.place, self.calls = PROMPT, {}, []
        self._answers = answers(config)
        self._hidden: torch.Tensor | None = None
        self._said: dict = {}
        self._ended: list = [None] * texts

    # -- passes ----------------------------------------------------------------------------------------------------

    def begin_pass(self, mode: str, rows: Sequence[int], places: Sequence[int], real=None, evicted=None) -> None:
        """Opens a pass of the texts `rows`, which are the rows `places` of the model's input.

        Args:
            real: of a prompt, [R, T] which tokens are text; the others pad.
            evicted: of a big pass that rewrites, for each of `rows` the K experts of the evicted token, a layer each.
        """
        self.mode, self.rows, self.place = mode, list(rows), dict(zip(rows, places, strict=True))
        self.real, self.calls = real, [None] * len(self.layers)
        for at, row in enumerate(rows):
            view = self.views[row]
            if mode == PROMPT:
                view.text = Text()
            elif evicted is None:
                view.text.passes.append((view.mode, *self._ended[row]))
            view.mode, view.read, view.evicted = mode, {}, None if evicted is None else evicted[at]
            view.given.begin(mode, evicted is None)
        self._before = {name: count.copy() for name, count in self.scheduler.counts.items()}
        self.scheduler.begin_pass()
        self._consult(-1)

    def end_pass(self) -> None:
        """Closes it."""
        ids, weights = (np.stack(each) for each in zip(*self.calls, strict=True))  # [L, R, T, K]
        self._elapse({row: self.costs.head_s(self._amount(row)) for row in self.rows})
        since = {name: count - self._before[name] for name, count in self.scheduler.counts.items()}
        for row in self.rows:
            place = self.place[row]
            tokens = slice(None) if self.real is None else self.real[place]
            self._ended[row] = ids[:, place, tokens], weights[:, place, tokens]
            self.views[row].text.outcomes.append({name: count[row] for name, count in since.items()})

    def account(self) -> dict[str, np.ndarray]:
        """Of each text so far, [C]: simulated seconds, seconds of computation alone, bytes moved, and counters."""
        counts = {name: count.sum(axis=1) for name, count in self.scheduler.counts.items()}
        weigh = [self.costs.bytes_of(form) for form in range(len(self.costs.coded))]
        moved = self.scheduler.fetches.sum(axis=1) @ np.array(weigh)
        now, computing = self.scheduler.link.clock.now.copy(), self.computing_s.copy()
        found = counts | {"seconds": now, "computing_s": computing, "bytes": moved}
        return {name: found[name] for name in ACCOUNT}

    # -- layers ----------------------------------------------------------------------------------------------------

    def serve(self, at: int, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor):
        """hidden [R * T, H], the router's index and weights [R * T, K] -> what the router chose, best first, and the
        index and weights that are computed."""
        layer = self.layers[at]
        plain = weights if layer.scale is None else weights / layer.scale[index]
        seen = index.gather(-1, plain.sort(dim=-1, descending=True, stable=True).indices)
        shape = (*((len(hidden), 1) if self.real is None else self.real.shape), index.shape[-1])
        self.calls[at] = tuple(each.cpu().numpy() for each in (index.view(shape), weights.float().view(shape)))
        self._hidden, self._said = hidden, {}
        for row in self.rows:
            if self.views[row].given.tokens:
                place, each = self.place[row], hidden.view(*shape[:2], -1)
                tokens = slice(None) if self.real is None else torch.as_tensor(self.real[place])
                self.views[row].given.see(at, each[place][tokens])
        self._elapse({row: self.costs.layer_s(self._amount(row)) for row in self.rows})
        self._hosted = np.zeros((2, self.texts))  # experts that the host computes for each, and their seconds
        index, weights, runs = cut(layer, at, self.config.count, self.experts[at].modes, index, weights)
        if self.mode == PROMPT:
            asked, seconds = self._prompt(at, index.view(*shape[:2], -1))
        else:
            asked, index, weights = self._token(at, index, weights, runs)
            seconds = [[self.costs.expert_s(1, entry // self.sizes[1]) for entry in each] for each in asked]
        if self._pieces is not None:
            given = hidden.view(*shape[:2], -1), index.view(*shape[:2], -1)
            seconds, rest = self._pieces.of_texts(at, dict(zip(self.rows, asked, strict=True)), self.real, *given)
            self.computing_s += rest
        for row, each in zip(self.rows, seconds, strict=True):
            self.computing_s[row] += sum(each)
        if self._hosted.any():
            self.scheduler.on_host(at, self._hosted[0].astype(np.int64), self._hosted[1])
        between = None if self.mode == PROMPT else lambda: self._consult(at)
        for _ in self.scheduler.request(at, self._spread(asked, -1), self._spread(seconds, 0.0), between):
            pass
        return seen, index, weights

    def _prompt(self, at: int, index: torch.Tensor) -> tuple[list[list[int]], list[list[float]]]:
        """Of each text the experts that any of its tokens asks for, the most wanted first, and their seconds."""
        asked, seconds = [], []
        for row in self.rows:
            place = self.place[row]
            ids = index[place][torch.as_tensor(self.real[place], device=index.device)].tolist()
            found, amounts = np.unique(ids, return_counts=True)
            order = np.argsort(-amounts, kind="stable")
            found, amounts = (ids[0], [1] * len(ids[0])) if len(ids) == 1 else (found[order], amounts[order])
            wanted = {int(expert): int(amount) for expert, amount in zip(found, amounts, strict=True)}
            who = left_to_host(self.config.miss, wanted, self.forms.there(at, wanted, self.scheduler.cache, row))
            away = [self.costs.host_s(wanted.pop(each.expert)) for each in who if isinstance(each, Host)]
            self._hosted[:, row] = len(away), sum(away)
            asked.append([self.forms.entry(at, expert) for expert in wanted])
            each = zip(wanted.values(), asked[-1], strict=True)
            seconds.append([self.costs.expert_s(amount, entry // self.sizes[1]) for amount, entry in each])
        return asked, seconds

    def _token(self, at: int, index: torch.Tensor, weights: torch.Tensor, runs: list[int]):
        """What each text asks the device for, and what is computed once its policy has answered."""
        ids, amounts = index.tolist(), weights.float().tolist()
        asked, changed = [], False
        if self._answers:
            self.scheduler.pump()  # so that nobody who is there now has to leave before the request
        for row in self.rows:
            place, view = self.place[row], self.views[row]
            mine = ids[place][: runs[place]]
            if self._answers:
                there, view.at = self.forms.there(at, mine, self.scheduler.cache, row), at
                answer = answered(self.config.miss, mine, amounts[place][: len(mine)], there, view)
                fetched = [None if isinstance(each, Host) else each for each in answer]
                entries = self.forms.entries(at, fetched, self.scheduler.cache, row)
                for position, (said, entry) in enumerate(zip(answer, entries, strict=True)):
                    runs_there = said.expert if isinstance(said, Host) else entry
                    changed |= runs_there != ids[place][position]
                    ids[place][position] = 0 if runs_there is None else self._number(runs_there)
                    amounts[place][position] *= runs_there is not None
                away = sum(isinstance(each, Host) for each in answer)
                self._hosted[:, row] = away, away * self.costs.host_s()
            else:
                entries = self.forms.entries(at, mine, self.scheduler.cache, row)
            asked.append([entry for entry in dict.fromkeys(entries) if entry is not None])
        if not changed:
            return asked, index, weights
        return asked, index.new_tensor(ids), weights.new_tensor(amounts)

    def _number(self, entry: int) -> int:
        """Of an entry, in what computes it."""
        return entry if self.forms.own is None else entry % self.sizes[1]

    def said(self, layer: int, what: str) -> list:
        """What a layer's router says of the hidden states at hand, every row at once: `route` or `scores`."""
        if (layer, what) not in self._said:
            self._said[layer, what] = getattr(self.layers[layer], what)(self._hidden).tolist()
        return self._said[layer, what]

    # -- inside ----------------------------------------------------------------------------------------------------

    def _consult(self, at: int) -> None:
        if self.mode == PROMPT or self._full:
            return
        answers = {row: consulted(self.config, at, self.views[row]) for row in self.rows}
        if looks_ahead(self.config):
            if self.scheduler.cache.expected is None:
                self.scheduler.cache.expected = np.zeros((self.texts, *self.sizes[:2]))
            for row, (expected, _) in answers.items():
                self.scheduler.cache.expected[row] = expected
        self.scheduler.want_each({row: wanted for row, (_, wanted) in answers.items()}, instead=revises(self.config))

    def _amount(self, row: int) -> int:
        return 1 if self.real is None else int(self.real[self.place[row]].sum())

    def _elapse(self, seconds: dict[int, float]) -> None:
        every = np.zeros(self.texts)
        every[list(seconds)] = list(seconds.values())
        self.computing_s += every
        self.scheduler.link.elapse(every)

    def _spread(self, values: list[list], empty) -> np.ndarray:
        """Lists of the texts of this pass as an array [C, k]."""
        spread = np.full((self.texts, max(map(len, values), default=0)), empty)
        for row, each in zip(self.rows, values, strict=True):
            spread[row, : len(each)] = each
        return spread


__all__ = ["ACCOUNT", "Fleet"]
