"""The rows of a batch: what each wrote, how a model computes rows that differ, and what policies may see of one.

Legend: R rows · T tokens of a call · K experts routed to · H hidden · L MoE layers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ..model.adapters import MoELayer
from ..model.experts import best
from ..vocabulary import BIG, LITTLE, PROMPT
from .facts import Live, counted

if TYPE_CHECKING:
    from .fleet import Fleet


@dataclass
class Row:
    """What was written after one prompt.

    Attributes:
        token_ids: the new tokens, the end of text included.   confidences: of each, the first written version's.
        fell_back: of each, whether the big model wrote it again. The first token comes from the prompt pass.
        device: what the tokens after it cost, where they were accounted for (`Fleet.account`).
    """

    token_ids: list[int] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    fell_back: list[bool] = field(default_factory=list)
    device: dict[str, float] = field(default_factory=dict)


class RowExperts(nn.Module):
    """Takes the place of a block's experts: row r runs as many of its experts as `modes[r]` asks for.

    Args:
        layer: as it was found.   count: the count policy.   at: number of the layer.
    """

    def __init__(self, layer: MoELayer, count, at: int):
        super().__init__()
        self.inner, self.layer, self.at = layer.experts, layer, at
        self.runs = {mode: count.run(mode, at, layer.top_k) for mode in (PROMPT, LITTLE, BIG)}
        self.modes: list[str] = []
        self.seen: torch.Tensor | None = None  # [T, K] what the router chose in the last call, best first

    def forward(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        plain = weights if self.layer.scale is None else weights / self.layer.scale[index]
        self.seen = index.gather(-1, plain.sort(dim=-1, descending=True, stable=True).indices)
        kinds = set(self.modes)
        if len(kinds) == 1:
            return self.inner(hidden, *self._cut(index, weights, *self.runs[self.modes[0]]))
        most = max(self.runs[mode][0] for mode in kinds)
        each = torch.tensor([list(self.runs).index(mode) for mode in self.modes], device=index.device)
        each = each.repeat_interleave(len(index) // len(self.modes))  # [T]
        chosen, amounts = index.new_zeros(len(index), most), weights.new_zeros(len(index), most)
        for number, mode in enumerate(self.runs):
            mine = each == number
            if mode in kinds:
                run = self.runs[mode][0]
                chosen[mine] = self.seen[mine][:, :most]
                some, kept = self._cut(index[mine], weights[mine], *self.runs[mode])
                chosen[mine, :run], amounts[mine, :run] = some, kept
        return self.inner(hidden, chosen, amounts)

    def _cut(self, index, weights, run: int, over: int | None):
        if run == self.layer.top_k and over is None:
            return index, weights
        return best(index, weights, run, over, self.layer.renormalises, self.layer.scale)


@dataclass
class Agreement:
    """How well evicted tokens' routers foresaw the big pass.   fallbacks: of them.   shared: [L] experts in common."""

    shared: torch.Tensor
    fallbacks: int = 0


def cut(layer: MoELayer, at: int, count, modes: list[str], index: torch.Tensor, weights: torch.Tensor):
    """As many of each token's experts as a count policy runs.

    Args:
        modes: of the rows; where they are not of the prompt each is one token.   index, weights: [T, K].

    Returns:
        index and weights, and how many of them each row runs: the first. What is behind these weighs nothing.
    """
    if getattr(count, "by_token", False) and PROMPT not in modes:
        told = [(sorted(token, reverse=True),) for token in weights.float().tolist()]
        answers = [counted(count, mode, at, layer.top_k, *each) for mode, each in zip(modes, told, strict=True)]
    else:
        known = {mode: counted(count, mode, at, layer.top_k) for mode in set(modes)}
        answers = [known[mode] for mode in modes]
    runs = [run for run, _ in answers]
    if set(answers) == {(layer.top_k, None)}:
        ranked = (index, weights) if layer.ranked else best(index, weights, layer.top_k, None, False, layer.scale)
        return *ranked, runs
    if len(set(answers)) == 1:
        return *best(index, weights, *answers[0], layer.renormalises, layer.scale), runs
    ids, amounts = index.clone(), torch.zeros_like(weights)
    for run, over in set(answers):
        mine = torch.tensor([answer == (run, over) for answer in answers], device=index.device)
        few = best(index[mine], weights[mine], run, over, layer.renormalises, layer.scale)
        ids[mine, :run], amounts[mine, :run] = few
    return ids, amounts, runs


@dataclass
class RowView(Live):
    """What policies may see of one text of a fleet."""

    fleet: Fleet | None = None

    def _routed(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        ids, weights = self.fleet.calls[layer]
        place = self.fleet.place[self.row]
        return ids[place, -1], weights[place, -1]

    def _gate(self, layer: int) -> list[int]:
        return self.fleet.said(layer, "route")[self.fleet.place[self.row]]

    def scores(self, layer: int) -> list[float]:
        return self.fleet.said(layer, "scores")[self.fleet.place[self.row]]


__all__ = ["Agreement", "Row", "RowExperts", "RowView", "cut"]
