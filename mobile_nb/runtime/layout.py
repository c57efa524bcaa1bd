"""Lays a selection of a tape out as a script for the scheduler.

Legend: P passes · L MoE layers · E experts · K experts routed to · T tokens of a pass.
"""

from __future__ import annotations

import numpy as np

from ..costs import Costs
from ..memory.script import Script
from ..vocabulary import BIG, LITTLE, PROMPT
from .config import MobileConfig
from .foresight import Foresight
from .tape import Selection, Tape


def layout(tape: Tape, selection: Selection, config: MobileConfig) -> dict:
    """All of a `Script` but its seconds; instead, as values and which of them, the tokens of each pass and expert."""
    asked_at, asked, amounts = _asked(tape, selection, config)
    found = {"asked_at": asked_at, "asked": asked}
    found["amounts"] = np.unique(amounts, return_inverse=True)
    found["tokens"] = np.unique(tape.tokens[selection.index], return_inverse=True)
    found["next_ask"], found["first_ask"] = uses(asked_at, asked, tape.layers, tape.experts)
    return found | Foresight(tape, selection, asked_at, asked).wanted(config)


def _asked(tape: Tape, selection: Selection, config: MobileConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bounds, experts and how many tokens each serves, in the order of asking."""
    index, layers = selection.index, tape.layers
    k = tape.ids.shape[2]
    runs = {mode: [config.count.run(mode, layer, k) for layer in range(layers)] for mode in (PROMPT, LITTLE, BIG)}
    many = {}  # prompts: (pass, layer) -> experts, amounts
    counts = np.zeros((len(index), layers), dtype=np.int64)
    chosen = np.where(tape.single[index, None, None], tape.best[index], -1)  # [P, L, K]
    modes = np.array([tape.passes[i].mode for i in index])
    for mode, answers in runs.items():
        rows = np.flatnonzero((modes == mode) & tape.single[index])
        for layer, (run, over) in enumerate(answers):
            counts[rows, layer] = run
            if run < k or over is not None:
                chosen[rows, layer] = -1
                chosen[rows, layer, :run] = tape.best[index[rows], layer, :run]
        if mode != PROMPT and getattr(config.count, "by_token", False):
            _by_token(config.count, mode, rows, tape, index, counts, chosen)
    for n in np.flatnonzero(~tape.single[index]):
        done = tape.passes[index[n]]
        for layer, (run, over) in enumerate(runs[done.mode]):
            many[n, layer] = _most_wanted(done.ids[layer], done.weights[layer], run, over)
            counts[n, layer] = len(many[n, layer][0])
    asked_at = np.concatenate([[0], counts.ravel().cumsum()])
    asked = np.empty(asked_at[-1], dtype=np.int64)
    amounts = np.ones(asked_at[-1], dtype=np.int64)
    single = np.repeat(np.repeat(tape.single[index], layers), counts.ravel())
    asked[single] = chosen[chosen >= 0]
    for (n, layer), (experts, served) in many.items():
        here = slice(*asked_at[n * layers + layer :][:2])
        asked[here], amounts[here] = experts, served
    return asked_at, asked, amounts


def _by_token(count, mode: str, rows: np.ndarray, tape: Tape, index: np.ndarray, counts, chosen) -> None:
    """What a count policy says of each token, from its weights."""
    k = tape.ids.shape[2]
    for n in rows.tolist():
        weights = np.sort(tape.passes[index[n]].weights[:, -1], axis=1)[:, ::-1].tolist()
        for layer, told in enumerate(weights):
            run, over = count.run(mode, layer, k, told)
            counts[n, layer] = run
            if run < k or over is not None:
                chosen[n, layer] = -1
                chosen[n, layer, :run] = tape.best[index[n], layer, :run]


def costed(layout: dict, costs: Costs | None) -> Script:
    """A script from its layout: seconds for tokens; without costs, where time decides nothing, no seconds."""
    rest = {name: value for name, value in layout.items() if name not in ("amounts", "tokens")}
    expert_s, layer_s, head_s = (costs.expert_s, costs.layer_s, costs.head_s) if costs else [lambda tokens: 0.0] * 3
    return Script(
        asked_s=_by_value(layout["amounts"], expert_s),
        layer_s=_by_value(layout["tokens"], layer_s),
        head_s=_by_value(layout["tokens"], head_s),
        **rest,
    )


def _by_value(amounts: tuple[np.ndarray, np.ndarray], seconds) -> np.ndarray:
    values, which = amounts
    return np.array([seconds(int(value)) for value in values], dtype=float)[which]


def _most_wanted(ids: np.ndarray, weights: np.ndarray, run: int, over) -> tuple[np.ndarray, np.ndarray]:
    """The experts that several tokens [T, K] ask for, the most wanted first, and by how many."""
    if run < ids.shape[1] or over is not None:
        ids = np.take_along_axis(ids, np.argsort(-weights, axis=1, kind="stable")[:, :run], axis=1)
    experts, amounts = np.unique(ids, return_counts=True)
    order = np.argsort(-amounts, kind="stable")
    return experts[order], amounts[order]


def uses(asked_at: np.ndarray, asked: np.ndarray, layers: int, experts: int) -> tuple[np.ndarray, np.ndarray]:
    """For each asked expert the number of the pass that asks its layer for it next, and [L, E] for it first."""
    cell = np.repeat(np.arange(len(asked_at) - 1), np.diff(asked_at))
    number, key = cell // layers, cell % layers * experts + asked
    order = np.argsort(key, kind="stable")
    again = key[order][1:] == key[order][:-1]
    after = np.full(len(asked), np.inf)
    after[order[:-1][again]] = number[order[1:][again]]
    first = np.full(layers * experts, np.inf)
    starts = order[np.concatenate([[True], ~again])] if len(order) else order
    first[key[starts]] = number[starts]
    return after, first.reshape(layers, experts)


__all__ = ["costed", "layout", "uses"]
