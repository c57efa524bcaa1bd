"""What a user may hand to `generate`, checked before anything is computed. One sentence a mistake."""

from __future__ import annotations

import torch

from ..vocabulary import MobileError, whole


def as_model_inputs(prompt, tokenizer, model) -> dict:
    """Text, ids, a tensor or a tokenizer's encoding as keyword arguments of `generate`.

    Raises:
        ValueError: an empty prompt, or more than one.   TypeError: text without a tokenizer, or something else.
    """
    if isinstance(prompt, str):
        if tokenizer is None:
            raise TypeError("the prompt is text, and there is no tokenizer: give one to offload(..., tokenizer=...).")
        prompt = tokenizer(prompt, return_tensors="pt")
    named = dict(prompt) if hasattr(prompt, "keys") else {"input_ids": prompt}
    named.pop("token_type_ids", None)
    if "input_ids" not in named:
        raise TypeError(f"a prompt must hold input_ids, got {', '.join(named) or 'nothing'}.")
    ids = _tensor("input_ids must be token ids [T] or [1, T]", named["input_ids"])
    if ids.numel() == 0:
        raise ValueError("the prompt is empty: give at least one token.")
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise TypeError(f"input_ids must be whole numbers, got {ids.dtype}.")
    ids = ids[None] if ids.dim() == 1 else ids
    if ids.dim() != 2 or len(ids) != 1:
        raise ValueError(f"one prompt at a time: input_ids must be [T] or [1, T], got {list(ids.shape)}.")
    device = model.get_input_embeddings().weight.device
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
        raise ValueError(f"input_ids must lie in 0 to {vocabulary - 1}, got {int(ids.min())} to {int(ids.max())}.")
    named["input_ids"] = ids.long().to(device)
    mask = named.get("attention_mask")
    if mask is not None:
        mask = _tensor("attention_mask must be zeros and ones [T] or [1, T]", mask)
        named["attention_mask"] = (mask[None] if mask.dim() == 1 else mask).to(device)
    else:
        named["attention_mask"] = torch.ones_like(named["input_ids"])
    return named


def _tensor(expected: str, given) -> torch.Tensor:
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as problem:
        raise TypeError(f"{expected}, got {given!r}.") from problem


def check_request(inputs: dict, kwargs: dict, model) -> None:
    """Refuses what the decode loop does not do, and prompts that do not fit.

    Raises:
        ValueError: a bad number, or a prompt longer than the model's context.   MobileError: beams, assistants.
    """
    if "max_new_tokens" in kwargs:
        whole("max_new_tokens", kwargs["max_new_tokens"])
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    length = inputs["input_ids"].shape[1]
    if context and length >= context:
        raise ValueError(f"the prompt has {length} tokens, and the model's context holds {context}; shorten it.")
    mask = list(inputs["attention_mask"].shape)
    if mask[:-1] != [1] or (mask[1] != length and kwargs.get("past_key_values") is None):
        raise ValueError(f"attention_mask must have the prompt's shape, [1, {length}], got {mask}.")
    config = kwargs.get("generation_config") or model.generation_config
    for name, plain in (("num_beams", 1), ("num_return_sequences", 1), ("num_beam_groups", 1)):
        value = kwargs.get(name, getattr(config, name, None))
        if value not in (None, plain):
            raise MobileError(
                f"{name}={value} is not offered: the engine writes one text at a time, greedy or sampled."
            )
    for name in ("assistant_model", "prompt_lookup_num_tokens", "output_attentions", "output_hidden_states"):
        if kwargs.get(name):
            raise MobileError(f"{name} is not offered by the offloaded decode loop.")
    if "custom_generate" in kwargs:
        raise MobileError("custom_generate is taken: it is how the offloaded decode loop runs.")


__all__ = ["as_model_inputs", "check_request"]
