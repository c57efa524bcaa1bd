"""The command `evaluate`: one evaluation as rows to print and numbers to keep."""

from __future__ import annotations

from pathlib import Path

import torch

from .. import systems
from ..model.find import embedded
from ..model.load import load
from ..runtime.batch import apart
from ..runtime.offload import offload
from . import metrics, tasks
from .evaluate import evaluate


def run(
    model: str,
    *,
    task: str,
    path: str | None,
    split: str,
    n: int,
    seed: int,
    gamma: float | None,
    fraction: float,
    slots: int | None,
    batch_size: int,
    max_new_tokens: int | None,
    save: Path | None,
) -> tuple[list[dict], dict]:
    """Evaluate; returns the table's row, as text, and all numbers. The arguments are those of the command line."""
    fields = {} if slots is None else {"slots": slots}
    config = systems.big(**fields) if gamma is None else systems.mobile(gamma, fraction=fraction, **fields)
    problems = tasks.load(task, split=split, n=n, seed=seed, path=path)
    if model in embedded():
        torch.set_num_threads(1)  # a second thread only waits on models of this size
    net, tokenizer = load(model)
    shared = {"seed": seed, "batch_size": batch_size, "max_new_tokens": max_new_tokens, "save": save}
    clock = {}
    if slots is None and not apart(net):
        result = evaluate(net, tokenizer, problems, config=config, **shared)
        how = f"plain transformers, batches of {batch_size}, {net.dtype}, on {net.device}"
    else:
        with offload(net, config, tokenizer=tokenizer) as engine:
            result = evaluate(engine, tokenizer, problems, **shared)
            clock = dict(result.device)
            if len(engine.trace.passes):  # measured, one text after the other
                clock = {"seconds_per_token": metrics.seconds_per_token(engine.trace.to_frame("steps"))}
            how = f"offloaded, {engine.slots} slots a layer; time {engine.trace.conditions['time']}"
    low, high = result.interval
    numbers = {
        "model": model, "task": task, "split": split, "n": result.n, "seed": seed, "gamma": gamma,
        "fraction": fraction if gamma is not None else None, "slots": slots, "accuracy": result.accuracy,
        "interval": [low, high], "fallback_ratio": result.fallback_ratio, "precision": result.precision,
        "conditions": f"Measured: greedy, n = {result.n} of the {split} split, seed {seed}; {how}.",
    } | clock  # fmt: skip
    row = {
        "task": task,
        "experts": "all K" if gamma is None else f"{fraction:g} K, all K below {gamma:g}",
        "right": f"{sum(s.right for s in result.solved)}/{result.n}",
        "accuracy": f"{100 * result.accuracy:.1f} % ({100 * low:.1f} to {100 * high:.1f})",
        "fallback": "-" if gamma is None else f"{100 * result.fallback_ratio:.1f} %",
        "router precision": " · ".join(f"{100 * each:.0f}" for each in result.precision) or "-",
    }
    return [row], numbers


__all__ = ["run"]
