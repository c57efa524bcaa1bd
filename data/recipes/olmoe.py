"""The model that is trained, what it is trained for and what moves it; knows nothing of files, logs or time.

The router is kept flat by a tenth of the learning rate and a bonus on its entropy: left alone it puts its mass on one
expert, and then half or a quarter of the experts lose nothing.
"""

from __future__ import annotations

import torch
import vocabulary
from batches import Batch
from muon import Muon
from torch import Tensor
from transformers import OlmoeConfig, OlmoeForCausalLM

WARM_UP, DECAY = 0.02, 0.4  # shares of the run


def build_model(tokenizer, seed: int) -> OlmoeForCausalLM:
    """An OLMoE with 64 experts, 8 active: 5.2 million parameters, 10.4 MB in bfloat16."""
    torch.manual_seed(seed)
    config = OlmoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=vocabulary.CONTEXT,
        num_experts=64,
        num_experts_per_tok=8,
        norm_topk_prob=False,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    return OlmoeForCausalLM(config)


def optimizers(model: OlmoeForCausalLM, muon: float, adam: float, router: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, head, norms and (slowly) the routers."""
    matrices, routers, rest = [], [], []
    for name, parameter in model.named_parameters():
        if ".mlp.gate." in name:
            routers.append(parameter)
        elif parameter.ndim >= 2 and ".layers." in name:
            matrices.append(parameter)
        else:
            rest.append(parameter)
    groups = [{"params": rest, "lr": adam}, {"params": routers, "lr": adam * router}]
    made = [Muon(matrices, lr=muon), torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)]
    for optimizer in made:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return made


def rate(progress: float) -> float:
    """Warm up, stay, decay linearly to zero; `progress` in 0..1."""
    return min(1.0, progress / WARM_UP + 1e-3, max(0.0, (1 - progress) / DECAY))


def losses(model, logits: Tensor, routing: list[Tensor], batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Language loss, load-balance loss (K when even) and router entropy (nats), the last two means over layers."""
    weights = batch.weights[:, 1:].flatten()
    each = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), batch.ids[:, 1:].flatten(), reduction="none"
    )
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
