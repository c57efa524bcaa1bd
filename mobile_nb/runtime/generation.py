"""What `Engine.generate` returns."""

from __future__ import annotations

from dataclasses import dataclass, field

from .. import html
from ..vocabulary import Step


@dataclass
class Generation:
    """What `Engine.generate` returns.

    Attributes:
        token_ids: the new tokens.   text: their text, empty without a tokenizer.   steps: a `Step` for each.
        scores, logits: a tensor [1, V] for each token where output_scores or output_logits was asked for, else None.
    """

    token_ids: list[int]
    text: str
    steps: list[Step] = field(repr=False)
    scores: tuple | None = field(default=None, repr=False)
    logits: tuple | None = field(default=None, repr=False)

    @property
    def fallback_ratio(self) -> float:
        """Share of the tokens after the first that the big model had to write again."""
        return sum(s.fell_back for s in self.steps) / max(1, len(self.steps) - 1)

    @property
    def seconds_per_token(self) -> float:
        """Mean time of the tokens after the first, seconds; the first one's time is that of the prompt."""
        later = [s.seconds for s in self.steps[1:]]
        return sum(later) / len(later) if later else float("nan")

    def _repr_html_(self) -> str:
        """The text as a notebook shows it: coloured by who wrote each token, with what it cost under the pointer."""
        facts = f"{len(self.steps)} tokens, {100 * self.fallback_ratio:.0f} % written again by the big model (bold)"
        return f"{html.ribbon(self.steps)}<small>{facts}</small>"


__all__ = ["Generation"]
