"""Which families of transformers have fused experts, and what they compute without this library: the other side of the
architecture matrix. Knows nothing about offloading.

Legend: T tokens · K experts asked for · V vocabulary.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from .adapters import MoELayer

MARK = "use_experts_implementation"  # what transformers writes above a class of fused experts
GREEDY = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def architectures() -> list[str]:
    """The model type of each family with fused experts in the transformers that is installed, its text model's where
    it has several; read from the source files, so that a new release brings its new ones."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES, model_type_to_module_name

    folders = {
        path.parent.name
        for path in (Path(transformers.__file__).parent / "models").glob("*/modeling_*.py")
        if MARK in path.read_text(encoding="utf-8")
    }
    types: dict[str, list[str]] = {folder: [] for folder in folders}
    for name in CONFIG_MAPPING_NAMES:
        types.get(model_type_to_module_name(name), []).append(name)
    return sorted(_writer(folder, names) for folder, names in types.items())


def _writer(folder: str, names: list[str]) -> str:
    """The type, of all in a folder, that writes text: a text model alone before one with eyes and ears."""
    from transformers.models.auto import modeling_auto as known

    first = [f"{folder}_text", folder]
    for mapping in (known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, known.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES):
        found = [name for name in [*first, *names] if name in names and name in mapping]
        if found:
            return found[0]
    return folder


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers without its advice about kernels that are not installed, which small models do not need."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def written(model, ids: torch.Tensor, new: int) -> tuple[list[int], torch.Tensor]:
    """What transformers itself writes after ids [1, T], greedily: `new` tokens, and their logits [new, V]."""
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        return_dict_in_generate=True,
        output_logits=True,
        **GREEDY,
    )
    return out.sequences[0, ids.shape[1] :].tolist(), torch.cat(out.logits).float()


def wobble(model, ids: torch.Tensor, new: int) -> float:
    """How far apart logits are that transformers itself computes expert by expert, and all experts at once: rounding,
    and what this model makes of it. 0 where it has one way alone."""
    before, logits = model.config._experts_implementation, []
    try:
        for way in ("eager", "grouped_mm"):
            model.set_experts_implementation(way)
            logits.append(written(model, ids, new)[1])
    except ValueError:
        return 0.0
    finally:
        model.set_experts_implementation(before)
    return (logits[0] - logits[1]).abs().max().item()


@contextlib.contextmanager
def smaller_top_k(layers: list[MoELayer], k: int) -> Iterator[None]:
    """The layers with `top_k` of their routers set to k, wherever it stands: in the router, the block or a config."""
    owners = {}
    for layer in layers:
        for module in layer.block.modules():
            for holder in (module, getattr(module, "config", None)):
                owners |= {
                    (id(holder), name): (holder, name)
                    for name in ("top_k", "top_k_experts")
                    if getattr(holder, name, None) == layer.top_k and isinstance(holder, nn.Module) == (name == "top_k")
                }
    before = [(holder, name, getattr(holder, name)) for holder, name in owners.values()]
    try:
        for holder, name, _ in before:
            setattr(holder, name, k)
        yield
    finally:
        for holder, name, old in before:
            setattr(holder, name, old)


@contextlib.contextmanager
def only_largest(layers: list[MoELayer], k: int, little: torch.Tensor | None = None) -> Iterator[None]:
    """The layers with all but each token's k largest weights set to zero, and the rest scaled by the family's rule.

    Args:
        little: where given, this happens to these positions of the text only; bool [T].
    """

    def keep(layer: MoELayer):
        def before(module, given):
            hidden, index, weights = given
            plain = weights if layer.scale is None else weights / layer.scale[index]
            kept = torch.zeros_like(weights, dtype=torch.bool).scatter(-1, plain.topk(k, dim=-1).indices, True)
            fewer = torch.where(kept, weights, 0)
            if layer.renormalises:
                fewer = fewer * (plain.sum(-1, keepdim=True) / torch.where(kept, plain, 0).sum(-1, keepdim=True))
            return hidden, index, fewer if little is None else torch.where(little[:, None], fewer, weights)

        return before

    hooks = [layer.experts.register_forward_pre_hook(keep(layer)) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def big_and_little(model, layers: list[MoELayer], ids: torch.Tensor, new: int, gamma: float, k: int, *, cached: bool):
    """MoBiLE without an eviction or an offload: a pass that is not kept leaves nothing behind.

    Args:
        gamma: a little token with a smaller largest probability is written again with all K experts.
        k: experts of the little model.
        cached: each pass works on a deep copy of the cache, and the kept one's copy goes on. False: there is no cache;
            the whole text is read again, each position with as many experts as when it was written.

    Returns:
        tokens, who wrote each ("little" or "big"), logits [new, V].
    """
    little = torch.zeros(ids.shape[1], dtype=torch.bool)  # which positions were read with k experts
    kept = model(input_ids=ids, use_cache=cached)
    tokens, wrote, logits = [], [], []
    for _ in range(new):
        logits.append(kept.logits[0, -1].float())
        tokens.append(int(logits[-1].argmax()))
        wrote.append("little" if tokens[1:] and little[-1] else "big")
        ids = torch.cat([ids, torch.tensor([tokens[-1:]])], dim=1)
        for fewer in (True, False):
            text = torch.cat([little, torch.tensor([fewer])])
            past: dict = {}
            if cached:
                past = {"past_key_values": copy.deepcopy(kept.past_key_values)}
                past["position_ids"] = torch.tensor([[ids.shape[1] - 1]])  # some caches cannot tell how long they are
            with only_largest(layers, k, text[-1:] if cached else text):
                out = model(input_ids=ids[:, -1:] if cached else ids, use_cache=cached, **past)
            if torch.softmax(out.logits[0, -1].float(), dim=-1).max().item() >= gamma:
                break
        kept, little = out, text
    return tokens, wrote, torch.stack(logits)


__all__ = ["architectures", "big_and_little", "only_largest", "quiet", "smaller_top_k", "wobble", "written"]
