"""The sizes of small random models, in the words that the configs of transformers use for them: plain tables.

Most families spell the same few sizes in one of a few ways, so one table serves them all; what a family needs beside it
stands in a second one. Knows nothing about what is made of them.
"""

from __future__ import annotations

LAYERS, EXPERTS, TOP_K = 3, 8, 4

SMALL = {
    "vocab_size": 101,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), EXPERTS),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"), TOP_K),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group"), 1),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers"), 1),
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size", "dense_intermediate_size"), 24),
    "moe_hidden_size": 16,
    **dict.fromkeys(("shared_expert_intermediate_size", "shared_intermediate_size"), 32),
    **dict.fromkeys(("shared_experts_intermediate_size", "moe_shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "swa_head_dim"), 8),
    **dict.fromkeys(("index_head_dim", "linear_head_dim", "linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), 16),
    **dict.fromkeys(("linear_num_key_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("linear_num_heads", "linear_num_value_heads", "swa_num_attention_heads"), 4),
    **dict.fromkeys(
        ("index_topk", "index_n_heads", "hidden_size_per_layer_input", "ssm_state_size", "mamba_d_state"), 8
    ),
    **dict.fromkeys(("sliding_window", "sliding_window_size", "router_hidden_size"), 16),
    "vocab_size_per_layer_input": 101,
    "rel_extent": 32,
    "chunk_size": 8,
    "mamba_chunk_size": 8,
    "hc_mult": 2,
    "num_nextn_predict_layers": 0,
}
TOWER = {  # encoders of pictures and sounds, which a text does not call
    **dict.fromkeys(("hidden_size", "intermediate_size", "out_hidden_size", "d_model", "output_dim", "mlp_dim"), 32),
    **dict.fromkeys(("adapter_in_dim", "adapter_out_dim", "adapter_input_size", "text_hidden_size"), 32),
    **dict.fromkeys(("encoder_ffn_dim", "moe_intermediate_size", "downsample_hidden_size", "output_channels"), 32),
    **dict.fromkeys(("projection_intermediate_size", "projector_hidden_size", "conv_output_size"), 32),
    **dict.fromkeys(("depth", "num_hidden_layers", "encoder_layers", "n_layers"), 1),
    **dict.fromkeys(("num_heads", "num_attention_heads", "num_key_value_heads", "encoder_attention_heads"), 2),
    **dict.fromkeys(("num_local_experts", "num_experts_per_tok"), 2),
    "head_dim": 16,
    "image_size": 28,
    "vocab_size": 101,
}
LISTS = ("layer_types", "mlp_layer_types", "indexer_types", "no_rope_layers", "layer_rope_theta")  # an entry a layer
_HYBRID = ["linear_attention", "full_attention", "linear_attention"]
_SPARSE = ["dense", "sparse", "sparse"]
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

FAMILIES: dict[str, dict] = {
    "bailing_hybrid": {"layer_types": _HYBRID, "mlp_layer_types": _SPARSE, "short_conv_kernel_size": 2},
    "deepseek_v2": {"n_shared_experts": 2, "q_lora_rank": None, "routed_scaling_factor": 1.5},
    "deepseek_ocr2": {
        "text_config": {"mlp_layer_types": _SPARSE},
        "vision_config": {"sam_config": {"downsample_channels": [32, 32]}},
    },
    "deepseek_v4": {
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
        "head_dim": 16,
        "num_key_value_heads": 1,
        "o_groups": 2,
        "o_lora_rank": 8,
        "partial_rotary_factor": 0.5,
    },
    "dots3_note_text": {
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 16,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 16,
        "swa_qk_nope_head_dim": 8,
        "swa_v_head_dim": 8,
        "head_dim": 16,
    },
    "ernie4_5_vl_moe": {
        "text_config": {"moe_intermediate_size": [24, 24], "rope_parameters": _ROPE | {"mrope_section": [1, 1, 2]}}
    },
    "gemma4_text": {
        "enable_moe_block": True,
        "num_global_key_value_heads": 2,
        "global_head_dim": 16,
        "tie_word_embeddings": False,
    },
    "glm4v_moe": {
        "text_config": {
            "head_dim": 16,
            "rope_parameters": _ROPE | {"partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]},
        }
    },
    "glm5_next": {"text_config": {"head_dim": 0, "qk_rope_head_dim": 0, "index_kpool": 2}},
    "granitemoehybrid": {"layer_types": _HYBRID, "mamba_n_heads": 4, "mamba_d_head": 16},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 1,
        "expert_layer_offset": 0,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "kimi_linear": {"layer_types": _HYBRID},
    "laguna": {"num_attention_heads_per_layer": [4] * LAYERS},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "minimax": {"layer_types": _HYBRID},
    "minimax_m3_vl_text": {
        "layer_types": ["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"],
        "index_n_heads": 2,
        "index_block_size": 4,
        "index_topk_blocks": 2,
    },
    "mistral4": {"head_dim": 16},
    "muse_spark": {
        "audio_config": {"num_hidden_layers": 1, "patch_sizes": [4], "hidden_sizes": [32], "depths": [1]},
    },
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "n_groups": 2,
    },
    "qwen3_5_moe_text": {"layer_types": _HYBRID},
    "qwen3_moe": {"norm_topk_prob": True},
    "qwen3_next": {"layer_types": _HYBRID},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 3},  # read, and declared by no config class
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "hc_lowrank": 8,
    },
    "unlimited_ocr": {"vision_config": {"sam_config": {"downsample_channels": [32, 32]}}},
    "zaya": {"num_experts_per_tok": 1, "tie_word_embeddings": False},
}


__all__ = ["EXPERTS", "FAMILIES", "LAYERS", "LISTS", "SMALL", "TOP_K", "TOWER"]
