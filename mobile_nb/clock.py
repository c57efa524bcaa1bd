"""Time: a virtual clock that the simulated link moves, or the wall. Knows nothing about models or links."""

from __future__ import annotations

import time

import numpy as np


class VirtualClock:
    """Simulated seconds for C configurations at once; it can only move forward (law 7).

    Attributes:
        now: float64 array [C], seconds since the start.
    """

    measured = False

    def __init__(self, configs: int = 1):
        self.now = np.zeros(configs)

    def advance_to(self, moment: np.ndarray) -> None:
        """Moves each configuration to `moment` [C] seconds, unless it is there or further already."""
        np.maximum(self.now, moment, out=self.now)

    def advance(self, seconds: float | np.ndarray) -> None:
        """Moves every configuration on by `seconds`, one number or [C]; negative steps are refused."""
        if np.any(np.less(seconds, 0)):
            raise ValueError(f"time cannot run backwards: {seconds!r} seconds.")
        self.now += seconds

    def read(self) -> float:
        """Seconds of the first configuration (a live run has just one)."""
        return float(self.now[0])


class WallClock:
    """Measured seconds since it was made, from the monotonic clock of the machine."""

    measured = True

    def __init__(self):
        self._start = time.perf_counter()

    @property
    def now(self) -> np.ndarray:
        return np.array([self.read()])

    def read(self) -> float:
        return time.perf_counter() - self._start


__all__ = ["VirtualClock", "WallClock"]
