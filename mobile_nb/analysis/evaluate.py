"""How many problems of a task a model solves, how sure of each token it was, and how often it fell back.

    >>> model, tokenizer = mobile_nb.load("tiny-olmoe")
    >>> result = mobile_nb.evaluate(model, tokenizer, "word-problems", n=100, config=mobile_nb.systems.mobile(0.7))
    >>> result.accuracy, result.interval, result.fallback_ratio

Texts are written in batches, in which each row falls back on its own. With an engine each of them has a simulated
device of its own, empty at first, so that what is resident, and what it costs, is what it would be alone; where the
engine's time is measured, texts are written one after the other.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..files import written_whole
from ..runtime.config import MobileConfig
from ..runtime.engine import Engine
from ..vocabulary import MobileError, whole
from . import tasks
from .writers import fingerprint, writer_of

__all__ = ["Evaluation", "Solved", "evaluate", "wilson"]


@dataclass(frozen=True)
class Solved:
    """One problem, by its place in the task: what was written and whether it is right.

    steps: its difficulty.   confidences: the largest probability of each token as it was first written (the little
    model's, where there is one).   fell_back: of each token. The first token of a text comes from the prompt pass.
    device: what the tokens after it cost on an engine's device: seconds, computing_s, bytes, requests, hits,
    prefetches, used.
    """

    problem: int
    prompt: str
    text: str
    right: bool
    steps: int
    token_ids: list[int]
    confidences: list[float]
    fell_back: list[bool]
    device: dict[str, float] = field(default_factory=dict)


@dataclass
class Evaluation:
    """The problems of one evaluation, in order. conditions: what was asked, as plain values."""

    solved: list[Solved]
    conditions: dict = field(default_factory=dict)
    fallbacks: int = 0
    shared: list[float] = field(default_factory=list)  # a layer each: experts in common, summed over fallbacks

    @property
    def n(self) -> int:
        return len(self.solved)

    @property
    def accuracy(self) -> float:
        """Share of problems solved, in [0, 1]."""
        return sum(each.right for each in self.solved) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson score interval of the accuracy."""
        return wilson(sum(each.right for each in self.solved), self.n)

    @property
    def fallback_ratio(self) -> float:
        """Share of the tokens after each text's first that the big model wrote again; 0 without a little model."""
        later = [again for each in self.solved for again in each.fell_back[1:]]
        return sum(later) / max(1, len(later))

    @property
    def device(self) -> dict[str, float]:
        """Simulated, of an engine's device, a token after each text's first: seconds_per_token, computing_per_token
        (the seconds of computation alone; the rest is stall), bytes_per_token, hit_rate. Empty for a model."""
        tokens = sum(len(each.token_ids) - 1 for each in self.solved)
        if not tokens or not self.solved[0].device:
            return {}
        of = {name: sum(each.device[name] for each in self.solved) for name in self.solved[0].device}
        return {
            "seconds_per_token": of["seconds"] / tokens, "computing_per_token": of["computing_s"] / tokens,
            "bytes_per_token": of["bytes"] / tokens, "hit_rate": of["hits"] / max(1, of["requests"]),
        }  # fmt: skip

    @property
    def precision(self) -> list[float]:
        """For each layer, the share of the big pass's K experts that the evicted token's router had ranked in its first
        K, in [0, 1]; both lists are K long, so it is precision and recall. Empty where nothing fell back."""
        return [each / (self.fallbacks * self.conditions["top_k"]) for each in self.shared] if self.fallbacks else []

    def to_frame(self, what: str = "problems"):
        """A pandas frame, one row a problem, or a token with what="tokens"; `.attrs` holds the conditions.

        Columns: problem, steps, right, tokens, fallback_ratio, text; or problem, position, token_id, confidence,
        fell_back, right.
        """
        import pandas as pd

        if what not in ("problems", "tokens"):
            raise ValueError(f"a frame is of 'problems' or of 'tokens', got {what!r}.")
        if what == "problems":
            rows = [
                {
                    "problem": s.problem, "steps": s.steps, "right": s.right, "tokens": len(s.token_ids),
                    "fallback_ratio": sum(s.fell_back[1:]) / max(1, len(s.fell_back) - 1), "text": s.text,
                }
                for s in self.solved
            ]  # fmt: skip
        else:
            rows = [
                {"problem": s.problem, "position": p, "token_id": t, "confidence": c, "fell_back": f, "right": s.right}
                for s in self.solved
                for p, (t, c, f) in enumerate(zip(s.token_ids, s.confidences, s.fell_back, strict=True))
            ]
        frame = pd.DataFrame(rows)
        frame.attrs.update(self.conditions)
        return frame


def wilson(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson score interval of a share; z = 1.96 for 95 %."""
    share, spread = right / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def evaluate(
    engine_or_model,
    tokenizer,
    task: str | Sequence[tasks.Problem],
    *,
    n: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
    config: MobileConfig | None = None,
    split: str = "test",
    max_new_tokens: int | None = None,
    save: str | Path | None = None,
    progress: bool = True,
) -> Evaluation:
    """Solves `n` problems of a task, greedily.

    Args:
        engine_or_model: an `Engine`, under its own config; or a model. One whose experts lie elsewhere than the rest,
            as `load` leaves it for a card, writes through an engine, one text at a time.
        task: a task's name (see `tasks.load`) or problems.
        batch_size: texts written at once, 1 or more; it changes time, never texts.
        config: of a model: whose count and keep policies to follow, such as `systems.mobile(0.7)`; None for all K.
        max_new_tokens: most tokens a text; None for what the task needs.
        save: a file for the results so far. Where it holds those of the same evaluation, that one goes on.
        progress: show a bar.

    Raises:
        ValueError, TypeError, MobileError: arguments that do not fit; one sentence says which.
    """
    whole("batch_size", batch_size)
    problems = tasks.load(task, split=split, n=n, seed=seed) if isinstance(task, str) else list(task)
    if not problems:
        raise ValueError("there are no problems to solve: give a task's name or at least one problem.")
    if tokenizer is None:
        raise TypeError("a tokenizer is needed to read problems, got None.")
    engine = engine_or_model if isinstance(engine_or_model, Engine) else None
    if engine is not None and config is not None:
        raise ValueError("an engine has its config already; give config= with a model.")
    used = engine.config if engine is not None else config or MobileConfig()
    conditions = {
        "task": task if isinstance(task, str) else "problems", "split": split, "n": len(problems), "seed": seed,
        "count": repr(used.count), "keep": repr(used.keep) if used.two_passes else None, "miss": repr(used.miss),
        "codec": repr(used.codec), "gamma": engine.gamma if engine is not None else getattr(used.keep, "gamma", None),
        "model": fingerprint(engine.model if engine is not None else engine_or_model),
        "problems": hashlib.sha256("\0".join(p.prompt for p in problems).encode()).hexdigest()[:16],
    }  # fmt: skip
    order = sorted(range(len(problems)), key=lambda at: len(problems[at].prompt))  # alike in length, little padding
    longest = max_new_tokens or max(p.longest for p in problems)
    with writer_of(engine_or_model, tokenizer, used) as writer:
        conditions["top_k"] = writer.top_k
        results = _saved(save, conditions) or Evaluation([], conditions)
        with _bar(len(problems), results.n, progress) as bar:
            while results.n < len(problems):
                places = order[results.n : results.n + (batch_size if writer.together else 1)]
                part = [problems[at] for at in places]
                rows, shared, fallbacks = writer.write([p.prompt for p in part], longest, part[0].stop)
                texts = [tokenizer.decode(row.token_ids, skip_special_tokens=True) for row in rows]
                rights = tasks.check_all(part, texts)
                for at, p, row, text, right in zip(places, part, rows, texts, rights, strict=True):
                    results.solved.append(Solved(at, p.prompt, text, right, p.steps, **asdict(row)))
                results.fallbacks += fallbacks
                results.shared = [a + b for a, b in zip(results.shared or [0] * len(shared), shared, strict=True)]
                if save is not None:
                    with written_whole(save) as temporary:
                        temporary.write_text(json.dumps(asdict(results)), encoding="utf-8")
                bar.update(len(part))
                bar.set_postfix(accuracy=f"{results.accuracy:.3f}")
    results.solved.sort(key=lambda each: each.problem)
    return results


def _saved(path: str | Path | None, conditions: dict) -> Evaluation | None:
    """What an interrupted run of the same evaluation had saved."""
    if path is None or not Path(path).exists():
        return None
    try:
        kept = json.loads(Path(path).read_text(encoding="utf-8"))
        found = Evaluation(**(kept | {"solved": [Solved(**each) for each in kept["solved"]]}))
    except (ValueError, TypeError, KeyError, AttributeError) as problem:
        raise MobileError(f"{path} holds no saved evaluation; give another file, or remove this one.") from problem
    if found.conditions != conditions:
        other = next(k for k in {**conditions, **found.conditions} if found.conditions.get(k) != conditions.get(k))
        raise MobileError(
            f"{path} holds another evaluation ({other}: {found.conditions.get(other)!r}, now "
            f"{conditions.get(other)!r}); give another file, or remove this one."
        )
    return found


def _bar(total: int, done: int, shown: bool):
    from tqdm.auto import tqdm

    return tqdm(total=total, initial=done, desc="solving", unit="problem", disable=None if shown else True)
