"""The decode loop: prompt, little, keep or evict, big. A generator of tokens; everything else consumes it.

It takes the place of transformers' own loop through `generate(custom_generate=...)`, so that logits processors,
stopping criteria and the generation config are those that `generate` prepared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from ..trace import Pass
from ..vocabulary import BIG, LITTLE, PROMPT, MobileError
from .facts import best_first, decided
from .rollback import Rollback
from .serve import Server

_LEAN = {"input_ids", "past_key_values", "position_ids", "use_cache", "logits_to_keep"}


class Evidence:
    """What the keep policy may know of the little token; each number is computed when it is read."""

    def __init__(self, logits: torch.Tensor, past: Sequence[float] = ()):
        self.past = past
        self._p = torch.softmax(logits.float(), dim=-1)  # [V]
        self.max_probability = self._p.max().item()

    @property
    def margin(self) -> float:
        first, second = self._p.topk(2).values.tolist()
        return first - second

    @property
    def entropy(self) -> float:
        return (torch.special.entr(self._p).sum() / math.log(len(self._p))).item()


@dataclass
class Written:
    """One token and the passes that it took."""

    token_id: int
    mode: str
    confidence: float
    gamma: float | None
    passes: list[Pass]
    scores: torch.Tensor
    logits: torch.Tensor


class Decoder:
    """Writes one prompt's continuation.

    Args:
        server: serves the MoE layers.
        keep: returns the policy in force, asked anew for each token, so that gamma can move.
        request: number of this generation, for the trace.
        record: receives every finished `Pass`.
    """

    def __init__(self, server: Server, keep: Callable[[], object], request: int, record: Callable[[Pass], None]):
        self.server, self.keep, self.request, self.record = server, keep, request, record
        self.two_passes = server.config.two_passes
        self._past: list[float] = []  # confidences of the little tokens so far

    def __call__(
        self, model, input_ids, logits_processor, stopping_criteria, generation_config, streamer=None, **model_kwargs
    ) -> Iterator[Written]:
        """What `generate` calls; it returns at once, and the tokens are computed as they are read."""
        model_kwargs.pop("synced_gpus", None)
        return self._write(
            model, input_ids, logits_processor, stopping_criteria, generation_config, streamer, model_kwargs
        )

    @torch.no_grad()
    def _write(self, model, input_ids, processor, stop, config, streamer, keywords) -> Iterator[Written]:
        def prefill():
            return model._prefill(input_ids, config, keywords, is_first_iteration=True)

        outputs, done = self._pass(PROMPT, prefill, 0)
        evidence, passes, mode, gamma = self._judge(outputs, 0, done), [done], BIG, None
        self.rollback = self._rollback(outputs)
        step, inputs = 0, {}
        while True:
            logits = outputs.logits[:, -1].to(copy=True, dtype=torch.float32, device=input_ids.device)
            scores = processor(input_ids, logits)
            if config.do_sample:
                token = torch.multinomial(torch.softmax(scores, dim=-1), num_samples=1).squeeze(1)
            else:
                token = torch.argmax(scores, dim=-1)
            token_id = token.item()
            for evicted in passes[:-1]:
                self.record(evicted)
            passes[-1].token_id = token_id
            self.record(passes[-1])
            input_ids = torch.cat([input_ids, token[:, None]], dim=-1)
            if streamer is not None:
                streamer.put(token.cpu())
            last = bool(stop(input_ids, None).all())
            yield Written(token_id, mode, evidence.max_probability, gamma, passes, scores, logits)
            if last:
                break
            step += 1
            if set(inputs) == _LEAN:  # what the model needs next differs from last time in one id and one position
                inputs |= {"input_ids": token[:, None], "position_ids": inputs["position_ids"] + 1}
            else:
                keywords = model._update_model_kwargs_for_generation(outputs, keywords, is_encoder_decoder=False)
                new = 1 if keywords.get("use_cache") else None  # without a KV cache the whole text is read again
                inputs = model.prepare_inputs_for_generation(input_ids, next_sequence_length=new, **keywords)
            outputs, passes, mode, evidence, gamma = self._token(model, inputs, step)
        if streamer is not None:
            streamer.end()

    def _token(self, model, inputs: dict, step: int):
        """One position: the little pass and, where it is not kept, the same position again with the big model."""

        def forward():
            return model(**inputs, return_dict=True)

        if not self.two_passes:
            outputs, done = self._pass(BIG, forward, step)
            return outputs, [done], BIG, self._judge(outputs, step, done), None
        keep = self.keep()
        gamma = getattr(keep, "gamma", None)
        self.rollback.remember()
        outputs, little = self._pass(LITTLE, forward, step)
        evidence = self._judge(outputs, step, little)
        little.gamma = math.nan if gamma is None else gamma
        kept = decided(keep, evidence)
        self._past.append(evidence.max_probability)
        if kept:
            return outputs, [little], LITTLE, evidence, gamma
        self.rollback.take_back()
        outputs, done = self._pass(BIG, forward, step, best_first(little.ids, little.weights))
        self._judge(outputs, step, done)
        done.gamma = little.gamma
        return outputs, [little, done], BIG, evidence, gamma

    def _pass(self, mode: str, forward: Callable, step: int, evicted=None):
        clock = self.server.link.clock
        begin = clock.read()
        self.server.begin_pass(mode, evicted)
        outputs = forward()
        facts = self.server.end_pass()
        done = Pass(self.request, step, mode, -1, math.nan, math.nan, begin, clock.read(), **facts)
        return outputs, done

    def _judge(self, outputs, step: int, done: Pass) -> Evidence:
        evidence = Evidence(outputs.logits[0, -1], self._past)
        if math.isnan(evidence.max_probability):
            raise MobileError(
                f"the model's logits hold NaN at new token {step}: its weights are damaged, or {outputs.logits.dtype} "
                "overflows; try dtype=torch.float32."
            )
        done.confidence = evidence.max_probability
        return evidence

    def _rollback(self, outputs) -> Rollback | None:
        if not self.two_passes:
            return None
        cache = outputs.get("past_key_values")
        if cache is None:
            raise MobileError("the little model needs a KV cache to take a token back from; leave use_cache=True.")
        return Rollback(cache)


__all__ = ["Decoder", "Evidence", "Written"]
