"""The same link on a CUDA card: one copy stream, an event a slot, the wall clock. Knows nothing about policies.

A fetch waits, on the copy stream, for the slot's last computation, and records an event when it is over; a computation
waits for that event on the compute stream. Copies are handed out a few at a time, so that one asked for on demand
overtakes prefetches that have not been handed out. Nothing here waits on the host.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import torch

from ..clock import WallClock
from ..trace import Copy
from .link import Mover

_UNKNOWN = np.array([np.nan])  # when a copy begins and ends is known after it: see `settle`


class CudaLink:
    """See `SimulatedLink` for the methods; C is 1.

    Args:
        mover: enqueues one copy on the current stream.
        window: prefetches that may be handed to the card and not be over, at a time.

    `ready` holds, in place of seconds, the number of the copy that fills a slot: 0 once it is known to be there.
    """

    asynchronous = True

    def __init__(self, layers: int, slots: int, mover: Mover, device: torch.device, *, window: int = 2):
        self.clock, self.mover, self.window = WallClock(), mover, window
        self.copy_stream = torch.cuda.Stream(device)
        self._compute_stream = torch.cuda.current_stream(device)
        self.ready = np.zeros((1, layers, slots))
        self.copying_s = np.zeros(1)
        self._arrived = [[None] * slots for _ in range(layers)]
        self._released = [[None] * slots for _ in range(layers)]
        self._under_way: deque = deque()
        self._timed: list = []
        self._number = 0
        self._zero = torch.cuda.Event(enable_timing=True)
        self._zero.record(self.copy_stream)
        self._zero.synchronize()
        self._zero_s = self.clock.read()

    def can_start(self, since) -> np.ndarray:
        while self._under_way and self._under_way[0].query():
            self._under_way.popleft()
        return np.array([len(self._under_way) < self.window])

    def fetch(self, rows, layer: int, experts, slots, since):
        slot = int(slots[0])
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        with torch.cuda.stream(self.copy_stream):
            if self._released[layer][slot] is not None:
                self.copy_stream.wait_event(self._released[layer][slot])
            else:  # never computed from: whatever the memory was used for before must be over
                self.copy_stream.wait_stream(self._compute_stream)
            begin.record(self.copy_stream)
            self.mover(layer, int(experts[0]), slot)
            end.record(self.copy_stream)
        self._number += 1
        self.ready[0, layer, slot] = self._number
        self._arrived[layer][slot] = end
        self._under_way.append(end)
        self._last = begin, end
        return _UNKNOWN, _UNKNOWN

    def remember(self, copy: Copy) -> None:
        self._timed.append((copy, *self._last))

    def ready_at(self, layer: int, slots: np.ndarray) -> np.ndarray:
        """0 for slots whose copy is over, the copy's number where it is under way, infinity for slot -1."""
        at = np.full(slots.shape, np.inf)
        for j, slot in enumerate(slots[0]):
            if slot >= 0:
                arrived = self._arrived[layer][slot]
                over = arrived is None or self.ready[0, layer, slot] == 0 or arrived.query()
                if over:
                    self.ready[0, layer, slot] = 0
                at[0, j] = self.ready[0, layer, slot]
        return at

    def over(self, ready: np.ndarray) -> np.ndarray:
        return ready == 0

    def begin_layer(self) -> None:
        self._compute_stream = torch.cuda.current_stream(self.copy_stream.device)

    def compute_landed(self, layer: int, slots, seconds, landed) -> None:
        """Nothing to wait for."""

    def compute(self, rows, layer: int, slots, seconds) -> None:
        arrived = self._arrived[layer][int(slots[0])]
        if arrived is not None and self.ready[0, layer, int(slots[0])]:
            self._compute_stream.wait_event(arrived)

    def computed(self, layer: int, wave) -> None:
        event = torch.cuda.Event()
        event.record(self._compute_stream)
        for _, slot in wave:
            self._released[layer][slot] = event

    def landed(self, layer: int) -> bool:
        return all(event is None or event.query() for event in self._arrived[layer])

    def elapse(self, seconds: float) -> None:
        """Real time passes by itself."""

    def end_layer(self) -> None:
        """The compute stream keeps the order; the host goes on."""

    def settle(self) -> None:
        """Writes real times, in seconds of the clock, into the records of copies; waits for those under way."""
        if self._timed:
            self.copy_stream.synchronize()
        for copy, begin, end in self._timed:
            copy.begin = self._zero_s + self._zero.elapsed_time(begin) / 1e3
            copy.end = self._zero_s + self._zero.elapsed_time(end) / 1e3
            self.copying_s += copy.end - copy.begin
        self._timed.clear()


__all__ = ["CudaLink"]
