"""Serves the MoE layers of one model: how many run, who is fetched, what is computed. The heart of the runtime.

Called by the model itself, layer by layer, in place of its experts. Knows nothing about tokens, text or decoding.

Legend: T tokens of the call · K experts routed to · k of them run · E experts · S slots · H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..costs import Costs
from ..memory.cache import Cache
from ..memory.disk import DiskArena, HostCache, arena_of
from ..memory.store import Arena
from ..memory.wall import GUESSED, KNOWN
from ..model.adapters import MoELayer
from ..model.experts import OffloadedExperts, best, picked
from ..policies.miss.ask import Host
from ..vocabulary import BIG, LITTLE, PROMPT
from .config import MobileConfig
from .facts import View, consult, counted, read_gates
from .forms import Forms
from .hosted import HostUnit
from .missed import answered, answers, left_to_host
from .needs import make_scheduler, make_slots, needs
from .past import Text
from .states import States, context


class Server:
    """Arenas, slots, scheduler and the current pass of one offloaded model.

    Args:
        layers: the model's MoE layers; `install` replaces their experts, `remove` puts them back.
        config, slots: the policies, and slots per layer as `choose_slots` gives them.
        costs: seconds and bytes of each event.
        device: where the slots are.
        make_link: (mover) -> link.
    """

    def __init__(self, layers: list[MoELayer], config: MobileConfig, slots, costs: Costs, device, make_link):
        self.layers, self.config, self.costs = layers, config, costs
        self.slots = max(slots) if isinstance(slots, tuple) else slots  # as the configuration says them
        self.arenas: list[Arena | DiskArena] = []
        self.host_cache: HostCache | None = None
        self._slots: list = []  # of each layer, `Pools` or what its codec takes
        self.link = make_link(lambda at, expert, slot: self._slots[at].copy_to(expert, slot))
        experts, top_k = layers[0].num_experts, layers[0].top_k
        self.forms = Forms(config.codec, len(layers), experts)
        self.pools = self.forms.sizes(slots)  # [L, F]
        cache = Cache(len(layers), experts, self.pools[None], config.evict, self.forms.own)
        self.scheduler = make_scheduler(config, cache, self.link, costs, layers[0])
        self.view = View(len(layers), experts, top_k, scheduler=self.scheduler, found=layers, forms=self.forms)
        self.view.given = States(context(config))
        self._needs = needs(config, self.scheduler, costs, self._slots, self.view)
        self.mode: str | None = None  # None: the model was called outside a pass
        big_too = config.miss.lossless or not config.drafts  # a verification is the full model's
        self._asks = () if not answers(config) else (PROMPT, LITTLE, BIG) if big_too else (PROMPT, LITTLE)
        self._by_token, self._settled = getattr(config.count, "by_token", False), [False] * len(layers)
        self._device, self._ended, self._host = device, None, HostUnit(layers, self._slots)
        self.passes, self.gaps = 0, False  # passes that ended; whether slots saw requests that no `Pass` tells of
        self.kept: int | None = None  # how many tokens of several the pass before wrote; None: its last
        self._routed: list[list] = [[] for _ in layers]

    @property
    def slot_bytes(self) -> int:
        """Device memory that they take."""
        return sum(slots.nbytes for slots in self._slots)

    @property
    def pinned(self) -> bool:
        """Whether all copies come from page-locked memory."""
        return all(slots.pinned for slots in self._slots)

    def install(self, arenas: Sequence[Arena | DiskArena] = ()) -> None:
        """Packs each layer's experts into an arena, makes its slots, and takes the experts' place.

        Args:
            arenas: those that the server before has left, if there was one.
        """
        self.arenas[:], scratches, cache = arenas, {}, self.scheduler.cache
        for at, layer in enumerate(self.layers):
            if at == len(self.arenas):
                pin = self._device.type == "cuda"
                self.arenas.append(arena_of(layer.experts, layer.num_experts, at, self.host_cache, pin=pin))
            about = self.arenas[at], self.config.codec, cache, self._device, scratches
            self._slots.append(make_slots(layer, at, *about))
            for slot in np.flatnonzero(cache.shut[0, at] & (cache.expert_in[0, at] >= 0)):  # who stays for good
                self._slots[at].copy_to(int(cache.expert_in[0, at, slot]), int(slot))
            layer.block.experts = OffloadedExperts(
                lambda hidden, index, weights, at=at: self._serve(at, hidden, index, weights)
            )

    def leave(self) -> list[Arena | DiskArena]:
        """Gives the slots back, and hands the arenas on to the next server; `install` with them takes both again."""
        self.link.vacate()  # a copy or a computation under way must not outlive its slots
        self.scheduler.cache.clear()
        self.gaps = True
        arenas = list(self.arenas)
        for held in (self._slots, self._host, self.arenas):
            held.clear()
        return arenas

    def remove(self) -> None:
        """Gives the model back as it was; safe to call at any point of `install`, and twice."""
        try:
            self.link.close()
        finally:
            for layer in self.layers:
                layer.block.experts = layer.experts
            for held in (self._slots, self._host, self._routed):
                held.clear()
        while self.arenas:  # one at a time: the weights need not lie in memory twice
            self.arenas[-1].release()
            self.arenas.pop()

    def begin_pass(self, mode: str, evicted: list[list[int]] | None = None) -> None:
        """Opens a forward pass: "prompt", "little" or "big"; `evicted` is the routing of what was drafted for it."""
        if mode == PROMPT:
            self.view.text, self.scheduler.cache.expected = Text(), None
        elif evicted is None:  # the pass before wrote a token
            self.view.text.add(self.view.mode, *self._ended, self.kept)
        self.view.drafted, self.view.evicted = evicted, evicted if mode == BIG else None
        self.mode, self.view.mode, self.view.read, self.kept = mode, mode, {}, None
        self.view.given.begin(mode, evicted is None)
        self._routed = self.view.calls = [[] for _ in self.layers]
        self._before = {name: count[0].copy() for name, count in self.scheduler.counts.items()}
        self.link.window = KNOWN if self.view.evicted else GUESSED
        self.scheduler.begin_pass()
        self._prefetch(-1)

    def end_pass(self) -> dict:
        """Closes it. Returns routing [L, T, K] and counts [L] as `trace.Pass` wants them."""
        tokens = sum(len(index) for index, _ in self._routed[0])
        self.link.elapse(self.costs.head_s(tokens))
        self.mode, self.passes = None, self.passes + 1
        self.gaps |= len(self._routed[0]) > 1  # a prompt in chunks
        ids = torch.stack([torch.cat([i for i, _ in calls]) for calls in self._routed])
        weights = torch.stack([torch.cat([w for _, w in calls]) for calls in self._routed])
        since = {name: self.scheduler.counts[name][0] - before for name, before in self._before.items()}
        self._ended = ids.to("cpu", torch.int16).numpy(), weights.to("cpu", torch.float32).numpy()
        self.view.text.outcomes.append(since)
        return {
            "ids": self._ended[0],
            "weights": self._ended[1],
            "copies": self.scheduler.take_copies(),
            "waves": self.forms.named(self.link.take_waves()),
            "gates": read_gates(self.view.read, ids.shape),
        } | {name: since[name] for name in ("requests", "hits", "late", "misses")}

    def give_up(self) -> None:
        """Closes a pass that was cut short. A copy may have been too, so no slot is taken to hold anything any more."""
        if self.mode is not None:
            self.mode, self.gaps = None, True
            self.scheduler.cache.clear()

    def _serve(self, at: int, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """hidden [T, H], the router's index and weights [T, K] -> what the experts add [T, H]."""
        layer, tokens = self.layers[at], len(hidden)
        if self.mode is not None:
            self._routed[at].append((index, weights))
            self.view.given.see(at, hidden)
        else:
            self.gaps = True
        run, over = self._count(at, layer.top_k, weights)
        if run < layer.top_k or over is not None:
            index, weights = best(index, weights, run, over, layer.renormalises, layer.scale)
        elif not layer.ranked:
            index, weights = best(index, weights, run, None, False, layer.scale)
        self.link.elapse(self.costs.layer_s(tokens))
        self._settled[at] = self._settled[at] or self.scheduler.settled(at)
        if self._settled[at]:
            return self._hit(at, hidden, index, weights)
        if tokens > 1 or self.link.asynchronous:  # drafts have wishes; a real link goes on while a card is waited for
            self.scheduler.pump()
        return (self._one_token if tokens == 1 else self._many_tokens)(at, hidden, index, weights)

    def _count(self, at: int, k: int, weights: torch.Tensor) -> tuple[int, int | None]:
        mode, told = self.mode or PROMPT, ()
        if self._by_token and len(weights) == 1 and mode != PROMPT:
            told = (sorted(weights[0].float().tolist(), reverse=True),)
        return counted(self.config.count, mode, at, k, *told)

    def _hit(self, at: int, hidden, index, weights) -> torch.Tensor:
        """Every expert is on the device for good: expert e lives in slot e, and nothing needs to be looked up."""
        if len(hidden) == 1:
            amounts = [1] * index.shape[1]
        else:
            amounts = torch.unique(index, return_counts=True)[1].tolist()
        self.link.begin_layer()
        self.scheduler.all_hit(at, len(amounts), self.costs.experts_s(amounts))
        return self._slots[at].first(hidden, index, weights)

    def _one_token(self, at: int, hidden, index, weights) -> torch.Tensor:
        ids, self.view.hidden = index[0].tolist(), hidden
        if (self.mode or PROMPT) in self._asks:
            ids = self._replaced(at, ids, weights[0].float().tolist())
        hosted = {position: who.expert for position, who in enumerate(ids) if isinstance(who, Host)}
        ids = [None if position in hosted else who for position, who in enumerate(ids)]
        columns: dict[int, list[int]] = {}  # entry -> positions it serves
        for position, entry in enumerate(self.forms.entries(at, ids, self.scheduler.cache)):
            if entry is not None:
                columns.setdefault(int(entry), []).append(position)
        asked, parts = np.array([list(columns)], dtype=np.int64), []
        if hosted:
            on_host = self._host.take(at, hidden, picked(weights, list(hosted)), list(hosted.values()))
            self.scheduler.on_host(at, len(hosted), self.costs.host_s() * len(hosted))
        seconds = self._needs.seconds(at, list(columns), [1] * len(columns), lambda expert: hidden)
        for wave in self.scheduler.request(at, asked, seconds, lambda: self._prefetch(at)):
            parts.append(self._slots[at].one_token(wave, columns, hidden, weights))
        if hosted:  # while the link and the device are at work
            parts.append(on_host())
        return sum(parts[1:], parts[0]) if parts else torch.zeros_like(hidden)

    def _replaced(self, at: int, ids: list[int], weights: list[float]) -> list:
        """Who runs in the place of each asked expert."""
        self.view.at = at
        self.scheduler.pump()  # so that nobody who is there now has to leave before the request
        there = self.forms.there(at, ids, self.scheduler.cache)
        if self.mode not in (LITTLE, BIG):
            return left_to_host(self.config.miss, dict.fromkeys(ids, 1), there)
        return answered(self.config.miss, ids, weights, there, self.view)

    def _many_tokens(self, at: int, hidden, index, weights) -> torch.Tensor:
        """A prompt: every expert that any token asks for, the most wanted first."""
        pairs = zip(*(part.tolist() for part in torch.unique(index, return_counts=True)), strict=True)
        wanted = dict(sorted(pairs, key=lambda pair: -pair[1]))  # expert -> of how many tokens
        who = left_to_host(self.config.miss, wanted, self.forms.there(at, wanted, self.scheduler.cache))
        if hosted := [each.expert for each in who if isinstance(each, Host)]:
            on_host = self._host.take_several(at, hidden, index, weights, hosted)
            self.scheduler.on_host(at, len(hosted), sum(self.costs.host_s(wanted[each]) for each in hosted))
        asked = {self.forms.entry(at, each): wanted[each] for each in wanted if each not in hosted}
        of = list(asked), list(asked.values()), lambda expert: hidden[(index == expert).any(dim=1)]
        seconds = self._needs.seconds(at, *of)
        out = torch.zeros_like(hidden)
        for wave in self.scheduler.request(at, np.array([list(asked)], dtype=np.int64), seconds):
            out = self._slots[at].many_tokens(wave, wanted, hidden, index, weights, out)
        return out + on_host() if hosted else out  # while the link and the device are at work

    def _prefetch(self, at: int) -> None:
        if self.mode not in (None, PROMPT) and not all(self._settled):
            consult(self.config, at, self.view, self.scheduler)


__all__ = ["Server"]
