"""What a machine can do, and what a model weighs.

Knows nothing about caches, policies or models. Presets are published figures, with the link at the share of its
nominal rate that copies from page-locked memory usually reach (about 80 %); `Hardware.measure()` reads your own.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from dataclasses import dataclass

from .files import data_path
from .vocabulary import MobileError, number, whole

SQUARE = 6144  # rows and columns of the matrices that a card's rate is read off


@dataclass(frozen=True)
class Hardware:
    """One device and its link to host memory.

    Attributes:
        link_gb_per_s: host to device, GB/s (1e9 bytes).   link_latency_s: fixed seconds of each copy.
        memory_gb_per_s: device memory, GB/s.              tflops: matrix products in half precision, 1e12/s.
        launch_s: seconds to launch one kernel.            device_gb: device memory, GB.
        host_gb_per_s: host memory, GB/s, as the CPU reads weights.   host_tflops: the CPU's matrix products, 1e12/s.
            By default dual-channel DDR4-3200 at 80 % of its nominal 51.2 GB/s, and eight cores [inference].
        measured: False for a preset of published figures, True when `measure` read it on this machine.
    """

    name: str
    link_gb_per_s: float
    memory_gb_per_s: float
    tflops: float
    device_gb: float
    link_latency_s: float = 10e-6
    launch_s: float = 5e-6
    measured: bool = False
    host_gb_per_s: float = 40.0
    host_tflops: float = 1.0

    def __post_init__(self):
        for field in ("link_gb_per_s", "memory_gb_per_s", "tflops", "device_gb", "host_gb_per_s", "host_tflops"):
            number(f"Hardware.{field}", getattr(self, field), low=1e-6)
        for field in ("link_latency_s", "launch_s"):
            number(f"Hardware.{field}", getattr(self, field), low=0)

    @staticmethod
    def preset(name: str) -> Hardware:
        """A card by name, for example `Hardware.preset("rtx4080-pcie4")`.

        Raises:
            MobileError: no such preset; the sentence lists them.
        """
        if name not in PRESETS:
            raise MobileError(f"there is no hardware preset {name!r}; there are {', '.join(PRESETS)}.")
        return PRESETS[name]

    @staticmethod
    def measure(device: str | None = None) -> Hardware:
        """Reads link, memory and compute rates of this machine's CUDA device and of its host (about two seconds).

        Raises:
            MobileError: this machine has no CUDA device.
        """
        import torch

        if not torch.cuda.is_available():
            raise MobileError(
                "this machine has no CUDA device to measure; simulate one, such as Hardware.preset('rtx4080-pcie4')."
            )
        return _measure(torch.device(device or "cuda"))


def _card(name: str, link: float, memory: float, tflops: float, gb: float, host: tuple[float, float]) -> Hardware:
    rates = {"host_gb_per_s": host[0], "host_tflops": host[1]}
    return Hardware(name, link_gb_per_s=link, memory_gb_per_s=memory, tflops=tflops, device_gb=gb, **rates)


# Link: PCIe 3 x16 12, PCIe 4 x8 12.5, PCIe 4 x16 25, PCIe 5 x16 50 GB/s. Memory, dense half-precision rates: vendors.
# Hosts that such cards usually sit in [inference]: 80 % of what the memory's standard gives its channels, and single
# precision of the cores, 32 operations a cycle with AVX2, 64 with AVX-512.
PRESETS = {
    card.name: card
    for card in (
        _card("rtx4080-pcie4", 25.0, 717, 97, 16, (40, 1.0)),  # the paper's card; two channels of DDR4-3200, 8 cores
        _card("rtx4090-pcie4", 25.0, 1008, 165, 24, (70, 1.0)),  # two channels of DDR5-5600, 8 cores
        _card("rtx3060-pcie3", 12.0, 360, 51, 12, (34, 0.7)),  # two channels of DDR4-2666, 6 cores
        _card("t4-colab", 12.0, 320, 65, 15, (15, 0.14)),  # one core of a shared server: what one core can read
        _card("laptop4060-pcie4x8", 12.5, 256, 60, 8, (60, 0.8)),  # two channels of DDR5-4800, 8 slower cores
        _card("h100-pcie5", 50.0, 3350, 989, 80, (245, 5.0)),  # eight channels of DDR5-4800, 32 cores
    )
}


def _measure(where) -> Hardware:
    """Reads a CUDA device (torch.device); every rate is the best of five after a warm-up."""
    import torch

    try:
        with torch.cuda.device(where):  # events are recorded on the streams of the current device
            return _measure_current(where)
    except torch.OutOfMemoryError as problem:
        raise MobileError(f"{where} lacks the 0.5 GB that measuring it takes: free memory there.") from problem


def _measure_current(where) -> Hardware:
    import torch

    host = torch.empty(64 << 20, dtype=torch.uint8)
    with contextlib.suppress(RuntimeError):  # the system allows no more: then arenas are pageable too
        host = host.pin_memory()
    card = torch.empty(256 << 20, dtype=torch.uint8, device=where)  # more than a card caches
    part, small_host, small_card = card[: host.numel()], host[:4096], card[:4096]
    a = torch.randn(SQUARE, SQUARE, dtype=torch.float16, device=where)
    link = _seconds(lambda: part.copy_(host, non_blocking=True))
    latency = _seconds(lambda: small_card.copy_(small_host, non_blocking=True), repeat=100)
    memory = _seconds(lambda: card.add_(1))
    compute = _seconds(lambda: a @ a)
    launch = _seconds(lambda: small_card.add_(1), repeat=100)
    properties = torch.cuda.get_device_properties(where)
    return Hardware(
        name=properties.name,
        link_gb_per_s=host.numel() / link / 1e9,
        memory_gb_per_s=2 * card.numel() / memory / 1e9,
        tflops=2 * SQUARE**3 / compute / 1e12,
        device_gb=properties.total_memory / 1e9,
        link_latency_s=latency,
        launch_s=launch,
        measured=True,
        **measure_host(),
    )


def measure_host() -> dict[str, float]:
    """What this machine's CPU reads and multiplies, by name of the field; float32, as many threads as torch uses."""
    import torch

    def seconds(work) -> float:
        times = [time.perf_counter()]
        for _ in range(6):  # the first one warms up
            work()
            times.append(time.perf_counter())
        return min(after - before for before, after in itertools.pairwise(times[1:]))

    experts, one = torch.ones(4096, 8192), torch.ones(8192)  # 134 MB: more than caches hold
    square = torch.ones(1024, 1024)
    read, multiply = seconds(lambda: torch.mv(experts, one)), seconds(lambda: square @ square)
    return {"host_gb_per_s": experts.nbytes / read / 1e9, "host_tflops": 2 * 1024**3 / multiply / 1e12}


def _seconds(work, repeat: int = 5) -> float:
    import torch

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


@dataclass(frozen=True)
class Geometry:
    """What a model weighs: parameters by part, as one token reads them.

    Attributes:
        moe_layers, dense_layers: decoder layers with and without routed experts.
        num_experts, top_k: E and K of each MoE layer.
        expert_params: weights of one routed expert.
        layer_params: attention, router and shared experts of a MoE layer.
        dense_layer_params: a whole dense layer.        head_params: final norm and output matrix.
        bytes_per_weight: 2 for half precision.
    """

    name: str
    moe_layers: int
    num_experts: int
    top_k: int
    expert_params: int
    layer_params: int
    head_params: int
    dense_layers: int = 0
    dense_layer_params: int = 0
    bytes_per_weight: float = 2

    def __post_init__(self):
        whole("Geometry.moe_layers", self.moe_layers)
        whole("Geometry.expert_params", self.expert_params)

    @staticmethod
    def of(name: str) -> Geometry:
        """The geometry of a published model, for example `Geometry.of("olmoe-1b-7b")`, from data/geometries.json.

        Raises:
            MobileError: not one of the shipped ones; the sentence lists them.
        """
        shipped = json.loads(data_path("geometries.json").read_text(encoding="utf-8"))["models"]
        if name not in shipped:
            raise MobileError(f"there is no geometry {name!r}; there are {', '.join(shipped)}.")
        return _from_config(name, shipped[name])

    @property
    def expert_bytes(self) -> int:
        return round(self.expert_params * self.bytes_per_weight)

    @property
    def experts_gb(self) -> float:
        """All routed experts, GB."""
        return self.moe_layers * self.num_experts * self.expert_bytes / 1e9

    @property
    def other_gb(self) -> float:
        """All that always stays on the device, GB (without the input embedding and the KV cache)."""
        weights = self.moe_layers * self.layer_params + self.dense_layers * self.dense_layer_params + self.head_params
        return weights * self.bytes_per_weight / 1e9


def _from_config(name: str, c: dict) -> Geometry:
    """Counts weights from the fields of a published config (data/geometries.json)."""
    hidden, heads, kv = c["hidden"], c["heads"], c["kv_heads"]
    if "kv_lora_rank" in c:  # multi-head latent attention (DeepSeek-V2)
        rank, nope, rope, value = c["kv_lora_rank"], c["qk_nope"], c["qk_rope"], c["v_head"]
        attention = hidden * heads * (nope + rope) + hidden * (rank + rope) + rank * heads * (nope + value)
        attention += heads * value * hidden
    else:
        attention = 2 * hidden * heads * c["head_dim"] + 2 * hidden * kv * c["head_dim"]
    shared = 3 * hidden * c.get("shared_inner", 0)
    dense = c.get("dense_layers", 0)
    return Geometry(
        name=name,
        moe_layers=c["layers"] - dense,
        num_experts=c["experts"],
        top_k=c["top_k"],
        expert_params=3 * hidden * c["inner"],
        layer_params=attention + shared + hidden * c["experts"],
        head_params=hidden * c["vocab"],
        dense_layers=dense,
        dense_layer_params=attention + 3 * hidden * c.get("dense_inner", 0),
    )


__all__ = ["PRESETS", "Geometry", "Hardware"]
