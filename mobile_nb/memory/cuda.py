"""The link on a CUDA card: one copy stream, an event a slot. Knows nothing about policies.

A fetch waits, on the copy stream, for the slot's last computation, and records an event when it is over; a computation
waits for that event on the compute stream. Nothing here waits on the host while a token is computed. `settle` does, and
before `close` returns nobody reads or writes slots any more: their memory can be given away.

Where a stream has nothing to do, an interval begins when the host sets out to hand its work over: some microseconds of
launching belong to it.
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

    def __init__(self, layers: int, slots: int, mover: Mover, device: torch.device):
        super().__init__(layers, slots, mover)
        self.copy_stream = torch.cuda.Stream(device)
        self._compute_stream = self._born_in = torch.cuda.current_stream(device)  # slots are allocated on the latter
        self._released = [[None] * slots for _ in range(layers)]
        self._zero: tuple[torch.cuda.Event, float] | None = None
        self._begun: torch.cuda.Event | None = None

    def _start(self, layer: int, expert: int, slot: int) -> _Events:
        zero, begin, end = self._origin(), _event(), _event()
        now = torch.cuda.current_stream(self.copy_stream.device)
        with torch.cuda.stream(self.copy_stream):
            if self._released[layer][slot] is not None:
                self.copy_stream.wait_event(self._released[layer][slot])
            else:  # never computed from: whatever the memory was used for before must be over
                self.copy_stream.wait_stream(now)
                self.copy_stream.wait_stream(self._born_in)
            begin.record(self.copy_stream)
            self.mover(layer, expert, slot)
            end.record(self.copy_stream)
        return _Events(begin, end, *zero)

    def _origin(self) -> tuple[torch.cuda.Event, float]:
        """An event and its moment on the clock, made anew for each text: the card counts milliseconds in 32 bits, which
        are microseconds for some seconds and a quarter of a millisecond after an hour."""
        if self._zero is None:
            event = _event()
            event.record(self.copy_stream)
            event.synchronize()  # nothing is under way: at once
            self._zero = event, self.clock.read()
        return self._zero

    def _wait(self, ticket: _Events) -> None:
        self._compute_stream.wait_event(ticket.end)

    def begin_layer(self) -> None:
        self._compute_stream = torch.cuda.current_stream(self.copy_stream.device)

    def computing(self, layer: int, wave) -> None:
        self._begun = _event()
        self._begun.record(self._compute_stream)

    def computed(self, layer: int, wave) -> None:
        event = _event()
        event.record(self._compute_stream)
        for _, slot in wave:
            self._released[layer][slot] = event
        self._note(layer, wave, _Events(self._begun, event, *self._origin()))

    def settle(self) -> None:
        self.copy_stream.synchronize()
        self._compute_stream.synchronize()
        super().settle()
        self._zero = None

    def vacate(self) -> None:
        super().vacate()
        for released in self._released:
            released[:] = [None] * len(released)


@dataclass(slots=True)
class _Events:
    """What lies between two events; `zero` is an event at `zero_s` seconds of the clock."""

    begin: torch.cuda.Event
    end: torch.cuda.Event
    zero: torch.cuda.Event
    zero_s: float

    def over(self) -> bool:
        return self.end.query()

    ended = over  # a card's copy does not fail alone

    def times(self) -> tuple[float, float]:
        self.end.synchronize()
        begin = self.zero_s + self.zero.elapsed_time(self.begin) / 1e3
        return begin, begin + self.begin.elapsed_time(self.end) / 1e3


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


__all__ = ["CudaLink"]
