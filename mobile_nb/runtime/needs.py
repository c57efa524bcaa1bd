"""What a request needs of its experts, and how long computing that takes: whole ones, or pieces (`policies.Channels`).

Legend: C texts, configurations · k experts asked for · E experts · T tokens · H hidden · I channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from ..costs import Costs
from ..hardware import Geometry
from ..memory.cache import Cache
from ..memory.channels import ChannelScheduler
from ..memory.codecs import pieces
from ..memory.scheduler import Scheduler
from ..memory.store import Layout
from ..model.adapters import MoELayer
from ..model.channels import ChannelSlots, width
from ..model.decoded import Pools
from ..policies import OnHost
from ..policies.channels import Channels
from ..policies.codec import Codec
from ..vocabulary import MobileError
from .config import MobileConfig


def refuse(config: MobileConfig, layers: list[MoELayer], simulated: bool) -> None:
    """Raises where experts cannot come in pieces.

    Raises:
        MobileError: a card, other thresholds than the model has experts, experts of another kind, or computing on the
            host, which would compute whole ones.
    """
    codec = config.codec
    if not isinstance(codec, Channels):
        return
    if not simulated:
        raise MobileError("channels of experts travel on simulated links only: keep the model on the CPU.")
    if isinstance(config.miss, OnHost):
        raise MobileError(f"the host would compute whole experts, and {codec!r} runs some channels: use miss=Wait().")
    given, found = (len(codec.thresholds), len(codec.thresholds[0])), (len(layers), layers[0].num_experts)
    if given != found:
        raise MobileError(
            f"the thresholds are for {given[0]} layers of {given[1]} experts, and the model has {found[0]} of "
            f"{found[1]}."
        )
    for layer in layers:
        width(layer.experts)


def travelling(codec: Codec, layer: MoELayer, geometry: Geometry, own: bool, held: Sequence) -> tuple:
    """Bytes a weight of what is copied, as `Costs` asks for; `held` is that of slots, None for the model's own.

    Args:
        own: as blocks really are; else as forms say, where another model is timed.
    """
    if not isinstance(codec, Channels):
        return tuple(held)
    if own:
        return pieces(codec, Layout.of(layer.experts, layer.num_experts))
    return codec.pieces(geometry.bytes_per_weight, width(layer.experts))


def make_scheduler(config: MobileConfig, cache: Cache, link, costs: Costs, layer: MoELayer, *, record: bool = True):
    """The scheduler that a codec takes."""
    if not isinstance(config.codec, Channels):
        return Scheduler(cache, link, record=record)
    return ChannelScheduler(cache, link, width(layer.experts), costs.channels_fetch_s, record=record)


def make_slots(layer: MoELayer, at: int, arena, codec: Codec, cache: Cache, device, scratches: dict):
    """The device slots of a layer that a codec takes."""
    if not isinstance(codec, Channels):
        return Pools(layer, at, arena, codec, cache, device, scratches)
    return ChannelSlots(layer, at, arena, codec, cache, device)


class Whole:
    """What a live run's requests come to where experts come whole."""

    def __init__(self, costs: Costs, experts: int):
        self._costs, self._experts = costs, experts
        self._one = [costs.expert_s(1, form) for form in range(len(costs.coded))]

    def seconds(self, at: int, entries: list[int], amounts: list[int], tokens) -> np.ndarray:
        """Of entries that serve so many tokens each [1, k]."""
        forms = [entry // self._experts for entry in entries]
        each = zip(amounts, forms, strict=True)
        return np.array([[self._one[f] if amount == 1 else self._costs.expert_s(amount, f) for amount, f in each]])


class Pieces:
    """Tells a scheduler what requests need of experts that come in pieces, and its prefetches what they may bring.

    Args:
        scheduler: whom to tell.   costs: seconds.   computes: of each layer who knows its masks; may be filled later.
        at_hand: () -> the layer at hand (-1: none), its hidden states [R, H], and the row of them that each text has.
        ahead: whether channels are prefetched.
    """

    def __init__(self, scheduler: ChannelScheduler, costs: Costs, computes: Sequence, at_hand: Callable, ahead: bool):
        self.scheduler, self.costs, self._computes, self._at_hand = scheduler, costs, computes, at_hand
        self._texts, _, _, self._channels = scheduler.there.shape
        if ahead:
            scheduler.foresee = self._foresee

    def need(self, at: int, asked: Mapping[int, list[int]], tokens: Callable[[int, int], torch.Tensor]) -> np.ndarray:
        """Of what texts ask a layer for: seconds [2, C, k], of the first pieces and of the rest.

        Args:
            asked: experts of each text.   tokens: (text, expert) -> the hidden states [T, H] that it is to compute.
        """
        most, cells = max(map(len, asked.values()), default=0), {}
        needed, seconds = np.zeros((self._texts, most, self._channels), dtype=bool), np.zeros((2, self._texts, most))
        for text, experts in asked.items():
            for place, expert in enumerate(experts):
                cells.setdefault(expert, []).append((text, place, tokens(text, expert)))
        for expert, each in cells.items():
            runs = self._computes[at].mask(expert, torch.cat([hidden for *_, hidden in each]))
            for (text, place, hidden), mine in zip(each, runs.split([len(h) for *_, h in each]), strict=True):
                needed[text, place] = mine.any(dim=0).numpy()
                amount, share = len(hidden), needed[text, place].mean()
                rest = self.costs.channels_s(share, amount) if share else 0.0
                seconds[:, text, place] = self.costs.up_s(amount), rest
        self.scheduler.need(needed, seconds[1])
        return seconds

    def seconds(self, at: int, entries: list[int], amounts: list[int], tokens) -> np.ndarray:
        """Of first pieces [1, k], in a live run; `tokens`: expert -> the hidden states [T, H] that it is to compute."""
        found = self.need(at, {0: entries}, lambda _, expert: tokens(expert))
        self._computes[at].needed = dict(zip(entries, self.scheduler.needed[0], strict=True))
        return found[0]

    def of_texts(self, at: int, asked: dict[int, list[int]], real, hidden, index) -> tuple[list, np.ndarray]:
        """Of several texts: seconds of first pieces, a list each, and of all the rest [C].

        Args:
            real: of a prompt, [R, T] which tokens are text; None for one token each, whatever the router chose.
            hidden, index: [R, T, H] and [R, T, K].
        """
        places = self._at_hand()[2]

        def tokens(text: int, expert: int) -> torch.Tensor:
            here = places[text]
            if real is None:
                return hidden[here]
            return hidden[here][torch.as_tensor(real[here]) & (index[here] == expert).any(dim=1)]

        up, rest = self.need(at, asked, tokens)
        return [up[text, : len(experts)].tolist() for text, experts in asked.items()], rest.sum(axis=1)

    def _foresee(self, layer: int, expert: int) -> np.ndarray | None:
        at, hidden, places = self._at_hand()
        if hidden is None or not 0 <= at < layer:
            return None
        found = np.zeros((self._texts, self._channels), dtype=bool)
        found[list(places)] = self._computes[layer].mask(expert, hidden).numpy()[list(places.values())]
        return found


def needs(config: MobileConfig, scheduler: Scheduler, costs: Costs, slots: Sequence, view) -> Whole | Pieces:
    """Of a live run, whose layers have these slots."""
    if not isinstance(config.codec, Channels):
        return Whole(costs, view.experts)
    scheduler.fill = lambda layer, *copied: slots[layer].fill(*copied)
    return Pieces(scheduler, costs, slots, lambda: (view.at, view.hidden, {0: 0}), config.codec.ahead)


def pieces_of(config: MobileConfig, scheduler: Scheduler, costs: Costs, compute: Sequence, fleet) -> Pieces | None:
    """Of a fleet, whose layers are computed so; None where experts come whole."""
    if not isinstance(config.codec, Channels):
        return None

    def at_hand():
        return fleet.views[fleet.rows[0]].at, fleet._hidden, fleet.place

    return Pieces(scheduler, costs, compute, at_hand, config.codec.ahead)


__all__ = ["Pieces", "make_scheduler", "make_slots", "needs", "pieces_of", "refuse", "travelling"]
