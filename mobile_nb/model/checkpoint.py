"""Safetensors files as they lie on disk: where each tensor is, and reading one straight into memory that is given.

A file is 8 bytes (the header's length), a JSON header (dtype, shape and place of each tensor) and the tensors. Headers
are checked against the files before anything is allocated. Files are read, not mapped: nothing is counted twice, and a
file that shrinks while it is read is a sentence and not a crash. Knows nothing about models.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..vocabulary import MobileError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
LONGEST_HEADER = 100_000_000  # bytes; the format's own limit
AT_ONCE = 32 << 20  # bytes of one read: the progress bar moves, and conversions need little memory
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor in a file: `begin` is its first byte there."""

    path: Path
    begin: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Checkpoint:
    """The tensors of a model's safetensors files, by key. A context manager: leaving it closes the files.

    Attributes:
        entries: key -> Entry.
        told: called with the bytes of each read.
        cold: tell the system to forget what was read (Linux), so that reading it again is reading the disk again.
    """

    def __init__(self, entries: dict[str, Entry]):
        self.entries = entries
        self.told: Callable[[int], object] = lambda nbytes: None
        self.cold = False
        self._files: dict[Path, io.FileIO] = {}
        self._open = contextlib.ExitStack()
        self._staging = torch.empty(0, dtype=torch.uint8)

    @staticmethod
    def of(folder: Path) -> Checkpoint:
        """Reads the headers of a model's folder: one file, or the shards that an index names.

        Raises:
            MobileError: no safetensors, a missing, damaged or unreadable file, an index of another checkpoint.
        """
        if not (folder / INDEX).is_file():
            if (folder / SINGLE).is_file():
                return Checkpoint(_entries(folder / SINGLE))
            pickles = sorted(path.name for kind in PICKLES for path in folder.glob(kind))
            if pickles:
                raise MobileError(
                    f"{folder} holds {pickles[0]} and no safetensors; a pickle can run any code while it is read, so "
                    "mobile_nb reads none: save the model again with save_pretrained."
                )
            raise MobileError(f"{folder} holds no weights: neither {SINGLE} nor {INDEX}.")
        where = _weight_map(folder / INDEX)
        shards = sorted(set(where.values()))
        for shard in shards:
            if not (folder / shard).is_file():
                raise MobileError(f"{folder / INDEX} names {shard}, which is not in the folder.")
        found = {shard: _entries(folder / shard) for shard in shards}
        for key, shard in where.items():
            if key not in found[shard]:
                raise MobileError(
                    f"{folder / INDEX} says that {shard} holds {key}, and it does not: the index belongs to another "
                    "checkpoint."
                )
        return Checkpoint({key: found[shard][key] for key, shard in where.items()})

    @property
    def dtype(self) -> torch.dtype:
        """Of the first floating-point tensor that a model can be made of; float32 where there is none."""
        floats = (e.dtype for e in self.entries.values() if e.dtype.is_floating_point and e.dtype.itemsize > 1)
        return next(floats, torch.float32)

    def fill(self, key: str, out: torch.Tensor, first: int = 0) -> None:
        """Reads `out.numel()` elements of tensor `key`, from element `first` on, into `out`.

        Args:
            out: contiguous, of any dtype and on any device; into host memory of the tensor's own dtype it is one copy.
        """
        entry, flat = self.entries[key], out.detach().view(-1)
        direct = out.dtype == entry.dtype and out.device.type == "cpu"
        step = AT_ONCE // entry.dtype.itemsize
        for done in range(0, flat.numel(), step):
            part = flat[done : done + step]
            target = part if direct else self._stage(part.numel(), entry.dtype)
            self._read(entry, (first + done) * entry.dtype.itemsize, target)
            if not direct:
                part.copy_(target)

    def tensor(self, key: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        """A whole tensor as it is on disk, or its rows begin..end of the first axis."""
        entry = self.entries[key]
        begin, end = rows or (0, entry.shape[0] if entry.shape else 1)
        shape = (end - begin, *entry.shape[1:]) if entry.shape else ()
        out = torch.empty(shape, dtype=entry.dtype)
        self.fill(key, out, begin * math.prod(entry.shape[1:]))
        return out

    def _stage(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        if self._staging.numel() < count * dtype.itemsize:
            self._staging = torch.empty(count * dtype.itemsize, dtype=torch.uint8)
        return self._staging[: count * dtype.itemsize].view(dtype)

    def _read(self, entry: Entry, offset: int, target: torch.Tensor) -> None:
        memory = memoryview(target.view(torch.uint8).numpy())
        file = self._files.get(entry.path)
        try:
            if file is None:
                file = self._files[entry.path] = self._open.enter_context(io.FileIO(entry.path))
            file.seek(entry.begin + offset)
            done = 0
            while done < len(memory):
                got = file.readinto(memory[done:])
                if not got:
                    raise MobileError(f"{entry.path} became shorter while it was read.")
                done += got
        except OSError as problem:
            raise MobileError(f"{entry.path} cannot be read: {problem.strerror or problem}.") from problem
        self.told(len(memory))
        if self.cold:
            os.posix_fadvise(file.fileno(), entry.begin + offset, len(memory), os.POSIX_FADV_DONTNEED)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files; the next read opens them again."""
        self._open.close()
        self._files.clear()
        self._staging = torch.empty(0, dtype=torch.uint8)


def read_json(path: Path) -> dict:
    """A JSON file that must hold an object.

    Raises:
        MobileError: it cannot be read, or is something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise MobileError(f"{path} cannot be read: {problem.strerror or problem}.") from problem
    except ValueError as problem:
        raise MobileError(f"{path} is damaged: it is not JSON.") from problem
    if not isinstance(value, dict):
        raise MobileError(f"{path} is damaged: a JSON object was expected.")
    return value


def shards_of(index: Path) -> list[str]:
    """Names of the files that an index speaks of."""
    return sorted(set(_weight_map(index).values()))


def _weight_map(index: Path) -> dict[str, str]:
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(name, str) for name in where.values()):
        raise MobileError(f"{index} is damaged: it has no `weight_map` from tensors to files.")
    for name in where.values():
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise MobileError(f"{index} names {name!r}, and only safetensors files in its own folder are read.")
    return where


def _entries(path: Path) -> dict[str, Entry]:
    """The header of one file, checked against the file's size."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            text = file.read(length) if 2 <= length <= min(size - 8, LONGEST_HEADER) else b""
    except OSError as problem:
        raise MobileError(f"{path} cannot be read: {problem.strerror or problem}.") from problem
    if start == b"version ":
        raise MobileError(f"{path} is a Git LFS pointer and not the weights; fetch them with `git lfs pull`.")
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        unknown = sorted({described["dtype"] for described in header.values()} - DTYPES.keys())
        if unknown:
            raise MobileError(f"{path} holds weights of kind {unknown[0]}, which mobile_nb cannot read.")
        entries = {key: _entry(path, 8 + length, **described) for key, described in header.items()}
    except (ValueError, TypeError, AttributeError, KeyError) as problem:
        why = "it is empty" if not size else "its header is not that of a safetensors file"
        raise MobileError(f"{path} is damaged: {why}.") from problem
    needed = max((entry.begin + entry.nbytes for entry in entries.values()), default=8 + length)
    if size != needed:
        what = "truncated" if size < needed else "damaged"
        raise MobileError(f"{path} is {what}: its header promises {needed:,} bytes and the file has {size:,}.")
    return entries


def _entry(path: Path, base: int, *, dtype: str, shape: list[int], data_offsets: list[int]) -> Entry:
    begin, end = data_offsets
    entry = Entry(path, base + begin, DTYPES[dtype], tuple(shape))
    if begin < 0 or min(shape, default=0) < 0 or end - begin != entry.nbytes:
        raise ValueError(f"{shape} of {dtype} does not take {begin} to {end}")
    return entry


__all__ = ["Checkpoint", "Entry", "read_json", "shards_of"]
