"""Folders with models in them, for the tests of loading: small ones, whole or in shards, and ways to break them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from helpers import ARCHITECTURES, make

SHARD = "40KB"  # small models are then several files
FAMILIES = [name for name in ARCHITECTURES if "-" not in name]


def add_tokenizer(folder: Path) -> None:
    """Saves a tokenizer of a hundred words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: at for at, word in enumerate(["<pad>", "<bos>", "<eos>", *(f"w{i}" for i in range(98))])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)


def save(folder: Path, name: str = "olmoe", *, shard: str = SHARD, model=None, **changes) -> Path:
    """A small random model and a tokenizer as transformers saves them."""
    model = make(name, **changes) if model is None else model
    model.generation_config.max_length = 77
    model.save_pretrained(folder, max_shard_size=shard)
    add_tokenizer(folder)
    return folder


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def header(path: Path) -> tuple[dict, bytes]:
    """A safetensors file's header, and the bytes after it."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def rewrite(path: Path, described: dict, data: bytes) -> None:
    text = json.dumps(described).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
