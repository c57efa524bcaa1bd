"""What a trained model can do: exact match at any number of experts, and MoBiLE on plain transformers, in batches.

This is the recipes' own reference, written without the library's runtime. Rows are left-padded and decoded greedily.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerFast

from mobile_nb.analysis.tasks import Problem

LONGEST = 96  # tokens written for one problem at most; the longest solution has under 75


def routers(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The router of every MoE layer, first layer first."""
    return [layer.mlp.gate for layer in model.model.layers]


@contextmanager
def experts(model: PreTrainedModel, count: int) -> Iterator[None]:
    """Let every router choose `count` experts a token while the context is open."""
    before = [router.top_k for router in routers(model)]
    try:
        for router in routers(model):
            router.top_k = count
        yield
    finally:
        for router, k in zip(routers(model), before, strict=True):
            router.top_k = k


def _batches(problems: Sequence[Problem], size: int) -> Iterator[list[int]]:
    """Positions of problems, similar prompt lengths together."""
    order = sorted(range(len(problems)), key=lambda i: len(problems[i].prompt))
    for start in range(0, len(order), size):
        yield order[start : start + size]


@torch.inference_mode()
def solve(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[Problem],
    *,
    count: int,
    batch_size: int = 128,
) -> list[str]:
    """The text that the model writes after each prompt with `count` experts a token, by transformers' generate."""
    texts = [""] * len(problems)
    for part in _batches(problems, batch_size):
        inputs = tokenizer([problems[i].prompt for i in part], return_tensors="pt", padding=True).to(model.device)
        with experts(model, count):
            out = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)
        written = tokenizer.batch_decode(out[:, inputs.input_ids.size(1) :], skip_special_tokens=True)
        for i, text in zip(part, written, strict=True):
            texts[i] = text
    return texts


def accuracy(problems: Sequence[Problem], texts: Sequence[str]) -> float:
    """The share of problems whose text has the right final answer."""
    return sum(p.check(t) for p, t in zip(problems, texts, strict=True)) / len(problems)


@dataclass
class MobileResult:
    """What MoBiLE wrote, and how often it fell back.

    precision: for each layer the mean share of the big pass's experts that the evicted pass had ranked in its top K.
    """

    texts: list[str]
    written: int = 0
    fell_back: int = 0
    overlap: Tensor | None = None  # [layers] sum over evicted tokens of |little set and big set|
    experts: int = 0
    fell_back_on: Counter[int] = field(default_factory=Counter)  # ids of the tokens written by the big pass

    @property
    def fallback_ratio(self) -> float:
        """The share of the written tokens, end of text included, that the big pass wrote."""
        return self.fell_back / self.written

    @property
    def precision(self) -> list[float]:
        """A number in 0..1 for each layer; empty where nothing fell back."""
        if self.overlap is None or not self.fell_back:
            return []
        return (self.overlap / (self.fell_back * self.experts)).tolist()


class _PerRowExperts:
    """Forward hooks on the routers: row r runs its `counts[r]` best experts, the weights of the others become zero.

    The router always ranks all K, so a row kept at K/2 computes the same values in both passes.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.counts: Tensor | None = None  # [rows]
        self.chosen: list[Tensor] = []  # a layer each: [tokens, K]
        self.handles = [router.register_forward_hook(self._hook) for router in routers(model)]

    def _hook(self, module, inputs, output):
        logits, weights, index = output
        self.chosen.append(index)
        if self.counts is None:
            return output
        counts = self.counts.repeat_interleave(index.size(0) // self.counts.numel())
        rank = torch.arange(index.size(1), device=index.device)
        return logits, weights * (rank < counts[:, None]), index

    def forward(self, model: PreTrainedModel, counts: Tensor, **inputs) -> tuple[Tensor, list[Tensor]]:
        """One pass with counts[r] experts for row r: the last logits [rows, vocabulary] and each layer's choice."""
        self.counts, self.chosen = counts, []
        logits = model(**inputs, use_cache=True, logits_to_keep=1).logits[:, -1].float()
        return logits, self.chosen


@torch.inference_mode()
def solve_mobile(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[Problem],
    *,
    gamma: float,
    batch_size: int = 128,
) -> MobileResult:
    """Write each token with K/2 experts; where its top probability is below gamma, crop the cache and rerun with K.

    The prompt is read with K. In the second pass rows that keep their token run K/2 again: the same values.
    """
    big = model.config.num_experts_per_tok
    hooks, result = _PerRowExperts(model), MobileResult([""] * len(problems), experts=big)
    overlap = torch.zeros(model.config.num_hidden_layers, dtype=torch.float64)
    try:
        for part in _batches(problems, batch_size):
            inputs = tokenizer([problems[i].prompt for i in part], return_tensors="pt", padding=True).to(model.device)
            for i, ids in zip(part, _mobile_batch(model, hooks, inputs, gamma, result, overlap), strict=True):
                result.texts[i] = tokenizer.decode(ids)
    finally:
        for handle in hooks.handles:
            handle.remove()
    result.overlap = overlap
    return result


def _mobile_batch(model, hooks, inputs, gamma: float, result: MobileResult, overlap: Tensor) -> list[list[int]]:
    mask, cache = inputs.attention_mask, DynamicCache(config=model.config)
    big = model.config.num_experts_per_tok
    rows, device, eos = mask.size(0), mask.device, model.config.eos_token_id
    position = mask.long().cumsum(-1).sub(1).clamp(min=0)
    full = torch.full((rows,), big, device=device)
    half = full // 2
    # All of the prompt but its last token; that one is the first step's input.
    hooks.forward(
        model, full, input_ids=inputs.input_ids[:, :-1], attention_mask=mask[:, :-1],
        position_ids=position[:, :-1], past_key_values=cache,
    )  # fmt: skip
    ids, position = inputs.input_ids[:, -1:], position[:, -1:]
    alive, written = torch.ones(rows, dtype=torch.bool, device=device), [[] for _ in range(rows)]
    for _ in range(LONGEST):
        step = {"input_ids": ids, "attention_mask": mask, "position_ids": position, "past_key_values": cache}
        logits, little = hooks.forward(model, half, **step)
        evicted = (logits.softmax(-1).amax(-1) < gamma) & alive
        if evicted.any():
            cache.crop(-1)
            logits, chosen = hooks.forward(model, torch.where(evicted, full, half), **step)
            for layer, (a, b) in enumerate(zip(little, chosen, strict=True)):
                overlap[layer] += (a[evicted][:, :, None] == b[evicted][:, None, :]).sum().item()
        result.written += int(alive.sum())
        result.fell_back += int(evicted.sum())
        ids = logits.argmax(-1, keepdim=True)
        result.fell_back_on.update(ids[evicted, 0].tolist())
        alive = alive & (ids[:, 0] != eos)
        for row in alive.nonzero()[:, 0].tolist():
            written[row].append(int(ids[row, 0]))
        if not alive.any():
            break
        mask = torch.cat((mask, mask.new_ones(rows, 1)), dim=1)
        position = position + 1
    return written


@torch.inference_mode()
def router_mass(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, problems: Sequence[Problem]) -> Tensor:
    """[layers, K]: the mean router probability of the best expert, the second best, ... over the working's tokens."""
    total, tokens = 0.0, 0
    probabilities: list[Tensor] = []
    handles = [
        router.register_forward_hook(lambda _m, _i, output: probabilities.append(output[1]))
        for router in routers(model)
    ]
    try:
        for problem in problems:
            probabilities.clear()
            start = len(tokenizer(problem.prompt).input_ids)
            model(**tokenizer(problem.prompt + problem.solution, return_tensors="pt").to(model.device))
            mass = torch.stack(probabilities)[:, start:].double()  # [layers, tokens, K]
            total, tokens = total + mass.sum(1), tokens + mass.size(1)
    finally:
        for handle in handles:
            handle.remove()
    return total / tokens
