"""`offload`: a context manager that turns a transformers model into an `Engine`, and gives it back as it was.

with offload(model, systems.mobile(slots=16), tokenizer=tokenizer) as engine:
    for step in engine.stream("Tom has 3 apples.", max_new_tokens=40):
        print(step.text, end="")
    engine.report()
"""

from __future__ import annotations

import contextlib

import torch

from ..clock import VirtualClock
from ..costs import Costs
from ..hardware import Geometry, Hardware
from ..memory.disk import HostCache
from ..memory.link import SimulatedLink
from ..memory.thread import ThreadLink
from ..model.adapters import find_layers, geometry_of
from ..trace import Trace
from ..vocabulary import MobileError, number
from .config import MobileConfig, choose_slots, conditions, found
from .engine import Engine
from .serve import Server

_FILES = {"time": "measured, experts read from their files", "hardware": "this machine", "hardware_rates": None}
DEFAULT_HARDWARE = "rtx4080-pcie4"  # simulated where there is no CUDA device: the paper's card


@contextlib.contextmanager
def offload(
    model,
    config: MobileConfig | None = None,
    *,
    tokenizer=None,
    hardware: Hardware | str | None = None,
    geometry: Geometry | str | None = None,
    host_gb: float | None = None,
):
    """Moves a model's experts to host memory for the length of a `with` block, and yields an `Engine`.

    Args:
        model: any transformers causal language model with fused experts; it is changed in place and given back as it
            was, also after an exception or an interrupt.
        config: see `MobileConfig` and `systems`; None for on-demand LRU.
        tokenizer: gives steps their text, and lets prompts be text.
        hardware: a `Hardware` or the name of a preset: time is simulated on it. None: measured where the model is on a
            CUDA device, or where its experts were left on disk; else simulated on an RTX 4080, the paper's card.
        geometry: a `Geometry` or its name: a small model is timed as if it weighed what that one weighs. None: its own.

        host_gb: host memory for experts that were left on disk (`load(experts="disk")`) and read lately; None for none.

    Raises:
        MobileError: the model or the budget cannot work; the model is as it was.
    """
    config = MobileConfig() if config is None else config
    if not isinstance(config, MobileConfig):
        raise TypeError(f"config must be a MobileConfig, such as systems.mobile() returns, got {config!r}.")
    layers = find_layers(model)
    device = model.get_input_embeddings().weight.device
    files = any(getattr(layer.experts, "on_disk", None) is not None for layer in layers)
    if files and device.type == "cuda":
        raise MobileError("experts are read from disk into host memory only: load the model with device='cpu'.")
    if files and config.slots is None and config.budget_gb is None:
        raise MobileError("the experts are on disk: say with slots= or budget_gb= how many of them memory may hold.")
    simulate = hardware is not None or not (files or device.type == "cuda")
    hardware = DEFAULT_HARDWARE if hardware is None and (simulate or files) else hardware
    hardware = Hardware.measure(str(device)) if hardware is None else found(Hardware, hardware, Hardware.preset)
    own = geometry_of(model, layers)
    geometry = own if geometry is None else found(Geometry, geometry, Geometry.of)
    costs = Costs(hardware, geometry, len(layers))
    if device.type == "cuda" and not simulate:
        free_gb = 0.9 * torch.cuda.mem_get_info(device)[0] / 1e9
    else:
        free_gb = 0.9 * hardware.device_gb - geometry.other_gb
    slots, chosen = choose_slots(config, geometry, layers[0].num_experts, free_gb)

    def make_link(mover):
        if simulate:
            return SimulatedLink(VirtualClock(), len(layers), slots, costs.fetch_s, mover)
        if files:
            return ThreadLink(len(layers), slots, mover)
        from ..memory.cuda import CudaLink

        return CudaLink(len(layers), slots, mover, device)

    server = Server(layers, config, slots, costs, device, make_link)
    server.host_cache = None if host_gb is None else HostCache(number("host_gb", host_gb, low=0))
    engine = None
    training = [(module, module.training) for module in model.modules()]
    try:
        server.install()
        model.eval()
        about = _conditions(model, config, costs, slots, chosen, server) | (_FILES if files and not simulate else {})
        engine = Engine(model, server, tokenizer=tokenizer, trace=Trace(about), slots=slots)
        yield engine
    finally:
        if engine is not None:
            engine._open = False
        server.remove()
        for module, flag in training:
            module.training = flag


def _conditions(model, config, costs: Costs, slots: int, chosen: str, server: Server) -> dict:
    """What every number of the trace depends on."""
    layer = server.layers[0]
    about = conditions(config, costs, slots, chosen) | {
        "model": type(model).__name__,
        "layers": len(server.layers),
        "experts": layer.num_experts,
        "top_k": layer.top_k,
        "page_locked": all(arena.pinned for arena in server.arenas),
    }
    return about | ({"time": "measured", "measured": True} if server.link.clock.measured else {})


__all__ = ["offload"]
