"""Runs experts from device slots, or on the host. Knows nothing about why an expert is where it is.

The arithmetic is the model's own: a shallow copy of its experts module whose weights are views of the slots, called
with slot numbers in place of expert ids. So biases, interleaved or transposed weights and special gates need no code
here. One token takes a shorter way to the same numbers, where the module is of the common kind and the host knows the
slots: a few matrix-vector products, for which a card's host waits for nothing.

Legend: T tokens · K experts asked for · S slots · H hidden · I inner.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from ..memory.disk import DiskArena
from ..memory.store import Arena, Slots

GATHER_LIMIT = 1 << 20  # bytes of one expert up to which gathering the weights of a token beats a loop over them


class OffloadedExperts(nn.Module):
    """Takes the place of a block's `experts` while the model is offloaded, and hands each call on.

    Args:
        serve: (hidden [T, H], index [T, K], weights [T, K]) -> [T, H].
    """

    def __init__(self, serve: Callable[..., torch.Tensor]):
        super().__init__()
        self._serve = serve

    def forward(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return self._serve(hidden, index, weights)


def gated(experts: nn.Module) -> bool:
    """Whether an expert is act(gate) * up, then down, and no more; transformers knows a norm behind it since 5.20."""
    plain = not getattr(experts, "is_transposed", True) and not getattr(experts, "has_post_expert_norm", False)
    return plain and hasattr(experts, "_apply_gate")


class SlotExperts:
    """The experts of one layer, computed from its slots."""

    def __init__(self, experts: nn.Module, slots: Slots):
        self._twin = copy.copy(experts)
        self._twin._parameters = dict(experts._parameters)
        for name, view in slots.views.items():
            self._twin._parameters[name] = nn.Parameter(view, requires_grad=False)
        self._twin.num_experts = len(slots.blocks)
        common = (
            gated(experts)
            and getattr(experts, "has_gate", False)
            and not getattr(experts, "has_bias", True)
            and set(slots.views) == {"gate_up_proj", "down_proj"}
        )
        self._short, self._device = common, slots.blocks.device
        self._numbers = torch.arange(len(slots.blocks), device=self._device)
        self._gather = slots.blocks[0].nbytes <= GATHER_LIMIT
        if self._short:
            self._gate_up = slots.views["gate_up_proj"].unbind(0)  # S of [2I, H]
            self._down = slots.views["down_proj"].unbind(0)  # S of [H, I]

    def __call__(self, hidden: torch.Tensor, slots: torch.Tensor | list[int], weights, used=None) -> torch.Tensor:
        """hidden [T, H], slot numbers [T, K], weights [T, K] -> weighted sum of the experts' outputs [T, H].

        Of one token the slot numbers may be a list of K: then nobody has to ask the device for them. `used` is for
        slots that are decoded first: see `DecodedExperts`.
        """
        if self._short and len(hidden) == 1:
            if isinstance(slots, list):
                return self._one(hidden[0], slots, weights)
            if self._device.type == "cpu":
                return self._one(hidden[0], slots[0].tolist(), weights)
        if isinstance(slots, list):
            slots = listed(self._numbers, slots)[None]
        if len(hidden) == 1 and self._device.type != "cpu" and self._grouped():
            return ALL_EXPERTS_FUNCTIONS["batched_mm"](self._twin, hidden, slots, weights)
        return self._twin(hidden, slots, weights)

    def _grouped(self) -> bool:
        """Whether the module would multiply in groups, for which a card's host waits in float16 and float32; so
        transformers' own `generate` does not let it for one token either."""
        return getattr(getattr(self._twin, "config", None), "_experts_implementation", None) == "grouped_mm"

    def _one(self, x: torch.Tensor, slots: list[int], weights: torch.Tensor) -> torch.Tensor:
        """x [H], K slot numbers, weights [1, K] -> [1, H]: small experts as one matrix, large ones in turn."""
        gate, up, down = self._twin._apply_gate, [self._gate_up[s] for s in slots], [self._down[s] for s in slots]
        if self._gather:
            inner = gate(torch.mv(torch.cat(up), x).view(len(slots), -1))  # [K, I]
            scaled = (inner * weights.t().to(inner.dtype)).reshape(-1)
            return torch.mv(torch.cat(down, dim=1), scaled)[None]
        if len(slots) == 1:  # one that has just arrived
            out = torch.mv(down[0], gate(torch.mv(up[0], x)[None])[0])  # [H]
            return weights.to(out.dtype) * out
        inner = gate(torch.stack([torch.mv(matrix, x) for matrix in up]))
        out = torch.stack([torch.mv(matrix, row) for matrix, row in zip(down, inner, strict=True)])  # [K, H]
        return weights.to(out.dtype) @ out


class HostExperts:
    """The experts of one layer, computed on the host from where their weights lie; nothing is copied to the device.

    Args:
        experts: the fused-experts module.
        arena: an `Arena`, whose blocks are used as they are, or a `DiskArena` or what decodes, of which one expert at a
            time is read.
    """

    def __init__(self, experts: nn.Module, arena: Arena | DiskArena):
        self._arena, layout = arena, arena.layout
        self._reads = not hasattr(arena, "blocks")
        blocks = torch.empty(1, layout.numel, dtype=layout.dtype) if self._reads else arena.blocks
        views = layout.views(blocks)
        twin = copy.copy(experts)  # what else the module holds must be on the host as well
        twin._parameters = {
            name: p if p is None or name in views else nn.Parameter(p.to("cpu"), requires_grad=False)
            for name, p in experts._parameters.items()
        }
        twin._buffers = {name: b if b is None else b.to("cpu") for name, b in experts._buffers.items()}
        self._block = blocks[0]
        self._compute = SlotExperts(twin, SimpleNamespace(blocks=blocks, views=views))

    @torch.no_grad()
    def __call__(self, hidden: torch.Tensor, experts: list[int], weights: torch.Tensor) -> torch.Tensor:
        """hidden [T, H], k expert ids for all its tokens, weights [T, k] -> their weighted sum [T, H]; on the host."""
        if not self._reads:
            return self._compute(hidden, torch.tensor([experts] * len(hidden)), weights)
        out, slot = torch.zeros_like(hidden), torch.zeros(len(hidden), 1, dtype=torch.long)
        for rank, expert in enumerate(experts):
            self._arena.copy_to(expert, self._block)
            out += self._compute(hidden, slot, weights[:, rank : rank + 1])
        return out

    @torch.no_grad()
    def several(
        self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor, experts: list[int]
    ) -> torch.Tensor:
        """hidden [T, H], index and weights [T, K] -> what the `experts` alone add to each token [T, H]; on the host."""
        out = torch.zeros_like(hidden)
        for some in [[expert] for expert in experts] if self._reads else [experts]:
            token, position = torch.nonzero(torch.isin(index, torch.tensor(some)), as_tuple=True)
            who, heavy = index[token, position][:, None], weights[token, position][:, None]
            if self._reads:
                self._arena.copy_to(some[0], self._block)
                who = torch.zeros_like(who)
            out.index_add_(0, token, self._compute(hidden[token], who, heavy).to(out.dtype))
        return out


def listed(numbers: torch.Tensor, values: list[int]) -> torch.Tensor:
    """`values` [n] as a tensor beside `numbers`, which is 0, 1, 2 … there.

    On a card it is put together from views of what is there: `torch.tensor` would wait for all computation so far, and
    even a copy that nobody waits for would queue behind experts on their way.
    """
    if numbers.device.type == "cpu":
        return torch.tensor(values, dtype=numbers.dtype)
    views = [numbers[value : value + 1] for value in values]
    return torch.cat(views) if len(views) > 1 else views[0]


def picked(weights: torch.Tensor, positions: list[int]) -> torch.Tensor:
    """Columns of weights [1, K], in the order of `positions`; as with `listed`, nothing is copied to a card."""
    if positions == list(range(weights.shape[1])):
        return weights
    views = [weights[:, position : position + 1] for position in positions]
    return torch.cat(views, dim=1) if len(views) > 1 else views[0]


def best(index: torch.Tensor, weights: torch.Tensor, run: int, over: int | None, renormalises: bool, scale=None):
    """The `run` largest-weighted of each token's K experts: index and weights [T, run], largest first.

    Where a router multiplies its weights by a `scale` [E] at the very end, largest is meant before that.

    With `over` None the weights follow the model's own rule (seams.md): as they are, or, where the router divides its
    K weights by their sum, as it would divide fewer. Otherwise they are scaled by sum(K) / sum(the `over` largest).
    """
    plain = weights if scale is None else weights / scale[index]
    ranked, order = plain.sort(dim=-1, descending=True, stable=True)
    kept = ranked[..., :run]
    if over is None and renormalises:
        over = run
    if over is not None:
        kept = kept * (ranked.sum(-1, keepdim=True) / ranked[..., :over].sum(-1, keepdim=True))
    index = index.gather(-1, order[..., :run])
    return index, kept if scale is None else kept * scale[index]


__all__ = ["HostExperts", "OffloadedExperts", "SlotExperts", "best", "gated", "listed", "picked"]
