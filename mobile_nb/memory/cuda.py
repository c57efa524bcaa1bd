"""The link on a CUDA card: one copy stream, an event a slot. Knows nothing about policies.

A fetch waits, on the copy stream, for the slot's last computation, and records an event when it is over; a computation
waits for that event on the compute stream. Nothing here waits on the host.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .link import Mover
from .wall import WallLink


class CudaLink(WallLink):
    """See `WallLink`.

    Args:
        mover: enqueues one copy on the current stream.
        device: the card.
    """

    def __init__(self, layers: int, slots: int, mover: Mover, device: torch.device, *, window: int = 2):
        super().__init__(layers, slots, mover, window=window)
        self.copy_stream = torch.cuda.Stream(device)
        self._compute_stream = torch.cuda.current_stream(device)
        self._released = [[None] * slots for _ in range(layers)]
        self._zero = torch.cuda.Event(enable_timing=True)
        self._zero.record(self.copy_stream)
        self._zero.synchronize()
        self._zero_s = self.clock.read()

    def _start(self, layer: int, expert: int, slot: int) -> _Events:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        with torch.cuda.stream(self.copy_stream):
            if self._released[layer][slot] is not None:
                self.copy_stream.wait_event(self._released[layer][slot])
            else:  # never computed from: whatever the memory was used for before must be over
                self.copy_stream.wait_stream(self._compute_stream)
            begin.record(self.copy_stream)
            self.mover(layer, expert, slot)
            end.record(self.copy_stream)
        return _Events(begin, end, self._zero, self._zero_s)

    def _wait(self, ticket: _Events) -> None:
        self._compute_stream.wait_event(ticket.end)

    def begin_layer(self) -> None:
        self._compute_stream = torch.cuda.current_stream(self.copy_stream.device)

    def computed(self, layer: int, wave) -> None:
        event = torch.cuda.Event()
        event.record(self._compute_stream)
        for _, slot in wave:
            self._released[layer][slot] = event

    def settle(self) -> None:
        if self._open:
            self.copy_stream.synchronize()
        super().settle()


@dataclass(slots=True)
class _Events:
    """A copy between two events; `zero` is an event at `zero_s` seconds of the clock."""

    begin: torch.cuda.Event
    end: torch.cuda.Event
    zero: torch.cuda.Event
    zero_s: float

    def over(self) -> bool:
        return self.end.query()

    def times(self) -> tuple[float, float]:
        return tuple(self.zero_s + self.zero.elapsed_time(event) / 1e3 for event in (self.begin, self.end))


__all__ = ["CudaLink"]
