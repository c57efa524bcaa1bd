"""`offload`: a context manager that turns a transformers model into an `Engine`, and gives it back as it was.

with offload(model, systems.mobile(slots=16), tokenizer=tokenizer) as engine:
    for step in engine.stream("Tom has 3 apples.", max_new_tokens=40):
        print(step.text, end="")
    engine.report()
"""

from __future__ import annotations

import contextlib

from ..hardware import Geometry, Hardware
from .config import MobileConfig
from .engine import Engine
from .offloaded import Offloaded


@contextlib.contextmanager
def offload(
    model,
    config: MobileConfig | None = None,
    *,
    tokenizer=None,
    hardware: Hardware | str | None = None,
    geometry: Geometry | str | None = None,
    host_gb: float | None = None,
    static: int | None = None,
):
    """Moves a model's experts to host memory for the length of a `with` block, and yields an `Engine`.

    Args:
        model: any transformers causal language model with fused experts; it is changed in place and given back as it
            was, also after an exception or an interrupt.
        config: see `MobileConfig` and `systems`; None for on-demand LRU.
        tokenizer: gives steps their text, and lets prompts be text.
        hardware: a `Hardware` or the name of a preset: time is simulated on it. None: measured where the model is on a
            CUDA device, or where its experts were left on disk; else simulated on an RTX 4080, the paper's card.
        geometry: a `Geometry` or its name: where time is simulated, a small model is timed as if it weighed what that
            one weighs. None: its own, as ever where time is measured.
        host_gb: host memory for experts that were left on disk (`load(experts="disk")`) and read lately; None for none.
        static: positions of a KV cache that is allocated once and stays where it is: most tokens of a prompt and its
            continuation. On a CUDA device passes over one token are then replayed as CUDA graphs, but for their
            experts; elsewhere nothing is won. Each token then reads the whole cache, so give no more than is needed.
            None: a cache that grows, and no graphs. Not for `Engine.batch`; attention must be "sdpa", or "eager", whose
            passes are not recorded.

    Raises:
        MobileError: the model or the budget cannot work; the model is as it was.
    """
    offloaded = Offloaded(model, geometry=geometry, host_gb=host_gb, static=static)
    engine = None
    try:
        engine = Engine(offloaded, config, hardware, tokenizer=tokenizer, static=static)
        yield engine
    finally:
        try:
            if engine is not None:
                engine._close()
        finally:
            offloaded.restore()


__all__ = ["offload"]
