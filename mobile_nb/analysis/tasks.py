"""Problems with exactly checkable answers, made from a seed; knows nothing about models, tokenizers or torch.

    >>> problem = load("word-problems", n=1)[0]
    >>> problem.check(problem.solution)
    True

"word-problems" is the offline stand-in for GSM8K: stories of two to six arithmetic steps over the numbers 0 to 99,
worked out step by step. The splits are disjoint by construction: a hash of the chain of equations that solves a
problem decides which split it belongs to, so no test problem has a chain that occurs in training.

One word in the working of each step is free by design ("So", "Then" or "Now", drawn uniformly): about one written
token in eleven, which no model of any size can predict. Everything else follows from the problem.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from mobile_nb.analysis import word_problems

__all__ = ["NAMES", "SPLITS", "Problem", "load", "split_of"]

SPLITS = ("train", "validation", "test")
_DRAFTS: dict[str, Callable[[Random], word_problems.Draft]] = {"word-problems": word_problems.draft}
NAMES = tuple(sorted(_DRAFTS))


@dataclass(frozen=True)
class Problem:
    """One question with its answer: `solution` is the text that rightly follows `prompt`, `steps` its difficulty."""

    prompt: str
    answer: str
    steps: int
    solution: str

    def check(self, text: str) -> bool:
        """Whether a generated continuation of the prompt gives exactly the right final answer; its first one counts."""
        found = re.search(r"\bThe answer is (\d+)\b", text)
        return found is not None and found.group(1) == self.answer


def load(name: str, *, split: str = "test", n: int | None = None, seed: int = 0) -> list[Problem]:
    """Return the first `n` (by default 1000) problems of a task's split; the same arguments give the same problems.

    Raises ValueError for a task, split or number that does not exist.
    """
    if name not in _DRAFTS:
        raise ValueError(f"there is no task named {name!r}; the tasks are: {', '.join(NAMES)}")
    if split not in SPLITS:
        raise ValueError(f"there is no split named {split!r}; the splits are: {', '.join(SPLITS)}")
    if n is None:
        n = 1000
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"the number of problems n must be a whole number of at least 1, but it is {n!r}")
    return [_problem(_DRAFTS[name], Random(f"{name}/{split}/{seed}/{index}"), split) for index in range(n)]


def split_of(chain: str) -> str:
    """The split that a chain of equations such as "4*6=24;24-5=19" belongs to: 80 % train, 10 % each for the others."""
    return {0: "test", 1: "validation"}.get(zlib.crc32(chain.encode()) % 10, "train")


def _problem(draft: Callable[[Random], word_problems.Draft], rng: Random, split: str) -> Problem:
    while True:
        drawn = draft(rng)
        if split_of(drawn.chain) == split:
            return Problem(drawn.prompt, drawn.answer, drawn.steps, drawn.solution)
