"""A model without weights: built on the meta device from its config, and made whole after the weights are in place."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection
from itertools import chain

import torch
from torch import nn

from ..memory.store import Layout
from .adapters import fused_experts


def skeleton(config, dtype: torch.dtype, *, trust_remote_code: bool = False):
    """A transformers causal language model in eval mode whose parameters and buffers are all on the meta device.

    Args:
        config: of the model; its dtype is set to `dtype`.
        dtype: of the parameters, but for those that the family keeps in float32.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code).eval()
    strict = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    loose = getattr(model, "_keep_in_fp32_modules", None) or ()
    kept = [*(strict if dtype in (torch.float16, torch.bfloat16) else ()), *(loose if dtype == torch.float16 else ())]
    if kept:
        pattern = re.compile("|".join(name.replace("*", ".*") for name in kept))
        for name, tensor in list(model.state_dict(keep_vars=True).items()):
            if pattern.search(name) and tensor.dtype != torch.float32:
                put(model, name, torch.empty_like(tensor, dtype=torch.float32))
    return model


def own_half(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """float16 in the place of a bfloat16 that a card has no units for, with a warning; else the dtype itself."""
    if dtype != torch.bfloat16 or device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0):
        return dtype
    warnings.warn(
        "this card has no bfloat16 of its own, so the weights are read as float16, whose range is smaller; "
        "dtype='bfloat16' keeps them as they are, slowly.",
        stacklevel=2,
    )
    return torch.float16


def expert_layouts(model: nn.Module) -> dict[str, tuple[nn.Module, int, Layout]]:
    """Module name -> (fused-experts module, E, the layout of one expert), in the order of computation."""
    fused = {id(experts) for experts in fused_experts(model)}
    return {
        name: (module, count, Layout.of(module, count))
        for name, module in model.named_modules()
        if id(module) in fused and (count := module.down_proj.shape[0])
    }


def put(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Makes `tensor` the parameter or buffer of that name, and marks it as one that is not to be initialised."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf in module._buffers:
        module._buffers[leaf] = tensor
    else:
        tensor = nn.Parameter(tensor.detach(), requires_grad=tensor.is_floating_point())
        module._parameters[leaf] = tensor
    tensor._is_hf_initialized = True  # transformers' own mark


def missing_from(model: nn.Module, made: set[str]) -> set[str]:
    """Names in the model's state that neither `made` nor tying nor the family's own exceptions account for."""
    missing = set(model.state_dict()) - made
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    for target, source in tied.items():
        if not {target, source} <= missing:
            missing -= {target, source}
    patterns = [re.compile(each) for each in getattr(model, "_keys_to_ignore_on_load_missing", None) or ()]
    return {name for name in missing if not any(pattern.search(name) for pattern in patterns)}


def unexpected_by(model: nn.Module, spare: list[str]) -> list[str]:
    """Keys without a place in the model that its family does not expect either."""
    patterns = [re.compile(each) for each in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()]
    patterns += [re.compile(r"rotary_emb\.inv_freq"), re.compile(r"(^|\.)position_ids$")]  # of old checkpoints
    return [key for key in spare if not any(pattern.search(key) for pattern in patterns)]


def finish(model, made: set[str], device: torch.device, leave: Collection[str] = ()) -> list[str]:
    """Makes what no checkpoint holds, as transformers does: buffers that are not saved, and tied weights.

    Args:
        made: parameters that have their values.   leave: those that are to stay on the meta device.

    Returns:
        names that are still without a value; none if all is well.
    """
    missing = set(model.state_dict()) - made
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    for name in tied & missing:
        model.get_parameter(name)._is_hf_initialized = True  # it will be replaced: a vocabulary is long to initialise
    for name, tensor in list(_tensors(model)):
        if tensor.is_meta and name not in tied and name not in leave:
            put(model, name, torch.empty_like(tensor, device=device))
            _get(model, name)._is_hf_initialized = False
    model.initialize_weights()  # each family's `_init_weights`, for what has not been marked
    model.tie_weights(missing_keys=missing, recompute_mapping=False)
    return [name for name, tensor in _tensors(model) if tensor.is_meta and name not in leave]


def _tensors(model: nn.Module):
    return chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))


def _get(model: nn.Module, name: str) -> torch.Tensor:
    path, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(path), leaf)


__all__ = ["expert_layouts", "finish", "missing_from", "own_half", "put", "skeleton", "unexpected_by"]
