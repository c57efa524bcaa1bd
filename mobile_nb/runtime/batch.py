"""Many texts at once on a model that is not offloaded: each row is little or big on its own. For evaluation.

The same choices as the engine's decode loop: the prompt is read under the count policy's prompt rule and gives the
first token; then each token is written by the little model, and the rows whose token is not kept are written again. A
row that keeps its token is computed in the second pass as in the first. Rows whose text has ended leave the batch.
Knows nothing about tasks.

Legend: R rows · T tokens of a call · K experts routed to · H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import DynamicCache

from ..model.adapters import MoELayer, find_layers, fused_experts
from ..vocabulary import BIG, LITTLE, PROMPT, MobileError
from .config import MobileConfig
from .decode import Evidence
from .facts import decided
from .fleet import Fleet
from .rollback import Rollback, grows
from .rows import Agreement, Row, RowExperts

STAY = 0.75  # when no more than this share of the rows are alive, the others leave; leaving copies the cache


class BatchDecoder:
    """Greedy texts of several prompts under a `MobileConfig`'s count and keep policies.

    Without devices its prefetch, evict and slots play no part: they change time, never tokens. Use it inside
    `installed`.

    Args:
        fleet: (number of texts) -> their devices, where the texts or their time depend on them.
    """

    def __init__(self, model, layers: list[MoELayer], config: MobileConfig, fleet: Callable[[int], Fleet] | None):
        if fleet is None and not (config.miss.lossless and config.codec.lossless):
            raise MobileError(
                "what is on the device decides about this system's text: evaluate an engine, which has one."
            )
        if fleet is None and getattr(config.count, "by_token", False):
            raise MobileError(
                f"{config.count!r} counts for each token, and a model alone runs one count: evaluate an engine."
            )
        self.model, self.config, self.layers, self._make, self.fleet = model, config, layers, fleet, None
        self._real = self._begun = None
        self.texts: list[int] = []  # the number of each row's text
        self.experts = [] if fleet else [RowExperts(layer, config.count, at) for at, layer in enumerate(layers)]
        self.top_k = layers[0].top_k
        self.agreement = Agreement(torch.zeros(len(layers), dtype=torch.float64))

    def install(self) -> None:
        """Puts what computes the experts into the model; `installed` takes it out again."""
        for layer, experts in zip(self.layers, self.experts, strict=False):
            layer.block.experts = experts

    def use(self, modes: list[str]) -> None:
        """What the rows of the next call are: "prompt", "little" or "big"."""
        for layer in self.experts:
            layer.modes = modes

    def write(self, inputs, **generation_kwargs) -> list[Row]:
        """Writes to the end. inputs: a tokenizer's encoding of the prompts, padded on the left.

        Args:
            generation_kwargs: as of transformers' `generate`: max_new_tokens, eos_token_id, stop_strings …
        """
        rows = [Row() for _ in range(len(inputs["input_ids"]))]
        if self._make is not None:
            self.fleet, self._real = self._make(len(rows)), inputs["attention_mask"].bool().numpy()
            self.experts = self.fleet.experts
            self.install()

        def loop(model, input_ids, logits_processor, stopping_criteria, generation_config, **keywords):
            keywords.pop("synced_gpus", None)
            keywords.pop("streamer", None)
            return self._loop(input_ids, logits_processor, stopping_criteria, generation_config, keywords, rows)

        pad = self.model.generation_config.pad_token_id
        generation_kwargs.setdefault("pad_token_id", 0 if pad is None else pad)
        self.model.generate(**inputs, do_sample=False, **generation_kwargs, custom_generate=loop)
        if self.fleet is not None:
            for name, each in self.fleet.account().items():
                for row, amount in zip(rows, (each - self._begun[name]).tolist(), strict=True):
                    row.device[name] = amount
        return rows

    @torch.no_grad()
    def _loop(self, input_ids, processor, stop, config, keywords, rows: list[Row]):
        every = self.texts = list(range(len(rows)))
        with self._pass(PROMPT, every, every, [PROMPT] * len(rows), real=self._real):
            outputs = self.model._prefill(input_ids, config, keywords, is_first_iteration=True)
        self._begun = None if self.fleet is None else self.fleet.account()
        logits, fell_back = outputs.logits[:, -1].float(), [False] * len(rows)
        confidences = logits.softmax(-1).amax(-1).tolist()
        alone = not self.config.two_passes or self.config.drafts  # what is verified is what the big model writes
        cache = outputs.get("past_key_values")
        rollback, shrinks = None if alone else Rollback(cache), grows(cache)
        alive = torch.ones(len(rows), dtype=torch.bool, device=input_ids.device)
        while True:
            if logits[alive].isnan().any():
                raise MobileError("the model's logits hold NaN: its weights are damaged, or its dtype overflows.")
            token = processor(input_ids, logits).argmax(-1)
            token = torch.where(alive, token, torch.full_like(token, int(config.pad_token_id or 0)))
            for at in alive.nonzero()[:, 0].tolist():
                row = rows[self.texts[at]]
                row.token_ids.append(int(token[at]))
                row.confidences.append(confidences[at])
                row.fell_back.append(fell_back[at])
            input_ids = torch.cat([input_ids, token[:, None]], dim=-1)
            alive = alive & ~stop(input_ids, None)
            if not alive.any():
                return input_ids
            keywords = self.model._update_model_kwargs_for_generation(outputs, keywords, is_encoder_decoder=False)
            if shrinks and alive.sum() <= STAY * len(alive):
                self.texts = [text for text, on in zip(self.texts, alive.tolist(), strict=True) if on]
                cache.batch_select_indices(alive.nonzero()[:, 0])
                input_ids, keywords, alive = input_ids[alive], _of_rows(keywords, alive), alive[alive]
            inputs = self.model.prepare_inputs_for_generation(input_ids, next_sequence_length=1, **keywords)
            outputs, confidences, fell_back = self._token(inputs, alive, rollback, rows)
            logits = outputs.logits[:, -1].float()

    def _token(self, inputs: dict, alive, rollback: Rollback | None, rows: list[Row]):
        """One position of every row: the little pass and, for the rows whose token is not kept, the big one."""
        on = alive.nonzero()[:, 0].tolist()
        if rollback is None:
            with self._pass(BIG, on, on, [BIG] * len(alive)):
                outputs = self.model(**inputs, return_dict=True)
            return outputs, outputs.logits[:, -1].float().softmax(-1).amax(-1).tolist(), [False] * len(alive)
        rollback.remember()
        with self._pass(LITTLE, on, on, [LITTLE] * len(alive)):
            outputs = self.model(**inputs, return_dict=True)
        past = [rows[text].confidences[1:] for text in self.texts]  # the first token came from the prompt pass
        evidence = [Evidence(of, before) for of, before in zip(outputs.logits[:, -1], past, strict=True)]
        confidences = [each.max_probability for each in evidence]
        keep = self.config.keep
        evicted = [on and not decided(keep, each) for on, each in zip(alive.tolist(), evidence, strict=True)]
        if any(evicted):
            again = torch.tensor(evicted, device=alive.device)
            little = [layer.seen[again] for layer in self.experts]
            routing = torch.stack(little, dim=1).tolist()  # [R, L, K]
            if rollback.plain and len(evicted) > 1:
                self._rewrite(inputs, outputs, again, routing)
            else:
                if not self.config.miss.lossless and len(evicted) > 1:
                    raise MobileError("this model's cache takes back all rows at once: evaluate with batch_size=1.")
                rollback.take_back()
                rows_again = again.nonzero()[:, 0].tolist()
                modes = [BIG if each else LITTLE for each in evicted]
                with self._pass(BIG, rows_again, rows_again, modes, evicted=routing):
                    outputs = self.model(**inputs, return_dict=True)
                for layer in self.experts:
                    layer.seen = layer.seen[again]
            self.agreement.fallbacks += sum(evicted)
            for at, (layer, before) in enumerate(zip(self.experts, little, strict=True)):
                self.agreement.shared[at] += (before[:, :, None] == layer.seen[:, None, :]).sum().item()
        return outputs, confidences, evicted

    def _rewrite(self, inputs: dict, outputs, again: torch.Tensor, routing: list) -> None:
        """The big pass of the rows `again` [R] alone, on a cache of their own, put in the place of what they wrote."""
        cache, part = outputs["past_key_values"], DynamicCache()
        for at, layer in enumerate(cache.layers):
            part.update(layer.keys[again, :, :-1], layer.values[again, :, :-1], at)
        on = again.nonzero()[:, 0].tolist()
        with self._pass(BIG, on, range(len(on)), [BIG] * len(on), evicted=routing):
            wrote = self.model(**(_of_rows(inputs, again) | {"past_key_values": part}), return_dict=True)
        for layer, own in zip(cache.layers, part.layers, strict=True):
            layer.keys[again, :, -1:] = own.keys[:, :, -1:]
            layer.values[again, :, -1:] = own.values[:, :, -1:]
        outputs.logits[again] = wrote.logits

    @contextmanager
    def _pass(self, mode: str, rows: Sequence[int], places: Sequence[int], modes: list[str], **facts):
        """Around a call of the model on `modes` [R]; `rows` of the batch, at `places` of the call, are computed."""
        self.use(modes)
        if self.fleet is not None:
            self.fleet.begin_pass(mode, [self.texts[row] for row in rows], places, **facts)
        yield
        if self.fleet is not None:
            self.fleet.end_pass()


def _of_rows(inputs: dict, chosen: torch.Tensor) -> dict:
    """A model's inputs for the rows that are `chosen` [R]; the cache is left alone."""
    return {
        name: each[chosen] if isinstance(each, torch.Tensor) and len(each) == len(chosen) else each
        for name, each in inputs.items()
    }


@contextmanager
def installed(
    model, config: MobileConfig, fleet: Callable[[int], Fleet] | None = None, layers: list[MoELayer] | None = None
) -> Iterator[BatchDecoder]:
    """A `BatchDecoder` of the model, which is given back as it was, also after an exception.

    Raises:
        MobileError: a model without fused experts, or whose experts do not lie where the rest does; a config whose text
            depends on more than count and keep.
    """
    if layers is None:
        if apart(model):
            raise MobileError(
                "the experts of this model do not lie where the rest of it does, so it cannot run by itself: offload "
                "it, or load it with device='cpu' and its experts in memory."
            )
        layers = find_layers(model)
    decoder = BatchDecoder(model, layers, config, fleet)
    before = [layer.block.experts for layer in layers]
    try:
        decoder.install()
        yield decoder
    finally:
        for layer, experts in zip(layers, before, strict=True):
            layer.block.experts = experts


def apart(model) -> bool:
    """Whether a model's experts lie elsewhere than the rest: as `load` leaves it for a card, or on disk."""
    rest = model.get_input_embeddings().weight.device
    return any(p.device != rest for experts in fused_experts(model) for p in experts.parameters(False))


__all__ = ["Agreement", "BatchDecoder", "Row", "RowExperts", "apart", "installed"]
