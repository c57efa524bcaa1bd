"""The models that are trained, what they are trained for and what moves them; knows nothing of files, logs or time.

Numbers of experts, how many run and how their weights are scaled are those of the published models; width and depth are
small. The routers are kept flat by a tenth of the learning rate and a bonus on their entropy: left alone a router puts
its mass on one expert, and then half or a quarter of the experts lose nothing.
"""

from __future__ import annotations

from random import Random

import torch
import vocabulary
from batches import Batch
from muon import Muon
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

WARM_UP, DECAY = 0.02, 0.4  # shares of the run
HIDDEN = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4}
MODELS = {
    "tiny-olmoe": {
        "model_type": "olmoe", "intermediate_size": 48,
        "num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": False,
    },
    "tiny-qwen2-moe": {
        "model_type": "qwen2_moe", "intermediate_size": 384, "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 96, "mlp_only_layers": [], "decoder_sparse_step": 1,
        "num_experts": 60, "num_experts_per_tok": 4, "norm_topk_prob": False,
    },
    "tiny-deepseek-v2": {
        "model_type": "deepseek_v2", "intermediate_size": 384, "moe_intermediate_size": 48, "first_k_dense_replace": 1,
        "kv_lora_rank": 128, "q_lora_rank": None, "qk_nope_head_dim": 16, "qk_rope_head_dim": 128, "v_head_dim": 32,
        "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6, "norm_topk_prob": False,
        "routed_scaling_factor": 16.0, "topk_method": "greedy", "n_group": 1, "topk_group": 1,
    },
    "tiny-qwen3-moe": {
        "model_type": "qwen3_moe", "intermediate_size": 384, "moe_intermediate_size": 24, "head_dim": 32,
        "mlp_only_layers": [], "decoder_sparse_step": 1,
        "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True,
    },
}  # fmt: skip


def build_model(name: str, tokenizer, seed: int) -> PreTrainedModel:
    """A model of the name with random weights."""
    torch.manual_seed(seed)
    fields = dict(MODELS[name])
    config = AutoConfig.for_model(
        **HIDDEN, **fields,
        vocab_size=len(tokenizer), max_position_embeddings=vocabulary.CONTEXT, tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


def routers(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The router of every MoE layer, first layer first."""
    return [layer.mlp.gate for layer in model.model.layers if hasattr(layer.mlp, "experts")]


def choose_count(model: PreTrainedModel, share: float, draw: str) -> None:
    """Let the routers choose K/2 experts in this `share` of steps, K in the others; `draw` seeds the choice."""
    top_k = model.config.num_experts_per_tok
    for router in routers(model):
        router.top_k = top_k // 2 if Random(draw).random() < share else top_k


def optimizers(model: PreTrainedModel, muon: float, adam: float, router: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, head, norms and (slowly) the routers.

    What an expert writes is multiplied by the routed scaling factor: the steps of its last matrix are divided by it.
    """
    matrices, outward, routers, rest = [], [], [], []
    for name, parameter in model.named_parameters():
        if ".mlp.gate." in name:
            routers.append(parameter)
        elif name.endswith(".experts.down_proj"):
            outward.append(parameter)
        elif parameter.ndim >= 2 and ".layers." in name and "shared_expert_gate" not in name:
            matrices.append(parameter)
        else:
            rest.append(parameter)
    groups = [{"params": rest, "lr": adam}, {"params": routers, "lr": adam * router}]
    scaling = getattr(model.config, "routed_scaling_factor", 1.0)
    moved = [{"params": matrices}, {"params": outward, "lr": muon / scaling}]
    made = [Muon(moved, lr=muon), torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)]
    for optimizer in made:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return made


def rate(progress: float) -> float:
    """Warm up, stay, decay linearly to zero; `progress` in 0..1."""
    return min(1.0, progress / WARM_UP + 1e-3, max(0.0, (1 - progress) / DECAY))


def losses(
    model, logits: Tensor, routing: list[Tensor], batch: Batch, smoothing: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Language loss, load-balance loss (K when even) and router entropy (nats), the last two means over layers."""
    weights = batch.weights[:, 1:].flatten()
    each = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), batch.ids[:, 1:].flatten(),
        reduction="none", label_smoothing=smoothing,
    )  # fmt: skip
    language = (each * weights).sum() / weights.sum()
    real = (batch.weights > 0).flatten()
    balance = entropy = logits.new_zeros((), dtype=torch.float32)
    for layer in routing:  # [tokens, experts]
        layer = layer.float()[real]
        probabilities = layer.softmax(-1)
        chosen = layer.topk(model.config.num_experts_per_tok, dim=-1).indices
        load = torch.bincount(chosen.flatten(), minlength=layer.size(1)) / layer.size(0)
        balance = balance + load.size(0) * (load * probabilities.mean(0)).sum()
        entropy = entropy - (probabilities * layer.log_softmax(-1)).sum(-1).mean()
    return language, balance / len(routing), entropy / len(routing)
