"""The exactness laws on every family of fused experts that a small model can be made of, each in one short text."""

import pytest
import torch
from helpers import EXPERTS, GREEDY, gap, make, plain, prompt, refused, top_k

from mobile_nb import MobileError, offload, systems
from mobile_nb.model.adapters import find_layers

NEW = 6
# Configs name the same thing in many ways; what a config does not know it ignores.
FIELDS = {
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), EXPERTS),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k"), 4),
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"), 1),
    **dict.fromkeys(("head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 8),
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "sliding_window": 16,
}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
PLAIN = """
    afmoe cohere2_moe dots1 ernie4_5_moe exaone_moe flex_olmo glm4_moe granitemoe_swa granitemoeshared hunyuan_v1_moe
    hy_v3 laguna mellum mimo_v2_flash minimax_m2 phimoe solar_open
"""
ATTENTION = {name: {} for name in PLAIN.split()} | {
    "deepseek_v3": {"num_key_value_heads": 4},
    "glm4_moe_lite": {"num_key_value_heads": 4},
}
HYBRID = {
    "minimax": {"layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    "nemotron_h": {},
    "qwen3_next": LINEAR,
    "qwen3_5_moe_text": LINEAR,
}


def small(name, fields):
    try:
        model = make(name, **(FIELDS | fields))
    except MobileError as problem:
        pytest.skip(str(problem))  # an older transformers
    with torch.no_grad():
        for key, value in [*model.named_parameters(), *model.named_buffers()]:
            if "correction" in key or "expert_bias" in key:  # with it, the best scores are not the largest weights
                value.zero_()
    return model


@pytest.mark.parametrize(("name", "fields"), ATTENTION.items(), ids=ATTENTION)
def test_offloading_is_exact_and_the_little_model_is_a_smaller_top_k(name, fields):
    model, ids = small(name, fields), prompt()
    wanted = plain(model, ids, NEW)
    layer = find_layers(model)[0]
    assert layer.num_experts == EXPERTS
    for config in (systems.next_gate(slots=3), systems.mobile(gamma=1.1, slots=2)):
        with offload(model, config) as engine:
            assert engine.generate(ids, max_new_tokens=NEW, **GREEDY).token_ids == wanted
    if name == "phimoe":  # its router takes two experts, whatever its top_k says
        return
    with torch.no_grad():
        with top_k(model, layer.top_k // 2):
            little = model(ids).logits
        assert gap(little, model(ids).logits) > 1e-2
        with offload(model, systems.little(slots=3)):
            assert gap(model(ids).logits, little) < 1e-5


@pytest.mark.parametrize(("name", "fields"), HYBRID.items(), ids=HYBRID)
def test_linear_attention_is_exact_without_a_little_model_and_refused_with_one(name, fields):
    model, ids = small(name, fields), prompt()
    wanted = plain(model, ids, NEW)
    for config in (systems.on_demand(slots=2), systems.next_gate(slots=3)):
        with offload(model, config) as engine:
            assert engine.generate(ids, max_new_tokens=NEW, **GREEDY).token_ids == wanted
    with refused("linear_attention", "systems.on_demand()", kinds=MobileError), offload(model, systems.mobile(slots=3)):
        raise AssertionError("the block must not be entered")


@pytest.mark.parametrize("name", ["afmoe", "qwen2_moe", "deepseek_v3"])
@torch.no_grad()
def test_a_gate_read_ahead_of_time_is_the_gate(name):
    """`route` gives what the block gives its experts, best first, also where a router wants more than hidden states."""
    model = small(name, ATTENTION.get(name, {}))
    for layer in find_layers(model):
        seen: list = []
        hook = layer.experts.register_forward_pre_hook(lambda module, given, seen=seen: seen.append(given))
        hidden = torch.randn(5, 32, generator=torch.Generator().manual_seed(3))
        layer.block(hidden[None])
        hook.remove()
        ((_, index, weights),) = seen
        order = weights.argsort(dim=-1, descending=True, stable=True)
        assert torch.equal(layer.route(hidden), index.gather(-1, order))
