"""What experts do to hidden states, measured on the model itself: tables for policies that have to know beforehand.

Legend: L MoE layers · E experts · K experts routed to · N samples · H hidden.
"""

from __future__ import annotations

import numpy as np
import torch

from ..memory.codecs import Encoding, Scratch
from ..memory.store import Layout
from ..policies.codec import Form
from ..vocabulary import whole
from .adapters import MoELayer, find_layers
from .experts import SlotExperts, best
from .probe import ask_block


@torch.no_grad()
def expert_outputs(model, input_ids: torch.Tensor) -> np.ndarray:
    """What every expert makes of every token of a text: [L, E, N, H], weights left out.

    Args:
        input_ids: [1, N].
    """
    layers = find_layers(model)
    return np.stack(
        [_each(layer.experts, layer.num_experts, hidden) for layer, hidden in _inputs(model, layers, input_ids)]
    )


@torch.no_grad()
def form_errors(model, form: Form, input_ids: torch.Tensor) -> dict[str, np.ndarray]:
    """What a form of `policies.codec` loses on this model: "weights" and "outputs", [L, E] each.

    Relative root mean square errors: of each expert's weights, and of what it makes of every token of a text; the
    square root of the summed squares of the differences over those of the full ones.

    Args:
        form: such as Int4().   input_ids: [1, N].
    """
    layers, found = find_layers(model), {"weights": [], "outputs": []}
    for layer, hidden in _inputs(model, layers, input_ids):
        layout = Layout.of(layer.experts, layer.num_experts)
        full, rough = (Scratch(layout, layer.num_experts, hidden.device) for _ in range(2))
        for name, view in full.views.items():
            view.copy_(getattr(layer.experts, name))
        encoding = Encoding(layout, form)
        encoding.decode(encoding.encode(full.blocks), rough.blocks)
        outputs = [_each(SlotExperts(layer.experts, some), layer.num_experts, hidden) for some in (full, rough)]
        found["weights"].append(_relative(full.blocks.float().cpu().numpy(), rough.blocks.float().cpu().numpy()))
        found["outputs"].append(_relative(*(each.reshape(len(each), -1) for each in outputs)))
    return {name: np.stack(rows) for name, rows in found.items()}


@torch.no_grad()
def _inputs(model, layers: list[MoELayer], input_ids: torch.Tensor) -> list[tuple[MoELayer, torch.Tensor]]:
    """Each layer with what its experts are given of a text [N, H]."""
    seen = {}
    hooks = [
        layer.experts.register_forward_pre_hook(lambda _, given, at=at: seen.__setitem__(at, given[0]))
        for at, layer in enumerate(layers)
    ]
    try:
        model(input_ids=input_ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return [(layer, seen[at]) for at, layer in enumerate(layers)]


def _relative(full: np.ndarray, rough: np.ndarray) -> np.ndarray:
    """[E] of rows."""
    return np.linalg.norm(rough - full, axis=1) / np.maximum(np.linalg.norm(full, axis=1), 1e-30)


@torch.no_grad()
def deviations(model, samples: int = 256, *, seed: int = 0) -> np.ndarray:
    """LExI's loss table (arXiv 2509.02753), for `PerLayer.least_loss`: how far a layer's output is from its own with
    all K experts where it runs 1, 2, … K of them. The mean over `samples` standard normal hidden states of the norm
    of the difference [L, K]; the paper's D_l(k) is the norm over a batch [inference].
    """
    whole("samples", samples)
    layers = find_layers(model)
    return np.stack([_deviation(layer, samples, seed + at) for at, layer in enumerate(layers)])


def _each(experts, count: int, hidden: torch.Tensor) -> np.ndarray:
    """[E, N, H]."""
    one = torch.ones(len(hidden), 1, dtype=hidden.dtype, device=hidden.device)
    numbers = [torch.full_like(one, e, dtype=torch.long) for e in range(count)]
    return np.stack([experts(hidden, number, one).float().cpu() for number in numbers])


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
