"""Small random models of any architecture, for tests and examples where the routing matters and the text does not."""

from __future__ import annotations

import torch

from ..vocabulary import MobileError

_COMMON = {
    "vocab_size": 101,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MOE = {
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 4, "intermediate_size": 24, "norm_topk_prob": False},
    "qwen2_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 32,
        "intermediate_size": 48,
        "norm_topk_prob": False,
    },
    "qwen3_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 24,
        "intermediate_size": 48,
        "head_dim": 8,
        "norm_topk_prob": True,
    },
    "deepseek_v2": {
        "n_routed_experts": 8,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 24,
        "intermediate_size": 48,
        "n_shared_experts": 2,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
        "kv_lora_rank": 16,
        "q_lora_rank": None,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "head_dim": 8,
        "topk_method": "greedy",
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 1.5,
    },
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 4, "intermediate_size": 24, "sliding_window": None},
    "gpt_oss": {
        "num_local_experts": 8,
        "num_experts_per_tok": 4,
        "intermediate_size": 24,
        "head_dim": 8,
        "sliding_window": 16,
    },
    "granitemoe": {"num_local_experts": 8, "num_experts_per_tok": 4, "intermediate_size": 24},
}


def random_model(architecture: str, *, seed: int = 0, **changes):
    """A transformers model with random weights, in eval mode, float32, on the CPU.

    Args:
        architecture: a transformers model type, such as "olmoe" or "mixtral".
        seed: of the weights; torch's own generator is left as it was.
        changes: fields of its config.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.for_model(architecture, **(_COMMON | _MOE.get(architecture, {}) | changes))
    except ValueError as problem:
        raise MobileError(f"transformers knows no architecture {architecture!r}.") from problem
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.25)
    return model


__all__ = ["random_model"]
