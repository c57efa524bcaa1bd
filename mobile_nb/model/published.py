"""Published models without their weights: the exact shapes, and random weights built straight into host arenas.

For measuring what time depends on, which is sizes. Random weights have flat routers and no confidence: what a
measurement needs of those must be scripted, and said. Knows nothing about offloading.
"""

from __future__ import annotations

import torch

from ..hardware import Geometry
from ..memory.host import host_room_gb
from ..memory.store import new_blocks
from ..vocabulary import MobileError, whole
from .skeleton import expert_layouts, finish, own_half, put, skeleton

STD = 0.02
_HEADS = {"num_attention_heads": 16, "num_key_value_heads": 16}
PUBLISHED: dict[str, tuple[str, dict]] = {  # from each model's public config.json
    "olmoe-1b-7b": (
        "olmoe",
        {"vocab_size": 50304, "hidden_size": 2048, "intermediate_size": 1024, "num_hidden_layers": 16, **_HEADS}
        | {"num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": False},
    ),
    "qwen1.5-moe-a2.7b": (
        "qwen2_moe",
        {"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24, **_HEADS}
        | {"moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632, "decoder_sparse_step": 1}
        | {"num_experts": 60, "num_experts_per_tok": 4, "norm_topk_prob": False},
    ),
    "deepseek-v2-lite": (
        "deepseek_v2",
        {"vocab_size": 102400, "hidden_size": 2048, "intermediate_size": 10944, "num_hidden_layers": 27, **_HEADS}
        | {"moe_intermediate_size": 1408, "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6}
        | {"first_k_dense_replace": 1, "norm_topk_prob": False, "routed_scaling_factor": 1.0, "topk_method": "greedy"}
        | {"n_group": 1, "topk_group": 1, "q_lora_rank": None, "kv_lora_rank": 512}
        | {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128},
    ),
    "qwen3-30b-a3b": (
        "qwen3_moe",
        {"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48}
        | {"num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "moe_intermediate_size": 768}
        | {"num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True, "decoder_sparse_step": 1},
    ),
}
TINY = {  # what a rehearsal shrinks; experts and K stay
    **{"vocab_size": 512, "hidden_size": 64, "intermediate_size": 32, "moe_intermediate_size": 32},
    **{"shared_expert_intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16},
    **{"kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16},
    **{"num_hidden_layers": 4, "max_position_embeddings": 512},
}


def published_config(name: str, *, layers: int | None = None, tiny: bool = False):
    """The transformers config of a published model.

    Args:
        layers: keep the first so many layers.   tiny: the same experts and K in a model of a few thousand weights each.

    Raises:
        MobileError: not one of them, or no MoE layer would be left.
    """
    from transformers import AutoConfig

    if name not in PUBLISHED:
        raise MobileError(f"there are no exact shapes of {name!r}; there are {', '.join(PUBLISHED)}.")
    kind, fields = PUBLISHED[name]
    if tiny:
        fields = fields | {key: size for key, size in TINY.items() if key in fields}
    if layers is not None:
        least = fields.get("first_k_dense_replace", 0) + 1
        layers = whole("layers", layers, low=least, hint="so many must be left for one MoE layer")
        fields = fields | {"num_hidden_layers": min(layers, fields["num_hidden_layers"])}
    return AutoConfig.for_model(kind, **fields, eos_token_id=None)  # such a text has no end


def random_published(
    name: str,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
    layers: int | None = None,
    tiny: bool = False,
    seed: int = 0,
    told=lambda gb: None,
):
    """A published model with random weights, in eval mode: experts in host arenas, as `load` leaves them, all else on
    the device.

    Args:
        device: on a CUDA device arenas are page-locked where the system allows it.
        dtype: None for bfloat16, or float16 on cards that only imitate it; float32 on a CPU.
        layers, tiny: see `published_config`.   seed: of the weights.   told: hears of each GB of experts that is there.

    Raises:
        MobileError: there is no memory for it: before anything is allocated, where the system says how much is free.
    """
    config = published_config(name, layers=layers, tiny=tiny)
    if dtype is None:
        dtype = torch.float32 if device.type == "cpu" else own_half(torch.bfloat16, device)
    model = skeleton(config, dtype)
    layouts = expert_layouts(model)
    needed, room, most = _fits(layouts)
    if most is not None:
        fewer = f"keep its first {most} layers (--layers {most}), or " if most else ""
        raise MobileError(
            f"the experts of {name} take {needed:.1f} GB of host memory, and {room:.1f} GB are free: "
            f"{fewer}free memory."
        )
    generator = torch.Generator(device).manual_seed(seed)
    try:
        for module, (_, count, layout) in layouts.items():
            blocks, views, _ = new_blocks(layout, count, pin=device.type == "cuda")
            chunk = torch.empty(layout.numel, dtype=dtype, device=device)
            for block in blocks:
                block.copy_(chunk.normal_(0, STD, generator=generator))
            for part, view in views.items():
                put(model, f"{module}.{part}", view)
            told(blocks.nbytes / 1e9)
        made = {f"{module}.{part}" for module, (_, _, layout) in layouts.items() for part, _, _ in layout.parts}
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            left = finish(model, made, device)
    except (MemoryError, torch.OutOfMemoryError) as problem:
        raise MobileError(
            f"there is not enough memory for {name}: {needed:.1f} GB of experts on the host, the rest on {device}; "
            "--layers N keeps its first N layers."
        ) from problem
    if left:
        raise MobileError(f"{name} cannot be built from its config alone: {left[0]} has no value.")
    with torch.no_grad():  # what a token is decides where it is routed, not what all tokens have in common
        model.get_input_embeddings().weight.normal_(generator=generator)
    model.config.name_or_path = name
    return model


def _fits(layouts: dict) -> tuple[float, float | None, int | None]:
    """GB of all experts, GB that are free on the host, and how many of the model's first layers, dense ones too, that
    is enough for: None for all, 0 where it is not enough for one with experts."""
    needed, room = sum(count * layout.nbytes for _, count, layout in layouts.values()) / 1e9, host_room_gb()
    short = room is not None and needed > 0.95 * room
    last = int(0.9 * room / needed * len(layouts)) if short else 0
    most = 1 + next(int(part) for part in list(layouts)[last - 1].split(".") if part.isdigit()) if last else 0
    return needed, room, most if short else None


def layers_that_fit(name: str, *, tiny: bool = False) -> int | None:
    """The first so many layers whose experts the host has memory for in half precision; None for all or none."""
    return _fits(expert_layouts(skeleton(published_config(name, tiny=tiny), torch.bfloat16)))[2] or None


def layers_said(name: str, model) -> str:
    """How many of a published model's MoE layers this one has."""
    whole_model, kept = Geometry.of(name).moe_layers, len(expert_layouts(model))
    return f"all {kept} MoE layers" if kept == whole_model else f"the first {kept} of {whole_model} MoE layers"


__all__ = ["PUBLISHED", "layers_said", "layers_that_fit", "published_config", "random_published"]
