"""What the link of a CUDA device does, apart from any model: the yardstick of every row of the same run."""

from __future__ import annotations

import time

import torch

from ..memory.host import host_memory

TOTAL = 512 << 20  # bytes that one reading copies
REPEAT = 5


def link_rates(device: torch.device, block: int) -> dict:
    """Best of five readings each.

    Args:
        block: bytes of one expert: copies are of this size.

    Returns:
        pinned_gb_per_s (None where the system locks no memory) and pageable_gb_per_s of copies of that size, and
        ids_idle_us, ids_busy_us: how long the host waits for eight numbers from the card while nothing is copied, and
        while eight experts are on their way. Where the second is as long as several copies, routing queues behind them.
    """
    count = max(2, min(256, TOTAL // block))
    slots = [torch.empty(block, dtype=torch.uint8, device=device) for _ in range(2)]
    found: dict = {"expert_mb": block / 1e6}
    for kind in ("pinned", "pageable"):
        memory, locked = host_memory(count * block, pin=kind == "pinned")
        source = torch.frombuffer(memory, dtype=torch.uint8).view(count, block)
        source.fill_(1)
        if locked != (kind == "pinned"):
            found["pinned_gb_per_s"] = None
            continue
        found[f"{kind}_gb_per_s"] = _rate(source, slots, device)
        if locked:
            found |= _waits(source, slots, device)
    return found


def _rate(source: torch.Tensor, slots: list[torch.Tensor], device: torch.device) -> float:
    stream = torch.cuda.Stream(device)
    best = float("inf")
    for _ in range(REPEAT + 1):  # the first one warms up
        torch.cuda.synchronize(device)
        begin = time.perf_counter()
        with torch.cuda.stream(stream):
            for at, block in enumerate(source):
                slots[at % 2].copy_(block, non_blocking=True)
        stream.synchronize()
        best = min(best, time.perf_counter() - begin)
    return source.nbytes / best / 1e9


def _waits(source: torch.Tensor, slots: list[torch.Tensor], device: torch.device) -> dict:
    stream, ids = torch.cuda.Stream(device), torch.arange(8, device=device)
    found = {}
    for name, copies in (("ids_idle_us", 0), ("ids_busy_us", 8)):
        best = float("inf")
        for _ in range(REPEAT + 1):
            torch.cuda.synchronize(device)
            with torch.cuda.stream(stream):
                for at in range(copies):
                    slots[at % 2].copy_(source[at % len(source)], non_blocking=True)
            begin = time.perf_counter()
            (ids + 1).tolist()
            best = min(best, time.perf_counter() - begin)
        found[name] = 1e6 * best
    torch.cuda.synchronize(device)
    return found


__all__ = ["link_rates"]
