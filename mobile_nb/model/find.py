"""Where a model's files are: shipped, in a local folder, or fetched from the hub. Knows nothing of their contents."""

from __future__ import annotations

from pathlib import Path

from ..files import data_path
from ..vocabulary import MobileError
from .checkpoint import INDEX, SINGLE, shards_of

STANDS_FOR = {  # the published model whose geometry an embedded one is timed as
    "tiny-olmoe": "olmoe-1b-7b",
    "tiny-qwen2-moe": "qwen1.5-moe-a2.7b",
    "tiny-deepseek-v2": "deepseek-v2-lite",
    "tiny-qwen3-moe": "qwen3-30b-a3b",
}
SMALL = ["*.json", "*.txt", "*.model", "*.jinja"]  # configs and tokenizers


def embedded() -> list[str]:
    """Names of the models that ship with the package."""
    return sorted(p.parent.name for p in data_path().glob("*/model.safetensors"))


def folder_of(name: str, *, weights: bool = True, code: bool = False) -> Path:
    """The folder that holds a model's files; of a hub id the files are fetched first, and only those that are needed.

    Args:
        name: an embedded model, a local folder, or a hub id.
        weights: False for config and tokenizer alone.
        code: fetch the repository's Python files too.

    Raises:
        MobileError: a folder that is no model's.   Others: what the hub's client raises.
    """
    if name in embedded():
        return data_path(name)
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise MobileError(f"{name} holds no config.json, so it is not a model's folder.")
        return folder
    if folder.exists():
        raise MobileError(f"{name} is a file; give the folder that holds it and its config.json.")
    from huggingface_hub import snapshot_download

    wanted, ignored = SMALL + ["*.py"] * code, ["*/*"]
    folder = Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=ignored))
    if weights:
        files = shards_of(folder / INDEX) if (folder / INDEX).is_file() else [SINGLE]
        folder = Path(snapshot_download(name, allow_patterns=wanted + files, ignore_patterns=ignored))
    return folder


def why(name: str, problem: Exception) -> str:
    """The sentence about a model that could not be found or read."""
    said = str(problem).strip()
    first = said.splitlines()[0].rstrip(".") if said else type(problem).__name__
    if "trust_remote_code" in said:
        return (
            f"{name} brings Python code of its own, which would run with your rights; if you have read and trust it, "
            "pass trust_remote_code=True."
        )
    if isinstance(problem, PermissionError):
        return f"{problem.filename or name} cannot be read: permission denied."
    if Path(name).is_dir() or name in embedded():
        return f"the model in {name} cannot be read ({type(problem).__name__}: {first[:300]})."
    return (
        f"there is no model {name!r}: not among the embedded ones ({', '.join(embedded())}), no folder of that name, "
        f"and no hub could give it ({type(problem).__name__}). With a network check the name, without give a folder."
    )


__all__ = ["STANDS_FOR", "embedded", "folder_of", "why"]
