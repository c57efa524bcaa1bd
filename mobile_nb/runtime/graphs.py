"""Recording what is handed to one CUDA device, and replaying it: the only file of the runtime that calls its graphs."""

from __future__ import annotations

import contextlib
import functools
import threading

import torch

_APART = threading.RLock()  # the stream is shared by all engines of a card


class CudaGraphs:
    """Records what is handed to one card, and replays it.

    The graphs of a pass share a pool of memory, which is right because they are always replayed in the order of
    recording. torch lets nobody use a pool whose graphs are all gone, so each pass gets one of its own. Graphs are
    recorded on a stream of their own, for the default one cannot be, and replayed on the reader's. Copies that are
    under way on other streams are no part of them: between `begin` and `end` nobody waits for an event from outside,
    and what other threads ask of the card is their affair ("thread_local").
    """

    def __init__(self, device: torch.device):
        self._device, self._stream, self._pool, self._open = device, _stream(device), None, None

    @contextlib.contextmanager
    def apart(self):
        """Around a pass that is recorded, or warms up for it: its stream, behind and before the reader's.

        cuBLAS keeps its scratch by stream. It is dropped before and after, so that a recording takes it from its
        graphs' pool, and the end of another engine's graphs cannot give it away.
        """
        readers, self._pool = torch.cuda.current_stream(self._device), torch.cuda.graph_pool_handle()
        with _APART:
            self._stream.wait_stream(readers)
            _drop_scratch()
            try:
                with torch.cuda.stream(self._stream):
                    yield
            finally:
                _drop_scratch()
                readers.wait_stream(self._stream)

    def begin(self) -> None:
        """From here on the card does nothing, and notes what it is asked to do."""
        self._open = torch.cuda.CUDAGraph()  # first, so that an interrupt leaves somebody who ends it
        self._open.capture_begin(pool=self._pool, capture_error_mode="thread_local")

    def end(self) -> torch.cuda.CUDAGraph:
        """Has the card do what it noted, and returns that, to be replayed."""
        self._open.capture_end()
        graph, self._open = self._open, None
        graph.replay()
        return graph

    def give_up(self) -> bool:
        """Drops a recording that was cut short; whether there was one."""
        graph, self._open = self._open, None
        if graph is None:
            return False
        try:
            graph.capture_end()
        except RuntimeError:
            self._mend()
        return True

    def _mend(self) -> None:
        """torch up to 2.12 leaves its memory pool, and 2.11 its random numbers, as if a refused recording went on."""
        with contextlib.suppress(RuntimeError):  # ended after all
            torch._C._cuda_endAllocateToPool(self._device.index or 0, self._pool)
        with contextlib.suppress(RuntimeError):  # a recording that succeeds takes the random numbers back
            one, graph = torch.zeros(1, device=self._device), torch.cuda.CUDAGraph()
            graph.capture_begin(pool=torch.cuda.graph_pool_handle(), capture_error_mode="thread_local")
            one.add_(1)
            graph.capture_end()

    def close(self) -> None:
        """Waits for what was replayed, whose memory may be given away now."""
        torch.cuda.synchronize(self._device)


def _drop_scratch() -> None:
    torch._C._cuda_clearCublasWorkspaces()


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all engines: libraries keep a workspace for each stream that they ever see. Of high priority, as torch
    hands its 32 streams of each priority out in turn, and this one must not be what somebody copies on."""
    return torch.cuda.Stream(device, priority=-1)


__all__ = ["CudaGraphs"]
