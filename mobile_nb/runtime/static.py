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

import functools
import gc
import threading
from dataclasses import dataclass

import torch
from transformers import StaticCache
from transformers.cache_utils import StaticLayer

from ..model.adapters import MoELayer
from ..vocabulary import MobileError, whole
from .graphs import CudaGraphs

RECORDED = "sdpa"  # kind of attention whose mask a card makes by itself
MASKED = (RECORDED, "eager")  # kinds that get a mask for what the cache does not hold yet
PLAIN = {"input_ids", "position_ids", "past_key_values", "use_cache", "logits_to_keep", "return_dict"}


class FixedCache(StaticCache):
    """transformers' static cache, which can also drop its last positions.

    It does so by counting back: what lies behind the count is masked, and written over by the next pass.

    Args:
        config: of the model.   positions: how many it holds.

    Raises:
        MobileError: a layer of the model keeps something else than every position, or its attention would see those
            that hold nothing.
    """

    def __init__(self, config, positions: int):
        attention = config.get_text_config()._attn_implementation
        if attention not in MASKED:
            raise MobileError(
                f"a static cache is longer than its text, which {attention!r} attention does not see; load the model "
                f"with attn_implementation={MASKED[0]!r}, or leave static=None."
            )
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
        self._layers, self._graphs, self.cache = layers, graphs, None
        self._forget()

    def _forget(self) -> None:
        """Another cache, and nothing recorded."""
        self.close()
        device = self.model.get_input_embeddings().weight.device
        self._records = self.model.config.get_text_config()._attn_implementation == RECORDED
        self.cache, self._inference = FixedCache(self.model.config, self.positions), torch.is_inference_mode_enabled()
        self._ids, self._at = (torch.zeros(1, 1, dtype=torch.long, device=device) for _ in range(2))
        self._warm = None  # the thread in which one pass has run: libraries load and make workspaces at the first use

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
        if torch.is_inference_mode_enabled() != self._inference:
            self._forget()  # what was made in one mode must not be written in the other
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
        as_it_is = self._graphs is None or not self._records
        as_it_is |= torch.is_autocast_enabled(ids.device.type)  # which makes copies of weights
        if as_it_is or not set(inputs) <= PLAIN or at is None or at.shape != ids.shape:
            return self.model(**inputs)
        self._ids.copy_(ids)
        self._at.copy_(at)
        if self.recorded:
            return self._replay()
        inputs |= {"input_ids": self._ids, "position_ids": self._at}
        with self._graphs.apart():
            if self._warm == threading.get_ident():
                return self._record(inputs)
            outputs = self.model(**inputs)
            self._warm = threading.get_ident()
            return outputs

    def close(self) -> None:
        """Gives the cache and the graphs back."""
        if self._graphs is not None and self.cache is not None:
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

        collects = gc.isenabled()
        gc.disable()  # what is collected may be page-locked memory, and giving that back ends a recording
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
            if collects:
                gc.enable()
            for place, serve in zip(places, serves, strict=True):
                place._serve = serve
        self._parts, self._last, self._outputs = parts, last, outputs
        return outputs


def static_decoding(model, layers: list[MoELayer], positions: int | None) -> StaticDecoding | None:
    """As `offload(static=)` wants it: with graphs where the model is on a CUDA device."""
    if positions is None:
        return None
    device = model.get_input_embeddings().weight.device
    return StaticDecoding(model, layers, positions, CudaGraphs(device) if device.type == "cuda" else None)


__all__ = ["FixedCache", "Part", "StaticDecoding", "static_decoding"]
