"""Speculative decoding: the little model drafts a few tokens, and the big one reads all of them in one pass.

What the big model would have written itself stays, and one token of its own; the KV cache forgets the others. The rows
that stay in it are all the big model's, so the text is that of the full model, greedy or sampled: drafts draw nothing
at random, and each token is drawn from the big model's row, in the order of plain decoding, until one is not the draft
(for a draft that is certain of itself, the standard rejection rule comes to the same).

In the trace a draft that stays wrote its token; those behind the first that does not are evicted, and the big pass
wrote the token that ends its turn. Legend: V vocabulary.
"""

from __future__ import annotations

import math

import torch

from ..vocabulary import BIG, LITTLE, MobileError
from .decode import Decoder, Turn
from .facts import ask, decided
from .named import most_named
from .rollback import Cropping


class Drafter(Decoder):
    """Writes one prompt's continuation, a few tokens at a time; see `Decoder`."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._readings: list[tuple[int, int]] = []  # (drafted, accepted) of each

    def _rollback(self, outputs) -> Cropping:
        super()._rollback(outputs)
        return Cropping(outputs["past_key_values"])

    def _next(self, input_ids: torch.Tensor, turn: Turn, step: int) -> Turn:
        """Drafts, and the pass that reads them."""
        if step > 1:  # the turn before was not the prompt
            self._readings.append((len(turn.drafted), turn.wrote - 1))
            self.server.kept = turn.wrote
            self.rollback.take_back(len(turn.drafted) + 1 - turn.wrote)
        self._keywords = self._after(turn.outputs, self._keywords, turn.wrote)
        keep, began = self.keep(), self.server.link.clock.read()
        gamma = getattr(keep, "gamma", None)
        passes, drafted, text, ends = [], [], input_ids, self._ends()
        room = (self._config.max_length or math.inf) - input_ids.shape[1] - 1  # the big model writes one itself
        while len(drafted) < min(self._drafts(keep), room):
            inputs = self._inputs_of(turn.outputs, text, len(drafted), 1)
            outputs, little = self._read(LITTLE, inputs, step + len(passes), passes)
            evidence = self._judge(outputs, step + len(passes), little)
            passes.append(little)
            kept = decided(keep, evidence)
            self._past.append(evidence.max_probability)
            logits = outputs.logits[:, -1].to(copy=True, dtype=torch.float32, device=text.device)
            token = self._processor(text, logits).argmax(-1)
            if not kept or token.item() in ends:  # the big model writes that one
                break
            drafted.append(token.item())
            text = torch.cat([text, token[:, None]], dim=-1)
        self.rollback.take_back(len(passes))
        inputs = self._inputs_of(turn.outputs, text, len(drafted), len(drafted) + 1)
        outputs, done = self._read(BIG, inputs, step, passes)
        self._judge(outputs, step, done)
        passes.append(done)
        for each in passes:
            each.gamma = math.nan if gamma is None else gamma
        return Turn(outputs, passes, BIG, gamma, drafted, began)

    def _read(self, mode: str, inputs: dict, step: int, passes: list):
        return self._pass(mode, lambda: self._run(**inputs, return_dict=True), step, most_named(passes))

    def _drafts(self, keep) -> int:
        answer = ask(keep, "drafts", self._readings)
        if not hasattr(answer, "__index__") or answer.__index__() < 0:
            raise MobileError(
                f"the policy {keep!r} must answer `drafts` with how many tokens to draft, 0 or more, got {answer!r}."
            )
        return answer.__index__()

    def _ends(self) -> set[int]:
        """Tokens that end the text: nothing is drafted behind them."""
        ends = self._config.eos_token_id
        return set() if ends is None else set(torch.as_tensor(ends).reshape(-1).tolist())

    def _after(self, outputs, keywords: dict, tokens: int) -> dict:
        """The keywords of `generate` for a text that is longer by `tokens`."""
        if not tokens:
            return keywords
        return self._model._update_model_kwargs_for_generation(
            outputs, dict(keywords), is_encoder_decoder=False, num_new_tokens=tokens
        )

    def _inputs_of(self, outputs, text: torch.Tensor, drafted: int, read: int) -> dict:
        """What the model is given to read the last `read` tokens of a text whose last `drafted` are not in it yet."""
        keywords = self._after(outputs, self._keywords, drafted)
        inputs = self._model.prepare_inputs_for_generation(text, next_sequence_length=read, **keywords)
        if "logits_to_keep" in inputs:
            inputs["logits_to_keep"] = read
        return inputs


__all__ = ["Drafter"]
