"""accelerate's offload on the same model: the baseline that people have. Used where it is installed, no dependency."""

from __future__ import annotations

import contextlib
import time

import torch

from ..memory.host import host_room_gb
from ..model.adapters import find_layers
from ..vocabulary import MobileError


def experts_gb(model) -> float:
    """Of all experts, as they are: what one token moves where nothing is kept."""
    return sum(p.nbytes for layer in find_layers(model) for p in layer.experts.parameters(recurse=False)) / 1e9


def end_before(gb: float, now: float, end: float) -> float:
    """When others must be over, so that experts of `gb` are offloaded before `end`: a second each GB, which is a copy
    of them, the prompt and two tokens, each at 4 GB/s or so, and five for a row that ends late. Where the former is
    more than a third of the time: `end`.
    """
    return end - gb - 5 if 3 * gb <= end - now else end


@contextlib.contextmanager
def by_accelerate(model, device: torch.device):
    """The model with its fused experts offloaded by accelerate's hooks: each call of a layer's experts brings all of
    them to the device. They lie in pageable host memory of their own, contiguous, as `from_pretrained` leaves them.

    Raises:
        MobileError: accelerate is not installed, or there is no memory for a second copy of the experts.
    """
    try:
        from accelerate import cpu_offload
        from accelerate.hooks import remove_hook_from_module
    except ImportError as problem:
        raise MobileError("accelerate is not installed, so its offload is not measured.") from problem
    modules, gb, room = [layer.experts for layer in find_layers(model)], experts_gb(model), host_room_gb()
    if room is not None and gb > 0.9 * room:
        raise MobileError(
            f"accelerate keeps the experts in its own way, another {gb:.1f} GB of host memory, and {room:.1f} are free."
        )
    before = [dict(module._parameters) for module in modules]
    try:
        for module in modules:
            state = {
                name: p.detach().clone(memory_format=torch.contiguous_format) for name, p in module.named_parameters()
            }
            cpu_offload(module, execution_device=device, state_dict=state)
        yield gb
    finally:
        for module, parameters in zip(modules, before, strict=True):
            module._parameters.update(parameters)
            with contextlib.suppress(Exception):  # it cannot put back what lies otherwise; we do
                remove_hook_from_module(module, recurse=True)
            module._parameters.update(parameters)


@torch.no_grad()
def tokens_by(model, prompt: torch.Tensor, *, seconds: float, least: int, most: int) -> list[float]:
    """Seconds of each token after the first, written by the bare model, greedily, until time is up."""
    out, taken = model(prompt, use_cache=True, logits_to_keep=1), []
    while len(taken) < most and (len(taken) < least or sum(taken) < seconds):
        token = out.logits[:, -1:].argmax(dim=-1)
        begin = time.perf_counter()
        out = model(token, past_key_values=out.past_key_values, use_cache=True)
        out.logits[0, -1].argmax().item()  # waits
        taken.append(time.perf_counter() - begin)
    return taken


__all__ = ["by_accelerate", "end_before", "experts_gb", "tokens_by"]
