"""Models by name: the embedded ones, a local folder, or a hub id. Knows nothing about offloading."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

from ..files import data_path
from ..vocabulary import MobileError

STANDS_FOR = {"tiny-olmoe": "olmoe-1b-7b"}  # the published model whose geometry an embedded one is timed as


def embedded() -> list[str]:
    """Names of the models that ship with the package."""
    return sorted(p.parent.name for p in data_path().glob("*/model.safetensors"))


def load(name: str, *, device: str = "auto", dtype: str | torch.dtype = "auto"):
    """A model, in eval mode, and its tokenizer.

    Args:
        name: an embedded model ("tiny-olmoe"), a local folder, or a hub id.
        device: "auto" (CUDA where there is one), or a torch device. On a CUDA device experts stay in host memory:
            moving them is what the package is about.
        dtype: "auto", a torch dtype or its name. Auto is the checkpoint's, but float32 for embedded models on a CPU,
            where that is faster and exact.

    Returns:
        (model, tokenizer), as `AutoModelForCausalLM` and `AutoTokenizer` make them.

    Raises:
        MobileError: no such model, no hub, a damaged checkpoint, no such device; one sentence says which.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not isinstance(name, str):
        raise TypeError(f"name must be an embedded model, a folder or a hub id, got {name!r}.")
    ours = name in embedded()
    path = str(data_path(name)) if ours else name
    where = _device(device)
    kind = _dtype(dtype)
    if kind == "auto" and ours and where.type == "cpu":
        kind = torch.float32
    quiet = _no_bars() if ours else contextlib.nullcontext()
    try:
        with quiet:
            tokenizer = AutoTokenizer.from_pretrained(path)
            model = AutoModelForCausalLM.from_pretrained(path, dtype=kind).eval()
    except Exception as problem:  # transformers raises OSError, ValueError, KeyError, safetensors' own and more
        raise MobileError(_why(name, problem)) from problem
    if where.type != "cpu":
        _move(model, where)
    return model, tokenizer


@contextlib.contextmanager
def _no_bars():
    """Loading an embedded model takes less time than reading its progress bar."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _device(device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
    except RuntimeError as problem:
        raise ValueError(
            f"device must be 'auto' or a torch device such as 'cpu' or 'cuda:0', got {device!r}."
        ) from problem
    if where.type == "cuda" and not torch.cuda.is_available():
        raise MobileError("this machine has no CUDA device; use device='cpu', where the link is simulated.")
    return where


def _dtype(dtype):
    if dtype == "auto" or isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, str(dtype), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"dtype must be 'auto' or a torch dtype such as 'float16', got {dtype!r}.")
    return found


def _why(name: str, problem: Exception) -> str:
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            return f"{name} holds no config.json, so it is not a model's folder."
        first = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        return f"the model in {name} cannot be read ({type(problem).__name__}: {first})."
    return (
        f"there is no model {name!r}: not among the embedded ones ({', '.join(embedded())}), no folder of that name, "
        f"and no hub could give it ({type(problem).__name__}). With a network check the name, without give a folder."
    )


def _move(model, device: torch.device) -> None:
    """Moves everything but routed experts to the device."""
    from .adapters import fused_experts

    stay = {id(p) for experts in fused_experts(model) for p in experts.parameters(recurse=False)}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None and id(parameter) not in stay:
                parameter.data = parameter.data.to(device)
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = buffer.to(device)


__all__ = ["STANDS_FOR", "embedded", "load"]
