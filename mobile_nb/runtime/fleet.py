"""The accounts of many texts that are written together, each on a simulated device of its own.

One scheduler, one configuration a text: residency, copies and time of every row are those that the row would have had
alone on an empty device. The experts are computed all at once by the model's own module; what a policy puts in an
expert's place is computed there. For evaluation. Knows nothing about tokens, text or decoding.

Legend: C texts, configurations · R rows of a call · T tokens a row · L MoE layers · E experts · K routed to · H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from ..clock import VirtualClock
from ..costs import Costs
from ..memory.cache import Cache
from ..memory.link import SimulatedLink
from ..memory.scheduler import Scheduler
from ..model.adapters import MoELayer
from ..model.experts import best
from ..policies.miss.ask import Host
from ..vocabulary import PROMPT
from .config import MobileConfig
from .facts import Text, consulted, counted, looks_ahead, revises
from .missed import answered, answers
from .rows import RowView

ACCOUNT = ("seconds", "computing_s", "bytes", "requests", "hits", "prefetches", "used")


class FleetExperts(nn.Module):
    """Takes the place of a block's experts; `modes` of the rows of a call, as in `batch.RowExperts`."""

    def __init__(self, fleet: Fleet, at: int, layer: MoELayer):
        super().__init__()
        self.inner, self.modes = layer.experts, []
        self.seen: torch.Tensor | None = None  # [R * T, K] what the router chose in the last call, best first
        self._serve = lambda *call: fleet.serve(at, *call)

    def forward(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        self.seen, index, weights = self._serve(hidden, index, weights)
        return self.inner(hidden, index, weights)


class Fleet:
    """Devices side by side.

    Args:
        layers, config, slots, costs: as of a `Server`.   texts: C.

    Attributes:
        experts: a module for each layer, to be put in the place of the block's experts.
    """

    def __init__(self, layers: list[MoELayer], config: MobileConfig, slots: int, costs: Costs, texts: int):
        self.layers, self.config, self.costs, self.texts = layers, config, costs, texts
        experts, top_k, count = layers[0].num_experts, layers[0].top_k, len(layers)
        cache = Cache(count, experts, np.full(texts, slots), config.evict)
        link = SimulatedLink(VirtualClock(texts), count, int(cache.slots.max()), np.full(texts, costs.fetch_s))
        self.scheduler = Scheduler(cache, link, record=False)
        self.views = [
            RowView(count, experts, top_k, scheduler=self.scheduler, row=row, fleet=self) for row in range(texts)
        ]
        self.experts = [FleetExperts(self, at, layer) for at, layer in enumerate(layers)]
        self.computing_s = np.zeros(texts)
        self.mode, self.place, self.calls = PROMPT, {}, []
        self._by_token, self._answers = getattr(config.count, "by_token", False), answers(config)
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
        moved = (counts["misses"] + counts["prefetches"]) * self.costs.expert_bytes
        found = {
            "seconds": self.scheduler.link.clock.now.copy(),
            "computing_s": self.computing_s.copy(),
            "bytes": moved,
        }
        return {name: found[name] if name in found else counts[name] for name in ACCOUNT}

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
        self._elapse({row: self.costs.layer_s(self._amount(row)) for row in self.rows})
        index, weights, runs = self._cut(at, index, weights)
        if self.mode == PROMPT:
            asked, seconds = self._prompt(index.view(*shape[:2], -1))
        else:
            asked, index, weights = self._token(at, index, weights, runs)
            seconds = [[self.costs.expert_s()] * len(each) for each in asked]
        for row, each in zip(self.rows, seconds, strict=True):
            self.computing_s[row] += sum(each)
        between = None if self.mode == PROMPT else lambda: self._consult(at)
        for _ in self.scheduler.request(at, self._spread(asked, -1), self._spread(seconds, 0.0), between):
            pass
        return seen, index, weights

    def _cut(self, at: int, index: torch.Tensor, weights: torch.Tensor):
        """Index and weights of as many experts as the count policy runs, and how many these are, a token each; where
        tokens differ, the rest weighs nothing."""
        layer = self.layers[at]
        count, modes = self.config.count, self.experts[at].modes
        if self._by_token and self.mode != PROMPT:
            told = [(sorted(token, reverse=True),) for token in weights.float().tolist()]
            answers = [counted(count, mode, at, layer.top_k, *each) for mode, each in zip(modes, told, strict=True)]
        else:
            known = {mode: counted(count, mode, at, layer.top_k) for mode in set(modes)}
            answers = [known[mode] for mode in modes]
        runs = [run for run, _ in answers]
        if set(answers) == {(layer.top_k, None)}:
            return index, weights, runs
        if len(set(answers)) == 1:
            return *best(index, weights, *answers[0], layer.renormalises, layer.scale), runs
        ids, amounts = index.clone(), torch.zeros_like(weights)
        for run, over in set(answers):
            mine = torch.tensor([answer == (run, over) for answer in answers], device=index.device)
            ids[mine, :run], amounts[mine, :run] = best(
                index[mine], weights[mine], run, over, layer.renormalises, layer.scale
            )
        return ids, amounts, runs

    def _prompt(self, index: torch.Tensor) -> tuple[list[list[int]], list[list[float]]]:
        """Of each text the experts that any of its tokens asks for, the most wanted first, and their seconds."""
        asked, seconds = [], []
        for row in self.rows:
            place = self.place[row]
            ids = index[place][torch.as_tensor(self.real[place], device=index.device)].tolist()
            if len(ids) == 1:
                asked.append(ids[0])
                seconds.append([self.costs.expert_s()] * len(ids[0]))
                continue
            found, amounts = np.unique(ids, return_counts=True)
            order = np.argsort(-amounts, kind="stable")
            asked.append(found[order].tolist())
            seconds.append([self.costs.expert_s(int(amount)) for amount in amounts[order]])
        return asked, seconds

    def _token(self, at: int, index: torch.Tensor, weights: torch.Tensor, runs: list[int]):
        """What each text asks the device for, and what is computed once its policy has answered."""
        ids, amounts = index.tolist(), weights.float().tolist()
        asked, changed, hosted = [], False, np.zeros(self.texts, dtype=np.int64)
        for row in self.rows:
            place, view = self.place[row], self.views[row]
            mine = ids[place][: runs[place]]
            if self._answers:
                there = self.scheduler.cache.slot_of[row, at, mine] >= 0
                view.at = at
                answer = answered(self.config.miss, mine, amounts[place][: len(mine)], there.tolist(), view)
                runs_there = [each.expert if isinstance(each, Host) else each for each in answer]
                changed |= runs_there != mine
                for position, expert in enumerate(runs_there):
                    ids[place][position] = 0 if expert is None else expert
                    amounts[place][position] *= expert is not None
                mine = [each for each in answer if each is not None and not isinstance(each, Host)]
                hosted[row] = sum(isinstance(each, Host) for each in answer)
            asked.append(list(dict.fromkeys(mine)))
        if hosted.any():
            self.scheduler.on_host(at, hosted, hosted * self.costs.host_s())
        if not changed:
            return asked, index, weights
        return asked, index.new_tensor(ids), weights.new_tensor(amounts)

    def said(self, layer: int, what: str) -> list:
        """What a layer's router says of the hidden states at hand, every row at once: `route` or `scores`."""
        if (layer, what) not in self._said:
            self._said[layer, what] = getattr(self.layers[layer], what)(self._hidden).tolist()
        return self._said[layer, what]

    # -- inside ----------------------------------------------------------------------------------------------------

    def _consult(self, at: int) -> None:
        if self.mode == PROMPT or self.scheduler.cache.slots[0] >= self.layers[0].num_experts:
            return
        answers = {row: consulted(self.config, at, self.views[row]) for row in self.rows}
        if looks_ahead(self.config):
            if self.scheduler.cache.expected is None:
                self.scheduler.cache.expected = np.zeros((self.texts, len(self.layers), self.layers[0].num_experts))
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
