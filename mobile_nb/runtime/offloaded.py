"""A model whose experts lie in host memory, under one configuration at a time. Knows nothing about tokens or text."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from ..clock import VirtualClock
from ..costs import Costs
from ..hardware import Geometry, Hardware
from ..memory.codecs import coded
from ..memory.disk import HostCache
from ..memory.host import current
from ..memory.link import SimulatedLink
from ..memory.store import Layout, no_room
from ..memory.thread import ThreadLink
from ..model.adapters import find_layers, geometry_of
from ..model.context import cache_bytes
from ..model.skeleton import skeleton
from ..policies import Channels, Full
from ..trace import Trace
from ..vocabulary import MobileError, number
from .config import MobileConfig, choose_slots, conditions, found
from .forms import Forms
from .needs import refuse, travelling
from .serve import Server

_FILES = {"time": "measured, experts read from their files", "hardware": "this machine", "hardware_rates": None}
DEFAULT_HARDWARE = "rtx4080-pcie4"  # simulated where there is no CUDA device: the paper's card


class Offloaded:
    """One model and the server of its MoE layers; the arguments are those of `offload`.

    Attributes:
        server: the one that serves now, None before the first `serve`.
    """

    def __init__(
        self, model, *, geometry: Geometry | str | None = None, host_gb: float | None = None, static: int | None = None
    ):
        self.model, self.layers, self.server = model, find_layers(model), None
        self.device = model.get_input_embeddings().weight.device
        self.files = any(getattr(layer.experts, "on_disk", None) is not None for layer in self.layers)
        if self.files and self.device.type == "cuda":
            raise MobileError("experts are read from disk into host memory only: load the model with device='cpu'.")
        cards = sorted({str(p.device) for p in model.parameters() if p.device.type == "cuda"})
        if len(cards) > 1:
            raise MobileError(f"the model lies on {' and '.join(cards)}: one device computes, so load it onto one.")
        self._own = geometry_of(model, self.layers)
        self._stands_for = None if geometry is None else found(Geometry, geometry, Geometry.of)
        self.host_cache = None if host_gb is None else HostCache(number("host_gb", host_gb, low=0))
        self._static = static
        self._training = [(module, module.training) for module in model.modules()]

    def serve(self, config: MobileConfig | None, hardware: Hardware | str | None) -> tuple[Server, Trace]:
        """Serves under `config` on `hardware`, and returns the server and the trace that it begins.

        Where another server is at work it hands its arenas on. What cannot be is refused before that; where memory for
        the new slots runs out after it, the one before goes on, with empty slots.
        """
        config = MobileConfig() if config is None else config
        if not isinstance(config, MobileConfig):
            raise TypeError(f"config must be a MobileConfig, such as systems.mobile() returns, got {config!r}.")
        server, chosen = self._server(config, hardware)
        before, arenas = self.server, []
        try:
            if before is not None:
                arenas = before.leave()
            self.server = server
            with self._plainly():
                server.install(arenas)
            self.model.eval()
            about = self._conditions(server, *chosen)
        except BaseException:
            if before is not None:
                if arenas:
                    server.leave()
                    self.server = before
                    with self._plainly():
                        before.install(arenas)
                server.link.close()
            raise
        if before is not None:
            before.link.close()
        return server, Trace(about)

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        """What is allocated inside may be written later by any thread, and is locked for the card that is used."""
        with current(self.device), torch.inference_mode(False), torch.no_grad():
            yield

    def restore(self) -> None:
        """Gives the model back as it was."""
        try:
            with self._plainly():
                if self.server is not None:
                    self.server.remove()
        except BaseException:  # Ctrl-C, again: the weights come first
            with self._plainly():
                self.server.remove()
            raise
        finally:
            for module, flag in self._training:
                module.training = flag
            if self.device.type == "cuda":  # slots go back to the card, for other programs too
                torch.cuda.empty_cache()

    def _server(self, config: MobileConfig, hardware: Hardware | str | None) -> tuple[Server, tuple]:
        """A server that is not installed yet, its number of slots, and where that comes from."""
        if self.files and config.slots is None and config.budget_gb is None:
            raise MobileError(
                "the experts are on disk: say with slots= or budget_gb= how many of them memory may hold."
            )
        cuda = self.device.type == "cuda"
        simulate = hardware is not None or not (self.files or cuda)
        refuse(config, self.layers, simulated=simulate and not cuda)
        if hardware is None and not cuda:
            hardware = DEFAULT_HARDWARE
        hardware = reading(str(self.device)) if hardware is None else found(Hardware, hardware, Hardware.preset)
        other = self._stands_for if simulate else None  # what is measured is this model
        geometry = other or self._own
        layers, sizes = len(self.layers), self._coded(config, other)
        moved = travelling(config.codec, self.layers[0], geometry, other is None, sizes)
        costs = Costs(hardware, geometry, layers, moved)
        if cuda and not simulate:
            free_gb = 0.9 * self.room() / 1e9
        else:
            free_gb = 0.9 * hardware.device_gb - geometry.other_gb
        experts = self.layers[0].num_experts
        slots, chosen = choose_slots(config, geometry, experts, free_gb, sizes)
        wanted = Forms(config.codec, layers, experts).sizes(slots)  # [L, F]
        if cuda and not simulate:
            self._check_room(wanted, sizes)
        pools = wanted.max(axis=0)  # [F]
        most = int(pools.sum())

        def make_link(mover):
            if simulate:
                fetch_s = np.repeat([costs.fetch_of(form) for form in range(len(sizes))], pools)[None]
                return SimulatedLink(VirtualClock(), layers, most, fetch_s, mover)
            if self.files:
                return ThreadLink(layers, most, mover)
            from ..memory.cuda import CudaLink

            return CudaLink(layers, most, mover, self.device)

        server = Server(self.layers, config, slots, costs, self.device, make_link)
        server.host_cache = self.host_cache
        return server, (slots, chosen)

    def room(self) -> int:
        """Bytes of the card that slots may take: what is free, what torch keeps for reuse, and what will be freed, less
        the static cache that the first text will make."""
        free = torch.cuda.mem_get_info(self.device)[0]
        free += torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        if self.server is not None:
            return free + self.server.slot_bytes
        own = (p for layer in self.layers for p in layer.experts.parameters(recurse=False))
        if self._static is not None:
            free -= cache_bytes(skeleton(copy.deepcopy(self.model.config), self.model.dtype), self._static)
        return free + sum(p.nbytes for p in own if p.device == self.device)

    def _check_room(self, slots: np.ndarray, sizes: tuple[float | None, ...]) -> None:
        """Refuses slots [L, F] beforehand: some drivers take host memory for what a card cannot hold, and say nothing.

        Raises:
            MobileError: there is no room for them.
        """
        nbytes = [self.layout.nbytes if size is None else round(size * self.layout.weights) for size in sizes]
        if (slots @ nbytes).sum() > self.room():
            raise no_room(slots, nbytes, self.device)

    @functools.cached_property
    def layout(self) -> Layout:
        """Of one expert; read once, as parameters that lay on a card are empty while arenas hold the weights."""
        return Layout.of(self.layers[0].experts, self.layers[0].num_experts)

    def _coded(self, config: MobileConfig, other: Geometry | None) -> tuple[float | None, ...]:
        """Bytes a weight of each form: as blocks really are, or as the form says where another model is timed."""
        if self.files and not isinstance(config.codec, Full):
            raise MobileError(
                f"experts that stay on disk travel as they lie there: codec must be Full(), got {config.codec!r}."
            )
        if other is None:
            return coded(config.codec, self.layout)
        if isinstance(config.codec, Channels):
            return (config.codec.held(other.bytes_per_weight),)
        return tuple(form.bytes_per_weight for form in config.codec.forms)

    def _conditions(self, server: Server, slots: int | tuple[int, ...], chosen: str) -> dict:
        """What every number of the trace depends on."""
        layer, measured = self.layers[0], server.link.clock.measured
        about = conditions(server.config, server.costs, slots, chosen) | {
            "model": type(self.model).__name__,
            "layers": len(self.layers),
            "experts": layer.num_experts,
            "top_k": layer.top_k,
            "page_locked": server.pinned,
        }
        return (
            about
            | ({"time": "measured", "measured": True} if measured else {})
            | (_FILES if self.files and measured else {})
        )


@functools.cache
def reading(device: str) -> Hardware:
    """A card is measured once: that takes seconds, and rows of one table should share their yardstick."""
    return Hardware.measure(device)


__all__ = ["DEFAULT_HARDWARE", "Offloaded", "reading"]
