"""An offloaded model that writes. Knows nothing about how it was offloaded."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from ..hardware import Hardware
from ..model.channels import computed_from
from ..vocabulary import MobileError, Step
from .batch import BatchDecoder, installed
from .config import MobileConfig
from .decode import Decoder, Written
from .draft import Drafter
from .fleet import Fleet
from .generation import Generation
from .offloaded import Offloaded
from .prompt import as_model_inputs, check_request
from .report import report
from .static import static_decoding
from .text import TextStream

BUSY = "this engine is writing already; wait for it, or close the other stream."


class Engine:
    """An offloaded model that writes. Made by `offload`, usable inside its `with` block.

    Attributes:
        config: the `MobileConfig`.   trace: of all that was written.
        slots: device slots of each MoE layer, as the configuration would say them; the most where layers differ.
        hardware, geometry: what the clock is about.   measured: True on a CUDA link, False on a simulated one.
    """

    def __init__(self, offloaded: Offloaded, config: MobileConfig | None, hardware, *, tokenizer, static=None):
        self.model, self.tokenizer = offloaded.model, tokenizer
        self._offloaded = offloaded
        self._writing = threading.Lock()
        self._open = True
        self._static = static_decoding(self.model, offloaded.layers, static)
        self._begin(config, hardware)

    def _begin(self, config: MobileConfig | None, hardware: Hardware | str | None) -> None:
        server, trace = self._offloaded.serve(config, hardware)
        self._server, self.trace, self.slots = server, trace, server.slots
        self.config, self.hardware, self.geometry = server.config, server.costs.hardware, server.costs.geometry
        self._keep, self._requests = server.config.keep, 0
        if self._static is not None:
            trace.conditions["static"] = self._static.positions

    def change(self, config: MobileConfig | None = None, *, hardware: Hardware | str | None = None) -> None:
        """Offloads the same model anew, between two texts: the slots are empty, and `trace` and `report` begin again.

        Args:
            config: None for the one in force, its gamma as it was given.
            hardware: as in `offload`; None for the clock and the hardware in force.

        Raises:
            MobileError, TypeError, ValueError: the change cannot be, or the engine is writing; it goes on as it was.
        """
        self._check_open()
        if not self._writing.acquire(blocking=False):
            raise MobileError("this engine is writing: stop it, or wait for its end, before you change it.")
        try:
            if hardware is None and not self.measured:
                hardware = self.hardware
            self._begin(self.config if config is None else config, hardware)
        finally:
            self._writing.release()

    @property
    def measured(self) -> bool:
        return self._server.link.clock.measured

    @property
    def writing(self) -> bool:
        """Whether a text is under way: a stream that was begun, and neither read to its end nor closed."""
        return self._writing.locked()

    @property
    def gamma(self) -> float | None:
        """The threshold, from the next token on; any thread may set it at any time. None: there is none."""
        return getattr(self._keep, "gamma", None) if self.config.two_passes else None

    @gamma.setter
    def gamma(self, value: float) -> None:
        if self.gamma is None:
            raise MobileError(
                "this system has no gamma to set: it has no little model with a threshold (systems.mobile has)."
            )
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

    @property
    def batches(self) -> bool:
        """Whether `batch` is offered: a simulated device, experts in host memory, and no drafts."""
        return not (self.measured or self.config.drafts or self._offloaded.files or self.model.device.type != "cpu")

    @contextmanager
    def batch(self) -> Iterator[BatchDecoder]:
        """Writes many texts at once, each on a device of its own like this one, empty at first. Simulated time only.

        Texts and accounts are those of a fresh engine for each text. The engine's own slots and trace are left alone,
        and it writes nothing else meanwhile.

        Raises:
            MobileError: the engine is writing, or was closed, or its time is measured.
        """
        self._check_open()
        if not self.batches:
            raise MobileError("a batch needs simulated devices, experts in host memory and no drafts.")
        if not self._writing.acquire(blocking=False):
            raise MobileError(BUSY)
        config, layers = replace(self.config, keep=self._keep), self._offloaded.layers
        try:
            compute, arenas = None, enumerate(zip(layers, self._server.arenas, strict=True))
            if not config.codec.lossless:
                compute = [computed_from(layer, at, arena, config.codec) for at, (layer, arena) in arenas]
            fleet = functools.partial(Fleet, layers, config, self._server.pools, self._server.costs, compute)
            with installed(self.model, config, fleet, layers) as decoder:
                yield decoder
        finally:
            self._writing.release()

    def report(self):
        """One row a MoE layer (pandas): requests, hits, misses, prefetches, bytes; `.attrs` holds the conditions."""
        return report(self._server, self.trace)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _steps(self, input_ids, max_new_tokens, kwargs) -> Iterator[tuple[Step, Written]]:
        self._check_open()
        inputs = as_model_inputs(input_ids, self.tokenizer, self.model)
        if max_new_tokens is not None:
            kwargs["max_new_tokens"] = max_new_tokens
        check_request(inputs, kwargs, self.model)
        if not self._writing.acquire(blocking=False):
            raise MobileError(BUSY)
        writing = None
        try:
            if self._static is not None:
                kwargs |= self._static.begin(inputs, kwargs)
            kind = Drafter if self.config.drafts else Decoder
            about = self._requests, self.trace.passes.append, self._static
            decoder = kind(self._server, lambda: self._keep, *about)
            self._requests += 1
            loop = functools.partial(decoder, streamer=kwargs.get("streamer"))  # beside a callable it would be dropped
            text, before = TextStream(self.tokenizer), self._now()
            writing = self.model.generate(**inputs, **kwargs, custom_generate=loop)
            for written in writing:
                seconds = self._now() - before if written.seconds is None else written.seconds
                yield self._step(written, text.add(written.token_id), seconds), written
                self._check_open()  # the block may have ended while nobody was reading
                before = self._now()
        except Exception:
            self._check_open()  # the block ended in the middle of a token: that is what went wrong
            raise
        finally:
            try:
                if writing is not None:
                    writing.close()
                self._server.give_up()
                self._server.link.settle()
                if self._server.gaps or self._server.passes != len(self.trace.passes):
                    self.trace.conditions["whole"] = False  # a replay would not meet the cache that this run left
            finally:
                self._writing.release()

    def _close(self) -> None:
        self._open = False
        if self._static is not None:
            self._static.close()

    def _check_open(self) -> None:
        if not self._open:
            raise MobileError(
                "this engine was closed when its `with offload(...)` block ended; offload the model again."
            )

    def _now(self) -> float:
        return self._server.link.clock.read()

    def _step(self, w: Written, text: str, seconds: float) -> Step:
        return Step(
            token_id=w.token_id,
            text=text,
            wrote=w.mode,
            confidence=w.confidence,
            seconds=seconds,
            bytes_moved=sum(self._server.costs.bytes_of(c.form) * c.amount for p in w.passes for c in p.copies),
            hits=int(sum(p.hits.sum() for p in w.passes)),
            misses=int(sum(p.misses.sum() for p in w.passes)),
            fell_back=len(w.passes) > 1,
            gamma=w.gamma,
            host=int(sum((p.requests - p.hits - p.misses).sum() for p in w.passes)),
        )


__all__ = ["BUSY", "Engine"]
