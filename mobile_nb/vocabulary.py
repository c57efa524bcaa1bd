"""The words every other room uses: plain values, one error, no torch.

Legend: T tokens · E experts · K active experts · L MoE layers · C configurations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

PROMPT, LITTLE, BIG = "prompt", "little", "big"  # the three kinds of pass


class MobileError(RuntimeError):
    """A mistake or a limit that a user can act on, told in one sentence."""


@dataclass(frozen=True, slots=True)
class Step:
    """One token as it was written.

    Attributes:
        token_id: id of the token that stays in the text.
        text: its text; empty without a tokenizer.
        wrote: "little" or "big", the model whose logits chose it. The prompt pass is big, so the first token is too.
            Where the big model verifies drafts: "little" for a draft that it confirmed, "big" for what it added.
        confidence: largest softmax probability of the pass that was judged, in [0, 1]. On a fallback this is the
            evicted little token's, the number that gamma was compared with.
        seconds: time from the previous token to this one (to the first: the prompt pass). Simulated or measured,
            as `Trace.conditions` says. Tokens that were verified together come at once: a draft that stayed counts
            its own pass here and below, and the token that the big model added counts the rest.
        bytes_moved: expert bytes that the link was given during this token, prefetches included.
        hits, misses: expert requests served from a device slot, and those that had to be fetched on demand.
        host: expert requests computed on the host, beside hits and misses.
        fell_back: True when a little token was evicted and the big model wrote this one.
        gamma: the threshold in force, None where there is no little model.
    """

    token_id: int
    text: str
    wrote: str
    confidence: float
    seconds: float
    bytes_moved: int
    hits: int
    misses: int
    fell_back: bool = False
    gamma: float | None = None
    host: int = 0


@dataclass(frozen=True, slots=True)
class Wanted:
    """Experts of one layer that a prefetcher asks for, best first."""

    layer: int
    experts: tuple[int, ...]


def number(name: str, value, *, low: float = -math.inf, high: float = math.inf, hint: str = "") -> float:
    """Checks that `value` is a finite number in [low, high] and returns it as a float.

    Raises:
        TypeError: not a number (bool counts as not a number).
        ValueError: NaN, infinite, or out of range.
    """
    bounds = f"from {low:g} to {high:g}" if math.isfinite(high) else f"of at least {low:g}"
    tail = f" ({hint})" if hint else ""
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number {bounds}{tail}, got {value!r}.")
    result = float(value)
    if not math.isfinite(result) or not low <= result <= high:
        raise ValueError(f"{name} must be a finite number {bounds}{tail}, got {value!r}.")
    return result


def whole(name: str, value, *, low: int = 1, hint: str = "") -> int:
    """Checks that `value` is an integer of at least `low` and returns it.

    Raises:
        TypeError: not an integer.
        ValueError: below `low`.
    """
    tail = f" ({hint})" if hint else ""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number of at least {low}{tail}, got {value!r}.")
    result = value.__index__()
    if result < low:
        raise ValueError(f"{name} must be at least {low}{tail}, got {value!r}.")
    return result


def failed(policy, question: str, problem: Exception) -> str:
    """The sentence about a policy that raised `problem` when it was asked `question`."""
    said = " ".join(str(problem).split()).rstrip(".")
    return f"the policy {policy!r} failed in `{question}`: {type(problem).__name__}: {said or 'it said nothing'}."


__all__ = ["BIG", "LITTLE", "PROMPT", "MobileError", "Step", "Wanted", "failed", "number", "whole"]
