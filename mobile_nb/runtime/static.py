"""Static decoding: a key-value cache that stays where it is and, on a card, the model's own kernels as CUDA graphs.

A pass that reads one token is recorded once, while the model's own forward runs: a graph ends where a layer hands its
routing to its experts, and the next one begins with what they add. From then on such a pass is: replay a graph, let the
server compute the experts as ever, replay the next. What is recorded does not know which of the little and the big
model runs, what gamma is or who is in which slot: all that happens between the graphs. Prompts, and passes that verify
drafts, run as they are. Hooks on the model's modules are not called in a replay. Knows nothing about policies, slots or
links.

Legend: T tokens of a prompt · H hidden · K experts routed to · L layers of the cache.
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass

import torch
from transformers import StaticCache
from transformers.cache_utils import StaticLayer

from ..model.adapters import MoELayer
from ..vocabulary import MobileError, whole

PLAIN = {"input_ids", "position_ids", "past_key_values", "use_cache", "logits_to_keep", "return_dict"}


class FixedCache(StaticCache):
    """transformers' static cache, which can also drop its last positions.

    It does so by counting back: what lies behind the count is masked, and written over by the next pass.

    Args:
        config: of the model.   positions: how many it holds.

    Raises:
        MobileError: a layer of the model keeps something else than every position.
    """

    def __init__(self, config, positions: int):
        super().__init__(config=config, max_cache_len=positions)
        strange = next((type(layer).__name__ for layer in self.layers if type(layer) is not StaticLayer), None)
        if strange is not None:
            raise MobileError(
                f"a static cache holds every position, and this model wants a {strange} for some of its layers; leave "
                "static=None."
            )

    def crop(self, tokens: int) -> None:
        """Drops the last -`tokens` positions."""
        torch._foreach_add_([layer.cumulative_length for layer in self.layers], tokens)  # one launch


@dataclass
class Part:
    """What lies before one layer's experts, and they.

    Attributes:
        graph: everything since the experts before.   block: holds the experts.
        asked: hidden states [1, H], index and weights [1, K], as `graph` leaves them.   added: [1, H], what the next
            graph takes for their answer.
    """

    graph: object
    block: torch.nn.Module
    asked: tuple[torch.Tensor, ...]
    added: torch.Tensor


class StaticDecoding:
    """One model's static cache and, where `graphs` are given, its recorded pass. Stands in for the model in the loop.

    Args:
        model: its MoE layers are offloaded.   layers: they.
        positions: most tokens of a prompt and its continuation, without the last one, which nobody reads.
        graphs: what records and replays, see `CudaGraphs`; None: passes run as they are.
    """

    def __init__(self, model, layers: list[MoELayer], positions: int, graphs=None):
        self.model, self.positions = model, whole("static", positions)
        self._layers, self._graphs = layers, graphs
        device = model.get_input_embeddings().weight.device
        self.cache = FixedCache(model.config, positions)
        self._ids, self._at = (torch.zeros(1, 1, dtype=torch.long, device=device) for _ in range(2))
        self._warm, self._parts = False, []
        self._last = self._outputs = None

    @property
    def recorded(self) -> bool:
        return self._last is not None

    def begin(self, inputs: dict, keywords: dict) -> dict:
        """A text begins: what `generate` must be told for it.

        Raises:
            MobileError: it wants another cache, none, or holes in the prompt.   ValueError: a prompt that is too long.
        """
        if keywords.get("past_key_values") is not None or not keywords.get("use_cache", True):
            raise MobileError("static decoding has its own KV cache: leave past_key_values and use_cache alone.")
        if not bool((inputs["attention_mask"] == 1).all()):
            raise MobileError("static decoding reads prompts without padding: leave out what attention_mask hides.")
        self.check(inputs["input_ids"].shape[1])
        self.cache.reset()
        return {"past_key_values": self.cache, "disable_compile": True}

    def check(self, tokens: int, most: int | None = None) -> None:
        """Raises ValueError where a text of `tokens` that may grow to `most` finds no place."""
        needed = max(tokens, (most or 0) - 1)
        if needed > self.positions:
            raise ValueError(
                f"this text has {tokens} tokens{f' and may grow to {most}' if most else ''}, which takes {needed} "
                f"positions, and the static cache holds {self.positions}: give more with offload(..., static=), or "
                "write less."
            )

    def __call__(self, **inputs):
        """What `model(**inputs)` returns; of a recorded pass the same tensors each time, filled anew."""
        ids = inputs["input_ids"]
        if ids.shape[1] > 1:
            return self.model(**inputs)
        inputs.pop("attention_mask", None)  # the model makes it of the cache's count
        at = inputs.get("position_ids")
        if self._graphs is None or not set(inputs) <= PLAIN or at is None or at.shape != ids.shape:
            return self.model(**inputs)
        self._ids.copy_(ids)
        self._at.copy_(at)
        if self.recorded:
            return self._replay()
        inputs |= {"input_ids": self._ids, "position_ids": self._at}
        with self._graphs.apart():
            if self._warm:
                return self._record(inputs)
            outputs = self.model(**inputs)
            self._warm = True  # libraries load and make workspaces at the first use, and must not while recorded
            return outputs

    def close(self) -> None:
        """Gives the cache and the graphs back."""
        if self._graphs is not None:
            self._graphs.close()
        self._parts, self._last, self._outputs, self.cache = [], None, None, None

    def _replay(self):
        for part in self._parts:
            part.graph.replay()
            part.added.copy_(part.block.experts(*part.asked))
        self._last.replay()
        return self._outputs

    def _record(self, inputs: dict):
        """One pass, as ever, of which what lies between the experts is recorded."""
        parts, places = [], [layer.block.experts for layer in self._layers]
        serves = [place._serve for place in places]

        def experts(block, serve, *asked):
            graph = self._graphs.end()
            parts.append(Part(graph, block, asked, serve(*asked).clone()))
            self._graphs.begin()
            return parts[-1].added

        try:
            for layer, place, serve in zip(self._layers, places, serves, strict=True):
                place._serve = functools.partial(experts, layer.block, serve)
            self._graphs.begin()
            outputs = self.model(**inputs)
            last = self._graphs.end()
        except RuntimeError as problem:
            if not self._graphs.give_up():  # the experts said so
                raise
            raise MobileError(
                f"the forward of this {type(self.model).__name__} cannot be recorded as CUDA graphs "
                f"({' '.join(str(problem).split())[:160]}); leave static=None."
            ) from problem
        finally:
            self._graphs.give_up()
            for place, serve in zip(places, serves, strict=True):
                place._serve = serve
        self._parts, self._last, self._outputs = parts, last, outputs
        return outputs


class CudaGraphs:
    """Records what is handed to one card, and replays it.

    All graphs share a pool of memory, which is right because they are always replayed in the order of recording. They
    are recorded on a stream of their own, for the default one cannot be, and replayed on the reader's. Copies that are
    under way on other streams are no part of them: between `begin` and `end` nobody waits for an event from outside,
    and what other threads ask of the card is their affair ("thread_local").
    """

    def __init__(self, device: torch.device):
        self._device, self._stream = device, _stream(device)
        self._pool, self._open = torch.cuda.graph_pool_handle(), None

    @contextlib.contextmanager
    def apart(self):
        """Around a pass that is recorded, or warms up for it: its stream, behind and before the reader's."""
        readers = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(readers)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            readers.wait_stream(self._stream)

    def begin(self) -> None:
        """From here on the card does nothing, and notes what it is asked to do."""
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        self._open = graph

    def end(self) -> torch.cuda.CUDAGraph:
        """Has the card do what it noted, and returns that, to be replayed."""
        self._open.capture_end()
        graph, self._open = self._open, None
        graph.replay()
        return graph

    def give_up(self) -> bool:
        """Drops a recording that was cut short; whether there was one."""
        graph, self._open = self._open, None
        if graph is not None:
            with contextlib.suppress(RuntimeError):
                graph.capture_end()
        return graph is not None

    def close(self) -> None:
        """Waits for what was replayed, whose memory may be given away now."""
        torch.cuda.synchronize(self._device)


def static_decoding(model, layers: list[MoELayer], positions: int | None) -> StaticDecoding | None:
    """As `offload(static=)` wants it: with graphs where the model is on a CUDA device."""
    if positions is None:
        return None
    device = model.get_input_embeddings().weight.device
    return StaticDecoding(model, layers, positions, CudaGraphs(device) if device.type == "cuda" else None)


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all engines: libraries keep a workspace for each stream that they ever see."""
    return torch.cuda.Stream(device)


__all__ = ["CudaGraphs", "FixedCache", "Part", "StaticDecoding", "static_decoding"]
