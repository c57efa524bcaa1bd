"""Many texts at once on a model that is not offloaded: each row is little or big on its own. For evaluation.

The same choices as the engine's decode loop: the prompt is read under the count policy's prompt rule and gives the
first token; then each token is written by the little model, and the rows whose token is not kept are written again. A
row that keeps its token is computed in the second pass as in the first. Knows nothing about tasks.

Legend: R rows · T tokens of a call · K experts routed to · H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import DynamicCache

from ..model.adapters import MoELayer, find_layers
from ..model.experts import best
from ..vocabulary import BIG, LITTLE, PROMPT, MobileError
from .config import MobileConfig
from .decode import Evidence
from .facts import decided
from .rollback import Rollback


@dataclass
class Row:
    """What was written after one prompt.

    Attributes:
        token_ids: the new tokens, the end of text included.   confidences: of each, the first written version's.
        fell_back: of each, whether the big model wrote it again. The first token comes from the prompt pass.
    """

    token_ids: list[int] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    fell_back: list[bool] = field(default_factory=list)


class RowExperts(nn.Module):
    """Takes the place of a block's experts: row r runs as many of its experts as `modes[r]` asks for.

    Args:
        layer: as it was found.   count: the count policy.   at: number of the layer.
    """

    def __init__(self, layer: MoELayer, count, at: int):
        super().__init__()
        self.inner, self.layer, self.at = layer.experts, layer, at
        self.runs = {mode: count.run(mode, at, layer.top_k) for mode in (PROMPT, LITTLE, BIG)}
        self.modes: list[str] = []
        self.seen: torch.Tensor | None = None  # [T, K] what the router chose in the last call, best first

    def forward(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        plain = weights if self.layer.scale is None else weights / self.layer.scale[index]
        self.seen = index.gather(-1, plain.sort(dim=-1, descending=True, stable=True).indices)
        kinds = set(self.modes)
        if len(kinds) == 1:
            return self.inner(hidden, *self._cut(index, weights, *self.runs[self.modes[0]]))
        most = max(self.runs[mode][0] for mode in kinds)
        each = torch.tensor([list(self.runs).index(mode) for mode in self.modes], device=index.device)
        each = each.repeat_interleave(len(index) // len(self.modes))  # [T]
        chosen, amounts = index.new_zeros(len(index), most), weights.new_zeros(len(index), most)
        for number, mode in enumerate(self.runs):
            mine = each == number
            if mode in kinds:
                run = self.runs[mode][0]
                chosen[mine] = self.seen[mine][:, :most]
                some, kept = self._cut(index[mine], weights[mine], *self.runs[mode])
                chosen[mine, :run], amounts[mine, :run] = some, kept
        return self.inner(hidden, chosen, amounts)

    def _cut(self, index, weights, run: int, over: int | None):
        if run == self.layer.top_k and over is None:
            return index, weights
        return best(index, weights, run, over, self.layer.renormalises, self.layer.scale)


@dataclass
class Agreement:
    """How well evicted tokens' routers foresaw the big pass.   fallbacks: of them.   shared: [L] experts in common."""

    shared: torch.Tensor
    fallbacks: int = 0


class BatchDecoder:
    """Greedy texts of several prompts under a `MobileConfig`'s count and keep policies.

    Its prefetch, evict and slots play no part: they change time, never tokens. Use it inside `installed`.
    """

    def __init__(self, model, layers: list[MoELayer], config: MobileConfig):
        if not (config.miss.lossless and config.codec.lossless):
            raise MobileError(
                "batches are for systems whose misses and codec leave the text alone; evaluate an engine instead, "
                "which writes one text at a time."
            )
        if getattr(config.count, "by_token", False):
            raise MobileError(
                f"batches run one count for all tokens, and {config.count!r} counts for each: evaluate an engine."
            )
        self.model, self.config = model, config
        self.experts = [RowExperts(layer, config.count, at) for at, layer in enumerate(layers)]
        self.top_k = layers[0].top_k
        self.agreement = Agreement(torch.zeros(len(layers), dtype=torch.float64))

    def write(self, inputs, **generation_kwargs) -> list[Row]:
        """Writes to the end. inputs: a tokenizer's encoding of the prompts, padded on the left.

        Args:
            generation_kwargs: as of transformers' `generate`: max_new_tokens, eos_token_id, stop_strings …
        """
        rows = [Row() for _ in range(len(inputs["input_ids"]))]

        def loop(model, input_ids, logits_processor, stopping_criteria, generation_config, **keywords):
            for name in ("synced_gpus", "streamer"):
                keywords.pop(name, None)
            return self._loop(input_ids, logits_processor, stopping_criteria, generation_config, keywords, rows)

        pad = self.model.generation_config.pad_token_id
        generation_kwargs.setdefault("pad_token_id", 0 if pad is None else pad)
        self.model.generate(**inputs, do_sample=False, **generation_kwargs, custom_generate=loop)
        return rows

    @torch.no_grad()
    def _loop(self, input_ids, processor, stop, config, keywords, rows: list[Row]):
        self._modes([PROMPT] * len(rows))
        outputs = self.model._prefill(input_ids, config, keywords, is_first_iteration=True)
        logits, fell_back = outputs.logits[:, -1].float(), [False] * len(rows)
        confidences = logits.softmax(-1).amax(-1).tolist()
        alone = not self.config.two_passes or self.config.drafts  # what is verified is what the big model writes
        rollback = None if alone else Rollback(outputs["past_key_values"])
        alive = torch.ones(len(rows), dtype=torch.bool, device=input_ids.device)
        while True:
            if logits[alive].isnan().any():
                raise MobileError("the model's logits hold NaN: its weights are damaged, or its dtype overflows.")
            token = processor(input_ids, logits).argmax(-1)
            token = torch.where(alive, token, torch.full_like(token, int(config.pad_token_id or 0)))
            for row in alive.nonzero()[:, 0].tolist():
                rows[row].token_ids.append(int(token[row]))
                rows[row].confidences.append(confidences[row])
                rows[row].fell_back.append(fell_back[row])
            input_ids = torch.cat([input_ids, token[:, None]], dim=-1)
            alive = alive & ~stop(input_ids, None)
            if not alive.any():
                return input_ids
            keywords = self.model._update_model_kwargs_for_generation(outputs, keywords, is_encoder_decoder=False)
            inputs = self.model.prepare_inputs_for_generation(input_ids, next_sequence_length=1, **keywords)
            outputs, confidences, fell_back = self._token(inputs, alive, rollback, rows)
            logits = outputs.logits[:, -1].float()

    def _token(self, inputs: dict, alive, rollback: Rollback | None, rows: list[Row]):
        """One position of every row: the little pass and, for the rows whose token is not kept, the big one."""
        if rollback is None:
            self._modes([BIG] * len(alive))
            outputs = self.model(**inputs, return_dict=True)
            return outputs, outputs.logits[:, -1].float().softmax(-1).amax(-1).tolist(), [False] * len(alive)
        self._modes([LITTLE] * len(alive))
        rollback.remember()
        outputs = self.model(**inputs, return_dict=True)
        past = [row.confidences[1:] for row in rows]  # the first token came from the prompt pass
        evidence = [Evidence(of, before) for of, before in zip(outputs.logits[:, -1], past, strict=True)]
        confidences = [each.max_probability for each in evidence]
        keep = self.config.keep
        evicted = [on and not decided(keep, each) for on, each in zip(alive.tolist(), evidence, strict=True)]
        if any(evicted):
            again = torch.tensor(evicted, device=alive.device)
            little = [layer.seen[again] for layer in self.experts]
            if rollback.plain and len(evicted) > 1:
                self._rewrite(inputs, outputs, again)
            else:
                rollback.take_back()
                self._modes([BIG if each else LITTLE for each in evicted])
                outputs = self.model(**inputs, return_dict=True)
                for layer in self.experts:
                    layer.seen = layer.seen[again]
            self.agreement.fallbacks += sum(evicted)
            for at, (layer, before) in enumerate(zip(self.experts, little, strict=True)):
                self.agreement.shared[at] += (before[:, :, None] == layer.seen[:, None, :]).sum().item()
        return outputs, confidences, evicted

    def _rewrite(self, inputs: dict, outputs, again: torch.Tensor) -> None:
        """The big pass of the rows `again` [R] alone, on a cache of their own, put in the place of what they wrote."""
        cache, part = outputs["past_key_values"], DynamicCache()
        for at, layer in enumerate(cache.layers):
            part.update(layer.keys[again, :, :-1], layer.values[again, :, :-1], at)
        rows = {
            name: each[again] if isinstance(each, torch.Tensor) and len(each) == len(again) else each
            for name, each in inputs.items()
        }
        self._modes([BIG] * int(again.sum()))
        wrote = self.model(**(rows | {"past_key_values": part}), return_dict=True)
        for layer, own in zip(cache.layers, part.layers, strict=True):
            layer.keys[again, :, -1:] = own.keys[:, :, -1:]
            layer.values[again, :, -1:] = own.values[:, :, -1:]
        outputs.logits[again] = wrote.logits

    def _modes(self, modes: Sequence[str]) -> None:
        for layer in self.experts:
            layer.modes = list(modes)


@contextmanager
def installed(model, config: MobileConfig) -> Iterator[BatchDecoder]:
    """A `BatchDecoder` of the model, which is given back as it was, also after an exception.

    Raises:
        MobileError: a model without fused experts, or a config whose text depends on more than count and keep.
    """
    layers = find_layers(model)
    decoder = BatchDecoder(model, layers, config)
    try:
        for layer, experts in zip(layers, decoder.experts, strict=True):
            layer.block.experts = experts
        yield decoder
    finally:
        for layer in layers:
            layer.block.experts = layer.experts


__all__ = ["Agreement", "BatchDecoder", "Row", "RowExperts", "installed"]
