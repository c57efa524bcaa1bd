"""What experts do to hidden states, measured on the model itself: tables for policies that have to know beforehand.

Legend: L MoE layers · E experts · K experts routed to · N samples · H hidden.
"""

from __future__ import annotations

import numpy as np
import torch

from ..vocabulary import whole
from .adapters import MoELayer, find_layers
from .experts import best
from .probe import ask_block


@torch.no_grad()
def expert_outputs(model, input_ids: torch.Tensor) -> np.ndarray:
    """What every expert makes of every token of a text: [L, E, N, H], weights left out.

    Args:
        input_ids: [1, N].
    """
    layers, seen = find_layers(model), {}
    hooks = [
        layer.experts.register_forward_pre_hook(lambda _, given, at=at: seen.__setitem__(at, given[0]))
        for at, layer in enumerate(layers)
    ]
    try:
        model(input_ids=input_ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return np.stack([_each(layer, seen[at]) for at, layer in enumerate(layers)])


@torch.no_grad()
def deviations(model, samples: int = 256, *, seed: int = 0) -> np.ndarray:
    """LExI's loss table (arXiv 2509.02753), for `PerLayer.least_loss`: how far a layer's output is from its own with
    all K experts where it runs 1, 2, … K of them. The mean over `samples` standard normal hidden states of the norm
    of the difference [L, K]; the paper's D_l(k) is the norm over a batch [inference].
    """
    whole("samples", samples)
    layers = find_layers(model)
    return np.stack([_deviation(layer, samples, seed + at) for at, layer in enumerate(layers)])


def _each(layer: MoELayer, hidden: torch.Tensor) -> np.ndarray:
    """[E, N, H]."""
    one = torch.ones(len(hidden), 1, dtype=hidden.dtype, device=hidden.device)
    numbers = range(layer.num_experts)
    return np.stack(
        [layer.experts(hidden, torch.full_like(one, e, dtype=torch.long), one).float().cpu() for e in numbers]
    )


def _deviation(layer: MoELayer, samples: int, seed: int) -> np.ndarray:
    """[K]."""
    down = layer.experts.down_proj
    size = down.shape[-1] if getattr(layer.experts, "is_transposed", False) else down.shape[-2]
    hidden = torch.randn(samples, size, generator=torch.Generator().manual_seed(seed)).to(down.device, down.dtype)
    asked = ask_block(layer.block, hidden)

    def output(run: int) -> torch.Tensor:
        few = best(asked.index, asked.weights, run, None, layer.renormalises, layer.scale)
        return layer.experts(hidden, *few).float()

    whole_output = output(layer.top_k)
    return np.array([(output(run) - whole_output).norm(dim=-1).mean().item() for run in range(1, layer.top_k + 1)])


__all__ = ["deviations", "expert_outputs"]
