"""Reads a checkpoint into a skeleton: experts one at a time into host arenas, all other weights to their device.

Everything is checked against the files' headers before anything is allocated. Then each byte is read once, in the order
in which it lies on disk. Where a tensor on disk is a part of an expert as the arena holds it, and of the same dtype, it
is read straight into its place. Knows nothing about names, hubs or tokenizers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..memory.store import new_blocks
from ..vocabulary import MobileError
from .checkpoint import Checkpoint
from .disk import leave_on_disk
from .mapping import Recipe, recipes_of
from .skeleton import expert_layouts, finish, missing_from, put, unexpected_by


@dataclass(frozen=True)
class Read:
    """A tensor, or a part of one, that is a contiguous part of a parameter as it is.

    Attributes:
        key, first: on disk, from which element.
        name, expert, at: of the parameter; None for all of it; from which of its (or that expert's) elements.
        count: elements.
    """

    key: str
    first: int
    name: str
    expert: int | None
    at: int
    count: int

    @property
    def names(self) -> list[str]:
        return [self.name]


@dataclass(frozen=True)
class Make:
    """Parameters that transformers' operations make: of one expert, or (expert None) whole."""

    recipe: Recipe
    expert: int | None

    @property
    def names(self) -> list[str]:
        return self.recipe.names


@dataclass(frozen=True)
class Amounts:
    """What a load is about to do, in bytes: read from disk, experts in host memory, all other weights."""

    read: int
    experts: int
    others: int


def stream(
    model,
    checkpoint: Checkpoint,
    device: torch.device,
    *,
    quantizer=None,
    on_disk: bool = False,
    begin: Callable[[Amounts], object] = lambda amounts: None,
) -> list[str]:
    """Gives a skeleton its weights. Experts' parameters become views of arenas in host memory, see `memory.store`.

    Args:
        model: from `skeleton`.   checkpoint: open.
        device: for everything but fused experts. On a CUDA device arenas are page-locked where the system allows it.
        quantizer: of transformers, set to dequantise; None for plain weights.
        on_disk: leave fused experts in their files; their parameters stay on the meta device.
        begin: called once everything has been checked, before the first allocation.

    Returns:
        keys of the checkpoint that have no place in the model.

    Raises:
        MobileError: the checkpoint does not belong to the config, or there is not enough memory.
        ImportError: this transformers keeps its conversion tables elsewhere.
    """
    kind, meta = type(model).__name__, model.state_dict()
    recipes, spare, used = recipes_of(model, checkpoint.entries, quantizer)
    made = {name for recipe in recipes for name in recipe.names}
    missing = sorted(missing_from(model, made))
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise MobileError(f"the checkpoint lacks {missing[0]}{more}, which {kind} needs; it is another model's.")
    layouts = expert_layouts(model)
    experts = {
        f"{module}.{name}": count for module, (_, count, layout) in layouts.items() for name, _, _ in layout.parts
    }
    jobs = [job for recipe in recipes for job in _jobs(recipe, checkpoint, meta, experts, kind)]
    keys = {key for recipe in recipes for key in recipe.keys}
    if on_disk:
        jobs = leave_on_disk(layouts, jobs, checkpoint, functools.partial(_perform, model=model), kind)
        keys -= {key for recipe in recipes if set(recipe.names) & experts.keys() for key in recipe.keys}
        layouts, made = {}, made - experts.keys()
    begin(
        Amounts(
            read=sum(checkpoint.entries[key].nbytes for key in keys),
            experts=sum(count * layout.nbytes for _, count, layout in layouts.values()),
            others=sum(meta[name].nbytes for name in made if name in meta and name not in experts),
        )
    )
    places = _places(model, made, meta, layouts, experts, device)
    for job in sorted(jobs, key=lambda job: _where(job, checkpoint)):
        e = job.expert
        _perform(job, checkpoint, lambda name, e=e: places[name] if e is None else places[name][e : e + 1], model)
    left = finish(model, made, device, leave=experts.keys() if on_disk else ())
    if left:
        raise MobileError(f"{kind} needs {left[0]}, which the checkpoint does not hold and transformers does not make.")
    model._weight_conversions = used  # so that save_pretrained writes the names that were read
    return unexpected_by(model, spare)


def _jobs(recipe: Recipe, checkpoint: Checkpoint, meta: dict, experts: dict[str, int], kind: str) -> list:
    """The reads that make one recipe's parameters, checked against the shapes on disk."""
    name, entries = recipe.name, checkpoint.entries
    shape, count = tuple(meta[name].shape), experts.get(recipe.name)
    found = {key: entries[key].shape for key in recipe.keys}
    if recipe.converter is None:
        ((key, on_disk),) = found.items()
        _fits(key, on_disk, name, shape, kind)
        if count is None:
            return [Read(key, 0, name, None, 0, math.prod(shape))]
        size = math.prod(shape[1:])
        return [Read(key, e * size, name, e, 0, size) for e in range(count)]
    pieces = recipe.pieces(count) if count else None
    if pieces is not None:
        return [job for e, keys in enumerate(pieces) for job in _line_up(keys, found, name, e, shape[1:], kind)]
    alone = all(len(keys) == count for keys in recipe.sources.values())
    sliced = all(len(keys) == 1 and found[keys[0]][:1] == (count,) for keys in recipe.sources.values())
    if count and recipe.by_expert and (alone if recipe.stacks else sliced):
        return [Make(recipe, e) for e in range(count)]
    return [Make(recipe, None)]


def _line_up(keys: list[str], found: dict, name: str, expert: int, shape: tuple[int, ...], kind: str) -> list[Read]:
    """One expert's tensors, one after the other along the first axis of its part of the parameter."""
    reads, rows, at = [], 0, 0
    for key in keys:
        _fits(key, found[key][1:], name, shape[1:], kind, whole=found[key])
        size = math.prod(found[key])
        reads.append(Read(key, 0, name, expert, at, size))
        rows, at = rows + found[key][0], at + size
    _fits(" and ".join(keys), (rows, *shape[1:]), name, shape, kind)
    return reads


def _fits(key: str, on_disk: tuple, name: str, wanted: tuple, kind: str, whole: tuple | None = None) -> None:
    if tuple(on_disk) != tuple(wanted):
        raise MobileError(
            f"{key} of the checkpoint has shape {list(whole or on_disk)}, which does not fit {name} of this {kind}, "
            f"{list(wanted)}: weights and config.json do not belong together."
        )


def _places(model, made: set[str], meta: dict, layouts: dict, experts: dict, device: torch.device) -> dict:
    """Allocates: name -> tensor to fill, which is the model's parameter from now on."""
    places: dict[str, torch.Tensor] = {}
    try:
        for module, (_, count, layout) in layouts.items():
            _, views, _ = new_blocks(layout, count, pin=device.type == "cuda")
            places |= {f"{module}.{name}": view for name, view in views.items()}
        for name in made & meta.keys() - experts.keys():
            places[name] = torch.empty_like(meta[name], device=device)
    except (MemoryError, RuntimeError) as problem:  # torch says it with a RuntimeError on the host
        gb = sum(tensor.nbytes for tensor in meta.values()) / 1e9
        raise MobileError(
            f"there is not enough memory for the {gb:.1f} GB of this {type(model).__name__}."
        ) from problem
    for name, place in places.items():
        put(model, name, place)
    return places


def _where(job, checkpoint: Checkpoint):
    if isinstance(job, Read):
        entry = checkpoint.entries[job.key]
        return str(entry.path), entry.begin + job.first * entry.dtype.itemsize
    keys = job.recipe.keys
    entry = checkpoint.entries[keys[job.expert if job.expert is not None and job.recipe.stacks else 0]]
    rows = entry.shape[0] if job.expert is not None and not job.recipe.stacks else 1
    return str(entry.path), entry.begin + (job.expert or 0) * (entry.nbytes // rows if rows > 1 else 0)


def _perform(job: Read | Make, checkpoint: Checkpoint, place_of: Callable[[str], torch.Tensor], model) -> None:
    """Does one job: reads, or runs transformers' operations and copies what they make. `place_of`: of its parameter."""
    if isinstance(job, Read):
        checkpoint.fill(job.key, place_of(job.name).view(-1)[job.at : job.at + job.count], job.first)
        return
    recipe, e = job.recipe, job.expert
    if e is None:
        tensors = {pattern: [checkpoint.tensor(key) for key in keys] for pattern, keys in recipe.sources.items()}
    elif recipe.stacks:
        tensors = {pattern: [checkpoint.tensor(keys[e])] for pattern, keys in recipe.sources.items()}
    else:
        tensors = {pattern: [checkpoint.tensor(keys[0], (e, e + 1))] for pattern, keys in recipe.sources.items()}
    try:
        made = recipe.make(tensors, model)
    except Exception as problem:
        raise MobileError(
            f"{recipe.keys[0]} could not be converted to {recipe.name} of {type(model).__name__} "
            f"({type(problem).__name__}: {' '.join(str(problem).split())[:200].rstrip('.')})."
        ) from problem
    for name, tensor in made.items():
        try:
            place = place_of(name)
        except KeyError:
            kind = type(model).__name__
            raise MobileError(f"{recipe.keys[0]} was converted to {name}, which {kind} does not have.") from None
        _fits(recipe.keys[0], tensor.shape, name, place.shape, type(model).__name__)
        with torch.no_grad():
            place.copy_(tensor)


__all__ = ["Amounts", "stream"]
