"""Runs experts of which only some channels are on the device (`policies.Channels`), and measures what their thresholds
are made of. Knows nothing about why a channel is where it is.

Legend: T tokens · K experts asked for · E experts · S slots · H hidden · I channels, the inner size · n of them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

from ..memory.cache import Cache
from ..memory.codecs import Encoding, first_piece
from ..memory.store import Arena, Layout, room_for
from ..policies.channels import Channels
from ..policies.codec import Codec, Form, Int2
from ..vocabulary import MobileError
from .adapters import MoELayer, find_layers
from .decoded import every_form
from .experts import gated


def width(experts: nn.Module) -> int:
    """I, of experts whose channels can come one by one.

    Raises:
        MobileError: they are not made of a gate, an up and a down matrix alone, whose products up multiplies.
    """
    own = {name for name, p in experts.named_parameters(recurse=False) if p is not None}
    if own == {"gate_up_proj", "down_proj"} and gated(experts):
        inner = experts.down_proj.shape[-1]
        given = torch.randn(4, 2 * inner, generator=torch.Generator().manual_seed(0))
        given = given.to(experts.down_proj.device, experts.down_proj.dtype)
        twice = torch.cat([given[:, :inner], 2 * given[:, inner:]], dim=1)
        if torch.equal(experts._apply_gate(twice), 2 * experts._apply_gate(given)):
            return inner
    raise MobileError(
        f"channels come one by one where an expert is act(gate) * up, then down, without biases; "
        f"{type(experts).__name__} is not: use another codec, such as policies.Int4()."
    )


class _Matrices:
    """The three matrices of all experts of a layer in host memory, `up` as its form leaves it."""

    def __init__(self, layer: MoELayer, at: int, arena: Arena, codec: Channels):
        views, self._gate_of = arena.layout.views(arena.blocks), layer.experts._apply_gate
        inner = width(layer.experts)
        self.thresholds, up = codec.thresholds[at], views["gate_up_proj"][:, inner:]
        self.gate, self.down = views["gate_up_proj"][:, :inner], views["down_proj"]  # [E, I, H], [E, H, I]
        piece, self.encoding = first_piece(arena.layout), None
        self.encoded = self.up = up.reshape(len(up), -1)
        if codec.up.bits is not None:
            self.encoding = Encoding(piece, codec.up)
            self.encoded = self.encoding.encode(self.up)
        self.up = self.decoded(self.encoded).view(up.shape)  # [E, I, H]

    def decoded(self, encoded: torch.Tensor) -> torch.Tensor:
        """`up` [N, I * H] of what travels [N, nbytes], or of itself."""
        if self.encoding is None:
            return encoded
        out = torch.empty(len(encoded), self.encoding.layout.numel, dtype=self.encoding.layout.dtype)
        self.encoding.decode(encoded, out)
        return out

    def mask(self, expert: int, hidden: torch.Tensor) -> torch.Tensor:
        """Which channels of an expert run for hidden [T, H]: bool [T, I]."""
        return (hidden @ self.up[expert].t()).abs() > self.thresholds[expert]

    def outputs(self, expert: int, hidden, up, gate, down, channels: torch.Tensor) -> torch.Tensor:
        """What an expert makes of hidden [T, H] where it has up [I, H], and of n channels gate and down [n, H]."""
        made = hidden @ up.t()  # [T, I]
        runs = (made.abs() > self.thresholds[expert])[:, channels]
        inner = self._gate_of(torch.cat([hidden @ gate.t(), made[:, channels]], dim=1))  # [T, n]
        return torch.where(runs, inner, torch.zeros_like(inner)) @ down


class ChannelExperts:
    """All experts of a layer with all their channels at hand, of which those run that the codec lets run."""

    def __init__(self, layer: MoELayer, at: int, arena: Arena, codec: Channels):
        self._matrices = matrices = _Matrices(layer, at, arena, codec)
        self.mask, self._all = matrices.mask, torch.arange(matrices.gate.shape[1])

    def __call__(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """hidden [T, H], experts and weights [T, K] -> [T, H]."""
        out, m = torch.zeros_like(hidden), self._matrices
        for expert in index.unique().tolist():
            token, position = torch.nonzero(index == expert, as_tuple=True)
            given = m.up[expert], m.gate[expert], m.down[expert].t(), self._all
            part = m.outputs(expert, hidden[token], *given)
            out.index_add_(0, token, part * weights[token, position][:, None].to(part.dtype))
        return out


class ChannelSlots:
    """Device slots of one layer: `up` in its form and room for every channel of gate and down. It has the calls of
    `Pools`.

    Args:
        layer: the MoE layer.   at: its number.   arena: all its experts.   codec: how they come.
        cache: knows how many slots there are, and who has one for good.   device: where slots are: a CPU.

    Attributes:
        needed: expert -> the channels [I] that the call at hand needs; only these are read.
    """

    pinned = False

    def __init__(self, layer: MoELayer, at: int, arena: Arena, codec: Channels, cache: Cache, device):
        self._matrices = m = _Matrices(layer, at, arena, codec)
        size, self.mask = int(cache.sizes[0, at, 0]), m.mask
        inner, hidden = m.gate.shape[1:]
        nbytes = m.encoded[0].nbytes + 2 * inner * hidden * arena.layout.dtype.itemsize
        with room_for(cache.sizes[0], [nbytes], device):
            self.blocks = torch.zeros(size, *m.encoded.shape[1:], dtype=m.encoded.dtype)
            self.channels = torch.full((size, inner, 2, hidden), torch.nan, dtype=arena.layout.dtype)
        self.nbytes, self.needed = self.blocks.nbytes + self.channels.nbytes, {}
        for slot, expert in enumerate(cache.expert_in[0, at, :size].tolist()):
            if expert >= 0:
                self.copy_to(expert, slot)
                self.fill(expert, slot, np.ones(inner, dtype=bool))

    def copy_to(self, expert: int, slot: int) -> None:
        """The copy of the first piece."""
        self.blocks[slot] = self._matrices.encoded[expert]

    def fill(self, expert: int, slot: int, channels: np.ndarray) -> None:
        """The copy of some channels [I] beside it."""
        some = torch.from_numpy(np.flatnonzero(channels))
        self.channels[slot, some, 0] = self._matrices.gate[expert][some]
        self.channels[slot, some, 1] = self._matrices.down[expert][:, some].t()

    def one_token(self, wave: list[tuple[int, int]], columns: dict[int, list[int]], hidden, weights) -> torch.Tensor:
        """As of `Pools`."""
        return sum(
            self._outputs(expert, slot, hidden) * weights[:, columns[expert]].sum(dim=1, keepdim=True).to(hidden.dtype)
            for expert, slot in wave
        )

    def many_tokens(self, wave: list[tuple[int, int]], wanted: dict[int, int], hidden, index, weights, out):
        """As of `Pools`."""
        for expert, slot in wave:
            token, position = torch.nonzero(index == expert, as_tuple=True)
            part = self._outputs(expert, slot, hidden[token])
            out.index_add_(0, token, part * weights[token, position][:, None].to(part.dtype))
        return out

    def _outputs(self, expert: int, slot: int, hidden: torch.Tensor) -> torch.Tensor:
        some = torch.from_numpy(np.flatnonzero(self.needed[expert]))
        up = self._matrices.decoded(self.blocks[slot : slot + 1]).view(-1, hidden.shape[1])
        gate, down = self.channels[slot, some].unbind(dim=1)
        return self._matrices.outputs(expert, hidden, up, gate, down, some)


def computed_from(layer: MoELayer, at: int, arena: Arena, codec: Codec):
    """Computes any experts of a layer as a codec leaves them; see `every_form`."""
    kind = ChannelExperts if isinstance(codec, Channels) else every_form
    return kind(layer, at, arena, codec)


@torch.no_grad()
def up_outputs(model, texts: Iterable[torch.Tensor], up: Form | None = None) -> list[list[np.ndarray]]:
    """What every expert's `up` makes of the tokens that are routed to it, [L][E] arrays [N, I], for
    `policies.Channels.by_sparsity`. Of an expert that nobody is routed to, what it makes of all of them.

    Args:
        model: not offloaded.   texts: calibration texts, token ids [1, N] each.   up: its form; None for `Int2()`.
    """
    layers, up = find_layers(model), Int2() if up is None else up
    each, found = [_calls(model, layers, ids) for ids in texts], []
    if not each:
        raise MobileError("thresholds cannot be told: there is no text to calibrate on.")
    for at, layer in enumerate(layers):
        hidden, index = (torch.cat(parts) for parts in zip(*(calls[at] for calls in each), strict=True))
        inner = width(layer.experts)
        layout = first_piece(Layout.of(layer.experts, layer.num_experts))
        matrices = layer.experts.gate_up_proj.detach()[:, inner:].flatten(1)  # [E, I * H]
        if up.bits is not None:
            encoding, rough = Encoding(layout, up), torch.empty_like(matrices, memory_format=torch.contiguous_format)
            encoding.decode(encoding.encode(matrices), rough)
            matrices = rough
        routed = [hidden[(index == expert).any(dim=1)] for expert in range(layer.num_experts)]
        routed = [some if len(some) else hidden for some in routed]
        ups = matrices.view(layer.num_experts, inner, -1)
        found.append([(some @ matrix.t()).float().cpu().numpy() for some, matrix in zip(routed, ups, strict=True)])
    return found


def _calls(model, layers: list[MoELayer], ids: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What each layer's experts are given of a text [1, N]: hidden [N, H] and whom they are asked for [N, K]."""
    seen = {}
    hooks = [
        layer.experts.register_forward_pre_hook(lambda _, given, at=at: seen.__setitem__(at, given[:2]))
        for at, layer in enumerate(layers)
    ]
    try:
        model(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return [seen[at] for at in range(len(layers))]


__all__ = ["ChannelExperts", "ChannelSlots", "computed_from", "up_outputs", "width"]
