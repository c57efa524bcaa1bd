"""Both models on the same text: where they would write another token, and how sure each is. Needs the model.

The text is given (teacher forcing), so positions can be compared one by one. The little model reads all of it with its
few experts; in a live run of MoBiLE the tokens that fell back, and the prompt, were read with all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..model.adapters import find_layers
from ..policies import Fraction
from ..runtime.batch import installed
from ..runtime.config import MobileConfig
from ..vocabulary import BIG, LITTLE, whole
from .problem import Problem


def forced(model, tokenizer, problems: Sequence[Problem], *, experts: int, top: int = 5):
    """The K experts and fewer of them, on the solutions of some problems.

    Args:
        model: a transformers model; it is given back as it was.
        experts: how many the little model runs, 1 to K.
        top: alternatives to keep of each position.

    Returns:
        A frame, a row for each token of a solution: problem, position, token (its text), big and little (the most
        probable token's text), agree (whether they are the same), confidence_big, confidence_little, kl (nats, of the
        little distribution from the big one), and top_big, top_little (lists of (text, probability)).
    """
    import pandas as pd

    whole("experts", experts)
    rows, k = [], find_layers(model)[0].top_k
    count = Fraction(experts / k, prompt=experts / k)
    with installed(model, MobileConfig(count=count)) as decoder, torch.inference_mode():
        for n, problem in enumerate(problems):
            start = len(tokenizer(problem.prompt).input_ids)
            ids = tokenizer(problem.prompt + problem.solution, return_tensors="pt").input_ids
            laws = {}
            for mode in (BIG, LITTLE):
                decoder.use([mode])
                logits = model(ids.to(model.device), use_cache=False).logits[0, start - 1 : -1]
                laws[mode] = logits.float().log_softmax(-1).cpu()
            kl = (laws[BIG].exp() * (laws[BIG] - laws[LITTLE])).sum(-1)
            best = {mode: law.exp().topk(top) for mode, law in laws.items()}
            for at, token in enumerate(ids[0, start:].tolist()):
                tops = {mode: _said(tokenizer, best[mode], at) for mode in laws}
                rows.append(
                    {
                        "problem": n, "position": at, "token": tokenizer.decode([token]),
                        "big": tops[BIG][0][0], "little": tops[LITTLE][0][0],
                        "agree": bool(best[BIG].indices[at, 0] == best[LITTLE].indices[at, 0]),
                        "confidence_big": tops[BIG][0][1], "confidence_little": tops[LITTLE][0][1],
                        "kl": float(kl[at]), "top_big": tops[BIG], "top_little": tops[LITTLE],
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def _said(tokenizer, best, at: int) -> list[tuple[str, float]]:
    found = zip(best.indices[at].tolist(), best.values[at].tolist(), strict=True)
    return [(tokenizer.decode([token]), probability) for token, probability in found]


__all__ = ["forced"]
