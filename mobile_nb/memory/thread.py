"""The link on a thread of the host: a machine without a card, whose slow tier is a disk. Knows nothing about policies.

Reads and copies release Python's lock, so that they really overlap with computation.
"""

from __future__ import annotations

import queue
import threading

from ..clock import WallClock
from ..vocabulary import MobileError
from .link import Mover
from .wall import WallLink


class ThreadLink(WallLink):
    """See `WallLink`; copies are carried out by one worker thread, in order.

    Raises:
        MobileError: when a copy failed (a file that went away, say), at the computation that needs it.
    """

    def __init__(self, layers: int, slots: int, mover: Mover):
        super().__init__(layers, slots, mover)
        self._jobs: queue.SimpleQueue = queue.SimpleQueue()
        self._worker = threading.Thread(target=_work, args=(self._jobs, self.clock), daemon=True, name="mobile_nb link")
        self._worker.start()

    def _start(self, layer: int, expert: int, slot: int) -> _Job:
        job = _Job(lambda: self.mover(layer, expert, slot))
        self._jobs.put(job)
        return job

    def _wait(self, ticket: _Job) -> None:
        ticket.wait()

    def close(self) -> None:
        super().close()
        self._jobs.put(None)
        self._worker.join()


class _Job:
    """One copy: what is to be done, when it was done, and what went wrong."""

    def __init__(self, do):
        self.do, self.begin, self.end, self.problem = do, float("nan"), float("nan"), None
        self._done = threading.Event()

    def run(self, clock: WallClock) -> None:
        self.begin = clock.read()
        try:
            self.do()
        except Exception as problem:
            self.problem = problem
        self.end = clock.read()
        self._done.set()

    def over(self) -> bool:
        return self._done.is_set() and self.problem is None

    def ended(self) -> bool:
        return self._done.is_set()

    def wait(self) -> None:
        self._done.wait()
        if self.problem is not None:
            raise MobileError(f"an expert could not be read ({type(self.problem).__name__}: {self.problem}).")

    def times(self) -> tuple[float, float]:
        self._done.wait()
        return self.begin, self.end


def _work(jobs: queue.SimpleQueue, clock: WallClock) -> None:
    while (job := jobs.get()) is not None:
        job.run(clock)


__all__ = ["ThreadLink"]
