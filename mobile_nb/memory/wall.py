"""What links on the wall clock share: copies really happen, one after the other, while something else is computed.

`CudaLink` copies on a stream of the card, `ThreadLink` on a thread of the host. Copies are handed out a few at a time,
so that one asked for on demand overtakes prefetches that have not been handed out. Knows nothing about policies.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from typing import Protocol

import numpy as np

from ..clock import WallClock
from ..trace import Copy
from ..vocabulary import MobileError
from .link import Mover

_UNKNOWN = np.array([np.nan])  # when a copy begins and ends is known after it: see `settle`
GUESSED, KNOWN = 4, 8  # windows: of wishes that may be wrong, and of a pass whose needs are known ahead
MANY = 4096  # records whose times are not known yet, from which on those that are over are completed


class Ticket(Protocol):
    """One copy under way."""

    def over(self) -> bool:
        """Whether it is over, and what it brought is there; does not wait."""
        ...

    def ended(self) -> bool:
        """Whether it is over or has failed; does not wait."""
        ...

    def times(self) -> tuple[float, float]:
        """When it began and ended, seconds of the link's clock; waits for its end."""
        ...


class WallLink(ABC):
    """See `SimulatedLink` for the methods; C is 1, and a subclass starts copies and waits for them.

    Args:
        layers, slots: L and S.
        mover: carries out one copy.

    Attributes:
        window: prefetches that may be handed out and not be over, at a time. They must last until the host is back: it
            waits for each layer's routing, and copies of the next layers are all that the link has meanwhile.

    `ready` holds, in place of seconds, the number of the copy that fills a slot: 0 once it is known to be there.
    """

    asynchronous = True

    def __init__(self, layers: int, slots: int, mover: Mover):
        self.clock, self.mover, self.window = WallClock(), mover, GUESSED
        self.ready = np.zeros((1, layers, slots))
        self.copying_s = np.zeros(1)
        self._arrival: list[list[Ticket | None]] = [[None] * slots for _ in range(layers)]
        self._under_way: deque[Ticket] = deque()
        self._open: list[tuple[Copy, Ticket]] = []
        self._waves: list[Copy] = []
        self._begun_s = 0.0
        self._number = 0
        self._handing, self._closed = threading.Lock(), False

    @abstractmethod
    def _start(self, layer: int, expert: int, slot: int) -> Ticket:
        """Hands out one copy, behind those handed out before."""

    @abstractmethod
    def _wait(self, ticket: Ticket) -> None:
        """Makes what is computed from now on wait for a copy."""

    def can_start(self, since) -> np.ndarray:
        while self._under_way and self._under_way[0].ended():
            self._under_way.popleft()
        return np.array([len(self._under_way) < self.window])

    def fetch(self, rows, layer: int, experts, slots, since):
        slot = int(slots[0])
        with self._handing:  # a thread that still writes hands out no copy into memory that is given away
            if self._closed:
                raise MobileError("this link was closed: its slots were given back.")
            ticket = self._start(layer, int(experts[0]), slot)
        self._number += 1
        self.ready[0, layer, slot] = self._number
        self._arrival[layer][slot] = self._last = ticket
        return _UNKNOWN, _UNKNOWN

    def remember(self, copy: Copy) -> None:
        self._open.append((copy, self._last))
        if copy.kind == "prefetch":
            self._under_way.append(self._last)
        if len(self._open) > MANY:  # a card's events are not without limit
            self._open = [each for each in self._open if not (each[1].over() and self._complete(*each))]

    def settle(self) -> None:
        """Writes real times into the records of copies and computations; waits for those under way."""
        for record, ticket in self._open:
            self._complete(record, ticket)
        self._open.clear()

    def _complete(self, record: Copy, ticket: Ticket) -> bool:
        record.begin, record.end = ticket.times()
        if record.kind != "compute":
            self.copying_s += record.end - record.begin
        return True

    def take_waves(self) -> list[Copy]:
        """The computations of experts since the last call, in order."""
        taken, self._waves = self._waves, []
        return taken

    def _note(self, layer: int, wave, ticket: Ticket | None = None) -> None:
        expert = wave[0][0] if len(wave) == 1 else -1
        self._waves.append(Copy("compute", layer, expert, -1, -1, self._begun_s, self.clock.read()))
        if ticket is not None:
            self._open.append((self._waves[-1], ticket))

    def ready_at(self, layer: int, slots: np.ndarray) -> np.ndarray:
        """0 for slots whose copy is over, the copy's number where it is under way, infinity for slot -1."""
        at = np.full(slots.shape, np.inf)
        for j, slot in enumerate(slots[0]):
            if slot >= 0:
                ticket = self._arrival[layer][slot]
                if ticket is None or self.ready[0, layer, slot] == 0 or ticket.over():
                    self.ready[0, layer, slot] = 0
                at[0, j] = self.ready[0, layer, slot]
        return at

    def over(self, ready: np.ndarray) -> np.ndarray:
        return ready == 0

    def begin_layer(self) -> None:
        """Nothing to prepare."""

    def compute_landed(self, layer: int, slots, seconds, landed) -> None:
        """Nothing to wait for."""

    def compute(self, rows, layer: int, slots, seconds) -> None:
        ticket = self._arrival[layer][int(slots[0])]
        if ticket is not None and self.ready[0, layer, int(slots[0])]:
            self._wait(ticket)

    def on_host(self, seconds) -> None:
        """The host is at work while it is."""

    def computing(self, layer: int, wave) -> None:
        """The wave's computation comes now."""
        self._begun_s = self.clock.read()

    def computed(self, layer: int, wave) -> None:
        """The wave's computation was handed out."""
        self._note(layer, wave)

    def landed(self, layer: int) -> bool:
        return all(ticket is None or ticket.over() for ticket in self._arrival[layer])

    def elapse(self, seconds: float) -> None:
        """Real time passes by itself."""

    def end_layer(self) -> None:
        """Real time passes by itself."""

    def vacate(self) -> None:
        """As `settle`; what comes next may be other slots."""
        self.settle()

    def close(self) -> None:
        """Waits for copies under way, and gives back what the link holds; from then on it copies nothing."""
        with self._handing:
            self._closed = True
        self.vacate()


__all__ = ["GUESSED", "KNOWN", "Ticket", "WallLink"]
