"""Host arenas and device slots: one contiguous block an expert, so that a fetch is one copy.

A block holds all of one expert's parameters, one after the other, padded to 128 bytes. Weights are read-only: nothing
is ever copied back. Knows nothing about who decides what is fetched.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ..vocabulary import MobileError
from .host import host_memory

ALIGN = 128  # bytes; grouped matrix products want 16
FULL = ("out of memory", "not enough memory", "allocate memory")  # what torch and CUDA say; faults name memory too


@dataclass(frozen=True)
class Layout:
    """Where each parameter of an expert lies in its block.

    Attributes:
        parts: (name, shape without the expert axis, offset in elements).   numel: elements of a padded block.
        weights: elements that are really weights.
    """

    parts: tuple[tuple[str, tuple[int, ...], int], ...]
    numel: int
    weights: int
    dtype: torch.dtype

    @staticmethod
    def of(experts: nn.Module, count: int) -> Layout:
        """The layout of a fused-experts module: every own parameter whose first axis is the experts."""
        own = [(name, p) for name, p in experts.named_parameters(recurse=False) if p.shape[:1] == (count,)]
        dtypes = {p.dtype for _, p in own}
        if len(dtypes) != 1:
            raise MobileError(f"the experts' parameters must share one dtype, got {sorted(map(str, dtypes))}.")
        dtype, offset, weights, parts = dtypes.pop(), 0, 0, []
        step = max(1, ALIGN // dtype.itemsize)
        for name, p in own:
            parts.append((name, tuple(p.shape[1:]), offset))
            weights += p[0].numel()
            offset += -(-p[0].numel() // step) * step
        return Layout(tuple(parts), offset, weights, dtype)

    @property
    def nbytes(self) -> int:
        """Bytes that one fetch moves."""
        return self.numel * self.dtype.itemsize

    def views(self, blocks: torch.Tensor) -> dict[str, torch.Tensor]:
        """Each parameter as a view [N, *shape] of blocks [N, numel]."""
        return {
            name: blocks[:, offset : offset + torch.Size(shape).numel()].view(len(blocks), *shape)
            for name, shape, offset in self.parts
        }

    def blocks_of(self, experts: nn.Module, count: int) -> torch.Tensor | None:
        """The blocks [E, numel] in host memory whose views the parameters are, or None where they lie otherwise."""
        parameters = [getattr(experts, name).data for name, _, _ in self.parts]
        first = parameters[0]
        if first.device.type != "cpu":
            return None
        begin, end = first.storage_offset(), first.storage_offset() + count * self.numel
        if end * self.dtype.itemsize > first.untyped_storage().nbytes():
            return None
        blocks = first.as_strided((count, self.numel), (self.numel, 1), begin)
        same = all(
            p.data_ptr() == view.data_ptr() and p.stride() == view.stride()
            for p, view in zip(parameters, self.views(blocks).values(), strict=True)
        )
        return blocks if same else None


class Arena:
    """The experts of one layer in host memory: blocks [E, numel], page-locked where `pin` works.

    The experts' parameters become views of the arena, so that the weights exist once; `release` gives them back
    contiguous memory of their own, on the device where they were. Parameters that lie as an arena already, as `load`
    makes them, are adopted: nothing is copied, and nothing changes on release.
    """

    def __init__(self, experts: nn.Module, count: int, *, pin: bool = False):
        self.layout, self.count = Layout.of(experts, count), count
        self._experts = None
        found = self.layout.blocks_of(experts, count)
        if found is not None:
            self.blocks, self.pinned = found, pin and found.is_pinned()
            return
        self.blocks, views, self.pinned = new_blocks(self.layout, count, pin=pin)
        self._device = next(experts.parameters(recurse=False)).device
        with torch.no_grad():
            for name, view in views.items():
                view.copy_(getattr(experts, name).data)
            self._experts = experts  # from here on the arena may hold what the parameters do not
            try:
                for name, view in views.items():
                    parameter = getattr(experts, name)
                    parameter.data = view if self._device.type == "cpu" else parameter.data.new_empty(0)
            except BaseException:
                self.release()
                raise

    def copy_to(self, expert: int, block: torch.Tensor) -> None:
        """Fills a slot [numel]; from page-locked memory to a card it returns before the copy is over."""
        block.copy_(self.blocks[expert], non_blocking=True)

    def filled(self, device: torch.device) -> torch.Tensor:
        """Every expert, blocks [E, numel] on `device`: the arena itself where it is there already."""
        return self.blocks.to(device)

    def release(self) -> None:
        """Gives the parameters their own contiguous memory again. Doing it twice does nothing."""
        if self._experts is not None:
            for name, view in self.layout.views(self.blocks).items():
                getattr(self._experts, name).data = view.to(self._device, copy=True).contiguous()
            self._experts = None


def new_blocks(layout: Layout, count: int, *, pin: bool = False):
    """Host memory for `count` experts, uninitialised.

    Returns:
        blocks [E, numel], each parameter as a view [E, *shape] by name, and whether the memory is page-locked. Each
        view has a storage of its own on the same memory: `save_pretrained` takes views of one storage for tied weights.
    """
    memory, pinned = host_memory(count * layout.nbytes, pin=pin)
    size = layout.dtype.itemsize
    flat = {offset: torch.frombuffer(memory, dtype=torch.uint8, offset=offset * size) for _, _, offset in layout.parts}
    blocks = torch.frombuffer(memory, dtype=torch.uint8).view(layout.dtype).view(count, layout.numel)
    views = {
        name: flat[offset].view(layout.dtype).as_strided(view.shape, view.stride())
        for (name, _, offset), view in zip(layout.parts, layout.views(blocks).values(), strict=True)
    }
    return blocks, views, pinned


class Slots:
    """Device memory for `count` experts of one layer: blocks [S, numel] and their parameters as views.

    With a slot for every expert the slots are filled at once; on a CPU they are then the arena itself, at no cost.
    """

    def __init__(self, arena: Arena, count: int, device: torch.device):
        if count == arena.count:
            self.blocks = arena.filled(device)
        else:
            self.blocks = torch.empty(count, arena.layout.numel, dtype=arena.layout.dtype, device=device)
        self.views = arena.layout.views(self.blocks)


@contextmanager
def room_for(slots: np.ndarray, nbytes: list[int], device: torch.device) -> Iterator[None]:
    """What is allocated inside are slots of a device.

    Args:
        slots: of each layer and form [L, F].   nbytes: of a slot of each form [F].

    Raises:
        MobileError: the device has no room left for them.
    """
    try:
        yield
    except RuntimeError as problem:
        if not isinstance(problem, torch.OutOfMemoryError) and not any(words in str(problem) for words in FULL):
            raise
        raise no_room(slots, nbytes, device) from problem


def no_room(slots: np.ndarray, nbytes: list[int], device: torch.device) -> MobileError:
    """What to say where a device cannot hold them; the arguments are those of `room_for`."""
    each, gb = slots.sum(axis=1), (slots @ nbytes).sum() / 1e9
    most = each.max() if (each == each[0]).all() else f"up to {each.max()}"
    return MobileError(
        f"{device} has no room for {most} slots in each of {len(slots)} layers ({gb:.3g} GB): give fewer slots, a "
        "smaller budget_gb, or free memory there first."
    )


__all__ = ["Arena", "Layout", "Slots", "new_blocks", "no_room", "room_for"]
