"""Routing from a recording in the place of what random routers say, so that experts come again as often as they do.

Random weights route almost evenly: a cache finds little. A recording of a small trained model with as many experts has
the repetition of a text. It holds both passes of each token, and what gates said ahead of time.

Legend: N tokens · L layers of the recording · K experts of the model · A layers ahead.
"""

from __future__ import annotations

import numpy as np
import torch

from ..files import data_path
from ..trace import Trace
from ..vocabulary import BIG, LITTLE, PROMPT, MobileError

SHIPPED = {(64, 8): "tiny-olmoe", (60, 4): "tiny-qwen2-moe", (64, 6): "tiny-olmoe", (128, 8): "tiny-qwen3-moe"}


class Recording:
    """What to say in a router's place, for a model of `layers` MoE layers of `experts` experts, `top_k` of which run.

    Layer l of the model is routed as layer l * L // layers of the recording, the rest of its ranks cut off. A gate that
    is asked ahead says what the recording's next gate said; for the first layer, which no gate foresees, it errs as
    often as the next one does.

    Args:
        trace: of a run with gamma above 1: each token as the little and as the big model.

    Raises:
        MobileError: the recording is of another number of experts, or lacks a pass.
    """

    def __init__(self, trace: Trace, *, layers: int, experts: int, top_k: int, device, name: str = "a recording"):
        about = trace.conditions
        if about["experts"] != experts or about["top_k"] < top_k:
            raise MobileError(
                f"{name} has {about['top_k']} of {about['experts']} experts a token, and the model {top_k} of "
                f"{experts}: its routing cannot be replayed."
            )
        pairs = [
            (a, b)
            for a, b in zip(trace.passes, trace.passes[1:], strict=False)
            if (a.mode, b.mode) == (LITTLE, BIG) and (a.request, a.step) == (b.request, b.step)
        ]
        prompts = [done for done in trace.passes if done.mode == PROMPT]
        if not pairs or not prompts:
            raise MobileError(f"{name} does not hold both passes of its tokens: record it with gamma above 1.")
        self.name, self.experts, self.count, self.layers = name, experts, len(pairs), about["layers"]
        self._from = [at * self.layers // layers for at in range(layers)]
        self._said: dict[str, np.ndarray] = {}
        self._tables: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for mode, found in ((LITTLE, [a for a, _ in pairs]), (BIG, [b for _, b in pairs])):
            ids, weights = (
                np.stack(part) for part in zip(*(_best(p.ids, p.weights, top_k) for p in found), strict=True)
            )
            self._said[mode] = ids[:, :, 0]  # [N, L, K]
            self._tables[mode] = torch.as_tensor(ids, device=device), torch.as_tensor(weights, device=device)
        ids, weights = _best(
            *(np.concatenate([getattr(p, n) for p in prompts], axis=1) for n in ("ids", "weights")), top_k
        )
        self._tables[PROMPT] = torch.as_tensor(ids, device=device), torch.as_tensor(weights, device=device)
        self._gates = [None if b.gates is None else b.gates[0, :, :top_k].astype(int) for _, b in pairs]
        self.token = -1

    @staticmethod
    def shipped(**sizes) -> Recording | None:
        """The recording in data/traces that fits these sizes, or None."""
        name = SHIPPED.get((sizes["experts"], sizes["top_k"]))
        path = data_path("traces", f"{name}.parquet")
        return Recording(Trace.load(path), name=f"the trace of {name}", **sizes) if path.is_file() else None

    def put_into(self, engine) -> None:
        """Has an engine's layers routed so, until it is closed."""
        server, self.token = engine._server, -1
        for at, layer in enumerate(server.layers):
            place = layer.block.experts
            place._serve = lambda hidden, index, weights, at=at, serve=place._serve: serve(
                hidden, *self._instead(server, at, index, weights)
            )
        real = server.view.gate
        server.view.gate = lambda layer: (real(layer), self._gate(server.view, layer))[1]  # reading one takes its time

    def _instead(self, server, at: int, index: torch.Tensor, weights: torch.Tensor):
        mode = server.mode
        if mode is None:
            return index, weights
        if at == 0 and (mode == LITTLE or (mode == BIG and server.view.evicted is None)):
            self.token += 1
        ids, scores = self._tables[mode]
        if mode == PROMPT:  # [L, all prompts' tokens, K]
            some = torch.arange(len(index), device=index.device) % ids.shape[1]
            ids, scores = ids[self._from[at]][some], scores[self._from[at]][some]
        else:
            ids, scores = (table[self.token % self.count, self._from[at]] for table in (ids, scores))
        return ids.to(index.dtype), scores.to(weights.dtype)

    def _gate(self, view, layer: int) -> list[int]:
        token, at = self.token % self.count, self._from[layer]
        right = self._said[view.mode][token]
        gates = self._gates[token]
        if gates is None or self.layers < 2:
            raise MobileError(f"{self.name} holds no gates ahead, so systems that read them cannot be scripted.")
        said = gates[at].tolist()
        if at == 0:  # nobody foresees it: as many errors as one layer further on
            wrong = ~np.isin(gates[1], right[1])
            others = iter([e for e in range(self.experts) if e not in right[0]])
            said = [next(others) if bad else int(e) for e, bad in zip(right[0], wrong, strict=True)]
        if layer > view.at:
            view.read[layer - view.at, layer] = said
        return said


def _best(ids: np.ndarray, weights: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of each token [L, T, K], best first."""
    order = np.argsort(-weights, axis=2, kind="stable")[:, :, :k]
    return np.take_along_axis(ids, order, axis=2).astype(np.int64), np.take_along_axis(weights, order, axis=2)


__all__ = ["Recording"]
