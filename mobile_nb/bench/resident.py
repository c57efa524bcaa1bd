"""Measured on this machine: is the runtime free when everything fits?"""

from __future__ import annotations

import itertools
import platform
import statistics
import time
from importlib.metadata import version

import torch

from .. import systems
from ..model.load import load
from ..model.tiny import random_model
from ..runtime.offload import offload

LARGE = {  # about 218 M parameters
    "hidden_size": 512,
    "intermediate_size": 256,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 8192,
    "max_position_embeddings": 1024,
}


def resident(tokens: int = 100, repeats: int = 5, *, static: bool = False) -> list[dict]:
    """Decoding with every expert in a slot and the trace on, beside transformers' `generate` on the same model.

    The two take turns in one process, greedy, from a 20-token prompt; milliseconds a token of the wall clock, medians;
    `ratio` is the median of the pairwise ratios of tokens/s. static: each model once more with a static KV cache of
    the text's own length.
    """
    threads = torch.get_num_threads()
    conditions = (
        f"measured on {platform.machine()} CPU, {threads} thread{'s' * (threads > 1)}, float32, "
        f"torch {torch.__version__}, transformers {version('transformers')}, Python {platform.python_version()}"
    )
    prompt = torch.randint(3, 500, (1, 20), generator=torch.Generator().manual_seed(0))
    words = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    rows = []
    models = (
        ("tiny-olmoe", load("tiny-olmoe", device="cpu")[0]),
        ("random, 218 M", random_model("olmoe", **LARGE)),
    )
    for (name, model), length in itertools.product(models, (None, prompt.shape[1] + tokens) if static else (None,)):
        theirs, ours = [], []
        for _ in range(repeats + 1):  # the first pair warms up
            theirs.append(_ms_a_token(lambda model=model: model.generate(prompt, **words), tokens))
            with offload(model, systems.on_demand(slots=10_000), static=length) as engine:
                ours.append(_ms_a_token(lambda engine=engine: engine.generate(prompt, **words), tokens))
        pairs = [a / b for a, b in zip(theirs[1:], ours[1:], strict=True)]
        rows.append(
            {
                "model": name + (", static cache" if length else ""),
                "static": length,
                "parameters": sum(p.numel() for p in model.parameters()),
                "transformers_ms": statistics.median(theirs[1:]),
                "mobile_nb_ms": statistics.median(ours[1:]),
                "ratio": statistics.median(pairs),
                "pairs": pairs,
                "conditions": conditions,
            }
        )
    return rows


def _ms_a_token(work, tokens: int) -> float:
    start = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - start) / tokens


__all__ = ["resident"]
