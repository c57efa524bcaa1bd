"""The link from host memory to device slots, simulated on a virtual clock. Knows nothing about policies.

One direction, in order, one copy at a time: transfer = latency + bytes / bandwidth. A copy into a slot starts when the
link is free, the copy is asked for, and the slot's last computation is over. `CudaLink` has the same methods and does
the same with streams and events; the scheduler does not know which of them it drives.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..clock import VirtualClock
from ..trace import Copy

Mover = Callable[[int, int, int], None]  # (layer, expert, slot): really copies the weights


class SimulatedLink:
    """A link and a compute unit for C configurations, as arrays of times in seconds.

    Args:
        clock: the virtual clock they share.
        layers, slots: L and S.
        fetch_s: seconds of one expert's transfer, float array [C], or [C, S] by the slot that it goes to.
        mover: called at every copy of a live run, so that slots hold real weights.
    """

    asynchronous, window = False, 0  # nothing is handed out early: it is known what would have started by now

    def __init__(self, clock: VirtualClock, layers: int, slots: int, fetch_s: np.ndarray, mover: Mover | None = None):
        self.clock, self.mover = clock, mover
        fetch_s = np.atleast_1d(np.asarray(fetch_s, dtype=float))
        count = len(fetch_s)
        self.fetch_s = np.broadcast_to(fetch_s.reshape(count, -1), (count, slots))  # [C, S]
        self.free = np.zeros(count)  # [C] when the link has done what it was given
        self.busy = np.zeros(count)  # [C] when the compute unit has done what it was given
        self.ready = np.zeros((count, layers, slots))  # [C, L, S] when the slot's content is there
        self.released = np.zeros((count, layers, slots))  # [C, L, S] when the slot's last computation is over
        self.copying_s = np.zeros(count)
        self.host_busy = np.zeros(count)  # [C] when the host has computed what it was given

    def can_start(self, since: np.ndarray) -> np.ndarray:
        """Whether a copy asked for at `since` [C] would have started by now: bool [C]."""
        return np.maximum(self.free, since) <= self.clock.now

    def fetch(self, rows, layer: int, experts, slots, since) -> tuple[np.ndarray, np.ndarray]:
        """Starts one copy in each row. Returns when each begins and ends, seconds [R]."""
        begin = np.maximum(np.maximum(self.free[rows], since), self.released[rows, layer, slots])
        end = begin + self.fetch_s[rows, slots]
        self.free[rows] = self.ready[rows, layer, slots] = end
        self.copying_s[rows] += self.fetch_s[rows, slots]
        if self.mover is not None:
            self.mover(layer, int(experts[0]), int(slots[0]))
        return begin, end

    def more(self, rows, layer: int, slots, seconds, since) -> tuple[np.ndarray, np.ndarray]:
        """Starts a copy of `seconds` [R] in each row beside what its slot holds already. When each begins and ends."""
        begin = np.maximum(self.free[rows], since)
        self.free[rows] = self.ready[rows, layer, slots] = end = begin + seconds
        self.copying_s[rows] += seconds
        return begin, end

    def ready_at(self, layer: int, slots: np.ndarray) -> np.ndarray:
        """When the contents of `slots` [C, k] are there, in seconds; those with slot -1 never are (infinity)."""
        at = np.take_along_axis(self.ready[:, layer], np.maximum(slots, 0), axis=1)
        return np.where(slots >= 0, at, np.inf)

    def over(self, ready: np.ndarray) -> np.ndarray:
        """Which of the moments that `ready_at` gave have passed."""
        return ready <= self.clock.now[:, None]

    def begin_layer(self) -> None:
        """The compute unit can start on a layer now, not earlier."""
        np.maximum(self.busy, self.clock.now, out=self.busy)

    def compute_landed(self, layer: int, slots: np.ndarray, seconds: np.ndarray, landed: np.ndarray) -> None:
        """Computes, one after the other, the experts that are there already: `landed` [C, k] of slots [C, k]."""
        done = self.busy[:, None] + np.cumsum(np.where(landed, seconds, 0.0), axis=1)
        row, col = np.nonzero(landed)
        self.released[row, layer, slots[row, col]] = done[row, col]
        self.busy = done[:, -1] if done.shape[1] else self.busy

    def compute(self, rows, layer: int, slots, seconds) -> None:
        """Computes one expert in each row as soon as it is there and the compute unit is free; seconds [R]."""
        done = np.maximum(self.busy[rows], self.ready[rows, layer, slots]) + seconds
        self.busy[rows] = self.released[rows, layer, slots] = done

    def on_host(self, seconds) -> None:
        """The host computes for so long, one expert after the other, beside link and compute unit: seconds, or [C]."""
        self.host_busy = np.maximum(self.host_busy, self.clock.now) + seconds

    def remember(self, copy: Copy) -> None:
        """The record of the copy just started; its times are known already."""

    def settle(self) -> None:
        """Completes the records of copies: nothing is left open on a virtual clock."""

    def vacate(self) -> None:
        """Nothing is kept of slots that are given away."""

    def close(self) -> None:
        """Nothing to give back."""

    def take_waves(self) -> list:
        """No record: when what is computed follows from the costs (`analysis.spans`)."""
        return []

    def computing(self, layer: int, wave) -> None:
        """The wave's computation comes now."""

    def computed(self, layer: int, wave) -> None:
        """The wave's computation was handed to the device: on a virtual clock `compute` has said it all."""

    def landed(self, layer: int) -> bool:
        """Whether every copy into the layer's slots is over."""
        return bool((self.ready[:, layer] <= self.clock.now[:, None]).all())

    def elapse(self, seconds: float) -> None:
        """Computation that needs no link: attention, routers, the output matrix."""
        self.clock.advance(seconds)

    def end_layer(self) -> None:
        """The layer is over when its last expert is, on the device or on the host."""
        self.clock.advance_to(np.maximum(self.busy, self.host_busy))


__all__ = ["Mover", "SimulatedLink"]
