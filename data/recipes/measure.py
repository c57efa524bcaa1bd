"""How a trained model routes, measured on the worked solutions of problems; knows nothing about training or cards."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from models import routers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from mobile_nb.analysis.tasks import Problem
from mobile_nb.policies import Always, Fraction
from mobile_nb.runtime.config import MobileConfig


def fixed(count: int, top_k: int) -> MobileConfig:
    """The system that runs `count` of K experts on every token, the prompt's too."""
    return MobileConfig(count=Fraction(count / top_k, prompt=count / top_k), keep=Always())


@torch.inference_mode()
def routing(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, problems: Sequence[Problem]) -> dict[str, list]:
    """For each MoE layer, over the tokens of the solutions.

    best, chosen: share of the router's mass on its best expert and on the K that run.   entropy: of the router, nats.
    usage: entropy of how often each expert runs, nats.   busiest: share of all requests that the busiest expert gets.
    reuse: share of a token's K experts that ran for the token before it too.
    """
    layers, found = routers(model), []
    top_k = model.config.num_experts_per_tok
    handles = [router.register_forward_hook(lambda _m, _i, out: found.append(out[0].float())) for router in layers]
    experts = layers[0].weight.size(0)
    counts, sums, tokens, pairs = torch.zeros(len(layers), experts), torch.zeros(4, len(layers)), 0, 0
    try:
        for problem in problems:
            found.clear()
            start = len(tokenizer(problem.prompt).input_ids)
            model(**tokenizer(problem.prompt + problem.solution, return_tensors="pt").to(model.device))
            shares = torch.stack(found)[:, start:].softmax(-1)  # [L, T, E]
            best, index = shares.topk(top_k, dim=-1)
            ran = torch.zeros_like(shares).scatter(-1, index, 1.0)
            counts += ran.sum(1)
            sums[0] += best[..., 0].sum(-1)
            sums[1] += best.sum((1, 2))
            sums[2] += torch.special.entr(shares).sum((1, 2))
            sums[3] += (ran[:, 1:] * ran[:, :-1]).sum((1, 2)) / top_k
            tokens, pairs = tokens + shares.size(1), pairs + shares.size(1) - 1
    finally:
        for handle in handles:
            handle.remove()
    use = counts / counts.sum(-1, keepdim=True)
    return {
        "best": _list(sums[0] / tokens),
        "chosen": _list(sums[1] / tokens),
        "entropy": _list(sums[2] / tokens),
        "usage": _list(torch.special.entr(use).sum(-1)),
        "busiest": _list(use.amax(-1)),
        "reuse": _list(sums[3] / pairs),
        "tokens": tokens,
        "even": math.log(experts),
    }


def _list(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]
