"""Which tensors on disk make which parameter of a model, and how: transformers' own conversion tables, none of ours.

transformers 5 keeps, for each family, renamings and converters: `experts.*.gate_proj.weight` and
`experts.*.up_proj.weight` are stacked and concatenated into `experts.gate_up_proj`. It applies them to whole layers;
here the same operations run on one expert at a time, where they treat experts one by one, so that no layer lies in
memory twice.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

STACK, CONCATENATE = "MergeModulelist", "Concatenate"
UNPACK = ("Mxfp4Dequantize", "Fp8Dequantize")  # they pair each weight with its scales, expert by expert


@dataclass
class Recipe:
    """How one parameter, or the several that one converter makes, come from the checkpoint.

    Attributes:
        name: the parameter; where there are several, the first.
        names: all of them.
        sources: the converter's pattern -> keys on disk, in order.
        converter: None where the tensor is taken as it is.
    """

    name: str
    names: list[str]
    sources: dict[str, list[str]] = field(default_factory=dict)
    converter: object | None = None

    @property
    def keys(self) -> list[str]:
        return [key for keys in self.sources.values() for key in keys]

    def pieces(self, experts: int) -> list[list[str]] | None:
        """Keys of each expert [E][n] where its block is just these tensors, one after the other; otherwise None."""
        kinds = [type(op).__name__ for op in self._operations]
        lined_up = kinds == [STACK] or (kinds == [STACK, CONCATENATE] and self._operations[1].dim == 1)
        if not lined_up or self._operations[0].dim != 0 or any(len(keys) != experts for keys in self.sources.values()):
            return None
        ordered = [self.sources[pattern] for pattern in self.converter.source_patterns if pattern in self.sources]
        return [list(keys) for keys in zip(*ordered, strict=True)]

    @property
    def by_expert(self) -> bool:
        """Whether the operations may run on one expert at a time."""
        return len(self.names) == 1 and all(_keeps_experts_apart(op) for op in self._operations)

    @property
    def stacks(self) -> bool:
        """Whether each expert has tensors of its own on disk."""
        return any(type(op).__name__ == STACK for op in self._operations)

    @property
    def _operations(self) -> list:
        return [] if self.converter is None else self.converter.operations

    def make(self, tensors: dict[str, list[torch.Tensor]], model) -> dict[str, torch.Tensor]:
        """Runs the operations on tensors by pattern; returns parameter name -> tensor."""
        for pattern, found in tensors.items():
            for key, tensor in zip(self.sources[pattern], found, strict=False):
                self.converter.add_tensor(self.name, key, pattern, tensor)
        made = self.converter.convert(self.name, model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


def _keeps_experts_apart(operation) -> bool:
    """Whether an operation on tensors [E, ...] does the same to each expert, whatever the others are."""
    kind, dim = type(operation).__name__, getattr(operation, "dim", 0)
    if kind == STACK:
        return dim == 0
    if kind in (CONCATENATE, "Interleave"):
        return dim >= 1 and getattr(operation, "num_shards_attribute", None) is None
    if kind == "Transpose":
        return min(operation.dim0, operation.dim1) >= 1 and not getattr(operation, "check_dims", False)
    return kind in UNPACK


def recipes_of(model, keys: Iterable[str], quantizer=None) -> tuple[list[Recipe], list[str], list]:
    """What is to be made of a checkpoint's keys.

    Args:
        model: a transformers model, on the meta device or any other.
        keys: of the checkpoint.
        quantizer: of transformers, set to dequantise; None for plain weights.

    Returns:
        recipes, the keys that have no place in the model, and the conversions that were used.

    Raises:
        ImportError: this transformers keeps its tables elsewhere.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    mapping = get_model_conversion_mapping(model, None, quantizer)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    converter_of = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    wanted = model.state_dict()
    found: dict[str, Recipe] = {}
    spare = []
    for key in sorted(keys, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, wanted)
        if name not in wanted and key in wanted:  # only the model's prefix was missing or too much
            name, pattern = rename_source_key(key, [], [], model.base_model_prefix, wanted)
        if name not in wanted:
            spare.append(key)
        elif name in found and (pattern is None or found[name].converter is None):
            spare.append(key)  # a parameter is made in one way
        elif pattern is None:
            found[name] = Recipe(name, [name], {key: [key]})
        else:
            if name not in found:
                converter = copy.deepcopy(converter_of[pattern])
                names = [name.replace(converter.target_patterns[0], each) for each in converter.target_patterns]
                found[name] = Recipe(name, names, {}, converter)
            found[name].sources.setdefault(pattern, []).append(key)
    used = [entry for entry in mapping if getattr(entry, "was_used", lambda: True)()]
    return list(found.values()), spare, used


__all__ = ["Recipe", "recipes_of"]
