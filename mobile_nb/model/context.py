"""What a context costs: the bytes of a model's KV cache, asked of the model itself on the meta device."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from .adapters import fused_experts, rolls_back
from .experts import OffloadedExperts

FEW = 128  # tokens from which the cache of a model with recurrent layers is extrapolated


def longest(config, context: int) -> int:
    """`context`, or the most tokens that the model was made for if that is less."""
    most = getattr(config.get_text_config(), "max_position_embeddings", None)
    return min(context, most) if most else context


def cache_bytes(model, context: int) -> int:
    """Bytes that `context` tokens of one text take in the cache: full and sliding windows, latents, recurrent states.

    Args:
        model: on the meta device (see `skeleton`). It runs once, without arithmetic, and its experts are left out.
    """
    experts = {id(module) for module in fused_experts(model)}
    blocks = [m for m in model.modules() if id(getattr(m, "experts", None)) in experts]
    before = [block.experts for block in blocks]
    try:
        for block in blocks:
            block.experts = OffloadedExperts(lambda hidden, index, weights: torch.zeros_like(hidden))
        if rolls_back(model) is None or context <= FEW:
            return _bytes_after(model, context)
        less, more = _bytes_after(model, FEW // 2), _bytes_after(model, FEW)  # linear attention goes chunk by chunk
        return more + (more - less) * (context - FEW) // (FEW - FEW // 2)
    except Exception:  # this family needs numbers on the way: what its attention would keep without tricks
        return _by_config(model.config.get_text_config(), context, model.dtype.itemsize)
    finally:
        for block, module in zip(blocks, before, strict=True):
            block.experts = module


def _bytes_after(model, tokens: int) -> int:
    ids = torch.empty(1, tokens, dtype=torch.long, device="meta")
    with torch.no_grad():
        cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    return sum(tensor.nbytes for layer in cache.layers for tensor in _tensors(vars(layer)))


def _tensors(value) -> Iterable[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tensors(each)


def _by_config(config, context: int, itemsize: int) -> int:
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * context * itemsize


__all__ = ["cache_bytes", "longest"]
