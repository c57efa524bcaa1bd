"""The decode loop: prompt, little, keep or evict, big. A generator of tokens; everything else consumes it.

It takes the place of transformers' own loop through `generate(custom_generate=...)`, so that logits processors,
stopping criteria and the generation config are those that `generate` prepared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

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
class Turn:
    """What the model was asked at once.

    Attributes:
        outputs: of the last pass, whose mode is `mode`.   passes: in order.   gamma: in force.
        drafted: the n tokens that the last pass read behind the text: its last n + 1 rows of logits count, and each
            follows one draft more. Empty where it read the last token of the text alone.
        began: when it began, seconds of the clock.   wrote: how many tokens came of it.
    """

    outputs: object
    passes: list[Pass]
    mode: str
    gamma: float | None = None
    drafted: list[int] = field(default_factory=list)
    began: float = math.nan
    wrote: int = 0


@dataclass
class Written:
    """One token and the passes that it took. `seconds` only where several tokens came at once."""

    token_id: int
    mode: str
    confidence: float
    gamma: float | None
    passes: list[Pass]
    scores: torch.Tensor
    logits: torch.Tensor
    seconds: float | None = None


class Decoder:
    """Writes one prompt's continuation.

    Args:
        server: serves the MoE layers.
        keep: returns the policy in force, asked anew for each token, so that gamma can move.
        request: number of this generation, for the trace.
        record: receives every finished `Pass`.
        static: the `StaticDecoding` that runs the model, or None.
    """

    def __init__(self, server: Server, keep: Callable[[], object], request: int, record: Callable, static=None):
        self.server, self.keep, self.request, self.record, self.static = server, keep, request, record, static
        self.two_passes = server.config.two_passes
        self._past: list[float] = []  # confidences of the little tokens so far
        self._inputs: dict = {}

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

        self._model, self._processor, self._config, self._keywords = model, processor, config, keywords
        self._run = model if self.static is None else self.static
        if self.static is not None:
            self.static.check(input_ids.shape[1], config.max_length)
        outputs, done = self._pass(PROMPT, prefill, 0)
        self._judge(outputs, 0, done)
        turn, step, last = Turn(outputs, [done], BIG), 0, False
        self.rollback = self._rollback(outputs)
        while not last:
            for at in range(len(turn.drafted) + 1):
                row = turn.outputs.logits[:, at - len(turn.drafted) - 1]
                logits = row.to(copy=True, dtype=torch.float32, device=input_ids.device)
                scores = processor(input_ids, logits)
                if config.do_sample:
                    token = torch.multinomial(torch.softmax(scores, dim=-1), num_samples=1).squeeze(1)
                else:
                    token = torch.argmax(scores, dim=-1)
                token_id, turn.wrote = token.item(), at + 1
                confirmed = turn.drafted[at : at + 1] == [token_id]
                if not confirmed:
                    self._settle(turn, at, step, token_id)
                input_ids = torch.cat([input_ids, token[:, None]], dim=-1)
                if streamer is not None:
                    streamer.put(token.cpu())
                last = bool(stop(input_ids, None).all())
                if confirmed and last:  # it ends the text, so nothing else is left for the big model's pass to write
                    self._settle(turn, at, step, token_id)
                elif confirmed:
                    turn.passes[at].token_id = token_id
                    self.record(turn.passes[at])
                ends = last or not confirmed
                mode, passes = (turn.mode, turn.passes[at:]) if ends else (LITTLE, turn.passes[at : at + 1])
                seconds = self._seconds(turn, at, ends)
                try:
                    yield Written(
                        token_id, mode, turn.passes[at].confidence, turn.gamma, passes, scores, logits, seconds
                    )
                except GeneratorExit:
                    for unread in [] if ends else turn.passes[at + 1 :]:
                        self.record(unread)
                    raise
                step += 1
                if ends:
                    break
            if not last:
                turn = self._next(input_ids, turn, step)
        if streamer is not None:
            streamer.end()

    def _settle(self, turn: Turn, at: int, step: int, token_id: int) -> None:
        """Records what is left of a turn: its last pass wrote the token at row `at`, and the drafts from there on are
        evicted."""
        done = turn.passes[-1]
        if turn.drafted:
            done.step, row = step, turn.outputs.logits[0, at - len(turn.drafted) - 1]
            done.confidence = Evidence(row).max_probability
        done.token_id = token_id
        for each in turn.passes[at:]:
            self.record(each)

    def _seconds(self, turn: Turn, at: int, ends: bool) -> float | None:
        """Of one token of several: those of its draft; the one that ends the turn took the rest."""
        if math.isnan(turn.began):
            return None
        if not ends:
            return turn.passes[at].end - turn.passes[at].begin
        return self.server.link.clock.read() - turn.began - sum(p.end - p.begin for p in turn.passes[:at])

    def _next(self, input_ids: torch.Tensor, turn: Turn, step: int) -> Turn:
        """One position: the little pass and, where it is not kept, the same position again with the big model."""
        model, inputs, keywords = self._model, self._inputs, self._keywords
        if set(inputs) == _LEAN:  # what the model needs next differs from last time in one id and one position
            inputs |= {"input_ids": input_ids[:, -1:], "position_ids": inputs["position_ids"] + 1}
        else:
            keywords = model._update_model_kwargs_for_generation(turn.outputs, keywords, is_encoder_decoder=False)
            new = 1 if keywords.get("use_cache") else None  # without a KV cache the whole text is read again
            inputs = model.prepare_inputs_for_generation(input_ids, next_sequence_length=new, **keywords)
            if self.static is not None:  # its cache says what the mask would
                inputs.pop("attention_mask", None)
        self._inputs, self._keywords = inputs, keywords

        def forward():
            return self._run(**inputs, return_dict=True)

        if not self.two_passes:
            outputs, done = self._pass(BIG, forward, step)
            self._judge(outputs, step, done)
            return Turn(outputs, [done], BIG)
        keep = self.keep()
        gamma = getattr(keep, "gamma", None)
        self.rollback.remember()
        outputs, little = self._pass(LITTLE, forward, step)
        evidence = self._judge(outputs, step, little)
        little.gamma = math.nan if gamma is None else gamma
        kept = decided(keep, evidence)
        self._past.append(evidence.max_probability)
        if kept:
            return Turn(outputs, [little], LITTLE, gamma)
        self.rollback.take_back()
        outputs, done = self._pass(BIG, forward, step, best_first(little.ids, little.weights))
        self._judge(outputs, step, done)
        done.gamma = little.gamma
        return Turn(outputs, [little, done], BIG, gamma)

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


__all__ = ["Decoder", "Evidence", "Turn", "Written"]
