"""Small random models of any architecture, for tests and examples where the routing matters and the text does not.

An architecture is made small by the names of its own config's fields: most families spell the same few sizes in one of
a few ways, so one table serves them all, and what a family needs beside it stands in a second one.
"""

from __future__ import annotations

import torch

from ..vocabulary import MobileError
from .sizes import EXPERTS, FAMILIES, LAYERS, LISTS, SMALL, TOWER

MOST = 3_000_000  # parameters; a model with more has a size that the tables do not know


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
    own = FAMILIES.get(architecture, {})
    if plain.get_text_config() is plain:
        return AutoConfig.for_model(architecture, **(_shrunk(plain, SMALL) | own | changes))
    return AutoConfig.for_model(architecture, **_parts(plain, plain.get_text_config(), own, changes))


def _parts(config, text, own: dict, changes: dict) -> dict:
    """The fields of a config made of configs: the text model's, and the towers' beside it."""
    fields = _shrunk(config, {name: size for name, size in TOWER.items() if name != "vocab_size"})
    for name in config.sub_configs:
        part, ours = getattr(config, name, None), own.get(name, {})
        if part is text:
            fields[name] = _shrunk(part, SMALL) | ours | changes
        elif part is not None:
            fields[name] = _shrunk(part, TOWER) | _parts(part, text, ours, {})
    return fields | {name: value for name, value in own.items() if name not in config.sub_configs}


def _shrunk(config, small: dict) -> dict:
    """Those fields of `small` that the config has, and its lists cut to as many layers."""
    names = set(vars(config)) | set(config.to_dict())
    fields = {name: value for name, value in small.items() if name in names}
    if getattr(config, "sliding_window", 0) is None:  # by default there is no window
        fields["sliding_window"] = None
    if small is SMALL:
        if names & {"kv_lora_rank", "o_lora_rank"}:  # latent attention: every head has its own
            fields["num_key_value_heads"] = fields["num_attention_heads"]
        kinds = {name: getattr(config, name, None) for name in LISTS if name in names}
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
    try:
        with torch.device("meta"):  # an architecture with a size that nobody made small must not fill the memory
            size = sum(p.numel() for p in auto.from_config(config).parameters())
    except Exception as problem:
        said = " ".join(str(problem).split())[:100].rstrip(".")
        raise MobileError(f"a small {architecture} cannot be built ({type(problem).__name__}: {said}).") from problem
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
