"""Finds the MoE layers of any transformers model, by the one stable seam: a block with an `experts` module that holds
fused weights and is called as `experts(hidden [T, H], index [T, K], weights [T, K])`. Class names play no part.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ..hardware import Geometry
from ..memory.store import Layout
from ..vocabulary import MobileError

PROBES = 64  # random tokens with which a block is asked how it routes


@dataclass
class MoELayer:
    """One MoE layer as it was found.

    Attributes:
        name: of the block in the model.     block: the module that routes and calls `experts`.
        experts: its fused-experts module.   num_experts, top_k: E and K.
        renormalises: the router divides its K weights by their sum, so that fewer of them must be scaled up.
    """

    name: str
    block: nn.Module
    experts: nn.Module
    num_experts: int
    top_k: int
    renormalises: bool
    router: nn.Module | None = None

    def route(self, hidden: torch.Tensor) -> torch.Tensor:
        """The K experts, best first [T, K], that this layer's router gives to hidden states [T, H]."""
        if self.router is not None:
            _, weights, index = self.router(hidden)
        else:
            index, weights = _probe(self.block, hidden, None)
        order = weights.sort(dim=-1, descending=True, stable=True).indices
        return index.gather(-1, order)


class _Recorder(nn.Module):
    """Stands in for `experts` and notes how it is called."""

    def __init__(self):
        super().__init__()
        self.call: tuple | None = None

    def forward(self, hidden, index, weights, *rest, **named):
        self.call = (index, weights)
        return torch.zeros_like(hidden)


def _probe(block: nn.Module, hidden: torch.Tensor, watch: list | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs a block on hidden [T, H] with its experts replaced; returns index and weights [T, K] that they were given.

    `watch` receives the child module whose output, (logits, weights, index), is what the experts got: the router.
    """
    recorder, experts, hooks = _Recorder(), block.experts, []
    outputs: list = []
    if watch is not None:
        for child in block.children():
            hooks.append(child.register_forward_hook(lambda module, _, output: outputs.append((module, output))))
    block.experts = recorder
    try:
        with torch.no_grad():
            block(hidden[None])
    finally:
        block.experts = experts
        for hook in hooks:
            hook.remove()
    index, weights = recorder.call
    for module, output in outputs:
        same = isinstance(output, tuple) and len(output) == 3 and output[2] is index and output[1] is weights
        if watch is not None and same:
            watch.append(module)
    return index, weights


def find_layers(model: nn.Module) -> list[MoELayer]:
    """All MoE layers of a model, in the order of computation.

    Raises:
        MobileError: there are none, or one that is not understood; the sentence names what was found and expected.
    """
    kind = type(model).__name__
    blocks = [(name, m) for name, m in model.named_modules() if isinstance(getattr(m, "experts", None), nn.Module)]
    fused = [(name, block) for name, block in blocks if _is_fused(block.experts)]
    if any(type(block.experts).__name__ == "OffloadedExperts" for _, block in blocks):
        raise MobileError(
            f"this {kind} is offloaded already; leave the first `with offload(...)` block before the next."
        )
    if not fused:
        found = (
            f"`{blocks[0][0]}.experts`, a {type(blocks[0][1].experts).__name__}" if blocks else "no `experts` module"
        )
        raise MobileError(
            f"{kind} has {found}, and mobile_nb needs a Mixture-of-Experts model whose blocks hold a fused `experts` "
            "module (3-D weights, called with hidden states, expert ids and weights), as OLMoE, Qwen-MoE, DeepSeek and "
            "Mixtral have in transformers 5."
        )
    return [_layer(name, block, kind) for name, block in fused]


def fused_experts(model: nn.Module) -> list[nn.Module]:
    """The fused-experts modules of a model."""
    return [
        m.experts
        for m in model.modules()
        if isinstance(getattr(m, "experts", None), nn.Module) and _is_fused(m.experts)
    ]


def _is_fused(experts: nn.Module) -> bool:
    own = dict(experts.named_parameters(recurse=False))
    return "down_proj" in own and own["down_proj"].dim() == 3 and callable(getattr(experts, "forward", None))


def _layer(name: str, block: nn.Module, kind: str) -> MoELayer:
    experts = block.experts
    down = experts.down_proj
    hidden_size = down.shape[-1] if getattr(experts, "is_transposed", False) else down.shape[-2]
    where = next((p for n, p in block.named_parameters() if not n.startswith("experts.")), down)
    generator = torch.Generator().manual_seed(0)
    hidden = 4 * torch.randn(PROBES, hidden_size, generator=generator)
    router: list = []
    try:
        index, weights = _probe(block, hidden.to(where.device, where.dtype), router)
        ok = index.shape == weights.shape and index.dim() == 2 and len(index) == PROBES
    except Exception as problem:
        raise MobileError(
            f"`{name}` of {kind} could not be asked how it routes ({type(problem).__name__}: {problem}); expected a "
            "block that takes hidden states alone and calls experts(hidden, index, weights)."
        ) from problem
    if not ok:
        raise MobileError(
            f"`{name}.experts` of {kind} was called with index {tuple(index.shape)} and weights "
            f"{tuple(weights.shape)}; expected both as [tokens, K]."
        )
    totals = weights.float().sum(dim=-1)
    spread = (totals.std() / totals.mean().abs().clamp_min(1e-9)).item()
    fixed = 1e-4 if weights.dtype == torch.float32 else 4e-3
    return MoELayer(
        name=name,
        block=block,
        experts=experts,
        num_experts=down.shape[0],
        top_k=index.shape[1],
        renormalises=spread < fixed,
        router=router[0] if router else None,
    )


def geometry_of(model: nn.Module, layers: list[MoELayer]) -> Geometry:
    """What this model weighs, counted from its own parameters."""
    layout = Layout.of(layers[0].experts, layers[0].num_experts)
    routed = sum(p.numel() for layer in layers for p in layer.experts.parameters(recurse=False))
    total = sum(p.numel() for p in model.parameters())
    embedding = model.get_input_embeddings()
    head = model.get_output_embeddings()
    head_params = head.weight.numel() if head is not None else 0
    tied = head is not None and embedding is not None and head.weight is embedding.weight
    rest = total - routed - head_params - (0 if tied or embedding is None else embedding.weight.numel())
    return Geometry(
        name=f"{type(model).__name__} as it is",
        moe_layers=len(layers),
        num_experts=layers[0].num_experts,
        top_k=layers[0].top_k,
        expert_params=layout.weights,
        layer_params=max(0, rest) // len(layers),
        head_params=head_params,
        bytes_per_weight=layout.nbytes / layout.weights,
    )


def rolls_back(model: nn.Module) -> str | None:
    """None where one position of the KV cache can be taken back; otherwise the kind of layer that cannot."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or []
    return next((kind for kind in kinds if "linear" in str(kind) or "mamba" in str(kind) or "conv" in str(kind)), None)


__all__ = ["MoELayer", "find_layers", "fused_experts", "geometry_of", "rolls_back"]
