"""Lets an engine or a plain model write many prompts, in one form; knows nothing about tasks."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

from ..runtime.batch import BatchDecoder, Row, apart, installed
from ..runtime.config import MobileConfig
from ..runtime.engine import Engine
from ..runtime.offload import offload
from ..vocabulary import BIG, LITTLE, MobileError

Written = tuple[list[Row], list[float], int]  # the rows, experts in common a layer, fallbacks


@contextmanager
def writer_of(engine_or_model, tokenizer, config: MobileConfig) -> Iterator[_EngineWriter | _ModelWriter]:
    """A writer, for as long as the block is open; a model is given back as it was.

    Raises:
        TypeError: neither an engine nor a model.   MobileError: a model that cannot be served.
    """
    if isinstance(engine_or_model, Engine) and not engine_or_model.batches:
        yield _EngineWriter(engine_or_model, tokenizer)
    elif isinstance(engine_or_model, Engine):
        with engine_or_model.batch() as decoder:
            yield _ModelWriter(decoder, tokenizer)
    elif hasattr(engine_or_model, "generate") and hasattr(engine_or_model, "config"):
        if apart(engine_or_model):  # it runs offloaded or not at all
            with offload(engine_or_model, config, tokenizer=tokenizer) as engine:
                yield _EngineWriter(engine, tokenizer)
            return
        with installed(engine_or_model, config) as decoder:
            yield _ModelWriter(decoder, tokenizer)
    else:
        raise TypeError(f"an Engine or a transformers model is needed, got a {type(engine_or_model).__name__}.")


class _ModelWriter:
    together = True

    def __init__(self, decoder: BatchDecoder, tokenizer):
        self.decoder, self.tokenizer, self.top_k = decoder, tokenizer, decoder.top_k
        if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
            raise MobileError("this tokenizer has no token to pad with; set tokenizer.pad_token.")

    def write(self, prompts: Sequence[str], longest: int, stop: Sequence[str]) -> Written:
        tokenizer, before, pad = self.tokenizer, self.tokenizer.padding_side, self.tokenizer.pad_token
        try:
            tokenizer.padding_side = "left"
            if pad is None:
                tokenizer.pad_token = tokenizer.eos_token
            inputs = tokenizer(list(prompts), return_tensors="pt", padding=True, return_token_type_ids=False)
        finally:
            tokenizer.padding_side = before
            if pad is None:
                tokenizer.pad_token = None
        more = {"stop_strings": list(stop), "tokenizer": tokenizer} if stop else {}
        agreement = self.decoder.agreement
        shared, fallbacks = agreement.shared.clone(), agreement.fallbacks
        rows = self.decoder.write(inputs.to(self.decoder.model.device), max_new_tokens=longest, **more)
        return rows, (agreement.shared - shared).tolist(), agreement.fallbacks - fallbacks


class _EngineWriter:
    together = False

    def __init__(self, engine: Engine, tokenizer):
        self.engine, self.tokenizer = engine, tokenizer
        self.top_k = engine.trace.conditions["top_k"]
        keep = engine.config.keep
        self._gamma = {} if engine.gamma is None else {"keep": replace(keep, gamma=engine.gamma)}

    def write(self, prompts: Sequence[str], longest: int, stop: Sequence[str]) -> Written:
        rows, passes = [], len(self.engine.trace.passes)
        more = {"stop_strings": list(stop), "tokenizer": self.tokenizer} if stop else {}
        for prompt in prompts:
            if not self.engine.measured:  # on an empty device, as in a batch
                self.engine.change(replace(self.engine.config, **self._gamma))
                passes = 0
            inputs = self.tokenizer(prompt, return_tensors="pt")
            steps = self.engine.generate(inputs, max_new_tokens=longest, do_sample=False, **more).steps
            device = {} if self.engine.measured else _account(steps[1:])
            facts = ([getattr(s, name) for s in steps] for name in ("token_id", "confidence", "fell_back"))
            rows.append(Row(*facts, device))
        shared, fallbacks = [0.0] * self.engine.trace.conditions["layers"], 0
        added = self.engine.trace.passes[passes:]
        for little, big in pairwise(added):
            if little.mode == LITTLE and big.mode == BIG and big.ids.shape[1] == 1:
                fallbacks += 1
                both = little.ids[:, 0, :, None] == big.ids[:, 0, None, :]  # [L, K, K]
                shared = [a + float(b) for a, b in zip(shared, both.sum((1, 2)), strict=True)]
        return rows, shared, fallbacks


def _account(steps) -> dict[str, float]:
    """As `Fleet.account`, of some steps; what computation alone takes is not told apart."""
    hits, requests = (sum(s.hits for s in steps), sum(s.hits + s.misses + s.host for s in steps))
    seconds, moved = sum(s.seconds for s in steps), sum(s.bytes_moved for s in steps)
    return {"seconds": seconds, "computing_s": math.nan, "bytes": moved, "requests": requests, "hits": hits}


def fingerprint(model) -> str:
    """Eight digits that tell models apart: of the architecture and of the weights that are no experts."""
    if not hasattr(model, "named_parameters"):
        raise TypeError(f"an Engine or a transformers model is needed, got a {type(model).__name__}.")
    number = zlib.crc32(type(model).__name__.encode())
    for name, parameter in model.named_parameters():
        if "experts" not in name:
            number = zlib.crc32(
                f"{name} {tuple(parameter.shape)} {parameter.float().sum().item():.6g}".encode(), number
            )
    return f"{number:08x}"


__all__ = ["fingerprint", "writer_of"]
