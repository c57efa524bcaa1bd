"""How a block of weights is written down in few bits: one contiguous block an expert, so that a fetch stays one copy.

Group-wise, symmetric, without calibration: neighbouring weights share a scale, the largest of them over the largest
code. An encoded block holds the codes of all matrices, then their scales, then the vectors (biases) as they are. We
write it here because libraries for quantised models keep each matrix as a tensor object of its own, with codes and
scales apart; in an arena they would be several copies an expert. Knows nothing about who decides what is fetched.

Legend: N experts · P weights of one matrix, padded to whole groups · g weights of a group · G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..policies.channels import Channels
from ..policies.codec import SCALE_BYTES, Codec, Form
from .host import host_memory
from .store import ALIGN, Arena, Layout

SCALE = torch.bfloat16  # as many powers of two as float32 has: no group of small weights is lost
MIDDLE = {8: 128.0, 4: 8.0, 2: 1.5}  # the code of zero; with two bits there is none
LARGEST = {8: 127.0, 4: 7.0, 2: 2.0}  # by which the largest weight of a group is divided, to give its scale


@dataclass(frozen=True)
class _Part:
    """Where one parameter lies: in the full block (elements), and in the encoded one (bytes)."""

    offset: int
    weights: int
    at: int
    nbytes: int
    scales_at: int = 0
    groups: int = 0  # 0: as it is


class Encoding:
    """A form of one kind of expert.

    Args:
        layout: of the full block.   form: with bits and group.

    Attributes:
        nbytes: of an encoded block, padded to 128.
    """

    def __init__(self, layout: Layout, form: Form):
        self.layout, self.bits, self.group = layout, form.bits, form.group
        self._parts: list[_Part] = []
        sizes = [(offset, torch.Size(shape).numel(), len(shape) > 1) for _, shape, offset in layout.parts]
        groups = [-(-weights // self.group) if matrix else 0 for _, weights, matrix in sizes]
        at, scales_at = 0, _up(sum(groups) * self.group * self.bits // 8, 16)
        end = _up(scales_at + sum(groups) * SCALE_BYTES, 16)
        for (offset, weights, _), count in zip(sizes, groups, strict=True):
            if count:
                nbytes = count * self.group * self.bits // 8
                self._parts.append(_Part(offset, weights, at, nbytes, scales_at, count))
                at, scales_at = at + nbytes, scales_at + count * SCALE_BYTES
            else:
                nbytes = weights * layout.dtype.itemsize
                self._parts.append(_Part(offset, weights, end, nbytes))
                end = _up(end + nbytes, 16)
        self.nbytes = _up(end, ALIGN)

    @property
    def bytes_per_weight(self) -> float:
        """What really lies in a block, padding included, over its weights."""
        return self.nbytes / self.layout.weights

    def encode(self, blocks: torch.Tensor) -> torch.Tensor:
        """Full blocks [N, numel] -> uint8 [N, nbytes]."""
        out = torch.zeros(len(blocks), self.nbytes, dtype=torch.uint8, device=blocks.device)
        for part in self._parts:
            weights = blocks[:, part.offset : part.offset + part.weights]
            if not part.groups:
                out[:, part.at : part.at + part.nbytes] = weights.contiguous().view(torch.uint8)
                continue
            short = part.groups * self.group - part.weights
            weights = torch.nn.functional.pad(weights.float(), (0, short)).view(len(blocks), part.groups, self.group)
            scale = (weights.abs().amax(dim=-1) / LARGEST[self.bits]).to(SCALE)  # [N, G]
            codes = weights / scale.float().clamp_min(1e-38)[..., None]
            codes = (codes + MIDDLE[self.bits]).round_().clamp_(int(self.bits > 2), 2**self.bits - 1).to(torch.uint8)
            out[:, part.at : part.at + part.nbytes] = _packed(codes.flatten(1), self.bits)
            scales = scale.contiguous().view(torch.uint8)
            out[:, part.scales_at : part.scales_at + part.groups * SCALE_BYTES] = scales
        return out

    def decode(self, encoded: torch.Tensor, out: torch.Tensor) -> None:
        """uint8 [N, nbytes] -> `out` [N, numel], in a few operations for all experts together."""
        for part in self._parts:
            there = out[:, part.offset : part.offset + part.weights]
            codes = encoded[:, part.at : part.at + part.nbytes]
            if not part.groups:
                there.copy_(codes.contiguous().view(out.dtype))
                continue
            scale = encoded[:, part.scales_at : part.scales_at + part.groups * SCALE_BYTES].contiguous().view(SCALE)
            weights = _unpacked(codes, self.bits, out.dtype).sub_(MIDDLE[self.bits])
            weights = weights.view(len(encoded), part.groups, self.group).mul_(scale.to(out.dtype)[..., None])
            there.copy_(weights.flatten(1)[:, : part.weights])


def first_piece(layout: Layout) -> Layout:
    """Of `up` alone, [I, H], where an expert comes in pieces."""
    ((_, shape, _),) = (part for part in layout.parts if part[0] == "down_proj")
    numel = shape[0] * shape[1]
    return Layout((("up", (shape[1], shape[0]), 0),), numel, numel, layout.dtype)


def pieces(codec: Channels, layout: Layout) -> tuple[float, float]:
    """Bytes over the weights of a whole expert, as they really are, of `up` and of one channel of the others."""
    (_, (channels, _), _) = first_piece(layout).parts[0]
    return codec.pieces(layout.dtype.itemsize, channels, _really(codec, layout))


def _really(codec: Channels, layout: Layout) -> float | None:
    return None if codec.up.bits is None else Encoding(first_piece(layout), codec.up).bytes_per_weight


def coded(codec: Codec, layout: Layout) -> tuple[float | None, ...]:
    """Bytes a weight of each form of a codec as slots really are, None for the full one; but for experts that come in
    pieces also what `Costs` asks for."""
    if isinstance(codec, Channels):
        return (codec.held(layout.dtype.itemsize, _really(codec, layout)),)
    return tuple(None if form.bits is None else Encoding(layout, form).bytes_per_weight for form in codec.forms)


def beside(codec: Codec, layout: Layout, counts: Sequence[int]) -> float:
    """Bytes that the host holds of a layer beside its full experts, of which so many come in each form; of those that
    come in pieces, `up` in its form and decoded."""
    each = coded(codec, layout)
    if isinstance(codec, Channels):
        each = (pieces(codec, layout)[0] + layout.dtype.itemsize / 3,)
    return layout.weights * sum(n * (size or 0.0) for n, size in zip(counts, each, strict=True))


class EncodedArena:
    """The experts of one layer in one form, in host memory beside the full ones: the counterpart of `Arena`.

    The full weights stay where they are, because the model gets them back.

    Args:
        arena: the full ones.   encoding: the form.   members: ids of those that are kept; `copy_to` takes only these.
        pin: ask for page-locked memory.   device: where each expert is encoded, one at a time.
    """

    def __init__(self, arena: Arena, encoding: Encoding, members: list[int], *, pin: bool, device: torch.device):
        memory, self.pinned = host_memory(len(members) * encoding.nbytes, pin=pin)
        self.blocks = torch.frombuffer(memory, dtype=torch.uint8).view(len(members), encoding.nbytes)
        self._place = {expert: n for n, expert in enumerate(members)}
        for expert, n in self._place.items():
            self.blocks[n] = encoding.encode(arena.blocks[expert][None].to(device))[0].to("cpu")

    def copy_to(self, expert: int, block: torch.Tensor) -> None:
        """Fills a slot [nbytes]; from page-locked memory to a card it returns before the copy is over."""
        block.copy_(self.blocks[self._place[expert]], non_blocking=True)


class Scratch:
    """Device memory for `count` decoded experts, one set for all layers of a layout: blocks and their views."""

    def __init__(self, layout: Layout, count: int, device: torch.device):
        self.blocks = torch.zeros(count, layout.numel, dtype=layout.dtype, device=device)
        self.views = layout.views(self.blocks)


def _up(size: int, step: int) -> int:
    return -(-size // step) * step


def _packed(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes [N, P] -> bytes [N, P * bits / 8]: the first part of the codes in the lowest bits, the next above them."""
    out, *others = codes.chunk(8 // bits, dim=1)
    for n, more in enumerate(others, 1):
        out = out | (more << (bits * n))
    return out


def _unpacked(packed: torch.Tensor, bits: int, dtype: torch.dtype) -> torch.Tensor:
    """The inverse of `_packed`, as numbers of `dtype`."""
    if bits == 8:
        return packed.to(dtype)
    return torch.cat([(packed >> (bits * n)) & (2**bits - 1) for n in range(8 // bits)], dim=1).to(dtype)


__all__ = ["EncodedArena", "Encoding", "Scratch", "beside", "coded", "first_piece", "pieces"]
