"""`offload`: a context manager that turns a transformers model into an `Engine`, and gives it back as it was.

    with offload(model, systems.mobile(slots=16), tokenizer=tokenizer) as engine:
        for step in engine.stream("Tom has 3 apples.", max_new_tokens=40):
            print(step.text, end="")
        engine.report()
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch

from ..clock import VirtualClock
from ..hardware import Costs, Geometry, Hardware
from ..memory.link import SimulatedLink
from ..model.adapters import find_layers, geometry_of, rolls_back
from ..trace import Trace
from ..vocabulary import MobileError, Step
from .config import MobileConfig, choose_slots
from .decode import Decoder, Written
from .prompt import as_model_inputs, check_request
from .report import report
from .serve import Server
from .text import TextStream

DEFAULT_HARDWARE = "rtx4080-pcie4"  # simulated where there is no CUDA device: the paper's card


@dataclass
class Generation:
    """What `Engine.generate` returns.

    Attributes:
        token_ids: the new tokens.   text: their text, empty without a tokenizer.   steps: a `Step` for each.
        scores, logits: a tensor [1, V] for each token where output_scores or output_logits was asked for, else None.
    """

    token_ids: list[int]
    text: str
    steps: list[Step] = field(repr=False)
    scores: tuple | None = field(default=None, repr=False)
    logits: tuple | None = field(default=None, repr=False)

    @property
    def fallback_ratio(self) -> float:
        """Share of the tokens after the first that the big model had to write again."""
        return sum(s.fell_back for s in self.steps) / max(1, len(self.steps) - 1)

    @property
    def seconds_per_token(self) -> float:
        """Mean time of the tokens after the first, seconds; the first one's time is that of the prompt."""
        later = [s.seconds for s in self.steps[1:]]
        return sum(later) / len(later) if later else float("nan")


class Engine:
    """An offloaded model that writes. Made by `offload`, usable inside its `with` block.

    Attributes:
        config: the `MobileConfig`.   slots: device slots of each MoE layer.   trace: the `Trace` of all that was written.
        hardware, geometry: what the clock is about.   measured: True on a CUDA link, False on a simulated one.
    """

    def __init__(self, model, server: Server, *, tokenizer, trace: Trace, slots: int):
        self.model, self.tokenizer, self.trace, self.slots = model, tokenizer, trace, slots
        self.config, self.hardware, self.geometry = server.config, server.costs.hardware, server.costs.geometry
        self._server, self._keep = server, server.config.keep
        self._requests = 0
        self._writing = threading.Lock()
        self._open = True

    @property
    def measured(self) -> bool:
        return self._server.link.clock.measured

    @property
    def gamma(self) -> float | None:
        """The threshold, from the next token on; may be set at any time, also by another thread. None: there is none."""
        return getattr(self._keep, "gamma", None)

    @gamma.setter
    def gamma(self, value: float) -> None:
        if not self.config.two_passes or self.gamma is None:
            raise MobileError("this system has no gamma to set: it has no little model with a threshold (systems.mobile has).")
        self._keep = replace(self._keep, gamma=value)

    def stream(self, input_ids, *, max_new_tokens: int | None = None, **generation_kwargs) -> Iterator[Step]:
        """Writes, and yields a `Step` as each token is there. The model works only while the iterator is read.

        Args:
            input_ids: token ids [T] or [1, T], what a tokenizer or a chat template returned, or text.
            max_new_tokens: as in transformers, like every other keyword of its `generate` (do_sample, temperature,
                stopping_criteria, eos_token_id, logits_processor, streamer …) but beams and batches.

        Raises:
            ValueError, TypeError, MobileError: a request that cannot be served, before the first token.
        """
        for step, _ in self._steps(input_ids, max_new_tokens, generation_kwargs):
            yield step

    def generate(self, input_ids, *, max_new_tokens: int | None = None, **generation_kwargs) -> Generation:
        """Writes to the end; see `stream` for the arguments. Sampled text follows torch's seed, as in transformers."""
        want = [name for name in ("scores", "logits") if generation_kwargs.pop(f"output_{name}", False)]
        generation_kwargs.pop("return_dict_in_generate", None)
        steps, kept = [], {name: [] for name in want}
        for step, written in self._steps(input_ids, max_new_tokens, generation_kwargs):
            steps.append(step)
            for name in want:
                kept[name].append(getattr(written, name))
        ids = [step.token_id for step in steps]
        text = self.tokenizer.decode(ids, skip_special_tokens=True) if self.tokenizer is not None else ""
        return Generation(ids, text, steps, **{name: tuple(tensors) for name, tensors in kept.items()})

    def report(self):
        """One row a MoE layer (pandas): requests, hits, misses, prefetches, bytes; `.attrs` holds the conditions."""
        return report(self._server, self.trace)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _steps(self, input_ids, max_new_tokens, kwargs) -> Iterator[tuple[Step, Written]]:
        if not self._open:
            raise MobileError("this engine was closed when its `with offload(...)` block ended; offload the model again.")
        inputs = as_model_inputs(input_ids, self.tokenizer, self.model)
        if max_new_tokens is not None:
            kwargs["max_new_tokens"] = max_new_tokens
        check_request(inputs, kwargs, self.model)
        if not self._writing.acquire(blocking=False):
            raise MobileError("this engine is writing already; wait for it, or close the other stream.")
        try:
            decoder = Decoder(self._server, lambda: self._keep, self._requests, self.trace.passes.append)
            self._requests += 1
            loop = functools.partial(decoder, streamer=kwargs.get("streamer"))  # generate would drop it beside a callable
            text, before = TextStream(self.tokenizer), self._now()
            for written in self.model.generate(**inputs, **kwargs, custom_generate=loop):
                yield self._step(written, text.add(written.token_id), self._now() - before), written
                before = self._now()
        finally:
            self._server.mode = None
            self._settle_times()
            self._writing.release()

    def _now(self) -> float:
        return self._server.link.clock.read()

    def _settle_times(self) -> None:
        settle = getattr(self._server.link, "settle", None)
        if settle is not None:
            settle([copy for done in self.trace.passes for copy in done.copies])

    def _step(self, w: Written, text: str, seconds: float) -> Step:
        return Step(
            token_id=w.token_id,
            text=text,
            wrote=w.mode,
            confidence=w.confidence,
            seconds=seconds,
            bytes_moved=sum(len(p.copies) for p in w.passes) * self._server.costs.expert_bytes,
            hits=int(sum(p.hits.sum() for p in w.passes)),
            misses=int(sum(p.misses.sum() for p in w.passes)),
            fell_back=len(w.passes) > 1,
            gamma=w.gamma,
        )


@contextlib.contextmanager
def offload(
    model,
    config: MobileConfig | None = None,
    *,
    tokenizer=None,
    hardware: Hardware | str | None = None,
    geometry: Geometry | str | None = None,
):
    """Moves a model's experts to host memory for the length of a `with` block, and yields an `Engine`.

    Args:
        model: any transformers causal language model with fused experts; it is changed in place and given back as it
            was, also after an exception or an interrupt.
        config: see `MobileConfig` and `systems`; None for on-demand LRU.
        tokenizer: gives steps their text, and lets prompts be text.
        hardware: a `Hardware` or the name of a preset: time is simulated on it. None: measured where the model is on a
            CUDA device, else simulated on an RTX 4080, the paper's card.
        geometry: a `Geometry` or its name: a small model is timed as if it weighed what that one weighs. None: its own.

    Raises:
        MobileError: the model or the budget cannot work; the model is as it was.
    """
    config = MobileConfig() if config is None else config
    if not isinstance(config, MobileConfig):
        raise TypeError(f"config must be a MobileConfig, such as systems.mobile() returns, got {config!r}.")
    layers = find_layers(model)
    obstacle = rolls_back(model)
    if config.two_passes and obstacle:
        raise MobileError(
            f"{type(model).__name__} has {obstacle} layers, whose state cannot be taken back one token, and a little model "
            "needs that; use a system without one, such as systems.on_demand()."
        )
    device = model.get_input_embeddings().weight.device
    simulate = hardware is not None or device.type != "cuda"
    hardware = DEFAULT_HARDWARE if hardware is None and simulate else hardware
    hardware = Hardware.preset(hardware) if isinstance(hardware, str) else hardware or Hardware.measure(str(device))
    own = geometry_of(model, layers)
    geometry = Geometry.of(geometry) if isinstance(geometry, str) else geometry or own
    costs = Costs(hardware, geometry, len(layers))
    free_gb = 0.9 * hardware.device_gb - geometry.other_gb if simulate else 0.9 * torch.cuda.mem_get_info(device)[0] / 1e9
    slots, chosen = choose_slots(config, geometry, layers[0].num_experts, free_gb)

    def make_link(mover):
        if simulate:
            return SimulatedLink(VirtualClock(), len(layers), slots, costs.fetch_s, mover)
        from ..memory.cuda import CudaLink

        return CudaLink(len(layers), slots, mover, device)

    server = Server(layers, config, slots, costs, device, make_link)
    engine = None
    training = model.training
    try:
        server.install()
        model.eval()
        conditions = _conditions(model, config, costs, slots, chosen, server)
        engine = Engine(model, server, tokenizer=tokenizer, trace=Trace(conditions), slots=slots)
        yield engine
    finally:
        if engine is not None:
            engine._open = False
        server.remove()
        model.train(training)


def _conditions(model, config, costs: Costs, slots: int, chosen: str, server: Server) -> dict:
    """What every number of the trace depends on."""
    measured = server.link.clock.measured
    time = "measured" if measured else f"simulated on {costs.hardware.name}, timed as {costs.geometry.name}"
    return {
        "time": time,
        "measured": measured,
        "hardware": costs.hardware.name,
        "geometry": costs.geometry.name,
        "model": type(model).__name__,
        "system": repr(config),
        "layers": len(server.layers),
        "experts": server.layers[0].num_experts,
        "top_k": server.layers[0].top_k,
        "slots": slots,
        "slots_chosen": chosen,
        "expert_bytes": costs.expert_bytes,
        "page_locked": all(arena.pinned for arena in server.arenas),
    }


__all__ = ["Engine", "Generation", "offload"]
