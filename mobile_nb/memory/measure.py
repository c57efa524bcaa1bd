"""Reads the rates of a CUDA card: link, memory, compute, launches. Knows nothing about models."""

from __future__ import annotations

import torch

from ..hardware import Hardware
from ..vocabulary import MobileError


def measure(device: str | None = None) -> Hardware:
    """The card at hand as a `Hardware`; every rate is the best of five after a warm-up.

    Raises:
        MobileError: no CUDA device.
    """
    if not torch.cuda.is_available():
        raise MobileError(
            "this machine has no CUDA device to measure; simulate one with Hardware.preset('rtx4080-pcie4'), for example."
        )
    where = torch.device(device or "cuda")
    host = torch.empty(256 << 20, dtype=torch.uint8).pin_memory()
    card = torch.empty_like(host, device=where)
    small_host, small_card = host[:4096], card[:4096]
    a = torch.randn(8192, 8192, dtype=torch.float16, device=where)
    link = _seconds(lambda: card.copy_(host, non_blocking=True))
    latency = _seconds(lambda: small_card.copy_(small_host, non_blocking=True), repeat=100)
    memory = _seconds(lambda: card.add_(1))
    compute = _seconds(lambda: a @ a)
    launch = _seconds(lambda: small_card.add_(1), repeat=100)
    properties = torch.cuda.get_device_properties(where)
    return Hardware(
        name=properties.name,
        link_gb_per_s=host.numel() / link / 1e9,
        memory_gb_per_s=2 * card.numel() / memory / 1e9,
        tflops=2 * 8192**3 / compute / 1e12,
        device_gb=properties.total_memory / 1e9,
        link_latency_s=latency,
        launch_s=launch,
        measured=True,
    )


def _seconds(work, repeat: int = 5) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    best = float("inf")
    for _ in range(6):  # the first one warms up
        begin.record()
        for _ in range(repeat):
            work()
        end.record()
        end.synchronize()
        best = min(best, begin.elapsed_time(end) / 1e3 / repeat)
    return best


__all__ = ["measure"]
