"""Problems with exactly checkable answers, made from a seed; knows nothing about models, tokenizers or torch.

    >>> problem = load("word-problems", n=1)[0]
    >>> problem.check(problem.solution)
    True

"word-problems" is the offline stand-in for GSM8K: stories of several arithmetic steps over the numbers 0 to 99, worked
out step by step. Two words in the working of each step are free by design, drawn uniformly, and no model of any size
can predict them; everything else follows from the problem. "small-functions" is the stand-in for HumanEval: a one-line
specification becomes a short Python function, which hidden tests are run on; the name of a variable, whether a loop is
written out and which side of a sum comes first are free. "gsm8k" and "humaneval" are the real ones, where a hub or a
local copy is at hand.

The splits are disjoint by construction: a hash of the chain of equations that solves a story, or of what a function
returns for fixed arguments, decides the split. So no test problem has a chain, or a behaviour, that occurs in training.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from random import Random

from . import functions, sandbox, word_problems
from .problem import FunctionProblem, Problem, body
from .real import HOMES, load_real

__all__ = ["NAMES", "SPLITS", "FunctionProblem", "Problem", "body", "check_all", "load", "split_of"]

SPLITS = ("train", "validation", "test")
NAMES = ("small-functions", "word-problems")


def check_all(problems: Sequence[Problem], texts: Sequence[str]) -> list[bool]:
    """`check` of each problem with its text; faster, because code is run many functions a process."""
    right = [
        isinstance(p, FunctionProblem) and body(t) == body(p.solution) for p, t in zip(problems, texts, strict=True)
    ]
    code = [at for at, p in enumerate(problems) if isinstance(p, FunctionProblem) and not right[at]]
    answers = sandbox.run_all([problems[at].job(texts[at]) for at in code])
    for at, answer in zip(code, answers, strict=True):
        right[at] = problems[at].differs(answer) is None
    others = [at for at, p in enumerate(problems) if not isinstance(p, FunctionProblem)]
    for at in others:
        right[at] = problems[at].check(texts[at])
    return right


def load(
    name: str,
    *,
    split: str = "test",
    n: int | None = None,
    seed: int = 0,
    path: str | None = None,
    columns: dict[str, str] | None = None,
) -> list[Problem]:
    """Return the first `n` (by default 1000) problems of a task's split; the same arguments give the same problems.

    Args:
        name: "word-problems" or "small-functions", made here; "gsm8k" or "humaneval", read through `datasets`; or any
            other name of a data set of questions, together with `columns`.
        split: "train", "validation" or "test"; of a data set what it calls its splits.
        n: of a data set, so many drawn by the seed; None for all.
        path: a local copy of a data set: a .jsonl, .json, .csv or .parquet file, or a folder that `datasets` saved.
        columns: names of a data set's columns where they differ: {"question": ..., "answer": ...}, of HumanEval's kind
            {"prompt": ..., "solution": ..., "tests": ..., "function": ...}.

    Raises:
        ValueError: a task, split or number that does not exist.   MobileError: a data set that cannot be read.
    """
    if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
        raise ValueError(f"the number of problems n must be a whole number of at least 1, but it is {n!r}")
    if name in HOMES or (columns is not None and name not in NAMES):
        return load_real(name, split=split, n=n, seed=seed, path=path, columns=columns)
    if name not in NAMES:
        known = ", ".join([*NAMES, *HOMES])
        raise ValueError(
            f"there is no task named {name!r}; the tasks are: {known}; of another data set name its columns="
        )
    if path is not None or columns is not None:
        raise ValueError(f"the task {name!r} is made here, so it takes no path= and no columns=")
    if split not in SPLITS:
        raise ValueError(f"there is no split named {split!r}; the splits are: {', '.join(SPLITS)}")
    return [_problem(name, Random(f"{name}/{split}/{seed}/{index}"), split) for index in range(n or 1000)]


def split_of(chain: str) -> str:
    """The split that a chain of equations such as "4*6=24;24-5=19" belongs to: 80 % train, 10 % each for the others."""
    return {0: "test", 1: "validation"}.get(zlib.crc32(chain.encode()) % 10, "train")


def _problem(name: str, rng: Random, split: str) -> Problem:
    while name == "word-problems":
        drawn = word_problems.draft(rng)
        if split_of(drawn.chain) == split:
            return Problem(drawn.prompt, drawn.answer, drawn.steps, drawn.solution)
    while True:
        code = functions.draft(rng)
        if split_of(code.behaviour) == split:
            return FunctionProblem(code.prompt, code.solution, code.steps, code.solution, code.family)
