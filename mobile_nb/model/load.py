"""Models by name, read as they are needed: experts into host arenas, the rest to the device.

model, tokenizer = load("tiny-olmoe")                      # ships with the package
model, tokenizer = load("allenai/OLMoE-1B-7B-0924")        # 14 GB: a bar counts them

Knows nothing about offloading.
"""

from __future__ import annotations

import contextlib
import traceback
import warnings
from pathlib import Path

import torch

from ..memory.host import current
from ..vocabulary import MobileError
from .checkpoint import Checkpoint
from .find import STANDS_FOR, embedded, folder_of, why
from .skeleton import own_half, skeleton
from .stream import Amounts, stream

SOON = 0.5  # seconds within which a load needs no bar
FEWEST_WORDS = 8  # of a tokenizer
LONG = 1e9  # bytes from which a load is long enough to say where the weights go
BAR = "{desc}: {percentage:3.0f}% {bar} {n:.2f} of {total:.2f} GB, {elapsed} gone, {remaining} left{postfix}"


class OtherLoader(Exception):
    """This checkpoint needs transformers' own loader."""


def load(
    name: str,
    *,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    experts: str = "memory",
    trust_remote_code: bool = False,
    progress: bool = True,
):
    """A model, in eval mode, and its tokenizer.

    Experts are read one at a time from safetensors into host memory, laid out as `offload` uses them, so that it copies
    nothing; all other weights go to the device. Host memory stays within 1.1 times the model (design.md, section 8).

    Args:
        name: an embedded model ("tiny-olmoe"), a local folder, or a hub id.
        device: "auto" (CUDA where there is one), or a torch device. On a CUDA device experts stay in host memory:
            moving them is what the package is about.
        dtype: "auto", a torch dtype or its name. Auto is the checkpoint's, but float32 for embedded models on a CPU,
            where that is faster and exact, and float16 on cards that only imitate bfloat16 (before Ampere: T4, V100).
            Checkpoints in mxfp4 or 8-bit floats are unpacked to it.
        experts: "memory" for host arenas; "disk" to leave them in their files, from where `offload` reads each one
            when it is needed: for machines whose memory does not hold the model.
        trust_remote_code: run Python code that the model's repository brings.
        progress: show a bar in GB while a model that is not embedded is read.

    Returns:
        (model, tokenizer), as `AutoModelForCausalLM` and `AutoTokenizer` make them.

    Raises:
        MobileError: no such model, no hub, a damaged checkpoint, no such device; one sentence says which. Nothing that
            was read stays in memory.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be an embedded model, a folder or a hub id, got {name!r}.")
    if experts not in ("memory", "disk"):
        raise ValueError(f"experts must be 'memory' or 'disk', got {experts!r}.")
    ours, where, kind = name in embedded(), _device(device), as_dtype(dtype)
    if kind == "auto" and ours and where.type == "cpu":
        kind = torch.float32
    try:
        return _load(name, where, kind, experts == "disk", trust_remote_code, progress and not ours)
    except BaseException as problem:
        _let_go(problem)
        if isinstance(problem, MobileError) or not isinstance(problem, Exception):
            raise
        # transformers and the hub raise OSError, ValueError, KeyError and more
        raise MobileError(why(name, problem)) from problem


def _load(name: str, device: torch.device, dtype, on_disk: bool, trust: bool, progress: bool):
    from transformers import AutoTokenizer

    folder = folder_of(name, code=trust)
    config = config_of(folder, trust)
    with Checkpoint.of(folder) as checkpoint:  # before the tokenizer: a model without weights is refused for that
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
        if len(tokenizer) < FEWEST_WORDS:  # transformers makes an empty one up for some families
            raise MobileError(f"{folder} holds no tokenizer; save one there with tokenizer.save_pretrained.")
        try:
            model = _streamed(name, config, checkpoint, device, dtype, on_disk, trust, progress)
        except (OtherLoader, ImportError) as problem:
            if on_disk:
                raise MobileError(f"the experts of {name} cannot stay on disk: {problem}.") from problem
            model = _by_transformers(folder, device, dtype, trust)
    model.name_or_path = model.config.name_or_path = name
    _generation_config(model, folder)
    return model, tokenizer


def _streamed(name, config, checkpoint: Checkpoint, device, dtype, on_disk: bool, trust: bool, progress: bool):
    quantizer = unpacking(config)
    if dtype == "auto":
        dtype = own_half(config.dtype or checkpoint.dtype, device)
    model = skeleton(config, dtype, trust_remote_code=trust)
    if not type(model).__module__.startswith("transformers."):
        raise OtherLoader("code from the repository may do what it likes when it is loaded")
    with current(device), contextlib.ExitStack() as stack:

        def begin(amounts: Amounts) -> None:
            bar = stack.enter_context(_bar(name, amounts, device, progress))
            checkpoint.told = lambda nbytes: bar.update(nbytes / 1e9)

        unused = stream(model, checkpoint, device, quantizer=quantizer, on_disk=on_disk, begin=begin)
    if unused:
        warnings.warn(
            f"{len(unused)} tensors of {name} have no place in {type(model).__name__} and were not read, {unused[0]} "
            "among them: the config may be another model's.",
            stacklevel=4,
        )
    return model


def config_of(folder: Path, trust_remote_code: bool = False):
    """The config in a model's folder."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)


def unpacking(config):
    """transformers' quantizer that turns a quantised checkpoint into plain weights; None where it is plain already.

    The config is that of the plain model afterwards.
    """
    given = getattr(config, "quantization_config", None)
    if given is None:
        return None
    from transformers.quantizers import AutoHfQuantizer

    quantizer = AutoHfQuantizer.from_config(given, pre_quantized=True)
    if not hasattr(quantizer.quantization_config, "dequantize"):
        raise OtherLoader("this kind of quantisation runs on modules of its own")
    quantizer.quantization_config.dequantize = True
    del config.quantization_config
    return quantizer


def _by_transformers(folder: Path, device: torch.device, dtype, trust: bool):
    from transformers import AutoModelForCausalLM

    model, found = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, trust_remote_code=trust, output_loading_info=True
    )
    lacking = sorted(found["missing_keys"]) + [key for key, *_ in found["mismatched_keys"]]
    if lacking:  # transformers makes them up
        raise MobileError(f"the checkpoint in {folder} does not hold {lacking[0]} as {type(model).__name__} needs it.")
    model.eval()
    if device.type != "cpu":
        _move(model, device)
    return model


def _generation_config(model, folder: Path) -> None:
    from transformers import GenerationConfig

    if model.can_generate():
        try:
            model.generation_config = GenerationConfig.from_pretrained(folder)
        except OSError:  # none was saved: what old models keep in their config
            model.generation_config = GenerationConfig.from_pretrained(
                folder, config_file_name="config.json", _from_model_config=True
            )


def _bar(name: str, amounts: Amounts, device: torch.device, shown: bool):
    from tqdm.auto import tqdm

    what = Path(name).name
    if amounts.read > LONG:
        what += (
            f" ({amounts.experts / 1e9:.1f} GB of experts to host memory, {amounts.others / 1e9:.1f} GB to {device})"
        )
    return tqdm(desc=what, total=amounts.read / 1e9, unit="GB", bar_format=BAR, disable=not shown, delay=SOON)


def _let_go(problem: BaseException | None) -> None:
    """Empties the frames of a traceback: a half-read model would live as long as somebody looks at the error."""
    while problem is not None:
        traceback.clear_frames(problem.__traceback__)
        problem = problem.__cause__ or problem.__context__


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


def as_dtype(dtype):
    """ "auto", or a torch dtype, also by name.

    Raises:
        ValueError: anything else.
    """
    if dtype == "auto" or isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, str(dtype), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"dtype must be 'auto' or a torch dtype such as 'float16', got {dtype!r}.")
    return found


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


__all__ = ["STANDS_FOR", "OtherLoader", "as_dtype", "config_of", "embedded", "load", "unpacking"]
