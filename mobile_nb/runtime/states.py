"""What routers were given, kept for those policies that read it. Knows nothing about policies or routing.

Legend: T tokens of a call · H hidden · L MoE layers · N rows.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass

import numpy as np
import torch

from ..vocabulary import PROMPT, MobileError


class States:
    """Router inputs of the last tokens of a text, and of the pass at hand.

    Args:
        tokens: how many tokens of the text to keep; 0 keeps nothing at all.
    """

    def __init__(self, tokens: int):
        self.tokens, self.mode = tokens, None
        self._text: dict[int, torch.Tensor] = {}  # layer -> [up to `tokens`, H]
        self._now: dict[int, torch.Tensor] = {}  # the same, of this pass

    def begin(self, mode: str, wrote: bool) -> None:
        """A pass begins. wrote: the one before wrote a token, and so belongs to the text."""
        if mode == PROMPT:
            self._text = {}
        elif wrote:
            new = slice(None) if self.mode == PROMPT else slice(-1, None)  # without a KV cache all is read again
            self._text = {at: self._joined(self._text.get(at), rows[new]) for at, rows in self._now.items()}
        self.mode, self._now = mode, {}

    def see(self, at: int, hidden: torch.Tensor) -> None:
        """A layer's router is given hidden states [T, H]."""
        if self.tokens:
            self._now[at] = self._joined(self._now.get(at), hidden)

    def rows(self, tokens: int, at: int) -> np.ndarray:
        """[N, H] float32, in the order of computation: all layers of the last `tokens` tokens, then those of this pass
        up to layer `at`."""
        if tokens > self.tokens:
            raise MobileError("a policy that reads states must say how many tokens of them: `context`.")
        text = torch.stack([self._text[layer][-tokens:] for layer in sorted(self._text)], dim=1).flatten(0, 1)
        now = [self._now[layer][-1:] for layer in range(at + 1)]
        return torch.cat([text, *now]).to("cpu", torch.float32).numpy()

    def _joined(self, before: torch.Tensor | None, rows: torch.Tensor) -> torch.Tensor:
        rows = rows[-self.tokens :].clone()  # the rest of a prompt need not stay in memory
        return rows if before is None else torch.cat([before, rows])[-self.tokens :]


def context(policy) -> int:
    """Tokens whose states a policy reads, or one that it holds; 0 for none."""
    own, value = getattr(policy, "context", 0), is_dataclass(policy) and not isinstance(policy, type)
    held = [getattr(policy, field.name) for field in fields(policy)] if value else []
    return max([own if isinstance(own, int) else 0, *map(context, held)])


__all__ = ["States", "context"]
