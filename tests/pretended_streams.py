"""What stands in for torch.cuda on a pretended card: its names, streams, events and graphs.

Copies on another stream than the default one come as late as they may: when somebody waits for them, or asks whether
they are over, which lets their stream do one thing. All else is done at once.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections import deque
from types import SimpleNamespace

import torch

CARD = torch.device("cuda", 0)
LATE = {"copy_", "fill_"}
TOTAL = 8 << 30  # bytes


class Cuda:
    """Every public name in it replaces torch.cuda's.

    Args:
        allocated: says how many bytes tensors on the card take.
    """

    def __init__(self, allocated):
        self._streams = weakref.WeakSet()
        self.Stream, self.Event, self.CUDAGraph = (type(of.__name__, (of,), {"cuda": self}) for of in KINDS)
        self._first = self._now = self.Stream(late=False)
        self._recording: Graph | None = None  # which takes notes
        self._warns, self._allocated = "default", allocated
        self._locked: dict[int, int] = {}  # page-locked memory, address -> bytes
        self.is_available, self.is_bf16_supported = lambda: True, lambda *given: True
        self.device_count, self.current_device = lambda: 1, lambda: 0
        self.device = lambda which: contextlib.nullcontext()
        self.get_device_name, self.get_device_capability = lambda device=None: "a card", lambda device=None: (9, 0)
        self.empty_cache = self._sleep = self.manual_seed_all = self.set_rng_state = lambda *given: None
        self.get_rng_state = lambda device=None: torch.empty(0)
        self.graph_pool_handle = object

    def get_device_properties(self, device=None):
        return SimpleNamespace(name="a card", total_memory=TOTAL, major=9, minor=0)

    def memory_allocated(self, device=None) -> int:
        return self._allocated()

    memory_reserved = memory_allocated

    def mem_get_info(self, device=None):
        return TOTAL - self._allocated(), TOTAL

    def cudart(self):
        return SimpleNamespace(
            cudaHostRegister=lambda at, size, flags: self._locked.__setitem__(at, size) or 0,
            cudaHostUnregister=lambda at: self._locked.pop(at, None),
        )

    @contextlib.contextmanager
    def stream(self, which):
        before, self._now = self._now, which or self._now
        try:
            yield
        finally:
            self._now = before

    def current_stream(self, device=None):
        return self._now

    def default_stream(self, device=None):
        return self._first

    def synchronize(self, device=None):
        for each in list(self._streams):
            each.synchronize()

    def is_current_stream_capturing(self):
        return self._recording is not None

    def set_sync_debug_mode(self, mode):
        self._warns = mode

    def get_sync_debug_mode(self):
        return self._warns


class Stream:
    """What it was asked to do and nobody has waited for yet is in `queue`."""

    cuda: Cuda
    device = CARD

    def __init__(self, device=None, priority=0, late=True):
        self.late, self.queue = late, deque()
        self.cuda._streams.add(self)

    def do(self, work):
        self.queue.append(work)
        if not self.late:
            self.synchronize()

    def step(self):
        with torch._C.DisableTorchFunction():
            self.queue.popleft()()

    def synchronize(self):
        while self.queue:
            self.step()

    def wait_event(self, event):
        self.do(event.synchronize)

    def wait_stream(self, other):
        mark = self.cuda.Event()
        mark.record(other)
        self.wait_event(mark)


class Event:
    cuda: Cuda

    def __init__(self, enable_timing=False):
        self.at, self.stream = None, None

    def record(self, stream=None):
        self.at, self.stream = None, stream or self.cuda._now
        self.stream.do(lambda: setattr(self, "at", time.perf_counter()))

    def query(self):
        if self.stream is not None and self.stream.queue:
            self.stream.step()
        return self.stream is None or self.at is not None

    def synchronize(self):
        while self.at is None and self.stream is not None:
            self.stream.step()

    def elapsed_time(self, other):
        return 1e3 * (other.at - self.at)


class Graph:
    """Notes functions and their arguments. A replay runs them again, and writes into what they returned at first."""

    cuda: Cuda

    def __init__(self):
        self.notes, self.refused = [], False

    def capture_begin(self, pool=None, capture_error_mode="global"):
        assert self.cuda._now is not self.cuda._first, "the default stream cannot be recorded"
        assert self.cuda._recording is None, "one recording at a time"
        self.cuda._now.synchronize()
        self.cuda._recording = self

    def capture_end(self):
        self.cuda._recording = None
        if self.refused:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    def refuse(self, name):
        self.refused = True
        raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({name})")

    def replay(self):
        self.cuda._now.synchronize()
        with torch._C.DisableTorchFunction():
            for func, args, kwargs, made in self.notes:
                for old, new in zip(made, flat(func(*args, **kwargs)), strict=False):
                    if old is not None:
                        old.copy_(new)


KINDS = (Stream, Event, Graph)


def flat(thing):
    """The tensors in arguments or results."""
    if isinstance(thing, torch.Tensor):
        yield thing
    elif isinstance(thing, (tuple, list)):
        for each in thing:
            yield from flat(each)
    elif isinstance(thing, dict):
        yield from flat(list(thing.values()))
