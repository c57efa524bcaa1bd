"""Endless, reproducible training batches: problems become rows of tokens, grouped by length to need little padding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from mobile_nb.analysis import tasks

CHUNK = 3072  # problems drawn, sorted by length and cut into batches at a time
WIDTH_STEP = 16  # widths are multiples of this, so that kernels see few shapes


@dataclass(frozen=True)
class Batch:
    """Right-padded rows. ids [rows, width]; weights [rows, width] of each token's loss, 0 on padding."""

    ids: Tensor
    weights: Tensor
    place: tuple[int, int]  # chunk and position in it, enough to continue after this batch


def _chunk(tokenizer: PreTrainedTokenizerFast, seed: int, number: int, tokens: int, question_weight: float) -> list:
    place = 1_000_000 * (seed + 1) + number
    problems = [p for name in tasks.NAMES for p in tasks.load(name, split="train", n=CHUNK // 2, seed=place)]
    prompts = tokenizer([p.prompt for p in problems]).input_ids
    solutions = tokenizer([p.solution for p in problems]).input_ids
    rows = [(p, s + [tokenizer.eos_token_id]) for p, s in zip(prompts, solutions, strict=True)]
    rows.sort(key=lambda row: len(row[0]) + len(row[1]))
    made = []
    while rows:
        width = -(-(len(rows[-1][0]) + len(rows[-1][1])) // WIDTH_STEP) * WIDTH_STEP
        take = max(1, tokens // width)
        part, rows = rows[-take:], rows[:-take]
        ids = torch.full((len(part), width), tokenizer.pad_token_id)
        weights = torch.zeros(len(part), width)
        for i, (prompt, solution) in enumerate(part):
            end = len(prompt) + len(solution)
            ids[i, :end] = torch.tensor(prompt + solution)
            weights[i, : len(prompt)] = question_weight
            weights[i, len(prompt) : end] = 1.0
        made.append((ids, weights))
    Random(f"order/{seed}/{number}").shuffle(made)
    return made


def stream(
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    tokens: int,
    question_weight: float,
    after: tuple[int, int] | None = None,
) -> Iterator[Batch]:
    """Yield batches of about `tokens` tokens (padding included) for ever, continuing after the place `after`."""
    chunk, position = (after[0], after[1] + 1) if after else (0, 0)
    while True:
        made = _chunk(tokenizer, seed, chunk, tokens, question_weight)
        for number in range(position, len(made)):
            yield Batch(*made[number], place=(chunk, number))
        chunk, position = chunk + 1, 0
