"""Small random models of any architecture, for tests and examples where the routing matters and the text does not.

An architecture is made small by the names of its own config's fields: most families spell the same few sizes in one of
a few ways, so one table serves them all, and what a family needs beside it stands in a second one.
"""

from __future__ import annotations

import torch

from ..vocabulary import MobileError

LAYERS, EXPERTS, TOP_K = 3, 8, 4
MOST = 3_000_000  # parameters; a model with more has a size that the tables do not know

_SMALL = {
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
_TOWER = {  # encoders of pictures and sounds, which a text does not call
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
_LISTS = ("layer_types", "mlp_layer_types", "indexer_types", "no_rope_layers", "layer_rope_theta")  # an entry a layer
_HYBRID = ["linear_attention", "full_attention", "linear_attention"]
_SPARSE = ["dense", "sparse", "sparse"]
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

_FAMILIES: dict[str, dict] = {
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


def small_config(architecture: str, **changes):
    """The config of a small model.

    Args:
        architecture: a transformers model type.
        changes: fields of its config, of its text model's where it has several.
    """
    from transformers import AutoConfig

    try:
        plain = AutoConfig.for_model(architecture)
    except ValueError as problem:
        raise MobileError(f"transformers knows no architecture {architecture!r}.") from problem
    own = _FAMILIES.get(architecture, {})
    if plain.get_text_config() is plain:
        return AutoConfig.for_model(architecture, **(_shrunk(plain, _SMALL) | own | changes))
    return AutoConfig.for_model(architecture, **_parts(plain, plain.get_text_config(), own, changes))


def _parts(config, text, own: dict, changes: dict) -> dict:
    """The fields of a config made of configs: the text model's, and the towers' beside it."""
    fields = _shrunk(config, {name: size for name, size in _TOWER.items() if name != "vocab_size"})
    for name in config.sub_configs:
        part, ours = getattr(config, name, None), own.get(name, {})
        if part is text:
            fields[name] = _shrunk(part, _SMALL) | ours | changes
        elif part is not None:
            fields[name] = _shrunk(part, _TOWER) | _parts(part, text, ours, {})
    return fields | {name: value for name, value in own.items() if name not in config.sub_configs}


def _shrunk(config, small: dict) -> dict:
    """Those fields of `small` that the config has, and its lists cut to as many layers."""
    names = set(vars(config)) | set(config.to_dict())
    fields = {name: value for name, value in small.items() if name in names}
    if getattr(config, "sliding_window", 0) is None:  # by default there is no window
        fields["sliding_window"] = None
    if small is _SMALL:
        if names & {"kv_lora_rank", "o_lora_rank"}:  # latent attention: every head has its own
            fields["num_key_value_heads"] = fields["num_attention_heads"]
        kinds = {name: getattr(config, name, None) for name in _LISTS if name in names}
        fields |= {name: _some_of_each(entries) for name, entries in kinds.items() if entries}
    return fields


def _some_of_each(entries: list) -> list:
    """The first LAYERS of a list with an entry a layer, or, where they miss a kind, every kind and the last again."""
    kinds, first = list(dict.fromkeys(entries)), list(entries[:LAYERS])
    return first if set(first) == set(kinds) else (kinds + kinds[-1:] * LAYERS)[:LAYERS]


def random_model(architecture: str, *, seed: int = 0, **changes):
    """A transformers model with random weights, in eval mode, float32, on the CPU.

    Its routers are neither flat nor peaked, and where they add a correction bias to their scores it is not zero, so
    that "first by score" and "largest weight" differ as they do in trained models.

    Args:
        architecture: a transformers model type, such as "olmoe" or "mixtral".
        seed: of the weights; torch's own generator is left as it was.
        changes: fields of its config, of its text model's where it has several.

    Raises:
        MobileError: transformers does not know it, or a small one cannot be made from these fields.
    """
    config = small_config(architecture, **changes)
    auto = _auto(config)
    with torch.device("meta"):  # an architecture with a size that nobody made small must not fill the memory
        size = sum(p.numel() for p in auto.from_config(config).parameters())
    if size > MOST and not changes:
        raise MobileError(f"a small {architecture} would have {size:,} parameters: a field of its config is not known.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto.from_config(config).eval()
        with torch.no_grad():
            _randomise(model)
    return model


def _auto(config):
    """The transformers class that builds what writes text from this config, or what there is where nothing does."""
    import transformers
    from transformers.models.auto import modeling_auto as known

    if config.model_type in known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return transformers.AutoModelForCausalLM
    if config.model_type in known.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return transformers.AutoModelForImageTextToText
    return transformers.AutoModel


def _randomise(model) -> None:
    """Weights that make experts differ and routers choose."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=0.25)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        leaf = name.rpartition(".")[2]
        if leaf in ("e_score_correction_bias", "expert_bias", "balancing_biases"):
            tensor.normal_(std=0.15)
        elif leaf == "per_expert_scale":
            tensor.uniform_(0.5, 1.5)
        elif leaf == "tid2eid":  # a router that looks its experts up by the token's id
            tensor.copy_(torch.rand(len(tensor), EXPERTS).argsort(dim=1)[:, : tensor.shape[1]])


__all__ = ["random_model", "small_config"]
