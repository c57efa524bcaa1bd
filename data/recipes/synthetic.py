"""Large checkpoints of a real shape and of random weights, for measuring what loading and reading cost, and a sentence
about the machine on which that was measured.

Weights are normal, of standard deviation 0.02, from a seed; embeddings of 1, so that what a token is, and not what all
tokens have in common, decides where it is routed. They are written shard by shard, so that little of them is
in memory at a time.
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, PreTrainedTokenizerFast

from mobile_nb.model.skeleton import skeleton

SHARD = 0.5e9  # bytes
STD = 0.02
LAYOUTS = {"per-expert": "olmoe", "fused": "granitemoe"}  # how experts lie on disk: a family that saves them so
RENAMED = {  # of granitemoe: its names in the model -> on disk
    "experts.gate_up_proj": "input_linear.weight",
    "experts.down_proj": "output_linear.weight",
    "router.weight": "router.layer.weight",
}


def write(folder: Path, layout: str, *, experts: int, seed: int = 0, **sizes) -> int:
    """Writes a bfloat16 checkpoint with its config and a tokenizer; returns the bytes of its weights.

    Args:
        layout: a key of LAYOUTS.   experts: of each layer.   sizes: other fields of the config.
    """
    count = "num_local_experts" if layout == "fused" else "num_experts"
    config = AutoConfig.for_model(LAYOUTS[layout], **({count: experts, "eos_token_id": 1, "dtype": "bfloat16"} | sizes))
    bones = skeleton(config, torch.bfloat16)
    config.architectures = [type(bones).__name__]
    config.save_pretrained(folder)
    _tokenizer(folder)
    shapes = {}
    for name, tensor in bones.state_dict().items():
        shapes |= _on_disk(name, tuple(tensor.shape), layout)
    return _shards(folder, shapes, torch.Generator().manual_seed(seed))


def _on_disk(name: str, shape: tuple[int, ...], layout: str) -> dict[str, tuple[int, ...]]:
    """The tensors on disk that one parameter is made of."""
    if layout == "fused":
        for ours, theirs in RENAMED.items():
            name = name.replace(ours, theirs)
        return {name: shape}
    base, _, leaf = name.rpartition(".")
    if leaf == "gate_up_proj":
        half = (shape[1] // 2, shape[2])
        return {f"{base}.{e}.{part}_proj.weight": half for e in range(shape[0]) for part in ("gate", "up")}
    if leaf == "down_proj":
        return {f"{base}.{e}.down_proj.weight": shape[1:] for e in range(shape[0])}
    return {name: shape}


def _shards(folder: Path, shapes: dict[str, tuple[int, ...]], generator: torch.Generator) -> int:
    parts: list[list[str]] = [[]]
    filled = 0
    for name in sorted(shapes):
        size = 2 * torch.Size(shapes[name]).numel()
        if filled and filled + size > SHARD:
            parts.append([])
            filled = 0
        parts[-1].append(name)
        filled += size
    total, where = 0, {}
    for number, names in enumerate(parts, 1):
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        tensors = {name: _weights(name, shapes[name], generator) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(names, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    os.sync()  # what has not reached the disk cannot be read from it
    return total


def _weights(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    out = torch.ones(shape, dtype=torch.bfloat16)
    std = 1.0 if "embed" in name else STD
    return out if name.endswith("norm.weight") else out.normal_(std=std, generator=generator)


def _tokenizer(folder: Path) -> None:
    words = {word: at for at, word in enumerate(["<pad>", "<eos>", *(f"w{i}" for i in range(98))])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)


def forget(folder: Path) -> None:
    """Asks the system to drop the weights from its page cache, so that they are read from the disk (Linux)."""
    for path in folder.glob("*.safetensors"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def from_disk() -> int:
    """Bytes that this process has had fetched from a disk, page cache hits left out (Linux)."""
    with open("/proc/self/io") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def machine() -> dict:
    """What the figures depend on beside the files."""
    import transformers

    with open("/proc/cpuinfo") as lines:
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    with open("/proc/meminfo") as lines:
        memory = int(next(lines).split()[1]) * 1024 / 1e9
    return {
        "measured": True,
        "cpu": f"{cpu} ({platform.machine()})",
        "cores": f"{os.cpu_count()}, of which this may use {len(os.sched_getaffinity(0))}",
        "load_average": [round(load, 1) for load in os.getloadavg()],  # others' work, as far as it is not this
        "threads": torch.get_num_threads(),
        "memory_gb": round(memory, 1),
        "virtual_machine": "hypervisor" in Path("/proc/cpuinfo").read_text(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


__all__ = ["LAYOUTS", "forget", "from_disk", "machine", "write"]
