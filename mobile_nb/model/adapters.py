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
from .probe import Asked, ask_block, ask_model

PROBES = 64  # random tokens with which a block is asked how it routes


@dataclass
class MoELayer:
    """One MoE layer as it was found.

    Attributes:
        name: of the block in the model.     block: the module that routes and calls `experts`.
        experts: its fused-experts module.   num_experts, top_k: E and K.
        renormalises: the router divides its K weights by their sum, so that fewer of them must be scaled up.
        router: the child that gives (…, weights, index) for hidden states alone; None where the block is needed.
        scale: [E] by which the router multiplies its weights at the very end, or None.
        ranked: the router names its experts best first; some leave them in any order.
    """

    name: str
    block: nn.Module
    experts: nn.Module
    num_experts: int
    top_k: int
    renormalises: bool
    router: nn.Module | None = None
    scale: torch.Tensor | None = None
    ranked: bool = True

    def route(self, hidden: torch.Tensor) -> torch.Tensor:
        """The K experts, best first [T, K], that this layer's router gives to hidden states [T, H].

        Raises:
            MobileError: it needs more than hidden states, so that nobody can ask it ahead of time.
        """
        if self.router is not None:
            _, weights, index = self.router(hidden)[:3]
        else:
            try:
                asked = ask_block(self.block, hidden)
            except Exception as problem:
                raise MobileError(
                    f"the router of `{self.name}` cannot be asked ahead of time: it needs more than hidden states; use "
                    "another prefetcher than the next layer's gate, such as systems.mobile() has."
                ) from problem
            index, weights = asked.index, asked.weights
        order = weights.sort(dim=-1, descending=True, stable=True).indices
        return index.gather(-1, order)

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """The softmax of all that this layer's router says of hidden states [T, H]: [T, E].

        Raises:
            MobileError: nobody but the block itself knows it.
        """
        logits = None if self.router is None else self.router(hidden)[0]
        if logits is None or logits.shape != (len(hidden), self.num_experts):
            raise MobileError(
                f"the router of `{self.name}` does not tell what it thinks of all its {self.num_experts} experts, only "
                "whom it chose; use a policy that asks for no more, such as policies.Drop."
            )
        return logits.float().softmax(dim=-1)


def find_layers(model: nn.Module) -> list[MoELayer]:
    """All MoE layers that a text reaches, in the order of computation.

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
    if not hasattr(model, "_update_model_kwargs_for_generation") or model.get_output_embeddings() is None:
        raise MobileError(f"{kind} does not write text token by token, and that is what the offloaded loop does.")
    layers = [
        _layer(name, block, kind, asked)
        for (name, block), asked in zip(fused, _ask(model, fused, kind), strict=True)
        if asked is not None
    ]
    _check_alike(layers, kind)
    return layers


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


def _ask(model, fused: list[tuple[str, nn.Module]], kind: str) -> list[Asked | None]:
    """How each block routes. Blocks are asked one by one where they take hidden states alone and all of them serve
    text; otherwise the whole model reads a short text, and None stands for a block that it does not reach."""
    answers, problem = [], None
    try:
        answers = [ask_block(block, _hidden(block)) for _, block in fused]
        if model.config.get_text_config() is model.config:
            return answers
    except Exception as caught:
        problem = caught
    name = fused[len(answers) % len(fused)][0]
    try:
        reached = ask_model(model, [block for _, block in fused])
    except Exception as caught:
        raise MobileError(
            f"`{name}` of {kind} could not be asked how it routes ({type(caught).__name__}: {_short(caught)}); "
            "expected blocks that call experts(hidden, index, weights), in a model that reads text."
        ) from (problem or caught)
    if not any(reached):
        raise MobileError(f"{kind} has fused experts, such as `{name}.experts`, and reads text without calling them.")
    if problem is None:  # what a block answers on its own, on more tokens, tells more
        return [answer if there else None for answer, there in zip(answers, reached, strict=True)]
    return reached


def _short(problem: Exception) -> str:
    return " ".join(str(problem).split())[:120].rstrip(".") or "it said nothing"


def _hidden(block: nn.Module) -> torch.Tensor:
    """Random hidden states [PROBES, H] for a block."""
    down = block.experts.down_proj
    size = down.shape[-1] if getattr(block.experts, "is_transposed", False) else down.shape[-2]
    where = next((p for n, p in block.named_parameters() if not n.startswith("experts.")), down)
    hidden = 4 * torch.randn(PROBES, size, generator=torch.Generator().manual_seed(0))
    return hidden.to(where.device, where.dtype)


def _layer(name: str, block: nn.Module, kind: str, asked: Asked) -> MoELayer:
    index, weights = asked.index, asked.weights
    if index.shape != weights.shape or index.dim() != 2 or len(index) != len(asked.hidden):
        raise MobileError(
            f"`{name}.experts` of {kind} was called with index {tuple(index.shape)} and weights "
            f"{tuple(weights.shape)}; expected both as [tokens, K]."
        )
    count = block.experts.down_proj.shape[0]
    if int(index.max()) >= count:
        raise MobileError(
            f"`{name}.experts` of {kind} holds {count} experts and was asked for number {int(index.max())}; experts "
            "without weights of their own are not understood."
        )
    scale = getattr(asked.router, "per_expert_scale", None)
    plain = (weights if scale is None else weights / scale[index]).float()
    totals = plain.sum(dim=-1)
    spread = (totals.std() / totals.mean().abs().clamp_min(1e-9)).item()
    fixed = 1e-4 if weights.dtype == torch.float32 else 4e-3
    return MoELayer(
        name=name,
        block=block,
        experts=block.experts,
        num_experts=count,
        top_k=index.shape[1],
        renormalises=spread < fixed,
        router=asked.router if _routes_alone(asked) else None,
        scale=scale,
        ranked=bool((plain[:, 1:] <= plain[:, :-1]).all()),
    )


def _routes_alone(asked: Asked) -> bool:
    """Whether router(hidden [T, H]) alone gives what the block got from it; some want a correction bias beside it."""
    if asked.router is None:
        return False
    try:
        with torch.no_grad():
            return torch.equal(asked.router(asked.hidden)[2], asked.index)
    except Exception:
        return False


def _check_alike(layers: list[MoELayer], kind: str) -> None:
    """Raises where layers differ in what one cache and one cost stand for."""
    sizes = {
        (layer.num_experts, layer.top_k, Layout.of(layer.experts, layer.num_experts).nbytes): layer.name
        for layer in layers
    }
    if len(sizes) > 1:
        found = "; ".join(f"`{name}`: {e} experts, {k} active, {b:,} bytes each" for (e, k, b), name in sizes.items())
        raise MobileError(f"the MoE layers of {kind} differ, and one cache serves layers that are alike ({found}).")


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
